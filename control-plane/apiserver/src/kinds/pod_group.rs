//! PodGroups: pods that are placed together (KEP-4671, `v1alpha2`).

use hawser_api::FieldError;

use super::{
    Hooks, PLAIN,
    names::qualified_name,
    rules::at_most,
    value::{Fields, Path},
};

const MOST_TOPOLOGIES: usize = 1;

pub(crate) static POD_GROUP: Hooks = Hooks {
    validate_create: |group| {
        let mut errors = Vec::new();
        let policies = ["basic", "gang"].map(|policy| group.has(&format!("spec.schedulingPolicy.{policy}")));
        if policies.iter().filter(|set| **set).count() != 1 {
            let detail = "must specify exactly one of: `basic`, `gang`";
            errors.push(FieldError::invalid("spec.schedulingPolicy", "", detail));
        }
        if let Some(count) = group.int("spec.schedulingPolicy.gang.minCount").filter(|count| *count < 1) {
            let detail = "must be greater than or equal to 1";
            errors.push(FieldError::invalid("spec.schedulingPolicy.gang.minCount", count, detail));
        }
        let topologies = group.list("spec.schedulingConstraints.topology");
        let path = Path::Root("spec.schedulingConstraints.topology");
        at_most(&mut errors, &path, topologies.len(), MOST_TOPOLOGIES);
        for (index, topology) in topologies.iter().enumerate() {
            let path = format!("spec.schedulingConstraints.topology[{index}].key");
            let key = topology.text("key");
            if key.is_empty() {
                errors.push(FieldError::required(path, ""));
            } else {
                errors.extend(
                    qualified_name(key).into_iter().map(|wrong| FieldError::invalid(&*path, key, wrong)),
                );
            }
        }
        errors
    },
    validate_update: |new, old| {
        if new.at("spec") == old.at("spec") {
            return Vec::new();
        }
        vec![FieldError::invalid("spec", "", "field is immutable")]
    },
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kinds::tests::{refused, update_refused, with};

    const GROUP: &str = "scheduling.k8s.io/podgroups";

    fn group() -> Value {
        json!({
            "kind": "PodGroup", "apiVersion": "scheduling.k8s.io/v1alpha2", "metadata": { "name": "g", "namespace": "a" },
            "spec": { "schedulingPolicy": { "gang": { "minCount": 3 } } },
        })
    }

    #[test]
    fn a_group_has_one_policy_for_good() {
        refused(GROUP, group(), &[]);
        let policy = |policy: Value| with(group(), "/spec/schedulingPolicy", policy);
        refused(GROUP, policy(json!({ "basic": {} })), &[]);
        let one = "spec.schedulingPolicy: Invalid value: \"\": must specify exactly one of: `basic`, `gang`";
        refused(GROUP, policy(json!({})), &[one]);
        refused(GROUP, policy(json!({ "basic": {}, "gang": { "minCount": 1 } })), &[one]);
        refused(
            GROUP,
            policy(json!({ "gang": { "minCount": 0 } })),
            &["spec.schedulingPolicy.gang.minCount: Invalid value: 0: must be greater than or equal to 1"],
        );
        update_refused(
            GROUP,
            group(),
            policy(json!({ "gang": { "minCount": 4 } })),
            &["spec: Invalid value: \"\": field is immutable"],
        );
    }

    #[test]
    fn a_group_is_kept_together_by_one_label() {
        let topology = |keys: &[&str]| {
            let keys: Vec<Value> = keys.iter().map(|key| json!({ "key": key })).collect();
            with(group(), "/spec/schedulingConstraints", json!({ "topology": keys }))
        };
        refused(GROUP, topology(&["topology.kubernetes.io/rack"]), &[]);
        refused(GROUP, topology(&[""]), &["spec.schedulingConstraints.topology[0].key: Required value"]);
        refused(
            GROUP,
            topology(&["a", "b"]),
            &["spec.schedulingConstraints.topology: Too many: 2: must have at most 1 items"],
        );
    }
}
