//! Whether a container that ended starts again: the pod's policy, the container's own, its exit-code rules.
//!
//! Container policies and rules are those of KEP-5307; that one has all containers start over, of KEP-5532.

use super::desired::{ContainerKind, DesiredContainer, RestartPolicy};

const RESTART_ALL: &str = "RestartAllContainers";

/// True when the end with `exit_code` is not the last word on this container.
pub fn restarts(policy: RestartPolicy, container: &DesiredContainer, exit_code: i32) -> bool {
    match container.kind {
        ContainerKind::Ephemeral => false,
        ContainerKind::Sidecar => true,
        // An init container is done when it succeeded, whatever the policy says.
        ContainerKind::Init if exit_code == 0 => false,
        ContainerKind::Init | ContainerKind::Main => restarts_by_rule(policy, container, exit_code),
    }
}

/// True when the end with `exit_code` has all containers of the pod start over, from the first init container on.
pub fn restarts_all(container: &DesiredContainer, exit_code: i32) -> bool {
    container.kind != ContainerKind::Ephemeral && action(container, exit_code) == Some(RESTART_ALL)
}

/// What the first rule that fits asks for.
fn action(container: &DesiredContainer, exit_code: i32) -> Option<&str> {
    let mut rules = container.spec.restart_policy_rules.iter().flatten();
    let fits = rules.find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    fits.map(|rule| rule.action.as_str())
}

fn restarts_by_rule(policy: RestartPolicy, container: &DesiredContainer, exit_code: i32) -> bool {
    if let Some(action) = action(container, exit_code) {
        return action == "Restart" || action == RESTART_ALL;
    }
    let own = container.spec.restart_policy.as_deref().map(RestartPolicy::parse);
    match own.unwrap_or(policy) {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, ContainerRestartRuleOnExitCodes};

    fn container(kind: ContainerKind, own: Option<&str>, rule: Option<(&str, &[i32])>) -> DesiredContainer {
        let rules = rule.map(|(operator, values)| {
            let exit_codes =
                ContainerRestartRuleOnExitCodes { operator: operator.into(), values: Some(values.to_vec()) };
            vec![ContainerRestartRule { action: "Restart".into(), exit_codes: Some(exit_codes) }]
        });
        let spec = Container {
            restart_policy: own.map(str::to_owned),
            restart_policy_rules: rules,
            ..Container::default()
        };
        DesiredContainer { kind, spec, target: None }
    }

    #[track_caller]
    fn check(policy: RestartPolicy, container: &DesiredContainer, codes: &[(i32, bool)]) {
        for (code, expected) in codes {
            assert_eq!(restarts(policy, container, *code), *expected, "exit code {code}");
        }
    }

    #[test]
    fn policies_and_rules_decide() {
        use ContainerKind::{Ephemeral, Init, Main, Sidecar};
        use RestartPolicy::{Always, Never, OnFailure};
        check(Always, &container(Main, None, None), &[(0, true), (1, true)]);
        check(OnFailure, &container(Main, None, None), &[(0, false), (1, true)]);
        check(Never, &container(Main, None, None), &[(0, false), (1, false)]);
        check(Always, &container(Init, None, None), &[(0, false), (1, true)]);
        check(Never, &container(Init, None, None), &[(0, false), (1, false)]);
        check(Never, &container(Sidecar, Some("Always"), None), &[(0, true), (1, true)]);
        check(Always, &container(Ephemeral, None, None), &[(0, false), (1, false)]);
        check(Always, &container(Main, Some("Never"), None), &[(0, false), (1, false)]);
        check(Never, &container(Main, Some("Never"), Some(("In", &[42]))), &[(42, true), (1, false)]);
        check(Never, &container(Main, Some("Never"), Some(("NotIn", &[1]))), &[(42, true), (1, false)]);
    }
}
