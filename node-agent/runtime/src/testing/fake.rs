//! A runtime in memory, for tests of the kubelet: images exist when the test says so, processes end
//! when the test ends them.
//!
//! It keeps the contract of [`Runtime`]: ids are derived as the real runtime derives them, calls are
//! idempotent, a container's exit is in its status before its event is sent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

use crate::{
    AttachRequest, ContainerConfig, ContainerExit, ContainerId, ContainerState, ContainerStats,
    ContainerStatus, DiskUsage, Error, EventStream, ExecOutput, ExecRequest, Image, PodSandbox,
    PodSandboxConfig, ProgressSender, PullErrorKind, Pulled, RegistryAuth, Resources, Result, Runtime,
    RuntimeEvent, RuntimeVersion, Session, container_id,
};

/// Answers `exec_sync`: container id and command in, output out.
pub type ExecHandler = Arc<dyn Fn(&str, &[String]) -> Result<ExecOutput> + Send + Sync>;

/// Does what a log writer does last: writes what it is behind with. Gets the container's id.
pub type LogHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// See the module. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// Images that a pull finds, by the reference as the pod spells it.
    registry: BTreeMap<String, Image>,
    pulled: BTreeMap<String, Image>,
    sandboxes: BTreeMap<String, PodSandbox>,
    containers: BTreeMap<ContainerId, FakeContainer>,
    failures: HashMap<&'static str, VecDeque<Error>>,
    calls: Vec<String>,
    exec: Option<ExecHandler>,
    log_complete: Option<LogHandler>,
    /// A container whose name is here ignores its stop signal and dies at the timeout only.
    stubborn: Vec<String>,
    /// Images that are volumes, by key.
    shown: BTreeMap<String, String>,
    /// Limits of the groups around pods, by path.
    groups: BTreeMap<String, Resources>,
    /// What `stats` says of running containers, by container id, and `pod_stats`, by pod uid.
    stats: HashMap<String, ContainerStats>,
    disk_usage: HashMap<ContainerId, DiskUsage>,
}

struct FakeContainer {
    config: ContainerConfig,
    status: ContainerStatus,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    pub fn new() -> Self {
        let (events, _) = broadcast::channel(256);
        Self { state: Arc::default(), events, changed: Arc::default() }
    }

    /// Makes `image` known to the registry.
    pub fn publish_image(&self, image: &str) {
        let digest = format!("sha256:{}", container_id(image, "image", 0));
        let repository = image.split('@').next().unwrap_or(image);
        let image_record = Image {
            id: digest.clone(),
            repo_tags: vec![image.to_owned()],
            repo_digests: vec![format!("{repository}@{digest}")],
            size_bytes: 1 << 20,
            user: String::new(),
        };
        self.state.lock().registry.insert(image.to_owned(), image_record);
    }

    /// Makes `image` present without a pull.
    pub fn preload_image(&self, image: &str) {
        self.publish_image(image);
        let mut state = self.state.lock();
        let record = state.registry[image].clone();
        state.pulled.insert(image.to_owned(), record);
    }

    /// The next call of `operation` (the trait's method name) fails with `error`; calls queue up.
    pub fn fail_next(&self, operation: &'static str, error: Error) {
        self.state.lock().failures.entry(operation).or_default().push_back(error);
    }

    pub fn on_exec(&self, handler: ExecHandler) {
        self.state.lock().exec = Some(handler);
    }

    pub fn on_log_complete(&self, handler: LogHandler) {
        self.state.lock().log_complete = Some(handler);
    }

    /// Containers of this name ignore their stop signal.
    pub fn ignore_stop_signal(&self, container_name: &str) {
        self.state.lock().stubborn.push(container_name.to_owned());
    }

    /// What a container (by id), a pod (by uid) or a group around pods (by path) uses from now on.
    pub fn set_stats(&self, id: &str, stats: ContainerStats) {
        self.state.lock().stats.insert(id.to_owned(), stats);
    }

    pub fn set_disk_usage(&self, id: &str, usage: DiskUsage) {
        self.state.lock().disk_usage.insert(id.to_owned(), usage);
    }

    /// The pod's sandbox as it is now.
    pub fn sandbox_of(&self, pod_uid: &str) -> Option<PodSandboxConfig> {
        self.state.lock().sandboxes.get(pod_uid).map(|sandbox| sandbox.config.clone())
    }

    /// Limits of a group around pods, as they were last set.
    pub fn group(&self, group: &str) -> Option<Resources> {
        self.state.lock().groups.get(group).cloned()
    }

    /// Ends a running container's process.
    pub fn exit(&self, id: &str, exit_code: i32) {
        self.finish(id, exit_code, false);
    }

    /// Ends a running container's process as the kernel's OOM killer does.
    pub fn oom_kill(&self, id: &str) {
        let Some(pod_uid) = self.pod_uid(id) else { return };
        let _ = self.events.send(RuntimeEvent::Oom { id: id.to_owned(), pod_uid });
        self.finish(id, 137, true);
    }

    pub fn send_event(&self, event: RuntimeEvent) {
        // Nobody listening is fine: that is what a restarted agent looks like.
        let _ = self.events.send(event);
    }

    /// What was called, in order: `create_container(<pod uid>/<name>/<attempt>)`, `stop_container(<id>)`, ...
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    pub fn clear_calls(&self) {
        self.state.lock().calls.clear();
    }

    /// The configuration that a container was made with.
    pub fn config_of(&self, id: &str) -> Option<ContainerConfig> {
        self.state.lock().containers.get(id).map(|c| c.config.clone())
    }

    /// The newest attempt of a pod's container.
    pub fn find(&self, pod_uid: &str, name: &str) -> Option<ContainerStatus> {
        let state = self.state.lock();
        let of_name =
            state.containers.values().filter(|c| c.status.pod_uid == pod_uid && c.status.name == name);
        of_name.max_by_key(|c| c.status.attempt).map(|c| c.status.clone())
    }

    /// Waits until `condition` holds of the containers; checked after every change.
    pub async fn wait_for(&self, condition: impl Fn(&[ContainerStatus]) -> bool) {
        loop {
            let changed = self.changed.notified();
            let containers: Vec<_> =
                self.state.lock().containers.values().map(|c| c.status.clone()).collect();
            if condition(&containers) {
                return;
            }
            changed.await;
        }
    }

    fn enter(&self, operation: &'static str, detail: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.calls.push(format!("{operation}({detail})"));
        match state.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn pod_uid(&self, id: &str) -> Option<String> {
        self.state.lock().containers.get(id).map(|c| c.status.pod_uid.clone())
    }

    fn finish(&self, id: &str, exit_code: i32, oom_killed: bool) {
        let exit = ContainerExit { exit_code, finished_at: Timestamp::now(), oom_killed, unobserved: false };
        let pod_uid = {
            let mut state = self.state.lock();
            let Some(container) = state.containers.get_mut(id) else { return };
            if container.status.state != ContainerState::Running {
                return;
            }
            container.status.state = ContainerState::Exited;
            container.status.pid = None;
            container.status.exit = Some(exit.clone());
            container.status.pod_uid.clone()
        };
        self.send_event(RuntimeEvent::Exited { id: id.to_owned(), pod_uid, exit });
        self.changed.notify_waiters();
    }
}

/// What `cat` does: its output is its input, and it ends when that does.
fn cat() -> Session {
    let (stdin, mut process_in) = tokio::io::duplex(1 << 10);
    let (mut process_out, stdout) = tokio::io::duplex(1 << 10);
    let copied = tokio::spawn(async move { tokio::io::copy(&mut process_in, &mut process_out).await });
    Session {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: None,
        exit: Box::pin(async move { Ok(if copied.await.is_ok() { 0 } else { 1 }) }),
    }
}

fn not_found(kind: &'static str, id: &str) -> Error {
    Error::NotFound { kind, id: id.to_owned() }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        self.enter("version", "")?;
        Ok(RuntimeVersion { name: "fake".into(), version: "1.0.0".into() })
    }

    async fn pull_image(
        &self,
        image: &str,
        _auth: &[RegistryAuth],
        _progress: Option<ProgressSender>,
    ) -> Result<Pulled> {
        self.enter("pull_image", image)?;
        let mut state = self.state.lock();
        let Some(found) = state.registry.get(image).cloned() else {
            return Err(Error::Pull {
                image: image.to_owned(),
                kind: PullErrorKind::NotFound,
                message: format!("{image}: not found"),
            });
        };
        state.pulled.insert(image.to_owned(), found.clone());
        Ok(Pulled { image: found, credential: None })
    }

    async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        self.enter("image_status", image)?;
        let state = self.state.lock();
        let by_id = || state.pulled.values().find(|i| i.id == image);
        Ok(state.pulled.get(image).or_else(by_id).cloned())
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        self.enter("list_images", "")?;
        Ok(self.state.lock().pulled.values().cloned().collect())
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        self.enter("remove_image", image)?;
        self.state.lock().pulled.retain(|name, i| name != image && i.id != image);
        Ok(())
    }

    async fn mount_image(&self, image: &str, key: &str, target: &Path) -> Result<()> {
        self.enter("mount_image", key)?;
        {
            let mut state = self.state.lock();
            if !state.pulled.values().any(|pulled| pulled.id == image) {
                return Err(not_found("image", image));
            }
            state.shown.insert(key.to_owned(), image.to_owned());
        }
        let failed = |source| Error::Io { attempted: "create", path: target.to_owned(), source };
        std::fs::create_dir_all(target).map_err(failed)
    }

    async fn images_in_volumes(&self) -> Result<Vec<String>> {
        self.enter("images_in_volumes", "")?;
        Ok(self.state.lock().shown.values().cloned().collect())
    }

    async fn unmount_image(&self, key: &str, _: &Path) -> Result<()> {
        self.enter("unmount_image", key)?;
        self.state.lock().shown.remove(key);
        Ok(())
    }

    fn supports_users(&self, _: &str) -> Result<(), String> {
        Err("there is no kernel below".to_owned())
    }

    async fn create_pod_users(&self, config: &PodSandboxConfig) -> Result<PathBuf> {
        self.enter("create_pod_users", &config.pod_uid)?;
        Err(not_found("users of", &config.pod_uid))
    }

    async fn create_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox> {
        self.enter("create_pod_sandbox", &config.pod_uid)?;
        let mut state = self.state.lock();
        let made = PodSandbox { config: config.clone(), created_at: Timestamp::now(), ready: true };
        let sandbox = state.sandboxes.entry(config.pod_uid.clone()).or_insert(made);
        sandbox.ready = true;
        Ok(sandbox.clone())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>> {
        self.enter("list_pod_sandboxes", "")?;
        Ok(self.state.lock().sandboxes.values().cloned().collect())
    }

    async fn remove_pod_sandbox(&self, pod_uid: &str) -> Result<()> {
        self.enter("remove_pod_sandbox", pod_uid)?;
        let mut state = self.state.lock();
        state.sandboxes.remove(pod_uid);
        state.containers.retain(|_, c| c.status.pod_uid != pod_uid);
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<ContainerId> {
        self.enter("create_container", &format!("{}/{}/{}", config.pod_uid, config.name, config.attempt))?;
        let mut state = self.state.lock();
        let sandbox =
            state.sandboxes.get(&config.pod_uid).ok_or_else(|| not_found("pod sandbox", &config.pod_uid))?;
        let pod = sandbox.config.clone();
        let by_id = || state.pulled.values().find(|i| i.id == config.image);
        let image = state
            .pulled
            .get(&config.image)
            .or_else(by_id)
            .ok_or_else(|| not_found("image", &config.image))?;
        let id = container_id(&config.pod_uid, &config.name, config.attempt);
        let status = ContainerStatus {
            id: id.clone(),
            pod_uid: config.pod_uid.clone(),
            pod_name: pod.pod_name,
            pod_namespace: pod.pod_namespace,
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
            state: ContainerState::Created,
            pid: None,
            created_at: Timestamp::now(),
            started_at: None,
            exit: None,
            log_path: config.log_path.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        state.containers.entry(id.clone()).or_insert(FakeContainer { config: config.clone(), status });
        drop(state);
        self.changed.notify_waiters();
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.enter("start_container", id)?;
        let pod_uid = {
            let mut state = self.state.lock();
            let pid = state.containers.len() as u32 + 1000;
            let container = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
            let status = &mut container.status;
            match status.state {
                ContainerState::Running => return Ok(()),
                ContainerState::Created => {}
                state => {
                    return Err(Error::WrongState {
                        id: id.to_owned(),
                        state: format!("{state:?}"),
                        attempted: "start",
                    });
                }
            }
            status.state = ContainerState::Running;
            status.pid = Some(pid);
            status.started_at = Some(Timestamp::now());
            status.pod_uid.clone()
        };
        self.send_event(RuntimeEvent::Started { id: id.to_owned(), pod_uid });
        self.changed.notify_waiters();
        Ok(())
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<()> {
        self.enter("update_container", id)?;
        let mut state = self.state.lock();
        let container = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        container.config.resources = resources.clone();
        Ok(())
    }

    async fn update_pod_sandbox(&self, pod_uid: &str, resources: &Resources) -> Result<()> {
        self.enter("update_pod_sandbox", pod_uid)?;
        let mut state = self.state.lock();
        let sandbox = state.sandboxes.get_mut(pod_uid).ok_or_else(|| not_found("pod sandbox", pod_uid))?;
        sandbox.config.resources = resources.clone();
        Ok(())
    }

    async fn update_group(&self, group: &str, limits: &Resources) -> Result<()> {
        self.enter("update_group", group)?;
        self.state.lock().groups.insert(group.to_owned(), limits.clone());
        Ok(())
    }

    async fn stop_container(&self, id: &str, timeout: Duration) -> Result<()> {
        self.enter("stop_container", id)?;
        let stubborn = {
            let state = self.state.lock();
            match state.containers.get(id) {
                Some(c) => state.stubborn.contains(&c.status.name),
                None => return Ok(()),
            }
        };
        if stubborn {
            tokio::time::sleep(timeout).await;
            self.finish(id, 137, false);
        } else {
            self.finish(id, 143, false);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.enter("remove_container", id)?;
        self.state.lock().containers.remove(id);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        self.enter("list_containers", "")?;
        Ok(self.state.lock().containers.values().map(|c| c.status.clone()).collect())
    }

    async fn container_status(&self, id: &str) -> Result<Option<ContainerStatus>> {
        self.enter("container_status", id)?;
        Ok(self.state.lock().containers.get(id).map(|c| c.status.clone()))
    }

    fn events(&self) -> EventStream {
        EventStream { receiver: self.events.subscribe() }
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<Session> {
        self.enter("exec", id)?;
        if request.command == ["cat"] && request.stdin {
            return Ok(cat());
        }
        let output = self.run_exec(id, &request.command)?;
        let stdout = std::io::Cursor::new(output.stdout);
        let stderr = std::io::Cursor::new(output.stderr);
        Ok(Session {
            stdin: request.stdin.then(|| Box::new(tokio::io::sink()) as crate::BoxWrite),
            stdout: request.stdout.then(|| Box::new(stdout) as crate::BoxRead),
            stderr: (request.stderr && !request.tty).then(|| Box::new(stderr) as crate::BoxRead),
            resize: None,
            exit: Box::pin(async move { Ok(output.exit_code) }),
        })
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: &[String],
        _timeout: Duration,
        limit_bytes: usize,
    ) -> Result<ExecOutput> {
        self.enter("exec_sync", id)?;
        let mut output = self.run_exec(id, command)?;
        output.stdout.truncate(limit_bytes);
        output.stderr.truncate(limit_bytes);
        Ok(output)
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<Session> {
        self.enter("attach", id)?;
        Ok(Session {
            stdin: request.stdin.then(|| Box::new(tokio::io::sink()) as crate::BoxWrite),
            stdout: request.stdout.then(|| Box::new(tokio::io::empty()) as crate::BoxRead),
            stderr: request.stderr.then(|| Box::new(tokio::io::empty()) as crate::BoxRead),
            resize: None,
            exit: Box::pin(async { Ok(0) }),
        })
    }

    async fn log_complete(&self, id: &str) {
        let handler = self.state.lock().log_complete.clone();
        if let Some(handler) = handler {
            handler(id);
        }
    }

    async fn stats(&self, id: &str) -> Result<Option<ContainerStats>> {
        self.enter("stats", id)?;
        let state = self.state.lock();
        let running = state.containers.get(id).is_some_and(|c| c.status.state == ContainerState::Running);
        Ok(running.then(|| state.stats.get(id).copied().unwrap_or_default()))
    }

    async fn pod_stats(&self, pod_uid: &str) -> Result<Option<ContainerStats>> {
        self.enter("pod_stats", pod_uid)?;
        let state = self.state.lock();
        let known = state.sandboxes.contains_key(pod_uid);
        Ok(known.then(|| state.stats.get(pod_uid).copied().unwrap_or_default()))
    }

    async fn group_stats(&self, group: &str) -> Result<Option<ContainerStats>> {
        self.enter("group_stats", group)?;
        Ok(self.state.lock().stats.get(group).copied())
    }

    async fn disk_usage(&self, id: &str) -> Result<Option<DiskUsage>> {
        self.enter("disk_usage", id)?;
        let state = self.state.lock();
        let known = state.containers.contains_key(id);
        Ok(known.then(|| state.disk_usage.get(id).copied().unwrap_or_default()))
    }

    async fn image_directory(&self) -> Result<PathBuf> {
        self.enter("image_directory", "")?;
        Ok(std::env::temp_dir())
    }
}

impl FakeRuntime {
    /// Without a handler every command succeeds and prints nothing.
    fn run_exec(&self, id: &str, command: &[String]) -> Result<ExecOutput> {
        let (running, handler) = {
            let state = self.state.lock();
            let container = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
            (container.status.state == ContainerState::Running, state.exec.clone())
        };
        if !running {
            return Err(Error::WrongState {
                id: id.to_owned(),
                state: "not running".into(),
                attempted: "exec",
            });
        }
        match handler {
            Some(handler) => handler(id, command),
            None => Ok(ExecOutput { exit_code: 0, stdout: Vec::new(), stderr: Vec::new() }),
        }
    }
}
