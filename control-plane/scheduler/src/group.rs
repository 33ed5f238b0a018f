//! Pod groups: pods that are placed all together, or not at all.
//!
//! A pod names a PodGroup object (`spec.schedulingGroup`, KEP-4671), or says by the labels of the scheduler SIG's lightweight
//! coscheduling what its group is called and how many of its pods have to run for any of them to be of use. A pod
//! whose labels have no usable number is on its own.

use hawser_api::resource::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, scheduling::v1alpha2::PodGroup};

const NAME: &str = "pod-group.scheduling.sigs.k8s.io/name";
const MIN_AVAILABLE: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

/// What a pod says of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Groups of either kind have keys of their own.
    pub(crate) key: ObjectKey,
    /// By labels: fewer pods of it are not placed; above 1. `None` where a PodGroup says it.
    pub(crate) min: Option<usize>,
    /// The uid of the pod's controller: a job that is run again is another one.
    pub(crate) owner: Option<String>,
    pub(crate) created_at: Option<Timestamp>,
}

/// By which rules a group is placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Fewer pods of it are not placed.
    pub(crate) min: usize,
    /// All its pods are on nodes with one value of this label.
    pub(crate) topology: Option<String>,
}

/// What is known of a PodGroup.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) uid: String,
    pub(crate) policy: Policy,
    /// What its condition says.
    pub(crate) told: Option<Told>,
}

/// Whether a pod group has its places, and why not, as the condition `PodGroupScheduled` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) scheduled: bool,
    /// Empty where it is.
    pub(crate) message: String,
}

/// The condition's type.
pub(crate) const SCHEDULED: &str = "PodGroupScheduled";

impl Known {
    pub(crate) fn of(group: &PodGroup) -> Self {
        let conditions = group.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let condition = conditions.into_iter().find(|condition| condition.type_ == SCHEDULED);
        Self {
            uid: group.metadata.uid.clone().unwrap_or_default(),
            policy: Policy::of(group),
            told: condition.map(|condition| Told {
                scheduled: condition.status == "True",
                message: condition.message.clone(),
            }),
        }
    }
}

impl Group {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone());
        let created_at = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let named = pod.spec.as_ref().and_then(|spec| spec.scheduling_group.as_ref());
        if let Some(name) = named.and_then(|group| group.pod_group_name.clone()) {
            return Some(Self { key: ObjectKey::new(namespace, name), min: None, owner, created_at });
        }
        let labels = pod.metadata.labels.as_ref()?;
        let name = labels.get(NAME).filter(|name| !name.is_empty())?;
        let min = labels.get(MIN_AVAILABLE)?.parse().ok().filter(|min| *min > 1)?;
        // No object's name has a slash.
        Some(Self {
            key: ObjectKey::new(namespace, format!("label/{name}")),
            min: Some(min),
            owner,
            created_at,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.key.name.strip_prefix("label/").unwrap_or(&self.key.name)
    }
}

impl Policy {
    pub(crate) fn of(group: &PodGroup) -> Self {
        let gang = group.spec.scheduling_policy.gang.as_ref();
        let min = gang.and_then(|gang| usize::try_from(gang.min_count).ok()).unwrap_or(1);
        let constraints = group.spec.scheduling_constraints.as_ref();
        let topology = constraints.and_then(|constraints| constraints.topology.as_ref()?.first());
        Self { min, topology: topology.map(|topology| topology.key.clone()) }
    }
}
