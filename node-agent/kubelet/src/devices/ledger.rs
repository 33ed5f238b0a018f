//! Which devices there are, and who has them. Pure; kept on disk as one file, so that a new agent gives none out twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::locality::{Hint, Near, Nodes, hints};
use crate::pod::qos::limit;
use crate::pod::state::Verdict;
use crate::pod::{DesiredContainer, DesiredPod};

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
    /// are to be `near`. Repeating it changes nothing.
    pub fn grant(&mut self, pod: &DesiredPod, near: &Near) -> Result<(), Verdict> {
        if self.granted.0.contains_key(pod.uid()) {
            return Ok(());
        }
        let grants = self.allot(&pod.containers, near)?.grants;
        if !grants.is_empty() {
            self.granted.0.insert(pod.uid().to_owned(), grants);
            self.version += 1;
        }
        Ok(())
    }

    /// Nodes that the devices of the pod's container of that number could come from, for each resource whose devices all
    /// have a place.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near) -> Vec<Vec<Hint>> {
        let Some(container) = pod.containers.get(index) else { return Vec::new() };
        let before = self.allot(&pod.containers[..index], near).map(|allotment| allotment.taken);
        let of_resource = self.devices.iter().filter_map(|(resource, devices)| {
            let wanted =
                usize::try_from(limit(&container.spec, resource)).ok().filter(|wanted| *wanted > 0)?;
            if devices.values().any(|device| device.nodes.is_empty()) {
                return None;
            }
            let Ok(taken) = &before else { return Some(Vec::new()) };
            let all: Nodes = devices.values().flat_map(|device| device.nodes.iter().copied()).collect();
            let is_free = |id: &String, device: &Device| {
                device.is_healthy && !taken.contains(&(resource.clone(), id.clone()))
            };
            // One that is near to several nodes counts once for each; it is the plugin's to say so of few.
            let total = |node| devices.values().filter(|device| device.nodes.contains(&node)).count();
            let free = |node| {
                let there = devices.iter().filter(|(_, device)| device.nodes.contains(&node));
                there.filter(|(id, device)| is_free(id, device)).count()
            };
            Some(hints(&all, wanted, total, free))
        });
        of_resource.collect()
    }

    /// What containers of a pod would get.
    fn allot(&self, containers: &[DesiredContainer], near: &Near) -> Result<Allotment, Verdict> {
        let mut taken: BTreeSet<(String, String)> = self.granted.all().collect();
        let mut grants: BTreeMap<String, Grant> = BTreeMap::new();
        for container in containers {
            let nodes = near.get(container.name());
            for (resource, devices) in &self.devices {
                let wanted = usize::try_from(limit(&container.spec, resource)).unwrap_or(0);
                let is_free = |id: &String| !taken.contains(&(resource.clone(), id.clone()));
                let healthy = devices.iter().filter(|(id, device)| device.is_healthy && is_free(id));
                let mut free: Vec<(&String, &Device)> = healthy.collect();
                let is_near = |device: &Device| nodes.is_some_and(|nodes| !nodes.is_disjoint(&device.nodes));
                free.sort_by_key(|(_, device)| !is_near(device));
                let free: Vec<String> = free.into_iter().map(|(id, _)| id.clone()).collect();
                if free.len() < wanted {
                    let message = format!(
                        "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {}, which is unexpected",
                        free.len()
                    );
                    return Err(Verdict::refusal("UnexpectedAdmissionError", &message));
                }
                if wanted == 0 {
                    continue;
                }
                let chosen: Vec<String> = free.into_iter().take(wanted).collect();
                taken.extend(chosen.iter().map(|id| (resource.clone(), id.clone())));
                grants.entry(container.name().to_owned()).or_default().insert(resource.clone(), chosen);
            }
        }
        Ok(Allotment { grants, taken })
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

/// What a pod's containers would get.
struct Allotment {
    grants: BTreeMap<String, Grant>,
    /// All that is taken then, by resource and id.
    taken: BTreeSet<(String, String)>,
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
        ledger.grant(&asking("one", &[("x", "1"), ("y", "1")]), &Near::new()).expect("there are");
        assert_eq!(ledger.of("one", "x")["test/gpu"], ["a"]);
        assert_eq!(ledger.of("one", "y")["test/gpu"], ["c"]);
        let before = ledger.granted.clone();
        ledger.grant(&asking("one", &[("x", "1"), ("y", "1")]), &Near::new()).expect("as before");
        assert_eq!(ledger.granted, before);
        let refused =
            ledger.grant(&asking("two", &[("x", "1"), ("y", "1")]), &Near::new()).expect_err("too many");
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert!(refused.message.contains("Requested: 1, Available: 0"), "{}", refused.message);
        assert!(ledger.of("two", "x").is_empty(), "all or none");
        assert!(ledger.release("one") && !ledger.release("one"));
        ledger.grant(&asking("two", &[("x", "3")]), &Near::new()).expect("free again");
    }

    #[test]
    fn pod_without_devices_is_not_noted() {
        let mut ledger = ledger();
        ledger.grant(&pod(spec("Always", vec![], vec![])), &Near::new()).expect("nothing asked");
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
        assert_eq!(preferred(ledger.hints(&pod, 0, &Near::new())), [[0].into(), [1].into()]);
        assert_eq!(preferred(ledger.hints(&pod, 1, &Near::new())), [Nodes::from([1])]);
        let chosen = Near::from([("x".to_owned(), [1].into())]);
        assert_eq!(preferred(ledger.hints(&pod, 1, &chosen)), Vec::<Nodes>::new());
        ledger.grant(&pod, &chosen).expect("there are");
        assert_eq!(ledger.of("one", "x")["test/gpu"], ["b"]);
    }
}
