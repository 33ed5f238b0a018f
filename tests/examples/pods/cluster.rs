//! The cluster of one node, as its clients and its machine see it.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt, future::try_join_all};
use hawser_api::{
    Client, GroupVersionResource,
    client::{DeleteOptions, WatchEvent, WatchOptions, WriteOptions},
    grpc::{Remote, RemoteOptions},
    resource::Target,
};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Nothing that is measured takes this long.
const DEADLINE: Duration = Duration::from_secs(300);
pub(crate) const NODE: &str = "node1";

/// What the watch has told of a pod.
#[derive(Clone, Copy, Default)]
struct Seen {
    running: Option<Instant>,
    restarts: i64,
    gone: bool,
}

type Pods = Arc<HashMap<String, Seen>>;

pub(crate) struct Cluster {
    pub(crate) name: String,
    xtask: String,
    registry: String,
    client: Remote,
    pods: watch::Receiver<Pods>,
}

/// What is read of a pod's JSON.
#[derive(Deserialize)]
struct PodView {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    restart_count: i64,
}

fn all_pods() -> Target {
    Target::collection(GroupVersionResource::of::<Pod>(), Some("default"))
}

fn pod(name: &str) -> Target {
    Target::object(GroupVersionResource::of::<Pod>(), Some("default"), name)
}

impl Cluster {
    pub(crate) async fn connect(name: &str, xtask: &str) -> Result<Self> {
        let data = PathBuf::from("/var/lib").join(name);
        let read = |file: &str| {
            let path = data.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let settings: Value = serde_json::from_str(&read("cluster.json")?)?;
        let config: Value = serde_yaml_ng::from_str(&read("control-plane/admin.kubeconfig")?)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let text = |value: &Value, field: &str| {
            value[field].as_str().map(str::to_owned).with_context(|| format!("the kubeconfig has no {field}"))
        };
        let pem =
            |value: &Value, field: &str| -> Result<Vec<u8>> { Ok(STANDARD.decode(text(value, field)?)?) };
        let client = Remote::new(&RemoteOptions {
            servers: vec![text(cluster, "server")?],
            ca_pem: pem(cluster, "certificate-authority-data")?,
            identity: Some((pem(user, "client-certificate-data")?, pem(user, "client-key-data")?)),
        })?;
        let lan = settings["lan"].as_str().context("cluster.json has no lan")?;
        let (seen, pods) = watch::channel(Pods::default());
        tokio::spawn(follow(client.clone(), seen));
        Ok(Self {
            name: name.to_owned(),
            xtask: xtask.to_owned(),
            registry: format!("{lan}.1:{}", settings["registry_port"]),
            client,
            pods,
        })
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        PathBuf::from("/var/lib").join(&self.name)
    }

    fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run").join(&self.name)
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.run_dir().join(NODE).join("containerd/containerd.sock")
    }

    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/demo/{name}", self.registry)
    }

    /// `node1.agent`, `node1.containerd`
    pub(crate) fn pid_of(&self, part: &str) -> Result<i32> {
        let file = self.run_dir().join(format!("{NODE}.{part}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let pid = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        pid.with_context(|| format!("{} holds no process id", file.display()))
    }

    pub(crate) fn agent_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.data_dir().join(format!("logs/{NODE}.agent.log")))?)
    }

    /// Starts what does not run, and returns at once.
    pub(crate) fn start_again(&self) -> Result<std::process::Child> {
        let mut up = Command::new(&self.xtask);
        up.args(["up", "--no-build", "--measured", "--name", &self.name]);
        Ok(up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// Makes pods of one container that sleeps, all at once; returns when each was asked for.
    pub(crate) async fn make(&self, names: &[String], image: &str) -> Result<Vec<Instant>> {
        self.make_of(names, image, json!([{ "name": "main", "command": ["sleep", "3600"] }])).await
    }

    /// The same, of these containers, without their image.
    pub(crate) async fn make_of(
        &self,
        names: &[String],
        image: &str,
        mut containers: Value,
    ) -> Result<Vec<Instant>> {
        for container in containers.as_array_mut().into_iter().flatten() {
            container["image"] = image.into();
            container["imagePullPolicy"] = "IfNotPresent".into();
        }
        let makes = names.iter().map(|name| {
            let object = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": {
                    "nodeName": NODE, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
                    "containers": containers,
                },
            });
            async move {
                let asked = Instant::now();
                let body = Bytes::from(object.to_string());
                self.client.create(&all_pods(), body, &WriteOptions::default()).await?;
                anyhow::Ok(asked)
            }
        });
        try_join_all(makes).await
    }

    /// Waits until all run; returns when each was seen to.
    pub(crate) async fn running(&self, names: &[String]) -> Result<Vec<Instant>> {
        let pods = self.wait(names, |seen| seen.running.is_some()).await?;
        Ok(names.iter().filter_map(|name| pods.get(name)?.running).collect())
    }

    /// Removes pods and waits until they are gone.
    pub(crate) async fn remove(&self, names: &[String]) -> Result<()> {
        let options = DeleteOptions::default();
        let targets: Vec<Target> = names.iter().map(|name| pod(name)).collect();
        try_join_all(targets.iter().map(|target| self.client.delete(target, &options))).await?;
        self.wait(names, |seen| seen.gone).await.map(drop)
    }

    /// How often containers of these pods have started again.
    pub(crate) fn restarts(&self, names: &[String]) -> i64 {
        let pods = self.pods.borrow();
        names.iter().filter_map(|name| pods.get(name)).map(|seen| seen.restarts).sum()
    }

    async fn wait(&self, names: &[String], is_done: impl Fn(&Seen) -> bool) -> Result<Pods> {
        let mut pods = self.pods.clone();
        let done = |pods: &Pods| names.iter().all(|name| pods.get(name).is_some_and(&is_done));
        match tokio::time::timeout(DEADLINE, pods.wait_for(done)).await {
            Ok(Ok(pods)) => Ok(pods.clone()),
            Ok(Err(_)) => bail!("the watch has ended"),
            Err(_) => bail!("not all of {} pods after {} s", names.len(), DEADLINE.as_secs()),
        }
    }

    /// Removes an image from the agent's containerd, and waits until its content is gone.
    pub(crate) fn forget_image(&self, image: &str) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.containerd_socket()).args(["--namespace", "hawser"]);
        let status = ctr.args(["image", "rm", "--sync", image]).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "ctr image rm {image}: {status}");
        Ok(())
    }
}

/// Keeps what is known of pods; begun before any pod is made.
async fn follow(client: Remote, seen: watch::Sender<Pods>) {
    let options = WatchOptions::default();
    let Ok(mut events) = client.watch(&all_pods(), &options).await else { return };
    while let Some(Ok(event)) = events.next().await {
        let now = Instant::now();
        let (object, gone) = match &event {
            WatchEvent::Added { object, .. } | WatchEvent::Modified { object, .. } => (object, false),
            WatchEvent::Deleted { object, .. } => (object, true),
            WatchEvent::Bookmark { .. } => continue,
        };
        let Ok(pod) = serde_json::from_slice::<PodView>(object) else { continue };
        seen.send_modify(|pods| {
            let entry = Arc::make_mut(pods).entry(pod.metadata.name).or_default();
            if pod.status.phase == "Running" && entry.running.is_none() {
                entry.running = Some(now);
            }
            entry.restarts = pod.status.container_statuses.iter().map(|status| status.restart_count).sum();
            entry.gone = gone;
        });
    }
}
