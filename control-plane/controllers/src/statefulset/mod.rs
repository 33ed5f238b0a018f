//! StatefulSets: pods with names, order and claims of their own.
//!
//! A pod's name, labels and claims follow from its ordinal ([`identity`]), so that a stale cache cannot make one twice.
//! What to do next is decided by [`plan`] and done by [`act`]; who owns claims, and so when they go, by [`claims`].
//! Templates are kept as ControllerRevisions ([`crate::revisions`]), which pods name.

mod act;
mod claims;
mod identity;
mod plan;
mod status;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures::FutureExt;
use hawser_api::{
    Api, Error,
    informer::{Change, Informer},
    resource::ObjectKey,
};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};

use crate::{
    Context, Starts,
    caches::Caches,
    events::Recorder,
    meta::{MetaExt, now},
    pods::{self, PodOwner, matches_pod},
    queue::Queue,
    revisions::{self, History, Revised},
    selector,
    worker::{Next, Reconciler, in_batches},
};
use act::{Actor, Version};
use identity::{ordinal, revision_of, spec};
use plan::{Replicas, Step};

/// The label of revisions with the hash that their name ends with.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("statefulset") {
        return;
    }
    let context = starts.context.clone();
    let (queue, _) = pods::follow::<StatefulSet>(&context);
    revisions::wake::<StatefulSet>(&context, &queue);
    // Weak: the caches, which own the handler, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.claims.on_change(move |change| claim_changed(&changed, &weak, change));
    let recorder = context.recorder.of("statefulset-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder }, queue, workers);
}

/// A pod may wait until a claim of an earlier one is gone.
fn claim_changed(
    queue: &Queue<ObjectKey>,
    context: &Weak<Context>,
    change: &Change<'_, PersistentVolumeClaim>,
) {
    let Some(context) = context.upgrade().filter(|_| change.new.is_none()) else { return };
    for set in StatefulSet::of_namespace(&context.caches, &change.key.namespace) {
        if identity::is_claim_of(&set, &change.key.name) {
            queue.add(ObjectKey::of(&*set));
        }
    }
}

impl PodOwner for StatefulSet {
    fn informer(caches: &Caches) -> &Informer<Self> {
        &caches.stateful_sets
    }

    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>> {
        caches.stateful_sets_by_namespace.get(namespace)
    }

    fn selects(&self, pod: &Pod) -> bool {
        ordinal(self, pod).is_some() && matches_pod(&spec(self).selector, pod)
    }
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "statefulset";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.context.caches.stateful_sets.get(key) else { return Ok(Next::Done) };
        // Where it is deleted, its pods and revisions are the garbage collector's.
        if set.is_deleting() || selector::is_empty(&spec(&set).selector) {
            return Ok(Next::Done);
        }
        let pods = pods::claim(&self.context, &*set).await?;
        let revised = Revised {
            owner: &*set,
            selector: &spec(&set).selector,
            template: &spec(&set).template,
            hash_label: HASH_LABEL,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
        };
        let history = revised.history(&self.context).await?;
        let (current, update) = (current(&set, &history), &history.current);
        let version = |revision: &ControllerRevision| Version {
            name: revision.name().to_owned(),
            template: revisions::template_of(revision).unwrap_or_default(),
        };
        let actor = Actor {
            context: &self.context,
            recorder: &self.recorder,
            set: &set,
            current: version(&current),
            update: version(update),
        };
        let replicas = Replicas::new(&set, &pods, update.name(), now());
        let acted = act(&actor, replicas.plan(&actor)).await;
        let status = status::calculate(&set, &pods, &replicas, current.name(), history.collisions);
        self.write_status(&set, status).await?;
        acted?;
        self.expire(&set, &pods, &current, &history).await?;
        Ok(Next::after(replicas.next_available()))
    }
}

/// Claims get their owners before pods are deleted, or they would stay behind.
async fn act(actor: &Actor<'_>, steps: Vec<Step>) -> Result<(), Error> {
    let (repairs, others): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|step| matches!(step, Step::Repair(_)));
    for steps in [repairs, others] {
        let outcomes = in_batches(steps.iter().map(|step| actor.take(step).boxed())).await;
        outcomes.into_iter().collect::<Result<(), Error>>()?;
    }
    Ok(())
}

/// The revision that the set had before the one that is rolled out.
fn current(set: &StatefulSet, history: &History) -> Arc<ControllerRevision> {
    let name = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let known = history.old.iter().find(|revision| Some(revision.name()) == name);
    known.unwrap_or(&history.current).clone()
}

impl Controller {
    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = StatefulSet { status: Some(status), ..set.clone() };
        let sets: Api<StatefulSet> = Api::namespaced(self.context.client.clone(), set.namespace());
        match sets.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn expire(
        &self,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        current: &ControllerRevision,
        history: &History,
    ) -> Result<(), Error> {
        let in_use = |revision: &ControllerRevision| {
            revision.name() == current.name() || pods.iter().any(|pod| revision_of(pod) == revision.name())
        };
        let old: Vec<_> = history.old.iter().filter(|revision| !in_use(revision)).cloned().collect();
        revisions::expire(&self.context, &old, spec(set).revision_history_limit, |_| false).await
    }
}
