//! Deployments: roll a template out over ReplicaSets, keep the old ones to go back to.
//!
//! One set stands for the current template ([`revision`]); how far it may grow and the others must shrink is
//! decided step by step ([`rolling`]), or shared out when only the size changed ([`scale`]); the status tells
//! how far it got ([`status`]). Every write of a set is guarded by its resource version, so that a step that
//! was planned from a stale cache fails and is planned again. Rolling back is no special case: kubectl writes
//! the old template, and the set that has it becomes the current one again.

mod revision;
mod rolling;
mod scale;
mod status;
mod strategy;
#[cfg(test)]
mod test_objects;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use hawser_api::{Api, Error, informer::Change, resource::ObjectKey};
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};

use crate::{
    Context, Starts,
    caches::orphans_of,
    events::Recorder,
    meta::{MetaExt, controller_key, now, only_this, pod_is_terminal},
    ownership,
    pods::namespace_is_ending,
    queue::Queue,
    selector,
    worker::{Next, Reconciler},
};
use revision::REVISION;
use rolling::Scale;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("deployment") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.deployments.on_change(move |change| changed.add(change.key.clone()));
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.replica_sets.on_change(move |change| set_changed(&changed, &weak, change));
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| pod_changed(&changed, &weak, change));

    let recorder = context.recorder.of("deployment-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder }, queue, workers);
}

fn set_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, ReplicaSet>) {
    for set in change.old.into_iter().chain(change.new) {
        if let Some(key) = controller_key(&**set, "Deployment") {
            queue.add(key);
        }
    }
    let orphan = change.new.filter(|set| set.controller().is_none() && !set.is_deleting());
    let (Some(orphan), Some(context)) = (orphan, context.upgrade()) else { return };
    for deployment in context.caches.deployments_by_namespace.get(orphan.namespace()) {
        if matches_set(&deployment, orphan) {
            queue.add(ObjectKey::of(&*deployment));
        }
    }
}

/// A deployment that recreates waits for the last old pod to be gone.
fn pod_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Pod>) {
    let (Some(old), None) = (change.old, change.new) else { return };
    let (Some(key), Some(context)) = (controller_key(&**old, "ReplicaSet"), context.upgrade()) else {
        return;
    };
    let set = context.caches.replica_sets.get(&key);
    let Some(key) = set.and_then(|set| controller_key(&*set, "Deployment")) else { return };
    let deployment = context.caches.deployments.get(&key);
    if deployment.is_some_and(|deployment| !strategy::is_rolling(&deployment)) {
        queue.add(key);
    }
}

fn matches_set(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let selector = &strategy::spec(deployment).selector;
    !selector::is_empty(selector) && selector::matches(selector, set.labels())
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

/// A deployment's sets: the one with the current template, and all others, oldest first.
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn replace(&mut self, changed: Arc<ReplicaSet>) {
        for set in self.new.iter_mut().chain(&mut self.old) {
            if set.uid() == changed.uid() {
                *set = changed.clone();
            }
        }
    }
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "deployment";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(cached) = self.context.caches.deployments.get(key) else { return Ok(Next::Done) };
        let mut pass = Pass {
            controller: self,
            deployments: Api::namespaced(self.context.client.clone(), &key.namespace),
            sets_api: Api::namespaced(self.context.client.clone(), &key.namespace),
            stored_status: cached.status.clone(),
            stored_revision: cached.annotations().get(REVISION).cloned(),
            deployment: (*cached).clone(),
            sets: Sets { new: None, old: Vec::new() },
        };
        pass.run().await
    }
}

/// One look at one deployment.
struct Pass<'a> {
    controller: &'a Controller,
    deployments: Api<Deployment>,
    sets_api: Api<ReplicaSet>,
    /// As the API has it.
    stored_status: Option<DeploymentStatus>,
    stored_revision: Option<String>,
    /// With the revision and the conditions that this look brings, written once at its end.
    deployment: Deployment,
    sets: Sets,
}

impl Pass<'_> {
    async fn run(&mut self) -> Result<Next, Error> {
        if selector::is_empty(&strategy::spec(&self.deployment).selector) {
            return self.refuse_to_select_all().await;
        }
        let (new, old) = revision::split(&self.deployment, &self.claim_sets().await?);
        self.sets = Sets { new, old };
        if self.deployment.is_deleting() {
            self.write_status(self.calculate()).await?;
            return Ok(Next::Done);
        }
        if let Some(condition) = status::pause_condition(&self.deployment, now()) {
            status::set(self.deployment.status.get_or_insert_default(), condition);
        }
        let paused = strategy::spec(&self.deployment).paused.unwrap_or_default();
        if paused || self.was_scaled() {
            return self.scale_only().await;
        }
        if strategy::is_rolling(&self.deployment) { self.roll().await } else { self.recreate().await }
    }

    async fn refuse_to_select_all(&mut self) -> Result<Next, Error> {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        self.controller.recorder.warning(&self.deployment, "SelectingAll", message.to_owned());
        let mut status = self.deployment.status.clone().unwrap_or_default();
        status.observed_generation = self.deployment.metadata.generation;
        self.write_status(status).await?;
        Ok(Next::Done)
    }

    async fn claim_sets(&self) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let by_controller = &self.controller.context.caches.replica_sets_by_controller;
        let mut candidates = by_controller.get(self.deployment.uid());
        candidates.extend(by_controller.get(&orphans_of(self.deployment.namespace())));
        let deployment = &self.deployment;
        ownership::claim(&self.deployments, &self.sets_api, deployment, candidates, |set| {
            matches_set(deployment, set)
        })
        .await
    }

    /// A set with pods was sized for another number than is wanted now.
    fn was_scaled(&self) -> bool {
        let wanted = strategy::wanted_replicas(&self.deployment);
        self.sets.new.iter().chain(&self.sets.old).filter(|set| strategy::size(set) > 0).any(|set| {
            scale::annotated(set, revision::DESIRED_REPLICAS).is_some_and(|desired| desired != wanted)
        })
    }

    async fn scale_only(&mut self) -> Result<Next, Error> {
        self.refresh_new_set().await?;
        for change in scale::plan(&self.deployment, self.sets.new.as_ref(), &self.sets.old) {
            self.resize(change).await?;
        }
        if strategy::spec(&self.deployment).paused.unwrap_or_default() {
            self.delete_expired_sets().await?;
        }
        self.write_status(self.calculate()).await?;
        Ok(Next::Done)
    }

    async fn roll(&mut self) -> Result<Next, Error> {
        let new = self.ensure_new_set().await?;
        for change in rolling::step(&self.deployment, &new, &self.sets.old) {
            self.resize(change).await?;
        }
        self.finish().await
    }

    async fn recreate(&mut self) -> Result<Next, Error> {
        self.refresh_new_set().await?;
        let shrinking = strategy::with_replicas(&self.sets.old);
        for set in &shrinking {
            self.resize(Scale { set: set.clone(), to: 0 }).await?;
        }
        if shrinking.is_empty() && !self.old_pods_run() {
            let new = self.ensure_new_set().await?;
            let to = strategy::wanted_replicas(&self.deployment);
            self.resize(Scale { set: new, to }).await?;
        }
        self.finish().await
    }

    fn old_pods_run(&self) -> bool {
        let pods = &self.controller.context.caches.pods_by_controller;
        let has_pods = |set: &ReplicaSet| pods.get(set.uid()).iter().any(|pod| !pod_is_terminal(pod));
        self.sets.old.iter().any(|set| strategy::actual(set) > 0 || has_pods(set))
    }

    async fn finish(&mut self) -> Result<Next, Error> {
        let new = self.sets.new.as_ref();
        let status = status::with_progress(&self.deployment, new, &self.sets.old, now());
        if status::is_complete(&self.deployment, &status) {
            self.delete_expired_sets().await?;
        }
        self.write_status(status.clone()).await?;
        Ok(Next::after(status::until_deadline(&self.deployment, &status, now())))
    }

    fn calculate(&self) -> DeploymentStatus {
        status::calculate(&self.deployment, self.sets.new.as_ref(), &self.sets.old, now())
    }

    async fn write_status(&mut self, status: DeploymentStatus) -> Result<(), Error> {
        let is_same = self.stored_status.as_ref() == Some(&status)
            && self.stored_revision.as_ref() == self.deployment.annotations().get(REVISION);
        if !is_same {
            self.deployment.status = Some(status);
            match self.deployments.update_status(&self.deployment).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Brings annotations of the current set up to date, where there is one.
    async fn refresh_new_set(&mut self) -> Result<(), Error> {
        let Some(new) = self.sets.new.clone() else { return Ok(()) };
        if let Some(changed) = revision::refreshed(&self.deployment, &new, &self.sets.old) {
            let changed = self.sets_api.update(&changed).await?;
            self.sets.replace(Arc::new(changed));
        }
        let revision = self.sets.new.as_ref().map_or(0, |set| revision::revision_of(set));
        self.note_revision(revision);
        let known = status::find(self.deployment.status.as_ref(), status::PROGRESSING).is_some();
        if !known && status::progress_deadline(&self.deployment).is_some() {
            self.note_progress("True", status::SET_FOUND, format!("Found new replica set {:?}", new.name()));
        }
        Ok(())
    }

    /// The set of the current template, made where there is none.
    async fn ensure_new_set(&mut self) -> Result<Arc<ReplicaSet>, Error> {
        self.refresh_new_set().await?;
        if let Some(new) = &self.sets.new {
            return Ok(new.clone());
        }
        let wanted = revision::new_set(&self.deployment, &self.sets.old);
        let set = match self.sets_api.create(&wanted).await {
            Ok(created) => {
                let size = strategy::size(&created);
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", created.name());
                    self.controller.recorder.normal(&self.deployment, "ScalingReplicaSet", message);
                }
                self.note_progress(
                    "True",
                    status::SET_CREATED,
                    format!("Created new replica set {:?}", created.name()),
                );
                created
            }
            Err(error) if error.is_already_exists() => self.existing_set(wanted.name(), error).await?,
            // The deployment goes with its namespace, and there is nothing to tell.
            Err(error) if namespace_is_ending(&error) => return Err(error),
            Err(error) => {
                let message = format!("Failed to create new replica set {:?}: {error}", wanted.name());
                self.controller.recorder.warning(&self.deployment, status::SET_FAILED, message.clone());
                self.note_progress("False", status::SET_FAILED, message);
                let status = self.deployment.status.clone().unwrap_or_default();
                self.write_status(status).await?;
                return Err(error);
            }
        };
        let set = Arc::new(set);
        self.sets.new = Some(set.clone());
        self.note_revision(revision::revision_of(&set));
        Ok(set)
    }

    /// A set of the name is there: ours, made before the cache showed it; or another's, whose hash collides.
    async fn existing_set(&mut self, name: &str, error: Error) -> Result<ReplicaSet, Error> {
        let existing = self.sets_api.get(name).await?;
        let is_ours = existing.controller().is_some_and(|owner| owner.uid == self.deployment.uid());
        if is_ours && revision::same_template(&self.deployment, &existing) {
            return Ok(existing);
        }
        let mut status = self.deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or_default().saturating_add(1));
        self.write_status(status).await?;
        Err(error)
    }

    fn note_progress(&mut self, state: &str, reason: &str, message: String) {
        if status::progress_deadline(&self.deployment).is_some() {
            let condition = status::condition(status::PROGRESSING, state, reason, message, now());
            status::set(self.deployment.status.get_or_insert_default(), condition);
        }
    }

    /// Written with the status: a write of its own would count as a change of what is wanted.
    fn note_revision(&mut self, revision: i64) {
        let annotations = self.deployment.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.to_owned(), revision.to_string());
    }

    async fn resize(&mut self, Scale { set, to }: Scale) -> Result<(), Error> {
        let from = strategy::size(&set);
        let mut changed = (*set).clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        if !revision::annotate_sizes(&self.deployment, annotations) && from == to {
            return Ok(());
        }
        if let Some(spec) = &mut changed.spec {
            spec.replicas = Some(to);
        }
        let written = self.sets_api.update(&changed).await?;
        if from != to {
            let direction = if from < to { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {from} to {to}", set.name());
            self.controller.recorder.normal(&self.deployment, "ScalingReplicaSet", message);
        }
        self.sets.replace(Arc::new(written));
        Ok(())
    }

    async fn delete_expired_sets(&self) -> Result<(), Error> {
        for set in revision::expired(&self.deployment, &self.sets.old) {
            match self.sets_api.delete(set.name(), &only_this(&*set)).await {
                // Another set has the name now.
                Err(error) if error.is_conflict() => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }
}
