//! The controllers: loops that move the cluster towards what its objects ask for.
//!
//! One module each, one shape: watch-fed caches shared by all ([`caches`]), a work queue keyed by object
//! ([`queue`]), a reconcile function that is run again until nothing is left to do ([`worker`]). What to do
//! is decided by pure functions over cached objects (`plan`, `rolling`, `rank`, ...); the code around them
//! only reads caches and writes through the API. Every controller can be killed between any two writes.
//!
//! Knows [`hawser_api`] only: in-process or over gRPC makes no difference here.

#![forbid(unsafe_code)]

mod attachdetach;
mod caches;
mod certificates;
mod clusterrole_aggregation;
mod config;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslicemirroring;
mod ephemeral_volume;
mod events;
mod expectations;
mod garbage_collector;
mod hpa;
mod intstr;
mod job;
mod meta;
mod namespace;
mod node;
mod ownership;
mod persistentvolume;
mod podgc;
mod pods;
mod queue;
mod replicaset;
mod resource_claim;
mod resourcequota;
mod revisions;
mod root_ca;
mod selector;
mod service_lb;
mod serviceaccount;
mod statefulset;
mod template;
#[cfg(test)]
mod testing;
mod ttl_after_finished;
mod volume_protection;
mod worker;

use std::sync::Arc;

use hawser_api::Client;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use certificates::Signer;
pub use config::Config;

/// What every controller works with.
pub(crate) struct Context {
    pub(crate) client: Arc<dyn Client>,
    pub(crate) config: Config,
    pub(crate) caches: caches::Caches,
    pub(crate) recorder: events::Recorder,
}

/// Runs all controllers that `config` enables, until `shutdown`; then finishes what is in hand.
///
/// Fails only where the configuration cannot work; errors of single objects are logged and retried.
pub async fn run(client: Arc<dyn Client>, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let (recorder, writer) = events::channel(client.clone());
    let context = Arc::new(Context { client, config, caches: caches::Caches::new(), recorder });

    // Handlers first: an informer tells its first list to those that are registered when it starts.
    let mut controllers = JoinSet::new();
    let mut starts = Starts { context: &context, shutdown: &shutdown, pending: Vec::new() };
    deployment::register(&mut starts);
    replicaset::register(&mut starts);
    daemonset::register(&mut starts);
    statefulset::register(&mut starts);
    job::register(&mut starts);
    ttl_after_finished::register(&mut starts);
    cronjob::register(&mut starts);
    hpa::register(&mut starts);
    disruption::register(&mut starts);
    endpointslice::register(&mut starts);
    endpoints::register(&mut starts);
    endpointslicemirroring::register(&mut starts);
    node::register(&mut starts);
    podgc::register(&mut starts);
    namespace::register(&mut starts);
    service_lb::register(&mut starts);
    serviceaccount::register(&mut starts);
    root_ca::register(&mut starts);
    resourcequota::register(&mut starts);
    persistentvolume::register(&mut starts);
    ephemeral_volume::register(&mut starts);
    attachdetach::register(&mut starts);
    resource_claim::register(&mut starts);
    volume_protection::register(&mut starts);
    garbage_collector::register(&mut starts);
    clusterrole_aggregation::register(&mut starts);
    certificates::register(&mut starts);
    let pending = starts.pending;

    let mut informers = JoinSet::new();
    context.caches.start(&context.client, &mut informers);
    tokio::select! {
        () = context.caches.synced() => {}
        () = shutdown.cancelled() => return Ok(()),
        ended = informers.join_next() => return Err(ended_early(ended)),
    }
    info!(controllers = pending.len(), "caches are filled, controllers start");
    for future in pending {
        controllers.spawn(future);
    }
    // Events outlive the controllers, which tell some while they drain.
    let events_end = CancellationToken::new();
    let writer = tokio::spawn(writer.run(events_end.clone()));
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            ended = controllers.join_next() => match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    shutdown.cancel();
                    outcome = Err(anyhow::Error::new(error).context("a controller ended early"));
                }
                None => break,
            },
            // Without it its cache stands still, and controllers act on what was: better none, and a restart.
            ended = informers.join_next(), if outcome.is_ok() => {
                shutdown.cancel();
                outcome = Err(ended_early(ended));
            }
        }
    }
    events_end.cancel();
    writer.await?;
    outcome
}

/// Informers run until they are dropped: one that ended has panicked.
fn ended_early(ended: Option<Result<(), JoinError>>) -> anyhow::Error {
    match ended {
        Some(Err(error)) => anyhow::Error::new(error).context("an informer ended early"),
        _ => anyhow::anyhow!("an informer ended early"),
    }
}

type Pending = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Collects what starts once the caches are filled.
pub(crate) struct Starts<'a> {
    pub(crate) context: &'a Arc<Context>,
    shutdown: &'a CancellationToken,
    pending: Vec<Pending>,
}

impl Starts<'_> {
    /// True where the controller of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.context.config.enables(name)
    }

    /// Adds a controller with `workers` loops over `queue`.
    pub(crate) fn add<R: worker::Reconciler>(
        &mut self,
        reconciler: R,
        queue: queue::Queue<R::Key>,
        workers: usize,
    ) {
        let shutdown = self.shutdown.clone();
        self.pending.push(Box::pin(worker::run(Arc::new(reconciler), queue, workers, shutdown)));
    }

    /// Adds a loop of another shape, which ends when its token is cancelled.
    pub(crate) fn add_loop<F>(&mut self, start: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.pending.push(Box::pin(start(self.shutdown.clone())));
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{FakeApi, Running};

    use super::*;

    /// A lost Lease ends them, and one that is won starts them anew, in one process.
    #[tokio::test(start_paused = true)]
    async fn nothing_of_the_controllers_outlives_them() {
        let api = FakeApi::new();
        let running = Running::start(&api, &["*"]);
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(Arc::strong_count(&api) > 1);
        running.stop().await;
        // What was told to end ends at its next turn.
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert_eq!(Arc::strong_count(&api), 1, "the client, which the context has");
    }
}
