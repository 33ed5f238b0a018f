//! The client over the fake store: watches, faults, and a look at every write.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use hawser_api::{
    Client, Error,
    client::{
        Binding, DeleteOptions, List, ListOptions, Patch, WatchEvent, WatchOptions, WatchStream, WriteOptions,
    },
    resource::{GroupVersionResource, Target},
    typed::Kind,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::store::{Event, Key, Objects, Store, What, matches, unavailable};

const REVIEW: &str = "SubjectAccessReview";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// It fails and changes nothing.
    Fails,
    /// It takes effect, but the answer is lost.
    AnswerLost,
}

type FaultHook = Box<dyn FnMut(&str, &Target) -> Fault + Send>;
type ReviewHook = Box<dyn Fn(&Value) -> bool + Send>;
/// Says what is wrong, if anything.
type WriteHook = Box<dyn Fn(&Objects) -> Result<(), String> + Send>;

pub(crate) struct FakeApi {
    store: Arc<Mutex<Store>>,
    /// Counts changes, so that watches and waits wake up.
    changed: watch::Sender<u64>,
    faults: Mutex<Option<FaultHook>>,
    on_write: Mutex<Option<WriteHook>>,
    /// Answers SubjectAccessReviews; without one they are stored like all else.
    on_review: Mutex<Option<ReviewHook>>,
    /// What the hook said first. Kept, because a panic in a controller's task would not end the test.
    violation: Mutex<Option<String>>,
    /// Resources whose watches are held back.
    held: Arc<Mutex<HashSet<String>>>,
}

impl FakeApi {
    pub(crate) fn new() -> Arc<Self> {
        crate::meta::now();
        Arc::new(Self {
            store: Arc::default(),
            changed: watch::Sender::new(0),
            faults: Mutex::default(),
            on_write: Mutex::default(),
            on_review: Mutex::default(),
            violation: Mutex::default(),
            held: Arc::default(),
        })
    }

    /// Asks `hook` about every write: the verb, and where it goes.
    pub(crate) fn fault(&self, hook: impl FnMut(&str, &Target) -> Fault + Send + 'static) {
        *self.faults.lock() = Some(Box::new(hook));
    }

    /// Shows all objects to `hook` after every write; what it finds wrong fails the next wait.
    pub(crate) fn check_writes(&self, hook: impl Fn(&Objects) -> Result<(), String> + Send + 'static) {
        *self.on_write.lock() = Some(Box::new(hook));
    }

    /// Asks `hook` whether what a SubjectAccessReview is about is allowed.
    pub(crate) fn allow(&self, hook: impl Fn(&Value) -> bool + Send + 'static) {
        *self.on_review.lock() = Some(Box::new(hook));
    }

    /// Watches of `resource` tell nothing new until [`FakeApi::release`].
    pub(crate) fn hold(&self, resource: &str) {
        self.held.lock().insert(resource.to_owned());
    }

    pub(crate) fn release(&self, resource: &str) {
        self.held.lock().remove(resource);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Writes as a user would.
    pub(crate) fn put<K: Kind>(&self, object: Value) -> K {
        let namespace = object["metadata"]["namespace"].as_str();
        let target = Target::collection(GroupVersionResource::of::<K>(), namespace);
        self.settle(|store| store.create(&target, object.clone()))
    }

    /// Puts what an API beside it shows, in place of what it showed before.
    pub(crate) fn show(&self, resource: &GroupVersionResource, object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let (namespace, name) = (text("namespace"), text("name").expect("a name"));
        let target = Target::object(resource.clone(), namespace.as_deref(), &name);
        self.settle::<Value>(|store| {
            if store.get(&target).is_ok() {
                store.delete(&target, &DeleteOptions::default())?;
            }
            store.create(&Target::collection(resource.clone(), namespace.as_deref()), object)
        });
    }

    pub(crate) fn patch<K: Kind>(&self, namespace: &str, name: &str, patch: Value) -> K {
        self.settle(|store| store.merge_patch(&target::<K>(namespace, name), &patch))
    }

    pub(crate) fn patch_status<K: Kind>(&self, namespace: &str, name: &str, patch: Value) -> K {
        let target = target::<K>(namespace, name).with_subresource("status");
        self.settle(|store| store.merge_patch(&target, &patch))
    }

    pub(crate) fn remove<K: Kind>(&self, namespace: &str, name: &str, options: &DeleteOptions) {
        self.settle::<Value>(|store| store.delete(&target::<K>(namespace, name), options));
    }

    fn settle<T: serde::de::DeserializeOwned>(
        &self,
        write: impl FnOnce(&mut Store) -> Result<Value, Error>,
    ) -> T {
        let object = write(&mut self.store.lock()).expect("a test's own write succeeds");
        self.wrote();
        serde_json::from_value(object).expect("the object is of its kind")
    }

    pub(crate) fn read<K: Kind>(&self, namespace: &str, name: &str) -> Option<K> {
        let object = self.store.lock().get(&target::<K>(namespace, name)).ok()?;
        Some(serde_json::from_value(object).expect("the object is of its kind"))
    }

    pub(crate) fn all<K: Kind>(&self) -> Vec<K> {
        let resource = GroupVersionResource::of::<K>();
        let store = self.store.lock();
        let found = store.objects.iter().filter(|(key, _)| matches(&resource, key));
        found.map(|(_, object)| serde_json::from_value(object.clone()).expect("of its kind")).collect()
    }

    pub(crate) fn objects(&self) -> Objects {
        self.store.lock().objects.clone()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.store.lock().revision
    }

    /// Waits until `condition` holds, for an hour of the paused clock.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let mut changed = self.changed.subscribe();
            let wait = async {
                while !condition(self) {
                    changed.changed().await.expect("the sender is in self");
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(3600), wait).await;
            if let Some(violation) = &*self.violation.lock() {
                panic!("{place}: while waiting until {what}: {violation}");
            }
            if in_time.is_err() {
                let objects: Vec<Value> = self.objects().into_values().collect();
                panic!("{place}: never saw that {what}; objects: {objects:#?}");
            }
        }
    }

    fn wrote(&self) {
        if let Some(hook) = &*self.on_write.lock()
            && let Err(wrong) = hook(&self.store.lock().objects)
        {
            self.violation.lock().get_or_insert(wrong);
        }
        self.changed.send_modify(|count| *count += 1);
    }

    fn write(
        &self,
        verb: &str,
        target: &Target,
        write: impl FnOnce(&mut Store) -> Result<Value, Error>,
    ) -> Result<Bytes, Error> {
        let fault = self.faults.lock().as_mut().map_or(Fault::None, |hook| hook(verb, target));
        if fault == Fault::Fails {
            return Err(unavailable());
        }
        let object = write(&mut self.store.lock())?;
        self.wrote();
        if fault == Fault::AnswerLost { Err(unavailable()) } else { Ok(object.to_string().into()) }
    }
}

fn target<K: Kind>(namespace: &str, name: &str) -> Target {
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
    Target::object(GroupVersionResource::of::<K>(), namespace, name)
}

fn selects(target: &Target, field_selector: &str, key: &Key) -> bool {
    let name = field_selector.strip_prefix("metadata.name=");
    matches(&target.resource, key)
        && target.namespace.as_ref().is_none_or(|namespace| *namespace == key.1)
        && name.is_none_or(|name| name == key.2)
}

#[async_trait]
impl Client for FakeApi {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        Ok(self.store.lock().read(target)?.to_string().into())
    }

    async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Error> {
        tokio::task::yield_now().await;
        let store = self.store.lock();
        let found = store.objects.iter().filter(|(key, _)| selects(target, &options.field_selector, key));
        let items = found.map(|(_, object)| object.to_string().into()).collect();
        Ok(List { items, resource_version: store.revision.to_string() })
    }

    async fn watch(&self, target: &Target, options: &WatchOptions) -> Result<WatchStream, Error> {
        let (target, selector) = (target.clone(), options.field_selector.clone());
        let from: u64 = options.resource_version.parse().map_err(Error::internal)?;
        let (store, held) = (self.store.clone(), self.held.clone());
        let changed = self.changed.subscribe();
        let next_after = move |revision: u64| {
            if held.lock().contains(&target.resource.qualified()) {
                return None;
            }
            let store = store.lock();
            let fits = |event: &&Event| event.revision > revision && selects(&target, &selector, &event.key);
            store.history.iter().find(fits).cloned()
        };
        let stream = futures::stream::unfold(from, move |revision| {
            let (next_after, mut changed) = (next_after.clone(), changed.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    if let Some(found) = next_after(revision) {
                        return Some((Ok(event(found.clone())), found.revision));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Ok(stream.boxed())
    }

    async fn create(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        let mut object: Value = serde_json::from_slice(&object).map_err(Error::internal)?;
        if let Some(hook) = self.on_review.lock().as_ref().filter(|_| object["kind"] == REVIEW) {
            object["status"]["allowed"] = hook(&object).into();
            return Ok(object.to_string().into());
        }
        self.write("create", target, |store| store.create(target, object))
    }

    async fn update(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        let object = serde_json::from_slice(&object).map_err(Error::internal)?;
        self.write("update", target, |store| store.update(target, object))
    }

    async fn patch(&self, target: &Target, patch: Patch, _: &WriteOptions) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        let Patch::Merge(patch) = patch else { return Err(Error::bad_request("only merge patches here")) };
        let patch: Value = serde_json::from_slice(&patch).map_err(Error::internal)?;
        self.write("patch", target, |store| store.merge_patch(target, &patch))
    }

    async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Bytes, Error> {
        tokio::task::yield_now().await;
        self.write("delete", target, |store| store.delete(target, options))
    }

    async fn bind(&self, _: &[Binding]) -> Vec<Result<(), Error>> {
        Vec::new()
    }
}

fn event(Event { what, object, revision, .. }: Event) -> WatchEvent {
    let (object, resource_version) = (object.to_string().into(), revision.to_string());
    match what {
        What::Added => WatchEvent::Added { object, resource_version },
        What::Modified => WatchEvent::Modified { object, resource_version },
        What::Deleted => WatchEvent::Deleted { object, resource_version },
    }
}
