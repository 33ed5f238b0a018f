//! Pods that want to be near others, or far from them, and near nodes: `affinity` of upstream's.

use super::{Nodes, Op, POD, Workload, ZONE, nodes, nodes_of, pods, tried, workload};

const AFFINITY: &str = "pod-with-pod-affinity";
const ANTI_AFFINITY: &str = "pod-with-pod-anti-affinity";
const PREFERRED: &str = "pod-with-preferred-pod-affinity";
const PREFERRED_ANTI: &str = "pod-with-preferred-pod-anti-affinity";

pub(crate) fn all() -> Vec<Workload> {
    let plain = || nodes(5000);
    let zoned = || nodes(5000).zoned(ZONE);
    let [required_ns, required_anti_ns] = ["pod-affinity-ns-selector", "pod-anti-affinity-ns-selector"];
    let [preferred_ns, preferred_anti_ns] =
        ["pod-preferred-affinity-ns-selector", "pod-preferred-anti-affinity-ns-selector"];
    vec![
        workload(
            "SchedulingPodAntiAffinity/5000Nodes_2000Pods",
            60,
            among_others(plain(), ANTI_AFFINITY, 1000, ANTI_AFFINITY, 2000),
        ),
        workload(
            "SchedulingPodMatchingAntiAffinity/5000Nodes_5000Pods",
            600,
            among_others(plain(), ANTI_AFFINITY, 1000, "pod-with-pod-anti-affinity-label", 5000),
        ),
        workload("SchedulingPodAffinity/5000Nodes", 0, among_others(zoned(), AFFINITY, 5000, AFFINITY, 1000)),
        workload(
            "SchedulingPodAffinity/5000Nodes_5000Pods",
            35,
            among_others(zoned(), AFFINITY, 5000, AFFINITY, 5000),
        ),
        workload(
            "SchedulingPreferredPodAffinity/5000Nodes_5000Pods",
            90,
            among_others(plain(), PREFERRED, 5000, PREFERRED, 5000),
        ),
        workload(
            "SchedulingPreferredPodAntiAffinity/5000Nodes",
            0,
            among_others(plain(), PREFERRED_ANTI, 5000, PREFERRED_ANTI, 1000),
        ),
        workload(
            "SchedulingPreferredPodAntiAffinity/5000Nodes_5000Pods",
            90,
            among_others(plain(), PREFERRED_ANTI, 5000, PREFERRED_ANTI, 5000),
        ),
        workload("SchedulingNodeAffinity/5000Nodes_10000Pods", 220, node_affinity(5000, 5000, 10_000)),
        workload("MixedSchedulingBasePod/5000Nodes_5000Pods", 140, mixed(5000, 2000, 5000)),
        workload(
            "SchedulingRequiredPodAntiAffinityWithNSSelector/5000Nodes",
            0,
            by_namespace(plain(), required_anti_ns, 40, 1000),
        ),
        workload(
            "SchedulingRequiredPodAntiAffinityWithNSSelector/5000Nodes_2000Pods",
            24,
            by_namespace(nodes(6000), required_anti_ns, 40, 2000),
        ),
        workload(
            "SchedulingPreferredAntiAffinityWithNSSelector/5000Nodes",
            0,
            by_namespace(plain(), preferred_anti_ns, 40, 1000),
        ),
        workload(
            "SchedulingPreferredAntiAffinityWithNSSelector/5000Nodes_2000Pods",
            55,
            by_namespace(plain(), preferred_anti_ns, 40, 2000),
        ),
        workload(
            "SchedulingRequiredPodAffinityWithNSSelector/5000Nodes",
            0,
            by_namespace(zoned(), required_ns, 50, 1000),
        ),
        workload(
            "SchedulingRequiredPodAffinityWithNSSelector/5000Nodes_2000Pods",
            35,
            by_namespace(zoned(), required_ns, 50, 2000),
        ),
        workload(
            "SchedulingPreferredAffinityWithNSSelector/5000Nodes_5000Pods",
            90,
            by_namespace(plain(), preferred_ns, 50, 5000),
        ),
        workload(
            "SchedulingGatedPodsWithPodAffinityImpactForThroughput/1Node_10000GatedPods",
            110,
            among_gated(10_000, 20_000),
        ),
    ]
}

/// The pods before are in one namespace, those that are measured in another.
fn among_others(
    nodes: Nodes,
    before_template: &'static str,
    before: usize,
    template: &'static str,
    measured: usize,
) -> Vec<Op> {
    vec![
        nodes.into(),
        Op::CreateNamespaces { prefix: "sched", count: 2, namespace_template: None },
        pods(before_template, before).within("sched-0").into(),
        pods(template, measured).within("sched-1").measured().into(),
    ]
}

fn node_affinity(count: usize, before: usize, measured: usize) -> Vec<Op> {
    let template = "pod-with-node-affinity";
    vec![
        nodes(count).zoned(ZONE).into(),
        pods(template, before).into(),
        pods(template, measured).measured().into(),
    ]
}

/// Pods without wishes, where others have all kinds of them.
fn mixed(count: usize, before: usize, measured: usize) -> Vec<Op> {
    let mut ops = vec![
        nodes(count).zoned(ZONE).into(),
        Op::CreateNamespaces { prefix: "sched", count: 1, namespace_template: None },
    ];
    let templates = [POD, AFFINITY, ANTI_AFFINITY, PREFERRED, PREFERRED_ANTI];
    ops.extend(templates.map(|template| pods(template, before).within("sched-0").into()));
    ops.push(pods(POD, measured).measured().into());
    ops
}

/// Pods whose wishes are about a hundred namespaces, with so many pods in each.
fn by_namespace(nodes: Nodes, template: &'static str, each: usize, measured: usize) -> Vec<Op> {
    let namespaces = |prefix, count| Op::CreateNamespaces {
        prefix,
        count,
        namespace_template: Some("namespace-with-labels"),
    };
    vec![
        nodes.into(),
        namespaces("init-ns", 100),
        namespaces("measure-ns", 1),
        Op::CreatePodSets { count: 100, namespace_prefix: "init-ns", create_pods_op: pods(template, each) },
        pods(template, measured).within("measure-ns-0").measured().into(),
    ]
}

fn among_gated(gated: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes_of("node-with-name", 1).into(),
        pods("gated-pod-with-pod-affinity", gated).unwaited().into(),
        tried(None),
        pods("pod-with-label", measured).measured().into(),
    ]
}
