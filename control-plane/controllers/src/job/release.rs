//! Takes the tracking finalizer off pods, and remembers that until the cache shows it.
//!
//! Also off pods that no job will count any more: their job is gone, or has ended.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use futures::FutureExt;
use hawser_api::{Api, Error, informer::Change, resource::ObjectKey};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use parking_lot::Mutex;
use serde_json::json;

use super::{
    outcome::is_finished,
    pod::{FINALIZER, has_finalizer},
};
use crate::{
    Context, Starts,
    meta::{MetaExt, controller_key},
    queue::Queue,
    worker::{Next, Reconciler, in_parallel},
};

/// Attempts to change a pod that others write at the same time.
const ATTEMPTS: usize = 8;

/// Pods, by uid, whose finalizer was taken off; by their job's uid. Bounded by the pods that the cache holds.
#[derive(Default)]
pub(super) struct Released {
    jobs: Mutex<HashMap<String, HashSet<String>>>,
}

impl Released {
    pub(super) fn of(&self, job: &Job) -> HashSet<String> {
        self.jobs.lock().get(job.uid()).cloned().unwrap_or_default()
    }

    fn add(&self, job: &Job, pod: &Pod) {
        self.jobs.lock().entry(job.uid().to_owned()).or_default().insert(pod.uid().to_owned());
    }

    /// The cache shows it, or it came to nothing.
    fn forget(&self, job_uid: &str, pod_uid: &str) {
        let mut jobs = self.jobs.lock();
        if let Some(pods) = jobs.get_mut(job_uid) {
            pods.remove(pod_uid);
            if pods.is_empty() {
                jobs.remove(job_uid);
            }
        }
    }

    pub(super) fn observe(&self, change: &Change<'_, Pod>) {
        let Some(old) = change.old else { return };
        let is_held = change.new.is_some_and(|new| new.uid() == old.uid() && has_finalizer(new));
        if let Some(owner) = old.controller().filter(|_| !is_held) {
            self.forget(&owner.uid, old.uid());
        }
    }
}

/// What became of pods that were to lose the finalizer.
pub(super) struct Outcome {
    /// Uids of those that are without it.
    pub(super) free: Vec<String>,
    /// Of these, the ones that were so before: whoever took it off has counted them.
    pub(super) were_free: Vec<String>,
    /// The first error.
    pub(super) result: Result<(), Error>,
}

/// Takes the finalizer off `pods`.
pub(super) async fn release(context: &Context, released: &Released, job: &Job, pods: &[Arc<Pod>]) -> Outcome {
    let requests = pods.iter().map(|pod| {
        released.add(job, pod);
        async move { (pod.uid(), without_finalizer(context, pod).await) }.boxed()
    });
    let mut outcome = Outcome { free: Vec::new(), were_free: Vec::new(), result: Ok(()) };
    for (uid, result) in in_parallel(requests).await {
        match result {
            Ok(is_changed) => {
                outcome.free.push(uid.to_owned());
                outcome.were_free.extend((!is_changed).then(|| uid.to_owned()));
            }
            Err(error) => {
                released.forget(job.uid(), uid);
                outcome.result = outcome.result.and(Err(error));
            }
        }
    }
    outcome
}

/// False where the pod was without it, or is gone.
async fn without_finalizer(context: &Context, pod: &Pod) -> Result<bool, Error> {
    change_finalizers(context, pod, |_, finalizers| finalizers.retain(|it| it != FINALIZER)).await
}

/// For pods that were not made by their job. One that goes already is not held up.
pub(super) async fn hold(context: &Context, pod: &Pod) -> Result<(), Error> {
    change_finalizers(context, pod, |current, finalizers| {
        if !current.is_deleting() && !has_finalizer(current) {
            finalizers.push(FINALIZER.to_owned());
        }
    })
    .await
    .map(drop)
}

/// A list is replaced as a whole, so the write is guarded by the version that was read. False where nothing had to change.
async fn change_finalizers(
    context: &Context,
    pod: &Pod,
    change: impl Fn(&Pod, &mut Vec<String>),
) -> Result<bool, Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), pod.namespace());
    let mut current = pod.clone();
    let mut attempt = 1;
    loop {
        let before = current.metadata.finalizers.clone().unwrap_or_default();
        let mut finalizers = before.clone();
        change(&current, &mut finalizers);
        if finalizers == before {
            return Ok(false);
        }
        let patch = json!({ "metadata": {
            "uid": pod.uid(), "resourceVersion": current.resource_version(), "finalizers": finalizers,
        } });
        match pods.merge_patch(pod.name(), &patch).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) if !error.is_conflict() || attempt == ATTEMPTS => return Err(error),
            Err(_) => {}
        }
        attempt += 1;
        match pods.find(pod.name()).await? {
            Some(found) if found.uid() == pod.uid() => current = found,
            _ => return Ok(false),
        }
    }
}

pub(super) fn register_orphans(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    let queue = Queue::new();
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| {
        if let (Some(pod), Some(context)) = (change.new, weak.upgrade())
            && is_orphan(&context, pod)
        {
            changed.add(change.key.clone());
        }
    });
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.jobs.on_change(move |change| job_changed(&changed, &weak, change));
    starts.add(Orphans { context }, queue, 1);
}

fn job_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Job>) {
    let ends = change.new.is_none_or(|new| is_finished(new));
    let Some(context) = context.upgrade().filter(|_| ends) else { return };
    let Some(job) = change.new.or(change.old) else { return };
    for pod in context.caches.pods_by_controller.get(job.uid()).iter().filter(|pod| has_finalizer(pod)) {
        queue.add(ObjectKey::of(&**pod));
    }
}

/// Held for a job that will not count it.
fn is_orphan(context: &Context, pod: &Pod) -> bool {
    if !has_finalizer(pod) {
        return false;
    }
    let Some(key) = controller_key(pod, "Job") else {
        // One that nobody controls may still be adopted, until it ends.
        return pod.controller().is_some() || !crate::meta::pod_is_active(pod);
    };
    let job = context.caches.jobs.get(&key);
    let job = job.filter(|job| pod.controller().is_some_and(|owner| owner.uid == job.uid()));
    job.is_none_or(|job| is_finished(&job) && !super::is_managed_elsewhere(&job))
}

struct Orphans {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Orphans {
    type Key = ObjectKey;

    const NAME: &'static str = "job orphans";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(pod) = self.context.caches.pods.get(key).filter(|pod| is_orphan(&self.context, pod)) else {
            return Ok(Next::Done);
        };
        // The cache of jobs may be behind that of pods.
        if let Some(owner) = pod.controller().filter(|owner| owner.kind == "Job") {
            let jobs: Api<Job> = Api::namespaced(self.context.client.clone(), pod.namespace());
            let job = jobs.find(&owner.name).await?.filter(|job| job.uid() == owner.uid);
            if job.is_some_and(|job| !is_finished(&job)) {
                return Ok(Next::Done);
            }
        }
        without_finalizer(&self.context, &pod).await?;
        Ok(Next::Done)
    }
}
