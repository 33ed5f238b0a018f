//! The memory manager (KEP-1769): containers of Guaranteed pods have their memory from NUMA nodes of their own.
//!
//! Without a policy the kernel takes memory from wherever it is. With the static one a container's nodes are chosen when
//! its pod is taken ([`ledger`]), together with its CPUs and devices where the topology manager wants that, noted on disk
//! before the container is made, and set as its `cpuset.mems`.

pub mod ledger;
pub mod machine;

use std::sync::Arc;

use hawser_runtime::ContainerConfig;
use parking_lot::Mutex;
use tracing::warn;

use crate::config::Config;
use crate::durable::Note;
use crate::locality::{Hint, Near};
use crate::pod::DesiredPod;
use crate::pod::state::Verdict;
use ledger::{Allocatable, Ledger, State};

/// Upstream's name of the file.
const CHECKPOINT: &str = "memory_manager_state";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryPolicy {
    #[default]
    None,
    /// What each node has to give, without what is reserved.
    Static(Allocatable),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Memory {
    /// `None` without a policy.
    inner: Option<Arc<Inner>>,
}

struct Inner {
    note: Note,
    ledger: Mutex<Ledger>,
}

impl Memory {
    /// Reads what an earlier agent has promised.
    pub fn load(config: &Config) -> Self {
        let MemoryPolicy::Static(allocatable) = config.memory_policy.clone() else {
            return Self { inner: None };
        };
        let file = config.root_dir.join(CHECKPOINT);
        let state: State = match std::fs::read(&file) {
            Ok(content) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                warn!(%error, "the note of promised memory is damaged: what pods have is not known");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let (ledger, dropped) = Ledger::new(allocatable, state.entries);
        for uid in dropped {
            warn!(uid, "a pod's memory is not there any more, or is reserved now: it is promised none");
        }
        Self { inner: Some(Arc::new(Inner { note: Note::new(file), ledger: Mutex::new(ledger) })) }
    }

    /// Promises a pod that is being taken what it asks for.
    pub fn grant(&self, pod: &DesiredPod, near: &Near) -> Result<(), Verdict> {
        self.inner.as_ref().map_or(Ok(()), |inner| inner.ledger.lock().grant(pod, near))
    }

    /// How many of the pod's containers ask for memory of certain nodes.
    pub fn asking(&self, pod: &DesiredPod) -> usize {
        self.inner.as_ref().map_or(0, |_| ledger::asking(pod))
    }

    /// Where the memory of a container of the pod could come from, for each kind of it.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near) -> Vec<Vec<Hint>> {
        self.inner.as_ref().map_or_else(Vec::new, |inner| inner.ledger.lock().hints(pod, index, near))
    }

    /// Where the memory of all containers of the pod could come from together, for each kind of it.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Vec<Vec<Hint>> {
        self.inner.as_ref().map_or_else(Vec::new, |inner| inner.ledger.lock().hints_of_pod(pod))
    }

    /// Gives back what a pod had that has ended. Repeating it is harmless.
    pub fn release(&self, pod_uid: &str) {
        self.release_all(|uid| uid != pod_uid);
    }

    /// Gives back what pods have that are not to keep it.
    pub fn release_all(&self, keeps: impl Fn(&str) -> bool) {
        let Some(inner) = &self.inner else { return };
        if inner.ledger.lock().release_all(keeps) {
            let inner = inner.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.note() {
                    // The next note says it too.
                    warn!(%error, "memory of an ended pod is still noted as its own");
                }
            });
        }
    }

    /// Puts the nodes of a container that is being made into its configuration. They are noted when this returns.
    pub async fn prepare(&self, config: &mut ContainerConfig) -> Result<(), String> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let nodes = inner.ledger.lock().of(&config.pod_uid, &config.name).cloned();
        let Some(nodes) = nodes else { return Ok(()) };
        let noting = inner.clone();
        let noted = tokio::task::spawn_blocking(move || noting.note()).await.map_err(std::io::Error::other);
        noted.flatten().map_err(|error| format!("promised memory was not noted: {error}"))?;
        let numbers: Vec<String> = nodes.iter().map(u32::to_string).collect();
        config.resources.cpuset_mems = Some(numbers.join(","));
        Ok(())
    }
}

impl Inner {
    /// Writes what is promised now, unless that is on disk. Blocks.
    fn note(&self) -> std::io::Result<()> {
        self.note.write(|written| {
            let ledger = self.ledger.lock();
            (ledger.version != written).then(|| (ledger.version, ledger.state()))
        })
    }
}
