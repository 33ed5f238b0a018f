//! Pods with claims of devices: `dra` of upstream's.

use super::{Op, Workload, any, nodes, nodes_of, pods, workload};
use crate::objects::DRA_NODE;

const CLAIM: &str = "resourceclaim";
const CLAIM_TEMPLATE: &str = "resourceclaimtemplate";
const WITH_TEMPLATE: &str = "pod-with-claim-template";

pub(crate) fn all() -> Vec<Workload> {
    vec![
        workload("PublishResourceSlices/500nodes", 0, published(500, 10)),
        workload("PublishResourceSlices/5000nodes", 0, published(5000, 10)),
        workload(
            "SchedulingWithResourceClaimTemplate/5000pods_500nodes",
            56,
            own_claims(500, 10, 2500, 2500),
        ),
        workload("SteadyStateClusterResourceClaimTemplate/empty_500nodes", 64, steady(500, 10, 0)),
        workload("SteadyStateClusterResourceClaimTemplate/half_500nodes", 70, steady(500, 10, 2500)),
        workload("SteadyStateClusterResourceClaimTemplate/full_500nodes", 60, steady(500, 10, 4990)),
    ]
}

/// Measured are the slices themselves.
fn published(with: usize, each: usize) -> Vec<Op> {
    vec![
        nodes(0).into(),
        nodes_of(DRA_NODE, with).into(),
        Op::StartCollectingMetrics { namespaces: &["default"], label_selector: None },
        Op::CreateResourceDriver { max_claims_per_node: each },
        Op::StopCollectingMetrics,
    ]
}

/// Nodes that have devices, and their class.
fn with_devices(count: usize, each: usize) -> Vec<Op> {
    vec![
        nodes(0).into(),
        nodes_of(DRA_NODE, count).into(),
        Op::CreateResourceDriver { max_claims_per_node: each },
        any("deviceclass", None),
    ]
}

/// A claim for each pod.
fn own_claims(count: usize, each: usize, before: usize, measured: usize) -> Vec<Op> {
    let mut ops = with_devices(count, each);
    ops.extend([
        any(CLAIM_TEMPLATE, Some("init")),
        pods(WITH_TEMPLATE, before).within("init").into(),
        any(CLAIM_TEMPLATE, Some("test")),
        pods(WITH_TEMPLATE, measured).within("test").measured().into(),
    ]);
    ops
}

/// Ten pods with a claim each at any time, where so many claims have devices already.
fn steady(count: usize, each: usize, allocated: usize) -> Vec<Op> {
    let mut ops = with_devices(count, each);
    ops.extend([
        Op::CreateAny { template: CLAIM, namespace: Some("init"), count: Some(allocated) },
        Op::AllocResourceClaims { namespace: "init" },
        any(CLAIM_TEMPLATE, Some("test")),
        pods(WITH_TEMPLATE, 10).within("test").steady(10).measured().into(),
    ]);
    ops
}

/// Pods and claims before, and measured: five pods share one.
pub(super) fn shared_claims(count: usize, each: usize, before: [usize; 2], measured: [usize; 2]) -> Vec<Op> {
    let template = "pod-with-claim-ref";
    let claims = |namespace, count| Op::CreateAny { template: CLAIM, namespace, count: Some(count) };
    let mut ops = with_devices(count, each);
    ops.extend([
        claims(Some("init"), before[1]),
        pods(template, before[0]).within("init").into(),
        claims(Some("test"), measured[1]),
        pods(template, measured[0]).within("test").measured().into(),
    ]);
    ops
}
