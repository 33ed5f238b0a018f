//! DaemonSets: one pod on every node that fits.
//!
//! Which nodes those are is decided by [`nodes`], what has to change on them by [`plan`] and, while a template is rolled
//! out, by [`rolling`]. Pods are tied to their node by affinity and bound by the scheduler. The templates are kept as
//! ControllerRevisions ([`crate::revisions`]), whose hash the pods carry.

mod backoff;
mod nodes;
mod plan;
mod pod;
mod rolling;
mod status;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use hawser_api::{
    Api, Error,
    informer::{Change, Informer},
    resource::ObjectKey,
};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetSpec},
    core::v1::{Node, Pod},
};

use crate::{
    Context, Starts,
    caches::Caches,
    events::Recorder,
    expectations::Expectations,
    meta::{MetaExt, now},
    pods::{self, PodControl, PodOwner, matches_pod},
    queue::Queue,
    revisions::{self, History, REVISION_HASH, Revised},
    selector,
    worker::{Next, Reconciler},
};
use backoff::Backoff;
use plan::{Changes, OnNodes};

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("daemonset") {
        return;
    }
    let context = starts.context.clone();
    let (queue, expectations) = pods::follow::<DaemonSet>(&context);
    revisions::wake::<DaemonSet>(&context, &queue);
    // Weak: the caches, which own the handler, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.nodes.on_change(move |change| node_changed(&changed, &weak, change));
    let recorder = context.recorder.of("daemonset-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, expectations, recorder, backoff: Backoff::default() }, queue, workers);
}

/// Wakes the sets for which the node is another than before.
fn node_changed(queue: &Queue<ObjectKey>, context: &Weak<Context>, change: &Change<'_, Node>) {
    let Some(context) = context.upgrade() else { return };
    if let (Some(old), Some(new)) = (change.old, change.new)
        && nodes::look_alike(old, new)
    {
        return;
    }
    for set in context.caches.daemon_sets.all() {
        let fit = |node: Option<&Arc<Node>>| node.map(|node| nodes::fit(&set, node));
        if fit(change.old) != fit(change.new) {
            queue.add(ObjectKey::of(&*set));
        }
    }
}

impl PodOwner for DaemonSet {
    fn informer(caches: &Caches) -> &Informer<Self> {
        &caches.daemon_sets
    }

    fn of_namespace(caches: &Caches, namespace: &str) -> Vec<Arc<Self>> {
        caches.daemon_sets_by_namespace.get(namespace)
    }

    fn selects(&self, pod: &Pod) -> bool {
        self.spec.as_ref().is_some_and(|spec| matches_pod(&spec.selector, pod))
    }
}

struct Controller {
    context: Arc<Context>,
    expectations: Arc<Expectations>,
    recorder: Recorder,
    backoff: Backoff,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "daemonset";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(set) = self.context.caches.daemon_sets.get(key) else { return Ok(Next::Done) };
        let Some(spec) = &set.spec else { return Ok(Next::Done) };
        if selector::is_empty(&spec.selector) {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", message.to_owned());
            return Ok(Next::Done);
        }
        // Its pods and revisions are the garbage collector's then.
        if set.is_deleting() {
            return Ok(Next::Done);
        }
        let revised = Revised {
            owner: &*set,
            selector: &spec.selector,
            template: &spec.template,
            hash_label: REVISION_HASH,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
        };
        let history = revised.history(&self.context).await?;
        // Looked at before the pods: a pod that appears in between is counted, and only delays the next look.
        let cache_is_current = self.expectations.are_met(set.uid());
        let on_nodes = self.on_nodes(&set, spec, &history).await?;
        let managed = if cache_is_current { self.manage(&set, &on_nodes).await } else { Ok(Next::Done) };
        if managed.is_ok() {
            self.expire(spec, &on_nodes, &history).await?;
        }
        self.write_status(&set, &on_nodes, &history, cache_is_current).await?;
        Ok(managed?.or(status::next_available(&on_nodes, now())))
    }
}

impl Controller {
    async fn on_nodes(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        history: &History,
    ) -> Result<OnNodes, Error> {
        let owned = pods::claim(&self.context, set).await?;
        let hash = history.current.labels().get(REVISION_HASH).cloned().unwrap_or_default();
        Ok(OnNodes::new(set, spec, &self.context.caches.nodes.all(), owned, hash))
    }

    /// Failed pods may have to be looked at again.
    async fn manage(&self, set: &DaemonSet, on_nodes: &OnNodes) -> Result<Next, Error> {
        let (changes, wait) = plan::manage(set, on_nodes, &self.backoff, &self.recorder, now());
        self.apply(set, on_nodes, changes).await?;
        if self.expectations.are_met(set.uid()) {
            self.apply(set, on_nodes, rolling::step(set, on_nodes, now())).await?;
        }
        Ok(Next::after(wait))
    }

    async fn apply(&self, set: &DaemonSet, on_nodes: &OnNodes, changes: Changes) -> Result<(), Error> {
        let control = PodControl {
            owner: set,
            pods: Api::namespaced(self.context.client.clone(), set.namespace()),
            recorder: &self.recorder,
            expectations: &self.expectations,
        };
        let missing = changes.create.iter().take(pods::BURST);
        let missing = missing.map(|node| pod::on_node(set, &on_nodes.hash, node)).collect();
        control.apply(missing, &changes.delete).await.map_err(|failure| failure.error)
    }

    async fn expire(&self, spec: &DaemonSetSpec, on_nodes: &OnNodes, history: &History) -> Result<(), Error> {
        let limit = spec.revision_history_limit;
        revisions::expire(&self.context, &history.old, limit, |revision| {
            let hash = revision.labels().get(REVISION_HASH);
            on_nodes.pods().any(|pod| hash.is_some() && pod.labels().get(REVISION_HASH) == hash)
        })
        .await
    }

    async fn write_status(
        &self,
        set: &DaemonSet,
        on_nodes: &OnNodes,
        history: &History,
        observed: bool,
    ) -> Result<(), Error> {
        let mut status = status::calculate(set, on_nodes, now());
        status.collision_count = history.collisions;
        if !observed {
            status.observed_generation = set.status.as_ref().and_then(|status| status.observed_generation);
        }
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = DaemonSet { status: Some(status), ..set.clone() };
        let sets: Api<DaemonSet> = Api::namespaced(self.context.client.clone(), set.namespace());
        match sets.update_status(&changed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}
