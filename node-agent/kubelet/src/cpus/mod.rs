//! The CPU manager: CPUs that containers have to themselves (`cpuManagerPolicy: static`).
//!
//! CPUs are given when a pod is taken ([`ledger`]) and are on disk before a container has them. Before a container with
//! CPUs of its own starts, all that runs beside it is moved off them; what fails of that, and what containers are to share
//! after one has gone, is brought in step every ten seconds. Without the policy nothing of this is done.

pub mod ledger;
pub mod set;
pub mod topology;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerConfig, ContainerId, ContainerState, Resources, Runtime};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Config;
use crate::durable::Note;
use crate::locality::{Hint, Near};
use crate::manager::Pods;
use crate::pod::DesiredPod;
use crate::pod::state::Verdict;
use ledger::{Ledger, State};
use set::CpuSet;
use topology::Topology;

/// Upstream's name of the file.
const CHECKPOINT: &str = "cpu_manager_state";
/// Upstream's `cpuManagerReconcilePeriod`.
const INTERVAL: Duration = Duration::from_secs(10);

/// What CPUs containers run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CpuPolicy {
    /// All of them.
    #[default]
    None,
    /// Some have CPUs to themselves, which are never `reserved` ones.
    Static { topology: Topology, reserved: CpuSet },
}

impl CpuPolicy {
    /// The static policy. `reserved` are named, or else as many as `millis` make up are taken, as upstream takes them.
    ///
    /// # Errors
    /// Where none would be reserved, or one that there is not.
    pub fn fixed(topology: Topology, named: CpuSet, millis: u64) -> Result<Self, String> {
        let count = usize::try_from(millis.div_ceil(1000)).unwrap_or(usize::MAX);
        let reserved = match named.is_empty() {
            false => named,
            true => topology.take(&topology.all(), count).unwrap_or_default(),
        };
        if reserved.is_empty() {
            return Err("the static policy needs CPUs that are reserved, fewer than there are".to_owned());
        }
        if !topology.all().contains_all(&reserved) {
            return Err(format!("reserved CPUs {reserved} are not all among {}", topology.all()));
        }
        Ok(Self::Static { topology, reserved })
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Cpus {
    /// `None` without a policy.
    inner: Option<Arc<Inner>>,
}

struct Inner {
    note: Note,
    runtime: Arc<dyn Runtime>,
    pods: Pods,
    ledger: Mutex<Ledger>,
    /// What running containers were last told, by id; held while they are told.
    told: tokio::sync::Mutex<HashMap<ContainerId, CpuSet>>,
}

impl Cpus {
    /// Reads what an earlier agent has given.
    pub fn load(config: &Config, runtime: Arc<dyn Runtime>, pods: Pods) -> Self {
        let CpuPolicy::Static { topology, reserved } = config.cpu_policy.clone() else {
            return Self { inner: None };
        };
        let file = config.root_dir.join(CHECKPOINT);
        let state: State = match std::fs::read(&file) {
            Ok(content) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                warn!(%error, "the note of given CPUs is damaged: what pods have is not known");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let (ledger, dropped) = Ledger::new(topology, reserved, state.entries);
        for uid in dropped {
            warn!(uid, "a pod's CPUs are not there any more, or are reserved now: it gets others");
        }
        let (ledger, note, told) = (Mutex::new(ledger), Note::new(file), tokio::sync::Mutex::default());
        Self { inner: Some(Arc::new(Inner { note, runtime, pods, ledger, told })) }
    }

    /// Gives a pod that is being taken what it asks for.
    pub fn grant(&self, pod: &DesiredPod, near: &Near) -> Result<(), Verdict> {
        self.inner.as_ref().map_or(Ok(()), |inner| inner.ledger.lock().grant(pod, near))
    }

    /// How many of the pod's containers ask for CPUs of their own.
    pub fn asking(&self, pod: &DesiredPod) -> usize {
        self.inner.as_ref().map_or(0, |_| ledger::asking(pod))
    }

    /// How many CPUs are shared, and how many are some container's own; `None` without a policy.
    pub fn counts(&self) -> Option<(usize, usize)> {
        Some(self.inner.as_ref()?.ledger.lock().counts())
    }

    /// Where the CPUs of a container of the pod could come from; `None` where it has none to itself.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near) -> Option<Vec<Hint>> {
        self.inner.as_ref()?.ledger.lock().hints(pod, index, near)
    }

    /// Where the CPUs of all containers of the pod could come from together.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Option<Vec<Hint>> {
        self.inner.as_ref()?.ledger.lock().hints_of_pod(pod)
    }

    /// Gives back what a pod had that has ended. Repeating it is harmless.
    pub fn release(&self, pod_uid: &str) {
        self.release_all(|uid| uid != pod_uid);
    }

    /// Gives back what pods have that are not to keep it.
    pub fn release_all(&self, keeps: impl Fn(&str) -> bool) {
        if let Some(inner) = &self.inner {
            // Noted and told at the next turn.
            inner.ledger.lock().release_all(keeps);
        }
    }

    /// Puts the CPUs of a container that is being made into its configuration. They are its own when this returns.
    pub async fn prepare(&self, config: &mut ContainerConfig) -> Result<(), String> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let is_exclusive = inner.ledger.lock().is_exclusive(&config.pod_uid, &config.name);
        if is_exclusive {
            inner.note().await.map_err(|error| format!("CPUs were not noted: {error}"))?;
            inner.tell().await;
        }
        let cpus = inner.ledger.lock().of(&config.pod_uid, &config.name);
        config.resources.cpuset_cpus = Some(cpus.to_string());
        Ok(())
    }

    /// Keeps files and containers in step until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(inner) = self.inner else { return shutdown.cancelled().await };
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Err(error) = inner.note().await {
                warn!(%error, "given CPUs were not noted, trying again");
            }
            inner.tell().await;
        }
    }
}

impl Inner {
    /// Writes what is given now, unless that is on disk.
    async fn note(self: &Arc<Self>) -> std::io::Result<()> {
        let inner = self.clone();
        let write = tokio::task::spawn_blocking(move || {
            inner.note.write(|written| {
                let ledger = inner.ledger.lock();
                (ledger.version != written).then(|| (ledger.version, ledger.state()))
            })
        });
        write.await.map_err(std::io::Error::other)?
    }

    /// Moves running containers to the CPUs that are theirs now.
    async fn tell(&self) {
        let mut told = self.told.lock().await;
        let views = self.pods.all();
        let running = views.iter().flat_map(|view| view.containers.iter());
        let running = running.filter_map(|(name, (current, _))| {
            let current = current.as_ref().filter(|current| current.state == ContainerState::Running)?;
            Some((current.id.clone(), current.pod_uid.clone(), name.clone()))
        });
        let running: Vec<_> = running.collect();
        told.retain(|id, _| running.iter().any(|(running, _, _)| running == id));
        for (id, uid, name) in running {
            let cpus = self.ledger.lock().of(&uid, &name);
            if told.get(&id) == Some(&cpus) {
                continue;
            }
            let limits = Resources { cpuset_cpus: Some(cpus.to_string()), ..Resources::default() };
            match self.runtime.update_container(&id, &limits).await {
                Ok(()) => {
                    told.insert(id, cpus);
                }
                // One that has ended meanwhile is not seen at the next turn.
                Err(error) => {
                    warn!(uid, container = name, %error, "a container was not moved to its CPUs, trying again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::topology::tests::machine;
    use super::*;

    #[test]
    fn some_cpus_have_to_be_reserved() {
        let fixed = |named: &str, millis| {
            let policy = CpuPolicy::fixed(machine(1, 2), named.parse().expect("a set"), millis);
            policy.map(|policy| match policy {
                CpuPolicy::Static { reserved, .. } => reserved.to_string(),
                CpuPolicy::None => "none".to_owned(),
            })
        };
        assert_eq!(fixed("", 1).as_deref(), Ok("0"));
        assert_eq!(fixed("", 1500).as_deref(), Ok("0,2"));
        assert_eq!(fixed("1", 0).as_deref(), Ok("1"));
        assert!(fixed("", 0).is_err() && fixed("9", 0).is_err() && fixed("", 99_000).is_err());
    }
}
