//! Graceful node shutdown (KEP-2000, KEP-2712): where logind says that the machine goes down, pods are ended in the order of
//! their priorities, each with its time, before it does.
//!
//! logind waits for the inhibitor that is held here, as long as its settings let it; these are raised where they are too
//! low. Meanwhile the node is not ready and takes no pods. A shutdown that is called off ends that; what has ended by then
//! has ended. A connection that is lost changes nothing: the next one tells what holds by then. Without a time for pods
//! nothing is asked of the bus.

mod bus;
pub mod logind;
pub mod message;
pub mod plan;

use std::convert::Infallible;
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
use logind::{Inhibitor, Logind};

/// Upstream's words.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Why the node is not ready meanwhile.
pub const NODE_MESSAGE: &str = "node is shutting down";

/// How long it is waited before the bus is tried again; from upstream's first wait on, ever longer.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LAST: Duration = Duration::from_secs(300);
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

/// How far it has come with logind.
#[derive(Default)]
struct Progress {
    /// It waits for pods.
    is_followed: bool,
    /// Its settings were changed, which does not help more the second time.
    is_logind_asked: bool,
}

impl ShutdownKeeper {
    /// Works until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.config.shutdown_graces.is_empty() {
            return shutdown.cancelled().await;
        }
        let mut progress = Progress::default();
        let mut delay = RETRY_FIRST;
        let mut is_told = false;
        loop {
            let error = tokio::select! {
                () = shutdown.cancelled() => return,
                Err(error) = self.follow(&mut progress) => error,
            };
            if std::mem::take(&mut progress.is_followed) {
                (delay, is_told) = (RETRY_FIRST, false);
            }
            // Machines without systemd have no such bus: said once.
            if !std::mem::replace(&mut is_told, true) {
                warn!(
                    error,
                    "a shutdown of the machine is not seen in time: pods will not be ended in order"
                );
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    /// # Errors
    /// Why logind cannot be followed any more.
    async fn follow(&self, progress: &mut Progress) -> Result<Infallible, String> {
        let mut logind = Logind::connect(&self.config.logind).await?;
        let mut goes_down = logind.goes_down;
        let mut inhibitor = None;
        loop {
            self.shutting_down.send_if_modified(|known| std::mem::replace(known, goes_down) != goes_down);
            if goes_down {
                if !self.go_down(&mut logind).await? {
                    goes_down = false;
                    continue;
                }
                inhibitor = None;
            } else if inhibitor.is_none() {
                inhibitor = Some(self.inhibit(&mut logind, progress).await?);
            }
            goes_down = logind.prepares_for_shutdown().await?;
        }
    }

    async fn inhibit(&self, logind: &mut Logind, progress: &mut Progress) -> Result<Inhibitor, String> {
        let time = self.config.shutdown_graces.total();
        logind.allow(&self.config.logind, time, &mut progress.is_logind_asked).await?;
        let inhibitor = logind.inhibit().await?;
        info!(?time, "a shutdown of the machine waits for pods");
        progress.is_followed = true;
        Ok(inhibitor)
    }

    /// Ends the pods; false where the shutdown is called off before they have ended.
    async fn go_down(&self, logind: &mut Logind) -> Result<bool, String> {
        info!("the machine goes down: pods are ended");
        let ending = self.end_pods();
        tokio::pin!(ending);
        loop {
            let news = tokio::select! {
                () = &mut ending => break,
                news = logind.prepares_for_shutdown() => news,
            };
            match news {
                // Told once more.
                Ok(true) => {}
                Ok(false) => {
                    info!("the shutdown was called off");
                    return Ok(false);
                }
                Err(error) => {
                    // What holds up the machine is another connection than this one.
                    ending.await;
                    return Err(error);
                }
            }
        }
        info!("pods have ended, the machine may go down");
        Ok(true)
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
