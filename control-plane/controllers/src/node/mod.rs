//! Nodes: their pod addresses, whether they are alive, and what becomes of their pods when they are not.
//!
//! Four parts that meet only in the Node object: [`cidr`] gives each node its block of pod addresses;
//! [`monitor`] notices missing heartbeats and sets the conditions to Unknown; [`taints`] turns conditions into
//! taints, as fast as [`zones`] allows; [`eviction`] deletes the pods that do not tolerate them, when their time is up.

mod blocks;
mod cidr;
mod eviction;
mod monitor;
mod taints;
#[cfg(test)]
mod tests;
mod zones;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

pub(crate) use eviction::mark_disrupted;

use crate::Starts;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if starts.wants("nodeipam") {
        cidr::register(starts);
    }
    if starts.wants("nodelifecycle") {
        monitor::register(starts);
    }
    if starts.wants("taint-eviction") {
        eviction::register(starts);
    }
}

pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// The status of the node's Ready condition; `Unknown` where there is none.
pub(crate) fn ready_status(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |condition| condition.status.as_str())
}

pub(crate) fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}
