//! What a pod's terms mean on every node just now, and what they would mean if pods came or went.
//!
//! [`Outlook`] is made for one decision from the counters; [`WhatIf`] asks of one node whether the pod could run there
//! beside other pods than those that are on it.

use crate::{
    devices::DeviceView,
    filters,
    pod::PodInfo,
    pod_affinity::Required,
    profile::{Plugin, PluginSet},
    refusal::Refusal,
    snapshot::{NodeEntry, Occupancy, Slot, Snapshot},
    spread::{Hard, Soft},
    terms::StandingKind,
    topology::{Counter, CounterId, TopologyId, weight_on},
    volumes::{Trouble, VolumeView},
};

pub(crate) struct Outlook<'a> {
    pub(crate) pod: &'a PodInfo,
    pub(crate) snapshot: &'a Snapshot,
    /// Unset where the pod has none.
    pub(crate) volumes: Option<VolumeView<'a>>,
    /// Unset where the pod claims none.
    pub(crate) devices: Option<DeviceView<'a>>,
    hard: Vec<Hard<'a>>,
    required: Required<'a>,
    pub(crate) preferred: Vec<(i64, &'a Counter)>,
    pub(crate) soft: Soft<'a>,
}

impl<'a> Outlook<'a> {
    /// `counters` are those of the pod's terms. Fails where no node can have the pod's volumes or devices.
    pub(crate) fn new(
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        counters: &[CounterId],
    ) -> Result<Self, Trouble> {
        let topology = &snapshot.topology;
        let terms = &*pod.terms;
        let filters = pod.needs.profile.filters;
        // In the order of `Terms::counters`.
        let mut counters = counters.iter().map(|id| topology.counter(*id));
        let mut next = |count: usize| -> Vec<&'a Counter> { counters.by_ref().take(count).collect() };
        let (affinity, anti) = (next(terms.affinity.len()), next(terms.anti_affinity.len()));
        let preferred = next(terms.preferred.len());
        let (hard, soft) = (next(terms.hard.len()), next(terms.soft.len()));
        let hard = terms
            .hard
            .iter()
            .zip(hard)
            .map(|(spread, counter)| Hard::new(spread, counter, &topology.domains));
        let spreads = filters.contains(Plugin::PodTopologySpread);
        let volumes =
            if pod.volumes.is_empty() { None } else { Some(VolumeView::new(pod, &snapshot.volumes)?) };
        let claims = snapshot.devices.concern(pod) && filters.contains(Plugin::DynamicResources);
        let devices = if claims { Some(DeviceView::new(pod, &snapshot.devices)?) } else { None };
        Ok(Self {
            pod,
            snapshot,
            volumes,
            devices,
            hard: if spreads { hard.collect() } else { Vec::new() },
            required: if filters.contains(Plugin::InterPodAffinity) {
                Required::new(pod, topology, affinity, anti)
            } else {
                Required::nothing(topology)
            },
            preferred: terms.preferred.iter().map(|(weight, _)| *weight).zip(preferred).collect(),
            soft: Soft {
                constraints: terms.soft.iter().zip(soft).collect(),
                needs_all: terms.soft_needs_all,
                domains: &topology.domains,
                nodes: &snapshot.nodes,
            },
        })
    }

    /// Plugins of which the outlook knows what they say of a node.
    pub(crate) const PLUGINS: [Plugin; 4] = [
        Plugin::VolumeBinding,
        Plugin::PodTopologySpread,
        Plugin::InterPodAffinity,
        Plugin::DynamicResources,
    ];

    /// The filters that have something to say about the pod.
    pub(crate) fn plugins(&self) -> PluginSet {
        let needs = &self.pod.needs;
        let mut plugins = PluginSet::of(&[
            Plugin::NodeUnschedulable,
            Plugin::NodeName,
            Plugin::TaintToleration,
            Plugin::NodeResourcesFit,
        ]);
        let mut insert = |has: bool, of: &[Plugin]| {
            if has {
                plugins = plugins.union(PluginSet::of(of));
            }
        };
        let asks = needs.affinity.is_required() || needs.profile.added_affinity.is_some();
        insert(asks, &[Plugin::NodeAffinity]);
        insert(!needs.ports.is_empty(), &[Plugin::NodePorts]);
        let of_volumes =
            [Plugin::VolumeRestrictions, Plugin::NodeVolumeLimits, Plugin::VolumeBinding, Plugin::VolumeZone];
        insert(self.volumes.is_some(), &of_volumes);
        insert(!self.hard.is_empty(), &[Plugin::PodTopologySpread]);
        insert(!self.required.is_empty(), &[Plugin::InterPodAffinity]);
        insert(self.devices.is_some(), &[Plugin::DynamicResources]);
        insert(!needs.features.is_empty(), &[Plugin::NodeDeclaredFeatures]);
        plugins.and(needs.profile.filters)
    }

    /// Why the node cannot take the pod, as one of [`Self::PLUGINS`] says it.
    pub(crate) fn refusal_by(&self, plugin: Plugin, slot: Slot) -> Option<Refusal> {
        match plugin {
            Plugin::VolumeBinding => self.volumes_refusal(slot, &[]),
            Plugin::PodTopologySpread => self.hard.iter().find_map(|hard| hard.refusal(slot, 0)),
            Plugin::InterPodAffinity => self.required.refusal(slot, |_| 0, |_| 0),
            Plugin::DynamicResources => self.devices_refusal(slot),
            _ => None,
        }
    }

    /// Whether no node is refused.
    pub(crate) fn is_clear(&self) -> bool {
        self.volumes.is_none()
            && self.devices.is_none()
            && self.hard.is_empty()
            && self.required.is_empty()
            && self.pod.needs.features.is_empty()
    }

    /// What the node has of an extended resource by a device class, and what of that is taken.
    pub(crate) fn provided(&self, slot: Slot, resource: &str) -> Option<(i64, i64)> {
        self.devices.as_ref()?.provided(resource, slot, &self.snapshot.nodes[slot])
    }

    /// Why the node cannot take the pod.
    pub(crate) fn refusal(&self, slot: Slot) -> Option<Refusal> {
        self.volumes_refusal(slot, &[])
            .or_else(|| self.refusal_with(slot, |_| 0, |_| 0))
            .or_else(|| self.devices_refusal(slot))
            .or_else(|| filters::features(&self.pod.needs, &self.snapshot.nodes[slot]))
    }

    /// Whether pods that nodes are kept for matter by more than their room.
    pub(crate) fn minds_nominated(&self) -> bool {
        !self.is_clear() || self.snapshot.nominations.have_anti_affinity()
    }

    /// Nodes that are kept for pods.
    pub(crate) fn nominated_slots(&self) -> impl Iterator<Item = Slot> {
        self.snapshot.nominations.nodes().filter_map(|node| self.snapshot.slot(node))
    }

    /// Why the node cannot take the pod beside those that it is kept for, of the same priority or a higher one.
    pub(crate) fn refusal_beside_nominated(&self, slot: Slot) -> Option<Refusal> {
        let node = &self.snapshot.nodes[slot];
        let mut others = self.snapshot.nominations.before(self.pod, &node.name).peekable();
        others.peek()?;
        let mut what_if = WhatIf::new(self, slot);
        others.for_each(|other| what_if.add(other));
        what_if.refusal()
    }

    fn volumes_refusal(&self, slot: Slot, changes: &[(&PodInfo, i64)]) -> Option<Refusal> {
        self.volumes.as_ref()?.refusal(slot, &self.snapshot.nodes, changes)
    }

    /// Devices that pods have stay given out when they go: a controller takes them back later.
    fn devices_refusal(&self, slot: Slot) -> Option<Refusal> {
        self.devices.as_ref()?.refusal(slot, &self.snapshot.nodes[slot])
    }

    fn refusal_with(
        &self,
        slot: Slot,
        more: impl Fn(&Counter) -> i64,
        more_standing: impl Fn(TopologyId) -> i64,
    ) -> Option<Refusal> {
        self.hard
            .iter()
            .find_map(|hard| hard.refusal(slot, more(hard.counter)))
            .or_else(|| self.required.refusal(slot, &more, more_standing))
    }
}

/// One node with other pods on it than there are.
pub(crate) struct WhatIf<'a> {
    outlook: &'a Outlook<'a>,
    slot: Slot,
    taken: Occupancy,
    /// Pods taken off (-1) and put there (1).
    changes: Vec<(&'a PodInfo, i64)>,
}

impl<'a> WhatIf<'a> {
    pub(crate) fn new(outlook: &'a Outlook<'a>, slot: Slot) -> Self {
        Self { outlook, slot, taken: outlook.snapshot.nodes[slot].taken.clone(), changes: Vec::new() }
    }

    pub(crate) fn add(&mut self, pod: &'a PodInfo) {
        self.taken.add(&pod.needs);
        self.change(pod, 1);
    }

    pub(crate) fn remove(&mut self, pod: &'a PodInfo) {
        self.taken.remove(&pod.needs);
        self.change(pod, -1);
    }

    /// Why the pod could not run there even so. The node itself must fit.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let Outlook { pod, snapshot, .. } = *self.outlook;
        let node: &NodeEntry = &snapshot.nodes[self.slot];
        if let Some(refusal) = filters::room(&pod.needs, node, &self.taken) {
            return Some(refusal);
        }
        let namespaces = &snapshot.topology.namespaces;
        let sum = |weight: &dyn Fn(&PodInfo) -> i64| -> i64 {
            self.changes.iter().map(|(pod, sign)| sign * weight(pod)).sum()
        };
        let more = |counter: &Counter| sum(&|other| i64::from(counter.counts_pod(other, namespaces)));
        let more_standing = |topology: TopologyId| {
            let name = snapshot.topology.domains.name(topology);
            sum(&|other| weight_on(other, StandingKind::AntiAffinity, &pod.identity, namespaces, name))
        };
        if self.outlook.is_clear() && self.new_standing() == 0 {
            return None;
        }
        self.outlook
            .volumes_refusal(self.slot, &self.changes)
            .or_else(|| self.outlook.refusal_with(self.slot, more, more_standing))
            .or_else(|| (self.new_standing() > 0).then_some(Refusal::StandingAntiAffinity))
            .or_else(|| self.outlook.devices_refusal(self.slot))
            .or_else(|| filters::features(&pod.needs, node))
    }

    /// Anti-affinity of pods that are put there, towards the pod, where the node has the label.
    fn new_standing(&self) -> i64 {
        let Outlook { pod, snapshot, .. } = *self.outlook;
        let node = &snapshot.nodes[self.slot];
        let namespaces = &snapshot.topology.namespaces;
        let about = |other: &PodInfo| {
            let terms = other.terms.standing.iter().map(|(key, _)| key);
            terms
                .filter(|key| {
                    key.kind == StandingKind::AntiAffinity && node.labels.contains_key(&key.topology)
                })
                .filter(|key| key.who.includes(&pod.identity, namespaces))
                .count()
        };
        let put = self.changes.iter().filter(|(_, sign)| *sign > 0);
        put.map(|(other, _)| i64::try_from(about(other)).unwrap_or(i64::MAX)).sum()
    }

    fn change(&mut self, pod: &'a PodInfo, sign: i64) {
        let undone = self
            .changes
            .iter()
            .position(|(other, other_sign)| std::ptr::eq(*other, pod) && *other_sign == -sign);
        match undone {
            Some(index) => _ = self.changes.swap_remove(index),
            None => self.changes.push((pod, sign)),
        }
    }
}
