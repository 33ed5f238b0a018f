//! From which NUMA nodes containers have their memory: upstream's static policy, pure.
//!
//! A container of a Guaranteed pod gets its memory and huge pages from as few nodes as can be, and they are promised to
//! nobody else. A node that gives a part of an amount that spans several nodes gives only such parts, of the same nodes:
//! otherwise the kernel could take the part of one from what was promised to the other.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::locality::{Hint, Near, Nodes, hints, of_pod};
use crate::pod::qos::{QosClass, qos_class, request};
use crate::pod::state::Verdict;
use crate::pod::{ContainerKind, DesiredContainer, DesiredPod};

/// Bytes by resource: `memory`, `hugepages-2Mi`, ...
pub type Amounts = BTreeMap<String, u64>;
/// What each node has to give.
pub type Allocatable = BTreeMap<u32, Amounts>;

const MEMORY: &str = "memory";
const HUGEPAGES: &str = "hugepages-";

/// What one container was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    pub numa_affinity: Nodes,
    pub sizes: Amounts,
}

/// What a pod was promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub containers: BTreeMap<String, Block>,
    /// By node, what has to be there for the pod: init containers leave theirs to those after them.
    pub charges: Allocatable,
}

/// As it is on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub policy_name: String,
    #[serde(default)]
    pub entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
pub struct Ledger {
    allocatable: Allocatable,
    entries: BTreeMap<String, Entry>,
    /// Counts changes.
    pub version: u64,
}

/// What is left while the containers of a pod are gone through.
struct Course {
    entry: Entry,
    /// Of containers that stay.
    kept: Allocatable,
}

impl Ledger {
    /// `known` is what an earlier agent has promised. Pods that this machine does not have the memory for any more are
    /// dropped; their uids are returned.
    pub fn new(allocatable: Allocatable, known: BTreeMap<String, Entry>) -> (Self, Vec<String>) {
        let mut ledger = Self { allocatable, entries: BTreeMap::new(), version: 0 };
        let mut dropped = Vec::new();
        for (uid, entry) in known {
            let fits = entry.charges.iter().all(|(node, amounts)| {
                amounts.iter().all(|(resource, amount)| *amount <= ledger.free(*node, resource))
            });
            match fits {
                true => drop(ledger.entries.insert(uid, entry)),
                false => dropped.push(uid),
            }
        }
        (ledger, dropped)
    }

    pub fn state(&self) -> State {
        State { policy_name: "Static".to_owned(), entries: self.entries.clone() }
    }

    /// The nodes that a container has its memory from; `None` where that is not fixed.
    pub fn of(&self, pod_uid: &str, container: &str) -> Option<&Nodes> {
        let block = self.entries.get(pod_uid)?.containers.get(container)?;
        Some(&block.numa_affinity)
    }

    /// Promises a pod's containers what they ask for, all or none, from the nodes that they are to be `near`. Repeating it
    /// changes nothing.
    pub fn grant(&mut self, pod: &DesiredPod, near: &Near) -> Result<(), Verdict> {
        if self.entries.contains_key(pod.uid()) {
            return Ok(());
        }
        let entry = self.go_through(pod, &pod.containers, near)?.entry;
        if !entry.containers.is_empty() {
            self.entries.insert(pod.uid().to_owned(), entry);
            self.version += 1;
        }
        Ok(())
    }

    /// Nodes that the memory of the pod's container of that number could come from, for each resource that it asks for.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near) -> Vec<Vec<Hint>> {
        let Some(container) = pod.containers.get(index) else { return Vec::new() };
        let wanted = wanted(pod, container);
        let Ok(course) = self.go_through(pod, &pod.containers[..index], near) else {
            return wanted.keys().map(|_| Vec::new()).collect();
        };
        let of_resource = wanted.iter().map(|(resource, amount)| self.ways(&course, resource, *amount));
        of_resource.collect()
    }

    /// Nodes that the memory of all containers of the pod could come from together, for each resource that it asks for.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Vec<Vec<Hint>> {
        let by_container: Vec<(ContainerKind, Amounts)> =
            pod.containers.iter().map(|container| (container.kind, wanted(pod, container))).collect();
        let resources: BTreeSet<&String> =
            by_container.iter().flat_map(|(_, wanted)| wanted.keys()).collect();
        let start = Course { entry: Entry::default(), kept: Allocatable::new() };
        let ways = resources.into_iter().map(|resource| {
            let amounts = by_container.iter().map(|(kind, wanted)| {
                let amount = wanted.get(resource).copied().unwrap_or(0);
                (*kind, amount)
            });
            self.ways(&start, resource, of_pod(amounts))
        });
        ways.collect()
    }

    /// Gives back what pods have that are not to keep it; true when there was something.
    pub fn release_all(&mut self, keeps: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|uid, _| keeps(uid));
        let changed = self.entries.len() != before;
        self.version += u64::from(changed);
        changed
    }

    fn go_through(
        &self,
        pod: &DesiredPod,
        containers: &[DesiredContainer],
        near: &Near,
    ) -> Result<Course, Verdict> {
        let mut course = Course { entry: Entry::default(), kept: Allocatable::new() };
        for container in containers {
            let wanted = wanted(pod, container);
            if wanted.is_empty() {
                continue;
            }
            let nodes = self.choose(&course, &wanted, near.get(container.name()));
            let nodes = nodes.ok_or_else(|| {
                let message = "Allocate failed due to [memorymanager] failed to find NUMA nodes to extend the current \
                               topology hint, which is unexpected";
                Verdict::refusal("UnexpectedAdmissionError", message)
            })?;
            self.charge(&mut course, container, &nodes, wanted);
        }
        Ok(course)
    }

    /// Notes what the container has, node by node, each up to what it has left.
    fn charge(&self, course: &mut Course, container: &DesiredContainer, nodes: &Nodes, wanted: Amounts) {
        let mut now = course.kept.clone();
        for (resource, amount) in &wanted {
            let mut left = *amount;
            for node in nodes {
                let there = self.left(course, *node, resource).min(left);
                *now.entry(*node).or_default().entry(resource.clone()).or_default() += there;
                left -= there;
            }
        }
        for (node, amounts) in &now {
            for (resource, amount) in amounts {
                let most =
                    course.entry.charges.entry(*node).or_default().entry(resource.clone()).or_default();
                *most = (*most).max(*amount);
            }
        }
        if container.kind != ContainerKind::Init {
            course.kept = now;
        }
        let block = Block { numa_affinity: nodes.clone(), sizes: wanted };
        course.entry.containers.insert(container.name().to_owned(), block);
    }

    /// The fewest nodes that have all that is wanted, and include those that it is to be near.
    fn choose(&self, course: &Course, wanted: &Amounts, near: Option<&Nodes>) -> Option<Nodes> {
        let mut suitable: Option<BTreeSet<Nodes>> = None;
        for (resource, amount) in wanted {
            let ways = self.ways(course, resource, *amount).into_iter().map(|hint| hint.nodes);
            let ways: BTreeSet<Nodes> = ways.collect();
            suitable = Some(match suitable {
                None => ways,
                Some(known) => known.intersection(&ways).cloned().collect(),
            });
        }
        let includes = |nodes: &Nodes| near.is_none_or(|near| near.is_subset(nodes));
        let suitable = suitable.into_iter().flatten().filter(includes);
        suitable.min_by_key(|nodes| (nodes.len(), nodes.clone()))
    }

    fn ways(&self, course: &Course, resource: &str, amount: u64) -> Vec<Hint> {
        let all: Nodes = self.allocatable.keys().copied().collect();
        let count = |amount: u64| usize::try_from(amount).unwrap_or(usize::MAX);
        let total = |node| count(self.allocatable[&node].get(resource).copied().unwrap_or(0));
        let ways = hints(&all, count(amount), total, |node| count(self.left(course, node, resource)));
        ways.into_iter().filter(|hint| self.may_span(course, &hint.nodes)).collect()
    }

    /// Whether every one of the nodes gives nothing yet, or only to amounts that span the same nodes.
    fn may_span(&self, course: &Course, nodes: &Nodes) -> bool {
        let given = self.entries.values().chain([&course.entry]).flat_map(|entry| entry.containers.values());
        let mut overlapping = given.filter(|block| !block.numa_affinity.is_disjoint(nodes));
        overlapping.all(|block| {
            block.numa_affinity == *nodes || (nodes.len() == 1 && block.numa_affinity.len() == 1)
        })
    }

    /// What the node has that is promised to no pod.
    fn free(&self, node: u32, resource: &str) -> u64 {
        let has = self.allocatable.get(&node).and_then(|amounts| amounts.get(resource)).copied().unwrap_or(0);
        let of_node = self.entries.values().filter_map(|entry| entry.charges.get(&node)?.get(resource));
        has.saturating_sub(of_node.sum())
    }

    fn left(&self, course: &Course, node: u32, resource: &str) -> u64 {
        let kept = course.kept.get(&node).and_then(|amounts| amounts.get(resource)).copied().unwrap_or(0);
        self.free(node, resource).saturating_sub(kept)
    }
}

/// How many of the pod's containers ask for memory of certain nodes.
pub(super) fn asking(pod: &DesiredPod) -> usize {
    pod.containers.iter().filter(|container| !wanted(pod, container).is_empty()).count()
}

/// What a container has to get from nodes of its own.
fn wanted(pod: &DesiredPod, container: &DesiredContainer) -> Amounts {
    let spec = pod.spec();
    if qos_class(spec) != QosClass::Guaranteed
        || spec.resources.is_some()
        || container.kind == ContainerKind::Ephemeral
    {
        return Amounts::new();
    }
    let requests = container.spec.resources.as_ref().map(|r| (r.requests.as_ref(), r.limits.as_ref()));
    let (requests, limits) = requests.unwrap_or_default();
    let names = requests.into_iter().chain(limits).flat_map(BTreeMap::keys);
    let names: BTreeSet<&String> =
        names.filter(|name| *name == MEMORY || name.starts_with(HUGEPAGES)).collect();
    let amounts = names
        .into_iter()
        .map(|name| (name.clone(), u64::try_from(request(&container.spec, name)).unwrap_or(0)));
    amounts.filter(|(_, amount)| *amount > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Container;

    use super::*;
    use crate::pod::testing::{pod_object, spec, with_resources};

    const GIB: u64 = 1 << 30;

    /// Two nodes of 8 GiB each, and huge pages on the second.
    fn ledger() -> Ledger {
        let node =
            |pages: u64| Amounts::from([(MEMORY.into(), 8 * GIB), ("hugepages-2Mi".into(), pages * GIB)]);
        Ledger::new(Allocatable::from([(0, node(0)), (1, node(2))]), BTreeMap::new()).0
    }

    fn guaranteed(name: &str, memory: &str) -> Container {
        with_resources(name, &[], &[("cpu", "1"), ("memory", memory)])
    }

    fn pod(uid: &str, init: Vec<Container>, main: Vec<Container>) -> DesiredPod {
        let mut object = pod_object(spec("Always", init, main));
        object.metadata.uid = Some(uid.into());
        DesiredPod::new(Arc::new(object))
    }

    fn one(uid: &str, memory: &str) -> DesiredPod {
        pod(uid, vec![], vec![guaranteed("main", memory)])
    }

    fn nodes(ledger: &Ledger, uid: &str, container: &str) -> Vec<u32> {
        ledger.of(uid, container).into_iter().flatten().copied().collect()
    }

    #[test]
    fn memory_of_guaranteed_pods_comes_from_one_node_where_that_is_enough() {
        let mut ledger = ledger();
        let anywhere = Near::new();
        for (uid, memory, expected) in [("a", "6Gi", [0]), ("b", "6Gi", [1]), ("c", "2Gi", [0])] {
            ledger.grant(&one(uid, memory), &anywhere).expect("there is room");
            assert_eq!(nodes(&ledger, uid, "main"), expected, "{uid}");
        }
        let refused = ledger.grant(&one("d", "3Gi"), &anywhere).expect_err("no node has it");
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        let before = ledger.version;
        ledger.grant(&one("a", "6Gi"), &anywhere).expect("as before");
        let burstable = pod("e", vec![], vec![with_resources("main", &[("memory", "1Gi")], &[])]);
        ledger.grant(&burstable, &anywhere).expect("nothing is fixed");
        assert_eq!((ledger.version, ledger.of("e", "main")), (before, None));
        assert!(ledger.release_all(|uid| uid != "a"));
        ledger.grant(&one("d", "3Gi"), &anywhere).expect("there is room again");
    }

    #[test]
    fn what_spans_nodes_shares_them_with_nothing_else() {
        let mut ledger = ledger();
        let anywhere = Near::new();
        ledger.grant(&one("wide", "10Gi"), &anywhere).expect("from both");
        assert_eq!(nodes(&ledger, "wide", "main"), [0, 1]);
        ledger.grant(&one("small", "1Gi"), &anywhere).expect("from the same two");
        assert_eq!(nodes(&ledger, "small", "main"), [0, 1], "each gives to both");
        let near = Near::from([("main".into(), [0].into())]);
        ledger.grant(&one("near", "1Gi"), &near).expect("from the same two");
        assert_eq!(nodes(&ledger, "near", "main"), [0, 1]);
        assert!(ledger.grant(&one("more", "5Gi"), &anywhere).is_err(), "all but four is promised");
        let mut single = self::ledger();
        single.grant(&one("small", "1Gi"), &anywhere).expect("from one");
        assert!(single.grant(&one("wide", "10Gi"), &anywhere).is_err(), "one gives to itself alone");
    }

    #[test]
    fn huge_pages_decide_where_the_memory_comes_from() {
        let mut ledger = ledger();
        let limits = [("cpu", "1"), ("memory", "1Gi"), ("hugepages-2Mi", "1Gi")];
        let pages = |uid| pod(uid, vec![], vec![with_resources("main", &[], &limits)]);
        let shown: Vec<Vec<(Vec<u32>, bool)>> = ledger
            .hints(&pages("a"), 0, &Near::new())
            .into_iter()
            .map(|ways| ways.into_iter().map(|h| (h.nodes.into_iter().collect(), h.is_preferred)).collect())
            .collect();
        let both = (vec![0, 1], false);
        assert_eq!(
            shown,
            [vec![(vec![1], true), both.clone()], vec![(vec![0], true), (vec![1], true), both]],
            "huge pages, then memory"
        );
        ledger.grant(&pages("a"), &Near::new()).expect("there are");
        assert_eq!(nodes(&ledger, "a", "main"), [1]);
        ledger.grant(&pages("b"), &Near::new()).expect("there are");
        assert!(ledger.grant(&pages("c"), &Near::new()).is_err(), "no pages are left");
        assert_eq!(
            ledger.hints(&pod("d", vec![], vec![with_resources("m", &[], &[])]), 0, &Near::new()),
            [[]; 0]
        );
    }

    #[test]
    fn init_containers_leave_theirs_to_those_after_them() {
        let mut ledger = ledger();
        let init = vec![guaranteed("first", "7Gi"), guaranteed("second", "5Gi")];
        let main = vec![guaranteed("a", "4Gi"), guaranteed("b", "4Gi")];
        ledger.grant(&pod("p", init, main), &Near::new()).expect("the same memory");
        assert_eq!(nodes(&ledger, "p", "a"), [0]);
        assert_eq!(nodes(&ledger, "p", "b"), [0]);
        ledger.grant(&one("q", "8Gi"), &Near::new()).expect("the other node is free");
        assert_eq!(nodes(&ledger, "q", "main"), [1]);
    }

    #[test]
    fn what_was_promised_is_known_again_where_the_memory_is_there() {
        let mut first = ledger();
        first.grant(&one("a", "6Gi"), &Near::new()).expect("there is room");
        let text = serde_json::to_string(&first.state()).expect("data");
        let state: State = serde_json::from_str(&text).expect("as written");
        assert_eq!(state, first.state());
        let (again, dropped) = Ledger::new(first.allocatable.clone(), state.entries.clone());
        assert_eq!((again.state(), dropped.len()), (first.state(), 0));
        let small = Allocatable::from([(0, Amounts::from([(MEMORY.into(), GIB)]))]);
        assert_eq!(Ledger::new(small, state.entries).1, ["a"]);
    }
}
