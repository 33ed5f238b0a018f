//! Which nodes a DaemonSet's pods belong on. Pure.
//!
//! By the template's node name, node selector, required node affinity and tolerations; what a node has room for is the
//! scheduler's matter.

use hawser_api::node_fit::{is_selected, tolerates};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};

use super::pod::tolerations;
use crate::{meta::MetaExt, node::taints_of};

/// What a set wants of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fit {
    /// A pod is made where there is none.
    pub(super) should_run: bool,
    /// A pod that is there may stay.
    pub(super) may_stay: bool,
}

pub(super) fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let Some(spec) = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else {
        return Fit::default();
    };
    let named = spec.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some_and(|name| name != node.name()) || !is_selected(spec, node) {
        return Fit::default();
    }
    if taints_of(node).is_empty() {
        return Fit { should_run: true, may_stay: true };
    }
    let tolerations = tolerations(spec);
    let untolerated = |effects: &[&str]| {
        let mut taints = taints_of(node).iter().filter(|taint| effects.contains(&taint.effect.as_str()));
        taints.any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
    };
    Fit { should_run: !untolerated(&["NoSchedule", "NoExecute"]), may_stay: !untolerated(&["NoExecute"]) }
}

/// No set could tell the two apart: heartbeats and conditions make no difference.
pub(super) fn look_alike(old: &Node, new: &Node) -> bool {
    old.name() == new.name() && old.labels() == new.labels() && taints_of(old) == taints_of(new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(taints: Value) -> Node {
        let node = json!({
            "metadata": { "name": "n1", "labels": { "disk": "ssd", "cores": "8" } },
            "spec": { "taints": taints },
        });
        serde_json::from_value(node).unwrap()
    }

    #[track_caller]
    fn check(name: &str, spec: Value, taints: Value, expected: (bool, bool)) {
        let set = json!({ "spec": { "selector": {}, "template": { "spec": spec } } });
        let set: DaemonSet = serde_json::from_value(set).unwrap();
        let fit = fit(&set, &node(taints));
        assert_eq!((fit.should_run, fit.may_stay), expected, "{name}");
    }

    fn affinity(term: Value) -> Value {
        json!({ "containers": [], "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] },
        } } })
    }

    #[test]
    fn selectors_affinity_and_taints_decide() {
        let plain = || json!({ "containers": [] });
        let (yes, no) = ((true, true), (false, false));
        check("any node", plain(), json!([]), yes);
        check("by name", json!({ "containers": [], "nodeName": "n1" }), json!([]), yes);
        check("by another name", json!({ "containers": [], "nodeName": "n2" }), json!([]), no);
        check("by label", json!({ "containers": [], "nodeSelector": { "disk": "ssd" } }), json!([]), yes);
        check(
            "by another label",
            json!({ "containers": [], "nodeSelector": { "disk": "hdd" } }),
            json!([]),
            no,
        );
        let cores = |operator: &str, bound: &str| json!({ "matchExpressions": [{ "key": "cores", "operator": operator, "values": [bound] }] });
        check("more cores", affinity(cores("Gt", "4")), json!([]), yes);
        check("fewer cores", affinity(cores("Lt", "8")), json!([]), no);
        let named =
            json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n2"] }] });
        check("by a name's field", affinity(named), json!([]), no);
        check("a term that asks for nothing", affinity(json!({})), json!([]), no);
        let taint = |key: &str, effect: &str| json!([{ "key": key, "effect": effect }]);
        check("no new pods there", plain(), taint("a", "NoSchedule"), (false, true));
        check("no pods there", plain(), taint("a", "NoExecute"), no);
        check("better not there", plain(), taint("a", "PreferNoSchedule"), yes);
        check("cordoned", plain(), taint("node.kubernetes.io/unschedulable", "NoSchedule"), yes);
        check("out of reach", plain(), taint("node.kubernetes.io/unreachable", "NoExecute"), yes);
        let network = || taint("node.kubernetes.io/network-unavailable", "NoSchedule");
        check("without network", plain(), network(), (false, true));
        check("needs no pod network", json!({ "containers": [], "hostNetwork": true }), network(), yes);
    }
}
