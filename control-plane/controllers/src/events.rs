//! Events that the controllers tell users: `kubectl describe` and `kubectl get events` show them.
//!
//! Telling never blocks and never fails a reconcile: events go through a bounded channel to one writer. The
//! same event again raises the count of the one that is there. Per object a burst of 25 is written, then one
//! every five minutes (upstream's spam filter). What is dropped, by the filter or by a full channel, is
//! counted and logged. Expiry is the API server's matter.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hawser_api::{Api, Client, Error, typed::Kind};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::meta::{MetaExt, now};

/// Room for the events of one large rollout; a full channel drops the newest, counted.
const WAITING_EVENTS: usize = 1024;
/// Events and objects remembered to count repetitions and to limit rates; the oldest are forgotten.
const REMEMBERED: usize = 4096;
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Tells events in the name of one component. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Told>,
    dropped: Arc<AtomicU64>,
}

/// The other end of every [`Recorder`]; [`Writer::run`] writes.
pub(crate) struct Writer {
    client: Arc<dyn Client>,
    receiver: mpsc::Receiver<Told>,
    memory: Memory,
    /// Nanoseconds in the name of the last event.
    last_stamp: i128,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Told {
    component: &'static str,
    severity: Severity,
    reason: &'static str,
    message: String,
    about: About,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct About {
    api_version: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
    uid: String,
}

/// A recorder and the writer behind it.
pub(crate) fn channel(client: Arc<dyn Client>) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
    let recorder = Recorder { component: "controllers", sender, dropped: Arc::default() };
    (recorder, Writer { client, receiver, memory: Memory::default(), last_stamp: 0 })
}

impl Recorder {
    pub(crate) fn of(&self, component: &'static str) -> Self {
        Self { component, ..self.clone() }
    }

    pub(crate) fn normal<K: Kind>(&self, about: &K, reason: &'static str, message: String) {
        self.tell(about, Severity::Normal, reason, message);
    }

    pub(crate) fn warning<K: Kind>(&self, about: &K, reason: &'static str, message: String) {
        self.tell(about, Severity::Warning, reason, message);
    }

    fn tell<K: Kind>(&self, about: &K, severity: Severity, reason: &'static str, message: String) {
        let about = About {
            api_version: K::API_VERSION,
            kind: K::KIND,
            namespace: about.namespace().to_owned(),
            name: about.name().to_owned(),
            uid: about.uid().to_owned(),
        };
        let told = Told { component: self.component, severity, reason, message, about };
        if self.sender.try_send(told).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                warn!(dropped, "events were dropped, the writer is behind");
            }
        }
    }
}

impl Writer {
    /// Writes events until `shutdown`, then those that wait already.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let told = tokio::select! {
                told = self.receiver.recv() => told,
                () = shutdown.cancelled() => {
                    self.receiver.close();
                    self.receiver.recv().await
                }
            };
            let Some(told) = told else { return };
            if let Err(error) = self.write(&told).await {
                debug!(reason = told.reason, about = %told.about.name, %error, "event not written");
            }
        }
    }

    async fn write(&mut self, told: &Told) -> Result<(), Error> {
        if !self.memory.admits(&told.about) {
            debug!(reason = told.reason, about = %told.about.name, "event left out, too many for this object");
            return Ok(());
        }
        let now = now();
        let namespace = if told.about.namespace.is_empty() { "default" } else { &told.about.namespace };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if let Some((name, count)) = self.memory.repeated(told) {
            let patch = json!({ "count": count, "lastTimestamp": Time(now) });
            match events.merge_patch(&name, &patch).await {
                Err(error) if error.is_not_found() => {}
                outcome => return outcome.map(|_| ()),
            }
        }
        // Two events of one object never share a name, whatever the clock's grain.
        self.last_stamp = now.as_nanosecond().max(self.last_stamp + 1);
        let event = first_of(told, namespace, now, self.last_stamp);
        events.create(&event).await?;
        self.memory.remember(told, event.name());
        Ok(())
    }
}

fn first_of(told: &Told, namespace: &str, now: Timestamp, stamp: i128) -> Event {
    let about = &told.about;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{stamp:x}", about.name)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(about.api_version.to_owned()),
            kind: Some(about.kind.to_owned()),
            namespace: Some(about.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(about.name.clone()),
            uid: Some(about.uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some(told.reason.to_owned()),
        message: Some(told.message.clone()),
        type_: Some(told.severity.as_str().to_owned()),
        source: Some(EventSource { component: Some(told.component.to_owned()), host: None }),
        reporting_component: Some(told.component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

/// What was told before. Both maps keep at most [`REMEMBERED`] entries.
#[derive(Default)]
struct Memory {
    written: Aged<Told, (String, i32)>,
    budgets: Aged<About, Budget>,
}

struct Budget {
    tokens: f64,
    at: Instant,
}

impl Memory {
    /// Takes one token of the object's budget, where there is one.
    fn admits(&mut self, about: &About) -> bool {
        let now = Instant::now();
        let budget = self.budgets.entry(about, || Budget { tokens: BURST, at: now });
        let gained = now.duration_since(budget.at).as_secs_f64() / REFILL.as_secs_f64();
        budget.tokens = (budget.tokens + gained).min(BURST);
        budget.at = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    /// Name and new count of the event that says the same, where one is known.
    fn repeated(&mut self, told: &Told) -> Option<(String, i32)> {
        let (name, count) = self.written.map.get_mut(told)?;
        *count = count.saturating_add(1);
        Some((name.clone(), *count))
    }

    fn remember(&mut self, told: &Told, name: &str) {
        *self.written.entry(told, || (String::new(), 0)) = (name.to_owned(), 1);
    }
}

/// A map that forgets its oldest entries.
struct Aged<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Aged<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Aged<K, V> {
    fn entry(&mut self, key: &K, new: impl FnOnce() -> V) -> &mut V {
        if !self.map.contains_key(key) {
            if self.order.len() >= REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.map.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        self.map.entry(key.clone()).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Node};

    use super::*;
    use crate::testing::FakeApi;

    fn about(name: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    /// Lets `tell` record, then everything be written.
    async fn written(tell: impl FnOnce(&Recorder)) -> Vec<Event> {
        let api = FakeApi::new();
        let (recorder, writer) = channel(api.clone());
        let recorder = recorder.of("test-controller");
        let end = CancellationToken::new();
        let writer = tokio::spawn(writer.run(end.clone()));
        tell(&recorder);
        end.cancel();
        drop(recorder);
        writer.await.unwrap();
        api.all()
    }

    #[tokio::test(start_paused = true)]
    async fn same_event_again_raises_the_count() {
        let events = written(|recorder| {
            for _ in 0..3 {
                recorder.normal(&about("a"), "Scaled", "up".to_owned());
            }
            recorder.normal(&about("a"), "Scaled", "down".to_owned());
            recorder.normal(&about("b"), "Scaled", "up".to_owned());
        })
        .await;
        let mut counts: Vec<_> = events
            .iter()
            .map(|it| {
                (it.involved_object.name.clone().unwrap(), it.message.clone().unwrap(), it.count.unwrap())
            })
            .collect();
        counts.sort();
        let row = |name: &str, message: &str, count| (name.to_owned(), message.to_owned(), count);
        assert_eq!(counts, [row("a", "down", 1), row("a", "up", 3), row("b", "up", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_object_gets_a_burst_and_no_more() {
        let events = written(|recorder| {
            for number in 0..100 {
                recorder.warning(&about("noisy"), "Failed", number.to_string());
            }
            recorder.warning(&about("quiet"), "Failed", "once".to_owned());
        })
        .await;
        assert_eq!(events.len(), 26);
    }

    #[tokio::test(start_paused = true)]
    async fn full_channel_drops_events_and_blocks_nobody() {
        let events = written(|recorder| {
            for number in 0..WAITING_EVENTS * 2 {
                recorder.normal(&about(&number.to_string()), "Scaled", String::new());
            }
        })
        .await;
        assert_eq!(events.len(), WAITING_EVENTS);
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_cluster_wide_objects_are_in_the_default_namespace() {
        let mut node = Node::default();
        node.metadata.name = Some("n1".to_owned());
        let events = written(|recorder| recorder.normal(&node, "NodeNotReady", "silent".to_owned())).await;
        assert_eq!(events[0].namespace(), "default");
        assert_eq!(events[0].involved_object.namespace, None);
    }
}
