//! What pods' failures and successes mean for a Job: `podFailurePolicy` (KEP-3329), `successPolicy` (KEP-3998). Pure.

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};

use super::{
    indexes::Indexes,
    pod::{completions, spec},
};
use crate::meta::MetaExt;

/// What a failed pod means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It counts towards the back-off limit.
    pub(super) is_counted: bool,
    /// The index of the pod has failed.
    pub(super) fails_index: bool,
    /// The job has failed, and why.
    pub(super) fails_job: Option<String>,
}

const COUNTED: Verdict = Verdict { is_counted: true, fails_index: false, fails_job: None };

/// The first rule that matches decides; without one a failure counts.
pub(super) fn of(job: &Job, pod: &Pod) -> Verdict {
    let rules = spec(job).pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (place, rule) in rules.enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict { is_counted: false, ..COUNTED },
            "FailIndex" => Verdict { fails_index: true, ..COUNTED },
            "FailJob" => {
                let message = format!("{what} matching FailJob rule at index {place}");
                Verdict { fails_job: Some(message), ..COUNTED }
            }
            "Count" => COUNTED,
            _ => continue,
        };
    }
    COUNTED
}

/// What of the pod the rule matches.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let (namespace, name) = (pod.namespace(), pod.name());
    let status = pod.status.as_ref()?;
    if let Some(wanted) = &rule.on_exit_codes {
        let inits = status.init_container_statuses.iter().flatten();
        let (container, code) =
            status.container_statuses.iter().flatten().chain(inits).find_map(|it| exit_code(wanted, it))?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let condition = rule.on_pod_conditions.iter().flatten().find_map(|wanted| {
        let state = wanted.status.as_deref().unwrap_or("True");
        let mut all = status.conditions.iter().flatten();
        all.find(|condition| condition.type_ == wanted.type_ && condition.status == state)
    })?;
    Some(format!("Pod {namespace}/{name} has condition {}", condition.type_))
}

fn exit_code<'a>(
    wanted: &PodFailurePolicyOnExitCodesRequirement,
    status: &'a ContainerStatus,
) -> Option<(&'a str, i32)> {
    let code = status.state.as_ref()?.terminated.as_ref()?.exit_code;
    let is_named = wanted.container_name.as_ref().is_none_or(|name| *name == status.name);
    let is_listed = wanted.values.contains(&code);
    let matches = match wanted.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        _ => false,
    };
    (code != 0 && is_named && matches).then_some((status.name.as_str(), code))
}

/// Why the job is a success, where the indexes that succeeded are enough.
pub(super) fn success(job: &Job, succeeded: &Indexes) -> Option<String> {
    let rules = spec(job).success_policy.iter().flat_map(|policy| &policy.rules);
    let mut met = rules.enumerate().filter(|(_, rule)| {
        let wanted = rule.succeeded_indexes.as_ref().map(|text| Indexes::parse(text, completions(job)));
        let count = wanted.as_ref().map_or_else(|| succeeded.total(), |wanted| wanted.shared(succeeded));
        match (rule.succeeded_count, wanted) {
            (Some(least), _) => count >= least,
            (None, Some(wanted)) => count == wanted.total(),
            (None, None) => false,
        }
    });
    met.next().map(|(place, _)| format!("Matched rules at index {place}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(spec: Value) -> Job {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    #[track_caller]
    fn check(name: &str, code: i32, condition: &str, expected: (bool, bool, Option<&str>)) {
        let rule = |action: &str, operator: &str, codes: Value| json!({ "action": action, "onExitCodes": { "containerName": "c", "operator": operator, "values": codes } });
        let job = job(json!({ "template": {}, "podFailurePolicy": { "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget" }] },
            rule("FailIndex", "In", json!([5])),
            rule("Count", "In", json!([7])),
            rule("FailJob", "NotIn", json!([1, 2])),
        ] } }));
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "a" },
            "status": {
                "conditions": [{ "type": condition, "status": "True" }],
                "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "terminated": { "exitCode": code } },
                }],
            },
        }))
        .unwrap();
        let verdict = of(&job, &pod);
        let (is_counted, fails_index, fails_job) = expected;
        let fails_job = fails_job.map(str::to_owned);
        assert_eq!(verdict, Verdict { is_counted, fails_index, fails_job }, "{name}");
    }

    #[test]
    fn first_matching_rule_decides() {
        check("disrupted", 9, "DisruptionTarget", (false, false, None));
        check("fails its index", 5, "Ready", (true, true, None));
        check("counted by rule", 7, "Ready", (true, false, None));
        let why = "Container c for pod a/p failed with exit code 9 matching FailJob rule at index 3";
        check("fails the job", 9, "Ready", (true, false, Some(why)));
        check("no rule", 1, "Ready", (true, false, None));
        check("zero is no failure", 0, "Ready", (true, false, None));
    }

    #[test]
    fn success_needs_the_named_indexes_or_so_many() {
        let rules = |rules: Value| {
            job(json!({ "template": {}, "completions": 10, "successPolicy": { "rules": rules } }))
        };
        let succeeded = Indexes::default().with([0, 2, 3]);
        let met = |it: Value| success(&rules(it), &succeeded);
        let named = |indexes: &str| json!([{ "succeededIndexes": indexes }]);
        assert_eq!(met(named("0,2")).as_deref(), Some("Matched rules at index 0"));
        assert_eq!(met(named("0-2")), None);
        let second = json!([{ "succeededIndexes": "1" }, { "succeededCount": 3 }]);
        assert_eq!(met(second).as_deref(), Some("Matched rules at index 1"));
        assert_eq!(met(json!([{ "succeededIndexes": "0-5", "succeededCount": 4 }])), None);
        assert_eq!(met(json!([])), None);
    }
}
