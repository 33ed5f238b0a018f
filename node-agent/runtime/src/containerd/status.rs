//! What containerd, the task and the record of a container together say about it.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_client::services::v1::{
    Container, GetContainerRequest, GetRequest, ListContainersRequest, ListTasksRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use jiff::Timestamp;

use super::record::ExitRecord;
use super::stored::{Stored, managed_filter, pod_filter};
use super::{Inner, rpc};
use crate::{ContainerState, ContainerStatus, Result};

/// A container's stored part, its task if there is one, and when it was made.
pub(super) struct Found {
    pub(super) id: String,
    pub(super) stored: Arc<Stored>,
    pub(super) task: Option<Process>,
    created_at: Timestamp,
}

impl Inner {
    pub(super) async fn status(self: &Arc<Self>, id: &str) -> Result<Option<ContainerStatus>> {
        let Some(found) = self.find(id).await? else { return Ok(None) };
        self.settle(&found).await?;
        Ok(Some(to_status(&found, self.records.get(id))))
    }

    pub(super) async fn list_statuses(self: &Arc<Self>) -> Result<Vec<ContainerStatus>> {
        let mut statuses = Vec::new();
        for found in self.find_all().await? {
            self.settle(&found).await?;
            let record = self.records.get(&found.id);
            statuses.push(to_status(&found, record));
        }
        Ok(statuses)
    }

    pub(super) async fn find(&self, id: &str) -> Result<Option<Found>> {
        let Some(container) = self.container(id).await? else { return Ok(None) };
        let task = self.task(id).await?;
        Ok(self.found(container, task))
    }

    /// Ids of a pod's containers. Asks no shim, so that it costs the same on a full node.
    pub(super) async fn containers_of(&self, pod_uid: &str) -> Result<Vec<String>> {
        let containers = self.list(pod_filter(pod_uid)).await?;
        Ok(containers.into_iter().map(|container| container.id).collect())
    }

    async fn list(&self, filter: String) -> Result<Vec<Container>> {
        // A stream, because one answer with all specifications may exceed containerd's message limit.
        let request = ListContainersRequest { filters: vec![filter] };
        let mut stream = rpc::call("list containers", self.rpc.containers().list_stream(request)).await?;
        let mut containers = Vec::new();
        while let Some(message) =
            stream.message().await.map_err(|status| rpc::error("list containers", status))?
        {
            containers.extend(message.container);
        }
        Ok(containers)
    }

    pub(super) async fn find_all(&self) -> Result<Vec<Found>> {
        let containers = self.list(managed_filter()).await?;
        let request = ListTasksRequest::default();
        let tasks = rpc::call("list tasks", self.rpc.tasks().list(request)).await?.tasks;
        let mut tasks: HashMap<String, Process> = tasks.into_iter().map(|t| (t.id.clone(), t)).collect();
        let with_task = containers.into_iter().filter_map(|container| {
            let task = tasks.remove(&container.id);
            self.found(container, task)
        });
        Ok(with_task.collect())
    }

    /// What is stored with a container; `None` when there is no such container of ours.
    pub(super) async fn stored(&self, id: &str) -> Result<Option<Arc<Stored>>> {
        if let Some(stored) = self.known.lock().get(id) {
            return Ok(Some(Arc::clone(stored)));
        }
        let container = self.container(id).await?;
        Ok(container.and_then(|container| self.found(container, None)).map(|found| found.stored))
    }

    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>> {
        let request = GetContainerRequest { id: id.to_owned() };
        let answer = rpc::find("look up container", self.rpc.containers().get(request)).await?;
        Ok(answer.and_then(|answer| answer.container))
    }

    pub(super) async fn task(&self, id: &str) -> Result<Option<Process>> {
        self.process(id, "").await
    }

    /// A process that exec made in a container, or with an empty `exec_id` the container's own.
    pub(super) async fn process(&self, id: &str, exec_id: &str) -> Result<Option<Process>> {
        let request = GetRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
        let answer = rpc::find("look up task", self.rpc.tasks().get(request)).await?;
        Ok(answer.and_then(|answer| answer.process))
    }

    /// `None` for a container that is not ours.
    fn found(&self, container: Container, task: Option<Process>) -> Option<Found> {
        let stored = Arc::new(Stored::of(&container)?);
        self.known.lock().entry(container.id.clone()).or_insert_with(|| Arc::clone(&stored));
        let created_at = rpc::timestamp(container.created_at).unwrap_or(Timestamp::UNIX_EPOCH);
        Some(Found { id: container.id, stored, task, created_at })
    }
}

pub(super) fn task_status(task: &Process) -> TaskStatus {
    TaskStatus::try_from(task.status).unwrap_or(TaskStatus::Unknown)
}

fn to_status(found: &Found, record: ExitRecord) -> ContainerStatus {
    let Found { stored, task, .. } = found;
    let state = state(task.as_ref().map(task_status), &record);
    ContainerStatus {
        id: found.id.clone(),
        pod_uid: stored.pod_uid.clone(),
        pod_name: stored.pod_name.clone(),
        pod_namespace: stored.pod_namespace.clone(),
        name: stored.name.clone(),
        attempt: stored.attempt,
        image: stored.image.clone(),
        image_ref: stored.image_ref.clone(),
        state,
        pid: task.as_ref().map(|task| task.pid).filter(|_| state == ContainerState::Running),
        created_at: found.created_at,
        started_at: record.started_at.filter(|_| state != ContainerState::Created),
        exit: record.exit,
        log_path: stored.log_path.clone(),
        labels: stored.labels.clone(),
        annotations: stored.annotations.clone(),
    }
}

fn state(task: Option<TaskStatus>, record: &ExitRecord) -> ContainerState {
    if record.exit.is_some() {
        return ContainerState::Exited;
    }
    match task {
        Some(TaskStatus::Created) => ContainerState::Created,
        // A shim that does not answer in time says nothing about the process; it ran when last seen.
        Some(TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing) => ContainerState::Running,
        Some(TaskStatus::Unknown) | None if record.started_at.is_some() => ContainerState::Running,
        Some(TaskStatus::Unknown | TaskStatus::Stopped) | None => ContainerState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContainerExit;

    #[test]
    fn record_of_an_exit_outweighs_the_task() {
        let started = ExitRecord { started_at: Some(Timestamp::UNIX_EPOCH), exit: None };
        let exit = ContainerExit {
            exit_code: 0,
            finished_at: Timestamp::UNIX_EPOCH,
            oom_killed: false,
            unobserved: false,
        };
        let ended = ExitRecord { exit: Some(exit), ..started.clone() };
        let check = |name: &str, task, record: &ExitRecord, expected| {
            assert_eq!(state(task, record), expected, "{name}");
        };
        let none = ExitRecord::default();
        check("made", Some(TaskStatus::Created), &none, ContainerState::Created);
        check("about to start", Some(TaskStatus::Created), &started, ContainerState::Created);
        check("running", Some(TaskStatus::Running), &started, ContainerState::Running);
        check("ended, task not deleted", Some(TaskStatus::Stopped), &ended, ContainerState::Exited);
        check("ended, task deleted", None, &ended, ContainerState::Exited);
        check("shim silent", Some(TaskStatus::Unknown), &started, ContainerState::Running);
        check("no task, never started", None, &none, ContainerState::Unknown);
    }
}
