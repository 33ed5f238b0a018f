//! Dynamic resource allocation on the node (KEP-4381): drivers prepare what is allocated to a pod before its containers
//! are made, say which CDI devices these get, and take it back when the pod has ended.
//!
//! What is prepared is noted durably before a driver is asked ([`ledger`]), so that an agent that is killed in between
//! leaves nothing that the next one does not ask back. A claim that several pods share is prepared once. Drivers make
//! themselves known as plugins ([`crate::plugins`]); those that stay away lose their ResourceSlices ([`slices`]).

pub mod claims;
pub mod driver;
pub mod ledger;
mod slices;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_api::Api;
use hawser_api::client::Client;
use hawser_runtime::fault;
use hawser_runtime::keyed_lock::KeyedLock;
use k8s_openapi::api::resource::v1::ResourceClaim;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::durable::Note;
use crate::pod::{DesiredContainer, DesiredPod};
use driver::Drivers;
use driver::proto::v1::Claim;
use ledger::{Device, Ledger, State};
use slices::Slices;

/// Upstream's name of the file.
const CHECKPOINT: &str = "dra_manager_state";

/// Cheap to clone.
#[derive(Clone)]
pub struct Dra {
    inner: Arc<Inner>,
}

struct Inner {
    client: Arc<dyn Client>,
    note: Note,
    drivers: Drivers,
    ledger: Mutex<Ledger>,
    /// By namespace and name of a claim: it is prepared and taken back by one at a time.
    locks: KeyedLock,
    slices: Slices,
}

impl Dra {
    /// Reads what an earlier agent has had prepared.
    pub fn load(config: &Config, client: Arc<dyn Client>) -> Self {
        let file = config.root_dir.join(CHECKPOINT);
        let state: State = match std::fs::read(&file) {
            Ok(content) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                warn!(%error, "the note of prepared claims is damaged: pods that run prepare theirs again");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let slices = Slices::new(config.node_name.clone(), client.clone());
        let inner = Inner {
            client,
            note: Note::new(file),
            drivers: Drivers::default(),
            ledger: Mutex::new(Ledger::new(state)),
            locks: KeyedLock::default(),
            slices,
        };
        Self { inner: Arc::new(inner) }
    }

    /// A driver's plugin has come.
    ///
    /// # Errors
    /// It cannot be spoken to.
    pub fn add_driver(&self, name: &str, endpoint: PathBuf, offered: &[String]) -> Result<(), String> {
        self.inner.drivers.add(name, endpoint, offered)?;
        self.inner.slices.driver_is_there(name);
        info!(driver = name, "DRA driver is registered");
        Ok(())
    }

    /// A driver's plugin has gone.
    pub fn remove_driver(&self, name: &str, endpoint: &Path) {
        if self.inner.drivers.remove(name, endpoint) {
            info!(driver = name, "DRA driver is gone");
            self.inner.slices.driver_is_gone(name);
        }
    }

    /// Removes ResourceSlices of drivers that are not there, until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        self.inner.slices.run(|driver| self.inner.drivers.is_there(driver), shutdown).await;
    }

    /// Pods that have something prepared.
    pub fn pods(&self) -> BTreeSet<String> {
        self.inner.ledger.lock().pods()
    }

    /// Whether something may be prepared for the pod.
    pub fn holds(&self, pod_uid: &str) -> bool {
        self.inner.ledger.lock().holds(pod_uid)
    }

    /// Has all claims of the pod prepared. Repeating it asks drivers only for what is missing.
    pub async fn prepare(&self, pod: &DesiredPod) -> Result<(), String> {
        let wanted = claims::of_pod(pod).map_err(|why| format!("prepare resource claim: {why}"))?;
        let inner = &self.inner;
        let is_ready = |claim: &claims::PodClaim| {
            inner.ledger.lock().cdi_devices(pod.uid(), pod.namespace(), &claim.name, None).is_some()
        };
        // What is here needs no API, which may be away when an agent starts; but an earlier try may not have noted it.
        if wanted.iter().all(is_ready) {
            return inner.note().await;
        }
        let mut names: Vec<&str> = wanted.iter().map(|claim| claim.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let _alone = inner.lock(pod.namespace(), &names).await;
        let api: Api<ResourceClaim> = Api::namespaced(inner.client.clone(), pod.namespace());
        // What each driver has to be asked for.
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        for claim in &wanted {
            let object = api.get(&claim.name).await;
            let object = object.map_err(|error| format!("fetch ResourceClaim {}: {error}", claim.name))?;
            let drivers = claims::check(pod, claim, &object)?;
            let uid = object.metadata.uid.as_deref().unwrap_or_default();
            let key = (pod.namespace(), claim.name.as_str(), uid);
            for driver in inner.ledger.lock().begin(pod.uid(), key, &drivers)? {
                batches.entry(driver).or_default().push(Claim {
                    namespace: pod.namespace().to_owned(),
                    uid: uid.to_owned(),
                    name: claim.name.clone(),
                });
            }
        }
        inner.note().await?;
        fault::point("claims: noted");
        for (name, claims) in batches {
            let mut answers = inner.drivers.get(&name)?.prepare(&claims).await?;
            fault::point("claims: prepared");
            for claim in &claims {
                let devices =
                    answers.remove(&claim.uid).unwrap_or_default().into_iter().map(|device| Device {
                        pool_name: device.pool_name,
                        device_name: device.device_name,
                        request_names: device.request_names,
                        cdi_device_ids: device.cdi_device_ids,
                    });
                inner.ledger.lock().prepared(&claim.namespace, &claim.name, &name, devices.collect());
            }
            inner.note().await?;
        }
        Ok(())
    }

    /// CDI devices of the container, which [`Self::prepare`] has had prepared.
    pub fn cdi_devices(&self, pod: &DesiredPod, container: &DesiredContainer) -> Result<Vec<String>, String> {
        let claims = claims::of_pod(pod)?;
        let ledger = self.inner.ledger.lock();
        let mut ids = Vec::new();
        for (name, request) in claims::of_container(pod, container, &claims) {
            let found = ledger.cdi_devices(pod.uid(), pod.namespace(), &name, request.as_deref());
            let namespace = pod.namespace();
            ids.extend(found.ok_or_else(|| {
                format!("unable to get resource for namespace: {namespace}, claim: {name}")
            })?);
        }
        Ok(ids)
    }

    /// Has taken back what only this pod used. Absent is success.
    pub async fn unprepare(&self, pod_uid: &str) -> Result<(), String> {
        let inner = &self.inner;
        let known = inner.ledger.lock().of_pod(pod_uid);
        if known.is_empty() {
            return Ok(());
        }
        let mut batches: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
        // All of one pod's are of one namespace.
        let namespace = known[0].namespace.clone();
        let names: Vec<&str> = known.iter().map(|claim| claim.name.as_str()).collect();
        let _alone = inner.lock(&namespace, &names).await;
        for claim in &known {
            for driver in inner.ledger.lock().leave(pod_uid, claim) {
                batches.entry(driver).or_default().push(Claim {
                    namespace: claim.namespace.clone(),
                    uid: claim.uid.clone(),
                    name: claim.name.clone(),
                });
            }
        }
        inner.note().await?;
        for (name, claims) in batches {
            inner.drivers.get(&name)?.unprepare(&claims).await?;
            fault::point("claims: taken back");
            let mut ledger = inner.ledger.lock();
            for claim in known.iter().filter(|known| claims.iter().any(|claim| claim.uid == known.uid)) {
                ledger.unprepared(claim, &name);
            }
        }
        inner.note().await
    }
}

impl Inner {
    /// `names` in their order, so that no two pods wait for each other.
    async fn lock(&self, namespace: &str, names: &[&str]) -> Vec<tokio::sync::OwnedMutexGuard<()>> {
        let mut guards = Vec::with_capacity(names.len());
        for name in names {
            guards.push(self.locks.lock(&format!("{namespace}/{name}")).await);
        }
        guards
    }

    /// Writes what is prepared now, unless that is on disk.
    async fn note(self: &Arc<Self>) -> Result<(), String> {
        let inner = self.clone();
        let write = tokio::task::spawn_blocking(move || {
            inner.note.write(|written| {
                let ledger = inner.ledger.lock();
                (ledger.version != written).then(|| (ledger.version, ledger.state()))
            })
        });
        let written = write.await.map_err(std::io::Error::other).flatten();
        written.map_err(|error| format!("prepared claims were not noted: {error}"))
    }
}
