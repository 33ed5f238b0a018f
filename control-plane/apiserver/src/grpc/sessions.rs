//! Nodes that are connected: their signs of life, their last readings, and the Leases written for them.
//!
//! A heartbeat on the stream is a signal, not state. The Lease is the state that others read; it is written for all nodes
//! that gave a sign since the last round, so that heartbeats never reach the store one by one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use hawser_api::{
    Error, GroupVersionResource, patch::PatchType, resource::Target, schema::FieldValidation, v1,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::usage::{Gauge, NodeUsage};
use crate::{
    ApiServer,
    auth::{User, node::LEASE_NAMESPACE},
    codec,
    ops::WriteOptions,
};

/// How often Leases are renewed: half of what `leaseDurationSeconds` allows, twice.
const RENEW_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i64 = 40;
/// Leases written at the same time; the store commits them together.
const WORKERS: usize = 64;

const LEASES: GroupVersionResource = GroupVersionResource::fixed("coordination.k8s.io", "v1", "leases");

struct Session {
    user: Arc<User>,
    last_sign: Instant,
    renewed: Option<Instant>,
    gauge: Gauge,
}

/// By node name. Bounded by the nodes that have credentials.
#[derive(Default)]
pub struct NodeSessions {
    sessions: Mutex<HashMap<String, Session>>,
}

impl NodeSessions {
    /// A node gave a sign of life.
    pub(super) fn touch(&self, node: &str, user: &Arc<User>) {
        let now = Instant::now();
        let mut sessions = self.sessions.lock();
        let session = sessions.entry(node.to_owned()).or_insert_with(|| Session {
            user: user.clone(),
            last_sign: now,
            renewed: None,
            gauge: Gauge::default(),
        });
        session.last_sign = now;
        session.user = user.clone();
    }

    pub(super) fn report_usage(&self, node: &str, usage: v1::Usage) {
        if let Some(session) = self.sessions.lock().get_mut(node) {
            session.gauge.report(node, usage, Timestamp::now());
        }
    }

    /// What nodes and their pods used, by the node's name; of those that have said so lately.
    pub fn all_usage(&self) -> HashMap<String, Arc<NodeUsage>> {
        let sessions = self.sessions.lock();
        sessions.iter().filter_map(|(node, session)| Some((node.clone(), session.gauge.read()?))).collect()
    }

    /// Nodes that gave a sign since their Lease was renewed.
    fn due(&self) -> Vec<(String, Arc<User>)> {
        let now = Instant::now();
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, session| now - session.last_sign < Duration::from_secs(600));
        let due = sessions
            .iter_mut()
            .filter(|(_, session)| session.renewed.is_none_or(|at| session.last_sign > at));
        due.map(|(node, session)| {
            session.renewed = Some(now);
            (node.clone(), session.user.clone())
        })
        .collect()
    }
}

/// Renews the Leases of nodes that live, until cancelled.
pub(crate) async fn renew_leases(server: Arc<ApiServer>, shutdown: CancellationToken) {
    let mut ticks = interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let due = server.nodes().due();
        let renewals = stream::iter(due).for_each_concurrent(WORKERS, |(node, user)| {
            let server = &server;
            async move {
                if let Err(error) = renew(server, &node, &user).await {
                    warn!(%node, %error, "lease could not be renewed");
                }
            }
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = renewals => {}
        }
    }
}

async fn renew(server: &ApiServer, node: &str, user: &Arc<User>) -> Result<(), Error> {
    let spec = json!({
        "holderIdentity": node,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": format!("{:.6}", Timestamp::now()),
    });
    let target = Target::object(LEASES, Some(LEASE_NAMESPACE), node);
    let call = server.enter(user, "patch", target, "")?;
    let patch = codec::Patch {
        kind: PatchType::Merge,
        body: json!({ "spec": spec }).to_string().into(),
        validation: FieldValidation::Ignore,
    };
    match server.patch(&call, patch, &WriteOptions::default()).await {
        Err(error) if error.is_not_found() => {
            let call = server.enter(user, "create", Target::collection(LEASES, Some(LEASE_NAMESPACE)), "")?;
            let lease = json!({
                "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
                "metadata": { "name": node, "namespace": LEASE_NAMESPACE }, "spec": spec,
            });
            server.create(&call, lease, &WriteOptions::default()).await.map(drop)
        }
        outcome => outcome.map(drop),
    }
}
