//! The kubelet's events: core/v1 Events, repeated ones counted, the rate bounded as client-go bounds it.
//!
//! Callers never wait: [`Recorder::event`] puts the event into a bounded queue, and one task writes them. A
//! full queue or an object over its rate (25 at once, then one in five minutes) drops events and counts them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hawser_api::Api;
use hawser_api::client::Client;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::pod::DesiredPod;
use crate::pod::status::time;
use crate::rate::{Limiter, Rate};

/// Events waiting to be written; more than a node with 110 pods makes while the API is away for a moment.
const QUEUE: usize = 1024;
/// Distinct events whose counts are remembered; beyond it all are forgotten and count from one again.
const REMEMBERED: usize = 4096;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Status of an API server that cannot be reached, or cannot serve.
const UNAVAILABLE: u16 = 503;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub object: ObjectReference,
    pub event_type: EventType,
    pub reason: Cow<'static, str>,
    pub message: String,
    pub at: Timestamp,
    /// Who says it.
    pub component: &'static str,
    pub told_by: ToldBy,
}

/// Who else says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldBy {
    /// This node alone.
    ThisNode,
    /// Every node that sees the object. The event's name follows from what it says, so there is one of it however
    /// many nodes tell it.
    EveryNode,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<NewEvent>,
    dropped: Arc<AtomicU64>,
    component: &'static str,
}

const KUBELET: &str = "kubelet";

impl Recorder {
    /// The recorder, and the end that [`write_events`] reads.
    pub fn new() -> (Self, mpsc::Receiver<NewEvent>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue, dropped: Arc::default(), component: KUBELET }, receiver)
    }

    /// The same queue and bounds, in the name of another part of the agent.
    pub fn of(&self, component: &'static str) -> Self {
        Self { component, ..self.clone() }
    }

    /// About a pod as a whole.
    pub fn pod(
        &self,
        pod: &DesiredPod,
        event_type: EventType,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        self.event(pod_reference(pod, None), event_type, reason, message.into());
    }

    /// About one container of a pod.
    pub fn container(
        &self,
        pod: &DesiredPod,
        container: &str,
        event_type: EventType,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        let list = match pod.container(container).map(|c| c.kind) {
            Some(crate::pod::ContainerKind::Init | crate::pod::ContainerKind::Sidecar) => "initContainers",
            Some(crate::pod::ContainerKind::Ephemeral) => "ephemeralContainers",
            _ => "containers",
        };
        let field_path = format!("spec.{list}{{{container}}}");
        self.event(pod_reference(pod, Some(field_path)), event_type, reason, message.into());
    }

    pub fn event(
        &self,
        object: ObjectReference,
        event_type: EventType,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        self.queue(object, event_type, reason, message, ToldBy::ThisNode);
    }

    /// About an object that all nodes see and judge alike.
    pub fn shared_event(
        &self,
        object: ObjectReference,
        event_type: EventType,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        self.queue(object, event_type, reason, message, ToldBy::EveryNode);
    }

    fn queue(
        &self,
        object: ObjectReference,
        event_type: EventType,
        reason: impl Into<Cow<'static, str>>,
        message: String,
        told_by: ToldBy,
    ) {
        let (at, component) = (Timestamp::now(), self.component);
        let reason = reason.into();
        let event = NewEvent { object, event_type, reason, message, at, component, told_by };
        if self.queue.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that the queue had no room for.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The node, as events about it name it.
pub fn node_reference(node_name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node_name.to_owned()),
        // Upstream's kubelet has always put the name here.
        uid: Some(node_name.to_owned()),
        ..ObjectReference::default()
    }
}

fn pod_reference(pod: &DesiredPod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace().to_owned()),
        name: Some(pod.name().to_owned()),
        uid: Some(pod.uid().to_owned()),
        resource_version: pod.object.metadata.resource_version.clone(),
        field_path,
    }
}

/// What is known of an event that was written before.
struct Known {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Decides for each event whether it is new, a repetition, or too much. Pure but for the clock it is given.
#[derive(Default)]
struct Correlator {
    known: HashMap<String, Known>,
    buckets: HashMap<String, Bucket>,
}

enum Fate {
    Create(Box<Event>, String),
    Repeat { name: String, count: i32 },
    Drop,
}

impl Correlator {
    fn take(&mut self, node: &str, event: &NewEvent, now: Instant) -> Fate {
        if self.known.len() > REMEMBERED {
            self.known.clear();
            self.buckets.clear();
        }
        let uid = event.object.uid.clone().unwrap_or_default();
        let bucket = self.buckets.entry(uid).or_insert(Bucket { tokens: BURST, at: now });
        bucket.tokens = (bucket.tokens + (now - bucket.at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Fate::Drop;
        }
        bucket.tokens -= 1.0;
        let key = key_of(event);
        if let Some(known) = self.known.get_mut(&key) {
            known.count += 1;
            return Fate::Repeat { name: known.name.clone(), count: known.count };
        }
        let unique = match event.told_by {
            ToldBy::ThisNode => event.at.as_nanosecond() as u64 ^ (self.known.len() as u64),
            ToldBy::EveryNode => fnv(&key),
        };
        let name = format!("{}.{unique:016x}", event.object.name.as_deref().unwrap_or("node"));
        self.known.insert(key.clone(), Known { name: name.clone(), count: 1 });
        Fate::Create(Box::new(new_object(node, event, name)), key)
    }
}

fn key_of(event: &NewEvent) -> String {
    let object = &event.object;
    format!(
        "{}|{}|{:?}|{}|{}",
        object.uid.as_deref().unwrap_or_default(),
        object.field_path.as_deref().unwrap_or_default(),
        event.event_type,
        event.reason,
        event.message
    )
}

/// FNV-1a: the same on every node, whatever it was built with.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn new_object(node: &str, event: &NewEvent, name: String) -> Event {
    let namespace = event.object.namespace.clone().unwrap_or_else(|| "default".into());
    Event {
        metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: event.object.clone(),
        type_: Some(event.event_type.as_str().into()),
        reason: Some(event.reason.to_string()),
        message: Some(event.message.clone()),
        count: Some(1),
        first_timestamp: Some(time(event.at)),
        last_timestamp: Some(time(event.at)),
        source: Some(EventSource { component: Some(event.component.into()), host: Some(node.to_owned()) }),
        reporting_component: Some(event.component.into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

/// Writes events until the token is cancelled. While the API is away they wait; one that it answers with an error of its
/// own is given up after three tries.
pub async fn write_events(
    mut queue: mpsc::Receiver<NewEvent>,
    client: Arc<dyn Client>,
    node: String,
    rate: Rate,
    shutdown: CancellationToken,
) {
    let limiter = Limiter::new(rate);
    let mut correlator = Correlator::default();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = queue.recv() => match event {
                Some(event) => event,
                None => return,
            },
        };
        let fate = correlator.take(&node, &event, Instant::now());
        let namespace = event.object.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let writing = async {
            if !matches!(fate, Fate::Drop) {
                limiter.turn().await;
            }
            write(&api, &mut correlator, &event, fate, &node).await
        };
        let written = tokio::select! {
            () = shutdown.cancelled() => return,
            written = writing => written,
        };
        if let Err(error) = written {
            warn!(reason = %event.reason, %error, "event was not written");
        }
    }
}

async fn write(
    api: &Api<Event>,
    correlator: &mut Correlator,
    event: &NewEvent,
    fate: Fate,
    node: &str,
) -> Result<(), hawser_api::Error> {
    match fate {
        Fate::Drop => {
            debug!(reason = %event.reason, "event over the rate of its object");
            Ok(())
        }
        Fate::Create(object, key) => {
            let written = create(api, &object).await;
            if written.is_err() {
                correlator.known.remove(&key);
            }
            written
        }
        Fate::Repeat { name, count } => {
            let patch = json!({ "count": count, "lastTimestamp": time(event.at) });
            match patiently(|| api.merge_patch(&name, &patch)).await {
                // The first one has expired: it begins anew.
                Err(error) if error.is_not_found() => {
                    correlator.known.insert(key_of(event), Known { name: name.clone(), count: 1 });
                    create(api, &new_object(node, event, name)).await
                }
                other => other.map(drop),
            }
        }
    }
}

async fn create(api: &Api<Event>, event: &Event) -> Result<(), hawser_api::Error> {
    match patiently(|| api.create(event)).await {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Repeats a call until there is an API that answers it.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, hawser_api::Error>
where
    F: Future<Output = Result<T, hawser_api::Error>>,
{
    let (mut away, mut failures) = (FIRST_RETRY, 0);
    loop {
        match call().await {
            Err(error) if error.code() == UNAVAILABLE => {
                tokio::time::sleep(away).await;
                away = (away * 2).min(LAST_RETRY);
            }
            Err(error) if error.code() >= 500 && failures < 2 => {
                failures += 1;
                tokio::time::sleep(FIRST_RETRY * failures).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> NewEvent {
        NewEvent {
            object: ObjectReference {
                name: Some("web".into()),
                namespace: Some("default".into()),
                uid: Some("1".into()),
                ..ObjectReference::default()
            },
            event_type: EventType::Normal,
            reason: "Pulled".into(),
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
            component: KUBELET,
            told_by: ToldBy::ThisNode,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_every_node_says_is_one_event() {
        let name = |node: &str, told_by: ToldBy, nanosecond: i32| {
            let at = Timestamp::new(1, nanosecond).unwrap();
            let event = NewEvent { told_by, at, ..event("port 1 is not served") };
            match Correlator::default().take(node, &event, Instant::now()) {
                Fate::Create(event, _) => event.metadata.name.unwrap(),
                _ => panic!("it is new"),
            }
        };
        assert_eq!(name("n1", ToldBy::EveryNode, 1), name("n2", ToldBy::EveryNode, 2));
        assert_ne!(name("n1", ToldBy::ThisNode, 1), name("n2", ToldBy::ThisNode, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_events_are_counted() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        assert!(matches!(correlator.take("n1", &event("a"), now), Fate::Create(..)));
        assert!(matches!(correlator.take("n1", &event("a"), now), Fate::Repeat { count: 2, .. }));
        assert!(matches!(correlator.take("n1", &event("b"), now), Fate::Create(..)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_says_too_much_is_cut_off() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        for n in 0..25 {
            assert!(!matches!(correlator.take("n1", &event(&n.to_string()), now), Fate::Drop));
        }
        assert!(matches!(correlator.take("n1", &event("more"), now), Fate::Drop));
        let later = now + Duration::from_secs(301);
        assert!(matches!(correlator.take("n1", &event("more"), later), Fate::Create(..)));
    }
}
