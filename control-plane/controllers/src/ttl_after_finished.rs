//! Finished Jobs with `ttlSecondsAfterFinished` are deleted when their time is up, and their pods with them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{
    Api, Error,
    client::{DeleteOptions, Propagation},
    resource::ObjectKey,
};
use k8s_openapi::api::batch::v1::Job;

use crate::{
    Context, Starts, job,
    meta::{MetaExt, elapsed, now, only_this},
    queue::Queue,
    worker::{Next, Reconciler},
};

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("ttl-after-finished") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.jobs.on_change(move |change| {
        if change.new.is_some_and(|job| remaining(job).is_some()) {
            changed.add(change.key.clone());
        }
    });
    let workers = context.config.workers;
    starts.add(Controller { context }, queue, workers);
}

/// How long the job may stay; `None` where it has not finished, or may stay for ever.
fn remaining(job: &Job) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = job::condition_of_end(job).filter(|_| !job.is_deleting())?;
    let finished = ended.last_transition_time.as_ref()?.0;
    let ttl = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    Some(ttl.saturating_sub(elapsed(finished, now())))
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "ttl-after-finished";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cached) = self.context.caches.jobs.get(key) else { return Ok(Next::Done) };
        match remaining(&cached) {
            None => return Ok(Next::Done),
            Some(wait) if !wait.is_zero() => return Ok(Next::After(wait)),
            Some(_) => {}
        }
        // The time to live may have been changed meanwhile: the API decides, and the version guards.
        let jobs: Api<Job> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let Some(job) = jobs.find(&key.name).await? else { return Ok(Next::Done) };
        if remaining(&job).is_none_or(|wait| !wait.is_zero()) {
            return Ok(Next::Done);
        }
        let options = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            resource_version: job.metadata.resource_version.clone(),
            ..only_this(&job)
        };
        jobs.delete(job.name(), &options).await?;
        Ok(Next::Done)
    }
}
