//! The next step of a rolling update: which old pods go, and which nodes get a new pod beside an old one. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, RollingUpdateDaemonSet},
    core::v1::Pod,
};

use super::{
    plan::{Changes, OnNode, OnNodes},
    pod::is_updated,
};
use crate::{
    intstr::{Round, resolve},
    meta::{MetaExt, count},
};

fn rolling(set: &DaemonSet) -> Option<&RollingUpdateDaemonSet> {
    let strategy = set.spec.as_ref()?.update_strategy.as_ref()?;
    strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() == Some("RollingUpdate"))
}

fn surge(set: &DaemonSet, desired: i32) -> i32 {
    rolling(set)
        .and_then(|rolling| rolling.max_surge.as_ref())
        .map_or(0, |it| resolve(it, desired, Round::Up))
}

/// A node may have two pods for a while.
pub(super) fn allows_surge(set: &DaemonSet) -> bool {
    surge(set, 1) > 0
}

/// Nothing unless the strategy is a rolling update.
pub(super) fn step(set: &DaemonSet, on_nodes: &OnNodes, now: Timestamp) -> Changes {
    let Some(rolling) = rolling(set) else { return Changes::default() };
    let desired = count(on_nodes.nodes.iter().filter(|node| node.fit.should_run));
    let surge = surge(set, desired);
    if surge > 0 {
        return surging(set, on_nodes, surge, now);
    }
    // Both zero would never move, so one may be missing then.
    let unavailable = rolling.max_unavailable.as_ref().map_or(1, |it| resolve(it, desired, Round::Up));
    replacing(set, on_nodes, unavailable.max(1), now)
}

/// The pods of a node that are not about to go: at most one of the current template, and one of another.
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// `None` where there are more, which the set thins out first.
fn pair<'a>(set: &DaemonSet, on_nodes: &OnNodes, node: &'a OnNode) -> Option<Pair<'a>> {
    let mut pair = Pair { new: None, old: None };
    for pod in node.pods.iter().filter(|pod| !pod.is_deleting()) {
        let place = if is_updated(set, &on_nodes.hash, pod) { &mut pair.new } else { &mut pair.old };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// Nodes that count: those with pods, and those that should have one.
fn involved(on_nodes: &OnNodes) -> impl Iterator<Item = &OnNode> {
    on_nodes.nodes.iter().filter(|node| node.fit.should_run || !node.pods.is_empty())
}

/// Deletes old pods first; the set makes new ones when they are gone.
fn replacing(set: &DaemonSet, on_nodes: &OnNodes, most: i32, now: Timestamp) -> Changes {
    let mut changes = Changes::default();
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for node in involved(on_nodes) {
        match pair(set, on_nodes, node) {
            Some(Pair { new: Some(new), old: None }) => {
                unavailable += i32::from(!on_nodes.is_available(new, now));
            }
            Some(Pair { new: None, old: Some(old) }) if on_nodes.is_available(old, now) => {
                candidates.push(old)
            }
            // It does not work as it is: nothing is lost with it.
            Some(Pair { new: None, old: Some(old) }) => {
                unavailable += 1;
                changes.delete.push(old.clone());
            }
            _ => unavailable += 1,
        }
    }
    let room = usize::try_from(most - unavailable).unwrap_or_default();
    changes.delete.extend(candidates.into_iter().take(room).cloned());
    changes
}

/// Makes new pods beside the old ones, which go when the new ones are available.
fn surging(set: &DaemonSet, on_nodes: &OnNodes, most: i32, now: Timestamp) -> Changes {
    let mut changes = Changes::default();
    let (mut surging, mut candidates) = (0, Vec::new());
    for node in involved(on_nodes) {
        match pair(set, on_nodes, node) {
            None => surging += 1,
            Some(Pair { old: None, .. }) => {}
            Some(Pair { new: None, .. }) if !node.fit.should_run => {}
            Some(Pair { new: None, old: Some(old) }) if on_nodes.is_available(old, now) => {
                candidates.push(node.name.clone());
            }
            Some(Pair { new: None, .. }) => changes.create.push(node.name.clone()),
            Some(Pair { new: Some(new), old: Some(old) }) if on_nodes.is_available(new, now) => {
                changes.delete.push(old.clone());
            }
            Some(_) => surging += 1,
        }
    }
    let room = usize::try_from(most - surging).unwrap_or_default();
    changes.create.extend(candidates.into_iter().take(room));
    changes
}
