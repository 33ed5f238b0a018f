//! Watches over HTTP: events as lines of JSON, or as protobuf frames; as messages where [`super::watch_socket`] sends them.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use hawser_api::{Error, schema};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use super::{
    body::Pieces,
    encode,
    negotiate::{Output, Shape},
};
use crate::{
    ApiServer,
    cache::{CachedObject, Change, ChangeKind, Selected},
    codec::{self, Encoding},
    ops::Watched,
    resources::Resource,
    table::IncludeObject,
};

/// A client that asked for bookmarks gets one at least this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Objects that exist are sent this many at a time.
const EXISTING: usize = 256;

/// A watch without `timeoutSeconds` ends after this long, and up to twice as long, so that clients do not all come back
/// at once (upstream's `--min-request-timeout`).
const MIN_TIMEOUT: Duration = Duration::from_secs(1800);

pub(super) struct Options {
    pub bookmarks: bool,
    pub timeout: Option<Duration>,
    pub output: Output,
    pub include: IncludeObject,
}

/// Length of a frame, before it.
const FRAME_HEAD: usize = 4;

/// Writes events of one watch.
struct Writer {
    resource: Arc<Resource>,
    output: Output,
    include: IncludeObject,
    /// Column definitions are sent once.
    headers: bool,
    /// Where each event ends in what was written.
    ends: Vec<usize>,
}

impl Writer {
    fn new(resource: &Arc<Resource>, output: Output, include: IncludeObject) -> Self {
        Self { resource: resource.clone(), output, include, headers: true, ends: Vec::new() }
    }

    fn change(&mut self, out: &mut BytesMut, change: &Change) -> Result<(), Error> {
        let event = match change.kind {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        };
        let object = self.object(&change.object)?;
        self.frame(out, event, &object);
        Ok(())
    }

    fn object(&mut self, object: &CachedObject) -> Result<Bytes, Error> {
        match self.output.shape {
            Shape::Table(version) => {
                let options = encode::table_options(version, self.include, std::mem::take(&mut self.headers));
                encode::table(&self.resource, object, &options)
            }
            _ => {
                encode::object(&self.resource, object, Output { pretty: false, ..self.output }, self.include)
            }
        }
    }

    fn frame(&mut self, out: &mut BytesMut, event: &str, object: &[u8]) {
        if self.output.encoding == Encoding::Protobuf {
            out.put_slice(&schema::protobuf::watch_frame(event, object));
            self.ends.push(out.len());
            return;
        }
        out.put_slice(b"{\"type\":\"");
        out.put_slice(event.as_bytes());
        out.put_slice(b"\",\"object\":");
        out.put_slice(object.trim_ascii_end());
        out.put_slice(b"}\n");
        self.ends.push(out.len());
    }

    fn bookmark(&mut self, out: &mut BytesMut, revision: u64, initial_end: bool) {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.output.shape {
            Shape::Plain => json!({
                "kind": self.resource.row.kind, "apiVersion": self.resource.api_version, "metadata": metadata,
            }),
            Shape::Metadata(version) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
            }),
            // As upstream: a table without rows says how far it is.
            Shape::Table(version) => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                "columnDefinitions": [], "rows": [],
            }),
        };
        self.value(out, "BOOKMARK", &object);
    }

    fn error(&mut self, out: &mut BytesMut, error: &Error) {
        self.value(out, "ERROR", &error.to_status());
    }

    fn value(&mut self, out: &mut BytesMut, event: &str, object: &Value) {
        let encoding =
            if self.output.encoding == Encoding::Protobuf { Encoding::Protobuf } else { Encoding::Json };
        match codec::encode(object, encoding) {
            Ok(bytes) => self.frame(out, event, &bytes),
            Err(error) => tracing::error!(%error, event, "watch event cannot be written"),
        }
    }
}

/// Everything of a watch that goes on.
pub(super) struct State {
    server: Arc<ApiServer>,
    writer: Writer,
    watched: Watched,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    shutdown: CancellationToken,
    done: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        self.server.metrics().watches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a watch that could not begin: one ERROR event, because upstream's clients expect 410 there.
pub(super) fn failed(resource: &Arc<Resource>, output: Output, error: &Error) -> Bytes {
    let mut writer = Writer::new(resource, output, IncludeObject::default());
    let mut out = BytesMut::new();
    writer.error(&mut out, error);
    out.freeze()
}

/// A watch that begins.
pub(super) fn begin(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    watched: Watched,
    options: Options,
) -> State {
    server.metrics().watches.fetch_add(1, Ordering::Relaxed);
    let now = Instant::now();
    let timeout = options.timeout.unwrap_or_else(|| {
        let random = uuid::Uuid::new_v4().as_u64_pair().0 % MIN_TIMEOUT.as_secs();
        MIN_TIMEOUT + Duration::from_secs(random)
    });
    State {
        server: server.clone(),
        writer: Writer::new(resource, options.output, options.include),
        watched,
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        deadline: now + timeout,
        shutdown: server.shutdown().clone(),
        done: false,
    }
}

/// The body of a watch.
pub(super) fn body(state: State) -> Pieces {
    Box::pin(stream::unfold(state, |mut state| async move {
        let piece = state.next().await?;
        state.writer.ends.clear();
        Some((piece, state))
    }))
}

impl State {
    /// Waits for the end of the watch's time, or of the server's.
    pub(super) fn end(&self) -> impl Future<Output = ()> + use<> {
        let (shutdown, deadline) = (self.shutdown.clone(), self.deadline);
        async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// The next events, each a message of its own; `None` at the end of the watch. Cancel-safe.
    pub(super) async fn next_events(&mut self) -> Option<Vec<Message>> {
        let mut piece = self.next().await?;
        let mut begin = 0;
        let ends = self.writer.ends.drain(..);
        Some(
            ends.map(|end| {
                let mut event = piece.split_to(end - std::mem::replace(&mut begin, end));
                if self.writer.output.encoding == Encoding::Protobuf {
                    // Messages have lengths of their own.
                    return Message::Binary(event.split_off(FRAME_HEAD));
                }
                // Written here, from JSON.
                Utf8Bytes::try_from(event.clone()).map_or(Message::Binary(event), Message::Text)
            })
            .collect(),
        )
    }

    /// The next piece of the body; `None` at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if let Some((existing, revision)) = &mut self.watched.existing {
            let revision = *revision;
            let piece = existing_piece(&mut self.writer, existing);
            return match piece {
                Ok(Some(piece)) => Some(piece),
                Ok(None) => {
                    self.watched.existing = None;
                    let mut out = BytesMut::new();
                    if self.watched.mark_initial_end {
                        self.writer.bookmark(&mut out, revision, true);
                    }
                    // An empty piece is no end; what follows is waited for at the next call.
                    Some(out.freeze())
                }
                Err(error) => Some(self.fail(&error)),
            };
        }
        let changes = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return None,
            () = sleep_until(self.deadline) => return None,
            () = sleep_until(self.next_bookmark), if self.bookmarks => {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                self.watched.watcher.poll()
            }
            changes = self.watched.watcher.next() => changes,
        };
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => return Some(self.fail(&error)),
        };
        let mut out = BytesMut::new();
        for change in &changes {
            if let Err(error) = self.writer.change(&mut out, change) {
                return Some(self.fail(&error));
            }
        }
        if changes.is_empty() {
            self.writer.bookmark(&mut out, self.watched.watcher.revision(), false);
        }
        Some(out.freeze())
    }

    fn fail(&mut self, error: &Error) -> Bytes {
        self.done = true;
        let mut out = BytesMut::new();
        self.writer.error(&mut out, error);
        out.freeze()
    }
}

fn existing_piece(writer: &mut Writer, existing: &mut Selected) -> Result<Option<Bytes>, Error> {
    let mut out = BytesMut::new();
    for object in existing.take(EXISTING) {
        writer.change(&mut out, &Change { kind: ChangeKind::Added, object })?;
    }
    Ok((!out.is_empty()).then(|| out.freeze()))
}
