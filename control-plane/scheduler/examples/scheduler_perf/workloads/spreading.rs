//! Pods that want to be apart from one another: `topology_spreading` of upstream's.

use super::{Op, POD, Workload, any, nodes, nodes_of, pods, workload};

const MOON: &[&str] = &["moon-1", "moon-2", "moon-3"];
const HARD: &str = "pod-with-topology-spreading";
const SOFT: &str = "pod-with-preferred-topology-spreading";

pub(crate) fn all() -> Vec<Workload> {
    vec![
        workload("TopologySpreading/5000Nodes", 0, over_others(5000, HARD, 5000, 2000)),
        workload("TopologySpreading/5000Nodes_5000Pods", 85, over_others(5000, HARD, 5000, 5000)),
        workload("PreferredTopologySpreading/5000Nodes", 0, over_others(5000, SOFT, 5000, 2000)),
        workload("PreferredTopologySpreading/5000Nodes_5000Pods", 125, over_others(5000, SOFT, 5000, 5000)),
        workload("DefaultTopologySpreading/5000Nodes_10000Pods", 0, of_service(5000, 10_000)),
        workload("DefaultTopologySpreading/5000Nodes_50000Pods", 0, of_service(5000, 50_000)),
        workload("SchedulingWithNodeInclusionPolicy/5000Nodes", 68, with_inclusion_policy(4000, 1000, 4000)),
    ]
}

fn over_others(count: usize, template: &'static str, before: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(count).zoned(MOON).into(),
        pods(POD, before).into(),
        pods(template, measured).measured().into(),
    ]
}

/// Pods of which each has all nodes looked at.
pub(super) fn preferred(count: usize) -> Vec<Op> {
    over_others(count, SOFT, 1000, 2000)
}

/// Pods of one service, which say nothing themselves.
fn of_service(before: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(5000).zoned(MOON).into(),
        any("service", Some("service-ns")),
        pods(POD, before).into(),
        pods("pod-with-label", measured).within("service-ns").measured().into(),
    ]
}

fn with_inclusion_policy(untainted: usize, tainted: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(untainted).into(),
        nodes_of("node-with-taint", tainted).into(),
        pods("pod-with-node-inclusion-policy", measured).measured().into(),
    ]
}
