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
use crate::pod::conditions::{PASSING, is_written};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(20);

/// Fields of the status that the kubelet owns, and clears when they are unset.
const OWNED: [&str; 16] = [
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
    "allocatedResources",
    "resources",
    "reason",
    "message",
];

/// Fields of a condition that may be unset, and are cleared then.
const CONDITION_FIELDS: [&str; 4] = ["reason", "message", "lastProbeTime", "observedGeneration"];

/// The status as a strategic merge patch: every field that the kubelet owns, absent ones as null.
///
/// Conditions of other owners (readiness gates, disruption) are not in it, and so not undone: conditions merge by type.
pub fn patch(status: &PodStatus) -> Value {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    for name in OWNED {
        fields.entry(name).or_insert(Value::Null);
    }
    let mut order = Value::Null;
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        conditions.retain(|condition| {
            condition["type"].as_str().is_some_and(|type_| is_written(type_, condition["reason"].as_str()))
        });
        order = conditions.iter().map(|condition| json!({ "type": condition["type"] })).collect();
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            for name in CONDITION_FIELDS {
                condition.entry(name).or_insert(Value::Null);
            }
        }
    }
    if order.is_array() {
        // As they are here, not as they came first: the API's object is then the one that is shown, and is kept once.
        fields.insert("$setElementOrder/conditions".into(), order);
    }
    for type_ in PASSING {
        if let Some(Value::Array(conditions)) = fields.get_mut("conditions")
            && !conditions.iter().any(|condition| condition["type"] == type_)
        {
            conditions.push(json!({ "$patch": "delete", "type": type_ }));
        }
    }
    for name in ["hostIPs", "podIPs"] {
        if let Some(Value::Array(addresses)) = fields.get_mut(name) {
            // They would merge by address, and an old one would stay.
            addresses.insert(0, json!({ "$patch": "replace" }));
        }
    }
    json!({ "status": fields })
}

/// What a worker reports through.
pub struct Reporter {
    wanted: watch::Sender<(u64, Option<Arc<PodStatus>>)>,
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

    pub fn report(&self, status: Arc<PodStatus>) {
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
    mut wanted: watch::Receiver<(u64, Option<Arc<PodStatus>>)>,
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

    use hawser_api::patch::{PatchType, apply};
    use hawser_api::schema::type_of;

    /// The pod's status in the API after `status` was reported over `known`.
    fn reported(known: Value, status: Value) -> Value {
        let status: PodStatus = serde_json::from_value(status).expect("a status");
        let pod = json!({ "status": known });
        let patch = patch(&status).to_string();
        let patched = apply(PatchType::StrategicMerge, &pod, patch.as_bytes(), type_of("", "v1", "Pod"))
            .expect("applies");
        patched["status"].clone()
    }

    #[test]
    fn unset_fields_are_cleared_and_foreign_ones_left_alone() {
        let known = json!({ "phase": "Pending", "reason": "Waiting", "nominatedNodeName": "n2" });
        let patched = reported(known, json!({ "phase": "Running" }));
        assert_eq!(patched["phase"], "Running");
        assert!(patched.get("reason").is_none());
        assert_eq!(patched["nominatedNodeName"], "n2");
    }

    #[test]
    fn conditions_of_others_survive_a_report_that_knows_an_older_one() {
        let gate = |status: &str| json!({ "type": "example.com/gate", "status": status });
        let known = json!({ "conditions": [
            gate("True"),
            { "type": "DisruptionTarget", "status": "True" },
            { "type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "web" },
        ] });
        let patched =
            reported(known, json!({ "conditions": [{ "type": "Ready", "status": "True" }, gate("False")] }));
        let expected = json!([
            gate("True"),
            { "type": "DisruptionTarget", "status": "True" },
            { "type": "Ready", "status": "True" },
        ]);
        assert_eq!(patched["conditions"], expected);
    }

    #[test]
    fn conditions_come_in_the_order_of_the_report() {
        let of = |types: &[&str]| -> Value {
            types.iter().map(|type_| json!({ "type": type_, "status": "True" })).collect()
        };
        let known = json!({ "conditions": of(&["PodScheduled", "example.com/gate", PASSING[0]]) });
        let own = ["Initialized", "Ready", "PodScheduled"];
        let patched = reported(known, json!({ "conditions": of(&own) }));
        assert_eq!(patched["conditions"], of(&["Initialized", "Ready", "PodScheduled", "example.com/gate"]));
    }

    #[test]
    fn addresses_are_replaced_not_added() {
        let ips = |ip: &str| json!([{ "ip": ip }]);
        let known = json!({ "podIPs": ips("10.1.0.1"), "hostIPs": ips("10.0.0.1") });
        let patched = reported(known, json!({ "podIPs": ips("10.1.0.2"), "hostIPs": ips("10.0.0.2") }));
        assert_eq!((&patched["podIPs"], &patched["hostIPs"]), (&ips("10.1.0.2"), &ips("10.0.0.2")));
    }
}
