//! A pod as the scheduler sees it, read once from its object.

use std::{collections::BTreeMap, sync::Arc};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{
    affinity::{NodeAffinity, Toleration},
    resources::{self, Amounts},
};

/// A pod that waits, or is being bound.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Arc<str>,
    pub(crate) priority: i32,
    pub(crate) shape: Arc<Shape>,
    /// What its condition `PodScheduled` says now, so that the same is not written again.
    pub(crate) told: Option<String>,
    /// Wishes of the pod that this scheduler does not know yet, by their fields.
    pub(crate) not_considered: Vec<&'static str>,
}

/// All that a pod's place depends on. Pods of one workload are equal here and share one evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) requests: Amounts,
    /// Cpu in thousandths and bytes of memory, for scores.
    pub(crate) scored: (i64, i64),
    pub(crate) node_name: Option<String>,
    pub(crate) affinity: NodeAffinity,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) ports: Vec<HostPort>,
    /// Pods with the same key are spread over hosts and zones.
    pub(crate) spread: Option<SpreadKey>,
}

/// The workload that a pod belongs to, by the uid of its controller.
pub(crate) type SpreadKey = Arc<str>;

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostPort {
    pub(crate) protocol: String,
    pub(crate) port: i32,
    /// `0.0.0.0` is all addresses.
    pub(crate) ip: String,
}

const ANY_ADDRESS: &str = "0.0.0.0";

impl HostPort {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.ip == other.ip || self.ip == ANY_ADDRESS || other.ip == ANY_ADDRESS;
        overlap && self.protocol == other.protocol && self.port == other.port
    }
}

impl PodInfo {
    pub(crate) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            key: ObjectKey::of(pod),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: spec.and_then(|spec| spec.priority).unwrap_or_default(),
            shape: Arc::new(Shape::of(pod)),
            told: told(pod),
            not_considered: spec.map(not_considered).unwrap_or_default(),
        }
    }
}

impl Shape {
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else {
            return Self::default();
        };
        Self {
            requests: resources::pod_requests(spec),
            scored: resources::scored_requests(spec),
            // Once bound, a pod's own node is no wish of it.
            node_name: None,
            affinity: NodeAffinity::of(spec),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::of).collect(),
            ports: host_ports(spec),
            spread: controller(pod),
        }
    }
}

/// The node that the pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the pod's containers are over for good: it takes nothing of its node.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the pod waits for something outside before it may be placed.
pub(crate) fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
}

fn told(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let unschedulable = condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable");
    unschedulable.then(|| condition.message.clone()).flatten()
}

fn not_considered(spec: &PodSpec) -> Vec<&'static str> {
    let affinity = spec.affinity.as_ref();
    let wishes = [
        ("podAffinity", affinity.is_some_and(|affinity| affinity.pod_affinity.is_some())),
        ("podAntiAffinity", affinity.is_some_and(|affinity| affinity.pod_anti_affinity.is_some())),
        (
            "topologySpreadConstraints",
            spec.topology_spread_constraints.as_ref().is_some_and(|all| !all.is_empty()),
        ),
        ("resourceClaims", spec.resource_claims.as_ref().is_some_and(|all| !all.is_empty())),
    ];
    wishes.into_iter().filter(|(_, wished)| *wished).map(|(name, _)| name).collect()
}

fn controller(pod: &Pod) -> Option<SpreadKey> {
    let owners = pod.metadata.owner_references.as_ref()?;
    let controller = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(controller.uid.as_str().into())
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip =
                port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| ANY_ADDRESS.to_owned());
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some(HostPort { protocol, port: number, ip })
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Labels of a node, as affinity reads them.
pub(crate) type Labels = BTreeMap<String, String>;
