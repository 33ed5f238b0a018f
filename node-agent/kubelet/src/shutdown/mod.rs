//! Graceful node shutdown (KEP-2000, KEP-2712): where logind says that the machine goes down, pods are ended in the order of
//! their priorities, each with its time, before it does.
//!
//! logind waits for the inhibitor that is held here, as long as its settings let it; these are raised where they are too
//! low. Meanwhile the node is not ready and takes no pods. A shutdown that is called off ends that; what has ended by then
//! has ended. Without a time for pods nothing is asked of the bus.

mod bus;
pub mod logind;
pub mod message;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::manager::Pods;
use crate::pod::DesiredPod;
use crate::pod::state::Verdict;
use logind::Logind;

/// Upstream's words.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Why the node is not ready meanwhile.
pub const NODE_MESSAGE: &str = "node is shutting down";

/// How long it is waited before the bus is tried again.
const RETRY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);

/// Refuses a pod that comes while the node goes down.
pub fn refusal() -> Verdict {
    Verdict {
        is_disruption: false,
        ..Verdict::new("NodeShutdown", "Pod was rejected as the node is shutting down.")
    }
}

/// Follows logind.
pub struct ShutdownKeeper {
    pub config: Arc<Config>,
    pub pods: Pods,
    /// Whether the node goes down.
    pub shutting_down: watch::Sender<bool>,
}

impl ShutdownKeeper {
    /// Works until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.config.shutdown_graces.is_empty() {
            return shutdown.cancelled().await;
        }
        let mut is_known = false;
        loop {
            let error = tokio::select! {
                () = shutdown.cancelled() => return,
                error = self.follow() => error,
            };
            // Machines without systemd have no such bus: said once.
            if !std::mem::replace(&mut is_known, true) {
                warn!(
                    error,
                    "a shutdown of the machine is not seen in time: pods will not be ended in order"
                );
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Returns why logind cannot be followed any more.
    async fn follow(&self) -> String {
        match self.try_follow().await {
            Ok(never) => match never {},
            Err(error) => {
                // It may have been called off unseen; a shutdown that goes on ends this process.
                self.shutting_down.send_if_modified(|down| std::mem::replace(down, false));
                error
            }
        }
    }

    async fn try_follow(&self) -> Result<std::convert::Infallible, String> {
        let places = &self.config.logind;
        let mut logind = Logind::connect(places).await?;
        logind.allow(places, self.config.shutdown_graces.total()).await?;
        let mut inhibitor = Some(logind.inhibit().await?);
        info!(time = ?self.config.shutdown_graces.total(), "a shutdown of the machine waits for pods");
        loop {
            if !logind.prepares_for_shutdown().await? {
                self.shutting_down.send_replace(false);
                if inhibitor.is_none() {
                    inhibitor = Some(logind.inhibit().await?);
                }
                continue;
            }
            info!("the machine goes down: pods are ended");
            self.shutting_down.send_replace(true);
            tokio::select! {
                () = self.end_pods() => info!("pods have ended, the machine may go down"),
                begins = logind.prepares_for_shutdown() => {
                    if !begins? {
                        info!("the shutdown was called off");
                        self.shutting_down.send_replace(false);
                        continue;
                    }
                }
            }
            inhibitor = None;
        }
    }

    /// Group by group, each when the one before it has ended or has used up its time.
    async fn end_pods(&self) {
        let pods = self.pods.objects().into_iter().map(DesiredPod::new);
        let pods: Vec<DesiredPod> = pods.filter(|pod| pod.terminal_phase().is_none()).collect();
        for (time, group) in self.config.shutdown_graces.groups(pods) {
            let deadline = Instant::now() + time;
            let ends = group.iter().map(|pod| async move {
                let grace = pod.spec_grace().min(time);
                self.pods.fail(pod.uid(), Verdict::eviction(REASON, MESSAGE, grace));
                while !self.pods.has_stopped(pod.uid()) {
                    tokio::time::sleep(LOOK).await;
                }
            });
            if tokio::time::timeout_at(deadline, join_all(ends)).await.is_err() {
                warn!(?time, "pods have not ended in their time; the next ones are ended");
            }
        }
    }
}
