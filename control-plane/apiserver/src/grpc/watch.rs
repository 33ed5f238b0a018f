//! `WatchService`: one stream a watch.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt};
use hawser_api::{
    Error,
    grpc::target_of,
    resource::Target,
    v1::{self, EventType, watch_service_server::WatchService},
};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::{Front, object_of, status_of, user_of};
use crate::{
    ApiServer,
    cache::{Change, ChangeKind, Watcher},
    ops::{Call, WatchRequest, options},
    registry::VersionMatch,
    resources::Resource,
};

/// An idle stream says this often how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

type Stream = BoxStream<'static, Result<v1::WatchResponse, Status>>;

pub(super) fn event_type(kind: ChangeKind) -> EventType {
    match kind {
        ChangeKind::Added => EventType::Added,
        ChangeKind::Modified => EventType::Modified,
        ChangeKind::Deleted => EventType::Deleted,
    }
}

fn response(
    resource: &Resource,
    change: &Change,
    encoding: v1::Encoding,
) -> Result<v1::WatchResponse, Status> {
    let object = object_of(resource, &change.object, encoding).map_err(|error| status_of(&error))?;
    Ok(v1::WatchResponse {
        r#type: event_type(change.kind).into(),
        object: Some(object),
        resource_version: change.object.revision().to_string(),
        initial_events_end: false,
    })
}

fn bookmark(revision: u64, initial_events_end: bool) -> v1::WatchResponse {
    v1::WatchResponse {
        r#type: EventType::Bookmark.into(),
        object: None,
        resource_version: revision.to_string(),
        initial_events_end,
    }
}

/// What goes on after the objects that exist.
struct Following {
    call: Call,
    watcher: Watcher,
    encoding: v1::Encoding,
    bookmarks: bool,
    next_bookmark: Instant,
    _open: Open,
}

impl Following {
    async fn next(&mut self) -> Result<Vec<Result<v1::WatchResponse, Status>>, Error> {
        let changes = tokio::select! {
            changes = self.watcher.next() => changes?,
            () = sleep_until(self.next_bookmark), if self.bookmarks => {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                let changes = self.watcher.poll()?;
                if changes.is_empty() {
                    return Ok(vec![Ok(bookmark(self.watcher.revision(), false))]);
                }
                changes
            }
        };
        Ok(changes.iter().map(|change| response(&self.call.resource, change, self.encoding)).collect())
    }
}

/// One more watch among those that are open, until it is dropped.
struct Open {
    server: Arc<ApiServer>,
}

impl Open {
    fn new(server: Arc<ApiServer>) -> Self {
        server.metrics().watches.fetch_add(1, Ordering::Relaxed);
        Self { server }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.server.metrics().watches.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Front {
    async fn open(&self, target: Target, request: Request<v1::WatchRequest>) -> Result<Stream, Error> {
        let user = user_of(&request).map_err(|_| Error::unauthorized())?;
        let message = request.into_inner();
        let encoding = message.encoding();
        let call = self.server.enter(&user, "watch", target, &message.field_selector)?;
        let request = WatchRequest {
            label_selector: message.label_selector,
            resource_version: message.resource_version,
            send_initial_events: message.send_initial_events,
            version_match: VersionMatch::parse(&message.resource_version_match),
            ..WatchRequest::default()
        };
        let watched = self.server.watch(&call, &request).await?;
        let end = watched
            .mark_initial_end
            .then(|| watched.existing.as_ref().map(|(_, revision)| *revision))
            .flatten();
        let shown = call.resource.clone();
        let existing = watched
            .existing
            .into_iter()
            .flat_map(|(objects, _)| objects)
            .map(move |object| response(&shown, &Change { kind: ChangeKind::Added, object }, encoding));
        let existing = existing.chain(end.map(|revision| Ok(bookmark(revision, true))));
        let following = Following {
            call,
            watcher: watched.watcher,
            encoding,
            bookmarks: message.allow_bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            _open: Open::new(self.server.clone()),
        };
        let shutdown = self.server.shutdown().clone();
        let ends = options::timeout(message.timeout_seconds).map(|timeout| Instant::now() + timeout);
        let ends = async move {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        let changes = stream::unfold(Some(following), move |following| {
            let shutdown = shutdown.clone();
            async move {
                let mut following = following?;
                let events = tokio::select! {
                    () = shutdown.cancelled() => return None,
                    events = following.next() => events,
                };
                match events {
                    Ok(events) => Some((events, Some(following))),
                    Err(error) => Some((vec![Err(status_of(&error))], None)),
                }
            }
        });
        let events = stream::iter(existing).chain(changes.map(stream::iter).flatten());
        Ok(events.take_until(Box::pin(ends)).boxed())
    }
}

#[tonic::async_trait]
impl WatchService for Front {
    type WatchStream = Stream;

    async fn watch(&self, mut request: Request<v1::WatchRequest>) -> Result<Response<Stream>, Status> {
        let target = target_of(request.get_mut().resource.take());
        self.counted("watch", target, |target| self.open(target, request)).await
    }
}
