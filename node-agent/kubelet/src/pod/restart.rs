//! Whether a container that ended starts again: the pod's policy, the container's own, its exit-code rules.
//!
//! Container policies and rules are those of KEP-5307.

use super::desired::{ContainerKind, DesiredContainer, RestartPolicy};

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

fn restarts_by_rule(policy: RestartPolicy, container: &DesiredContainer, exit_code: i32) -> bool {
    for rule in container.spec.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let matches = if codes.operator == "NotIn" { !listed } else { listed };
        if matches {
            return rule.action == "Restart" || rule.action == "RestartAllContainers";
        }
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
