//! Which devices there are, and who has them. Pure; kept on disk as one file, so that a new agent gives none out twice.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::pod::DesiredPod;
use crate::pod::qos::limit;
use crate::pod::state::Verdict;

/// Ids by resource.
pub type Grant = BTreeMap<String, Vec<String>>;

#[derive(Debug, Default)]
pub struct Ledger {
    /// By resource: ids, and whether each is healthy. A plugin that is away leaves its devices, all unhealthy.
    pub devices: BTreeMap<String, BTreeMap<String, bool>>,
    pub granted: Granted,
    /// Counts changes of what is granted.
    pub version: u64,
}

/// By pod uid and container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted(BTreeMap<String, BTreeMap<String, Grant>>);

impl Ledger {
    /// Numbers of all devices of each resource, and of the healthy ones.
    pub fn counts(&self) -> impl Iterator<Item = (&String, usize, usize)> {
        self.devices.iter().map(|(resource, devices)| {
            (resource, devices.len(), devices.values().filter(|healthy| **healthy).count())
        })
    }

    /// Grants a pod's containers the devices that they ask for, all or none. Repeating it changes nothing.
    pub fn grant(&mut self, pod: &DesiredPod) -> Result<(), Verdict> {
        if self.granted.0.contains_key(pod.uid()) {
            return Ok(());
        }
        let mut taken: BTreeSet<(String, String)> = self.granted.all().collect();
        let mut grants: BTreeMap<String, Grant> = BTreeMap::new();
        for container in &pod.containers {
            for (resource, devices) in &self.devices {
                let wanted = usize::try_from(limit(&container.spec, resource)).unwrap_or(0);
                let is_free = |id: &&String| !taken.contains(&(resource.clone(), (*id).clone()));
                let free = devices.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| id).filter(is_free);
                let free: Vec<String> = free.cloned().collect();
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
        if !grants.is_empty() {
            self.granted.0.insert(pod.uid().to_owned(), grants);
            self.version += 1;
        }
        Ok(())
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
        let devices = devices.into_iter().map(|(id, healthy)| (id.to_owned(), healthy)).collect();
        Ledger { devices: [("test/gpu".to_owned(), devices)].into(), ..Ledger::default() }
    }

    #[test]
    fn devices_are_given_once_and_only_healthy_ones() {
        let mut ledger = ledger();
        ledger.grant(&asking("one", &[("x", "1"), ("y", "1")])).expect("there are");
        assert_eq!(ledger.of("one", "x")["test/gpu"], ["a"]);
        assert_eq!(ledger.of("one", "y")["test/gpu"], ["c"]);
        let before = ledger.granted.clone();
        ledger.grant(&asking("one", &[("x", "1"), ("y", "1")])).expect("as before");
        assert_eq!(ledger.granted, before);
        let refused = ledger.grant(&asking("two", &[("x", "1"), ("y", "1")])).expect_err("too many");
        assert_eq!(refused.reason, "UnexpectedAdmissionError");
        assert!(refused.message.contains("Requested: 1, Available: 0"), "{}", refused.message);
        assert!(ledger.of("two", "x").is_empty(), "all or none");
        assert!(ledger.release("one") && !ledger.release("one"));
        ledger.grant(&asking("two", &[("x", "3")])).expect("free again");
    }

    #[test]
    fn pod_without_devices_is_not_noted() {
        let mut ledger = ledger();
        ledger.grant(&pod(spec("Always", vec![], vec![]))).expect("nothing asked");
        assert_eq!(ledger.granted, Granted::default());
        let counts: Vec<_> =
            ledger.counts().map(|(name, all, healthy)| (name.as_str(), all, healthy)).collect();
        assert_eq!(counts, [("test/gpu", 4, 3)]);
    }
}
