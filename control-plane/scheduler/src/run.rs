//! The shell: follows the cluster, asks the core, writes bindings.
//!
//! Watch handlers apply each change to the core under its lock, so there is no queue of changes that could
//! overflow; the loop takes the lock for one batch at a time and never across a wait. Bindings of several batches
//! are written while the next ones are decided. A binding whose outcome is unknown keeps its room, and is sent again until
//! the API says what came of it: the first may still be on its way, but a pod is bound once.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use hawser_api::{
    Api, Client, Error,
    client::{Binding, ListOptions},
    error::Reason,
    informer::{Change, Informer},
    resource::ObjectKey,
    typed::Kind,
};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, StatefulSet},
        core::v1::{
            Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
        },
        policy::v1::PodDisruptionBudget,
        resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
        scheduling::v1alpha2::PodGroup,
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    devices::{compile_claim, compile_class},
    events::{self, Recorder},
    evict,
    extender::{self, Extender, Objects, Question},
    metrics::{Metrics, Outcome as Attempted},
    pod::{self, PodInfo},
    provision,
    queue::Place,
    report::Reports,
    reserve::Claims,
    scheduler::{Attempt, Deallocation, Decision, Plan, Preemption, Provisioning, Scheduler},
    timings::{Point, Status},
    workloads::ControllerKind,
};

/// Between two looks at a pod whose binding has no known outcome, and between two such bindings; doubled up to the last.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_LAST: Duration = Duration::from_secs(5);

/// How long bindings and reports in hand may take after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);

/// Pods whose victims are deleted at the same time; others wait their turn.
const EVICTIONS: usize = 8;

/// After it, the pod that victims are deleted for is tried again, whatever became of them.
const EVICT_DEADLINE: Duration = Duration::from_secs(30);

/// Claims of devices that are written at the same time; others wait their turn.
const CLAIM_WRITES: usize = 64;

/// After it, no write of a pod's claims is begun, and the pod is tried again.
const RESERVE_DEADLINE: Duration = Duration::from_secs(60);

/// After it, a batch's outcome is unknown.
const BIND_DEADLINE: Duration = Duration::from_secs(30);

struct Shell {
    client: Arc<dyn Client>,
    core: Arc<Mutex<Scheduler>>,
    extenders: Vec<Arc<Extender>>,
    /// Whole objects, for extenders.
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    metrics: Metrics,
    /// Something changed that the loop may act on.
    changed: Notify,
    /// A claim changed that a pod may wait for, or a node is gone.
    claims_changed: Notify,
    /// The same of claims of devices.
    device_claims_changed: Notify,
    claim_writes: Semaphore,
    /// Pods that have what they were promised: whoever may write next binds them together. Each has a task that waits for that.
    ready: Mutex<Vec<Decision>>,
    start: Instant,
    recorder: Recorder,
}

impl Shell {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn claims(&self) -> Claims<'_> {
        Claims {
            client: &self.client,
            core: &self.core,
            changed: &self.device_claims_changed,
            writes: &self.claim_writes,
            start: self.start,
        }
    }

    /// Changes the core and wakes the loop.
    fn tell(&self, change: impl FnOnce(&mut Scheduler, Duration)) {
        change(&mut self.core.lock(), self.now());
        self.changed.notify_one();
    }
}

impl Objects for Shell {
    fn pod(&self, pod: &PodInfo) -> Option<Arc<Pod>> {
        self.pods.get(&pod.key).filter(|found| found.metadata.uid.as_deref() == Some(&*pod.uid))
    }

    fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectKey::new("", name))
    }
}

/// Schedules until `shutdown`, then finishes the bindings in hand.
///
/// Fails only where the configuration cannot work; errors of single pods are logged, told and retried.
pub async fn run(client: Arc<dyn Client>, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let (recorder, event_writer) = events::channel(client.clone(), &config);
    let shell = Arc::new(Shell {
        client: client.clone(),
        core: Arc::new(Mutex::new(Scheduler::new(&config, seed()))),
        extenders: config.extenders.0.clone(),
        nodes: Informer::new(),
        pods: Informer::new(),
        metrics: config.metrics.clone(),
        changed: Notify::new(),
        claims_changed: Notify::new(),
        device_claims_changed: Notify::new(),
        claim_writes: Semaphore::new(CLAIM_WRITES),
        ready: Mutex::default(),
        start: Instant::now(),
        recorder,
    });
    let reports = Arc::new(Reports::default());
    let _shown = shell.metrics.show(&shell.core);

    // Ends with this function: the informers and writers are dropped, which leaves nothing half done.
    let mut followers = JoinSet::new();
    let synced = follow(&shell, &mut followers);
    let mut writers = JoinSet::new();
    // Ends the loop and the writers: with the process, or when a cache stands still.
    let stop = shutdown.child_token();
    writers.spawn(event_writer.run(stop.clone()));
    writers.spawn(reports.clone().run(
        client.clone(),
        shell.pods.clone(),
        shell.recorder.clone(),
        stop.clone(),
    ));

    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = synced => (),
        ended = followers.join_next() => return Err(ended_early(ended)),
    }
    info!(waiting = shell.core.lock().waiting(Place::Active), "scheduling");

    let mut outcome = Ok(());
    let mut bindings = {
        let mut scheduling = std::pin::pin!(schedule(&shell, &config, &reports, &stop));
        tokio::select! {
            bindings = &mut scheduling => bindings,
            ended = followers.join_next() => {
                // Without it pods would be placed by what was: better none, and a restart.
                outcome = Err(ended_early(ended));
                stop.cancel();
                scheduling.await
            }
        }
    };
    let drained = tokio::time::timeout(DRAIN, async {
        while bindings.join_next().await.is_some() {}
        while writers.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        warn!(deadline = ?DRAIN, "bindings or reports were still being written at shutdown");
    }
    outcome
}

/// Informers run until they are dropped: one that ended has panicked.
fn ended_early(ended: Option<Result<(), JoinError>>) -> anyhow::Error {
    match ended {
        Some(Err(error)) => anyhow::Error::new(error).context("an informer ended early"),
        _ => anyhow::anyhow!("an informer ended early"),
    }
}

/// Any number: it only decides among equals.
fn seed() -> u64 {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |age| age.as_nanos());
    u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or(1)
}

/// Follows all kinds that decisions depend on. The returned future waits for their first lists.
fn follow(shell: &Arc<Shell>, followers: &mut JoinSet<()>) -> impl Future<Output = ()> + use<> {
    let at = Arc::downgrade(shell);
    // Selectors are compiled before the core is held.
    let programs = shell.core.lock().devices().programs();
    let synced = [
        follow_with(shell, followers, &shell.nodes, move |core, change: &Change<'_, Node>, now| {
            match (change.old, change.new) {
                // Heartbeats change nothing that a place depends on.
                (Some(old), Some(new)) if same_for_scheduling(old, new) => (),
                (_, Some(new)) => core.node_changed(new, now),
                (_, None) => {
                    core.node_removed(&change.key.name, now);
                    // No volume will be made there.
                    at.upgrade().inspect(|shell| shell.claims_changed.notify_waiters());
                }
            }
        }),
        follow_with(shell, followers, &shell.pods, |core, change: &Change<'_, Pod>, now| {
            let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
            let (old, new) = (change.old.map(uid), change.new.map(uid));
            // Another pod of the same name is another pod.
            if let Some(gone) = old.filter(|old| new.as_ref() != Some(old)) {
                core.pod_removed(&gone, now);
            }
            if let Some(pod) = change.new {
                core.pod_changed(pod, now);
            }
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, Namespace>, now| match change.new {
            Some(namespace) => core.namespace_changed(namespace, now),
            None => core.namespace_removed(&change.key.name, now),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, PodDisruptionBudget>, _| match change.new {
            Some(budget) => core.budget_changed(budget),
            None => core.budget_removed(&change.key.namespace, &change.key.name),
        }),
        {
            let at = shell.clone();
            follow_kind(shell, followers, move |core, change: &Change<'_, PersistentVolumeClaim>, now| {
                match change.new {
                    Some(claim) => core.claim_changed(claim, now),
                    None => core.claim_removed(change.key),
                }
                at.claims_changed.notify_waiters();
            })
        },
        follow_kind(shell, followers, |core, change: &Change<'_, PersistentVolume>, now| match change.new {
            Some(volume) => core.volume_changed(volume, now),
            None => core.volume_removed(&change.key.name),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, StorageClass>, now| match change.new {
            Some(class) => core.class_changed(class, now),
            None => core.class_removed(&change.key.name),
        }),
        {
            let informer = Informer::new();
            let programs = programs.clone();
            informer.on_change(move |change: &Change<'_, DeviceClass>| {
                change.new.inspect(|class| compile_class(class, &programs));
            });
            follow_with(shell, followers, &informer, |core, change: &Change<'_, DeviceClass>, now| {
                match change.new {
                    Some(class) => core.device_class_changed(class, now),
                    None => core.device_class_removed(&change.key.name, now),
                }
            })
        },
        follow_kind(shell, followers, |core, change: &Change<'_, ResourceSlice>, now| match change.new {
            Some(slice) => core.slice_changed(slice, now),
            None => core.slice_removed(&change.key.name, now),
        }),
        {
            let at = Arc::downgrade(shell);
            let informer = Informer::new();
            informer.on_change(move |change: &Change<'_, ResourceClaim>| {
                change.new.inspect(|claim| compile_claim(claim, &programs));
            });
            follow_with(shell, followers, &informer, move |core, change: &Change<'_, ResourceClaim>, now| {
                match change.new {
                    Some(claim) => core.device_claim_changed(claim, now),
                    None => core.device_claim_removed(change.key, now),
                }
                at.upgrade().inspect(|shell| shell.device_claims_changed.notify_waiters());
            })
        },
        follow_kind(shell, followers, |core, change: &Change<'_, PodGroup>, now| match change.new {
            Some(group) => core.pod_group_changed(group, now),
            None => core.pod_group_removed(change.key),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, CSIDriver>, now| match change.new {
            Some(driver) => core.driver_changed(driver, now),
            None => core.driver_removed(&change.key.name, now),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, CSIStorageCapacity>, now| {
            match change.new {
                Some(capacity) => core.capacity_changed(capacity, now),
                None => core.capacity_removed(change.key),
            }
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, CSINode>, now| match change.new {
            Some(node) => core.csi_node_changed(node, now),
            None => core.csi_node_removed(&change.key.name, now),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, Service>, _| match change.new {
            Some(service) => core.workloads().put_service(service),
            None => core.workloads().remove_service(change.key),
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, ReplicationController>, _| {
            let selector = change.new.and_then(|object| object.spec.as_ref()?.selector.as_ref());
            match change.new {
                Some(_) => core.workloads().put_replication_controller(change.key, selector),
                None => core.workloads().remove_controller(ControllerKind::ReplicationController, change.key),
            }
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, ReplicaSet>, _| {
            let selector = change.new.and_then(|object| object.spec.as_ref().map(|spec| &spec.selector));
            follow_set(core, ControllerKind::ReplicaSet, change, selector);
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, StatefulSet>, _| {
            let selector = change.new.and_then(|object| object.spec.as_ref().map(|spec| &spec.selector));
            follow_set(core, ControllerKind::StatefulSet, change, selector);
        }),
        follow_kind(shell, followers, |core, change: &Change<'_, VolumeAttachment>, now| match change.new {
            Some(attachment) => core.attachment_changed(attachment, now),
            None => core.attachment_removed(&change.key.name, now),
        }),
    ];
    async move {
        for synced in synced {
            synced.await;
        }
    }
}

/// `selector` is that of the new object.
fn follow_set<K: Kind>(
    core: &mut Scheduler,
    kind: ControllerKind,
    change: &Change<'_, K>,
    selector: Option<&LabelSelector>,
) {
    match change.new {
        Some(_) => core.workloads().put_set(kind, change.key, selector),
        None => core.workloads().remove_controller(kind, change.key),
    }
}

/// Applies each change of a kind to the core. The returned future waits for the first list.
fn follow_kind<K: Kind>(
    shell: &Arc<Shell>,
    followers: &mut JoinSet<()>,
    apply: impl Fn(&mut Scheduler, &Change<'_, K>, Duration) + Send + Sync + 'static,
) -> BoxFuture<'static, ()> {
    follow_with(shell, followers, &Informer::new(), apply)
}

fn follow_with<K: Kind>(
    shell: &Arc<Shell>,
    followers: &mut JoinSet<()>,
    informer: &Informer<K>,
    apply: impl Fn(&mut Scheduler, &Change<'_, K>, Duration) + Send + Sync + 'static,
) -> BoxFuture<'static, ()> {
    let informer = informer.clone();
    // The informer is the shell's own in part: it must not keep the shell.
    let at = Arc::downgrade(shell);
    informer.on_change(move |change| {
        if let Some(shell) = at.upgrade() {
            shell.tell(|core, now| apply(core, change, now));
        }
    });
    let (client, follower) = (shell.client.clone(), informer.clone());
    followers.spawn(async move { follower.run(client, None, ListOptions::default()).await });
    async move { informer.synced().await }.boxed()
}

fn same_for_scheduling(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let images = |node: &Node| node.status.as_ref().and_then(|status| status.images.clone());
    let features = |node: &Node| node.status.as_ref().and_then(|status| status.declared_features.clone());
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && allocatable(old) == allocatable(new)
        && images(old) == images(new)
        && features(old) == features(new)
}

/// The loop. Returns the bindings that are still being written.
async fn schedule(
    shell: &Arc<Shell>,
    config: &Config,
    reports: &Arc<Reports>,
    shutdown: &CancellationToken,
) -> JoinSet<()> {
    let slots = Arc::new(Semaphore::new(config.batches_in_flight));
    let evictions = Arc::new(Semaphore::new(EVICTIONS));
    let mut bindings = JoinSet::new();
    while !shutdown.is_cancelled() {
        while bindings.try_join_next().is_some() {}
        // A free slot first: what is decided is written at once.
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = slots.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let (plan, wakeup) = {
            let mut core = shell.core.lock();
            let start = shell.now();
            let plan = core.schedule(config.batch, start);
            shell.metrics.decided(&plan, shell.now() - start);
            (plan, core.next_wakeup())
        };
        let Plan {
            bindings: decided, provisionings, rejected, preemptions, question, partly, limited, ..
        } = plan;
        let idle = !limited && decided.is_empty() && provisionings.is_empty() && rejected.is_empty();
        rejected.into_iter().for_each(|rejected| reports.add(rejected));
        let provided = provisionings.iter().map(|provisioning| &provisioning.decision);
        decided.iter().chain(provided).for_each(|decision| reports.take_back(&decision.pod.uid));
        let (outside, decided): (Vec<Decision>, Vec<Decision>) =
            decided.into_iter().partition(|decision| decision.binder.is_some());
        for decision in outside {
            bindings.spawn(bind_outside(shell.clone(), decision));
        }
        if let Some(question) = question {
            bindings.spawn(ask(shell.clone(), question));
        }
        for provisioning in provisionings {
            bindings.spawn(prepare(shell.clone(), provisioning, slots.clone(), config.batch));
        }
        plan.group_statuses.into_iter().for_each(|status| reports.add_group(status));
        for deallocation in plan.deallocations {
            bindings.spawn(deallocate(shell.clone(), deallocation));
        }
        for preemption in preemptions {
            bindings.spawn(clear(shell.clone(), preemption, evictions.clone()));
        }
        for pod in partly {
            let message = format!("placed without regard to: {}", pod.not_considered.join(", "));
            shell.recorder.record(
                &pod.key.namespace,
                &pod.key.name,
                &pod.uid,
                events::NOT_CONSIDERED,
                message,
            );
        }
        if !decided.is_empty() {
            bindings.spawn(bind(shell.clone(), decided, permit));
        }
        if idle {
            let timer = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(shell.start + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = shell.changed.notified() => (),
                () = timer => (),
            }
        }
    }
    bindings
}

/// Asks extenders about one pod; each answers within its timeout.
async fn ask(shell: Arc<Shell>, question: Question) {
    let answer = extender::ask(&shell.extenders, &*shell, &question).await;
    shell.tell(|core, _| core.answered(&question.pod.uid, answer));
}

/// Has a pod bound by an extender. Whatever it says, the API knows the pod's node.
async fn bind_outside(shell: Arc<Shell>, decision: Decision) {
    let Decision { binding, attempt, binder, .. } = &decision;
    let Some(binder) = binder else { return };
    match extender::bind(binder, binding).await {
        Ok(()) => bound(&shell, binding, attempt),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(namespace = %binding.namespace, pod = %binding.pod, %error, "an extender cannot bind");
            let message = format!("binding rejected: {error}");
            let (namespace, pod) = (&binding.namespace, &binding.pod);
            shell.recorder.record(namespace, pod, &binding.uid, events::FAILED_SCHEDULING, message);
            // It may have done its part all the same, and is not to do it twice.
            let found = read(&shell, binding).await;
            settle(&shell, binding, attempt, found.as_ref());
        }
    }
}

/// Deletes the victims of one pod. Cancelled only by the end of the process: the next scheduler decides anew.
async fn clear(shell: Arc<Shell>, preemption: Preemption, evictions: Arc<Semaphore>) {
    let _permit = evictions.acquire().await.expect("the semaphore is never closed");
    let evict = evict::evict(&*shell.client, &shell.recorder, &preemption);
    let all = tokio::time::timeout(EVICT_DEADLINE, evict).await.unwrap_or_default();
    shell.tell(|core, now| core.cleared(&preemption.pod.uid, all, now));
}

async fn deallocate(shell: Arc<Shell>, deallocation: Deallocation) {
    let done = shell.claims().deallocate(&deallocation.claim).await;
    shell.tell(|core, now| {
        if !done {
            core.deallocation_failed(&deallocation.pod, now);
        }
    });
}

/// Binds a pod when it has what it was promised. As many of these wait as pods do whose volumes or devices take long: the
/// room that they hold is what bounds them.
async fn prepare(shell: Arc<Shell>, provisioning: Provisioning, slots: Arc<Semaphore>, batch: usize) {
    let decision = provisioning.decision.clone();
    let Decision { binding, attempt, .. } = &decision;
    let start = shell.now();
    let kept = keep_promises(&shell, &provisioning).await;
    let status = if kept.is_ok() { Status::Success } else { Status::Error };
    shell.metrics.wrote(Point::PreBind, &attempt.profile.scheduler_name, status, shell.now() - start);
    if !provisioning.promises.devices.0.is_empty() {
        shell.tell(|core, now| core.claims_written(&binding.uid, now));
    }
    match kept {
        Ok(()) if decision.binder.is_some() => bind_outside(shell, decision).await,
        Ok(()) => {
            shell.ready.lock().push(decision);
            let permit = slots.acquire_owned().await.expect("the semaphore is never closed");
            let ready = take_first(&mut shell.ready.lock(), batch);
            if !ready.is_empty() {
                bind(shell, ready, permit).await;
            }
        }
        Err(error) => {
            let message = format!("running PreBind plugin {error}");
            let (namespace, pod) = (&binding.namespace, &binding.pod);
            shell.recorder.record(namespace, pod, &binding.uid, events::FAILED_SCHEDULING, message);
            shell.metrics.tried(Attempted::Error, attempt, shell.now());
            shell.tell(|core, now| core.bind_failed(&binding.uid, now));
        }
    }
}

/// Up to so many, the first that came.
fn take_first(ready: &mut Vec<Decision>, most: usize) -> Vec<Decision> {
    let rest = ready.split_off(most.min(ready.len()));
    std::mem::replace(ready, rest)
}

/// Writes volumes and devices. The error names the plugin.
async fn keep_promises(shell: &Shell, provisioning: &Provisioning) -> Result<(), String> {
    let of = |plugin: &'static str| move |error: String| format!("{plugin:?}: {error}");
    if !provisioning.promises.volumes.wait_for.is_empty() {
        let done =
            provision::provision(&*shell.client, &shell.core, &shell.claims_changed, provisioning).await;
        done.map_err(of("VolumeBinding"))?;
    }
    let Decision { pod, attempt, .. } = &provisioning.decision;
    let (grants, claims) = (&provisioning.promises.devices.0, shell.claims());
    if !grants.is_empty() {
        let reserved = claims.reserve(grants, pod, RESERVE_DEADLINE).await.map_err(of("DynamicResources"))?;
        let timeout = attempt.profile.device_bind_timeout;
        claims.attached(&reserved, pod, timeout).await.map_err(of("DynamicResources"))?;
        shell.changed.notify_one();
    }
    Ok(())
}

/// Writes one batch. Cancelled only by the end of the process, after which the API is the truth.
async fn bind(shell: Arc<Shell>, batch: Vec<Decision>, permit: OwnedSemaphorePermit) {
    let (bindings, attempts): (Vec<Binding>, Vec<Attempt>) =
        batch.into_iter().map(|decision| (decision.binding, decision.attempt)).unzip();
    let start = shell.now();
    let results = send(&shell, &bindings).await;
    let took = shell.now() - start;
    drop(permit);
    for (attempt, result) in attempts.iter().zip(&results) {
        let status = if result.is_ok() { Status::Success } else { Status::Error };
        shell.metrics.wrote(Point::Bind, &attempt.profile.scheduler_name, status, took);
    }
    let mut unknown = Vec::new();
    for ((binding, attempt), result) in bindings.into_iter().zip(attempts).zip(results) {
        match result {
            Ok(()) => bound(&shell, &binding, &attempt),
            Err(error) => match outcome(&error) {
                Outcome::Refused => {
                    shell.metrics.tried(Attempted::Error, &attempt, shell.now());
                    debug!(namespace = %binding.namespace, pod = %binding.pod, %error, "binding refused");
                    shell.tell(|core, now| core.bind_failed(&binding.uid, now));
                }
                Outcome::Gone => shell.tell(|core, now| core.bind_refused_for_good(&binding.uid, now)),
                Outcome::Unknown => {
                    warn!(namespace = %binding.namespace, pod = %binding.pod, %error, "outcome of binding unknown");
                    unknown.push((binding, attempt));
                }
            },
        }
    }
    let mut delay = LOOK_FIRST;
    while !unknown.is_empty() {
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LOOK_LAST);
        unknown = send_again(&shell, unknown).await;
    }
}

/// One result for each binding.
async fn send(shell: &Shell, bindings: &[Binding]) -> Vec<Result<(), Error>> {
    let results = match tokio::time::timeout(BIND_DEADLINE, shell.client.bind(bindings)).await {
        Ok(results) => results,
        Err(_) => bindings.iter().map(|_| Err(Error::timeout("the API server did not answer"))).collect(),
    };
    debug_assert_eq!(results.len(), bindings.len());
    results
}

/// Sends bindings that may be on their way already. Returns those of which it is not known yet what came of them: only an
/// answer after which the earlier ones cannot come any more decides.
async fn send_again(shell: &Shell, unknown: Vec<(Binding, Attempt)>) -> Vec<(Binding, Attempt)> {
    let bindings: Vec<Binding> = unknown.iter().map(|(binding, _)| binding.clone()).collect();
    let results = send(shell, &bindings).await;
    let mut left = Vec::new();
    for ((binding, attempt), result) in unknown.into_iter().zip(results) {
        match result {
            Ok(()) => bound(shell, &binding, &attempt),
            Err(error) if error.is_not_found() => settle(shell, &binding, &attempt, None),
            Err(error) if error.is_conflict() => {
                let found = read(shell, &binding).await;
                if found.as_ref().is_none_or(cannot_be_bound) {
                    settle(shell, &binding, &attempt, found.as_ref());
                } else {
                    // Somebody else wrote the pod at the same time.
                    left.push((binding, attempt));
                }
            }
            Err(error) => {
                debug!(pod = %binding.pod, %error, "the outcome of a binding is still unknown");
                left.push((binding, attempt));
            }
        }
    }
    left
}

fn cannot_be_bound(pod: &Pod) -> bool {
    pod::node_of(pod).is_some() || pod.metadata.deletion_timestamp.is_some() || pod::is_over(pod)
}

fn bound(shell: &Shell, binding: &Binding, attempt: &Attempt) {
    shell.metrics.tried(Attempted::Scheduled, attempt, shell.now());
    let Binding { namespace, pod, node, .. } = binding;
    let message = format!("Successfully assigned {namespace}/{pod} to {node}");
    shell.recorder.record(namespace, pod, &binding.uid, events::SCHEDULED, message);
}

enum Outcome {
    /// The API says no: the pod has no node by this binding.
    Refused,
    /// There is no such pod any more.
    Gone,
    /// The write may have happened.
    Unknown,
}

fn outcome(error: &Error) -> Outcome {
    match error.reason() {
        Reason::NotFound => Outcome::Gone,
        Reason::BadRequest
        | Reason::Unauthorized
        | Reason::Forbidden
        | Reason::MethodNotAllowed
        | Reason::AlreadyExists
        | Reason::Conflict
        | Reason::Invalid
        | Reason::TooManyRequests => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

/// Reads the pod until the API tells what it is; `None` where it is gone.
async fn read(shell: &Shell, binding: &Binding) -> Option<Pod> {
    let pods = Api::<Pod>::namespaced(shell.client.clone(), &binding.namespace);
    let mut delay = LOOK_FIRST;
    loop {
        match pods.find(&binding.pod).await {
            Ok(found) => return found.filter(|found| found.metadata.uid.as_deref() == Some(&binding.uid)),
            Err(error) => {
                debug!(pod = %binding.pod, %error, ?delay, "cannot read a pod whose binding is unknown")
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LOOK_LAST);
    }
}

/// Takes over what was found of a pod whose binding had no known outcome.
fn settle(shell: &Shell, binding: &Binding, attempt: &Attempt, found: Option<&Pod>) {
    match found {
        Some(found) if pod::node_of(found) == Some(&binding.node) => bound(shell, binding, attempt),
        Some(_) => {
            shell.metrics.tried(Attempted::Error, attempt, shell.now());
            shell.tell(|core, now| core.bind_failed(&binding.uid, now));
        }
        None => shell.tell(|core, now| core.bind_refused_for_good(&binding.uid, now)),
    }
}
