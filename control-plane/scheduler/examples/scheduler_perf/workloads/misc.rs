//! Pods without wishes, priorities, churn, gates: `misc` and `nodedeclaredfeatures` of upstream's.

use super::{LIGHT, Op, POD, Workload, nodes, nodes_of, op::Churn, pods, tried, workload};

const LOW: &str = "pod-low-priority";
const HIGH: &str = "pod-high-priority";
/// More than any node has, and before all others.
const LARGE: &str = "pod-high-priority-large-cpu";

pub(crate) fn all() -> Vec<Workload> {
    vec![
        workload("SchedulingBasic/5000Nodes_10000Pods", 270, basic(5000, 1000, 10_000)),
        workload("SchedulingBasic/5000Nodes_50000Pods", 0, basic(5000, 5000, 50_000)),
        workload("SchedulingDaemonset/15000Nodes", 390, daemon_set(15_000, 30_000)),
        workload("PreemptionBasic/1000Nodes", 0, preemption(1000, 4000, 1000)),
        workload("PreemptionAsync/5000Nodes", 160, among_preemptors(5000, 20_000, 5000)),
        workload("Unschedulable/5kNodes/100Init/10kPods", 170, among_unschedulable(5000, 100, 10_000)),
        workload("Unschedulable/5kNodes/20kInit/10kPods", 0, among_unschedulable(5000, 20_000, 10_000)),
        workload("SchedulingWithMixedChurn/5000Nodes_10000Pods", 265, among_churn(5000, 10_000)),
        workload("SchedulingWhileGated/1Node_10000GatedPods", 130, while_gated(10_000, 20_000, 20_000)),
        workload(
            "SchedulingDeletedPodsWithFinalizers/5000Node_5000DeletingPods",
            0,
            deleted(5000, 5000, 5000),
        ),
        workload("SchedulingWithExtendedResource/5000pods_5000nodes", 0, extended_resource(5000, 5000)),
        workload("NodeDeclaredFeaturesEnabled/5000Nodes20DeclaredFeatures", 0, declared_features(20)),
        workload("NodeDeclaredFeaturesEnabled/5000Nodes40DeclaredFeatures", 0, declared_features(40)),
        workload("NodeDeclaredFeaturesEnabled/5000Nodes100DeclaredFeatures", 0, declared_features(100)),
    ]
}

pub(super) fn basic(count: usize, before: usize, measured: usize) -> Vec<Op> {
    vec![nodes(count).into(), pods(POD, before).into(), pods(POD, measured).measured().into()]
}

/// All pods name the one node.
fn daemon_set(others: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes_of("node-with-name", 1).into(),
        nodes(others).into(),
        pods("daemonset-pod", measured).measured().into(),
    ]
}

pub(super) fn preemption(count: usize, victims: usize, measured: usize) -> Vec<Op> {
    vec![nodes(count).into(), pods(LOW, victims).into(), pods(HIGH, measured).measured().into()]
}

fn among_preemptors(count: usize, victims: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(count).into(),
        pods(LOW, victims).into(),
        Op::Churn { mode: Churn::Create, number: 0, templates: &[HIGH], interval_milliseconds: 200 },
        pods(POD, measured).measured().into(),
    ]
}

fn among_unschedulable(count: usize, before: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(count).into(),
        pods(POD, before).into(),
        Op::Churn { mode: Churn::Create, number: 0, templates: &[LARGE], interval_milliseconds: 200 },
        pods(POD, measured).measured().into(),
    ]
}

fn among_churn(count: usize, measured: usize) -> Vec<Op> {
    let templates = &["churn/node-default", LARGE, "churn/service-default"];
    vec![
        nodes(count).into(),
        Op::Churn { mode: Churn::Recreate, number: 1, templates, interval_milliseconds: 1000 },
        pods(POD, measured).measured().into(),
    ]
}

fn while_gated(gated: usize, deleted: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes_of("node-with-name", 1).into(),
        pods("gated-pod", gated).unwaited().into(),
        tried(None),
        pods(LIGHT, deleted).into(),
        Op::DeletePods { namespace: "namespace-3", label_selector: None, delete_pods_per_second: 50 },
        pods(LIGHT, measured).measured().into(),
    ]
}

fn deleted(count: usize, deleted: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(count).into(),
        pods("pod-with-finalizer", deleted).unwaited().into(),
        Op::DeletePods { namespace: "namespace-1", label_selector: None, delete_pods_per_second: 100 },
        pods(LIGHT, measured).measured().into(),
    ]
}

/// Each pod asks for a resource that one node has.
fn extended_resource(with: usize, measured: usize) -> Vec<Op> {
    vec![
        nodes(0).into(),
        nodes_of("node-with-extended-resource", with).into(),
        pods("pod-with-extended-resource", measured).within("test").measured().into(),
    ]
}

/// The pods, which have resources of their own, need none of the features.
fn declared_features(features: usize) -> Vec<Op> {
    let template = "pod-with-pod-level-resources";
    vec![
        nodes_of("node-base", 5000).declaring(features).into(),
        pods(template, 5000).within("init").into(),
        pods(template, 5000).within("test").measured().into(),
    ]
}
