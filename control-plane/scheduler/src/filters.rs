//! Which nodes can run a pod, as far as the node alone can tell: upstream's filter plugins, in their order.
//!
//! NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts, NodeResourcesFit. Pure functions over a node and
//! what is taken of it; the taken part is given apart, so that "what if" is asked the same way.

use k8s_openapi::api::core::v1::Taint;

use crate::{
    affinity::untolerated,
    features,
    pod::Needs,
    profile::Plugin,
    refusal::{Lack, Refusal},
    resources::{CPU, EPHEMERAL_STORAGE, MEMORY},
    snapshot::{NodeEntry, Occupancy, Slot, Snapshot},
};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why the node cannot run the pod, as the first plugin that refuses says it; `None` where it can.
pub(crate) fn refusal(needs: &Needs, node: &NodeEntry) -> Option<Refusal> {
    refusal_with(needs, node, &node.taken)
}

/// The same, with more or less taken of the node.
pub(crate) fn refusal_with(needs: &Needs, node: &NodeEntry, taken: &Occupancy) -> Option<Refusal> {
    let on = |plugin| needs.profile.filters.contains(plugin);
    // Before all others, as upstream: pods of DaemonSets are for one node and look at no other.
    if on(Plugin::NodeAffinity) && !needs.affinity.names(&node.name) {
        return Some(Refusal::NotNamed);
    }
    if on(Plugin::NodeUnschedulable) && !schedulable(needs, node) {
        return Some(Refusal::Unschedulable);
    }
    if on(Plugin::TaintToleration) && untolerated(&needs.tolerations, &node.taints).is_some() {
        return Some(Refusal::Taint);
    }
    if on(Plugin::NodeAffinity) {
        let added = needs.profile.added_affinity.as_ref();
        if added.is_some_and(|added| !added.allows(&node.name, &node.labels)) {
            return Some(Refusal::EnforcedAffinity);
        }
        if !needs.affinity.allows(&node.name, &node.labels) {
            return Some(Refusal::NodeAffinity);
        }
    }
    room(needs, node, taken)
}

/// The nodes that have the rarest of the extended resources that the pod asks nodes for: no other can run it. `None` where it
/// asks for none.
pub(crate) fn having_rarest<'a>(
    needs: &Needs,
    snapshot: &'a Snapshot,
) -> Option<impl Iterator<Item = Slot> + use<'a>> {
    let on = |plugin| needs.profile.filters.contains(plugin);
    let from_class =
        |name: &str| on(Plugin::DynamicResources) && snapshot.devices.providers().contains_key(name);
    let counted = |name: &&String| !needs.profile.ignores(name) && !from_class(name);
    let asked = needs.requests.extended.keys().filter(|_| on(Plugin::NodeResourcesFit)).filter(counted);
    asked.map(|name| snapshot.having(name)).min_by_key(|having| having.len())
}

/// NodeDeclaredFeatures. Asked after all others, as upstream.
pub(crate) fn features(needs: &Needs, node: &NodeEntry) -> Option<Refusal> {
    let on = needs.profile.filters.contains(Plugin::NodeDeclaredFeatures);
    let lacks = on && features::missing(&needs.features, &node.features).next().is_some();
    lacks.then_some(Refusal::Features)
}

/// The part that depends on other pods of the node: why there is no room beside them.
pub(crate) fn room(needs: &Needs, node: &NodeEntry, taken: &Occupancy) -> Option<Refusal> {
    let on = |plugin| needs.profile.filters.contains(plugin);
    if on(Plugin::NodePorts) && !ports_free(needs, taken) {
        return Some(Refusal::Ports);
    }
    if !on(Plugin::NodeResourcesFit) {
        return None;
    }
    let lacks = lacking(needs, node, taken);
    (!lacks.is_empty()).then_some(Refusal::Lacks(lacks))
}

/// Whether a node could run a pod, by one filter.
type Passes = fn(&Needs, &NodeEntry) -> bool;

/// The filters of single nodes, one by one: what is measured of them.
pub(crate) const SINGLE: [(Plugin, Passes); 6] = [
    (Plugin::NodeUnschedulable, schedulable),
    (Plugin::TaintToleration, |needs, node| untolerated(&needs.tolerations, &node.taints).is_none()),
    (Plugin::NodeAffinity, |needs, node| needs.affinity.allows(&node.name, &node.labels)),
    (Plugin::NodePorts, |needs, node| ports_free(needs, &node.taken)),
    (Plugin::NodeResourcesFit, |needs, node| lacking(needs, node, &node.taken).is_empty()),
    (Plugin::NodeDeclaredFeatures, |needs, node| features(needs, node).is_none()),
];

/// NodeUnschedulable: a cordoned node takes only pods that tolerate its being cordoned.
fn schedulable(needs: &Needs, node: &NodeEntry) -> bool {
    if !node.unschedulable {
        return true;
    }
    let taint = Taint { key: UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    needs.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
}

/// NodePorts.
fn ports_free(needs: &Needs, taken: &Occupancy) -> bool {
    needs.ports.iter().all(|port| !taken.ports.iter().any(|taken| port.conflicts(taken)))
}

/// NodeResourcesFit: everything that the node has too little of.
fn lacking(needs: &Needs, node: &NodeEntry, taken: &Occupancy) -> Vec<Lack> {
    let (asked, have, used) = (&needs.requests.numbers, &node.allocatable.numbers, &taken.requested.numbers);
    let mut lacking = Vec::new();
    if used.pods + 1 > have.pods {
        lacking.push(Lack::Pods);
    }
    let mut check = |name: &str, asked: i64, have: i64, used: i64| {
        if asked > 0 && asked > have - used {
            lacking.push(Lack::Resource { name: name.to_owned(), never: asked > have });
        }
    };
    check(CPU, asked.cpu_milli, have.cpu_milli, used.cpu_milli);
    check(MEMORY, asked.memory_bytes, have.memory_bytes, used.memory_bytes);
    check(EPHEMERAL_STORAGE, asked.ephemeral_bytes, have.ephemeral_bytes, used.ephemeral_bytes);
    let from_class =
        |name: &str| needs.profile.filters.contains(Plugin::DynamicResources) && node.has_from_class(name);
    let counted = |name: &str| !needs.profile.ignores(name) && !from_class(name);
    for (name, asked) in needs.requests.extended.iter().filter(|(name, _)| counted(name)) {
        check(name, *asked, node.allocatable.get(name), taken.requested.get(name));
    }
    lacking
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        snapshot::Snapshot,
        testing::{info, node, pod},
    };

    #[track_caller]
    fn check(name: &str, node_spec: Value, pod_spec: Value, expected: &[&str]) {
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node("n1", node_spec));
        let refusal = refusal(&info(&pod("p", pod_spec)).needs, &snapshot.nodes[slot]);
        assert_eq!(refusal.map(|refusal| refusal.reasons()).unwrap_or_default(), expected, "{name}");
    }

    fn wants(requests: Value) -> Value {
        json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] })
    }

    #[test]
    fn filters_refuse_in_upstreams_words() {
        let taint = |effect: &str| json!({ "spec": { "taints": [{ "key": "gpu", "value": "a100", "effect": effect }] } });
        let cordoned = || json!({ "spec": { "unschedulable": true } });
        let away = "node(s) had untolerated taint(s)";
        check("empty pod", json!({}), wants(json!({})), &[]);
        check("cordoned", cordoned(), wants(json!({})), &["node(s) were unschedulable"]);
        check(
            "cordoned and tolerated",
            cordoned(),
            json!({ "containers": [], "tolerations": [{ "operator": "Exists" }] }),
            &[],
        );
        check("NoSchedule", taint("NoSchedule"), wants(json!({})), &[away]);
        check("NoExecute", taint("NoExecute"), wants(json!({})), &[away]);
        check("PreferNoSchedule", taint("PreferNoSchedule"), wants(json!({})), &[]);
        check(
            "selector",
            json!({}),
            json!({ "containers": [], "nodeSelector": { "disk": "ssd" } }),
            &["node(s) didn't match Pod's node affinity/selector"],
        );
        let named = |name: &str| {
            let field = json!({ "key": "metadata.name", "operator": "In", "values": [name] });
            let required = json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] });
            json!({ "containers": [], "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } } })
        };
        check("named", cordoned(), named("n1"), &["node(s) were unschedulable"]);
        check("not named", cordoned(), named("n2"), &["node(s) didn't satisfy plugin(s) [NodeAffinity]"]);
        check("cpu", json!({}), wants(json!({ "cpu": "5" })), &["Insufficient cpu"]);
        check("all of the cpu", json!({}), wants(json!({ "cpu": "4" })), &[]);
        check(
            "cpu and memory",
            json!({}),
            wants(json!({ "cpu": "5", "memory": "1Ti" })),
            &["Insufficient cpu", "Insufficient memory"],
        );
        check(
            "unknown resource",
            json!({}),
            wants(json!({ "example.com/gpu": "1" })),
            &["Insufficient example.com/gpu"],
        );
        check(
            "known resource",
            json!({ "status": { "allocatable": { "pods": "1", "example.com/gpu": "1" } } }),
            wants(json!({ "example.com/gpu": "1" })),
            &[],
        );
        check(
            "no room for pods",
            json!({ "status": { "allocatable": { "pods": "0" } } }),
            wants(json!({})),
            &["Too many pods"],
        );
    }

    #[test]
    fn taken_ports_refuse() {
        let spec = |port: i32, ip: &str| json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": port, "hostIP": ip, "protocol": "TCP" }] }] });
        let mut snapshot = Snapshot::default();
        let slot = snapshot.put_node(&node("n1", json!({})));
        snapshot.put_pod(&info(&pod("a", spec(80, "10.0.0.1"))), "n1");
        let free = |snapshot: &Snapshot, port, ip| {
            refusal(&info(&pod("b", spec(port, ip))).needs, &snapshot.nodes[slot]).is_none()
        };
        assert!(
            !free(&snapshot, 80, "10.0.0.1") && !free(&snapshot, 80, "") && !free(&snapshot, 80, "0.0.0.0")
        );
        assert!(free(&snapshot, 81, "10.0.0.1") && free(&snapshot, 80, "10.0.0.2"));
        snapshot.remove_pod("a");
        assert!(free(&snapshot, 80, ""));
    }
}
