//! Small readings of objects that several controllers share: metadata, times, and the state of a pod.

use std::{collections::BTreeMap, time::Duration};

use hawser_api::{client::DeleteOptions, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::{
    Metadata,
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};

use crate::selector::Labels;

static NO_LABELS: Labels = BTreeMap::new();

/// Metadata without the `Option`s.
pub(crate) trait MetaExt {
    fn meta(&self) -> &ObjectMeta;

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }

    fn resource_version(&self) -> &str {
        self.meta().resource_version.as_deref().unwrap_or_default()
    }

    fn labels(&self) -> &Labels {
        self.meta().labels.as_ref().unwrap_or(&NO_LABELS)
    }

    fn annotations(&self) -> &BTreeMap<String, String> {
        self.meta().annotations.as_ref().unwrap_or(&NO_LABELS)
    }

    fn created(&self) -> Timestamp {
        self.meta().creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
    }

    fn is_deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }

    /// The owner that manages this object.
    fn controller(&self) -> Option<&OwnerReference> {
        self.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
    }
}

impl<K: Metadata<Ty = ObjectMeta>> MetaExt for K {
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// The key of the controller of `object`, where it is of `kind`.
pub(crate) fn controller_key<K: Metadata<Ty = ObjectMeta>>(object: &K, kind: &str) -> Option<ObjectKey> {
    let owner = object.controller()?;
    (owner.kind == kind).then(|| ObjectKey::new(object.namespace(), owner.name.as_str()))
}

/// The reference that makes `owner` the controller of a dependent.
pub(crate) fn controller_reference<K>(owner: &K) -> OwnerReference
where
    K: k8s_openapi::Resource + Metadata<Ty = ObjectMeta>,
{
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Deletes this very object, not a later one of its name.
pub(crate) fn only_this<K: Metadata<Ty = ObjectMeta>>(object: &K) -> DeleteOptions {
    DeleteOptions { uid: object.meta().uid.clone(), ..DeleteOptions::default() }
}

/// The wall clock. In tests it follows the runtime's clock, which can be paused.
pub(crate) fn now() -> Timestamp {
    #[cfg(test)]
    {
        static START: std::sync::OnceLock<(Timestamp, tokio::time::Instant)> = std::sync::OnceLock::new();
        let (wall, started) = START.get_or_init(|| (Timestamp::now(), tokio::time::Instant::now()));
        *wall + started.elapsed()
    }
    #[cfg(not(test))]
    Timestamp::now()
}

/// How long ago `since` was; zero where it lies ahead.
pub(crate) fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

pub(crate) fn pod_condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn pod_phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The pod has ended, and will not run again.
pub(crate) fn pod_is_terminal(pod: &Pod) -> bool {
    matches!(pod_phase(pod), "Succeeded" | "Failed")
}

/// The pod counts for its controller: neither ended nor asked to end.
pub(crate) fn pod_is_active(pod: &Pod) -> bool {
    !pod_is_terminal(pod) && !pod.is_deleting()
}

pub(crate) fn pod_is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod is ready; `None` while it is not.
pub(crate) fn pod_ready_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod_condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    Some(condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |Time(at)| *at))
}

/// When the pod counts as available: zero from then on, `None` while it is not ready.
pub(crate) fn pod_available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    let ready_since = pod_ready_since(pod)?;
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    Some(min_ready.saturating_sub(elapsed(ready_since, now)))
}

pub(crate) fn pod_node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// A field in seconds, as a duration; absent and negative are zero.
pub(crate) fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or_default()).unwrap_or_default())
}

/// `values` as a count that fits the API.
pub(crate) fn count<T>(values: impl Iterator<Item = T>) -> i32 {
    i32::try_from(values.count()).unwrap_or(i32::MAX)
}

/// The API leaves out counts of zero.
pub(crate) fn nonzero(value: i32) -> Option<i32> {
    Some(value).filter(|value| *value != 0)
}
