//! What is prepared on this node, for which pods: pure; kept on disk as one file, in upstream's words.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::claims::serves;

#[derive(Debug, Default)]
pub struct Ledger {
    /// By namespace and name.
    claims: BTreeMap<(String, String), Prepared>,
    /// Counts changes.
    pub version: u64,
}

/// A claim of which something may be prepared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    #[serde(rename = "ClaimUID")]
    pub uid: String,
    #[serde(rename = "ClaimName")]
    pub name: String,
    #[serde(rename = "Namespace")]
    pub namespace: String,
    #[serde(rename = "PodUIDs")]
    pub pods: BTreeSet<String>,
    /// By driver. Noted before a driver is asked, so that it is asked to take back what an agent that died has left.
    #[serde(rename = "DriverState")]
    pub drivers: BTreeMap<String, DriverState>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverState {
    #[serde(rename = "Devices")]
    pub devices: Vec<Device>,
    /// It has said so, and was not asked to take it back since.
    #[serde(rename = "Prepared", default)]
    pub is_prepared: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Device {
    pub pool_name: String,
    pub device_name: String,
    pub request_names: Vec<String>,
    #[serde(rename = "CDIDeviceIDs")]
    pub cdi_device_ids: Vec<String>,
}

/// As it is on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    pub entries: Vec<Prepared>,
}

impl Ledger {
    pub fn new(state: State) -> Self {
        let claims =
            state.entries.into_iter().map(|claim| ((claim.namespace.clone(), claim.name.clone()), claim));
        Self { claims: claims.collect(), version: 0 }
    }

    pub fn state(&self) -> State {
        State { entries: self.claims.values().cloned().collect() }
    }

    /// Pods that have something here.
    pub fn pods(&self) -> BTreeSet<String> {
        self.claims.values().flat_map(|claim| claim.pods.iter().cloned()).collect()
    }

    /// The pod is about to use the claim. Returns the drivers that have to be asked first.
    ///
    /// # Errors
    /// An earlier claim of that name is not given up yet.
    pub fn begin(
        &mut self,
        pod: &str,
        (namespace, name, uid): (&str, &str, &str),
        drivers: &BTreeSet<String>,
    ) -> Result<Vec<String>, String> {
        let claim = self.claims.entry((namespace.to_owned(), name.to_owned())).or_insert_with(|| Prepared {
            uid: uid.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ..Prepared::default()
        });
        if claim.uid != uid {
            return Err(format!(
                "old ResourceClaim with same name {name} and different UID {} still exists",
                claim.uid
            ));
        }
        let mut changed = claim.pods.insert(pod.to_owned());
        for driver in drivers {
            if !claim.drivers.contains_key(driver) {
                claim.drivers.insert(driver.clone(), DriverState::default());
                changed = true;
            }
        }
        self.version += u64::from(changed);
        let unprepared = claim.drivers.iter().filter(|(_, state)| !state.is_prepared);
        Ok(unprepared.map(|(driver, _)| driver.clone()).collect())
    }

    /// The driver has prepared the claim.
    pub fn prepared(&mut self, namespace: &str, name: &str, driver: &str, devices: Vec<Device>) {
        let claim = self.claims.get_mut(&(namespace.to_owned(), name.to_owned()));
        if let Some(state) = claim.and_then(|claim| claim.drivers.get_mut(driver)) {
            *state = DriverState { devices, is_prepared: true };
            self.version += 1;
        }
    }

    /// Ids of the claim's devices that the request gets; `None` where the claim is not prepared for the pod.
    pub fn cdi_devices(
        &self,
        pod: &str,
        namespace: &str,
        name: &str,
        request: Option<&str>,
    ) -> Option<Vec<String>> {
        let claim = self.claims.get(&(namespace.to_owned(), name.to_owned()))?;
        let is_ready = claim.pods.contains(pod) && claim.drivers.values().all(|state| state.is_prepared);
        let devices = claim.drivers.values().flat_map(|state| &state.devices);
        let devices = devices.filter(|device| serves(&device.request_names, request));
        is_ready.then(|| devices.flat_map(|device| device.cdi_device_ids.iter().cloned()).collect())
    }

    /// Whether the pod has a claim.
    pub fn holds(&self, pod: &str) -> bool {
        self.claims.values().any(|claim| claim.pods.contains(pod))
    }

    /// Claims that the pod has.
    pub fn of_pod(&self, pod: &str) -> Vec<Prepared> {
        self.claims.values().filter(|claim| claim.pods.contains(pod)).cloned().collect()
    }

    /// The pod does not use the claim any more. Returns the drivers that have to be asked to take it back: none while
    /// other pods use it, which is the end of it for this pod. From then on it is not prepared any more.
    pub fn leave(&mut self, pod: &str, claim: &Prepared) -> Vec<String> {
        let key = (claim.namespace.clone(), claim.name.clone());
        let Some(known) = self.claims.get_mut(&key).filter(|known| known.pods.contains(pod)) else {
            return Vec::new();
        };
        if known.pods.len() > 1 {
            known.pods.remove(pod);
            self.version += 1;
            return Vec::new();
        }
        let drivers: Vec<String> = known.drivers.keys().cloned().collect();
        // Whatever comes of the asking: whoever uses the claim next has it prepared anew.
        for state in known.drivers.values_mut() {
            self.version += u64::from(std::mem::take(&mut state.is_prepared));
        }
        if drivers.is_empty() {
            self.claims.remove(&key);
            self.version += 1;
        }
        drivers
    }

    /// The driver has taken back what it had prepared.
    pub fn unprepared(&mut self, claim: &Prepared, driver: &str) {
        let key = (claim.namespace.clone(), claim.name.clone());
        let Some(known) = self.claims.get_mut(&key) else { return };
        known.drivers.remove(driver);
        if known.drivers.is_empty() {
            self.claims.remove(&key);
        }
        self.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drivers(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn device(name: &str, requests: &[&str], ids: &[&str]) -> Device {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Device {
            pool_name: "pool".into(),
            device_name: name.into(),
            request_names: list(requests),
            cdi_device_ids: list(ids),
        }
    }

    const CLAIM: (&str, &str, &str) = ("default", "gpu", "u1");

    #[test]
    fn claim_is_prepared_once_and_taken_back_with_its_last_pod() {
        let mut ledger = Ledger::default();
        let both = drivers(&["a", "b"]);
        assert_eq!(ledger.begin("one", CLAIM, &both), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(ledger.cdi_devices("one", "default", "gpu", None), None, "nothing is prepared");
        ledger.prepared("default", "gpu", "a", vec![device("d1", &["x"], &["v/c=1", "v/c=2"])]);
        assert_eq!(ledger.begin("one", CLAIM, &both), Ok(vec!["b".into()]), "the other is asked again");
        ledger.prepared("default", "gpu", "b", vec![device("d2", &["y"], &["v/c=3"])]);
        assert_eq!(ledger.begin("two", CLAIM, &both), Ok(vec![]));
        let ids = |request| ledger.cdi_devices("two", "default", "gpu", request).expect("prepared");
        assert_eq!(ids(None), ["v/c=1", "v/c=2", "v/c=3"]);
        assert_eq!(ids(Some("y")), ["v/c=3"]);
        assert_eq!(ids(Some("z")), [""; 0]);
        assert_eq!(ledger.cdi_devices("three", "default", "gpu", None), None, "another pod");

        let claim = ledger.of_pod("one").remove(0);
        assert_eq!(ledger.leave("one", &claim), [""; 0], "two uses it");
        assert_eq!(ledger.leave("one", &claim), [""; 0], "once more");
        assert_eq!(ledger.leave("two", &claim), ["a", "b"]);
        ledger.unprepared(&claim, "a");
        assert_eq!(ledger.leave("two", &claim), ["b"], "the other is asked again");
        ledger.unprepared(&claim, "b");
        assert!(ledger.pods().is_empty() && ledger.state().entries.is_empty());
    }

    #[test]
    fn claim_that_is_being_taken_back_is_prepared_anew_for_the_next_pod() {
        let mut ledger = Ledger::default();
        let one = drivers(&["a"]);
        ledger.begin("one", CLAIM, &one).expect("new");
        ledger.prepared("default", "gpu", "a", vec![device("d1", &[], &["v/c=1"])]);
        let claim = ledger.of_pod("one").remove(0);
        let before = ledger.version;
        assert_eq!(ledger.leave("one", &claim), ["a"]);
        assert!(ledger.version > before, "it is to be noted");
        // Nobody knows what became of that.
        assert_eq!(ledger.begin("two", CLAIM, &one), Ok(vec!["a".into()]));
        assert_eq!(ledger.cdi_devices("two", "default", "gpu", None), None);
        ledger.prepared("default", "gpu", "a", vec![device("d1", &[], &["v/c=1"])]);
        assert_eq!(ledger.leave("one", &claim), [""; 0], "two uses it");
        assert!(!ledger.holds("one") && ledger.holds("two"));
    }

    #[test]
    fn claim_that_was_made_anew_waits_for_the_end_of_the_old_one() {
        let mut ledger = Ledger::default();
        ledger.begin("one", CLAIM, &drivers(&["a"])).expect("new");
        let refused =
            ledger.begin("two", ("default", "gpu", "u2"), &drivers(&["a"])).expect_err("the old one");
        assert_eq!(refused, "old ResourceClaim with same name gpu and different UID u1 still exists");
        ledger.begin("two", ("other", "gpu", "u2"), &drivers(&["a"])).expect("another namespace");
    }

    #[test]
    fn what_was_begun_is_known_again() {
        let mut ledger = Ledger::default();
        ledger.begin("one", CLAIM, &drivers(&["a", "b"])).expect("new");
        ledger.prepared("default", "gpu", "a", vec![device("d1", &[], &["v/c=1"])]);
        let text = serde_json::to_string(&ledger.state()).expect("data");
        let mut again = Ledger::new(serde_json::from_str(&text).expect("as written"));
        assert_eq!(again.state().entries, ledger.state().entries);
        assert_eq!(again.begin("one", CLAIM, &drivers(&["a", "b"])), Ok(vec!["b".into()]));
        assert_eq!(again.version, 0, "nothing new");
    }
}
