//! Pods that wait until something changes: `event_handling` of upstream's. Each kind of pod is kept waiting by one plugin.

use super::{Op, Pods, Workload, nodes, nodes_of, placed, pods, tried, workload};

/// Value of the label `type` of pods that have to wait, and of those that keep them waiting.
const UNSCHEDULABLE: Option<&str> = Some("unsched");
const BLOCKER: Option<&str> = Some("blocker");

pub(crate) fn all() -> Vec<Workload> {
    vec![
        workload("EventHandlingPodDelete/50Nodes_500Pods", 0, pod_delete(50, 480, 500)),
        workload("EventHandlingPodUpdate/1Node_1000Pods", 0, pod_update(1000, 1000)),
        workload("EventHandlingNodeAdd/100Nodes_1000Pods", 0, node_add(100, 1000)),
        workload("EventHandlingPodAdd/1000Pods", 0, pod_add(1000)),
        workload("EventHandlingNodeUpdate/100Nodes_1000Pods", 0, node_update(100, 1000)),
    ]
}

/// Pods that wait in a namespace that is called as the plugin.
fn waiting(template: &'static str, count: usize, namespace: &'static str) -> Op {
    pods(template, count).within(namespace).unwaited().into()
}

fn collected(namespaces: &'static [&'static str], label_selector: Option<&'static str>) -> Op {
    Op::StartCollectingMetrics { namespaces, label_selector }
}

fn pod_delete(count: usize, blockers: usize, measured: usize) -> Vec<Op> {
    let topology = "blockertopologyportsresources";
    let affinity = "blockeraffinity";
    let deletion =
        |namespace| Op::DeletePods { namespace, label_selector: BLOCKER, delete_pods_per_second: 100 };
    let with_volumes = |pods: Pods, claim| pods.with_volumes("pv-csi", claim);
    vec![
        nodes(count).limited(20).into(),
        with_volumes(pods("poddelete-pod-blocker-topology-ports-resources", blockers), "pvc")
            .within(topology)
            .into(),
        with_volumes(pods("poddelete-pod-blocker-affinity", blockers), "pvc-once-pod")
            .within(affinity)
            .into(),
        collected(
            &[
                "blockertopologyportsresources",
                "blockeraffinity",
                "nodeports",
                "noderesources",
                "nodevolumelimits",
                "interpodaffinity",
            ],
            UNSCHEDULABLE,
        ),
        waiting("poddelete-pod-podtopologyspread", measured, topology),
        waiting("poddelete-pod-volumerestrictions", blockers, affinity),
        waiting("poddelete-pod-nodeports", measured, "nodeports"),
        waiting("poddelete-pod-noderesources", measured, "noderesources"),
        with_volumes(pods("poddelete-pod-nodevolumelimits", blockers), "pvc")
            .within("nodevolumelimits")
            .unwaited()
            .into(),
        waiting("poddelete-pod-interpodaffinity", measured, "interpodaffinity"),
        tried(UNSCHEDULABLE),
        deletion(topology),
        deletion(affinity),
        placed(UNSCHEDULABLE),
        Op::StopCollectingMetrics,
    ]
}

fn pod_update(blockers: usize, measured: usize) -> Vec<Op> {
    let update = |template, count, namespace, subresources| Op::UpdateAny {
        template,
        namespace: Some(namespace),
        count,
        update_per_second: 100,
        subresources,
    };
    vec![
        collected(
            &[
                "nodeunschedulable",
                "tainttoleration",
                "blocker",
                "interpodaffinity",
                "noderesources",
                "schedulinggates",
            ],
            UNSCHEDULABLE,
        ),
        nodes_of("podupdate-node-unschedulable", 1).into(),
        waiting("podupdate-pod-nodeunschedulable", measured, "nodeunschedulable"),
        nodes_of("podupdate-node-with-taint", 1).into(),
        waiting("podupdate-pod-tainttoleration", measured, "tainttoleration"),
        tried(None),
        update("podupdate-pod-nodeunschedulable-update", measured, "nodeunschedulable", &[]),
        update("podupdate-pod-tainttoleration-update", measured, "tainttoleration", &[]),
        placed(None),
        nodes_of("node-with-name", 1).into(),
        pods("podupdate-pod-blocker", blockers).within("blocker").into(),
        waiting("podupdate-pod-interpodaffinity", measured, "interpodaffinity"),
        waiting("podupdate-pod-noderesources", measured, "noderesources"),
        waiting("podupdate-pod-podtopologyspread", blockers, "blocker"),
        waiting("podupdate-pod-schedulinggates", measured, "schedulinggates"),
        tried(UNSCHEDULABLE),
        update("podupdate-pod-blocker-update", blockers, "blocker", &[]),
        update("podupdate-pod-blocker-scale-down", blockers, "blocker", &["resize"]),
        update("podupdate-pod-schedulinggates-update", measured, "schedulinggates", &[]),
        placed(UNSCHEDULABLE),
        Op::StopCollectingMetrics,
    ]
}

const SIX: &[&str] = &[
    "nodeunschedulable",
    "noderesources",
    "interpodaffinity",
    "nodeaffinity",
    "podtopologyspread",
    "tainttoleration",
];

fn node_add(count: usize, measured: usize) -> Vec<Op> {
    vec![
        collected(SIX, None),
        nodes_of("nodeadd-node-unschedulable", 1).into(),
        waiting("nodeadd-pod-nodeunschedulable", measured, "nodeunschedulable"),
        tried(None),
        nodes_of("nodeadd-node-low-capacity", 1).into(),
        waiting("nodeadd-pod-noderesources", measured, "noderesources"),
        tried(None),
        nodes_of("nodeadd-node-high-capacity", count).into(),
        placed(None),
        waiting("nodeadd-pod-interpodaffinity", measured, "interpodaffinity"),
        waiting("nodeadd-pod-nodeaffinity", measured, "nodeaffinity"),
        waiting("nodeadd-pod-podtopologyspread", measured, "podtopologyspread"),
        tried(None),
        nodes_of("nodeadd-node-with-labels", count).into(),
        placed(None),
        waiting("nodeadd-pod-tainttoleration", measured, "tainttoleration"),
        tried(None),
        nodes_of("nodeadd-node-with-taint", count).into(),
        placed(None),
        Op::StopCollectingMetrics,
    ]
}

fn pod_add(measured: usize) -> Vec<Op> {
    let [spread, affinity] = ["podtopologyspread", "interpodaffinity"];
    vec![
        nodes_of("podadd-node", 2).into(),
        pods("podadd-pod-with-label", 1).within(spread).into(),
        collected(&["podtopologyspread", "interpodaffinity"], UNSCHEDULABLE),
        waiting("podadd-pod-podtopologyspread", measured, spread),
        waiting("podadd-pod-interpodaffinity", measured, affinity),
        tried(UNSCHEDULABLE),
        pods("podadd-pod-unblocker-topology", measured).within(spread).into(),
        pods("podadd-pod-unblocker-affinity", measured).within(affinity).into(),
        placed(UNSCHEDULABLE),
        Op::StopCollectingMetrics,
    ]
}

fn node_update(count: usize, measured: usize) -> Vec<Op> {
    let update = |template| Op::UpdateAny {
        template,
        namespace: None,
        count,
        update_per_second: 100,
        subresources: &[],
    };
    vec![
        collected(SIX, None),
        nodes_of("nodeupdate-node-unschedulable", count).into(),
        waiting("nodeupdate-pod-nodeunschedulable", measured, "nodeunschedulable"),
        tried(None),
        update("nodeupdate-node-unschedulable-update"),
        placed(None),
        nodes_of("nodeupdate-node-low-capacity", count).into(),
        waiting("nodeupdate-pod-noderesources", measured, "noderesources"),
        tried(None),
        update("nodeupdate-node-low-capacity-update"),
        placed(None),
        nodes_of("nodeupdate-node-without-labels", count).into(),
        waiting("nodeupdate-pod-interpodaffinity", measured, "interpodaffinity"),
        waiting("nodeupdate-pod-nodeaffinity", measured, "nodeaffinity"),
        waiting("nodeupdate-pod-podtopologyspread", measured, "podtopologyspread"),
        tried(None),
        update("nodeupdate-node-without-labels-update"),
        placed(None),
        nodes_of("nodeupdate-node-without-taints", count).into(),
        waiting("nodeupdate-pod-tainttoleration", measured, "tainttoleration"),
        tried(None),
        update("nodeupdate-node-without-taints-update"),
        placed(None),
        Op::StopCollectingMetrics,
    ]
}
