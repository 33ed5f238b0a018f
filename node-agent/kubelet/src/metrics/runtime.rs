//! A runtime whose operations are counted and timed, under the names that upstream's kubelet gives them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hawser_runtime::{
    AttachRequest, ContainerConfig, ContainerId, ContainerStats, ContainerStatus, DiskUsage, EventStream,
    ExecOutput, ExecRequest, Image, PodSandbox, PodSandboxConfig, ProgressSender, Pulled, RegistryAuth,
    Resources, Result, Runtime, RuntimeVersion, Session,
};
use tokio::time::Instant;

use super::Metrics;

/// See the module.
pub struct Metered {
    runtime: Arc<dyn Runtime>,
    metrics: Metrics,
}

impl Metered {
    pub fn new(runtime: Arc<dyn Runtime>, metrics: Metrics) -> Self {
        Self { runtime, metrics }
    }

    async fn count<T>(&self, name: &str, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        let result = operation.await;
        self.metrics.operation(name, began.elapsed().as_secs_f64(), result.is_err());
        result
    }
}

#[async_trait]
impl Runtime for Metered {
    async fn version(&self) -> Result<RuntimeVersion> {
        self.count("version", self.runtime.version()).await
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: &[RegistryAuth],
        progress: Option<ProgressSender>,
    ) -> Result<Pulled> {
        self.count("pull_image", self.runtime.pull_image(image, auth, progress)).await
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.count("image_status", self.runtime.image_status(image)).await
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.count("list_images", self.runtime.list_images()).await
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.count("remove_image", self.runtime.remove_image(image)).await
    }

    async fn mount_image(&self, image: &str, key: &str, target: &Path) -> Result<()> {
        self.runtime.mount_image(image, key, target).await
    }

    async fn images_in_volumes(&self) -> Result<Vec<String>> {
        self.runtime.images_in_volumes().await
    }

    async fn unmount_image(&self, key: &str, target: &Path) -> Result<()> {
        self.runtime.unmount_image(key, target).await
    }

    async fn create_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox> {
        let began = Instant::now();
        let made = self.count("run_podsandbox", self.runtime.create_pod_sandbox(config)).await;
        self.metrics.sandbox(&config.runtime_handler, began.elapsed().as_secs_f64(), made.is_err());
        made
    }

    fn supports_users(&self, handler: &str) -> Result<(), String> {
        self.runtime.supports_users(handler)
    }

    async fn create_pod_users(&self, config: &PodSandboxConfig) -> Result<PathBuf> {
        self.runtime.create_pod_users(config).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        self.count("list_podsandbox", self.runtime.list_pod_sandboxes()).await
    }

    async fn remove_pod_sandbox(&self, pod_uid: &str) -> Result<()> {
        self.count("remove_podsandbox", self.runtime.remove_pod_sandbox(pod_uid)).await
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<ContainerId> {
        self.count("create_container", self.runtime.create_container(config)).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.count("start_container", self.runtime.start_container(id)).await
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()> {
        self.count("update_container", self.runtime.update_container(id, resources)).await
    }

    async fn update_pod_sandbox(&self, pod_uid: &str, resources: &Resources) -> Result<()> {
        self.count("update_podsandbox", self.runtime.update_pod_sandbox(pod_uid, resources)).await
    }

    async fn update_group(&self, group: &str, limits: &Resources) -> Result<()> {
        self.runtime.update_group(group, limits).await
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        self.count("stop_container", self.runtime.stop_container(id, timeout)).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.count("remove_container", self.runtime.remove_container(id)).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        self.count("list_containers", self.runtime.list_containers()).await
    }

    async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>> {
        self.count("container_status", self.runtime.container_status(id)).await
    }

    fn events(&self) -> EventStream {
        self.runtime.events()
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session> {
        self.count("exec", self.runtime.exec(id, request)).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
        limit_bytes: usize,
    ) -> Result<ExecOutput> {
        self.count("exec_sync", self.runtime.exec_sync(id, command, timeout, limit_bytes)).await
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<Session> {
        self.count("attach", self.runtime.attach(id, request)).await
    }

    async fn log_complete(&self, id: &str) {
        self.runtime.log_complete(id).await;
    }

    async fn stats(&self, id: &str) -> Result<Option<ContainerStats>> {
        self.count("container_stats", self.runtime.stats(id)).await
    }

    async fn pod_stats(&self, pod_uid: &str) -> Result<Option<ContainerStats>> {
        self.count("pod_sandbox_stats", self.runtime.pod_stats(pod_uid)).await
    }

    async fn group_stats(&self, group: &str) -> Result<Option<ContainerStats>> {
        self.runtime.group_stats(group).await
    }

    async fn disk_usage(&self, id: &str) -> Result<Option<DiskUsage>> {
        self.count("container_fs_usage", self.runtime.disk_usage(id)).await
    }

    async fn image_directory(&self) -> Result<PathBuf> {
        self.count("image_fs_info", self.runtime.image_directory()).await
    }
}
