//! One gathering.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use hawser_runtime::{ContainerState, ContainerStatus, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::disk::{FsStats, fs_stats};
use super::{ContainerEntry, Cpu, Inner, NodeStats, PodStats, PodsMemory, Snapshot, network};
use crate::node::machine::{cpu_usage_ns, meminfo_field, pids};
use crate::pod::qos::QosClass;
use crate::qos_cgroups::{level, pod_group};
use crate::worker::PodView;

/// CPU times of the gathering before, for rates.
struct Before<'a> {
    elapsed_ns: u128,
    node: Option<u64>,
    pods: HashMap<&'a str, u64>,
    containers: HashMap<&'a str, u64>,
}

impl<'a> Before<'a> {
    fn of(snapshot: Option<&'a Snapshot>, now: Timestamp) -> Self {
        let since = snapshot.map_or(now, |s| s.at);
        let pods = || snapshot.into_iter().flat_map(|s| &s.pods);
        Self {
            elapsed_ns: u128::try_from(now.duration_since(since).as_nanos()).unwrap_or(0),
            node: snapshot.map(|s| s.node.cpu.usage_ns),
            pods: pods().map(|p| (p.uid.as_str(), p.cpu.usage_ns)).collect(),
            containers: pods().flat_map(|p| &p.containers).map(|c| (c.id.as_str(), c.cpu.usage_ns)).collect(),
        }
    }

    fn cpu(&self, usage_ns: u64, before: Option<u64>) -> Cpu {
        let rate = before.filter(|_| self.elapsed_ns > 0).map(|before| {
            let used = u128::from(usage_ns.saturating_sub(before));
            u64::try_from(used * 1_000_000_000 / self.elapsed_ns).unwrap_or(u64::MAX)
        });
        Cpu { usage_ns, nano_cores: rate }
    }
}

impl Inner {
    pub(super) async fn gather(&self, before: Option<&Snapshot>) -> Snapshot {
        let at = Timestamp::now();
        let before = Before::of(before, at);
        let views = match &self.pods {
            Some(pods) => pods.all(),
            None => self.views_of_runtime().await.unwrap_or_default(),
        };
        let disk = self.disk.lock().clone();
        let mut pods = Vec::new();
        for view in views {
            if let Some(mut pod) = self.pod(&view, &before).await {
                pod.disk = disk.get(&pod.uid).cloned().unwrap_or_default();
                pods.push(pod);
            }
            // Reading files of the kernel's does not wait, so a full node would hold up others.
            tokio::task::yield_now().await;
        }
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Snapshot { at, node: self.node(&before).await, pods }
    }

    async fn node(&self, before: &Before<'_>) -> NodeStats {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes = |field: &str| meminfo_field(&memory, field).unwrap_or(0);
        let (pids_max, pids) = pids().unwrap_or_default();
        NodeStats {
            cpu: before.cpu(cpu_usage_ns().unwrap_or(0), before.node),
            memory_total_bytes: bytes("MemTotal"),
            memory_available_bytes: bytes("MemAvailable"),
            memory_free_bytes: bytes("MemFree"),
            swap_total_bytes: bytes("SwapTotal"),
            swap_free_bytes: bytes("SwapFree"),
            network: network::interfaces(Path::new("/proc/self/net/dev")),
            fs: fs_stats(&self.root_dir),
            image_fs: self.image_fs().await,
            pods_memory: self.pods_memory().await,
            pids_max,
            pids,
        }
    }

    async fn pods_memory(&self) -> Option<PodsMemory> {
        let usage = self
            .runtime
            .group_stats(&level(self.cgroup_root.as_ref()?, QosClass::Guaranteed))
            .await
            .ok()
            .flatten()?;
        let limit_bytes = usage.memory_limit_bytes?;
        Some(PodsMemory { working_set_bytes: usage.memory_working_set_bytes, limit_bytes })
    }

    pub(super) async fn image_fs(&self) -> Option<FsStats> {
        let dir = self.image_dir.get_or_try_init(|| self.runtime.image_directory()).await.ok()?;
        fs_stats(dir)
    }

    /// `None` for a pod that has nothing here yet, or no more.
    async fn pod(&self, view: &PodView, before: &Before<'_>) -> Option<PodStats> {
        let meta = &view.pod.metadata;
        let uid = meta.uid.clone().unwrap_or_default();
        let usage = self.runtime.pod_stats(&uid).await.ok().flatten()?;
        let mut containers = Vec::new();
        for status in running(view) {
            let Ok(Some(usage)) = self.runtime.stats(&status.id).await else { continue };
            let known = before.containers.get(status.id.as_str()).copied();
            containers.push(ContainerEntry {
                id: status.id.clone(),
                name: status.name.clone(),
                image: status.image_ref.clone(),
                attempt: status.attempt,
                started_at: status.started_at,
                cpu: before.cpu(usage.cpu_usage_ns, known),
                usage,
            });
        }
        let spec = view.pod.spec.as_ref();
        let cgroup = self.cgroup_root.as_ref().zip(spec).map(|(root, spec)| pod_group(root, spec, &uid));
        let started = view.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        Some(PodStats {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            cgroup: cgroup.unwrap_or_default(),
            started_at: started.or_else(|| containers.iter().filter_map(|c| c.started_at).min()),
            cpu: before.cpu(usage.cpu_usage_ns, before.pods.get(uid.as_str()).copied()),
            usage,
            network: pod_network(view),
            containers,
            uid,
            ..PodStats::default()
        })
    }

    /// Pods as a runtime knows them: their names, and what runs.
    async fn views_of_runtime(&self) -> Result<Vec<PodView>> {
        let mut containers: BTreeMap<String, Vec<ContainerStatus>> = BTreeMap::new();
        for container in self.runtime.list_containers().await? {
            containers.entry(container.pod_uid.clone()).or_default().push(container);
        }
        let sandboxes = self.runtime.list_pod_sandboxes().await?.into_iter().map(|sandbox| {
            let config = sandbox.config;
            let mine = containers.remove(&config.pod_uid).unwrap_or_default();
            let metadata = ObjectMeta {
                uid: Some(config.pod_uid),
                name: Some(config.pod_name),
                namespace: Some(config.pod_namespace),
                ..ObjectMeta::default()
            };
            // Whose network it is on is not told; the node's is not to be shown as a pod's.
            let spec = PodSpec { host_network: Some(true), ..PodSpec::default() };
            PodView {
                pod: Arc::new(Pod { metadata, spec: Some(spec), status: None }),
                containers: mine.into_iter().map(|c| (c.name.clone(), (Some(c.into()), None))).collect(),
                ..PodView::default()
            }
        });
        Ok(sandboxes.collect())
    }
}

fn running(view: &PodView) -> impl Iterator<Item = &ContainerStatus> {
    let current = view.containers.values().filter_map(|(current, _)| current.as_deref());
    current.filter(|status| status.state == ContainerState::Running)
}

/// As any of the pod's processes sees it.
fn pod_network(view: &PodView) -> Vec<network::Interface> {
    if view.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Vec::new();
    }
    let pid = running(view).find_map(|status| status.pid);
    pid.map(|pid| network::interfaces(Path::new(&format!("/proc/{pid}/net/dev")))).unwrap_or_default()
}
