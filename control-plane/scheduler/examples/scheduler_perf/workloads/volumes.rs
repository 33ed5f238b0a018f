//! Pods with volumes: `volumes` of upstream's.

use super::{Nodes, Op, POD, Workload, nodes, pods, workload};

const CSI: &str = "pv-csi";
const IN_TREE: &str = "pv-aws";
const CLAIM: &str = "pvc";

pub(crate) fn all() -> Vec<Workload> {
    let plain = || nodes(5000);
    let limited = || nodes(5000).limited(39);
    vec![
        workload("SchedulingSecrets/5000Nodes_10000Pods", 260, secrets(5000, 1000, 10_000)),
        workload("SchedulingInTreePVs/5000Nodes", 0, with_volumes(plain(), IN_TREE, 5000, 1000)),
        workload("SchedulingInTreePVs/5000Nodes_2000Pods", 90, with_volumes(plain(), IN_TREE, 1000, 2000)),
        workload(
            "SchedulingMigratedInTreePVs/5000Nodes",
            0,
            with_volumes(limited().migrated(), IN_TREE, 5000, 1000),
        ),
        workload(
            "SchedulingMigratedInTreePVs/5000Nodes_5000Pods",
            35,
            with_volumes(limited().migrated(), IN_TREE, 5000, 5000),
        ),
        workload("SchedulingCSIPVs/5000Nodes", 0, with_volumes(limited(), CSI, 5000, 1000)),
        workload("SchedulingCSIPVs/5000Nodes_5000Pods", 48, with_volumes(limited(), CSI, 5000, 5000)),
        workload("PreemptionPVs/1000Nodes", 0, preemption(1000, 4000, 1000)),
    ]
}

fn secrets(count: usize, before: usize, measured: usize) -> Vec<Op> {
    let template = "pod-with-secret-volume";
    vec![nodes(count).into(), pods(template, before).into(), pods(template, measured).measured().into()]
}

fn with_volumes(nodes: Nodes, volume: &'static str, before: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes.into(),
        pods(POD, before).with_volumes(volume, CLAIM).into(),
        pods(POD, measured).with_volumes(volume, CLAIM).measured().into(),
    ]
}

fn preemption(count: usize, victims: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(count).into(),
        pods("pod-low-priority", victims).into(),
        pods("pod-high-priority", measured).with_volumes(IN_TREE, CLAIM).measured().into(),
    ]
}
