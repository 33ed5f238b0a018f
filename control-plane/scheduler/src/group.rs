//! Pod groups: pods that are placed all together, or not at all.
//!
//! By the labels of the scheduler SIG's lightweight coscheduling: the group's name, and how many of its pods have to run for
//! any of them to be of use. A pod without a usable number is on its own.

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::core::v1::Pod;

const NAME: &str = "pod-group.scheduling.sigs.k8s.io/name";
const MIN_AVAILABLE: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

/// What a pod says of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) key: ObjectKey,
    /// Fewer pods of it are not placed; above 1.
    pub(crate) min: usize,
}

impl Group {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let labels = pod.metadata.labels.as_ref()?;
        let name = labels.get(NAME).filter(|name| !name.is_empty())?;
        let min = labels.get(MIN_AVAILABLE)?.parse().ok().filter(|min| *min > 1)?;
        Some(Self {
            key: ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), name.clone()),
            min,
        })
    }
}
