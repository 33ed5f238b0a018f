//! containerd's event stream, kept open: exits and out-of-memory kills become [`RuntimeEvent`]s.
//!
//! Events are lost while containerd is away, and a shim gives up on telling one after some tries. So
//! every new subscription is followed by a list, and a slow list runs behind it all. containerd buffers
//! for a reader without a bound, so what is done here for an event is short.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use jiff::Timestamp;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{Inner, log_writers, rpc};
use crate::{Result, RuntimeEvent};

/// An event of our own; see [`subscribe`].
const SUBSCRIBED_TOPIC: &str = "/hawser/subscribed";
const SUBSCRIBED_TYPE: &str = "hawser.dev/subscribed";

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Runs until `stop`. Never gives up: containerd may be away for an upgrade.
pub(super) async fn run(inner: Arc<Inner>, stop: CancellationToken) {
    let mut retry = FIRST_RETRY;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = subscribe_and_follow(&inner, &mut retry) => ended,
        };
        let error = ended.err().map(|e| e.to_string()).unwrap_or_default();
        tracing::warn!(%error, ?retry, "containerd's event stream ended, subscribing again");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(retry) => {}
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn subscribe_and_follow(inner: &Arc<Inner>, retry: &mut Duration) -> Result<()> {
    let mut stream = subscribe(inner).await?;
    // After the subscription, so that what happens meanwhile is in the list or in the stream.
    inner.relist().await?;
    let _ = inner.events.send(RuntimeEvent::Resync);
    *retry = FIRST_RETRY;
    follow(inner, &mut stream).await
}

/// Returns when containerd delivers. It sends nothing, not even the head of its answer, before there is an
/// event, so one of our own is published until it comes through.
async fn subscribe(inner: &Arc<Inner>) -> Result<Streaming<Envelope>> {
    let topics = [r#"topic~="^/tasks/(exit|oom)$""#.to_owned(), format!("topic==\"{SUBSCRIBED_TOPIC}\"")];
    let namespace = &inner.config.namespace;
    let filters = topics.iter().map(|topic| format!("namespace=={namespace},{topic}")).collect();
    let mut events = inner.rpc.events();
    let mut subscribing =
        pin!(rpc::call("subscribe to events", events.subscribe(SubscribeRequest { filters })));
    let mut knock = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            subscribed = &mut subscribing => return subscribed,
            _ = knock.tick() => {
                let event = prost_types::Any { type_url: SUBSCRIBED_TYPE.to_owned(), value: Vec::new() };
                let request = PublishRequest { topic: SUBSCRIBED_TOPIC.to_owned(), event: Some(event) };
                rpc::call("publish an event", inner.rpc.events().publish(request)).await?;
            }
        }
    }
}

async fn follow(inner: &Arc<Inner>, stream: &mut Streaming<Envelope>) -> Result<()> {
    let mut relist = tokio::time::interval(inner.config.relist_interval);
    relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    relist.reset();
    let mut revive = tokio::time::interval(log_writers::CHECK_INTERVAL);
    revive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = stream.message() => {
                match message.map_err(|status| rpc::error("follow events", status))? {
                    Some(envelope) => handle(inner, envelope).await?,
                    None => return Ok(()),
                }
            }
            _ = relist.tick() => drop(inner.relist().await?),
            _ = revive.tick() => inner.revive_log_writers().await,
        }
    }
}

async fn handle(inner: &Arc<Inner>, envelope: Envelope) -> Result<()> {
    let Some(event) = envelope.event else { return Ok(()) };
    match event.type_url.rsplit(['/', '.']).next() {
        Some("TaskExit") => {
            let Ok(exit) = TaskExit::decode(event.value.as_slice()) else { return Ok(()) };
            // Processes that exec started end too; they have ids of their own.
            if exit.id != exit.container_id {
                return Ok(());
            }
            let Some(stored) = inner.stored(&exit.container_id).await? else { return Ok(()) };
            let finished_at = rpc::timestamp(exit.exited_at).unwrap_or_else(Timestamp::now);
            inner.record_exit(&exit.container_id, &stored, exit.exit_status as i32, finished_at);
            inner.delete_task_later(exit.container_id, stored);
        }
        Some("TaskOOM") => {
            let Ok(oom) = TaskOom::decode(event.value.as_slice()) else { return Ok(()) };
            let Some(stored) = inner.stored(&oom.container_id).await? else { return Ok(()) };
            let event = RuntimeEvent::Oom { id: oom.container_id, pod_uid: stored.pod_uid.clone() };
            let _ = inner.events.send(event);
        }
        _ => {}
    }
    Ok(())
}
