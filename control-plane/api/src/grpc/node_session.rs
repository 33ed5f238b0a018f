//! The node's side of `NodeService.Sync`: one stream that keeps itself open.
//!
//! After a break it connects again with back-off and asks for what it has missed since the last revision that the
//! reader was told of. Reader and writers see one session; a write that was under way during a break fails, and
//! is repeated by whoever wanted it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, warn};

use super::{remote::outcome, resource_of, status::from_grpc};
use crate::{
    Error,
    resource::{GroupVersionResource, ObjectKey, Target},
    v1::{
        self, EventType, SyncRequest, SyncResponse, node_service_client::NodeServiceClient, sync_request,
        sync_response,
    },
};

/// Says that the node lives when nothing else does.
const HEARTBEAT: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// How long a write waits for its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Changes that the reader has not taken yet; past that the server waits, by HTTP/2 flow control.
const EVENTS: usize = 1024;
/// Writes that are not sent yet; past that writers wait.
const WRITES: usize = 256;

/// What the reader of a session hears.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// A new stream begins. Until a `SnapshotEnd`, what the reader holds goes on to hold.
    Connected,
    /// An object was added or changed.
    Changed {
        resource: GroupVersionResource,
        key: ObjectKey,
        object: Bytes,
    },
    Deleted {
        resource: GroupVersionResource,
        key: ObjectKey,
    },
    /// What this stream has not named since `Connected` is gone.
    SnapshotEnd,
}

/// The writing side. Cheap to clone; the stream ends when all clones and the reader are gone.
#[derive(Clone)]
pub struct NodeSession {
    writes: mpsc::Sender<Write>,
}

struct Write {
    message: sync_request::Message,
    answer: Option<oneshot::Sender<Result<(), Error>>>,
}

impl NodeSession {
    pub(super) fn start(
        client: NodeServiceClient<Channel>,
        node_name: String,
    ) -> (Self, mpsc::Receiver<NodeEvent>) {
        let (writes, to_send) = mpsc::channel(WRITES);
        let (events, received) = mpsc::channel(EVENTS);
        tokio::spawn(
            Stream { client, node_name, revision: 0, to_send, events, waiting: HashMap::new() }.run(),
        );
        (Self { writes }, received)
    }

    /// Patches an object's status (a strategic merge); returns when the write is durable.
    ///
    /// # Errors
    /// Conflict where the object has another uid; ServiceUnavailable where the stream broke, and the write may
    /// or may not have happened.
    pub async fn update_status(&self, target: &Target, uid: &str, patch: &Value) -> Result<(), Error> {
        static ID: AtomicU64 = AtomicU64::new(1);
        let update = v1::StatusUpdate {
            id: ID.fetch_add(1, Ordering::Relaxed),
            resource: Some(resource_of(target)),
            uid: uid.to_owned(),
            merge_patch: Bytes::new(),
            strategic_merge_patch: patch.to_string().into(),
        };
        let (answer, answered) = oneshot::channel();
        let write = Write { message: sync_request::Message::StatusUpdate(update), answer: Some(answer) };
        let exchange = async {
            self.writes.send(write).await.map_err(|_| ended())?;
            answered.await.unwrap_or_else(|_| Err(ended()))
        };
        timeout(ANSWER, exchange).await.unwrap_or_else(|_| Err(Error::timeout("no answer to a status write")))
    }

    /// Sends a reading of the node's counters. Dropped where the stream is behind: the next one says it all.
    pub fn report_usage(&self, usage: v1::Usage) {
        let write = Write { message: sync_request::Message::Usage(usage), answer: None };
        if self.writes.try_send(write).is_err() {
            debug!("usage is not reported: the node stream is behind");
        }
    }
}

fn ended() -> Error {
    Error::unavailable("the node stream broke")
}

struct Stream {
    client: NodeServiceClient<Channel>,
    node_name: String,
    /// Everything up to here was handed to the reader.
    revision: u64,
    to_send: mpsc::Receiver<Write>,
    events: mpsc::Sender<NodeEvent>,
    /// By the write's id. Bounded by the writers, each of which waits for one answer.
    waiting: HashMap<u64, oneshot::Sender<Result<(), Error>>>,
}

/// Why one connection ended.
enum End {
    /// Reader or writers are gone: so is the session.
    Dropped,
    Broken(Error),
}

impl Stream {
    async fn run(mut self) {
        let mut delay = RETRY_FIRST;
        loop {
            let begin = Instant::now();
            match self.connect_once().await {
                End::Dropped => return,
                End::Broken(error) => {
                    if error.is_expired() {
                        self.revision = 0;
                    }
                    if begin.elapsed() > RETRY_LAST {
                        delay = RETRY_FIRST;
                    }
                    warn!(%error, ?delay, "node stream broke");
                }
            }
            for (_, answer) in self.waiting.drain() {
                // A writer that has given up needs no answer.
                let _ = answer.send(Err(ended()));
            }
            if self.events.is_closed() {
                return;
            }
            sleep(delay).await;
            delay = (delay * 2).min(RETRY_LAST);
        }
    }

    async fn connect_once(&mut self) -> End {
        // One message in flight beyond HTTP/2's own window: the loop below is the queue.
        let (sender, receiver) = mpsc::channel(1);
        let hello = v1::Hello { node_name: self.node_name.clone(), resume_revision: self.revision };
        if sender.send(request(sync_request::Message::Hello(hello))).await.is_err() {
            return End::Broken(ended());
        }
        let answers = match self.client.sync(ReceiverStream::new(receiver)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return End::Broken(from_grpc(&status)),
        };
        if self.events.send(NodeEvent::Connected).await.is_err() {
            return End::Dropped;
        }
        self.exchange(sender, answers).await
    }

    async fn exchange(
        &mut self,
        sender: mpsc::Sender<SyncRequest>,
        mut answers: tonic::Streaming<SyncResponse>,
    ) -> End {
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Waits for its place on the wire while answers are read: neither side ever waits for the other to read.
        let mut next: Option<Write> = None;
        loop {
            tokio::select! {
                answer = answers.next() => match answer {
                    Some(Ok(SyncResponse { message: Some(message) })) => {
                        if !self.receive(message).await {
                            return End::Dropped;
                        }
                    }
                    Some(Ok(SyncResponse { message: None })) => debug!("unknown message on the node stream"),
                    Some(Err(status)) => return End::Broken(from_grpc(&status)),
                    None => return End::Broken(Error::unavailable("the server ended the node stream")),
                },
                write = self.to_send.recv(), if next.is_none() => {
                    let Some(write) = write else { return End::Dropped };
                    next = Some(write);
                }
                permit = sender.reserve(), if next.is_some() => {
                    let Ok(permit) = permit else { return End::Broken(ended()) };
                    if let Some(message) = next.take().and_then(|write| self.take(write)) {
                        permit.send(request(message));
                        heartbeat.reset();
                    }
                }
                _ = heartbeat.tick(), if next.is_none() => {
                    let message = sync_request::Message::Heartbeat(v1::Heartbeat {});
                    next = Some(Write { message, answer: None });
                }
            }
        }
    }

    /// What to send of a write, and whom to answer. Nothing of one that was given up: it is repeated, perhaps newer,
    /// and must not overtake its repetition.
    fn take(&mut self, write: Write) -> Option<sync_request::Message> {
        let Some(answer) = write.answer else { return Some(write.message) };
        if answer.is_closed() {
            return None;
        }
        if let sync_request::Message::StatusUpdate(update) = &write.message {
            // Those of writers that gave up after their write was sent; an answer may never come.
            self.waiting.retain(|_, answer| !answer.is_closed());
            self.waiting.insert(update.id, answer);
        }
        Some(write.message)
    }

    /// Hands a message on; false where the reader is gone.
    async fn receive(&mut self, message: sync_response::Message) -> bool {
        match message {
            sync_response::Message::Change(change) => {
                let Some(event) = event_of(change) else {
                    debug!("change without a resource on the node stream");
                    return true;
                };
                // Its revision is not remembered: a snapshot's objects carry older ones, and only its end, or a
                // bookmark, says how far the stream has come.
                self.events.send(event).await.is_ok()
            }
            sync_response::Message::SnapshotEnd(end) => {
                self.revision = end.revision;
                self.events.send(NodeEvent::SnapshotEnd).await.is_ok()
            }
            sync_response::Message::Bookmark(bookmark) => {
                self.revision = bookmark.revision;
                true
            }
            sync_response::Message::StatusAnswer(answer) => {
                if let Some(writer) = self.waiting.remove(&answer.id) {
                    // A writer that has given up needs no answer.
                    let _ = writer.send(outcome(&answer.error));
                }
                true
            }
        }
    }
}

fn request(message: sync_request::Message) -> SyncRequest {
    SyncRequest { message: Some(message) }
}

fn event_of(change: v1::ObjectChange) -> Option<NodeEvent> {
    let kind = change.r#type();
    let resource = change.resource?;
    let key = ObjectKey::new(resource.namespace, resource.name);
    let resource = GroupVersionResource {
        group: resource.group.into(),
        version: resource.version.into(),
        resource: resource.resource.into(),
    };
    Some(match kind {
        EventType::Deleted => NodeEvent::Deleted { resource, key },
        _ => NodeEvent::Changed { resource, key, object: change.body },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(phase: &str) -> (Write, oneshot::Receiver<Result<(), Error>>) {
        let update = v1::StatusUpdate {
            id: phase.len() as u64,
            strategic_merge_patch: phase.to_owned().into(),
            ..v1::StatusUpdate::default()
        };
        let (answer, answered) = oneshot::channel();
        (Write { message: sync_request::Message::StatusUpdate(update), answer: Some(answer) }, answered)
    }

    #[tokio::test]
    async fn write_that_was_given_up_is_not_sent() {
        let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let (_writes, to_send) = mpsc::channel(WRITES);
        let (events, _read) = mpsc::channel(EVENTS);
        let mut stream = Stream {
            client: NodeServiceClient::new(channel),
            node_name: "n1".into(),
            revision: 0,
            to_send,
            events,
            waiting: HashMap::new(),
        };
        let (older, given_up) = write("Pending");
        let (newer, _answered) = write("Running!");
        drop(given_up);
        assert_eq!(stream.take(older), None);
        assert!(matches!(stream.take(newer), Some(sync_request::Message::StatusUpdate(_))));
        assert_eq!(stream.waiting.len(), 1, "only the newer one is answered");
        let usage = Write { message: sync_request::Message::Usage(v1::Usage::default()), answer: None };
        assert!(stream.take(usage).is_some(), "what asks for no answer is sent");
    }
}
