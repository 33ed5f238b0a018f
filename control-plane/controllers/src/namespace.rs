//! Namespace deletion: empties a namespace that is to go, then lets it go.
//!
//! Deletes the content of every namespaced kind in the table of kinds, pods first and the rest when they are gone
//! (KEP-5080), waits for what takes its time (pods stop gracefully, finalizers run), tells in conditions what is left, and takes the finalizer `kubernetes`
//! away once two things hold: every kind was listed without error, and nothing was there. Admission keeps new
//! content out meanwhile, so what is empty stays empty.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;
use hawser_api::{
    Api, Error,
    client::{DeleteOptions, ListOptions, Propagation, WriteOptions},
    kinds::{KINDS, Kind},
    resource::{ObjectKey, Target},
    typed::{decode, encode},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, NamespaceCondition},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    Context, Starts,
    meta::{MetaExt, elapsed, now},
    queue::Queue,
    worker::{Next, Reconciler, in_parallel},
};

const FINALIZER: &str = "kubernetes";
/// How soon to look again at what takes its time; a pod that is gone brings the namespace back at once.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// And at what is stuck: a look lists every kind, and namespaces may be stuck by the hundred.
const LOOK_LAST: Duration = Duration::from_secs(15);

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("namespace") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if change.new.is_some_and(|namespace| namespace.is_deleting()) {
            changed.add(change.key.clone());
        }
    });
    // Weak: the caches, which own this handler, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| {
        let (None, Some(context)) = (change.new, weak.upgrade()) else { return };
        let key = ObjectKey::new("", change.key.namespace.as_str());
        if context.caches.namespaces.get(&key).is_some_and(|namespace| namespace.is_deleting()) {
            changed.add(key);
        }
    });
    let workers = context.config.workers;
    starts.add(Controller { context }, queue, workers);
}

/// A quarter of the time that the deletion takes already, within bounds.
fn look_again(namespace: &Namespace, now: Timestamp) -> Duration {
    let since = namespace.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    (elapsed(since, now) / 4).clamp(LOOK_AGAIN, LOOK_LAST)
}

/// The kinds whose objects live in namespaces and can be listed and deleted.
fn namespaced_kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| {
        kind.namespaced
            && kind.storage.is_some()
            && !kind.is_view()
            && kind.has_verb("list")
            && kind.has_verb("delete")
    })
}

struct Controller {
    context: Arc<Context>,
}

/// As much of any object as deleting it needs.
#[derive(Deserialize)]
struct Partial {
    metadata: ObjectMeta,
}

/// What a sweep over all kinds left behind.
#[derive(Default)]
struct Left {
    /// Objects of each kind, by qualified plural.
    objects: BTreeMap<String, usize>,
    /// Objects that each finalizer holds.
    finalizers: BTreeMap<String, usize>,
    /// What could not be listed or deleted.
    errors: Vec<String>,
}

impl Left {
    fn is_nothing(&self) -> bool {
        self.objects.is_empty() && self.errors.is_empty()
    }
}

type Swept = Result<(Vec<ObjectMeta>, Vec<String>), Error>;

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "namespace";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(namespace) = self.context.caches.namespaces.get(key) else { return Ok(Next::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !namespace.is_deleting() || !finalizers.iter().any(|it| it == FINALIZER) {
            return Ok(Next::Done);
        }
        // A pod keeps what it works with, its policies and secrets above all, until it has ended.
        let (pods, others): (Vec<_>, Vec<_>) = namespaced_kinds().partition(|kind| kind.plural == "pods");
        let mut left = self.clear(&key.name, &pods).await;
        if left.is_nothing() {
            left = self.clear(&key.name, &others).await;
        }
        let namespace = self.tell(&namespace, &left).await?;
        if !left.is_nothing() {
            return Ok(Next::After(look_again(&namespace, now())));
        }
        self.finalize(namespace).await?;
        Ok(Next::Done)
    }
}

impl Controller {
    /// Asks all content of some kinds to go, and returns what did not go at once.
    async fn clear(&self, namespace: &str, kinds: &[&'static Kind]) -> Left {
        let first = self.sweep(namespace, kinds).await;
        if first.is_nothing() { first } else { self.sweep(namespace, kinds).await }
    }

    /// Asks all content to go that was not asked yet, and returns what was there.
    async fn sweep(&self, namespace: &str, kinds: &[&'static Kind]) -> Left {
        let mut left = Left::default();
        let sweeps = kinds.iter().map(|kind| self.sweep_kind(namespace, kind).boxed());
        for (kind, outcome) in in_parallel(sweeps).await {
            match outcome {
                Ok((objects, errors)) => {
                    if !objects.is_empty() {
                        left.objects.insert(kind.qualified(), objects.len());
                    }
                    for finalizer in objects.iter().flat_map(|object| object.finalizers.iter().flatten()) {
                        *left.finalizers.entry(finalizer.clone()).or_default() += 1;
                    }
                    left.errors.extend(errors);
                }
                Err(error) => left.errors.push(format!("{}: {error}", kind.qualified())),
            }
        }
        left.errors.sort();
        left
    }

    async fn sweep_kind(&self, namespace: &str, kind: &'static Kind) -> (&'static Kind, Swept) {
        (kind, self.delete_all(namespace, kind).await)
    }

    /// The objects that were there, and what could not be deleted.
    async fn delete_all(&self, namespace: &str, kind: &'static Kind) -> Swept {
        let resource = kind.resource(kind.versions[0].name);
        let collection = Target::collection(resource.clone(), Some(namespace));
        let list = self.context.client.list(&collection, &ListOptions::default()).await?;
        let found = list.items.iter().map(decode::<Partial>).collect::<Result<Vec<_>, _>>()?;
        let objects: Vec<ObjectMeta> = found.into_iter().map(|partial| partial.metadata).collect();
        let fresh = objects.iter().filter(|object| object.deletion_timestamp.is_none());
        let requests = fresh.map(|object| {
            let name = object.name.as_deref().unwrap_or_default();
            let target = Target::object(resource.clone(), Some(namespace), name);
            let options = DeleteOptions {
                uid: object.uid.clone(),
                propagation: Some(Propagation::Background),
                ..DeleteOptions::default()
            };
            async move { self.context.client.delete(&target, &options).await }.boxed()
        });
        let outcomes: Vec<Result<_, Error>> = in_parallel(requests).await;
        let errors = outcomes.into_iter().filter_map(Result::err);
        let errors = errors.filter(|error| !error.is_not_found() && !error.is_conflict());
        Ok((objects, errors.map(|error| format!("{}: {error}", kind.qualified())).collect()))
    }

    /// Writes the conditions, where they say something new.
    async fn tell(&self, namespace: &Namespace, left: &Left) -> Result<Namespace, Error> {
        let before =
            namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let conditions = conditions(left, &before, now());
        if conditions == before {
            return Ok(namespace.clone());
        }
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        let patch = json!({
            "metadata": { "uid": namespace.uid(), "resourceVersion": namespace.resource_version() },
            "status": { "conditions": conditions },
        });
        api.merge_patch_status(namespace.name(), &patch).await
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), Error> {
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|it| it != FINALIZER);
        }
        let target =
            Target::object(hawser_api::GroupVersionResource::of::<Namespace>(), None, namespace.name());
        let target = target.with_subresource("finalize");
        let body = encode(&namespace)?;
        match self.context.client.update(&target, body, &WriteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The five conditions that upstream writes, with its reasons; times move only with the status.
fn conditions(left: &Left, before: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let remaining = left.objects.iter().map(|(kind, count)| format!("{kind} has {count} resource instances"));
    let held = left.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let (remaining, held) = (remaining.collect::<Vec<_>>(), held.collect::<Vec<_>>());
    let rows = [
        row(
            "NamespaceDeletionDiscoveryFailure",
            None,
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        row(
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        row(
            "NamespaceDeletionContentFailure",
            (!left.errors.is_empty()).then(|| {
                let text = left.errors.join(", ");
                ("ContentDeletionFailed", format!("Failed to delete all resource types: {text}"))
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        row(
            "NamespaceContentRemaining",
            (!remaining.is_empty()).then(|| {
                let text = remaining.join(", ");
                ("SomeResourcesRemain", format!("Some resources are remaining: {text}"))
            }),
            ("ContentRemoved", "All content successfully removed"),
        ),
        row(
            "NamespaceFinalizersRemaining",
            (!held.is_empty()).then(|| {
                let text = held.join(", ");
                let message = format!("Some content in the namespace has finalizers remaining: {text}");
                ("SomeFinalizersRemain", message)
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let stamped = rows.into_iter().map(|mut condition| {
        let known =
            before.iter().find(|known| known.type_ == condition.type_ && known.status == condition.status);
        condition.last_transition_time =
            known.map_or_else(|| Some(Time(now)), |known| known.last_transition_time.clone());
        condition
    });
    stamped.collect()
}

fn row(kind: &str, trouble: Option<(&str, String)>, fine: (&str, &str)) -> NamespaceCondition {
    let status = if trouble.is_some() { "True" } else { "False" };
    let (reason, message) = trouble.unwrap_or_else(|| (fine.0, fine.1.to_owned()));
    NamespaceCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Pod},
    };

    use super::*;
    use crate::testing::{FakeApi, Running, deployment, run_nodes};

    fn namespace(name: &str) -> serde_json::Value {
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
    }

    #[test]
    fn what_is_stuck_is_looked_at_less_often() {
        let deleted: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut namespace = Namespace::default();
        namespace.metadata.deletion_timestamp = Some(Time(deleted));
        let wait = |seconds| look_again(&namespace, deleted + Duration::from_secs(seconds)).as_secs();
        assert_eq!([wait(0), wait(3), wait(20), wait(3600)], [2, 2, 5, 15]);
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_namespace_empties_and_goes_others_stay() {
        let api = FakeApi::new();
        let _nodes = tokio::spawn(run_nodes(api.clone()));
        let _running = Running::start(&api, &["namespace", "deployment", "replicaset", "serviceaccount"]);
        api.put::<Namespace>(namespace("default"));
        api.put::<Namespace>(namespace("kept"));
        for name in ["default", "kept"] {
            api.put::<ConfigMap>(json!({ "metadata": { "name": "settings", "namespace": name } }));
        }
        api.put::<Deployment>(deployment("web", 3, "a"));
        api.until("pods run", |api| {
            api.all::<Pod>().iter().filter(|pod| crate::meta::pod_is_ready(pod)).count() == 3
        })
        .await;
        api.remove::<Namespace>("", "default", &DeleteOptions::default());
        api.until("it is gone", |api| api.read::<Namespace>("", "default").is_none()).await;
        assert!(api.objects().keys().all(|key| key.1 != "default" || key.0 == "events"));
        assert_eq!(api.all::<ReplicaSet>().len(), 0);
        assert!(api.read::<ConfigMap>("kept", "settings").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_go_before_what_they_work_with() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["namespace"]);
        api.put::<Namespace>(namespace("ordered"));
        api.put::<ConfigMap>(json!({ "metadata": { "name": "settings", "namespace": "ordered" } }));
        api.put::<Pod>(json!({
            "metadata": { "name": "ending", "namespace": "ordered" },
            "spec": { "nodeName": "node", "containers": [{ "name": "main", "image": "none" }] },
        }));
        api.remove::<Namespace>("", "ordered", &DeleteOptions::default());
        api.until("the conditions tell of the pod", |api| {
            let conditions = api.read::<Namespace>("", "ordered").and_then(|it| it.status?.conditions);
            conditions.into_iter().flatten().any(|it| {
                it.type_ == "NamespaceContentRemaining"
                    && it.message.as_deref()
                        == Some("Some resources are remaining: pods has 1 resource instances")
            })
        })
        .await;
        let settings = api.read::<ConfigMap>("ordered", "settings").expect("it waits for the pod");
        assert_eq!(settings.metadata.deletion_timestamp, None);
        // As its node does when it has ended.
        let ended = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        api.remove::<Pod>("ordered", "ending", &ended);
        api.until("it is gone", |api| api.read::<Namespace>("", "ordered").is_none()).await;
        assert!(api.read::<ConfigMap>("ordered", "settings").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn finalizers_hold_the_namespace_and_are_told() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["namespace"]);
        api.put::<Namespace>(namespace("held"));
        api.put::<ConfigMap>(json!({ "metadata": {
            "name": "precious", "namespace": "held", "finalizers": ["example.com/keep"],
        }}));
        api.remove::<Namespace>("", "held", &DeleteOptions::default());
        let message = |api: &FakeApi, kind: &str| {
            let conditions = api.read::<Namespace>("", "held")?.status?.conditions?;
            let found = conditions.into_iter().find(|it| it.type_ == kind && it.status == "True")?;
            found.message
        };
        api.until("the conditions tell what is left", |api| {
            message(api, "NamespaceFinalizersRemaining").is_some()
        })
        .await;
        assert_eq!(
            message(&api, "NamespaceContentRemaining").as_deref(),
            Some("Some resources are remaining: configmaps has 1 resource instances")
        );
        api.patch::<ConfigMap>("held", "precious", json!({ "metadata": { "finalizers": null } }));
        api.until("it is gone", |api| api.read::<Namespace>("", "held").is_none()).await;
    }
}
