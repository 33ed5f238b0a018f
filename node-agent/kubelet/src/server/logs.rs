//! `/containerLogs`: a container's output, as `kubectl logs` asks for it, or in the messages of a WebSocket.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};
use hawser_runtime::logger::Stream;
use hawser_runtime::logs::{LogOptions, LogReader, already_ended};
use hawser_runtime::{ContainerState, ContainerStatus, Runtime, RuntimeEvent};
use http::{Request, Response};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::TaskTracker;

use super::body::{self, Body};
use super::routes::{Query, flag, parameter};
use super::streams::Target;
use super::websocket::{self, CLOSE_TIMEOUT, WebSocket, normal_close};
use super::{Backend, LogAttempt, Refusal};

const BASE64: &str = "base64.binary.k8s.io";
/// Subprotocols of a log over WebSocket.
const PROTOCOLS: &[&str] = &["binary.k8s.io", BASE64, websocket::UNNAMED];

pub(super) async fn answer(
    backend: &Backend,
    tasks: &TaskTracker,
    target: &Target,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let options = options(query, Timestamp::now())?;
    let attempt = if flag(query, "previous") { LogAttempt::Previous } else { LogAttempt::Newest };
    let Target { namespace, pod, container } = target;
    let log = backend.pods.log(namespace, pod, container, attempt)?;
    let runtime = Arc::clone(&backend.runtime);
    let id = log.container_id;
    let ended = if options.follow && !log.has_ended {
        async move {
            wait_for_end(Arc::clone(&runtime), id.clone()).await;
            runtime.log_complete(&id).await;
        }
        .boxed()
    } else {
        // Who sees that a container has ended finds all that it wrote.
        let has_ended = log.has_ended
            || matches!(runtime.container_status(&id).await, Ok(Some(status)) if !is_alive(&status));
        if has_ended {
            runtime.log_complete(&id).await;
        }
        already_ended()
    };
    let reader = open(log.path, options, ended).await?;
    let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next_chunk().await?.map(|chunk| (chunk, reader)))
    });
    if !websocket::is_requested(request.headers()) {
        return Ok(body::stream(chunks));
    }
    let protocol = websocket::choose(request.headers(), PROTOCOLS)?;
    let (response, upgraded) = websocket::accept(request, protocol)?;
    tasks.spawn(async move {
        match upgraded.await {
            Ok(socket) => send(socket, chunks, protocol).await,
            Err(error) => tracing::debug!(%error, "client left during the upgrade"),
        }
    });
    Ok(response)
}

/// Sends a log in messages, until it ends or the client goes.
async fn send(
    socket: WebSocket,
    chunks: impl futures::Stream<Item = std::io::Result<Bytes>>,
    protocol: &str,
) {
    let (mut to_client, mut from_client) = socket.split();
    let mut chunks = std::pin::pin!(chunks);
    let mut outwards = std::pin::pin!(async {
        while let Some(chunk) = chunks.next().await {
            let message = match chunk {
                Ok(chunk) if protocol == BASE64 => Message::text(STANDARD.encode(chunk)),
                Ok(chunk) => Message::Binary(chunk),
                Err(error) => {
                    tracing::debug!(%error, "a log cannot be read on");
                    break;
                }
            };
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        // Fails when the client has gone.
        let _ = to_client.send(normal_close()).await;
    });
    // What a client says means nothing, but its close does.
    let mut inwards = std::pin::pin!(async {
        while let Some(Ok(message)) = from_client.next().await {
            if message.is_close() {
                break;
            }
        }
    });
    tokio::select! {
        () = &mut inwards => {}
        () = &mut outwards => {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, inwards).await;
        }
    }
}

async fn open(
    path: std::path::PathBuf,
    options: LogOptions,
    ended: BoxFuture<'static, ()>,
) -> Result<LogReader, Refusal> {
    let shown = path.display().to_string();
    LogReader::open(path, options, ended)
        .await
        .map_err(|error| Refusal::internal(format!("failed to read log {shown}: {error}")))
}

fn options(query: &Query, now: Timestamp) -> Result<LogOptions, Refusal> {
    let number = |name: &str| -> Result<Option<u64>, Refusal> {
        let Some(value) = parameter(query, name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let parsed = value.parse();
        parsed.map(Some).map_err(|_| Refusal::bad_request(format!("invalid {name}: {value:?}")))
    };
    let since = match (number("sinceSeconds")?, parameter(query, "sinceTime").filter(|t| !t.is_empty())) {
        (Some(seconds), _) => {
            let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Some(now.checked_sub(seconds).unwrap_or(Timestamp::MIN))
        }
        (None, Some(time)) => {
            let parsed = time.parse::<Timestamp>();
            Some(parsed.map_err(|_| Refusal::bad_request(format!("invalid sinceTime: {time:?}")))?)
        }
        (None, None) => None,
    };
    let stream = match parameter(query, "stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(other) => return Err(Refusal::bad_request(format!("invalid stream: {other:?}"))),
    };
    Ok(LogOptions {
        follow: flag(query, "follow"),
        tail_lines: number("tailLines")?,
        since,
        timestamps: flag(query, "timestamps"),
        limit_bytes: number("limitBytes")?,
        stream,
    })
}

/// It runs, or is about to.
fn is_alive(status: &ContainerStatus) -> bool {
    matches!(status.state, ContainerState::Running | ContainerState::Created)
}

/// Resolves when the container runs no more, or is gone.
pub(super) async fn wait_for_end(runtime: Arc<dyn Runtime>, id: String) {
    // Subscribed first, so that an end between the question and the wait is not missed.
    let mut events = runtime.events();
    loop {
        match runtime.container_status(&id).await {
            Ok(Some(status)) if is_alive(&status) => {}
            Ok(_) => return,
            // containerd is away; when it is back there is a Resync.
            Err(_) => {}
        }
        loop {
            match events.next().await {
                Some(RuntimeEvent::Exited { id: ended, .. }) if ended == id => return,
                Some(RuntimeEvent::Resync) => break,
                Some(_) => {}
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    #[test]
    fn parameters_become_options() {
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        let parsed =
            options(&query("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9"), now);
        let expected = LogOptions {
            follow: true,
            tail_lines: Some(5),
            since: Some("2024-01-01T00:00:00Z".parse().unwrap()),
            timestamps: true,
            limit_bytes: Some(9),
            stream: None,
        };
        assert_eq!(parsed.unwrap(), expected);
        assert_eq!(options(&query("stream=Stderr"), now).unwrap().stream, Some(Stream::Stderr));
        for bad in ["tailLines=-1", "sinceTime=yesterday", "stream=x", "limitBytes=ten"] {
            assert!(options(&query(bad), now).is_err(), "{bad}");
        }
    }
}
