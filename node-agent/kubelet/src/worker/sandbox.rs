//! What comes before a pod's containers: its network, its files, and what its containers share.

use std::net::IpAddr;

use hawser_api::Api;
use hawser_runtime::{IdRange, PodSandboxConfig, Resources, fault};
use k8s_openapi::api::node::v1::RuntimeClass;

use super::actions::{Shared, with_source};
use crate::container::files;
use crate::container::resources::pod_resources;
use crate::durable;
use crate::events::EventType;
use crate::interfaces::{HostPort, PodNetworkRequest};
use crate::node::status::RUNC;
use crate::pod::{DesiredPod, Outcome};
use crate::qos_cgroups::pod_group;
use crate::static_pods::{CONFIG_FILE, file_of};

/// Which handler a pod was made with, in its directory.
const HANDLER_NOTE: &str = "runtime-handler";

/// Network, files and shared namespaces of the pod. `lost`: an earlier sandbox was there and is no more.
pub(super) async fn prepare_sandbox(shared: &Shared, pod: &DesiredPod, lost: bool) -> Outcome {
    if let Err(why) = shared.dra.prepare(pod).await {
        let message = format!("Failed to prepare dynamic resources: {why}");
        shared.recorder.pod(pod, EventType::Warning, "FailedPrepareDynamicResources", message.clone());
        return Outcome::SandboxFailed(message);
    }
    match try_prepare_sandbox(shared, pod).await {
        Ok((ips, group)) => Outcome::SandboxReady { ips, recreated: lost, group },
        Err(message) => {
            shared.metrics.sandbox_failed(pod);
            let text = format!("Failed to create pod sandbox: {message}");
            shared.recorder.pod(pod, EventType::Warning, "FailedCreatePodSandBox", text);
            Outcome::SandboxFailed(message)
        }
    }
}

/// The pod's addresses, and the limits of its cgroup.
async fn try_prepare_sandbox(shared: &Shared, pod: &DesiredPod) -> Result<(Vec<IpAddr>, Resources), String> {
    let runtime_handler = runtime_handler(shared, pod).await?;
    let users = own_users(shared, pod, &runtime_handler).await?;
    let config = &shared.config;
    let spec = pod.spec();
    let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    let mut sandbox = PodSandboxConfig {
        pod_uid: pod.uid().to_owned(),
        pod_name: pod.name().to_owned(),
        pod_namespace: pod.namespace().to_owned(),
        hostname: files::hostname(pod, config),
        network: hawser_runtime::PodNetwork::Host,
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        shm_size_bytes: None,
        cgroup_parent: pod_group(&config.cgroup_root, spec, pod.uid()),
        resources: pod_resources(spec, config.pod_pids_limit),
        sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
        users,
        runtime_handler,
        labels: Default::default(),
        annotations: file_of(&pod.object)
            .map(|file| (CONFIG_FILE.to_owned(), file.to_owned()))
            .into_iter()
            .collect(),
    };
    let mut ips = config.node_ips.clone();
    if !pod.host_network() {
        let mut request = network_request(pod, &sandbox.hostname);
        if users.is_some() {
            // What is set in a network is set by whom it belongs to: the pod's users come first.
            let made = shared.runtime.create_pod_users(&sandbox).await;
            request.netns = Some(made.map_err(|error| with_source(&error))?);
            fault::point("pod: users made");
        }
        let status = shared.network.setup(&request).await;
        let status = status.map_err(|error| format!("failed to set up the network: {error}"))?;
        (sandbox.network, ips) = (hawser_runtime::PodNetwork::Path(status.netns), status.ips);
    }
    fault::point("pod: network made");
    files::write_pod_files(config, pod, &ips).map_err(|e| with_source(&e))?;
    fault::point("pod: files written");
    shared.qos_cgroups.update().await;
    shared.runtime.create_pod_sandbox(&sandbox).await.map_err(|e| with_source(&e))?;
    Ok((ips, sandbox.resources))
}

/// The users that the pod has to itself, where it asks for some: it is not started with less.
async fn own_users(shared: &Shared, pod: &DesiredPod, handler: &str) -> Result<Option<IdRange>, String> {
    if !pod.has_own_users() {
        return Ok(None);
    }
    let spec = pod.spec();
    let of_node =
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    // The API refuses such pods, but files can describe them.
    if let Some((field, _)) = of_node.iter().find(|(_, wanted)| *wanted == Some(true)) {
        return Err(format!("hostUsers: false: not with {field}, which belongs to the node's users"));
    }
    if let Some(known) = shared.users.known(&shared.config, pod.uid()).await? {
        return Ok(Some(known));
    }
    shared.runtime.supports_users(handler).map_err(|why| {
        format!("hostUsers: false: runtime handler {handler:?} does not support user namespaces: {why}")
    })?;
    let users = shared.users.of_pod(&shared.config, pod.uid()).await;
    users.map(Some).map_err(|why| format!("hostUsers: false: {why}"))
}

/// The handler that the pod's RuntimeClass names, which has to be here. A pod keeps the one that it was first made with, the
/// machine's restarts included: it does not need the API, nor its class any longer.
async fn runtime_handler(shared: &Shared, pod: &DesiredPod) -> Result<String, String> {
    let Some(name) = pod.spec().runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(String::new());
    };
    let sandboxes = shared.runtime.list_pod_sandboxes().await.map_err(|error| with_source(&error))?;
    let known = sandboxes.into_iter().map(|sandbox| sandbox.config).find(|known| known.pod_uid == pod.uid());
    if let Some(known) = known.filter(|known| !known.runtime_handler.is_empty()) {
        return Ok(known.runtime_handler);
    }
    let note = shared.config.pod_dir(pod.uid()).join(HANDLER_NOTE);
    let noted = tokio::fs::read_to_string(&note).await;
    let is_noted = noted.is_ok();
    let handler = match noted {
        Ok(handler) => handler,
        Err(_) => {
            let classes: Api<RuntimeClass> = Api::all(shared.client.clone());
            let class = classes.get(name).await.map_err(|error| error.to_string())?;
            if class.handler.is_empty() { RUNC.to_owned() } else { class.handler }
        }
    };
    if handler != RUNC && !shared.config.runtime_handlers.contains(&handler) {
        return Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured"));
    }
    if !is_noted {
        let (path, content) = (note.clone(), handler.clone());
        let written = tokio::task::spawn_blocking(move || durable::write(&path, content.as_bytes())).await;
        let written = written.map_err(std::io::Error::other).flatten();
        written.map_err(|error| format!("cannot write {}: {error}", note.display()))?;
    }
    Ok(handler)
}

fn network_request(pod: &DesiredPod, hostname: &str) -> PodNetworkRequest {
    let annotation = |name: &str| pod.object.metadata.annotations.as_ref()?.get(name);
    let bandwidth = |direction: &str| {
        let text = annotation(&format!("kubernetes.io/{direction}-bandwidth"))?;
        crate::quantity::scaled(text, 1).and_then(|n| u64::try_from(n).ok())
    };
    PodNetworkRequest {
        pod_uid: pod.uid().to_owned(),
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        hostname: hostname.to_owned(),
        netns: None,
        host_ports: HostPort::of(&pod.object),
        leaves_sockets: annotation("hawser.io/socket-translation").is_some_and(|value| value == "off"),
        ingress_bits_per_second: bandwidth("ingress"),
        egress_bits_per_second: bandwidth("egress"),
    }
}
