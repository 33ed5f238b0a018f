//! Whether a pod belongs on a node, by what it asks of the node's labels and name and by the taints that it tolerates.
//! Pure. Controllers and nodes ask it of one pod at a time; the scheduler, of thousands, has its own compiled form.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::selector::{Operator, Requirement};

/// The node has what the pod's `nodeSelector` and its required node affinity ask for.
pub fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let has =
        |(key, value): (&String, &String)| node.metadata.labels.as_ref()?.get(key).map(|own| own == value);
    if !spec.node_selector.iter().flatten().all(|wanted| has(wanted) == Some(true)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

/// A term that asks for nothing matches no node.
fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (by_label, by_field) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let name = node.metadata.name.clone().unwrap_or_default();
    // The one field that there is.
    let fields = BTreeMap::from([("metadata.name".to_owned(), name)]);
    let asks = by_label.clone().next().is_some() || by_field.clone().next().is_some();
    let labels = node.metadata.labels.as_ref();
    let is_met = |asked| requirement(asked).is_some_and(|requirement| requirement.matches(&labels));
    let is_met_by_field = |asked: &NodeSelectorRequirement| {
        fields.contains_key(&asked.key) && requirement(asked).is_some_and(|asked| asked.matches(&fields))
    };
    asks && by_label.into_iter().all(is_met) && by_field.into_iter().all(is_met_by_field)
}

fn requirement(asked: &NodeSelectorRequirement) -> Option<Requirement> {
    let operator = match asked.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    Some(Requirement { key: asked.key.clone(), operator, values: asked.values.clone().unwrap_or_default() })
}

/// The pod may be where the taint is.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    let key = given(&toleration.key);
    match toleration.operator.as_deref() {
        Some("Exists") => key.is_none_or(|key| key == taint.key),
        None | Some("" | "Equal") => {
            key.is_some_and(|key| key == taint.key) && given(&toleration.value) == given(&taint.value)
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(mut spec: Value) -> PodSpec {
        spec["containers"] = json!([]);
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn labels_and_name_select_a_node() {
        let node = json!({ "metadata": { "name": "n1", "labels": { "disk": "ssd", "cores": "8" } } });
        let node: Node = serde_json::from_value(node).expect("a node");
        let check = |asked: Value, expected: bool| {
            assert_eq!(is_selected(&spec(asked.clone()), &node), expected, "{asked}");
        };
        check(json!({}), true);
        check(json!({ "nodeSelector": { "disk": "ssd" } }), true);
        check(json!({ "nodeSelector": { "disk": "ssd", "zone": "a" } }), false);
        let terms = |terms: Value| {
            let required = json!({ "nodeSelectorTerms": terms });
            json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } } })
        };
        let label = |key: &str, operator: &str, values: Value| json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] });
        check(terms(json!([label("disk", "In", json!(["hdd", "ssd"]))])), true);
        check(terms(json!([label("disk", "NotIn", json!(["ssd"]))])), false);
        check(terms(json!([label("zone", "NotIn", json!(["a"]))])), true);
        check(terms(json!([label("zone", "Exists", json!([])), label("cores", "Gt", json!(["7"]))])), true);
        check(terms(json!([label("zone", "DoesNotExist", json!([]))])), true);
        check(terms(json!([label("cores", "Lt", json!(["8"]))])), false);
        check(terms(json!([label("disk", "Resembles", json!(["ssd"]))])), false);
        check(terms(json!([{}])), false);
        let field = |key: &str, value: &str| json!({ "matchFields": [{ "key": key, "operator": "In", "values": [value] }] });
        check(terms(json!([field("metadata.name", "n1")])), true);
        check(terms(json!([field("metadata.name", "n2")])), false);
        check(terms(json!([field("spec.unschedulable", "true")])), false);
    }

    #[test]
    fn taints_are_tolerated_by_key_value_and_effect() {
        let check = |toleration: Value, expected: bool| {
            let taint = json!({ "key": "broken", "value": "yes", "effect": "NoExecute" });
            let taint: Taint = serde_json::from_value(taint).expect("a taint");
            let asked: Toleration = serde_json::from_value(toleration.clone()).expect("a toleration");
            assert_eq!(tolerates(&asked, &taint), expected, "{toleration}");
        };
        check(json!({ "operator": "Exists" }), true);
        check(json!({ "key": "broken", "operator": "Exists", "effect": "NoSchedule" }), false);
        check(json!({ "key": "broken", "operator": "Exists", "effect": "NoExecute" }), true);
        check(json!({ "key": "broken", "value": "yes", "tolerationSeconds": 5 }), true);
        check(json!({ "key": "broken", "value": "no" }), false);
        check(json!({ "key": "broken", "operator": "Gt", "value": "1" }), false);
    }
}
