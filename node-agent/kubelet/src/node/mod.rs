//! The node itself: its registration, status, lease and usage.
//!
//! The Node object is made once and its labels kept; the status is written when it changes, when the API shows another
//! one, and after a while, the lease every ten seconds. A failed write is tried again at the next turn.

mod lease;
pub mod machine;
pub mod status;
pub mod usage;

use std::sync::Arc;
use std::time::Duration;

use hawser_api::client::Client;
use hawser_api::informer::Informer;
use hawser_api::resource::{ObjectKey, Target};
use hawser_api::{Api, GroupVersionResource};
use hawser_runtime::{Runtime, RuntimeVersion};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::csi::Csi;
use crate::devices::Counts;
use crate::events::{EventType, Recorder, node_reference};
use crate::eviction::Pressure;
use crate::interfaces::{PodNetwork, StatusWriter};
use crate::shutdown::NODE_MESSAGE;

pub use machine::Machine;

/// While the node is not ready, it looks again this often.
const LOOK_WHEN_NOT_READY: Duration = Duration::from_secs(1);
const MAX_IMAGE_NAMES: usize = 5;

/// Keeps the Node object true.
pub struct NodeKeeper {
    pub config: Arc<Config>,
    pub client: Arc<dyn Client>,
    pub status: Arc<dyn StatusWriter>,
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    pub recorder: Recorder,
    pub machine: Machine,
    /// What runs short.
    pub pressure: watch::Receiver<Pressure>,
    /// The machine goes down.
    pub shutting_down: watch::Receiver<bool>,
    /// What device plugins offer.
    pub devices: watch::Receiver<Counts>,
    /// What of volumes is in use.
    pub csi: Csi,
    /// What the API shows, for writes of others.
    pub nodes: Informer<Node>,
}

impl NodeKeeper {
    /// Registers the node, then keeps status and lease up to date until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) {
        let node = tokio::select! {
            () = shutdown.cancelled() => return,
            node = self.register_until_done() => node,
        };
        self.tell("Starting", "Starting kubelet.".into());
        let lease = lease::keep(self.client.clone(), self.config.clone(), node.metadata.uid.clone());
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = lease => {}
            () = self.keep_status(node) => {}
        }
    }

    fn tell(&self, reason: &'static str, message: String) {
        let node = node_reference(&self.config.node_name);
        self.recorder.event(node, EventType::Normal, reason, message);
    }

    async fn register_until_done(&self) -> Node {
        let mut delay = Duration::from_millis(200);
        loop {
            match self.register().await {
                Ok(node) => return node,
                Err(error) => warn!(%error, ?delay, "the node was not registered, trying again"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(7));
        }
    }

    /// Creates the node, or brings the labels of an existing one up to date.
    async fn register(&self) -> Result<Node, hawser_api::Error> {
        let api: Api<Node> = Api::all(self.client.clone());
        let fresh = Node { status: Some(self.current(None).await), ..new_node(&self.config) };
        match api.create(&fresh).await {
            Err(error) if error.is_already_exists() => {}
            created => {
                info!(node = self.config.node_name, "registered");
                return created;
            }
        }
        let known = api.get(&self.config.node_name).await?;
        let wanted = fresh.metadata.labels.unwrap_or_default();
        let has = |(key, value): (&String, &String)| {
            known.metadata.labels.as_ref().and_then(|l| l.get(key)) == Some(value)
        };
        if wanted.iter().all(has) {
            return Ok(known);
        }
        api.merge_patch(&self.config.node_name, &json!({ "metadata": { "labels": wanted } })).await
    }

    async fn keep_status(&self, node: Node) {
        let target = Target::object(GroupVersionResource::of::<Node>(), None, &self.config.node_name);
        let uid = node.metadata.uid.unwrap_or_default();
        let mut written: Option<(NodeStatus, Instant)> = None;
        let mut previous = node.status;
        let (mut pressure, mut devices) = (self.pressure.clone(), self.devices.clone());
        let mut shutting_down = self.shutting_down.clone();
        loop {
            // Before it is read: what changes from here on is another turn's.
            pressure.mark_unchanged();
            devices.mark_unchanged();
            shutting_down.mark_unchanged();
            let mut fresh = self.current(previous.as_ref()).await;
            let overwritten = self.overwritten(&fresh);
            if let Some(shown) = &overwritten {
                // What changes back is a transition too.
                fresh = self.current(Some(shown)).await;
            }
            let due = written.as_ref().is_none_or(|(known, at)| {
                at.elapsed() >= self.config.status_report_interval
                    || status::differs(known, &fresh)
                    || overwritten.is_some()
            });
            if due {
                match self.status.patch_status(&target, &uid, status::patch(&fresh)).await {
                    Ok(()) => written = Some((fresh.clone(), Instant::now())),
                    Err(error) => warn!(%error, "the node's status was not written, trying again"),
                }
            }
            let was_ready = previous.as_ref().is_some_and(status::is_ready);
            let ready = status::is_ready(&fresh);
            if was_ready != ready {
                let reason = if ready { "NodeReady" } else { "NodeNotReady" };
                let message = format!("Node {} status is now: {reason}", self.config.node_name);
                self.tell(reason, message);
            }
            previous = Some(fresh);
            let wait = if ready { self.config.status_interval } else { LOOK_WHEN_NOT_READY };
            tokio::select! {
                () = tokio::time::sleep(wait.min(self.config.status_interval)) => {}
                // Fails when the evictor has ended, which then changes nothing any more.
                Ok(()) = pressure.changed() => {}
                Ok(()) = devices.changed() => {}
                () = self.csi.changed() => {}
                Ok(()) = shutting_down.changed() => {}
            }
        }
    }

    /// The status that the API shows, where it is not the node's own word.
    fn overwritten(&self, fresh: &NodeStatus) -> Option<NodeStatus> {
        let shown = self.nodes.get(&ObjectKey::new("", &self.config.node_name))?;
        // A cache that is behind the newest write looks the same; the write is then repeated once.
        shown.status.clone().filter(|shown| status::is_overwritten(shown, fresh))
    }

    async fn current(&self, previous: Option<&NodeStatus>) -> NodeStatus {
        let version = self.runtime.version().await;
        let images = self.runtime.list_images().await.unwrap_or_default();
        let mut images: Vec<ContainerImage> = images.into_iter().map(shown_image).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
        images.truncate(self.config.status_max_images.unwrap_or(usize::MAX));
        let network = self.network.ready();
        let not_ready = match (&version, &network) {
            _ if *self.shutting_down.borrow() => Some(NODE_MESSAGE.to_owned()),
            (Err(error), _) => Some(format!("container runtime is down: {error}")),
            (Ok(_), Err(why)) => Some(format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
            )),
            (Ok(_), Ok(())) => None,
        };
        let observed = status::Observed {
            now: Timestamp::now(),
            not_ready,
            no_network: network.err(),
            runtime: version.map_or_else(|_| "containerd://unknown".into(), |v| runtime_uri(&v)),
            own_users: self.runtime.supports_users(status::RUNC).is_ok(),
            images,
            pressure: *self.pressure.borrow(),
            devices: self.devices.borrow().clone(),
            volumes_in_use: self.csi.in_use(),
        };
        status::node_status(&self.config, &self.machine, &observed, previous)
    }
}

/// The node as it is registered, without a status.
pub(crate) fn new_node(config: &Config) -> Node {
    let mut labels = config.labels.clone();
    let arch = machine::architecture();
    for (key, value) in [
        ("kubernetes.io/hostname", config.hostname.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(key.into(), value.into());
    }
    let taints: Vec<Taint> = config.taints.iter().filter_map(|t| parse_taint(t)).collect();
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: config.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

fn runtime_uri(version: &RuntimeVersion) -> String {
    format!("{}://{}", version.name, version.version)
}

fn shown_image(image: hawser_runtime::Image) -> ContainerImage {
    let names = image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_IMAGE_NAMES);
    ContainerImage { names: Some(names.collect()), size_bytes: i64::try_from(image.size_bytes).ok() }
}

/// `key=value:effect`, `key:effect`
pub(crate) fn parse_taint(text: &str) -> Option<Taint> {
    let (key_value, effect) = text.rsplit_once(':')?;
    let (key, value) = match key_value.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (key_value, None),
    };
    Some(Taint { key: key.into(), value, effect: effect.into(), time_added: None })
}
