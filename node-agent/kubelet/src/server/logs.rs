//! `/containerLogs`: a container's output, as `kubectl logs` asks for it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use hawser_runtime::logger::Stream;
use hawser_runtime::logs::{LogOptions, LogReader, already_ended};
use hawser_runtime::{ContainerState, ContainerStatus, Runtime, RuntimeEvent};
use http::Response;
use jiff::{SignedDuration, Timestamp};

use super::body::{self, Body};
use super::routes::{Query, flag, parameter};
use super::streams::Target;
use super::{Backend, LogAttempt, Refusal};

pub(super) async fn answer(
    backend: &Backend,
    target: &Target,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let options = options(query, Timestamp::now())?;
    let attempt = if flag(query, "previous") { LogAttempt::Previous } else { LogAttempt::Newest };
    let Target { namespace, pod, container } = target;
    let log = backend.pods.log(namespace, pod, container, attempt)?;
    let runtime = Arc::clone(&backend.runtime);
    let ended = match log.container_id {
        Some(id) if options.follow => async move {
            wait_for_end(Arc::clone(&runtime), id.clone()).await;
            runtime.log_complete(&id).await;
        }
        .boxed(),
        Some(id) => {
            // Who sees that a container has ended finds all that it wrote.
            if matches!(runtime.container_status(&id).await, Ok(Some(status)) if !is_alive(&status)) {
                runtime.log_complete(&id).await;
            }
            already_ended()
        }
        None => already_ended(),
    };
    let reader = open(log.path, options, ended).await?;
    let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next_chunk().await?.map(|chunk| (chunk, reader)))
    });
    Ok(body::stream(chunks))
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
