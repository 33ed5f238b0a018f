//! Plugins that come and go: each has a socket below `<root>/plugins_registry`, over which it is asked what it is.
//!
//! The directory is looked at every second. A CSI driver is entered into the node's CSINode object, by which the
//! scheduler and controllers know it; one whose socket is gone is taken out again.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::Api;
use hawser_api::client::Client;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Csi;
use super::driver::proto::NodeGetInfoResponse;
use crate::sockets::connect;
use proto::registration_client::RegistrationClient;
use proto::{InfoRequest, PluginInfo, RegistrationStatus};

/// The generated code of `proto/plugin_registration.proto`.
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("pluginregistration");
}

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
/// Plugins of one node, more than any has; sockets beyond are passed over.
const MAX_PLUGINS: usize = 256;

/// Sockets that were seen, with what tells one from another at the same path, and the driver behind it.
type Known = BTreeMap<PathBuf, (u64, Option<String>)>;

/// Follows plugins until the token is cancelled.
pub async fn run(csi: Csi, shutdown: CancellationToken) {
    let dir = csi.config.root_dir.join("plugins_registry");
    let mut known = Known::new();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => look(&csi, &dir, &mut known).await,
        }
    }
}

async fn look(csi: &Csi, dir: &Path, known: &mut Known) {
    let found = sockets(dir);
    let gone: Vec<PathBuf> = known.keys().filter(|path| !found.contains_key(*path)).cloned().collect();
    for path in gone {
        if let Some((_, Some(driver))) = known.remove(&path) {
            csi.drivers.remove(&driver);
            info!(driver, "CSI driver is gone");
            if let Err(error) = enter(csi, &driver, None).await {
                warn!(driver, error, "driver stays in the node's CSINode object");
            }
        }
    }
    for (path, inode) in found {
        if known.get(&path).is_some_and(|(seen, _)| *seen == inode) {
            continue;
        }
        match register(csi, &path).await {
            Ok(driver) => {
                known.insert(path, (inode, driver));
            }
            Err(error) => warn!(socket = %path.display(), error, "plugin was not registered, trying again"),
        }
    }
}

fn sockets(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sockets = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        meta.file_type().is_socket().then(|| (entry.path(), meta.ino()))
    });
    sockets.take(MAX_PLUGINS).collect()
}

/// Asks a plugin what it is, and tells it what became of that. Returns the name of a CSI driver, `None` for a plugin of
/// another kind.
async fn register(csi: &Csi, socket: &Path) -> Result<Option<String>, String> {
    let channel = connect(socket.to_owned()).await.map_err(|error| error.to_string())?;
    let mut plugin = RegistrationClient::new(channel);
    let info = within(plugin.get_info(InfoRequest {})).await?;
    if info.r#type != "CSIPlugin" {
        let error = format!("no handler registered for plugin type: {}", info.r#type);
        let status = RegistrationStatus { plugin_registered: false, error };
        within(plugin.notify_registration_status(status)).await?;
        return Ok(None);
    }
    let entered = enter_driver(csi, &info).await;
    let error = entered.as_ref().err().cloned().unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: entered.is_ok(), error };
    within(plugin.notify_registration_status(status)).await?;
    entered?;
    info!(driver = info.name, "CSI driver is registered");
    Ok(Some(info.name))
}

async fn within<T>(
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

async fn enter_driver(csi: &Csi, info: &PluginInfo) -> Result<(), String> {
    csi.drivers.insert(&info.name, info.endpoint.trim_start_matches("unix://").into());
    let driver = csi.drivers.get(&info.name).map_err(|error| error.to_string())?;
    let entered = match driver.info().await {
        Ok(node) => enter(csi, &info.name, Some(node)).await,
        Err(error) => Err(error.to_string()),
    };
    if entered.is_err() {
        csi.drivers.remove(&info.name);
    }
    entered
}

/// Writes the driver into the node's CSINode object, or takes it out.
async fn enter(csi: &Csi, driver: &str, info: Option<NodeGetInfoResponse>) -> Result<(), String> {
    let (client, name) = (csi.client.clone(), &csi.config.node_name);
    let text = |error: hawser_api::Error| error.to_string();
    if let Some(segments) = info.as_ref().and_then(|i| i.accessible_topology.as_ref()).map(|t| &t.segments) {
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.merge_patch(name, &json!({ "metadata": { "labels": segments } })).await.map_err(text)?;
    }
    let api: Api<CSINode> = Api::all(client.clone());
    let found = api.find(name).await.map_err(text)?;
    let is_new = found.is_none();
    let mut object = match found {
        Some(object) => object,
        None => new_object(client, name).await?,
    };
    object.spec.drivers.retain(|known| known.name != driver);
    object.spec.drivers.extend(info.map(|info| node_driver(driver, info)));
    let written = if is_new { api.create(&object).await } else { api.update(&object).await };
    written.map(drop).map_err(text)
}

async fn new_object(client: Arc<dyn Client>, name: &str) -> Result<CSINode, String> {
    let nodes: Api<Node> = Api::all(client);
    let node = nodes.get(name).await.map_err(|error| error.to_string())?;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid: node.metadata.uid.unwrap_or_default(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Ok(CSINode { metadata, spec: CSINodeSpec { drivers: Vec::new() } })
}

fn node_driver(name: &str, info: NodeGetInfoResponse) -> CSINodeDriver {
    let count = i32::try_from(info.max_volumes_per_node).ok().filter(|count| *count > 0);
    let mut keys: Vec<String> =
        info.accessible_topology.map(|t| t.segments.into_keys().collect()).unwrap_or_default();
    keys.sort();
    CSINodeDriver {
        name: name.to_owned(),
        node_id: info.node_id,
        topology_keys: (!keys.is_empty()).then_some(keys),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}
