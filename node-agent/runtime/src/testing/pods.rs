//! Pods and containers to make in a runtime, in memory or real.

use crate::{ContainerConfig, ContainerId, PodSandboxConfig, Runtime};

use super::FakeRuntime;

/// A pod of namespace `default` on the node's own network; its uid is `uid-<name>`.
pub fn pod_sandbox(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        pod_uid: format!("uid-{name}"),
        pod_name: name.into(),
        pod_namespace: "default".into(),
        hostname: name.into(),
        cgroup_parent: format!("/pod-{name}"),
        ..PodSandboxConfig::default()
    }
}

/// A container of that pod that does what its image says, and logs to nowhere.
pub fn container(pod: &str, name: &str, image: &str) -> ContainerConfig {
    ContainerConfig {
        pod_uid: format!("uid-{pod}"),
        name: name.into(),
        image: image.into(),
        log_path: "/dev/null".into(),
        ..ContainerConfig::default()
    }
}

impl FakeRuntime {
    /// Runs a container, with its pod and its image; returns its id.
    pub async fn run(&self, pod: &PodSandboxConfig, container: &ContainerConfig) -> ContainerId {
        self.preload_image(&container.image);
        self.create_pod_sandbox(pod).await.expect("nothing was told to fail");
        let id = self.create_container(container).await.expect("the pod and the image are there");
        self.start_container(&id).await.expect("it was just made");
        id
    }
}
