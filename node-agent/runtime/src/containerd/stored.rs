//! What is stored with a container in containerd, beyond what containerd itself needs: enough to give a
//! full status after a restart of the agent.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use containerd_client::services::v1::Container;
use serde::{Deserialize, Serialize};

use crate::image::MANAGED_LABEL;
use crate::{ContainerConfig, PodSandboxConfig};

/// Key and type of the extension that holds [`Stored`] as JSON.
const EXTENSION: &str = "hawser.dev/container";

/// For filters, and for people who look with `ctr`; the extension is what is read back.
const POD_UID_LABEL: &str = "hawser.dev/pod-uid";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) pod_uid: String,
    pub(super) pod_name: String,
    pub(super) pod_namespace: String,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) image: String,
    pub(super) image_ref: String,
    pub(super) log_path: PathBuf,
    pub(super) cgroup: String,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) stop_signal: i32,
    /// The node's number for the user that it runs as, where that is one of the pod's own.
    #[serde(default)]
    pub(super) own_user: Option<u32>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Stored {
    pub(super) fn new(
        id: &str,
        pod: &PodSandboxConfig,
        container: &ContainerConfig,
        image_ref: String,
        stop_signal: i32,
        uid: u32,
    ) -> Self {
        Self {
            pod_uid: pod.pod_uid.clone(),
            pod_name: pod.pod_name.clone(),
            pod_namespace: pod.pod_namespace.clone(),
            name: container.name.clone(),
            attempt: container.attempt,
            image: container.image.clone(),
            image_ref,
            log_path: container.log_path.clone(),
            cgroup: format!("{}/{id}", pod.cgroup_parent),
            tty: container.tty,
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            stop_signal,
            own_user: pod.users.map(|ids| ids.first + uid),
            labels: container.labels.clone(),
            annotations: container.annotations.clone(),
        }
    }

    pub(super) fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (MANAGED_LABEL.to_owned(), "v1".to_owned()),
            (POD_UID_LABEL.to_owned(), self.pod_uid.clone()),
        ])
    }

    pub(super) fn extensions(&self) -> HashMap<String, prost_types::Any> {
        let value = serde_json::to_vec(self).expect("what is stored is plain data");
        let any = prost_types::Any { type_url: EXTENSION.to_owned(), value };
        HashMap::from([(EXTENSION.to_owned(), any)])
    }

    /// `None` for a container that this runtime did not make.
    pub(super) fn of(container: &Container) -> Option<Self> {
        container.labels.get(MANAGED_LABEL)?;
        serde_json::from_slice(&container.extensions.get(EXTENSION)?.value).ok()
    }
}

/// Filter for containers that this runtime made.
pub(super) fn managed_filter() -> String {
    format!("labels.\"{MANAGED_LABEL}\"==v1")
}

/// Filter for those of one pod.
pub(super) fn pod_filter(pod_uid: &str) -> String {
    format!("{},labels.\"{POD_UID_LABEL}\"==\"{pod_uid}\"", managed_filter())
}

/// Number of a signal given as `SIGTERM`, `TERM` or `15`.
pub(super) fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    // nix knows no real-time signals; images of systemd ask for SIGRTMIN+3.
    if let Some(offset) = full.strip_prefix("SIGRTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_several_spellings() {
        for (name, number) in
            [("SIGTERM", 15), ("quit", 3), ("SIGUSR1", 10), ("9", 9), ("SIGRTMIN+3", 37), ("SIGRTMIN", 34)]
        {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIGNOPE", "0", "65", "-1"] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
