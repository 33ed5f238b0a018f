//! An API server in memory that keeps the rules a scheduler could break, and fails when told to.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod scenario;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use hawser_api::{
    Client, Error,
    client::{
        Binding, DeleteOptions, List, ListOptions, Patch, WatchEvent, WatchOptions, WatchStream, WriteOptions,
    },
    error::Reason,
    resource::Target,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What happens to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Refused, and not written.
    Refuse,
    /// The answer is lost before the write.
    LoseBefore,
    /// The answer is lost after the write.
    LoseAfter,
    /// No answer; the write comes a minute later, whatever became of its caller.
    Late,
    /// The client dies before the write, or after it: nothing of it is heard any more.
    DieBefore,
    DieAfter,
}

#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
    changed: Notify,
    pub(crate) bind_calls: AtomicUsize,
    /// Writes of bindings that have come late.
    pub(crate) late_writes: AtomicUsize,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By resource and key.
    objects: BTreeMap<(String, String), Value>,
    history: Vec<(u64, String, WatchEvent)>,
    /// For the bindings to come, in order; none after the last.
    faults: Vec<Fault>,
    /// Rules that were broken.
    broken: Vec<String>,
    /// Watches panic.
    watches_break: bool,
    /// How often watches were cut; the latest by a compaction of history.
    cuts: (u64, bool),
    /// Patches and deletions to refuse, from the next on.
    refused_writes: usize,
    /// For the writes of claims to come, as for bindings.
    claim_faults: Vec<Fault>,
    /// What somebody else binds just before the next patch of a pod.
    overtaking: Option<Binding>,
    /// The claim whose next write takes two minutes, and its answer is lost.
    slow_claim: Option<String>,
    /// Reads of claims that fail, from the next on.
    failing_reads: usize,
    /// The last states of what was deleted.
    deleted: Vec<Value>,
}

impl Fake {
    pub(crate) fn break_watches(&self) {
        self.state.lock().watches_break = true;
        self.changed.notify_waiters();
    }

    /// Ends all watches; with `compacted` they cannot go on where they were.
    pub(crate) fn cut_watches(&self, compacted: bool) {
        let mut state = self.state.lock();
        state.cuts = (state.cuts.0 + 1, compacted);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Refuses the next patches and deletions.
    pub(crate) fn refuse_writes(&self, count: usize) {
        self.state.lock().refused_writes = count;
    }

    pub(crate) fn deleted(&self) -> Vec<Value> {
        self.state.lock().deleted.clone()
    }

    pub(crate) fn put(&self, resource: &str, object: Value) {
        self.state.lock().put(resource, object);
        self.changed.notify_waiters();
    }

    pub(crate) fn remove(&self, resource: &str, key: &str) {
        let mut state = self.state.lock();
        if let Some(object) = state.objects.remove(&(resource.to_owned(), key.to_owned())) {
            state.version += 1;
            state.deleted.push(object.clone());
            let version = state.version;
            let event =
                WatchEvent::Deleted { object: encode(&object), resource_version: version.to_string() };
            state.history.push((version, resource.to_owned(), event));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Binds for somebody else than a scheduler.
    pub(crate) fn bind_now(&self, binding: &Binding) -> Result<(), Error> {
        let result = self.state.lock().bind(binding);
        self.changed.notify_waiters();
        result
    }

    /// Binds for somebody else, just before the next patch of a pod.
    pub(crate) fn overtake(&self, binding: Binding) {
        self.state.lock().overtaking = Some(binding);
    }

    fn bind_late(self: &Arc<Self>, binding: &Binding) {
        let (fake, binding) = (self.clone(), binding.clone());
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(60)).await;
            // Whoever sent it hears nothing.
            let _ = fake.bind_now(&binding);
            fake.late_writes.fetch_add(1, Ordering::Relaxed);
            fake.changed.notify_waiters();
        });
    }

    pub(crate) fn fail_next(&self, faults: &[Fault]) {
        self.state.lock().faults = faults.iter().rev().copied().collect();
    }

    /// The next write of the claim takes two minutes, whatever becomes of its caller; its answer is lost, and so many reads of
    /// claims fail.
    pub(crate) fn slow_down(&self, claim: &str, failing_reads: usize) {
        let mut state = self.state.lock();
        (state.slow_claim, state.failing_reads) = (Some(claim.to_owned()), failing_reads);
    }

    pub(crate) fn fail_next_claims(&self, faults: &[Fault]) {
        self.state.lock().claim_faults = faults.iter().rev().copied().collect();
    }

    /// What the controller of claims does: those that are gone use none, and what nobody uses is free.
    pub(crate) fn tidy_claims(&self) {
        let mut state = self.state.lock();
        let of = |state: &State, resource: &str| -> Vec<Value> {
            let all = state.objects.iter().filter(|((kind, _), _)| kind == resource);
            all.map(|(_, object)| object.clone()).collect()
        };
        let uids: Vec<Value> = of(&state, "pods").iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
        let before = state.version;
        for mut claim in of(&state, "resourceclaims") {
            let consumers = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
            let left: Vec<&Value> = consumers.iter().filter(|one| uids.contains(&one["uid"])).collect();
            if left.len() < consumers.len() {
                claim["status"] = match left.is_empty() {
                    true => json!({}),
                    false => json!({ "allocation": claim["status"]["allocation"], "reservedFor": left }),
                };
                state.put("resourceclaims", claim);
            }
        }
        // Whoever waits for a change calls this too.
        let is_changed = state.version != before;
        drop(state);
        if is_changed {
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock();
        state
            .objects
            .iter()
            .filter(|((kind, _), _)| kind == resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub(crate) fn broken(&self) -> Vec<String> {
        self.state.lock().broken.clone()
    }

    fn patch(&self, target: &Target, patch: &Value) -> Result<Bytes, Error> {
        let place = (target.resource.resource.to_string(), key(target));
        let mut state = self.state.lock();
        state.refuse_write()?;
        let fault = state.claim_fault(&place.0)?;
        let Some(mut object) = state.objects.get(&place).cloned() else {
            return Err(Error::not_found(&target.resource, &key(target)));
        };
        let expected = &patch["metadata"]["resourceVersion"];
        if expected.is_string() && *expected != object["metadata"]["resourceVersion"] {
            return Err(Error::conflict(&target.resource, &place.1, "it has changed"));
        }
        merge(&mut object, patch);
        state.put(&place.0, object);
        let object = state.objects[&place].clone();
        drop(state);
        if fault == Fault::LoseAfter {
            self.changed.notify_waiters();
            return Err(Error::timeout("told to lose the answer"));
        }
        self.changed.notify_waiters();
        Ok(encode(&object))
    }

    /// Waits until the objects of a kind are as wanted.
    pub(crate) async fn until(&self, resource: &str, wanted: impl Fn(&[Value]) -> bool) {
        let deadline = tokio::time::sleep(std::time::Duration::from_secs(3600));
        tokio::pin!(deadline);
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let all = self.all(resource);
            if wanted(&all) {
                return;
            }
            tokio::select! {
                () = notified => (),
                () = &mut deadline => panic!("never came to be: {all:#?}"),
            }
        }
    }
}

impl State {
    fn put(&mut self, resource: &str, mut object: Value) {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = (resource.to_owned(), key_of(&object));
        if resource == "resourceclaims" {
            self.check_devices(&object);
        }
        let bytes = encode(&object);
        let resource_version = version.to_string();
        let known = self.objects.insert(key, object).is_some();
        let event = if known {
            WatchEvent::Modified { object: bytes, resource_version }
        } else {
            WatchEvent::Added { object: bytes, resource_version }
        };
        self.history.push((version, resource.to_owned(), event));
    }

    /// No device is two claims'.
    fn check_devices(&mut self, claim: &Value) {
        let devices = |claim: &Value| -> Vec<String> {
            let results =
                claim["status"]["allocation"]["devices"]["results"].as_array().cloned().unwrap_or_default();
            results.iter().map(|one| format!("{}/{}", one["pool"], one["device"])).collect()
        };
        let others =
            self.objects.iter().filter(|((kind, key), _)| kind == "resourceclaims" && *key != key_of(claim));
        let own = devices(claim);
        let twice = others.flat_map(|(_, other)| devices(other)).find(|device| own.contains(device));
        if let Some(device) = twice {
            self.broken.push(format!("{device} was given to {} and to another", key_of(claim)));
        }
    }

    /// All claims of a pod are allocated, and its own.
    fn check_claims(&mut self, pod: &Value) {
        let mut used: Vec<&Value> = pod["spec"]["resourceClaims"].as_array().into_iter().flatten().collect();
        let is_provided = self.objects.iter().any(|((kind, _), class)| {
            kind == "deviceclasses" && class["spec"]["extendedResourceName"] == "example.com/gpu"
        });
        let asked = &pod["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"];
        if is_provided && asked.is_string() {
            used.push(&pod["status"]["extendedResourceClaimStatus"]);
        }
        for used in used {
            let key = format!("a/{}", used["resourceClaimName"].as_str().unwrap_or("that is not noted"));
            let claim =
                self.objects.get(&("resourceclaims".to_owned(), key.clone())).cloned().unwrap_or_default();
            let mut consumers = claim["status"]["reservedFor"].as_array().into_iter().flatten();
            let is_own = consumers.any(|consumer| consumer["uid"] == pod["metadata"]["uid"]);
            if !is_own || claim["status"]["allocation"].is_null() {
                self.broken.push(format!("{} was bound without its claim {key}: {claim}", key_of(pod)));
            }
        }
    }

    /// What happens to the next write of a claim.
    fn claim_fault(&mut self, resource: &str) -> Result<Fault, Error> {
        if resource != "resourceclaims" {
            return Ok(Fault::None);
        }
        match self.claim_faults.pop().unwrap_or(Fault::None) {
            Fault::Refuse => Err(Error::new(Reason::Forbidden, "told to refuse")),
            Fault::LoseBefore => Err(Error::unavailable("told to lose the answer")),
            fault => Ok(fault),
        }
    }

    fn refuse_write(&mut self) -> Result<(), Error> {
        if self.refused_writes == 0 {
            return Ok(());
        }
        self.refused_writes -= 1;
        Err(Error::unavailable("told to refuse"))
    }

    fn bind_or_fail(&mut self, binding: &Binding) -> Result<(), Error> {
        let fault = self.faults.pop().unwrap_or(Fault::None);
        match fault {
            Fault::Refuse => return Err(Error::new(Reason::Conflict, "told to refuse")),
            Fault::LoseBefore => return Err(Error::unavailable("told to lose the answer")),
            Fault::DieBefore => return Err(died()),
            Fault::None | Fault::LoseAfter | Fault::Late | Fault::DieAfter => (),
        }
        self.bind(binding)?;
        match fault {
            Fault::LoseAfter => Err(Error::timeout("told to lose the answer")),
            Fault::DieAfter => Err(died()),
            _ => Ok(()),
        }
    }

    fn bind(&mut self, binding: &Binding) -> Result<(), Error> {
        let key = ("pods".to_owned(), format!("{}/{}", binding.namespace, binding.pod));
        let Some(mut pod) = self.objects.get(&key).cloned() else {
            return Err(Error::new(Reason::NotFound, "no such pod"));
        };
        if pod["metadata"]["uid"] != binding.uid.as_str() {
            return Err(Error::new(Reason::Conflict, "another pod"));
        }
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            if node != binding.node {
                self.broken
                    .push(format!("{} was bound to {node} and again to {}", binding.pod, binding.node));
            }
            return Err(Error::new(Reason::Conflict, "already bound"));
        }
        let cpu = |pod: &Value| {
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"]
                .as_str()
                .map_or(0, |text| text.parse::<i64>().unwrap())
        };
        let used: i64 = self
            .objects
            .iter()
            .filter(|((kind, _), other)| kind == "pods" && other["spec"]["nodeName"] == binding.node.as_str())
            .map(|(_, other)| cpu(other))
            .sum();
        // A node that is lost can be bound to: its pods go with it.
        let node = self.objects.get(&("nodes".to_owned(), binding.node.clone()));
        let most =
            node.map(|node| node["status"]["allocatable"]["cpu"].as_str().unwrap().parse::<i64>().unwrap());
        if most.is_some_and(|most| used + cpu(&pod) > most) {
            self.broken.push(format!("{} was bound to {} over its capacity", binding.pod, binding.node));
        }
        self.check_claims(&pod);
        pod["spec"]["nodeName"] = binding.node.clone().into();
        self.put("pods", pod);
        Ok(())
    }
}

fn key_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    object["metadata"]["namespace"]
        .as_str()
        .map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

fn key(target: &Target) -> String {
    let name = target.name.clone().unwrap();
    target.namespace.as_ref().map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"))
}

fn encode(object: &Value) -> Bytes {
    object.to_string().into()
}

/// RFC 7386, but that conditions are merged by type.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    for (name, value) in fields {
        match (name.as_str(), value.as_array()) {
            ("conditions", Some(new)) => {
                let mut all = target[name].as_array().cloned().unwrap_or_default();
                for condition in new {
                    match all.iter_mut().find(|old| old["type"] == condition["type"]) {
                        Some(old) => merge(old, condition),
                        None => all.push(condition.clone()),
                    }
                }
                target[name] = all.into();
            }
            _ => merge(&mut target[name], value),
        }
    }
}

fn died() -> Error {
    Error::new(Reason::Unknown, "told to die")
}

/// The client that a scheduler gets.
pub(crate) struct Connection {
    fake: Arc<Fake>,
    /// The scheduler is to be killed: no call returns any more.
    pub(crate) dead: CancellationToken,
}

impl Connection {
    pub(crate) fn new(fake: &Arc<Fake>) -> Arc<Self> {
        Arc::new(Self { fake: fake.clone(), dead: CancellationToken::new() })
    }

    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending().await
        }
    }
}

#[async_trait]
impl Client for Connection {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        self.alive().await;
        let mut state = self.fake.state.lock();
        if target.resource.resource == "resourceclaims" && state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err(Error::unavailable("told to fail"));
        }
        let found = state.objects.get(&(target.resource.resource.to_string(), key(target)));
        found.map(encode).ok_or_else(|| Error::not_found(&target.resource, &key(target)))
    }

    async fn list(&self, target: &Target, _: &ListOptions) -> Result<List, Error> {
        self.alive().await;
        let state = self.fake.state.lock();
        let of_kind = state.objects.iter().filter(|((kind, _), _)| *kind == target.resource.resource);
        let items = of_kind.map(|(_, object)| encode(object)).collect();
        Ok(List { items, resource_version: state.version.to_string() })
    }

    async fn watch(&self, target: &Target, options: &WatchOptions) -> Result<WatchStream, Error> {
        let from: u64 = options.resource_version.parse().unwrap();
        let resource = target.resource.resource.to_string();
        let cuts = self.fake.state.lock().cuts.0;
        let events =
            stream::unfold((self.fake.clone(), from, resource), move |(fake, seen, resource)| async move {
                let at = fake.clone();
                loop {
                    let notified = at.changed.notified();
                    tokio::pin!(notified);
                    notified.as_mut().enable();
                    let next = {
                        let state = at.state.lock();
                        assert!(!state.watches_break, "told to break");
                        match state.cuts {
                            (now, _) if now == cuts => (),
                            // The stream ends by itself, or with its first error.
                            (_, false) => return None,
                            (_, true) => {
                                return Some((
                                    Err(Error::expired("told to compact")),
                                    (fake, u64::MAX, resource),
                                ));
                            }
                        }
                        let mut later = state
                            .history
                            .iter()
                            .filter(|(version, kind, _)| *version > seen && *kind == resource);
                        later.next().map(|(version, _, event)| (*version, event.clone()))
                    };
                    if let Some((version, event)) = next {
                        return Some((Ok(event), (fake, version, resource)));
                    }
                    notified.await;
                }
            });
        Ok(events.boxed())
    }

    async fn create(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        self.alive().await;
        let mut object: Value = serde_json::from_slice(&object).unwrap();
        let resource = target.resource.resource.to_string();
        let (fault, created) = {
            let mut state = self.fake.state.lock();
            let fault = state.claim_fault(&resource)?;
            if let Some(beginning) = object["metadata"]["generateName"].as_str() {
                let name = format!("{beginning}{}", state.version);
                object["metadata"]["uid"] = format!("uid-{name}").into();
                object["metadata"]["name"] = name.into();
            }
            let place = (resource, key_of(&object));
            if state.objects.contains_key(&place) {
                return Err(Error::already_exists(&target.resource, &place.1));
            }
            state.put(&place.0, object);
            (fault, encode(&state.objects[&place]))
        };
        self.fake.changed.notify_waiters();
        if fault == Fault::LoseAfter { Err(Error::timeout("told to lose the answer")) } else { Ok(created) }
    }

    async fn update(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        self.alive().await;
        let object: Value = serde_json::from_slice(&object).unwrap();
        let place = (target.resource.resource.to_string(), key_of(&object));
        {
            let mut state = self.fake.state.lock();
            let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
            let known = state.objects.get(&place);
            if known.is_none_or(|known| version(known) != version(&object)) {
                return Err(Error::conflict(&target.resource, &place.1, "it has changed"));
            }
            state.put(&place.0, object.clone());
        }
        self.fake.changed.notify_waiters();
        Ok(encode(&object))
    }

    async fn patch(&self, target: &Target, patch: Patch, _: &WriteOptions) -> Result<Bytes, Error> {
        let (Patch::Merge(patch) | Patch::StrategicMerge(patch)) = patch else {
            return Err(Error::internal("not used by the scheduler"));
        };
        self.alive().await;
        // Others may act while it is on its way.
        tokio::task::yield_now().await;
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        let overtaking = self.fake.state.lock().overtaking.take_if(|_| target.resource.resource == "pods");
        if let Some(binding) = overtaking {
            self.fake.bind_now(&binding)?;
        }
        let slow = {
            let slow_claim = &mut self.fake.state.lock().slow_claim;
            slow_claim.take_if(|claim| target.resource.resource == "resourceclaims" && *claim == key(target))
        };
        if slow.is_none() {
            return self.fake.patch(target, &patch);
        }
        let (fake, target) = (self.fake.clone(), target.clone());
        let write = tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_secs(120)).await;
            fake.patch(&target, &patch)
        });
        write.await.unwrap()?;
        Err(Error::timeout("told to lose the answer"))
    }

    async fn delete(&self, target: &Target, _: &DeleteOptions) -> Result<Bytes, Error> {
        self.alive().await;
        self.fake.state.lock().refuse_write()?;
        self.fake.remove(&target.resource.resource, &key(target));
        Ok(encode(&json!({})))
    }

    async fn bind(&self, bindings: &[Binding]) -> Vec<Result<(), Error>> {
        self.alive().await;
        self.fake.bind_calls.fetch_add(1, Ordering::Relaxed);
        let mut results = Vec::new();
        for binding in bindings {
            let is_late = self.fake.state.lock().faults.pop_if(|fault| *fault == Fault::Late).is_some();
            if is_late {
                self.fake.bind_late(binding);
                return std::future::pending().await;
            }
            let result = self.fake.state.lock().bind_or_fail(binding);
            // The rest of the batch was never sent.
            if result.as_ref().is_err_and(|error| error.reason() == Reason::Unknown) {
                self.dead.cancel();
                break;
            }
            results.push(result);
        }
        self.fake.changed.notify_waiters();
        self.alive().await;
        results
    }
}
