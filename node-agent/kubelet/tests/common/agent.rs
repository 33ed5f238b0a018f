//! The kubelet on a real containerd, within the test's own process: what tests of pods that really run share.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use hawser_kubelet::{
    ClientStatusWriter, Config, Kubelet, NetworkError, Objects, Parts, PodNetwork, PodNetworkRequest,
    PodNetworkStatus,
};
use hawser_runtime::testing::TestNode;
use hawser_runtime::{Containerd, Runtime};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodStatus, VolumeMount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio_util::sync::CancellationToken;

use super::{FakeApi, News, container};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Network namespaces without any link but the loopback: nothing can leave them.
pub(crate) struct LoopbackNetwork {
    prefix: String,
}

impl LoopbackNetwork {
    pub(crate) fn of(cgroup: &str) -> Arc<Self> {
        Arc::new(Self { prefix: cgroup.trim_start_matches('/').to_owned() })
    }

    fn name(&self, uid: &str) -> String {
        format!("{}-{uid}", self.prefix)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        Self::names_of(&self.prefix)
    }

    /// The namespaces of an agent in another process, which lives on or has been killed.
    pub(crate) fn of_others(cgroup: &str) -> Vec<String> {
        Self::names_of(cgroup.trim_start_matches('/'))
    }

    fn names_of(prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    std::fs::File::create(to)?;
    let none = None::<&str>;
    Ok(nix::mount::mount(Some(from), to, none, nix::mount::MsFlags::MS_BIND, none)?)
}

fn ip(args: &[&str]) -> Result<(), NetworkError> {
    let output = Command::new("ip").args(args).output().map_err(|e| NetworkError(e.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(NetworkError(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

#[async_trait]
impl PodNetwork for LoopbackNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let name = self.name(&request.pod_uid);
        let netns = PathBuf::from("/run/netns").join(&name);
        if let Some(given) = &request.netns {
            // Another one than before, where the pod's users are others.
            self.teardown(&request.pod_uid).await?;
            bind(given, &netns).map_err(|error| NetworkError(error.to_string()))?;
        } else if !netns.exists() {
            ip(&["netns", "add", &name])?;
        }
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(PodNetworkStatus { netns, ips: vec![IpAddr::from([10, 1, 0, 7])] })
    }

    async fn teardown(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let name = self.name(pod_uid);
        if self.names().contains(&name) { ip(&["netns", "del", &name]) } else { Ok(()) }
    }

    async fn list(&self) -> Result<Vec<String>, NetworkError> {
        let start = self.prefix.len() + 1;
        Ok(self.names().into_iter().map(|name| name[start..].to_owned()).collect())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Drop for LoopbackNetwork {
    fn drop(&mut self) {
        for name in self.names() {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

pub(crate) struct Agent {
    pub(crate) api: Arc<FakeApi>,
    pub(crate) objects: Objects,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<LoopbackNetwork>,
    pub(crate) kubelet: Kubelet,
    pub(crate) config: Config,
    shutdown: CancellationToken,
}

impl Agent {
    pub(crate) async fn start(node: &TestNode) -> Result<Self> {
        Self::start_set(node, |_| {}).await
    }

    /// With other settings.
    pub(crate) async fn start_set(node: &TestNode, set: impl FnOnce(&mut Config)) -> Result<Self> {
        let objects = Objects::default();
        let api = Arc::new(FakeApi::new(&objects));
        let network = LoopbackNetwork::of(node.cgroup());
        Self::start_over(Self::config_of(node, set), node.connect().await?, api, network, objects).await
    }

    pub(crate) fn config_of(node: &TestNode, set: impl FnOnce(&mut Config)) -> Config {
        let mut config = config_in(node.dir(), node.cgroup());
        set(&mut config);
        config
    }

    pub(crate) async fn start_over(
        config: Config,
        runtime: Containerd,
        api: Arc<FakeApi>,
        network: Arc<LoopbackNetwork>,
        objects: Objects,
    ) -> Result<Self> {
        let runtime: Arc<dyn Runtime> = Arc::new(runtime);
        let shutdown = CancellationToken::new();
        let parts = Parts {
            runtime: runtime.clone(),
            network: network.clone(),
            client: api.clone(),
            status: Arc::new(ClientStatusWriter(api.clone())),
            objects: objects.clone(),
            endpoints: Arc::new(News::default()),
        };
        let kubelet = Kubelet::start(config.clone(), parts, shutdown.clone());
        objects.pods.replace(api.pods());
        Ok(Self { api, objects, runtime, network, kubelet, config, shutdown })
    }

    /// A new process of the agent over the same node and API.
    pub(crate) async fn restart(self, node: &TestNode) -> Result<Self> {
        self.restart_over(node.connect()).await
    }

    /// The same, over a runtime that connects when the old one is gone, as it is the new process's.
    pub(crate) async fn restart_over(
        mut self,
        connecting: impl Future<Output = Result<Containerd>>,
    ) -> Result<Self> {
        self.shutdown.cancel();
        self.kubelet.stopped().await;
        drop((self.kubelet, self.runtime));
        let runtime = connecting.await?;
        let objects = Objects {
            config_maps: self.objects.config_maps.clone(),
            secrets: self.objects.secrets.clone(),
            ..Objects::default()
        };
        let api = Arc::new(self.api.over(&objects));
        Self::start_over(self.config, runtime, api, self.network, objects).await
    }

    pub(crate) fn status(&self) -> PodStatus {
        self.api.pod("web").and_then(|p| p.status).unwrap_or_default()
    }

    pub(crate) async fn wait<T>(&self, what: &str, probe: impl Fn() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(found) = probe() {
                return Ok(found);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left: Vec<_> =
            self.kubelet.pods.all().into_iter().map(|v| (v.pod.metadata.clone(), v.containers)).collect();
        let containers = self.runtime.list_containers().await?;
        let (status, events) = (self.status(), self.api.events());
        bail!(
            "{what}: not within {DEADLINE:?}; {status:#?} {events:#?} left: {left:#?} runtime: {containers:#?}"
        )
    }

    pub(crate) async fn wait_status(
        &self,
        what: &str,
        holds: impl Fn(&PodStatus) -> bool,
    ) -> Result<PodStatus> {
        self.wait(what, || Some(self.status()).filter(&holds)).await
    }

    pub(crate) fn delete(&self, grace: i64) {
        self.delete_pod("web", grace);
    }

    pub(crate) fn delete_pod(&self, name: &str, grace: i64) {
        let mut pod = self.api.pod(name).expect("there");
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::now() + SignedDuration::from_secs(grace)));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.api.put_pod(&pod);
    }

    /// The pod is deleted, and nothing of it is left anywhere.
    pub(crate) async fn expect_gone(&self, node: &TestNode) -> Result<()> {
        self.wait("the pod to go", || self.api.pod("web").is_none().then_some(())).await?;
        self.expect_empty(node).await
    }

    /// Nothing of any pod is left.
    pub(crate) async fn expect_empty(&self, node: &TestNode) -> Result<()> {
        self.wait("the workers to end", || self.kubelet.pods.is_empty().then_some(())).await?;
        ensure!(self.runtime.list_containers().await?.is_empty());
        ensure!(self.runtime.list_pod_sandboxes().await?.is_empty());
        ensure!(self.network.names().is_empty(), "{:?}", self.network.names());
        for dir in [self.config.root_dir.join("pods"), self.config.log_dir.clone()] {
            let left: Vec<_> =
                std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
            ensure!(left.is_empty(), "{left:?}");
        }
        // Shims and log writers end a moment after what they served.
        self.wait("the node to be empty", || {
            node.left_behind().is_ok_and(|left| left.is_empty()).then_some(())
        })
        .await
        .with_context(|| format!("{:?}", node.left_behind()))?;
        Ok(())
    }
}

pub(crate) fn test_node() -> Result<Option<TestNode>> {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("the test is in target/<profile>/deps")?;
    TestNode::start(target.join("examples/kubelet_log_writer"))
}

pub(crate) fn shell(name: &str, image: &str, script: &str) -> Container {
    let command = vec!["sh".into(), "-c".into(), script.into()];
    Container { image: Some(image.into()), command: Some(command), ..container(name) }
}

pub(crate) fn mount(name: &str, path: &str, sub_path: Option<&str>) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        sub_path: sub_path.map(str::to_owned),
        ..VolumeMount::default()
    }
}

/// The kubelet's settings on a node in that directory and cgroup.
pub(crate) fn config_in(dir: &Path, cgroup: &str) -> Config {
    let mut config = Config::new("n1", IpAddr::from([127, 0, 0, 1]), dir.join("kubelet"));
    config.cgroup_root = cgroup.to_owned();
    config.cluster_dns = vec![IpAddr::from([10, 96, 0, 10])];
    // The disk is the machine's, and may be fuller than a node's.
    config.eviction.thresholds.clear();
    config.image_gc.high_percent = 100;
    config
}
