//! Garbage collection: what is owned goes when its last owner goes.
//!
//! A graph of owner references over all kinds ([`graph`]), fed by one watch per kind ([`monitor`]), says what
//! to look at; nothing is deleted on the graph's word alone: the object and its owners are read from the API
//! first, and the deletion is bound to the uid and version read. Background, foreground
//! (`foregroundDeletion`, waits for dependents that block) and orphaning (`orphan`) follow upstream's meaning.
//! Owners are looked up in the dependent's namespace: one that is elsewhere does not exist for it. A
//! cluster-wide object whose owner is of a namespaced kind, or an owner of a kind that is not served, is never
//! a reason to delete.

mod graph;
mod monitor;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt;
use hawser_api::{
    Error, GroupVersionResource,
    client::{DeleteOptions, Patch, Propagation, WriteOptions},
    kinds::{KINDS, Kind},
    resource::Target,
    typed::decode,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    Context, Starts,
    queue::Queue,
    worker::{self, Next, Reconciler, in_parallel},
};
use graph::{FOREGROUND, Graph, Meta, ORPHAN, Object, Owner, Partial, Uid};
use monitor::Monitor;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if starts.wants("garbage-collector") {
        let context = starts.context.clone();
        starts.add_loop(|shutdown| run(context, shutdown));
    }
}

/// Kinds that own and are owned. Events point at what they are about by other means, and are many.
fn collected_kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| {
        kind.storage.is_some()
            && !kind.is_view()
            && kind.plural != "events"
            && ["list", "watch", "delete", "patch"].iter().all(|verb| kind.has_verb(verb))
    })
}

async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let graph: Arc<Mutex<Graph>> = Arc::default();
    let queue = Queue::new();
    let (synced, mut is_synced) = watch::channel(0);
    // Dropped, and so ended, with this function.
    let mut monitors = JoinSet::new();
    for kind in collected_kinds() {
        let monitor = Monitor {
            client: context.client.clone(),
            resource: kind.resource(kind.versions[0].name),
            graph: graph.clone(),
            queue: queue.clone(),
            synced: synced.clone(),
        };
        monitors.spawn(monitor.run());
    }
    let wanted = monitors.len();
    // Before that an owner may be missing only because its kind was not listed yet.
    tokio::select! {
        _ = is_synced.wait_for(|count| *count == wanted) => {}
        () = shutdown.cancelled() => return,
    }
    let workers = context.config.workers.saturating_mul(4);
    let collector = Collector { context, graph, queue: queue.clone() };
    worker::run(Arc::new(collector), queue, workers, shutdown).await;
}

struct Collector {
    context: Arc<Context>,
    graph: Arc<Mutex<Graph>>,
    queue: Queue<Uid>,
}

/// What one owner reference means for its dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The owner is there, or cannot be told.
    Solid,
    /// There is no such owner.
    Dangling,
    /// The owner ends once its dependents have.
    Waiting,
}

#[async_trait]
impl Reconciler for Collector {
    type Key = Uid;

    const NAME: &'static str = "garbage-collector";

    async fn reconcile(&self, uid: &Uid) -> Result<Next, Error> {
        let Some(object) = self.graph.lock().get(uid).cloned() else { return Ok(Next::Done) };
        if object.meta.orphans() {
            self.orphan_dependents(&object).await?;
        } else if object.meta.waits_for_dependents() {
            self.collect_dependents(&object).await?;
        } else if !object.meta.is_deleting() {
            self.collect(&object).await?;
        }
        Ok(Next::Done)
    }
}

impl Collector {
    /// Deletes the object where no owner is left.
    async fn collect(&self, object: &Object) -> Result<(), Error> {
        // The graph first: most looks end here, without a request.
        let owners = &object.meta.owner_references;
        if owners.is_empty() || owners.iter().all(|owner| self.is_known_solid(object, owner)) {
            return Ok(());
        }
        let Some(live) = self.read_live(object).await? else { return Ok(()) };
        let mut standings = Vec::with_capacity(live.owner_references.len());
        for owner in &live.owner_references {
            standings.push(self.standing(object, owner).await?);
        }
        if standings.is_empty() || live.is_deleting() {
            return Ok(());
        }
        if standings.contains(&Standing::Solid) {
            return self.keep_solid_owners(object, &live, &standings).await;
        }
        let is_awaited = standings.contains(&Standing::Waiting);
        let propagation = if is_awaited && !self.graph.lock().dependents(&live.uid).is_empty() {
            Propagation::Foreground
        } else if live.finalizers.iter().any(|it| it == ORPHAN) {
            Propagation::Orphan
        } else if live.finalizers.iter().any(|it| it == FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        debug!(resource = %object.resource, namespace = live.namespace, name = live.name, "deleting, its owners are gone");
        self.delete(object, &live, propagation).await
    }

    fn is_known_solid(&self, object: &Object, owner: &Owner) -> bool {
        let graph = self.graph.lock();
        graph.get(&owner.uid).is_some_and(|known| {
            let reachable = known.meta.namespace.is_empty() || known.meta.namespace == object.meta.namespace;
            reachable && known.meta.name == owner.name && !known.meta.waits_for_dependents()
        })
    }

    async fn standing(&self, object: &Object, owner: &Owner) -> Result<Standing, Error> {
        if self.is_known_solid(object, owner) {
            return Ok(Standing::Solid);
        }
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let Some(kind) = Kind::by_kind(group, version, &owner.kind) else {
            debug!(kind = owner.kind, api_version = owner.api_version, "owner of a kind that is not served");
            return Ok(Standing::Solid);
        };
        if kind.namespaced && object.meta.namespace.is_empty() {
            debug!(
                name = object.meta.name,
                owner = owner.name,
                "cluster-wide object with a namespaced owner"
            );
            return Ok(Standing::Solid);
        }
        let namespace = kind.namespaced.then_some(object.meta.namespace.as_str());
        let resource = kind.resource(kind.versions[0].name);
        match self.read(&resource, namespace, &owner.name).await? {
            Some(found) if found.uid == owner.uid && found.waits_for_dependents() => Ok(Standing::Waiting),
            Some(found) if found.uid == owner.uid => Ok(Standing::Solid),
            _ => Ok(Standing::Dangling),
        }
    }

    /// Drops the references to owners that are gone or going, because others remain.
    async fn keep_solid_owners(
        &self,
        object: &Object,
        live: &Meta,
        standings: &[Standing],
    ) -> Result<(), Error> {
        let owners = live.owner_references.iter().zip(standings);
        let gone: Vec<&Uid> = owners
            .filter(|(_, standing)| **standing != Standing::Solid)
            .map(|(owner, _)| &owner.uid)
            .collect();
        if gone.is_empty() { Ok(()) } else { self.drop_references(object, &gone).await }
    }

    /// Ends the dependents that block, then lets the object go.
    async fn collect_dependents(&self, object: &Object) -> Result<(), Error> {
        let dependents = self.graph.lock().dependents(&object.meta.uid);
        let mut is_blocked = false;
        for dependent in &dependents {
            let blocks = dependent
                .meta
                .owner_references
                .iter()
                .any(|owner| owner.uid == object.meta.uid && owner.block_owner_deletion);
            is_blocked |= blocks;
            if !dependent.meta.is_deleting() {
                // Looked at in parallel, each with retries of its own; each that goes brings the owner back.
                self.queue.add(dependent.meta.uid.clone());
            } else if blocks && self.graph.lock().awaits(&dependent.meta.uid, &object.meta.uid) {
                // They wait in a circle: the reference stops to block, or none of them ever ends.
                self.unblock(dependent, object).await?;
            }
        }
        if is_blocked { Ok(()) } else { self.drop_finalizer(object, FOREGROUND).await }
    }

    /// Takes the object's references out of its dependents, then lets it go.
    async fn orphan_dependents(&self, object: &Object) -> Result<(), Error> {
        let dependents = self.graph.lock().dependents(&object.meta.uid);
        let owner = [&object.meta.uid];
        let releases = dependents.iter().map(|dependent| self.drop_references(dependent, &owner).boxed());
        for outcome in in_parallel(releases).await {
            outcome?;
        }
        self.drop_finalizer(object, ORPHAN).await
    }

    async fn unblock(&self, dependent: &Object, owner: &Object) -> Result<(), Error> {
        self.change_references(dependent, |references| {
            for reference in references.iter_mut().filter(|it| it["uid"] == json!(owner.meta.uid)) {
                reference["blockOwnerDeletion"] = json!(false);
            }
        })
        .await
    }

    async fn drop_references(&self, object: &Object, owners: &[&Uid]) -> Result<(), Error> {
        self.change_references(object, |references| {
            references.retain(|it| !owners.iter().any(|owner| it["uid"] == json!(owner)));
        })
        .await
    }

    /// Changes the references as they are at the API; those of other owners keep every field.
    async fn change_references(
        &self,
        object: &Object,
        change: impl FnOnce(&mut Vec<serde_json::Value>),
    ) -> Result<(), Error> {
        let target = target_of(object);
        let bytes = match self.context.client.get(&target).await {
            Err(error) if error.is_not_found() => return Ok(()),
            outcome => outcome?,
        };
        let live: serde_json::Value = decode(&bytes)?;
        if live["metadata"]["uid"] != json!(object.meta.uid) {
            return Ok(());
        }
        let before = live["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let mut references = before.clone();
        change(&mut references);
        if references == before {
            return Ok(());
        }
        let patch = json!({ "metadata": {
            "uid": object.meta.uid,
            "resourceVersion": live["metadata"]["resourceVersion"],
            "ownerReferences": references,
        }});
        self.patch(&target, &patch).await
    }

    async fn drop_finalizer(&self, object: &Object, finalizer: &str) -> Result<(), Error> {
        let Some(live) = self.read_live(object).await? else { return Ok(()) };
        let mut finalizers = live.finalizers.clone();
        finalizers.retain(|it| it != finalizer);
        if finalizers == live.finalizers {
            return Ok(());
        }
        let patch = json!({ "metadata": {
            "uid": live.uid,
            "resourceVersion": live.resource_version,
            "finalizers": finalizers,
        }});
        self.patch(&target_of(object), &patch).await
    }

    async fn patch(&self, target: &Target, patch: &serde_json::Value) -> Result<(), Error> {
        let patch = Patch::Merge(patch.to_string().into());
        match self.context.client.patch(target, patch, &WriteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete(&self, object: &Object, live: &Meta, propagation: Propagation) -> Result<(), Error> {
        let options = DeleteOptions {
            uid: Some(live.uid.clone()),
            resource_version: Some(live.resource_version.clone()),
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        match self.context.client.delete(&target_of(object), &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The object as the API has it; `None` where it is gone, or another one has its name.
    async fn read_live(&self, object: &Object) -> Result<Option<Meta>, Error> {
        let namespace = Some(object.meta.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let found = self.read(&object.resource, namespace, &object.meta.name).await?;
        Ok(found.filter(|live| live.uid == object.meta.uid))
    }

    async fn read(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Meta>, Error> {
        match self.context.client.get(&Target::object(resource.clone(), namespace, name)).await {
            Ok(bytes) => Ok(Some(decode::<Partial>(&bytes)?.metadata)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn target_of(object: &Object) -> Target {
    let namespace = Some(object.meta.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    Target::object(object.resource.clone(), namespace, &object.meta.name)
}
