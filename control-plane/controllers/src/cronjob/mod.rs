//! CronJobs: makes Jobs when their schedule is due.
//!
//! What is due follows from the last run in the status ([`due`]); a Job's name follows from the minute it is due, so that
//! none is made twice. Jobs that the user's limits do not keep are deleted, the oldest first.

mod due;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{
    Api, Error,
    client::{DeleteOptions, Propagation},
    cron::{Schedule, zone},
    resource::ObjectKey,
};
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::{
    Context, Starts,
    events::Recorder,
    job::condition_of_end,
    meta::{MetaExt, controller_key, controller_reference, now, only_this},
    pods::namespace_is_ending,
    queue::Queue,
    worker::{Next, Reconciler},
};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("cronjob") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.cron_jobs.on_change(move |change| changed.add(change.key.clone()));
    let changed = queue.clone();
    context.caches.jobs.on_change(move |change| {
        for job in change.old.into_iter().chain(change.new) {
            if let Some(key) = controller_key(&**job, "CronJob") {
                changed.add(key);
            }
        }
    });
    let recorder = context.recorder.of("cronjob-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder }, queue, workers);
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "cronjob";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cron_job) = self.context.caches.cron_jobs.get(key) else { return Ok(Next::Done) };
        let mut pass = Pass {
            controller: self,
            cron_job: &cron_job,
            spec: &cron_job.spec,
            status: cron_job.status.clone().unwrap_or_default(),
            children: self.context.caches.jobs_by_controller.get(cron_job.uid()),
            jobs: Api::namespaced(self.context.client.clone(), &key.namespace),
        };
        pass.children.sort_by(|a, b| started(a).cmp(&started(b)).then_with(|| a.name().cmp(b.name())));
        let outcome = pass.run().await;
        pass.write_status().await?;
        let next = outcome?;
        pass.delete_old().await?;
        Ok(next)
    }
}

/// Jobs that have not started are the youngest.
fn started(job: &Job) -> Timestamp {
    let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.map_or(Timestamp::MAX, |time| time.0)
}

/// One look at one cron job.
struct Pass<'a> {
    controller: &'a Controller,
    cron_job: &'a CronJob,
    spec: &'a CronJobSpec,
    /// With what this look brings.
    status: CronJobStatus,
    /// The oldest first.
    children: Vec<Arc<Job>>,
    jobs: Api<Job>,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<Next, Error> {
        self.follow_children().await?;
        self.drop_missing().await?;
        if self.cron_job.is_deleting() || self.spec.suspend == Some(true) {
            return Ok(Next::Done);
        }
        let recorder = &self.controller.recorder;
        let (schedule, zone) = match self.schedule() {
            Ok(parsed) => parsed,
            Err((reason, message)) => {
                recorder.warning(self.cron_job, reason, message);
                return Ok(Next::Done);
            }
        };
        let missed = match due::missed(self.cron_job, self.spec, &schedule, now()) {
            Ok(missed) => missed,
            Err(why) => {
                let message = format!("invalid schedule: {} : {why}", self.spec.schedule);
                recorder.warning(self.cron_job, "InvalidSchedule", message);
                return Ok(Next::Done);
            }
        };
        let next = Next::after(due::until_next(self.cron_job, &missed, &schedule, now()));
        let Some(run) = missed.last else { return Ok(next) };
        if missed.are_many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check \
                           clock skew";
            recorder.warning(self.cron_job, "TooManyMissedTimes", message.to_owned());
        }
        self.start(run, &zone).await?;
        Ok(next)
    }

    fn schedule(&self) -> Result<(Schedule, TimeZone), (&'static str, String)> {
        let name = self.spec.time_zone.as_deref();
        let zone = zone::find(name).map_err(|why| {
            let message = format!("invalid timeZone: {:?}: {why}", name.unwrap_or_default());
            ("UnknownTimeZone", message)
        })?;
        let text = &self.spec.schedule;
        let schedule = Schedule::parse(text, zone.clone())
            .map_err(|why| ("UnparseableSchedule", format!("unparseable schedule: {text:?} : {why}")))?;
        Ok((schedule, zone))
    }

    /// Brings the list of running jobs, and the last success, up to date.
    async fn follow_children(&mut self) -> Result<(), Error> {
        let recorder = &self.controller.recorder;
        for job in &self.children {
            let active = self.status.active.get_or_insert_default();
            let place = active.iter().position(|it| it.uid.as_deref() == Some(job.uid()));
            let ended = condition_of_end(job);
            let is_unknown = ended.is_none() && !is_listed(active, job);
            if let (Some(place), Some(condition)) = (place, ended) {
                active.remove(place);
                let message = format!("Saw completed job: {}, condition: {}", job.name(), condition.type_);
                recorder.normal(self.cron_job, "SawCompletedJob", message);
            } else if is_unknown && !self.is_just_listed(job).await? {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {}", job.name());
                recorder.warning(self.cron_job, "UnexpectedJob", message);
            }
            let completed = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
            if let Some(at) = completed.filter(|_| ended.is_some_and(|it| it.type_ == "Complete")) {
                let last = self.status.last_successful_time.as_ref();
                if last.is_none_or(|last| last.0 < at.0) {
                    self.status.last_successful_time = Some(at.clone());
                }
            }
        }
        Ok(())
    }

    /// The list has the job in the API, though not in the cache.
    async fn is_just_listed(&self, job: &Job) -> Result<bool, Error> {
        let cron_jobs: Api<CronJob> =
            Api::namespaced(self.controller.context.client.clone(), self.cron_job.namespace());
        let status = cron_jobs.find(self.cron_job.name()).await?.and_then(|fresh| fresh.status);
        let active = status.and_then(|status| status.active).unwrap_or_default();
        Ok(is_listed(&active, job))
    }

    /// Drops running jobs that are gone. The cache may be behind, so the API is asked.
    async fn drop_missing(&mut self) -> Result<(), Error> {
        for listed in self.status.active.clone().unwrap_or_default() {
            let is_it = |job: &Job| listed.uid.as_deref() == Some(job.uid());
            if self.children.iter().any(|job| is_it(job)) {
                continue;
            }
            let name = listed.name.clone().unwrap_or_default();
            if self.jobs.find(&name).await?.is_some_and(|job| is_it(&job)) {
                continue;
            }
            let message = format!("Active job went missing: {name}");
            self.controller.recorder.normal(self.cron_job, "MissingJob", message);
            self.status.active.get_or_insert_default().retain(|other| *other != listed);
        }
        Ok(())
    }

    /// Makes the job of the run, as far as deadline and policy allow.
    async fn start(&mut self, run: Timestamp, zone: &TimeZone) -> Result<(), Error> {
        let recorder = &self.controller.recorder;
        let name = format!("{}-{}", self.cron_job.name(), run.as_second().div_euclid(60));
        if due::is_too_late(self.spec, run, now()) {
            let at = run.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string();
            let message = format!("Missed scheduled time to start a job: {at}");
            recorder.warning(self.cron_job, "MissSchedule", message);
            return Ok(());
        }
        let active = self.status.active.clone().unwrap_or_default();
        let is_done = active.iter().any(|job| job.name.as_deref() == Some(&name))
            || self.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == run);
        if is_done {
            return Ok(());
        }
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is \
                               Forbid";
                recorder.normal(self.cron_job, "JobAlreadyActive", message.to_owned());
                return Ok(());
            }
            Some("Replace") => self.replace(&active).await?,
            _ => {}
        }
        let Some(job) = self.create(&name, run, zone).await? else { return Ok(()) };
        self.status.active.get_or_insert_default().push(reference(&job));
        self.status.last_schedule_time = Some(Time(run));
        Ok(())
    }

    async fn replace(&mut self, active: &[ObjectReference]) -> Result<(), Error> {
        for listed in active {
            if let Some(job) = self.jobs.find(listed.name.as_deref().unwrap_or_default()).await? {
                self.delete(&job).await?;
            }
            self.status.active.get_or_insert_default().retain(|other| other != listed);
        }
        Ok(())
    }

    /// `None` where the namespace is about to go.
    async fn create(&self, name: &str, run: Timestamp, zone: &TimeZone) -> Result<Option<Job>, Error> {
        let recorder = &self.controller.recorder;
        match self.jobs.create(&self.job(name, run, zone)).await {
            Ok(job) => {
                recorder.normal(self.cron_job, "SuccessfulCreate", format!("Created job {}", job.name()));
                Ok(Some(job))
            }
            Err(error) if namespace_is_ending(&error) => Ok(None),
            Err(error) if error.is_already_exists() => {
                let job = self.jobs.get(name).await?;
                let is_ours = job.controller().is_some_and(|owner| owner.uid == self.cron_job.uid());
                if is_ours { Ok(Some(job)) } else { Err(error) }
            }
            Err(error) => {
                recorder.warning(self.cron_job, "FailedCreate", format!("Error creating job: {error}"));
                Err(error)
            }
        }
    }

    fn job(&self, name: &str, run: Timestamp, zone: &TimeZone) -> Job {
        let from = self.spec.job_template.metadata.clone().unwrap_or_default();
        let mut annotations = from.annotations.unwrap_or_default();
        annotations.insert(SCHEDULED_AT.to_owned(), rfc3339(run, zone));
        Job {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: self.cron_job.metadata.namespace.clone(),
                labels: from.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(self.cron_job)]),
                ..ObjectMeta::default()
            },
            spec: self.spec.job_template.spec.clone(),
            status: None,
        }
    }

    async fn delete(&self, job: &Job) -> Result<(), Error> {
        let options = DeleteOptions { propagation: Some(Propagation::Background), ..only_this(job) };
        let recorder = &self.controller.recorder;
        match self.jobs.delete(job.name(), &options).await {
            // Another job has the name now.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => {
                recorder.warning(self.cron_job, "FailedDelete", format!("Deleted job: {error}"));
                Err(error)
            }
            Ok(()) => {
                recorder.normal(self.cron_job, "SuccessfulDelete", format!("Deleted job {}", job.name()));
                Ok(())
            }
        }
    }

    /// Deletes finished jobs beyond the limits.
    async fn delete_old(&self) -> Result<(), Error> {
        let limits = [
            ("Complete", self.spec.successful_jobs_history_limit),
            ("Failed", self.spec.failed_jobs_history_limit),
        ];
        for (kind, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let is_such =
                |job: &&Arc<Job>| condition_of_end(job).is_some_and(|condition| condition.type_ == kind);
            let ended: Vec<&Arc<Job>> =
                self.children.iter().filter(|job| !job.is_deleting()).filter(is_such).collect();
            for job in ended.iter().take(ended.len().saturating_sub(limit)) {
                self.delete(job).await?;
            }
        }
        Ok(())
    }

    async fn write_status(&mut self) -> Result<(), Error> {
        self.status.active = self.status.active.take().filter(|active| !active.is_empty());
        if self.cron_job.status.clone().unwrap_or_default() == self.status {
            return Ok(());
        }
        let changed = CronJob { status: Some(self.status.clone()), ..self.cron_job.clone() };
        let cron_jobs: Api<CronJob> =
            Api::namespaced(self.controller.context.client.clone(), self.cron_job.namespace());
        match cron_jobs.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn is_listed(active: &[ObjectReference], job: &Job) -> bool {
    active.iter().any(|listed| listed.name.as_deref() == Some(job.name()))
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

fn rfc3339(run: Timestamp, zone: &TimeZone) -> String {
    if *zone == TimeZone::UTC {
        return run.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    }
    run.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
