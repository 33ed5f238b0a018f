//! Who has which CPUs to itself: upstream's static policy, pure.
//!
//! A container of a Guaranteed pod that asks for whole CPUs gets them alone, for as long as its pod is here. All others
//! share what is left. Reserved CPUs are always shared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::set::CpuSet;
use super::topology::Topology;
use crate::locality::{Hint, Near, Nodes, hints, of_pod};
use crate::pod::qos::{QosClass, qos_class, request};
use crate::pod::state::Verdict;
use crate::pod::{ContainerKind, DesiredContainer, DesiredPod};

/// By pod uid and container.
pub type Entries = BTreeMap<String, BTreeMap<String, CpuSet>>;

/// As it is on disk, in upstream's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub policy_name: String,
    /// For whoever reads the file: it follows from the entries.
    pub default_cpu_set: CpuSet,
    #[serde(default)]
    pub entries: Entries,
}

#[derive(Debug)]
pub struct Ledger {
    topology: Topology,
    reserved: CpuSet,
    entries: Entries,
    /// Counts changes.
    pub version: u64,
}

impl Ledger {
    /// `known` is what an earlier agent has given. Entries that this machine does not have the CPUs for are dropped; their
    /// uids are returned.
    pub fn new(topology: Topology, reserved: CpuSet, known: Entries) -> (Self, Vec<String>) {
        let all = topology.all();
        let assignable = all.without(&reserved);
        let mut taken = CpuSet::default();
        let (mut entries, mut dropped) = (Entries::new(), Vec::new());
        for (uid, containers) in known {
            let together = containers.values().fold(CpuSet::default(), |sum, cpus| sum.and(cpus));
            if assignable.contains_all(&together) && !taken.overlaps(&together) {
                taken = taken.and(&together);
                entries.insert(uid, containers);
            } else {
                dropped.push(uid);
            }
        }
        (Self { topology, reserved, entries, version: 0 }, dropped)
    }

    /// CPUs that belong to nobody alone.
    pub fn shared(&self) -> CpuSet {
        let given = self.entries.values().flat_map(BTreeMap::values);
        given.fold(self.topology.all(), |left, cpus| left.without(cpus))
    }

    /// How many CPUs are shared, and how many are not.
    pub fn counts(&self) -> (usize, usize) {
        let shared = self.shared().len();
        (shared, self.topology.all().len() - shared)
    }

    /// What a container may run on.
    pub fn of(&self, pod_uid: &str, container: &str) -> CpuSet {
        let own = self.entries.get(pod_uid).and_then(|containers| containers.get(container));
        own.cloned().unwrap_or_else(|| self.shared())
    }

    pub fn is_exclusive(&self, pod_uid: &str, container: &str) -> bool {
        self.entries.get(pod_uid).is_some_and(|containers| containers.contains_key(container))
    }

    /// Gives a pod's containers the CPUs that they ask for, all or none, from the nodes that they are to be `near` as far as
    /// there are any. Repeating it changes nothing.
    pub fn grant(&mut self, pod: &DesiredPod, near: &Near) -> Result<(), Verdict> {
        if self.entries.contains_key(pod.uid()) {
            return Ok(());
        }
        let granted = self.allot(pod, &pod.containers, near)?.granted;
        if !granted.is_empty() {
            self.entries.insert(pod.uid().to_owned(), granted);
            self.version += 1;
        }
        Ok(())
    }

    /// Nodes that the CPUs of the pod's container of that number could come from; `None` where it asks for none.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near) -> Option<Vec<Hint>> {
        let wanted = Some(exclusive(pod, pod.containers.get(index)?)).filter(|wanted| *wanted > 0)?;
        let Ok(before) = self.allot(pod, &pod.containers[..index], near) else { return Some(Vec::new()) };
        Some(self.ways(wanted, &before.free.and(&before.again)))
    }

    /// Nodes that the CPUs of all containers of the pod could come from together; `None` where it asks for none.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Option<Vec<Hint>> {
        let amounts =
            pod.containers.iter().map(|container| (container.kind, exclusive(pod, container) as u64));
        let wanted = usize::try_from(of_pod(amounts)).ok().filter(|wanted| *wanted > 0)?;
        Some(self.ways(wanted, &self.shared().without(&self.reserved)))
    }

    /// Ways to take so many of the free CPUs.
    fn ways(&self, wanted: usize, free: &CpuSet) -> Vec<Hint> {
        let count = |cpus: &CpuSet, node: u32| self.topology.on(&[node].into(), cpus).len();
        let assignable = self.topology.all().without(&self.reserved);
        let total = |node| count(&assignable, node);
        hints(&self.topology.nodes(), wanted, total, |node| count(free, node))
    }

    /// As many as can be had on these nodes, the rest from anywhere.
    fn take(&self, free: &CpuSet, count: usize, nodes: Option<&Nodes>) -> Option<CpuSet> {
        let there = nodes.map(|nodes| self.topology.on(nodes, free)).unwrap_or_default();
        let first = self.topology.take(&there, count.min(there.len()))?;
        let rest = self.topology.take(&free.without(&first), count - first.len())?;
        Some(first.and(&rest))
    }

    /// What the containers of a pod would get.
    fn allot(
        &self,
        pod: &DesiredPod,
        containers: &[DesiredContainer],
        near: &Near,
    ) -> Result<Allotment, Verdict> {
        let mut free = self.shared().without(&self.reserved);
        // Of init containers, which have ended before the next container starts.
        let mut again = CpuSet::default();
        let mut granted = BTreeMap::new();
        for container in containers {
            let nodes = near.get(container.name());
            let wanted = exclusive(pod, container);
            if wanted == 0 {
                continue;
            }
            // Those that are free again come first, unless they would be too far away.
            let (reused, pool) = match nodes {
                None => {
                    (self.topology.take(&again, wanted.min(again.len())).unwrap_or_default(), free.clone())
                }
                Some(_) => (CpuSet::default(), free.and(&again)),
            };
            let fresh = self.take(&pool, wanted - reused.len(), nodes);
            let Some(fresh) = fresh else {
                let available = free.len() + again.len();
                let message = format!(
                    "Allocate failed due to not enough cpus available to satisfy request: requested={wanted}, available={available}, which is unexpected"
                );
                return Err(Verdict::refusal("UnexpectedAdmissionError", &message));
            };
            free = free.without(&fresh);
            let cpus = reused.and(&fresh);
            again = match container.kind {
                ContainerKind::Init => again.and(&cpus),
                _ => again.without(&cpus),
            };
            granted.insert(container.name().to_owned(), cpus);
        }
        Ok(Allotment { granted, free, again })
    }

    /// Gives back what pods have that are not to keep it; true when there was something.
    pub fn release_all(&mut self, keeps: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|uid, _| keeps(uid));
        let changed = self.entries.len() != before;
        self.version += u64::from(changed);
        changed
    }

    pub fn state(&self) -> State {
        State {
            policy_name: "static".to_owned(),
            default_cpu_set: self.shared(),
            entries: self.entries.clone(),
        }
    }
}

struct Allotment {
    granted: BTreeMap<String, CpuSet>,
    /// What is left.
    free: CpuSet,
    /// What init containers leave to those after them.
    again: CpuSet,
}

/// How many of the pod's containers ask for CPUs of their own.
pub(super) fn asking(pod: &DesiredPod) -> usize {
    pod.containers.iter().filter(|container| exclusive(pod, container) > 0).count()
}

/// Number of CPUs that a container gets to itself.
fn exclusive(pod: &DesiredPod, container: &DesiredContainer) -> usize {
    let spec = pod.spec();
    if qos_class(spec) != QosClass::Guaranteed
        || spec.resources.is_some()
        || container.kind == ContainerKind::Ephemeral
    {
        return 0;
    }
    let millis = request(&container.spec, "cpu");
    if millis % 1000 == 0 { usize::try_from(millis / 1000).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::machine;
    use super::*;
    use crate::pod::testing::{pod_object, spec, with_resources};
    use k8s_openapi::api::core::v1::Container;
    use std::sync::Arc;

    fn ledger() -> Ledger {
        // CPUs 0 to 7 in two sockets of two cores; 0 and 4 are one core.
        Ledger::new(machine(2, 2), "0,4".parse().expect("a set"), Entries::new()).0
    }

    fn whole(name: &str, cpu: &str) -> Container {
        with_resources(name, &[], &[("cpu", cpu), ("memory", "1Gi")])
    }

    fn pod(uid: &str, init: Vec<Container>, main: Vec<Container>) -> DesiredPod {
        let mut object = pod_object(spec("Always", init, main));
        object.metadata.uid = Some(uid.into());
        DesiredPod::new(Arc::new(object))
    }

    fn of(ledger: &Ledger, uid: &str, container: &str) -> String {
        ledger.of(uid, container).to_string()
    }

    #[test]
    fn whole_cpus_of_guaranteed_pods_are_their_own() {
        let mut ledger = ledger();
        assert_eq!(ledger.shared().to_string(), "0-7");
        ledger
            .grant(&pod("one", vec![], vec![whole("a", "2"), whole("b", "1")]), &Near::new())
            .expect("there are");
        assert_eq!((of(&ledger, "one", "a"), of(&ledger, "one", "b")), ("1,5".into(), "2".into()));
        let check = |name: &str, main: Container| {
            let mut ledger = self::ledger();
            ledger.grant(&pod(name, vec![], vec![main]), &Near::new()).expect("nothing is asked for");
            assert_eq!((of(&ledger, name, "a"), ledger.version), ("0-7".into(), 0), "{name}");
        };
        check("a part of a CPU", whole("a", "1500m"));
        check("burstable", with_resources("a", &[("cpu", "2")], &[]));
        check("best effort", with_resources("a", &[], &[]));
        let before = ledger.state();
        ledger
            .grant(&pod("one", vec![], vec![whole("a", "2"), whole("b", "1")]), &Near::new())
            .expect("as before");
        assert_eq!(ledger.state(), before);
        assert_eq!(ledger.shared().to_string(), "0,3-4,6-7");
        assert!(ledger.release_all(|uid| uid != "one"));
        assert_eq!(ledger.shared().to_string(), "0-7");
    }

    #[test]
    fn reserved_cpus_stay_shared_and_too_few_are_a_refusal() {
        let mut ledger = ledger();
        let refused = ledger
            .grant(&pod("large", vec![], vec![whole("a", "7")]), &Near::new())
            .expect_err("six are left");
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert!(refused.message.contains("requested=7, available=6"), "{}", refused.message);
        let both = vec![whole("a", "4"), whole("b", "3")];
        ledger.grant(&pod("both", vec![], both), &Near::new()).expect_err("all or none");
        assert_eq!(ledger.version, 0);
        ledger.grant(&pod("all", vec![], vec![whole("a", "6")]), &Near::new()).expect("there are");
        assert_eq!(ledger.shared().to_string(), "0,4");
    }

    #[test]
    fn init_containers_leave_theirs_to_those_after_them() {
        let mut ledger = ledger();
        let init = vec![whole("first", "4"), whole("second", "6")];
        ledger
            .grant(&pod("p", init, vec![whole("a", "2"), whole("b", "4")]), &Near::new())
            .expect("the same ones");
        let (a, b) = (ledger.of("p", "a"), ledger.of("p", "b"));
        assert!(!a.overlaps(&b));
        assert_eq!(a.and(&b), ledger.of("p", "second"));
    }

    #[test]
    fn cpus_come_from_the_nodes_that_were_chosen() {
        let mut ledger = ledger();
        // Node 0 has 1 and 5 to give, node 1 has 2, 3, 6 and 7.
        let two = pod("p", vec![], vec![whole("a", "2"), whole("b", "4")]);
        let shown = |hints: Option<Vec<Hint>>| -> Vec<(Vec<u32>, bool)> {
            let hints = hints.expect("it asks for some").into_iter();
            hints.map(|hint| (hint.nodes.into_iter().collect(), hint.is_preferred)).collect()
        };
        let anywhere = Near::new();
        assert_eq!(
            shown(ledger.hints(&two, 0, &anywhere)),
            [(vec![0], true), (vec![1], true), (vec![0, 1], false)]
        );
        let near = Near::from([("a".to_owned(), [1].into())]);
        assert_eq!(shown(ledger.hints(&two, 1, &near)), [(vec![0, 1], false)], "one node had four");
        assert_eq!(ledger.hints(&pod("q", vec![], vec![whole("a", "1500m")]), 0, &anywhere), None);
        ledger.grant(&two, &near).expect("there are");
        assert_eq!(of(&ledger, "p", "a"), "2,6");
    }

    #[test]
    fn containers_of_a_pod_come_from_nodes_that_have_enough_for_all() {
        let mut ledger = ledger();
        // Node 0 has 1 and 5 to give, node 1 has 2, 3, 6 and 7.
        let pod = pod("p", vec![whole("first", "4")], vec![whole("a", "2"), whole("b", "1")]);
        let ways = ledger.hints_of_pod(&pod).expect("it asks for some");
        let shown: Vec<_> = ways.iter().map(|hint| (hint.nodes.clone(), hint.is_preferred)).collect();
        assert_eq!(shown, [([1].into(), true), ([0, 1].into(), false)]);
        let near = pod.containers.iter().map(|c| (c.name().to_owned(), [1].into())).collect();
        ledger.grant(&pod, &near).expect("there are");
        assert_eq!(of(&ledger, "p", "first"), "2-3,6-7");
        let together = ledger.of("p", "a").and(&ledger.of("p", "b"));
        assert_eq!((together.len(), together.overlaps(&"0-1,4-5".parse().expect("a set"))), (3, false));
        let small = self::pod("q", vec![], vec![whole("a", "500m")]);
        assert_eq!(ledger.hints_of_pod(&small), None);
    }

    #[test]
    fn what_was_given_is_known_again_where_the_cpus_are_there() {
        let mut first = ledger();
        first.grant(&pod("one", vec![], vec![whole("a", "2")]), &Near::new()).expect("there are");
        let text = serde_json::to_string(&first.state()).expect("data");
        assert_eq!(
            text,
            r#"{"policyName":"static","defaultCpuSet":"0,2-4,6-7","entries":{"one":{"a":"1,5"}}}"#
        );
        let state: State = serde_json::from_str(&text).expect("as written");
        let again = |topology: Topology, reserved: &str| {
            Ledger::new(topology, reserved.parse().expect("a set"), state.entries.clone())
        };
        let (known, dropped) = again(machine(2, 2), "0,4");
        assert_eq!((known.state(), dropped.len()), (first.state(), 0));
        assert_eq!(again(machine(1, 1), "0").1, ["one"], "a CPU is gone");
        assert_eq!(again(machine(2, 2), "0-1").1, ["one"], "a CPU is reserved now");
    }
}
