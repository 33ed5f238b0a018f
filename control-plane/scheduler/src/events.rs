//! Events about pods, as `kubectl describe` and `kubectl get events` show them.
//!
//! Written by one task behind a bounded channel: events are news, not state, so when the API server is slow the
//! ones that do not fit are dropped, counted and logged. The same news about the same pod raises the count of the
//! event that is there.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, stream};
use hawser_api::{
    Client, Error,
    client::{Patch, WriteOptions},
    resource::{GroupVersionResource, Target},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::Config;

/// About a second of a full scheduler's work.
const WAITING: usize = 4096;
/// Writes at the same time.
const CONCURRENT: usize = 8;
/// Events remembered to be counted up; a forgotten one is written anew.
const REMEMBERED: usize = 4096;
/// Room for the suffix in a name of 253 bytes.
const LONGEST_PREFIX: usize = 236;

const EVENTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "events");

/// Type, reason and action of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EventKind {
    kind: &'static str,
    reason: &'static str,
    action: &'static str,
}

pub(crate) const SCHEDULED: EventKind = EventKind { kind: "Normal", reason: "Scheduled", action: "Binding" };
pub(crate) const FAILED_SCHEDULING: EventKind =
    EventKind { kind: "Warning", reason: "FailedScheduling", action: "Scheduling" };
pub(crate) const PREEMPTED: EventKind =
    EventKind { kind: "Normal", reason: "Preempted", action: "Preempting" };
/// The pod was placed, but not by all that it asks for.
pub(crate) const NOT_CONSIDERED: EventKind =
    EventKind { kind: "Warning", reason: "ConstraintsNotConsidered", action: "Scheduling" };

struct News {
    namespace: String,
    pod: String,
    uid: String,
    event: EventKind,
    message: String,
    at: Timestamp,
}

/// Takes events without waiting. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<News>,
    dropped: Arc<AtomicU64>,
}

/// Writes what the recorder took.
pub(crate) struct Writer {
    receiver: mpsc::Receiver<News>,
    client: Arc<dyn Client>,
    component: String,
    instance: String,
    written: Mutex<HashMap<(String, &'static str, String), Written>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Written {
    name: String,
    count: u64,
}

pub(crate) fn channel(client: Arc<dyn Client>, config: &Config) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer = Writer {
        receiver,
        client,
        component: config.component(),
        instance: if config.instance.is_empty() { config.component() } else { config.instance.clone() },
        written: Mutex::default(),
        dropped: dropped.clone(),
    };
    (Recorder { sender, dropped }, writer)
}

impl Recorder {
    pub(crate) fn record(&self, namespace: &str, pod: &str, uid: &str, event: EventKind, message: String) {
        let news = News {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            event,
            message,
            at: Timestamp::now(),
        };
        if self.sender.try_send(news).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Writer {
    /// Writes until `shutdown`, then what is already waiting.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let (_, closed) = mpsc::channel(1);
        let mut receiver = std::mem::replace(&mut self.receiver, closed);
        let news = stream::poll_fn(|context| receiver.poll_recv(context)).take_until(shutdown.cancelled());
        let writer = &self;
        news.for_each_concurrent(CONCURRENT, |news| async move { writer.write(news).await }).await;
        while let Ok(news) = receiver.try_recv() {
            self.write(news).await;
        }
    }

    async fn write(&self, news: News) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            warn!(dropped, "events were dropped: they come faster than they are written");
        }
        let key = (news.uid.clone(), news.event.reason, news.message.clone());
        let known = self.written.lock().get(&key).cloned();
        let result = match known {
            Some(known) => match self.count_up(&news, &known).await {
                Err(error) if error.is_not_found() => self.create(&news).await,
                other => other,
            },
            None => self.create(&news).await,
        };
        match result {
            Ok(now) => {
                let mut written = self.written.lock();
                if written.len() >= REMEMBERED {
                    written.clear();
                }
                written.insert(key, now);
            }
            Err(error) => {
                debug!(namespace = %news.namespace, pod = %news.pod, %error, "cannot write an event")
            }
        }
    }

    async fn create(&self, news: &News) -> Result<Written, Error> {
        let prefix: String = news.pod.chars().take(LONGEST_PREFIX).collect();
        // As upstream names events: by the object and the time.
        let name = format!("{prefix}.{:x}", news.at.as_nanosecond());
        let at = seconds(news.at);
        let event = json!({
            "kind": "Event", "apiVersion": "v1",
            "metadata": { "name": name, "namespace": news.namespace },
            "involvedObject": {
                "kind": "Pod", "apiVersion": "v1", "namespace": news.namespace, "name": news.pod, "uid": news.uid,
            },
            "type": news.event.kind, "reason": news.event.reason, "action": news.event.action,
            "message": news.message,
            "source": { "component": self.component }, "reportingComponent": self.component,
            "reportingInstance": self.instance,
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
        });
        let target = Target::collection(EVENTS, Some(&news.namespace));
        self.client.create(&target, event.to_string().into(), &WriteOptions::default()).await?;
        Ok(Written { name, count: 1 })
    }

    async fn count_up(&self, news: &News, known: &Written) -> Result<Written, Error> {
        let count = known.count + 1;
        let patch = json!({ "count": count, "lastTimestamp": seconds(news.at) });
        let target = Target::object(EVENTS, Some(&news.namespace), &known.name);
        let patch = Patch::Merge(patch.to_string().into());
        self.client.patch(&target, patch, &WriteOptions::default()).await?;
        Ok(Written { name: known.name.clone(), count })
    }
}

/// RFC 3339 in whole seconds, as `metav1.Time` is written.
pub(crate) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
