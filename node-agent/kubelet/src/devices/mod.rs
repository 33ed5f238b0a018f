//! Devices of device plugins (`deviceplugin/v1beta1`): what a node has, who gets it, and what a container needs for it.
//!
//! A plugin registers at the kubelet's socket below `device-plugins`; its devices are followed for as long as it answers
//! ([`plugins`]). Devices are granted when a pod is taken ([`ledger`]), noted on disk before its containers use them, and
//! given back when it has ended. A plugin that wants to is asked which ones a container had best have ([`Devices::ask`]).
//! What a container needs to use them, the plugin says before each start.

pub mod ledger;
pub mod plugins;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerConfig, DeviceMapping, Mount};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

use crate::config::Config;
use crate::durable::Note;
use crate::locality::{Hint, Near};
use crate::pod::DesiredPod;
use crate::pod::state::Verdict;
use crate::sockets::connect;
use ledger::{Choice, Device, Granted, Ledger, Wishes};
use plugins::proto::device_plugin_client::DevicePluginClient;
use plugins::proto::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};

/// How long a plugin may take over one answer; upstream gives it 30 s before a start.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to say what it prefers: the node takes no other pod meanwhile.
const PREFERENCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Cheap to clone.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    ledger: Mutex<Ledger>,
    note: Note,
    plugins: Mutex<BTreeMap<String, Plugin>>,
    /// Numbers of devices, for the node's status.
    counts: watch::Sender<Counts>,
}

/// A plugin's socket, and what it wants to be asked.
#[derive(Clone)]
struct Plugin {
    socket: PathBuf,
    /// Before each start.
    pre_start: bool,
    /// Before a grant. Withdrawn when it gives no answer, until it registers again, so that it holds others up once.
    preference: bool,
}

/// All devices of a resource, and the healthy ones.
pub type Counts = BTreeMap<String, (usize, usize)>;

impl Devices {
    /// Reads what an earlier agent has granted.
    pub fn load(config: &Config) -> Self {
        let dir = config.root_dir.join("device-plugins");
        let granted: Granted = match std::fs::read(dir.join(CHECKPOINT)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(%error, "the note of granted devices is damaged: what pods have is not known");
                Granted::default()
            }),
            Err(_) => Granted::default(),
        };
        let ledger = Mutex::new(Ledger { granted, ..Ledger::default() });
        let (counts, _) = watch::channel(Counts::new());
        let note = Note::new(dir.join(CHECKPOINT));
        Self { inner: Arc::new(Inner { dir, ledger, note, plugins: Mutex::default(), counts }) }
    }

    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.inner.counts.subscribe()
    }

    /// Grants a pod that is being taken what it asks for. It is on disk before a container has any of it.
    pub fn grant(&self, pod: &DesiredPod, near: &Near, wishes: &Wishes) -> Result<(), Verdict> {
        self.inner.ledger.lock().grant(pod, near, wishes)
    }

    /// Asks the plugins that want it which devices the pod's container of that number had best have, where there is a
    /// choice, and adds that to `wishes`. Those before it have been asked for, and nothing else is granted meanwhile.
    pub async fn ask(&self, pod: &DesiredPod, index: usize, near: &Near, wishes: &mut Wishes) {
        loop {
            let asked = self.inner.with_preference();
            let choice = self.inner.ledger.lock().choice(pod, index, near, wishes, &asked);
            let Some(choice) = choice else { return };
            let key = (choice.container.clone(), choice.resource.clone());
            let Some(plugin) = self.inner.plugins.lock().get(&choice.resource).cloned() else { return };
            let answer = tokio::time::timeout(PREFERENCE_TIMEOUT, preferred(&plugin, choice)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PREFERENCE_TIMEOUT:?}")));
            let wish = answer.unwrap_or_else(|why| {
                warn!(pod = %pod.key(), resource = key.1, why, "device plugin does not say what it prefers");
                if let Some(plugin) = self.inner.plugins.lock().get_mut(&key.1) {
                    plugin.preference = false;
                }
                Vec::new()
            });
            wishes.insert(key, wish);
        }
    }

    /// Where the devices of a container of the pod could come from: hints for each resource whose devices have a place.
    pub fn hints(&self, pod: &DesiredPod, index: usize, near: &Near, wishes: &Wishes) -> Vec<Vec<Hint>> {
        self.inner.ledger.lock().hints(pod, index, near, wishes)
    }

    /// Where the devices of all containers of the pod could come from together, for each resource whose devices have a place.
    pub fn hints_of_pod(&self, pod: &DesiredPod) -> Vec<Vec<Hint>> {
        self.inner.ledger.lock().hints_of_pod(pod)
    }

    /// Gives back what a pod had that has ended. Repeating it is harmless.
    pub fn release(&self, pod_uid: &str) {
        self.release_all(|uid| uid != pod_uid);
    }

    /// Gives back what pods have that are not to keep it.
    pub fn release_all(&self, keeps: impl Fn(&str) -> bool) {
        if self.inner.ledger.lock().release_all(keeps) {
            let inner = self.inner.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.note() {
                    // The next note says it too.
                    warn!(%error, "devices of an ended pod are still noted as its own");
                }
            });
        }
    }

    /// Puts what the container's devices need into its configuration.
    pub async fn prepare(&self, config: &mut ContainerConfig) -> Result<(), String> {
        let grant = self.inner.ledger.lock().of(&config.pod_uid, &config.name);
        if grant.is_empty() {
            return Ok(());
        }
        let inner = self.inner.clone();
        let noted = tokio::task::spawn_blocking(move || inner.note()).await.map_err(std::io::Error::other);
        noted.flatten().map_err(|error| format!("devices were not noted: {error}"))?;
        for (resource, ids) in grant {
            let plugin = self.inner.plugins.lock().get(&resource).cloned();
            let plugin = plugin.ok_or_else(|| format!("no device plugin serves {resource}"))?;
            let answer = allocate(&plugin, ids).await;
            add(config, answer.map_err(|error| format!("device plugin of {resource}: {error}"))?);
        }
        Ok(())
    }
}

async fn preferred(plugin: &Plugin, choice: Choice) -> Result<Vec<String>, String> {
    let channel = connect(plugin.socket.clone()).await.map_err(|error| error.to_string())?;
    let request = ContainerPreferredAllocationRequest {
        available_device_ids: choice.available,
        must_include_device_ids: choice.must_include,
        allocation_size: i32::try_from(choice.wanted).map_err(|error| error.to_string())?,
    };
    let request = PreferredAllocationRequest { container_requests: vec![request] };
    let answer = DevicePluginClient::new(channel).get_preferred_allocation(request).await;
    let mut answers = answer.map_err(|status| status.to_string())?.into_inner().container_responses;
    Ok(answers.pop().map(|answer| answer.device_ids).unwrap_or_default())
}

async fn allocate(plugin: &Plugin, ids: Vec<String>) -> Result<ContainerAllocateResponse, String> {
    let channel = connect(plugin.socket.clone()).await.map_err(|error| error.to_string())?;
    let mut client = DevicePluginClient::new(channel);
    let container_requests = vec![ContainerAllocateRequest { devices_ids: ids.clone() }];
    let asked = async {
        let answer = client.allocate(AllocateRequest { container_requests }).await?;
        if plugin.pre_start {
            client.pre_start_container(PreStartContainerRequest { devices_ids: ids }).await?;
        }
        Ok::<_, tonic::Status>(answer.into_inner().container_responses)
    };
    let answers =
        tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| format!("no answer within {TIMEOUT:?}"))?;
    let mut answers = answers.map_err(|status| status.to_string())?;
    answers.pop().ok_or_else(|| "no answer for the container".to_owned())
}

fn add(config: &mut ContainerConfig, answer: ContainerAllocateResponse) {
    config.env.extend(answer.envs);
    config.annotations.extend(answer.annotations);
    config.mounts.extend(answer.mounts.into_iter().map(|mount| Mount {
        container_path: mount.container_path.into(),
        host_path: mount.host_path.into(),
        read_only: mount.read_only,
        ..Mount::default()
    }));
    config.devices.extend(answer.devices.into_iter().map(|device| DeviceMapping {
        host_path: device.host_path.into(),
        container_path: device.container_path.into(),
        permissions: device.permissions,
    }));
    config.cdi_devices.extend(answer.cdi_devices.into_iter().map(|device| device.name));
}

/// Upstream's name of the file.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";

impl Inner {
    /// Writes what is granted now, unless that is on disk. The ledger is free meanwhile. Blocks.
    fn note(&self) -> std::io::Result<()> {
        self.note.write(|written| {
            let ledger = self.ledger.lock();
            (ledger.version != written).then(|| (ledger.version, ledger.granted.clone()))
        })
    }

    /// Resources whose plugins want to be asked which devices to give.
    fn with_preference(&self) -> BTreeSet<String> {
        let plugins = self.plugins.lock();
        plugins.iter().filter(|(_, plugin)| plugin.preference).map(|(resource, _)| resource.clone()).collect()
    }

    /// Takes the devices of a resource as they are now.
    fn set_devices(&self, resource: &str, devices: BTreeMap<String, Device>) {
        let mut ledger = self.ledger.lock();
        ledger.devices.insert(resource.to_owned(), devices);
        self.tell(&ledger);
    }

    /// A plugin is away: its devices are there, but of no use.
    fn mark_unhealthy(&self, resource: &str) {
        let mut ledger = self.ledger.lock();
        let devices = ledger.devices.get_mut(resource).into_iter().flatten();
        devices.for_each(|(_, device)| device.is_healthy = false);
        self.tell(&ledger);
    }

    fn tell(&self, ledger: &Ledger) {
        let counts = ledger.counts().map(|(name, all, healthy)| (name.clone(), (all, healthy)));
        self.counts.send_replace(counts.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod_object, spec, with_resources};

    #[test]
    fn last_note_is_the_newest_whoever_writes_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let devices = Devices::load(&Config::new("n", [127, 0, 0, 1].into(), dir.path()));
        let device = Device { is_healthy: true, ..Device::default() };
        let gpus = (0..40).map(|n| (format!("gpu{n}"), device.clone())).collect();
        devices.inner.set_devices("test/gpu", gpus);
        let pods: Vec<DesiredPod> = (0..40)
            .map(|n| {
                let main = with_resources("main", &[], &[("test/gpu", "1")]);
                let mut object = pod_object(spec("Always", vec![], vec![main]));
                object.metadata.uid = Some(format!("pod{n}"));
                DesiredPod::new(Arc::new(object))
            })
            .collect();
        std::thread::scope(|scope| {
            for half in pods.chunks(20) {
                let devices = &devices;
                scope.spawn(move || {
                    for pod in half {
                        devices.grant(pod, &Near::new(), &Wishes::new()).expect("there are enough");
                        devices.inner.note().expect("noted");
                    }
                });
            }
        });
        let noted = || -> Granted {
            let content = std::fs::read(dir.path().join("device-plugins").join(CHECKPOINT)).expect("a note");
            serde_json::from_slice(&content).expect("whole")
        };
        assert_eq!(noted(), devices.inner.ledger.lock().granted);
        assert!(devices.inner.ledger.lock().release_all(|uid| uid == "pod7"));
        devices.inner.note().expect("noted");
        assert_eq!(noted(), devices.inner.ledger.lock().granted);
    }
}
