//! What reaches a pod's worker: the newest of everything, merged, so that nothing can overflow.
//!
//! A burst of events about one container leaves one entry; the worker looks at the runtime itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_runtime::{ContainerId, ContainerStatus};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::pod::state::Verdict;
use crate::probes::{ProbeKind, ProbeReport};

/// Everything that came since the last look.
#[derive(Debug, Default)]
pub struct Mail {
    /// The newest version of the pod.
    pub pod: Option<Arc<Pod>>,
    /// The pod is no longer in the API.
    pub gone: bool,
    /// Containers to look at.
    pub containers: BTreeSet<ContainerId>,
    /// The newest list of the pod's containers: events may have been missed.
    pub listed: Option<Vec<ContainerStatus>>,
    /// The newest report of each probe.
    pub probes: BTreeMap<(ContainerId, ProbeKind), ProbeReport>,
    /// A ConfigMap or Secret that the pod names has changed.
    pub objects_changed: bool,
    /// The pod has to go.
    pub verdict: Option<Verdict>,
}

/// One per worker. Cheap to put into from anywhere; never blocks.
#[derive(Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

impl Mailbox {
    pub fn put(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.mail.lock());
        self.arrived.notify_one();
    }

    pub fn probe(&self, report: ProbeReport) {
        self.put(|mail| {
            let key = (report.container_id.clone(), report.kind);
            // A verdict is not lost to a later result without one.
            let verdict = report.verdict.or_else(|| mail.probes.get(&key).and_then(|r| r.verdict));
            mail.probes.insert(key, ProbeReport { verdict, ..report });
        });
    }

    /// What came; empty when nothing did.
    pub fn take(&self) -> Mail {
        std::mem::take(&mut self.mail.lock())
    }

    /// Waits for something to take. Cancel-safe.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}
