//! Writing a pod's status to the API: the newest one, one write at a time, until it is accepted.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::GroupVersionResource;
use hawser_api::resource::{ObjectKey, Target};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::interfaces::StatusWriter;

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(20);

/// Fields of the status that the kubelet owns, and clears when they are unset.
const OWNED: [&str; 14] = [
    "phase",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "qosClass",
    "startTime",
    "observedGeneration",
    "reason",
    "message",
];

/// The status as a merge patch: every field that the kubelet owns, absent ones as null.
pub fn patch(status: &PodStatus) -> Value {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    for name in OWNED {
        fields.entry(name).or_insert(Value::Null);
    }
    json!({ "status": fields })
}

/// What a worker reports through.
pub struct Reporter {
    wanted: watch::Sender<(u64, Option<PodStatus>)>,
    done: watch::Receiver<u64>,
}

impl Reporter {
    /// The reporter, and the future that writes what it is given; it ends with the reporter.
    pub fn new(
        writer: Arc<dyn StatusWriter>,
        key: ObjectKey,
        uid: String,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (wanted, receiver) = watch::channel((0, None));
        let (done_sender, done) = watch::channel(0);
        (Self { wanted, done }, write_all(writer, key, uid, receiver, done_sender))
    }

    pub fn report(&self, status: PodStatus) {
        self.wanted.send_modify(|(version, wanted)| {
            *version += 1;
            *wanted = Some(status);
        });
    }

    /// True when all that was reported has been written.
    pub fn is_idle(&self) -> bool {
        *self.done.borrow() >= self.wanted.borrow().0
    }

    /// Waits until all that was reported so far has been written.
    pub fn flushed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut done = self.done.clone();
        let version = self.wanted.borrow().0;
        async move {
            // An error means that the writer has ended: nothing more to wait for.
            let _ = done.wait_for(|written| *written >= version).await;
        }
    }
}

async fn write_all(
    writer: Arc<dyn StatusWriter>,
    key: ObjectKey,
    uid: String,
    mut wanted: watch::Receiver<(u64, Option<PodStatus>)>,
    done: watch::Sender<u64>,
) {
    let target = Target::object(GroupVersionResource::of::<Pod>(), Some(&key.namespace), &key.name);
    let mut delay = RETRY_FIRST;
    while wanted.changed().await.is_ok() {
        loop {
            let (version, status) = wanted.borrow_and_update().clone();
            let Some(status) = status else { break };
            let Err(error) = writer.patch_status(&target, &uid, patch(&status)).await else {
                delay = RETRY_FIRST;
                done.send_replace(version);
                break;
            };
            let is_final = error.is_not_found()
                || error.is_conflict()
                || (400..500).contains(&error.code())
                    && error.code() != 429
                    && error.code() != 401
                    && error.code() != 403;
            if is_final {
                // The pod is gone or another one, or the server will never take this: nothing to repeat.
                if !error.is_not_found() {
                    warn!(pod = %key, %error, "status was refused");
                }
                done.send_replace(version);
                break;
            }
            debug!(pod = %key, %error, ?delay, "status was not written, trying again");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                changed = wanted.changed() => if changed.is_err() { return },
            }
            delay = (delay * 2).min(RETRY_LAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_fields_are_cleared_and_foreign_ones_left_alone() {
        let status = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
        let patch = patch(&status);
        assert_eq!(patch["status"]["phase"], "Running");
        assert!(patch["status"]["reason"].is_null());
        let fields = patch["status"].as_object().expect("an object");
        assert!(fields.contains_key("reason") && !fields.contains_key("nominatedNodeName"));
    }
}
