//! From a container of a pod to the runtime's configuration for one instance of it.
//!
//! Everything here is computed from objects and paths that the caller has; only [`files`] writes, the files
//! that the kubelet manages for a pod (`/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`), and [`attempts`] removes
//! what old instances left.

pub(crate) mod attempts;
pub mod downward;
pub mod env;
mod env_file;
pub mod expand;
pub mod files;
pub mod resources;
pub mod security;
pub mod service_env;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hawser_runtime::{ContainerConfig, Image, Mount};

use crate::config::Config;
use crate::pod::status::{ANNOTATION_IMAGE, ANNOTATION_ROUND};
use crate::pod::{DesiredContainer, DesiredPod};

/// Why no configuration could be made; shown as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{kind} {name:?} not found")]
    ObjectMissing { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyMissing { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported {what} {value:?}")]
    Unsupported { what: &'static str, value: String },
    #[error("volume {volume:?} has volumeMode {mode}, but is specified in {field}")]
    VolumeMode { volume: String, mode: &'static str, field: &'static str },
    #[error("{0}")]
    RunAsNonRoot(String),
    /// `why` names the key, the file or its line.
    #[error("environment file {path:?} of volume {volume:?}: {why}")]
    EnvFile { volume: String, path: String, why: String },
    #[error("failed to prepare subPath for volumeMount {mount:?} of container {container:?}: {message}")]
    SubPath { container: String, mount: String, message: String },
    #[error("failed to write {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What the pod has by the time a container is made.
pub struct PodContext<'a> {
    pub pod: &'a DesiredPod,
    pub config: &'a Config,
    pub ips: &'a [IpAddr],
    /// How often all its containers have started over.
    pub round: u32,
    pub node_memory_bytes: i64,
}

/// Label keys that every container of this node carries, beside what the runtime keeps itself.
pub const LABEL_KIND: &str = "hawser.dev/container-kind";

/// Configuration of the `attempt`th instance of a container.
pub fn build(
    context: &PodContext<'_>,
    container: &DesiredContainer,
    attempt: u32,
    image: &Image,
    env: Vec<(String, String)>,
    mut mounts: Vec<Mount>,
) -> Result<ContainerConfig, ConfigError> {
    let PodContext { pod, config, .. } = context;
    let spec = &container.spec;
    let variables: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| expand::expand(text, |name| variables.get(name).map(|v| (*v).to_owned())))
            .collect()
    };
    mounts.extend(managed_mounts(context, container, attempt, &mounts));
    let security = security::security(pod, container, image, config)?;
    Ok(ContainerConfig {
        pod_uid: pod.uid().to_owned(),
        name: spec.name.clone(),
        attempt,
        image: image.id.clone(),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().filter(|dir| !dir.is_empty()),
        mounts,
        security,
        resources: resources::container_resources(pod.spec(), spec, context.node_memory_bytes),
        oom_group: !config.single_process_oom_kill,
        cdi_devices: Vec::new(),
        devices: Vec::new(),
        join_pid_of: None,
        log_path: log_path(config, pod, &spec.name, attempt),
        tty: spec.tty == Some(true),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        stop_signal: spec.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        labels: BTreeMap::from([
            ("io.kubernetes.pod.name".into(), pod.name().to_owned()),
            ("io.kubernetes.pod.namespace".into(), pod.namespace().to_owned()),
            ("io.kubernetes.pod.uid".into(), pod.uid().to_owned()),
            ("io.kubernetes.container.name".into(), spec.name.clone()),
            (LABEL_KIND.into(), format!("{:?}", container.kind)),
        ]),
        annotations: BTreeMap::from([
            ("io.kubernetes.container.terminationMessagePath".into(), termination_path(container).to_owned()),
            (
                "io.kubernetes.container.terminationMessagePolicy".into(),
                spec.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
            ),
            // The reference as the pod spells it; the runtime is given the image's id.
            (ANNOTATION_IMAGE.into(), container.image().to_owned()),
            (ANNOTATION_ROUND.into(), context.round.to_string()),
        ]),
        env,
    })
}

/// Where a container's log is: one file an instance.
pub fn log_path(config: &Config, pod: &DesiredPod, container: &str, attempt: u32) -> PathBuf {
    config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()).join(container).join(format!("{attempt}.log"))
}

/// Where the file behind `terminationMessagePath` of an instance is on the host.
pub fn termination_file(config: &Config, uid: &str, container: &str, attempt: u32) -> PathBuf {
    config.pod_dir(uid).join("containers").join(container).join(attempt.to_string())
}

fn termination_path(container: &DesiredContainer) -> &str {
    container
        .spec
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
        .unwrap_or("/dev/termination-log")
}

/// The files that the kubelet gives every container, except where the container mounts something itself.
fn managed_mounts(
    context: &PodContext<'_>,
    container: &DesiredContainer,
    attempt: u32,
    own: &[Mount],
) -> Vec<Mount> {
    let uid = context.pod.uid();
    let dir = context.config.pod_dir(uid);
    let files = [
        ("/etc/hosts", dir.join("etc-hosts")),
        ("/etc/hostname", dir.join("hostname")),
        ("/etc/resolv.conf", dir.join("resolv.conf")),
        (termination_path(container), termination_file(context.config, uid, container.name(), attempt)),
    ];
    let taken = |path: &str| own.iter().any(|m| m.container_path == Path::new(path));
    files
        .into_iter()
        .filter(|(path, _)| !taken(path))
        .map(|(path, host_path)| Mount { container_path: path.into(), host_path, ..Mount::default() })
        .collect()
}
