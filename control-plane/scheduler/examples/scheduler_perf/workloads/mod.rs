//! Upstream's workloads that are made for measuring, with its operations, numbers of nodes and pods, and floors; and a few of
//! our own.
//!
//! Those that differ in feature gates alone are one here. `tests/scheduler_perf.rs` compares them with upstream's, where its
//! files are beside the repository.

mod affinity;
mod devices;
mod events;
mod misc;
mod op;
mod spreading;
mod volumes;

use op::nodes_of;
pub(crate) use op::{Churn, Nodes, Op, Pods, Stage, Workload, nodes, pods};

const POD: &str = "pod-default";
const LIGHT: &str = "light-pod";
const ZONE: &[&str] = &["zone1"];

pub(crate) fn all() -> Vec<Workload> {
    let upstreams =
        [misc::all(), affinity::all(), spreading::all(), volumes::all(), devices::all(), events::all()];
    own().into_iter().chain(upstreams.into_iter().flatten()).collect()
}

/// Sizes that upstream does not measure, and what it has no workload for.
pub(crate) fn own() -> Vec<Workload> {
    vec![
        // The first: what a process has freed already, it would take again.
        workload("Memory", 0, vec![Op::Memory { nodes: 50_000, pods: 200_000 }]),
        workload("PreemptionBasic/5000Nodes", 0, misc::preemption(5000, 20_000, 5000)),
        workload(
            "SchedulingWithResourceClaim/5000pods_500nodes",
            0,
            devices::shared_claims(500, 2, [2500, 500], [2500, 500]),
        ),
        workload("HundredThousandNodes", 0, misc::basic(100_000, 1000, 10_000)),
        workload("HundredThousandNodesPreferredSpreading", 0, spreading::preferred(100_000)),
        workload(
            "SteadyArrival",
            0,
            vec![nodes(5000).into(), Op::Arrive { template: POD, count: 5000, per_second: 500 }],
        ),
    ]
}

fn workload(name: &'static str, floor: u32, ops: Vec<Op>) -> Workload {
    Workload { name, floor, ops }
}

/// An object of another kind than nodes and pods.
fn any(template: &'static str, namespace: Option<&'static str>) -> Op {
    Op::CreateAny { template, namespace, count: None }
}

fn tried(label_selector: Option<&'static str>) -> Op {
    Op::Barrier { stage_requirement: Stage::Attempted, label_selector }
}

fn placed(label_selector: Option<&'static str>) -> Op {
    Op::Barrier { stage_requirement: Stage::Scheduled, label_selector }
}
