//! How containers end: recorded once, told once, cleared away.
//!
//! An exit is learned from an event, from a list, or by whoever waits for it; all come through
//! [`Inner::record_exit`], which tells only the first time. The task is deleted after its exit is on
//! disk, never before: until then the shim remembers it for us. A disk that is full holds up only that.

use std::collections::HashSet;
use std::sync::Arc;

use containerd_client::services::v1::DeleteTaskRequest;
use containerd_client::types::v1::Status as TaskStatus;
use jiff::Timestamp;

use super::status::{Found, task_status};
use super::stored::Stored;
use super::{Inner, blocking, rpc};
use crate::{ContainerExit, Result, RuntimeEvent, fault};

/// What a process that nobody saw ending is said to have exited with, as upstream does.
pub(super) const UNOBSERVED_EXIT_CODE: i32 = 137;

impl Inner {
    /// Lists everything, records the exits that no event told of, and clears away after them. Returns the
    /// ids of all containers.
    pub(super) async fn relist(self: &Arc<Self>) -> Result<HashSet<String>> {
        let mut ids = HashSet::new();
        for found in self.find_all().await? {
            ids.insert(found.id.clone());
            self.settle(&found).await?;
            if found.task.as_ref().is_some_and(|task| task_status(task) == TaskStatus::Stopped) {
                self.delete_task_later(found.id, found.stored);
            } else if found.task.is_some() {
                self.hold_output_or_warn(&found.id).await;
            }
        }
        Ok(ids)
    }

    /// Not in the way of the next event: deleting a task takes tens of milliseconds. What goes wrong here
    /// is made good by the next list, or when the container is removed.
    pub(super) fn delete_task_later(self: &Arc<Self>, id: String, stored: Arc<Stored>) {
        let owner = Arc::clone(self);
        self.background.spawn(async move {
            if let Err(error) = owner.delete_task(&id, &stored).await {
                tracing::debug!(%error, id, "task of an exited container is not deleted yet");
            }
        });
    }

    /// Records of containers that are gone from containerd have no use.
    pub(super) fn forget_strangers(&self, known: &HashSet<String>) -> Result<()> {
        for id in self.records.ids() {
            if !known.contains(&id) {
                self.records.forget(&id)?;
            }
        }
        Ok(())
    }

    /// Records the container's exit, if it has ended and that is not recorded yet.
    pub(super) async fn settle(self: &Arc<Self>, found: &Found) -> Result<()> {
        let record = self.records.get(&found.id);
        if record.exit.is_some() {
            return Ok(());
        }
        match &found.task {
            Some(task) if task_status(task) == TaskStatus::Stopped => {
                let finished_at = rpc::timestamp(task.exited_at).unwrap_or_else(Timestamp::now);
                self.record_exit(&found.id, &found.stored, task.exit_status as i32, finished_at).await
            }
            Some(_) => Ok(()),
            None if record.started_at.is_none() => Ok(()),
            // A list leaves out tasks whose shim is slow to answer; only this answer is certain.
            None if self.task(&found.id).await?.is_some() => Ok(()),
            None => {
                let exit = ContainerExit {
                    exit_code: UNOBSERVED_EXIT_CODE,
                    finished_at: Timestamp::now(),
                    oom_killed: false,
                    unobserved: true,
                };
                self.tell(&found.id, &found.stored, exit).await
            }
        }
    }

    pub(super) async fn record_exit(
        self: &Arc<Self>,
        id: &str,
        stored: &Arc<Stored>,
        exit_code: i32,
        finished_at: Timestamp,
    ) -> Result<()> {
        // The cgroup is there until the task is deleted, and knows better than an event that may come
        // late.
        let oom_killed = exit_code != 0 && self.cgroups.oom_killed(&stored.cgroup);
        self.tell(id, stored, ContainerExit { exit_code, finished_at, oom_killed, unobserved: false }).await
    }

    async fn tell(self: &Arc<Self>, id: &str, stored: &Stored, exit: ContainerExit) -> Result<()> {
        let pod_uid = stored.pod_uid.clone();
        self.change_record(id, move |owner, id| {
            // No container has ended there: one of the same id is still to be started.
            if owner.is_half_made(id) {
                return Ok(());
            }
            if owner.records.exited(id, &exit) {
                fault::point("container: exit noted");
                owner.tell_started(id, &pod_uid);
                let event = RuntimeEvent::Exited { id: id.to_owned(), pod_uid, exit };
                // Fails when nobody listens.
                let _ = owner.events.send(event);
            }
            Ok(())
        })
        .await
    }

    /// Runs to its end even where the caller stops waiting: nobody would hear of an exit that is noted and not told.
    pub(super) async fn change_record(
        self: &Arc<Self>,
        id: &str,
        change: impl FnOnce(&Self, &str) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let alone = self.records.changing.lock(id).await;
        let (owner, id) = (Arc::clone(self), id.to_owned());
        blocking(move || {
            let _alone = alone;
            change(&owner, &id)
        })
        .await
    }

    /// Tells that a container was started, if nobody has yet.
    pub(super) fn tell_started(&self, id: &str, pod_uid: &str) {
        // Sent under the lock, so that no exit is told in between.
        let mut starting = self.starting.lock();
        if starting.remove(id) {
            let event = RuntimeEvent::Started { id: id.to_owned(), pod_uid: pod_uid.to_owned() };
            // Fails when nobody listens.
            let _ = self.events.send(event);
        }
    }

    /// Deletes the task of a container whose exit is recorded, once that is on disk. Frees its mounts, pipes and cgroups;
    /// the shim ends with the last task of its pod.
    pub(super) async fn delete_task(self: &Arc<Self>, id: &str, stored: &Stored) -> Result<()> {
        let _alone = self.pod_locks.lock(&stored.pod_uid).await;
        if !self.records.is_written(id) {
            self.change_record(id, |owner, id| owner.records.write_again(id)).await?;
        }
        self.delete_task_locked(id, stored).await
    }

    /// For callers that hold the pod's lock, and need no record of the exit any more.
    pub(super) async fn delete_task_locked(&self, id: &str, stored: &Stored) -> Result<()> {
        self.outputs.let_go(id);
        let request = DeleteTaskRequest { container_id: id.to_owned() };
        rpc::remove("delete task", self.rpc.tasks().delete(request)).await?;
        let (cgroups, cgroup) = (self.cgroups.clone(), stored.cgroup.clone());
        blocking(move || cgroups.remove(&cgroup)).await
    }
}
