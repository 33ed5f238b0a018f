//! Jobs: pods that run to their end, as often as asked.
//!
//! A [`view`] counts what pods did, [`outcome`] tells whether the job has ended, [`plan`] which pods are made or deleted,
//! [`track`] how ended pods are counted once and let go ([`release`]). The terminal condition comes last, when every pod
//! is counted and none is on its way out.

mod backoff;
mod indexes;
mod outcome;
mod plan;
mod pod;
mod policy;
mod release;
#[cfg(test)]
mod tests;
mod track;
mod view;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use hawser_api::{Api, Error, informer::Informer, resource::ObjectKey};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;

use crate::{
    Context, Starts,
    caches::Caches,
    events::Recorder,
    expectations::Expectations,
    meta::{MetaExt, nonzero, now, pod_is_ready},
    pods::{self, BURST, PodControl, PodOwner, matches_pod},
    worker::{Next, Reconciler},
};
use backoff::Record;
use outcome::{Outcome, is_finished};
use pod::{finished_at, is_suspended, spec};
use release::Released;
use view::View;

/// What `managedBy` says where this controller manages the job.
const OWN_NAME: &str = "kubernetes.io/job-controller";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("job") {
        return;
    }
    release::register_orphans(starts);
    let context = starts.context.clone();
    let (queue, expectations) = pods::follow::<Job>(&context);
    let memory = Arc::new(Memory::default());
    let forgetful = memory.clone();
    context.caches.jobs.on_change(move |change| {
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid() != old.uid() || is_finished(new))
        {
            forgetful.forget(old.uid());
        }
    });
    let observer = memory.clone();
    context.caches.pods.on_change(move |change| observer.released.observe(change));
    let recorder = context.recorder.of("job-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, expectations, recorder, memory }, queue, workers);
}

impl PodOwner for Job {
    fn informer(caches: &Caches) -> &Informer<Self> {
        &caches.jobs
    }

    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>> {
        caches.jobs_by_namespace.get(namespace)
    }

    fn selects(&self, pod: &Pod) -> bool {
        spec(self).selector.as_ref().is_some_and(|selector| matches_pod(selector, pod))
    }
}

/// Another controller manages the job; this one does not touch it.
fn is_managed_elsewhere(job: &Job) -> bool {
    spec(job).managed_by.as_deref().is_some_and(|manager| manager != OWN_NAME)
}

/// What is known of jobs beyond the API; all by uid, and forgotten with the job.
#[derive(Default)]
struct Memory {
    released: Released,
    backoff: Mutex<HashMap<String, Record>>,
    /// Versions that were written and that the cache may not show yet.
    written: Mutex<HashMap<String, u64>>,
}

impl Memory {
    fn forget(&self, uid: &str) {
        self.backoff.lock().remove(uid);
        self.written.lock().remove(uid);
    }

    fn backoff(&self, job: &Job) -> Record {
        self.backoff.lock().get(job.uid()).copied().unwrap_or_default()
    }

    fn wrote(&self, job: &Job) {
        if let Ok(version) = job.resource_version().parse() {
            self.written.lock().insert(job.uid().to_owned(), version);
        }
    }

    /// An older job than the one that was written would have its pods counted as they were then.
    fn is_current(&self, cached: &Job) -> bool {
        let version: u64 = cached.resource_version().parse().unwrap_or(u64::MAX);
        self.written.lock().get(cached.uid()).is_none_or(|written| version >= *written)
    }
}

struct Controller {
    context: Arc<Context>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
    memory: Arc<Memory>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "job";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(job) = self.context.caches.jobs.get(key) else { return Ok(Next::Done) };
        if is_managed_elsewhere(&job) || is_finished(&job) || !self.memory.is_current(&job) {
            return Ok(Next::Done);
        }
        if !matches!(spec(&job).completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.recorder.warning(&*job, "UnknownCompletionMode", message.to_owned());
            return Ok(Next::Done);
        }
        // Looked at before the pods: a pod that appears in between is counted, and only delays the next look.
        let cache_is_current = self.expectations.are_met(job.uid());
        let owned = pods::claim(&self.context, &*job).await?;
        let view = View::new(&job, owned, self.memory.released.of(&job));
        let mut pass = Pass {
            controller: self,
            status: job.status.clone().unwrap_or_default(),
            view: &view,
            cache_is_current,
            active: i32::try_from(view.active.len()).unwrap_or(i32::MAX),
            ready: view.ready,
            terminating: view.terminating,
            next: Next::Done,
        };
        pass.run().await?;
        Ok(pass.next)
    }
}

/// One look at one job.
struct Pass<'a> {
    controller: &'a Controller,
    view: &'a View<'a>,
    /// With what this look brings.
    status: JobStatus,
    cache_is_current: bool,
    active: i32,
    ready: i32,
    terminating: i32,
    next: Next,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let job = self.view.job;
        if self.status.start_time.is_none() && !is_suspended(job) {
            self.status.start_time = Some(Time(now()));
        }
        let deadline = outcome::until_deadline(job, Some(&self.status), now());
        self.next = Next::after(deadline.filter(|left| !left.is_zero()));
        if !self.are_held().await? {
            return Ok(());
        }
        let ended = self.succeeding_backoff();
        let (outcome, managed) = match outcome::of(self.view, now()) {
            Some(outcome) => self.wind_down(outcome).await,
            None => self.go_on(ended).await,
        };
        self.status.active = nonzero(self.active);
        self.status.ready = Some(self.ready);
        self.status.terminating = Some(self.terminating);
        self.settle(outcome, ended).await?;
        managed
    }

    /// Pods that were adopted are held until they are counted, like those that were made here; false where the cache does
    /// not show all held yet. Not before what was deleted is seen: those pods have lost their finalizer for good.
    async fn are_held(&self) -> Result<bool, Error> {
        let is_free = |pod: &&Arc<Pod>| !pod::has_finalizer(pod) && !self.view.is_released(pod);
        let free: Vec<&Arc<Pod>> = self.view.active.iter().filter(is_free).collect();
        if !self.cache_is_current || self.view.job.is_deleting() || free.is_empty() {
            return Ok(true);
        }
        for pod in free {
            release::hold(&self.controller.context, pod).await?;
        }
        Ok(false)
    }

    fn succeeding_backoff(&self) -> Record {
        let ends = |pods: &[Arc<Pod>]| pods.iter().map(|pod| finished_at(pod)).collect::<Vec<_>>();
        let before = self.controller.memory.backoff(self.view.job);
        before.after(&ends(&self.view.new_succeeded), &ends(&self.view.new_failed))
    }

    /// Deletes what still runs. The job has not ended before all of it is seen and gone.
    async fn wind_down(&mut self, outcome: Outcome) -> (Option<Outcome>, Result<(), Error>) {
        if !self.cache_is_current {
            return (None, Ok(()));
        }
        let all = self.view.active.clone();
        let deleted = self.apply(Vec::new(), &all).await;
        let is_all = deleted.is_ok() && all.len() <= BURST;
        (is_all.then_some(outcome), deleted)
    }

    async fn go_on(&mut self, backoff: Record) -> (Option<Outcome>, Result<(), Error>) {
        let is_managed = self.cache_is_current && !self.view.job.is_deleting();
        let managed = if is_managed { self.manage(backoff).await } else { Ok(()) };
        let outcome = outcome::of_completions(self.view, self.active);
        if outcome.is_none() && is_managed {
            self.note_suspension();
        }
        (outcome, managed)
    }

    async fn manage(&mut self, backoff: Record) -> Result<(), Error> {
        let changes = plan::manage(self.view, backoff, now());
        self.next = self.next.or(Next::after(changes.wait));
        // They are wanted no more, so they do not count, as what or whatever they end.
        let (memory, context) = (&self.controller.memory, &self.controller.context);
        let released = release::release(context, &memory.released, self.view.job, &changes.delete).await;
        released.result?;
        self.apply(changes.create, &changes.delete).await
    }

    async fn apply(&mut self, create: Vec<Pod>, delete: &[Arc<Pod>]) -> Result<(), Error> {
        let job = self.view.job;
        let control = PodControl {
            owner: job,
            pods: Api::namespaced(self.controller.context.client.clone(), job.namespace()),
            recorder: &self.controller.recorder,
            expectations: &self.controller.expectations,
        };
        let count = |pods: usize| i32::try_from(pods.min(BURST)).unwrap_or(i32::MAX);
        let (created, deleted) = (count(create.len()), count(delete.len()));
        control.apply(create, delete).await.map_err(|failure| failure.error)?;
        self.active += created - deleted;
        self.terminating += deleted;
        self.ready -= crate::meta::count(delete.iter().take(BURST).filter(|pod| pod_is_ready(pod)));
        Ok(())
    }

    fn note_suspension(&mut self) {
        let (job, recorder) = (self.view.job, &self.controller.recorder);
        if is_suspended(job) {
            let suspended = outcome::condition("Suspended", "True", "JobSuspended", "Job suspended", now());
            if outcome::ensure(&mut self.status, suspended) {
                recorder.normal(job, "Suspended", "Job suspended".to_owned());
            }
            return;
        }
        let resumed = outcome::condition("Suspended", "False", "JobResumed", "Job resumed", now());
        if outcome::ensure(&mut self.status, resumed) {
            recorder.normal(job, "Resumed", "Job resumed".to_owned());
            // The deadline is for the time that a job runs without a break.
            self.status.start_time = Some(Time(now()));
        }
    }

    /// Counts pods and lets them go; with an outcome, and when nothing is left, ends the job.
    async fn settle(&mut self, outcome: Option<Outcome>, backoff: Record) -> Result<(), Error> {
        let (controller, mut job) = (self.controller, self.view.job.clone());
        let tracked = track::note(self.view, &mut self.status, outcome.as_ref());
        if let Some(outcome) = &outcome {
            outcome::ensure(&mut self.status, outcome.interim(now()));
        }
        self.write(&mut job).await?;
        controller.memory.backoff.lock().insert(job.uid().to_owned(), backoff);

        let released =
            release::release(&controller.context, &controller.memory.released, &job, &tracked.release).await;
        track::drop_counted(&mut self.status, &tracked, &released.were_free);
        let mut held = tracked.held;
        held.retain(|uid| !released.free.contains(uid));
        track::count_released(&mut self.status, &held);
        let is_over = released.result.is_ok()
            && !tracked.is_full
            && self.terminating == 0
            && !track::has_notes(&self.status);
        let ended = outcome.filter(|_| is_over);
        if let Some(outcome) = &ended {
            let last = outcome.last(now());
            if outcome.is_success {
                self.status.completion_time = last.last_transition_time.clone();
            }
            outcome::ensure(&mut self.status, last);
        }
        self.write(&mut job).await?;
        if let Some(outcome) = ended {
            self.tell(&outcome);
        }
        released.result
    }

    /// `job` is then as the API has it.
    async fn write(&self, job: &mut Job) -> Result<(), Error> {
        if job.status.as_ref() == Some(&self.status) {
            return Ok(());
        }
        let jobs: Api<Job> = Api::namespaced(self.controller.context.client.clone(), job.namespace());
        let changed = Job { status: Some(self.status.clone()), ..job.clone() };
        let mut written = jobs.update_status(&changed).await?;
        self.controller.memory.wrote(&written);
        // Compared with what was sent: times are kept in whole seconds.
        written.status = changed.status;
        *job = written;
        Ok(())
    }

    fn tell(&self, outcome: &Outcome) {
        let (job, recorder) = (self.view.job, &self.controller.recorder);
        if !outcome.is_success {
            let reason = reason_of(&outcome.reason);
            return recorder.warning(job, reason, outcome.message.clone());
        }
        if spec(job).completions.is_some_and(|wanted| self.status.succeeded.unwrap_or_default() > wanted) {
            let message = "Too many succeeded pods running after completion count reached";
            recorder.warning(job, "TooManySucceededPods", message.to_owned());
        }
        recorder.normal(job, "Completed", "Job completed".to_owned());
    }
}

/// Reasons of events are a closed set.
fn reason_of(reason: &str) -> &'static str {
    let known = [
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "MaxFailedIndexesExceeded",
        "FailedIndexes",
        "PodFailurePolicy",
    ];
    known.into_iter().find(|known| *known == reason).unwrap_or("Failed")
}

/// The condition that a finished job ended with.
pub(crate) fn condition_of_end(job: &Job) -> Option<&JobCondition> {
    ["Complete", "Failed"].iter().find_map(|kind| outcome::find(job.status.as_ref(), kind))
}
