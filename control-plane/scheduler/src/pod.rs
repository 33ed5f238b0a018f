//! A pod as the scheduler sees it, read once from its object.
//!
//! What decides on its place is in parts that pods of one workload share: what it needs of a node ([`Needs`]), who
//! it is to others ([`Identity`]), what it asks with regard to them ([`Terms`]), its volumes ([`PodVolumes`]), and the devices that it claims
//! ([`PodClaims`]).

use std::{collections::BTreeMap, sync::Arc};

use hawser_api::resource::ObjectKey;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::{
    affinity::{NodeAffinity, Toleration},
    devices::PodClaims,
    extender::{Extender, ExtenderSet},
    features,
    group::Group,
    images::PodImages,
    intern::{Interner, Same},
    profile::Profile,
    resources::{self, Requests},
    terms::Terms,
    topology::Identity,
    volumes::PodVolumes,
    workloads::{Controller, Workloads},
};

/// Labels of an object.
pub(crate) type Labels = BTreeMap<String, String>;

/// A pod that waits, is being bound, or is placed.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Arc<str>,
    pub(crate) priority: i32,
    /// When its kubelet began with it, in nanoseconds since the epoch.
    pub(crate) started_at: Option<i128>,
    pub(crate) going: Going,
    /// Its priority lets it preempt others.
    pub(crate) may_preempt: bool,
    /// The node that was cleared for it.
    pub(crate) nominated: Option<String>,
    pub(crate) needs: Arc<Needs>,
    pub(crate) identity: Arc<Identity>,
    /// With those that the cluster has for all pods, as long as it waits.
    pub(crate) terms: Arc<Terms>,
    own_terms: Arc<Terms>,
    controller: Option<Controller>,
    /// The version of the workloads that its terms were read with; `None` where the cluster's were left out.
    read_at: Option<u64>,
    pub(crate) volumes: Arc<PodVolumes>,
    pub(crate) claims: Arc<PodClaims>,
    /// What its condition `PodScheduled` says now, so that the same is not written again.
    pub(crate) told: Option<String>,
    /// Pods that it is placed with.
    pub(crate) group: Option<Arc<Group>>,
    /// Programs outside that have a say in where it goes.
    pub(crate) extenders: ExtenderSet,
    /// Wishes of the pod that this scheduler does not know yet, by their fields.
    pub(crate) not_considered: Vec<&'static str>,
}

/// All that a pod's place depends on, to compare and look up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wishes(Same<Needs>, Same<Identity>, Same<Terms>, Same<PodVolumes>, Same<PodClaims>);

/// Whether the pod is being deleted, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Going {
    No,
    Yes,
    /// To make room for another.
    Preempted,
}

/// What a pod's place depends on as far as one node can tell. Pods of one workload are equal here and share one
/// evaluation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Needs {
    pub(crate) profile: Arc<Profile>,
    pub(crate) requests: Requests,
    /// The same for scores, with a small amount in place of what was not asked for.
    pub(crate) scored: Requests,
    pub(crate) affinity: NodeAffinity,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) images: PodImages,
    /// What its node must have declared.
    pub(crate) features: Vec<&'static str>,
}

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

/// Reads pods, and lets equal parts be one.
#[derive(Default)]
pub(crate) struct Reader {
    needs: Interner<Needs>,
    identities: Interner<Identity>,
    terms: Interner<Terms>,
    volumes: Interner<PodVolumes>,
    claims: Interner<PodClaims>,
    pub(crate) workloads: Workloads,
    extenders: Vec<Arc<Extender>>,
}

impl Reader {
    pub(crate) fn new(extenders: Vec<Arc<Extender>>) -> Self {
        Self { extenders, ..Self::default() }
    }

    pub(crate) fn read(&mut self, pod: &Pod, profile: &Arc<Profile>) -> Arc<PodInfo> {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let needs = Needs::of(pod, spec, profile);
        let identity = identity(pod);
        let terms = Terms::of(spec, &identity, &needs.affinity, &needs.tolerations, profile);
        let own_terms = self.terms.intern(terms);
        let status = pod.status.as_ref();
        let (group, extenders) = (Group::of(pod), ExtenderSet::of(&self.extenders, spec));
        let info = Arc::new(PodInfo {
            key: ObjectKey::of(pod),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            priority: spec.priority.unwrap_or_default(),
            started_at: status
                .and_then(|status| status.start_time.as_ref())
                .map(|time| time.0.as_nanosecond()),
            going: going(pod),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            nominated: status
                .and_then(|status| status.nominated_node_name.clone())
                .filter(|name| !name.is_empty()),
            needs: self.needs.intern(needs),
            identity: self.identities.intern(identity),
            terms: own_terms.clone(),
            own_terms,
            controller: Controller::of(pod),
            read_at: None,
            volumes: self.volumes.intern(PodVolumes::of(pod)),
            claims: self.claims.intern(PodClaims::of(pod)),
            told: told(pod),
            not_considered: not_considered(group.is_some() && !extenders.is_empty()),
            group: group.map(Arc::new),
            extenders,
        });
        // How others are spread is nothing to a pod that has its place.
        if node_of(pod).is_some() { info } else { self.refresh(&info) }
    }

    /// The pod as it is by what the cluster has for all pods now.
    pub(crate) fn refresh(&mut self, pod: &Arc<PodInfo>) -> Arc<PodInfo> {
        let now = Some(self.workloads.version());
        if !pod.own_terms.defaulted || pod.read_at == now {
            return pod.clone();
        }
        let (identity, controller) = (&pod.identity, pod.controller.as_ref());
        let workload = self.workloads.selector_of(&identity.namespace, &identity.labels, controller);
        let terms = self.terms.intern(pod.own_terms.with_defaults(workload, identity, &pod.needs));
        Arc::new(PodInfo { terms, read_at: now, ..(**pod).clone() })
    }
}

impl PodInfo {
    pub(crate) fn is_going(&self) -> bool {
        self.going != Going::No
    }

    /// Pods with the same are placed by the same rules: what is known of one holds for the other.
    pub(crate) fn wishes(&self) -> Wishes {
        self.parts(&self.terms)
    }

    /// What it is to others where it has its place: these are the same for pods that make no difference to anyone.
    pub(crate) fn traits(&self) -> Wishes {
        self.parts(&self.own_terms)
    }

    fn parts(&self, terms: &Arc<Terms>) -> Wishes {
        let (needs, identity, terms) = (self.needs.clone(), self.identity.clone(), terms.clone());
        let (volumes, claims) = (self.volumes.clone(), self.claims.clone());
        Wishes(Same(needs), Same(identity), Same(terms), Same(volumes), Same(claims))
    }
}

impl Needs {
    fn of(pod: &Pod, spec: &PodSpec, profile: &Arc<Profile>) -> Self {
        Self {
            profile: profile.clone(),
            requests: resources::requests(pod, spec),
            scored: resources::scored_requests(pod, spec),
            affinity: NodeAffinity::of(spec),
            tolerations: spec.tolerations.iter().flatten().map(Toleration::of).collect(),
            ports: host_ports(spec),
            images: PodImages::of(spec),
            features: features::required(spec),
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

/// When a pod whose containers succeeded was done; `None` for all others.
pub(crate) fn succeeded_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref().filter(|status| status.phase.as_deref() == Some("Succeeded"))?;
    let ends =
        status.container_statuses.iter().flatten().filter_map(|container| {
            Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)
        });
    let changes =
        status.conditions.iter().flatten().filter_map(|one| Some(one.last_transition_time.as_ref()?.0));
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    Some(ends.max().or(changes.max()).or(created).unwrap_or_default())
}

/// Whether the pod waits for something outside before it may be placed.
pub(crate) fn is_gated(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty())
}

fn identity(pod: &Pod) -> Identity {
    Identity {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
    }
}

fn going(pod: &Pod) -> Going {
    if pod.metadata.deletion_timestamp.is_none() {
        return Going::No;
    }
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut targeted = conditions.filter(|condition| {
        condition.type_ == "DisruptionTarget"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("PreemptionByScheduler")
    });
    if targeted.next().is_some() { Going::Preempted } else { Going::Yes }
}

fn told(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let unschedulable = condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable");
    unschedulable.then(|| condition.message.clone()).flatten()
}

/// Extenders are asked about one pod after the other, which is no way to place a group.
fn not_considered(group_and_extenders: bool) -> Vec<&'static str> {
    let wish = group_and_extenders.then_some("its pod group, because extenders have a say");
    wish.into_iter().collect()
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
