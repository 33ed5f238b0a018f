//! The kubelet's end of device plugins: its registration socket, and one watch of devices a resource.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::ledger::Device;
use super::{Devices, Inner, Plugin};
use crate::sockets::{connect, serve};
use proto::device_plugin_client::DevicePluginClient;
use proto::registration_server::{Registration, RegistrationServer};
use proto::{Empty, RegisterRequest};

/// The generated code of `proto/device_plugin.proto`.
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod proto {
    tonic::include_proto!("v1beta1");
}

const VERSION: &str = "v1beta1";
const SOCKET: &str = "kubelet.sock";
/// Resources of device plugins on one node, more than any has.
const MAX_RESOURCES: usize = 64;

/// Serves registrations until the token is cancelled.
pub async fn run(devices: Devices, shutdown: CancellationToken) {
    let dir = devices.inner.dir.clone();
    let listener = match listen(&dir) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(dir = %dir.display(), %error, "device plugins cannot register");
            return shutdown.cancelled().await;
        }
    };
    let service = Registrar { inner: devices.inner, watches: Arc::default(), shutdown: shutdown.clone() };
    tokio::select! {
        () = shutdown.cancelled() => {}
        error = serve(listener, RegistrationServer::new(service)) => {
            warn!(%error, "device plugins cannot register any more");
            shutdown.cancelled().await;
        }
    }
}

/// Plugins see by a new socket that the kubelet was started again, and register anew.
fn listen(dir: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

struct Registrar {
    inner: Arc<Inner>,
    /// One a resource; a plugin that registers again takes the place of the one before.
    watches: Arc<Mutex<BTreeMap<String, JoinSet<()>>>>,
    shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            let why = format!("version {:?} is not supported; {VERSION} is", request.version);
            return Err(Status::invalid_argument(why));
        }
        let resource = request.resource_name.clone();
        let is_name = |text: &str| !text.is_empty() && !text.contains('/');
        if !resource.split_once('/').is_some_and(|(domain, name)| is_name(domain) && is_name(name)) {
            return Err(Status::invalid_argument(format!("{resource:?} is no name of an extended resource")));
        }
        if !is_name(&request.endpoint) || request.endpoint.starts_with('.') {
            return Err(Status::invalid_argument(format!("{:?} is no name of a socket", request.endpoint)));
        }
        let options = request.options.unwrap_or_default();
        let plugin = Plugin {
            socket: self.inner.dir.join(&request.endpoint),
            pre_start: options.pre_start_required,
            preference: options.get_preferred_allocation_available,
        };
        let mut watches = self.watches.lock();
        if watches.len() >= MAX_RESOURCES && !watches.contains_key(&resource) {
            return Err(Status::resource_exhausted(format!("{MAX_RESOURCES} resources are registered")));
        }
        self.inner.plugins.lock().insert(resource.clone(), plugin.clone());
        info!(resource, "device plugin registers");
        let (inner, shutdown, mut watch) = (self.inner.clone(), self.shutdown.clone(), JoinSet::new());
        let name = resource.clone();
        watch.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = follow(&inner, &name, &plugin) => {
                    warn!(resource = name, why = ended.err(), "device plugin is away");
                    inner.mark_unhealthy(&name);
                }
            }
        });
        watches.insert(resource, watch);
        Ok(Response::new(Empty {}))
    }
}

/// Takes what the plugin says of its devices, for as long as it does.
async fn follow(inner: &Inner, resource: &str, plugin: &Plugin) -> Result<(), String> {
    let channel = connect(plugin.socket.clone()).await.map_err(|error| error.to_string())?;
    let answer = DevicePluginClient::new(channel).list_and_watch(Empty {}).await;
    let mut stream = answer.map_err(|status| status.to_string())?.into_inner();
    while let Some(list) = stream.message().await.map_err(|status| status.to_string())? {
        let devices = list.devices.into_iter().map(|device| {
            let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes);
            let nodes = nodes.filter_map(|node| u32::try_from(node.id).ok()).collect();
            (device.id, Device { is_healthy: device.health == "Healthy", nodes })
        });
        inner.set_devices(resource, devices.collect());
    }
    Ok(())
}
