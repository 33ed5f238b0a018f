//! What the kubelet's HTTP API says of this node's pods.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context;
use hawser_api::Client;
use hawser_kubelet::{
    Pods, Telemetry,
    server::{
        Backend, Delegated, LogAttempt, LogFile, PodSource, Refusal, Server, ServerSettings, tls_config,
    },
    worker::PodView,
};
use hawser_runtime::{ContainerState, ContainerStatus, Runtime};
use serde_json::{Value, json};

use crate::{
    options::{Options, read},
    pod_network::AgentNetwork,
};

/// Who may do everything: the API server, which asks for its own clients after it has authorized them.
const API_SERVERS: &str = "system:masters";

/// Binds the server to the node's address.
///
/// # Errors
/// A port that is taken, or a certificate that cannot be used.
pub(crate) async fn bind(
    options: &Options,
    settings: &ServerSettings,
    runtime: Arc<dyn Runtime>,
    client: Arc<dyn Client>,
    source: Source,
) -> anyhow::Result<Server> {
    let file = |given: &Option<PathBuf>, names| match given {
        Some(path) => read(path),
        None => Err(anyhow::anyhow!("{names} is not given")),
    };
    let tls = tls_config(
        &file(&options.tls_cert_file, "--tls-cert-file, or tlsCertFile of --config,")?,
        &file(&options.tls_private_key_file, "--tls-private-key-file, or tlsPrivateKeyFile of --config,")?,
        &read(options.client_ca_file.as_ref().unwrap_or(&options.ca_file))?,
        &settings.tls,
    )?;
    let backend = Backend {
        node_name: options.node_name.clone(),
        runtime,
        pods: Arc::new(source),
        authorizer: Arc::new(Delegated::new(
            client,
            options.node_name.clone(),
            API_SERVERS.into(),
            settings.reviews,
        )),
    };
    let address = SocketAddr::new(settings.address.unwrap_or(options.node_ip), options.port);
    Server::bind(address, tls, backend)
        .await
        .with_context(|| format!("cannot listen on {address} for the kubelet's API; is another one running?"))
}

/// What the server asks.
pub(crate) struct Source {
    pub(crate) pods: Pods,
    pub(crate) network: Arc<AgentNetwork>,
    /// Where pods on the node's own network are.
    pub(crate) node_ip: IpAddr,
    pub(crate) log_folder: PathBuf,
    pub(crate) telemetry: Telemetry,
}

impl Source {
    fn find(&self, namespace: &str, name: &str) -> Result<PodView, Refusal> {
        let missing =
            || Refusal::not_found(format!("pod {name:?} in namespace {namespace:?} is not on this node"));
        self.pods.find(namespace, name).ok_or_else(missing)
    }
}

impl PodSource for Source {
    fn pods(&self) -> Value {
        let items: Vec<Value> =
            self.pods.all().iter().filter_map(|view| serde_json::to_value(&*view.pod).ok()).collect();
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
    }

    fn container_id(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal> {
        let view = self.find(namespace, pod)?;
        match view.containers.get(container) {
            Some((Some(current), _)) if is_running(current) => Ok(current.id.clone()),
            _ => Err(Refusal::bad_request(format!("container {container:?} of pod {pod:?} is not running"))),
        }
    }

    fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        attempt: LogAttempt,
    ) -> Result<LogFile, Refusal> {
        let view = self.find(namespace, pod)?;
        let waiting = || {
            Refusal::bad_request(format!(
                "container {container:?} in pod {pod:?} is waiting to start: ContainerCreating"
            ))
        };
        let (current, previous) = view.containers.get(container).ok_or_else(waiting)?;
        let chosen = match attempt {
            LogAttempt::Newest => current.as_ref().ok_or_else(waiting)?,
            // The newest that has ended: between two starts that is the current one.
            LogAttempt::Previous => {
                let ended = current.as_ref().filter(|current| current.state == ContainerState::Exited);
                ended.or(previous.as_ref()).ok_or_else(|| {
                    Refusal::bad_request(format!(
                        "previous terminated container {container:?} in pod {pod:?} not found"
                    ))
                })?
            }
        };
        Ok(LogFile {
            path: chosen.log_path.clone(),
            container_id: chosen.id.clone(),
            has_ended: matches!(chosen.state, ContainerState::Exited | ContainerState::Unknown),
        })
    }

    fn log_folder(&self) -> PathBuf {
        self.log_folder.clone()
    }

    fn telemetry(&self) -> Option<Telemetry> {
        Some(self.telemetry.clone())
    }

    fn addresses(&self, namespace: &str, pod: &str) -> Result<Vec<IpAddr>, Refusal> {
        let view = self.find(namespace, pod)?;
        if is_on_host_network(&view) {
            return Ok(vec![self.node_ip]);
        }
        // What the node gave it, and not what its status says.
        self.network.ips(uid(&view)).ok_or_else(|| no_network(pod))
    }

    fn network(&self, namespace: &str, pod: &str) -> Result<Option<PathBuf>, Refusal> {
        let view = self.find(namespace, pod)?;
        if is_on_host_network(&view) {
            return Ok(None);
        }
        self.network.netns(uid(&view)).map(Some).ok_or_else(|| no_network(pod))
    }
}

fn uid(view: &PodView) -> &str {
    view.pod.metadata.uid.as_deref().unwrap_or_default()
}

fn is_on_host_network(view: &PodView) -> bool {
    view.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn no_network(pod: &str) -> Refusal {
    Refusal::bad_request(format!("pod {pod:?} has no network yet"))
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state == ContainerState::Running
}
