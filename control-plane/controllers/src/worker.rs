//! The loop around every controller: take a key, reconcile it, retry with back-off.
//!
//! A controller is a [`Reconciler`]: it compares what is with what should be for one key and makes the
//! difference smaller. It may be cut off between any two writes, and is simply called again. Errors stop
//! travelling here: they are logged once, with the key, and the key is tried again later.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, future::BoxFuture, stream};
use hawser_api::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::queue::{Key, Queue};

/// No reconcile takes longer, unless a request hangs; then the key is tried again.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(120);

/// Requests in flight for one object, well below what the API server admits from all clients together.
const PARALLEL: usize = 32;

/// Runs `requests`, some at a time, and returns their outcomes in no order.
///
/// Boxed, because the compiler cannot prove a stream of futures that borrow to be `Send`.
pub(crate) async fn in_parallel<T>(requests: impl IntoIterator<Item = BoxFuture<'_, T>>) -> Vec<T> {
    let requests: Vec<_> = requests.into_iter().collect();
    stream::iter(requests).buffer_unordered(PARALLEL).collect().await
}

/// Like [`in_parallel`], in batches that double while they succeed: what is always refused costs few requests.
///
/// Returns the outcomes of what was asked; the rest was not.
pub(crate) async fn in_batches<T, E>(
    requests: impl IntoIterator<Item = BoxFuture<'_, Result<T, E>>>,
) -> Vec<Result<T, E>> {
    let mut requests = requests.into_iter().collect::<Vec<_>>().into_iter();
    let (mut outcomes, mut size) = (Vec::new(), 1);
    loop {
        let batch = in_parallel(requests.by_ref().take(size)).await;
        let ends = batch.is_empty() || batch.iter().any(Result::is_err);
        outcomes.extend(batch);
        if ends {
            return outcomes;
        }
        size *= 2;
    }
}

/// What to do with a key that was reconciled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for the next change.
    Done,
    /// Look again after this time, whatever happens until then.
    After(Duration),
}

impl Next {
    /// After `wait`, where there is one.
    pub(crate) fn after(wait: Option<Duration>) -> Self {
        wait.map_or(Self::Done, Self::After)
    }

    /// Whichever comes first.
    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(one), Self::After(other)) => Self::After(one.min(other)),
            (Self::Done, next) | (next, Self::Done) => next,
        }
    }
}

#[async_trait]
pub(crate) trait Reconciler: Send + Sync + 'static {
    type Key: Key + std::fmt::Display;

    const NAME: &'static str;

    /// Makes the state of `key` what it should be, as far as it can now.
    async fn reconcile(&self, key: &Self::Key) -> Result<Next, Error>;
}

/// Runs `workers` loops over `queue` until `shutdown`; returns when all have finished what they held.
pub(crate) async fn run<R: Reconciler>(
    reconciler: Arc<R>,
    queue: Queue<R::Key>,
    workers: usize,
    shutdown: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(reconciler.clone(), queue.clone()));
    }
    shutdown.cancelled().await;
    queue.close();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            error!(controller = R::NAME, %error, "worker ended early");
        }
    }
}

async fn work<R: Reconciler>(reconciler: Arc<R>, queue: Queue<R::Key>) {
    while let Some(key) = queue.next().await {
        // In a task of its own: one object that makes a reconcile panic must not take the worker with it. In a set, so that
        // it ends with the worker where that is dropped.
        let mut attempt = JoinSet::new();
        attempt.spawn({
            let (reconciler, key) = (reconciler.clone(), key.clone());
            async move { tokio::time::timeout(RECONCILE_TIMEOUT, reconciler.reconcile(&key)).await }
        });
        match attempt.join_next().await.expect("one task is in the set") {
            Ok(Ok(Ok(next))) => {
                queue.forget(&key);
                if let Next::After(delay) = next {
                    queue.add_after(key.clone(), delay);
                }
            }
            Ok(Ok(Err(error))) => {
                let delay = queue.retry(key.clone());
                if error.is_conflict() {
                    debug!(controller = R::NAME, %key, %error, ?delay, "object moved on, trying again");
                } else {
                    warn!(controller = R::NAME, %key, %error, ?delay, "reconcile failed");
                }
            }
            Ok(Err(_)) => {
                let delay = queue.retry(key.clone());
                warn!(controller = R::NAME, %key, ?delay, "reconcile took too long");
            }
            Err(error) => {
                let delay = queue.retry(key.clone());
                error!(controller = R::NAME, %key, %error, ?delay, "reconcile panicked");
            }
        }
        queue.done(&key);
    }
}
