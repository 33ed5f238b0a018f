//! A CSI driver that has made itself known ([`crate::plugins`]) is entered into the node's CSINode object, by which the
//! scheduler and controllers know it; one that is gone is taken out again.

use std::sync::Arc;

use hawser_api::Api;
use hawser_api::client::Client;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use tracing::{info, warn};

use super::Csi;
use super::driver::proto::NodeGetInfoResponse;
use crate::plugins::proto::PluginInfo;

/// Asks the driver about this node, and enters it.
pub(crate) async fn enter_driver(csi: &Csi, info: &PluginInfo) -> Result<(), String> {
    csi.drivers.insert(&info.name, info.endpoint.trim_start_matches("unix://").into());
    let driver = csi.drivers.get(&info.name).map_err(|error| error.to_string())?;
    let entered = match driver.info().await {
        Ok(node) => enter(csi, &info.name, Some(node)).await,
        Err(error) => Err(error.to_string()),
    };
    if entered.is_err() {
        csi.drivers.remove(&info.name);
    } else {
        info!(driver = info.name, "CSI driver is registered");
    }
    entered
}

/// Its socket is gone.
pub(crate) async fn remove_driver(csi: &Csi, driver: &str) {
    csi.drivers.remove(driver);
    info!(driver, "CSI driver is gone");
    if let Err(error) = enter(csi, driver, None).await {
        warn!(driver, error, "driver stays in the node's CSINode object");
    }
}

/// Writes the driver into the node's CSINode object, or takes it out.
async fn enter(csi: &Csi, driver: &str, info: Option<NodeGetInfoResponse>) -> Result<(), String> {
    // The object is read, changed and written: one driver at a time.
    let _alone = csi.entering.lock().await;
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
