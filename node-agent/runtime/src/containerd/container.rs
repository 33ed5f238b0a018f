//! Life of a container: create, start, stop, remove.
//!
//! Creating goes record, snapshot, task. The record names the snapshot, so at whatever step the agent
//! dies, listing the records finds everything, and removing a record's container removes all of it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, UsageRequest,
};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, KillRequest, StartRequest,
    UpdateTaskRequest, WaitRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use jiff::Timestamp;
use nix::libc::{SIGKILL, SIGTERM};

use super::ask::Before;
use super::status::task_status;
use super::stored::{Stored, signal_number};
use super::task_io::TaskIo;
use super::{Inner, ask, blocking, mapped, rpc, task_io};
use crate::paths::{check_name, io_error, remove_dir_all, remove_file};
use crate::spec::{self, apparmor, devices, labels, seccomp, user};
use crate::{
    ContainerConfig, ContainerId, ContainerState, DiskUsage, Error, Resources, Result, RuntimeHandler, cdi,
    container_id, fault,
};

/// The handler that there is always; pods without one have it, too.
const RUNC: &str = "runc";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Stands in a container's directory while its task is asked for, and until it is known what came of that; where that was
/// an answer that did not come, until the container is removed.
const TASK_ASKED_FOR: &str = "task-asked-for";

/// How long a killed process may take to be gone; the kernel may first have to write its memory out.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// The options of runc's shim that are used: `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    /// Whose the streams are that the shim makes.
    #[prost(uint32, tag = "4")]
    io_uid: u32,
    #[prost(uint32, tag = "5")]
    io_gid: u32,
    /// Where runc keeps its state. A directory of this node, because several nodes on one machine would
    /// share runc's usual one.
    #[prost(string, tag = "7")]
    root: String,
    /// What the shim runs; runc where it is empty.
    #[prost(string, tag = "6")]
    binary_name: String,
}

impl Inner {
    pub(super) async fn create_container(self: &Arc<Self>, config: &ContainerConfig) -> Result<ContainerId> {
        check_name("name", &config.name)?;
        let id = container_id(&config.pod_uid, &config.name, config.attempt);
        if let Some(status) = self.status(&id).await? {
            match status.state {
                ContainerState::Unknown => self.remove_container(&id).await?,
                // One that was made to be ended has no streams.
                ContainerState::Created if self.is_half_made(&id) => self.remove_container(&id).await?,
                _ => return Ok(id),
            }
        }
        let _alone = self.pod_locks.lock(&config.pod_uid).await;
        match self.create_parts(&id, config).await {
            Ok(()) => Ok(id),
            // Its parts are there, or come; they are found by its record.
            Err(error) if error.is_silence() => Err(error),
            Err(error) => {
                if let Err(also) = self.remove_parts(&id).await {
                    tracing::warn!(error = %also, id, "half-made container could not be removed");
                }
                Err(error)
            }
        }
    }

    async fn create_parts(&self, id: &str, config: &ContainerConfig) -> Result<()> {
        let (sandboxes, pod_uid) = (self.sandboxes.clone(), config.pod_uid.clone());
        let sandbox = blocking(move || sandboxes.load(&pod_uid)).await?;
        let absent = || Error::NotFound { kind: "pod sandbox", id: config.pod_uid.clone() };
        let pod = sandbox.filter(|sandbox| sandbox.ready).ok_or_else(absent)?.config;
        let image = self.images.usable(&config.image).await?;
        let process = &image.resolved.process;
        let stop_signal = stop_signal(config, process.stop_signal.as_deref())?;
        let accounts = self.images.accounts(&image.resolved).await?;
        let join_pid = match &config.join_pid_of {
            Some(target) => Some(self.process_namespace(target).await?),
            None => None,
        };
        let mut devices = devices::mapped(&config.devices)?;
        if config.security.privileged {
            devices.extend(devices::host_devices());
        }
        let mut config = config.clone();
        if !self.cgroups.has("hugetlb") {
            // runc refuses what it cannot write.
            config.resources.hugepage_limits.clear();
        }
        let user = user::resolve(&config.security, &process.user, accounts)?;
        let namespaces = self.sandboxes.shared(&pod);
        let users = mapped::Users::of(&pod, &namespaces);
        let directory = self.paths.container(id);
        let mut asked_for = Vec::new();
        if let Some(users) = &users {
            user.check_within(users.ids.count)?;
            asked_for = std::mem::take(&mut config.mounts);
            config.mounts = mapped::from_places(&directory, &asked_for);
        }
        let config = &config;
        let wanted = config.security.apparmor.clone();
        let apparmor = blocking(move || apparmor::profile(&wanted)).await?;
        let mut spec = spec::build(&spec::SpecInput {
            id,
            pod: &pod,
            container: config,
            image: process,
            user: user.clone(),
            namespaces: &namespaces,
            join_pid: join_pid.as_deref(),
            devices: &devices,
            seccomp: seccomp::profile(&config.security)?,
            apparmor,
            selinux: labels::selinux(&config.security.selinux),
            unified_cgroup: self.cgroups.is_unified(),
        })?;
        if !config.cdi_devices.is_empty() {
            let (dirs, names) = (self.config.cdi_dirs.clone(), config.cdi_devices.clone());
            let edits = blocking(move || cdi::edits_of(&dirs, &names)).await?;
            cdi::apply(&edits, &mut spec)?;
        }

        let stored = Stored::new(id, &pod, config, image.image_ref.clone(), stop_signal, user.uid);
        let runtime = self.runtime_of(&pod.runtime_handler, users.as_ref())?;
        let options = runtime.options.clone();
        let container = Container {
            id: id.to_owned(),
            labels: stored.labels(),
            image: config.image.clone(),
            runtime: Some(runtime),
            spec: Some(prost_types::Any {
                type_url: SPEC_TYPE.to_owned(),
                value: serde_json::to_vec(&spec).expect("a specification is plain data"),
            }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: id.to_owned(),
            extensions: stored.extensions(),
            ..Default::default()
        };
        self.make_record(container).await?;
        fault::point("container: record made");
        let mut rootfs = self.make_snapshot(id, &image.resolved.chain_id).await?;
        fault::point("container: snapshot made");
        if let Some(users) = users {
            let directory = directory.clone();
            let mapped = blocking(move || {
                let rootfs = mapped::map_root(&directory, &users, rootfs)?;
                fault::point("container: layers mapped");
                mapped::map_mounts(&directory, &users, &asked_for).map(|()| rootfs)
            });
            rootfs = mapped.await?;
            fault::point("container: mounts mapped");
        }

        let (container, writer) = (config.clone(), self.config.log_writer.clone());
        let io = blocking(move || task_io::prepare(&directory, &container, &writer)).await?;
        if config.stdin && !config.tty {
            self.outputs.watch_fifos(id);
        }
        fault::point("container: streams made");
        let made = self.make_task(id, rootfs, io, config.tty, options).await;
        if !made.as_ref().is_err_and(Error::is_silence) {
            remove_file(&self.task_mark(id))?;
        }
        made?;
        fault::point("container: task made");
        self.hold_output_or_warn(id).await;
        Ok(())
    }

    async fn make_record(&self, container: Container) -> Result<()> {
        let id = container.id.clone();
        let request = CreateContainerRequest { container: Some(container) };
        let made = ask::until_known(
            "create container",
            Before::Nothing,
            || async {
                let mut containers = self.rpc.containers();
                rpc::call("create container", containers.create(request.clone())).await.map(drop)
            },
            |_| async { Ok(self.container(&id).await?.map(drop)) },
        );
        made.await
    }

    async fn make_snapshot(&self, key: &str, parent: &str) -> Result<Vec<Mount>> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let made = ask::until_known(
            "prepare snapshot",
            Before::Nothing,
            || async {
                let mut snapshots = self.rpc.snapshots();
                Ok(rpc::call("prepare snapshot", snapshots.prepare(request.clone())).await?.mounts)
            },
            |_| self.snapshot_mounts(key),
        );
        made.await
    }

    /// `None` when there is no such snapshot.
    pub(super) async fn snapshot_mounts(&self, key: &str) -> Result<Option<Vec<Mount>>> {
        let request = MountsRequest { snapshotter: self.snapshotter.clone(), key: key.to_owned() };
        let found = rpc::find("look up mounts", self.rpc.snapshots().mounts(request)).await?;
        Ok(found.map(|found| found.mounts))
    }

    /// The directory says meanwhile that the task may be there or come: what containerd did not end for an agent that was
    /// killed, or gave up, is nowhere else to be seen ([`Self::end_task_asked_for`]).
    async fn make_task(
        &self,
        id: &str,
        rootfs: Vec<Mount>,
        io: TaskIo,
        terminal: bool,
        options: Option<prost_types::Any>,
    ) -> Result<()> {
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: io.stdin,
            stdout: io.stdout,
            stderr: io.stderr,
            terminal,
            options,
            ..Default::default()
        };
        let mark = self.task_mark(id);
        let before = Before::unanswered_if(mark.exists());
        fs::write(&mark, "").map_err(io_error("write", &mark))?;
        fault::point("container: task asked for");
        let made = ask::until_known(
            "create task",
            before,
            || async { rpc::call("create task", self.rpc.tasks().create(request.clone())).await.map(drop) },
            |_| async { Ok(self.task(id).await?.map(drop)) },
        );
        made.await.map_err(|error| start_error(id, "create", error))
    }

    fn task_mark(&self, id: &str) -> PathBuf {
        self.paths.container(id).join(TASK_ASKED_FOR)
    }

    /// Whether there may be a task that nobody will start: its creation was not answered, and its container is to be
    /// removed, and made anew under the same id.
    pub(super) fn is_half_made(&self, id: &str) -> bool {
        self.records.get(id).started_at.is_none() && self.task_mark(id).exists()
    }

    /// A task whose creation was not answered is made, so that it can be deleted. The creation may have got as far as a shim
    /// that containerd does not know; asked again, containerd finds it there, and ends it with its last task.
    async fn end_task_asked_for(&self, id: &str) -> Result<()> {
        if !self.is_half_made(id) {
            return Ok(());
        }
        let rootfs = self.snapshot_mounts(id).await?.unwrap_or_default();
        let rootfs = mapped::root_again(&self.paths.container(id), rootfs);
        let record = self.container(id).await?;
        let options = record.and_then(|container| container.runtime).and_then(|runtime| runtime.options);
        match self.make_task(id, rootfs, TaskIo::default(), false, options).await {
            Ok(()) => {
                self.kill(id, SIGKILL, true).await?;
                self.wait_for_exit(id, KILL_TIMEOUT).await.map(drop)
            }
            Err(error) if error.is_silence() => Err(error),
            // What cannot be made is not there.
            Err(_) => Ok(()),
        }
    }

    /// Where the process namespace of a running container is.
    async fn process_namespace(&self, id: &str) -> Result<PathBuf> {
        let task = self.task(id).await?.filter(|task| task_status(task) == TaskStatus::Running);
        match task {
            Some(task) => Ok(format!("/proc/{}/ns/pid", task.pid).into()),
            None => {
                let (id, state) = (id.to_owned(), "not running".to_owned());
                Err(Error::WrongState { id, state, attempted: "join the processes of" })
            }
        }
    }

    pub(super) async fn update_container(&self, id: &str, resources: &Resources) -> Result<()> {
        let limits = spec::limits(resources, self.cgroups.is_unified());
        let resources = prost_types::Any {
            type_url: RESOURCES_TYPE.to_owned(),
            value: serde_json::to_vec(&limits).expect("limits are plain data"),
        };
        let request = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            annotations: HashMap::new(),
        };
        rpc::call("update task", self.rpc.tasks().update(request)).await.map(drop)
    }

    pub(super) async fn disk_usage(&self, id: &str) -> Result<Option<DiskUsage>> {
        let request = UsageRequest { snapshotter: self.snapshotter.clone(), key: id.to_owned() };
        let usage = rpc::find("measure snapshot", self.rpc.snapshots().usage(request)).await?;
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok(usage.map(|usage| DiskUsage { bytes: count(usage.size), inodes: count(usage.inodes) }))
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let absent = || Error::NotFound { kind: "container", id: id.to_owned() };
        let stored = self.stored(id).await?.ok_or_else(absent)?;
        let pod_uid = stored.pod_uid.clone();
        // A process may end before containerd has answered the start. Its task is then to be deleted after the
        // answer: containerd asks the shim once more for it, and the shim goes with its last task.
        let _alone = self.pod_locks.lock(&pod_uid).await;
        let status = self.status(id).await?.ok_or_else(absent)?;
        match status.state {
            ContainerState::Created => {}
            ContainerState::Running => return Ok(()),
            state => {
                let state = format!("{state:?}").to_lowercase();
                return Err(Error::WrongState { id: id.to_owned(), state, attempted: "start" });
            }
        }
        if let Some(uid) = stored.own_user {
            let pid = self.task(id).await?.ok_or_else(absent)?.pid;
            let directory = self.paths.container(id);
            let finish = move || {
                mapped::give_streams(pid, uid)?;
                mapped::clear(&directory)
            };
            blocking(finish).await?;
            fault::point("container: places of mounts cleared");
        }
        let before = Before::unanswered_if(self.records.get(id).started_at.is_some());
        // Before the start: a process that ends at once must find that it was started.
        self.change_record(id, |owner, id| owner.records.started(id, Timestamp::now())).await?;
        fault::point("container: start noted");
        self.starting.lock().insert(id.to_owned());
        if let Err(error) = self.start_task(id, before).await {
            self.starting.lock().remove(id);
            // One that may have been started is to be asked for again, and its end to be noticed.
            if !error.is_silence() {
                self.records.forget(id)?;
            }
            return Err(start_error(id, "start", error));
        }
        fault::point("container: task started");
        self.tell_started(id, &status.pod_uid);
        Ok(())
    }

    async fn start_task(&self, id: &str, before: Before) -> Result<()> {
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        let started = ask::until_known(
            "start task",
            before,
            || async { rpc::call("start task", self.rpc.tasks().start(request.clone())).await.map(drop) },
            |unanswered| async move { Ok(self.task(id).await?.filter(|t| was_started(t, unanswered)).map(drop)) },
        );
        started.await
    }

    pub(super) async fn stop_container(self: &Arc<Self>, id: &str, timeout: Duration) -> Result<()> {
        let Some(found) = self.find(id).await? else { return Ok(()) };
        let signal = match found.task.as_ref().map(task_status) {
            None | Some(TaskStatus::Stopped) => return self.settle(&found).await,
            // A process that was never started cannot handle a signal.
            Some(TaskStatus::Created) => SIGKILL,
            Some(_) => found.stored.stop_signal,
        };
        if signal != SIGKILL && !timeout.is_zero() {
            match self.kill(id, signal, false).await {
                // What cannot be asked to end is ended, when its time is over.
                Err(error) if !error.is_silence() => {
                    tracing::warn!(%error, id, "a container could not be asked to end");
                }
                asked => asked?,
            }
            if self.wait_for_exit(id, timeout).await? {
                return self.status(id).await.map(|_| ());
            }
        }
        self.kill_all(id).await
    }

    /// SIGKILL to every process; returns when the container has ended.
    async fn kill_all(self: &Arc<Self>, id: &str) -> Result<()> {
        self.kill(id, SIGKILL, true).await?;
        if !self.wait_for_exit(id, KILL_TIMEOUT).await? {
            let what = format!("the end of killed container {id}");
            return Err(Error::Timeout { what, timeout: KILL_TIMEOUT });
        }
        self.status(id).await.map(|_| ())
    }

    async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let request =
            KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal: signal as u32, all };
        // Not found: it has ended by itself.
        rpc::remove("signal task", self.rpc.tasks().kill(request)).await
    }

    /// Waits at most `timeout` for the container's process to end; true when it has.
    async fn wait_for_exit(&self, id: &str, timeout: Duration) -> Result<bool> {
        let request = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        let mut tasks = self.rpc.tasks();
        match rpc::call_within(timeout, "wait for the end of a task", tasks.wait(request)).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(true),
            Err(Error::Timeout { .. }) => Ok(false),
            // A shim goes when the last process of its pod has ended, also while it is asked. What is left tells.
            Err(other) => {
                let task = self.task(id).await?;
                match task.is_some_and(|task| task_status(&task) != TaskStatus::Stopped) {
                    true => Err(other),
                    false => Ok(true),
                }
            }
        }
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        check_name("id", id)?;
        let Some(container) = self.container(id).await? else {
            // What is kept outside of containerd may be left over from a removal that was cut short.
            return self.remove_files(id).await;
        };
        if Stored::of(&container).is_none() {
            return Err(Error::NotFound { kind: "container", id: id.to_owned() });
        }
        let Some(found) = self.find(id).await? else { return self.remove_files(id).await };
        if found.task.as_ref().is_some_and(|task| task_status(task) != TaskStatus::Stopped) {
            self.kill_all(id).await?;
        }
        self.settle(&found).await?;
        let _alone = self.pod_locks.lock(&found.stored.pod_uid).await;
        self.remove_parts(id).await
    }

    /// Everything of a container that has no running process. The record goes last.
    async fn remove_parts(&self, id: &str) -> Result<()> {
        self.end_task_asked_for(id).await?;
        if let Some(stored) = self.stored(id).await? {
            self.delete_task_locked(id, &stored).await?;
        }
        fault::point("container: task removed");
        let snapshot = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: id.to_owned() };
        rpc::remove("remove snapshot", self.rpc.snapshots().remove(snapshot)).await?;
        fault::point("container: snapshot removed");
        self.remove_files(id).await?;
        fault::point("container: files removed");
        let request = DeleteContainerRequest { id: id.to_owned() };
        rpc::remove("delete container", self.rpc.containers().delete(request)).await?;
        fault::point("container: record removed");
        self.known.lock().remove(id);
        self.exec_specs.lock().remove(id);
        Ok(())
    }

    async fn remove_files(&self, id: &str) -> Result<()> {
        let alone = self.records.changing.lock(id).await;
        self.records.forget(id)?;
        drop(alone);
        let directory = self.paths.container(id);
        blocking(move || {
            mapped::clear(&directory)?;
            remove_dir_all(&directory)
        })
        .await
    }

    /// What containerd runs containers of a handler with. Shims that are not runc's have options of their own, which are
    /// theirs to know: they get none.
    fn runtime_of(&self, handler: &str, users: Option<&mapped::Users>) -> Result<ContainerRuntime> {
        let known = self.config.handlers.get(handler);
        if known.is_none() && !handler.is_empty() && handler != RUNC {
            let message = format!("no runtime for {handler:?} is configured");
            return Err(Error::Invalid { field: "runtimeHandler", message });
        }
        let shim = known.map_or(RuntimeHandler::RUNC_SHIM, |handler| handler.shim.as_str());
        let options = (shim == RuntimeHandler::RUNC_SHIM).then(|| {
            let root = users.map_or(0, |users| users.ids.first);
            let options = RuncOptions {
                io_uid: root,
                io_gid: root,
                root: self.paths.runc_root().to_string_lossy().into_owned(),
                binary_name: known.and_then(|handler| handler.binary.clone()).unwrap_or_default(),
            };
            let value = prost::Message::encode_to_vec(&options);
            prost_types::Any { type_url: "containerd.runc.v1.Options".to_owned(), value }
        });
        Ok(ContainerRuntime { name: shim.to_owned(), options })
    }
}

/// Whether a start has taken effect. One that failed leaves a process that has ended, as one does that ended at once: where
/// no answer told of a failure, it was started.
pub(super) fn was_started(process: &Process, unanswered: bool) -> bool {
    match task_status(process) {
        TaskStatus::Running => true,
        TaskStatus::Stopped => unanswered,
        _ => false,
    }
}

fn stop_signal(config: &ContainerConfig, of_image: Option<&str>) -> Result<i32> {
    let Some(name) = config.stop_signal.as_deref().or(of_image) else { return Ok(SIGTERM) };
    signal_number(name)
        .ok_or_else(|| Error::Invalid { field: "stopSignal", message: format!("unknown signal {name:?}") })
}

/// containerd's answer to a failed start holds runc's own words.
fn start_error(id: &str, attempted: &'static str, error: Error) -> Error {
    match error {
        Error::Containerd { message, .. } | Error::NotFound { id: message, .. } => {
            Error::Start { id: id.to_owned(), attempted, message }
        }
        other => other,
    }
}
