//! Which devices there are, and who has them. Pure; kept on disk as one file, so that a new agent gives none out twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::locality::{Hint, Near, Nodes, hints, of_pod};
use crate::pod::qos::limit;
use crate::pod::state::Verdict;
use crate::pod::{ContainerKind, DesiredContainer, DesiredPod};

/// Ids by resource.
pub type Grant = BTreeMap<String, Vec<String>>;

#[derive(Debug, Default)]
pub struct Ledger {
    /// By resource and id. A plugin that is away leaves its devices, all unhealthy.
    pub devices: BTreeMap<String, BTreeMap<String, Device>>,
    pub granted: Granted,
    /// Counts changes of what is granted.
    pub version: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub is_healthy: bool,
    /// NUMA nodes that it is near to; empty where that is not told.
    pub nodes: Nodes,
}

/// Devices that a container of a pod could get, more than it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub container: String,
    pub resource: String,
    pub available: Vec<String>,
    /// Some of `available`: those that init containers leave to it, or all that are near where these do not suffice.
    pub must_include: Vec<String>,
    /// How many it is to have, `must_include` counted.
    pub wanted: usize,
}

/// What plugins prefer, by container and resource. What is not available is passed over, what lacks is made up for.
pub type Wishes = BTreeMap<(String, String), Vec<String>>;

/// By pod uid and container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted(BTreeMap<String, BTreeMap<String, Grant>>);

impl Ledger {
    /// Numbers of all devices of each resource, and of the healthy ones.
    pub fn counts(&self) -> impl Iterator<Item = (&String, usize, usize)> {
        self.devices.iter().map(|(resource, devices)| {
            (resource, devices.len(), devices.values().filter(|device| device.is_healthy).count())
        })
    }

    /// Grants a pod's containers the devices that they ask for, all or none, those first that are on the nodes that they
    /// are to be `near`, and of these the wished for. Repeating it changes nothing.
    pub fn grant(&mut self, pod: &DesiredPod, near: &Near, wishes: &Wishes) -> Result<(), Verdict> {
        if self.granted.0.contains_key(pod.uid()) {
            return Ok(());
        }
        let grants = self.allot(&pod.containers, near, wishes)?.grants;
        if !grants.is_empty() {
            self.granted.0.insert(pod.uid().to_owned(), grants);
            self.version += 1;
        }
        Ok(())
    }

    /// Nodes that the devices of the pod's container of that number could come from, for each resource whose devices all
    /// have a place.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near, wishes: &Wishes) -> Vec<Vec<Hint>> {
        let Some(container) = pod.containers.get(index) else { return Vec::new() };
        let before = self.allot(&pod.containers[..index], near, wishes);
        let of_resource = self.devices.iter().filter_map(|(resource, devices)| {
            let wanted = wanted(container, resource)?;
            match &before {
                Ok(before) => before.ways(resource, devices, wanted),
                Err(_) => devices_have_places(devices).then(Vec::new),
            }
        });
        of_resource.collect()
    }

    /// Nodes that the devices of all containers of the pod could come from together, for each resource whose devices all have
    /// a place.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Vec<Vec<Hint>> {
        let start = self.start();
        let of_resource = self.devices.iter().filter_map(|(resource, devices)| {
            let amounts = pod.containers.iter().map(|container| {
                let wanted = wanted(container, resource).unwrap_or(0);
                (container.kind, wanted as u64)
            });
            let wanted = usize::try_from(of_pod(amounts)).ok().filter(|wanted| *wanted > 0)?;
            start.ways(resource, devices, wanted)
        });
        of_resource.collect()
    }

    /// Nothing is given to the pod yet.
    fn start(&self) -> Allotment {
        Allotment { taken: self.granted.all().collect(), ..Allotment::default() }
    }

    /// The first choice for the pod's container of that number, among the resources that are `asked` for, of which no
    /// wish is known; it depends on the wishes for what comes before. `None` also for a pod that cannot be granted.
    pub fn choice(
        &self,
        pod: &DesiredPod,
        index: usize,
        near: &Near,
        wishes: &Wishes,
        asked: &BTreeSet<String>,
    ) -> Option<Choice> {
        if asked.is_empty() || self.granted.0.contains_key(pod.uid()) {
            return None;
        }
        let container = pod.containers.get(index)?;
        let mut choices = self.allot(&pod.containers[..=index], near, wishes).ok()?.choices.into_iter();
        choices.find(|choice| {
            let key = (choice.container.clone(), choice.resource.clone());
            choice.container == container.name()
                && asked.contains(&choice.resource)
                && !wishes.contains_key(&key)
        })
    }

    /// What containers of a pod would get.
    fn allot(
        &self,
        containers: &[DesiredContainer],
        near: &Near,
        wishes: &Wishes,
    ) -> Result<Allotment, Verdict> {
        let mut allotment = self.start();
        for container in containers {
            for (resource, devices) in &self.devices {
                let Some(wanted) = wanted(container, resource) else { continue };
                let choice = allotment.choice(container, near, resource, devices, wanted)?;
                let wish = wishes.get(&(choice.container.clone(), choice.resource.clone()));
                allotment.take(container.kind, choice, wish.map(Vec::as_slice).unwrap_or_default());
            }
        }
        Ok(allotment)
    }

    pub fn of(&self, pod_uid: &str, container: &str) -> Grant {
        self.granted.0.get(pod_uid).and_then(|pod| pod.get(container)).cloned().unwrap_or_default()
    }

    /// True when there was something to give back.
    pub fn release(&mut self, pod_uid: &str) -> bool {
        self.release_all(|uid| uid != pod_uid)
    }

    /// Gives back what pods have that are not to keep it; true when there was something.
    pub fn release_all(&mut self, keeps: impl Fn(&str) -> bool) -> bool {
        let before = self.granted.0.len();
        self.granted.0.retain(|uid, _| keeps(uid));
        let changed = self.granted.0.len() != before;
        self.version += u64::from(changed);
        changed
    }
}

/// How many devices the container asks for, where it does.
fn wanted(container: &DesiredContainer, resource: &str) -> Option<usize> {
    usize::try_from(limit(&container.spec, resource)).ok().filter(|wanted| *wanted > 0)
}

fn devices_have_places(devices: &BTreeMap<String, Device>) -> bool {
    devices.values().all(|device| !device.nodes.is_empty())
}

/// What a pod's containers would get.
#[derive(Default)]
struct Allotment {
    grants: BTreeMap<String, Grant>,
    /// All that is taken then, by resource and id.
    taken: BTreeSet<(String, String)>,
    /// Some of `taken`: of init containers, which have ended before the next container starts.
    again: BTreeSet<(String, String)>,
    /// Where there was more than one way.
    choices: Vec<Choice>,
}

impl Allotment {
    fn is_free(&self, resource: &str, id: &str) -> bool {
        let key = (resource.to_owned(), id.to_owned());
        !self.taken.contains(&key) || self.again.contains(&key)
    }

    /// Ways to take so many of the resource's devices; `None` where not all have a place.
    fn ways(&self, resource: &str, devices: &BTreeMap<String, Device>, wanted: usize) -> Option<Vec<Hint>> {
        if !devices_have_places(devices) {
            return None;
        }
        let all: Nodes = devices.values().flat_map(|device| device.nodes.iter().copied()).collect();
        // One that is near to several nodes counts once for each; it is the plugin's to say so of few.
        let total = |node| devices.values().filter(|device| device.nodes.contains(&node)).count();
        let free = |node| {
            let there = devices.iter().filter(|(_, device)| device.nodes.contains(&node));
            there.filter(|(id, device)| device.is_healthy && self.is_free(resource, id)).count()
        };
        Some(hints(&all, wanted, total, free))
    }

    /// What there is for a container: those first that are free again, unless they would be too far away, then those that
    /// are near. Where there are enough of these, no others are in it.
    fn choice(
        &self,
        container: &DesiredContainer,
        near: &Near,
        resource: &str,
        devices: &BTreeMap<String, Device>,
        wanted: usize,
    ) -> Result<Choice, Verdict> {
        let nodes = near.get(container.name());
        let rank = |id: &String, device: &Device| {
            let is_near = nodes.is_some_and(|nodes| !nodes.is_disjoint(&device.nodes));
            let is_again = self.again.contains(&(resource.to_owned(), id.clone()));
            match (is_again, is_near) {
                (true, _) if is_near || nodes.is_none() => 0,
                (_, true) => 1,
                _ => 2,
            }
        };
        let healthy = devices.iter().filter(|(id, device)| device.is_healthy && self.is_free(resource, id));
        let mut ranked: Vec<(u8, &String)> = healthy.map(|(id, device)| (rank(id, device), id)).collect();
        ranked.sort();
        if ranked.len() < wanted {
            let message = format!(
                "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {}, which is unexpected",
                ranked.len()
            );
            return Err(Verdict::refusal("UnexpectedAdmissionError", &message));
        }
        let up_to = |rank: u8| ranked.partition_point(|(found, _)| *found <= rank);
        let (sure, all) = match up_to(1) {
            enough if enough > wanted => (up_to(0), enough),
            near => (near, ranked.len()),
        };
        let available: Vec<String> = ranked[..all].iter().map(|(_, id)| (*id).clone()).collect();
        let must_include = available[..sure.min(wanted)].to_vec();
        let (container, resource) = (container.name().to_owned(), resource.to_owned());
        Ok(Choice { container, resource, available, must_include, wanted })
    }

    fn take(&mut self, kind: ContainerKind, choice: Choice, wish: &[String]) {
        let Choice { container, resource, available, must_include, wanted } = &choice;
        let mut chosen: Vec<String> = Vec::with_capacity(*wanted);
        let wished = wish.iter().filter(|id| available.contains(id));
        for id in must_include.iter().chain(wished).chain(available) {
            if chosen.len() < *wanted && !chosen.contains(id) {
                chosen.push(id.clone());
            }
        }
        for id in &chosen {
            let key = (resource.clone(), id.clone());
            self.taken.insert(key.clone());
            match kind {
                ContainerKind::Init => self.again.insert(key),
                _ => self.again.remove(&key),
            };
        }
        self.grants.entry(container.clone()).or_default().insert(resource.clone(), chosen);
        if must_include.len() < *wanted && available.len() > *wanted {
            self.choices.push(choice);
        }
    }
}

impl Granted {
    fn all(&self) -> impl Iterator<Item = (String, String)> {
        let grants = self.0.values().flat_map(|pod| pod.values()).flatten();
        grants.flat_map(|(resource, ids)| ids.iter().map(|id| (resource.clone(), id.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod, pod_object, spec, with_resources};
    use k8s_openapi::api::core::v1::Container;
    use std::sync::Arc;

    fn asking(uid: &str, containers: &[(&str, &str)]) -> DesiredPod {
        let containers = containers
            .iter()
            .map(|(name, count)| with_resources(name, &[], &[("test/gpu", count)]))
            .collect();
        let mut object = pod_object(spec("Always", vec![], containers));
        object.metadata.uid = Some(uid.into());
        DesiredPod::new(Arc::new(object))
    }

    fn ledger() -> Ledger {
        let devices = [("a", true), ("b", false), ("c", true), ("d", true)];
        let device = |is_healthy| Device { is_healthy, ..Device::default() };
        let devices = devices.into_iter().map(|(id, healthy)| (id.to_owned(), device(healthy))).collect();
        Ledger { devices: [("test/gpu".to_owned(), devices)].into(), ..Ledger::default() }
    }

    #[test]
    fn devices_are_given_once_and_only_healthy_ones() {
        let mut ledger = ledger();
        ledger
            .grant(&asking("one", &[("x", "1"), ("y", "1")]), &Near::new(), &Wishes::new())
            .expect("there are");
        assert_eq!(ledger.of("one", "x")["test/gpu"], ["a"]);
        assert_eq!(ledger.of("one", "y")["test/gpu"], ["c"]);
        let before = ledger.granted.clone();
        ledger
            .grant(&asking("one", &[("x", "1"), ("y", "1")]), &Near::new(), &Wishes::new())
            .expect("as before");
        assert_eq!(ledger.granted, before);
        let refused = ledger
            .grant(&asking("two", &[("x", "1"), ("y", "1")]), &Near::new(), &Wishes::new())
            .expect_err("too many");
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert!(refused.message.contains("Requested: 1, Available: 0"), "{}", refused.message);
        assert!(ledger.of("two", "x").is_empty(), "all or none");
        assert!(ledger.release("one") && !ledger.release("one"));
        ledger.grant(&asking("two", &[("x", "3")]), &Near::new(), &Wishes::new()).expect("free again");
    }

    #[test]
    fn pod_without_devices_is_not_noted() {
        let mut ledger = ledger();
        ledger
            .grant(&pod(spec("Always", vec![], vec![])), &Near::new(), &Wishes::new())
            .expect("nothing asked");
        assert_eq!(ledger.granted, Granted::default());
        let counts: Vec<_> =
            ledger.counts().map(|(name, all, healthy)| (name.as_str(), all, healthy)).collect();
        assert_eq!(counts, [("test/gpu", 4, 3)]);
    }

    #[test]
    fn devices_come_from_the_nodes_that_were_chosen() {
        let near = |node: u32| Device { is_healthy: true, nodes: [node].into() };
        let gpus = [("a", near(0)), ("b", near(1)), ("c", near(1))];
        let gpus = gpus.into_iter().map(|(id, device)| (id.to_owned(), device)).collect();
        let mut ledger = Ledger { devices: [("test/gpu".to_owned(), gpus)].into(), ..Ledger::default() };
        let pod = asking("one", &[("x", "1"), ("y", "2")]);
        let preferred = |hints: Vec<Vec<Hint>>| -> Vec<Nodes> {
            let hints = hints.into_iter().flatten().filter(|hint| hint.is_preferred);
            hints.map(|hint| hint.nodes).collect()
        };
        assert_eq!(preferred(ledger.hints(&pod, 0, &Near::new(), &Wishes::new())), [[0].into(), [1].into()]);
        assert_eq!(preferred(ledger.hints(&pod, 1, &Near::new(), &Wishes::new())), [Nodes::from([1])]);
        let chosen = Near::from([("x".to_owned(), [1].into())]);
        assert_eq!(preferred(ledger.hints(&pod, 1, &chosen, &Wishes::new())), Vec::<Nodes>::new());
        let two = asking("two", &[("x", "1"), ("y", "1")]);
        assert_eq!(preferred(ledger.hints_of_pod(&two)), [Nodes::from([1])], "one node has two");
        assert_eq!(preferred(ledger.hints_of_pod(&pod)), [Nodes::from([0, 1])]);
        ledger.grant(&pod, &chosen, &Wishes::new()).expect("there are");
        assert_eq!(ledger.of("one", "x")["test/gpu"], ["b"]);
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn init_containers_leave_their_devices_to_those_after_them() {
        let mut ledger = ledger();
        let gpus = |name: &str, count: &str| with_resources(name, &[], &[("test/gpu", count)]);
        let sidecar = Container { restart_policy: Some("Always".into()), ..gpus("beside", "1") };
        let init = vec![gpus("first", "3"), sidecar];
        let pod = pod(spec("Always", init, vec![gpus("main", "2")]));
        ledger.grant(&pod, &Near::new(), &Wishes::new()).expect("three suffice");
        let of = |container: &str| ledger.of(pod.uid(), container)["test/gpu"].clone();
        assert_eq!(of("first"), ["a", "c", "d"]);
        assert_eq!(of("beside"), ["a"]);
        assert_eq!(of("main"), ["c", "d"], "the sidecar runs on");
    }

    #[test]
    fn wish_decides_where_there_is_a_choice() {
        let asked = BTreeSet::from(["test/gpu".to_owned()]);
        let mut ledger = ledger();
        let gpus = |name: &str, count: &str| with_resources(name, &[], &[("test/gpu", count)]);
        let pod = pod(spec("Always", vec![gpus("first", "1")], vec![gpus("main", "2"), gpus("rest", "1")]));
        let mut wishes = Wishes::new();
        let choice = |container: &str, available: &[&str], must_include: &[&str], wanted| Choice {
            container: container.into(),
            resource: "test/gpu".into(),
            available: names(available),
            must_include: names(must_include),
            wanted,
        };
        let open = |wishes: &Wishes, index| ledger.choice(&pod, index, &Near::new(), wishes, &asked);
        assert_eq!(open(&wishes, 0), Some(choice("first", &["a", "c", "d"], &[], 1)));
        assert_eq!(ledger.choice(&pod, 0, &Near::new(), &wishes, &BTreeSet::new()), None, "nobody asks");
        wishes.insert(("first".into(), "test/gpu".into()), names(&["b", "d"]));
        assert_eq!(open(&wishes, 0), None);
        assert_eq!(open(&wishes, 1), Some(choice("main", &["d", "a", "c"], &["d"], 2)));
        wishes.insert(("main".into(), "test/gpu".into()), names(&["c", "c", "z"]));
        assert_eq!(open(&wishes, 2), None, "one is left");
        ledger.grant(&pod, &Near::new(), &wishes).expect("there are");
        let of = |container: &str| ledger.of(pod.uid(), container)["test/gpu"].clone();
        assert_eq!((of("first"), of("main"), of("rest")), (names(&["d"]), names(&["d", "c"]), names(&["a"])));
    }

    #[test]
    fn near_devices_are_the_only_choice_where_they_suffice() {
        let near = |node: u32| Device { is_healthy: true, nodes: [node].into() };
        let gpus = [("a", near(0)), ("b", near(1)), ("c", near(1)), ("d", near(0))];
        let gpus = gpus.into_iter().map(|(id, device)| (id.to_owned(), device)).collect();
        let ledger = Ledger { devices: [("test/gpu".to_owned(), gpus)].into(), ..Ledger::default() };
        let asked = BTreeSet::from(["test/gpu".to_owned()]);
        let choice = |count: &str| {
            let near = Near::from([("x".to_owned(), [1].into())]);
            let found = ledger.choice(&asking("one", &[("x", count)]), 0, &near, &Wishes::new(), &asked);
            found.map(|choice| (choice.available, choice.must_include))
        };
        assert_eq!(choice("1"), Some((names(&["b", "c"]), vec![])));
        assert_eq!(choice("2"), None);
        assert_eq!(choice("3"), Some((names(&["b", "c", "a", "d"]), names(&["b", "c"]))));
        assert_eq!(choice("4"), None);
    }
}
