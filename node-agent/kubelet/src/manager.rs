//! The pods of the node: one worker each, fed from the API's cache and the runtime's events.
//!
//! At start, what the runtime has is handed to the workers of its pods, and nothing restarts. Where the API does not
//! answer in time, those pods are worked on that an earlier agent has noted ([`crate::checkpoint`]), and static ones.
//! Nothing is removed before the API's list is complete; then containers, namespaces and directories of pods that are
//! gone are cleaned up, at start and at every slow relist.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::Api;
use hawser_api::informer::{Change, Informer};
use hawser_api::resource::ObjectKey;
use hawser_api::typed::Kind;
use hawser_runtime::RuntimeEvent;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, PodSpec};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admission::{Node, admit, is_of_object, missing};
use crate::container::resources::NodeCapacity;
use crate::devices::ledger::Wishes;
use crate::events::EventType;
use crate::eviction::rank::is_critical;
use crate::locality::{Hint, Near, Policy, Scope, choose};
use crate::node::new_node;
use crate::orphans::Orphans;
use crate::pod::DesiredPod;
use crate::pod::resize::{Pending, judge};
use crate::pod::state::Verdict;
use crate::preemption::{self, PREEMPTING};
use crate::shutdown;
use crate::static_pods::{StaticPods, is_mirror, is_static, mirrors};
use crate::worker::actions::Shared;
use crate::worker::{Found, PodView, Worker, WorkerHandle};

/// Events can be lost only where the runtime says so; this is the belt beside those braces.
const RELIST: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(2);
/// How long the API has to show its node before a pod is refused: the node takes no other pod meanwhile.
const READ_NODE: Duration = Duration::from_secs(5);
/// After a clean-up that left something.
const CLEAN_UP_AGAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether those have ended that went for a critical pod.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(500);

/// The workers, for readers in other tasks.
#[derive(Clone, Default)]
pub struct Pods {
    workers: Arc<RwLock<HashMap<String, WorkerHandle>>>,
    /// Critical pods, by uid, that have no worker yet and for which others are ending: what these leave is theirs.
    to_come: Arc<RwLock<BTreeMap<String, Arc<Pod>>>>,
}

impl Pods {
    /// Every pod as this node knows it, in no order.
    pub fn all(&self) -> Vec<PodView> {
        self.workers.read().values().map(|w| w.view.lock().clone()).collect()
    }

    /// The objects alone, for who looks often.
    pub fn objects(&self) -> Vec<Arc<Pod>> {
        self.workers.read().values().map(|w| w.view.lock().pod.clone()).collect()
    }

    /// The pod of that name; of several, the one that is not being deleted.
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodView> {
        let named = |view: &PodView| {
            let meta = &view.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        let mut found: Vec<PodView> = self.all().into_iter().filter(named).collect();
        found.sort_by_key(|view| view.pod.metadata.deletion_timestamp.is_some());
        found.into_iter().next()
    }

    pub fn len(&self) -> usize {
        self.workers.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn mail(&self, uid: &str, put: impl FnOnce(&mut crate::worker::mailbox::Mail)) {
        let mailbox = self.workers.read().get(uid).map(|w| w.mailbox.clone());
        if let Some(mailbox) = mailbox {
            mailbox.put(put);
        }
    }

    /// Grants a running pod what it asks for, if there is room beside all others. One at a time.
    pub fn grant(&self, wanted: &DesiredPod, allocatable: NodeCapacity) -> Result<(), Pending> {
        let workers = self.workers.write();
        let others = workers.iter().filter(|(uid, _)| *uid != wanted.uid());
        let others = others.map(|(_, worker)| DesiredPod::new(worker.view.lock().pod.clone()));
        let others: Vec<DesiredPod> =
            others.filter(|pod| pod.terminal_phase().is_none()).chain(self.critical_to_come("")).collect();
        judge(wanted, allocatable, &others)?;
        if let Some(worker) = workers.get(wanted.uid()) {
            // The next one sees it.
            worker.view.lock().pod = wanted.object.clone();
        }
        Ok(())
    }

    /// Critical pods for which others are ending, but for the one that is asked about.
    fn critical_to_come(&self, uid: &str) -> Vec<DesiredPod> {
        let to_come = self.to_come.read();
        to_come
            .iter()
            .filter(|(other, _)| *other != uid)
            .map(|(_, pod)| DesiredPod::new(pod.clone()))
            .collect()
    }

    /// Nothing of the pod runs any more, and it will not again.
    pub fn has_stopped(&self, uid: &str) -> bool {
        let workers = self.workers.read();
        let Some(worker) = workers.get(uid) else { return true };
        let view = worker.view.lock();
        DesiredPod::new(view.pod.clone()).terminal_phase().is_some() && !view.any_running()
    }

    /// Ends a pod for good, unless it ends already.
    pub fn fail(&self, uid: &str, verdict: Verdict) {
        self.mail(uid, |mail| mail.verdict = Some(verdict));
    }

    pub(crate) fn uids(&self) -> BTreeSet<String> {
        self.workers.read().keys().cloned().collect()
    }
}

/// Changes of the API's objects since the last look; merged, so bounded by what the node has.
#[derive(Default)]
struct Changes {
    /// By uid; `None` for a pod that left the API.
    pods: Mutex<BTreeMap<String, Option<Arc<Pod>>>>,
    /// Uids of static pods whose mirror changed.
    mirrors: Mutex<BTreeSet<String>>,
    /// ConfigMaps and Secrets that changed.
    objects: Mutex<BTreeSet<(&'static str, ObjectKey)>>,
    arrived: Notify,
}

/// What becomes of a pod that has come.
enum Taking {
    Taken,
    Refused(Verdict),
    /// It is critical, and there is room for it when these have ended.
    AfterThese {
        victims: Vec<DesiredPod>,
        resource: String,
    },
}

pub struct Manager {
    shared: Arc<Shared>,
    pods: Pods,
    changes: Arc<Changes>,
    workers: JoinSet<()>,
    /// Whose worker a task is.
    uids: HashMap<Id, String>,
    /// The list of what the runtime has that is being made for all workers, one at a time.
    listing: JoinSet<BTreeMap<String, Found>>,
    /// Another list is wanted: the one being made may have begun too early.
    list_again: bool,
    /// Pods whose worker panicked, or of which something was found before they were known. Their worker begins with what
    /// the next list finds, so that nothing runs twice.
    takeovers: BTreeSet<String>,
    /// Uids that the runtime had at start and that no known pod has.
    unclaimed: BTreeSet<String>,
    /// Pods that wait, by uid: static ones for the end of one of the same name, others that came before the API's list was
    /// complete for what they name, which comes with it.
    waiting: BTreeMap<String, Arc<Pod>>,
    /// Uids of critical pods that are to come, and of the pods that go for each.
    making_room: BTreeMap<String, BTreeSet<String>>,
    /// The clean-up under way, one at a time.
    cleanup: JoinSet<bool>,
    /// When what the last one has left is looked for again.
    clean_up_at: Option<Instant>,
}

impl Manager {
    /// Registers its handlers; call before the informers are fed.
    pub fn new(shared: Arc<Shared>, pods: Pods) -> Self {
        let changes = Arc::new(Changes::default());
        let (heard, statics) = (changes.clone(), shared.statics.clone());
        shared.objects.pods.on_change(move |change| heard.pod(change, &statics));
        let heard = changes.clone();
        shared.statics.on_change(move |uid, pod| {
            heard.pods.lock().insert(uid.to_owned(), pod.cloned());
            heard.arrived.notify_one();
        });
        watch_objects(&shared.objects.config_maps, "ConfigMap", &changes);
        watch_objects(&shared.objects.secrets, "Secret", &changes);
        Self {
            shared,
            pods,
            changes,
            workers: JoinSet::new(),
            uids: HashMap::new(),
            listing: JoinSet::new(),
            list_again: false,
            takeovers: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            making_room: BTreeMap::new(),
            cleanup: JoinSet::new(),
            clean_up_at: None,
        }
    }

    /// Runs until the token is cancelled. Containers go on running then.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut events = self.shared.runtime.events();
        let api = self.shared.objects.pods.clone();
        let synced = api.synced();
        tokio::pin!(synced);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = &mut synced => {}
            () = tokio::time::sleep(self.shared.config.api_wait) => {}
        }
        let mut is_synced = api.is_synced();
        let mut found = tokio::select! {
            () = shutdown.cancelled() => return,
            found = find_all(self.shared.clone()) => found,
        };
        let wanted = self.wanted();
        match is_synced {
            true => info!(pods = wanted.len(), found = found.len(), "the API's pods are known"),
            false => warn!(
                pods = wanted.len(),
                found = found.len(),
                "the API does not answer: working on what an earlier agent has noted"
            ),
        }
        for pod in wanted {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let found = found.remove(&uid).unwrap_or_default();
            self.start_worker(pod, found, &shutdown).await;
        }
        self.unclaimed = found.into_keys().collect();
        let mut relist = tokio::time::interval(RELIST);
        let mut look_for_room = tokio::time::interval(LOOK_FOR_ROOM);
        look_for_room.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.take_changes(&shutdown).await;
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.changes.arrived.notified() => {}
                () = &mut synced, if !is_synced => {
                    is_synced = true;
                    info!("the API's pods are known");
                    self.look_at_waiting();
                    self.relist();
                }
                _ = relist.tick() => self.relist(),
                event = events.next() => match event {
                    Some(event) => self.route(event),
                    None => break,
                },
                Some(found) = self.listing.join_next() => self.take_list(found, &shutdown).await,
                Some(ended) = self.workers.join_next_with_id() => self.worker_ended(ended),
                Some(done) = self.cleanup.join_next() => {
                    // A driver that has yet to come, a runtime that did not answer.
                    self.clean_up_at = (!matches!(done, Ok(true))).then(|| Instant::now() + CLEAN_UP_AGAIN);
                }
                _ = look_for_room.tick(), if !self.making_room.is_empty() => self.look_for_room(&shutdown).await,
                () = at(self.clean_up_at), if self.clean_up_at.is_some() => {
                    self.clean_up_at = None;
                    self.clean_up();
                }
            }
        }
        while self.workers.join_next().await.is_some() {}
    }

    /// The pods that run here: the API's without those that only mirror static ones, and the static ones.
    fn wanted(&self) -> Vec<Arc<Pod>> {
        let statics = self.shared.statics.all().into_iter().map(|pod| self.with_mirrors_status(pod));
        let of_api = self.shared.objects.pods.filter(|pod| !is_mirror(pod));
        of_api.into_iter().chain(statics).collect()
    }

    fn is_wanted(&self, uid: &str) -> bool {
        let of_api = |pod: &Pod| pod.metadata.uid.as_deref() == Some(uid) && !is_mirror(pod);
        self.shared.statics.get(uid).is_some() || !self.shared.objects.pods.filter(of_api).is_empty()
    }

    /// A static pod with what the API has of its status.
    fn with_mirrors_status(&self, pod: Arc<Pod>) -> Arc<Pod> {
        let mirror = self.shared.objects.pods.get(&ObjectKey::of(&*pod));
        match mirror.filter(|mirror| mirrors(mirror) == pod.metadata.uid.as_deref()) {
            Some(mirror) => Arc::new(Pod { status: mirror.status.clone(), ..(*pod).clone() }),
            None => pod,
        }
    }

    /// Another pod of that name is not gone yet.
    fn has_to_wait(&self, pod: &Pod) -> bool {
        if !is_static(pod) {
            return false;
        }
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let other = self.pods.find(namespace.unwrap_or_default(), name.unwrap_or_default());
        other.is_some_and(|other| other.pod.metadata.uid != meta.uid)
    }

    async fn start_worker(&mut self, pod: Arc<Pod>, found: Found, shutdown: &CancellationToken) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let taking = self.take(&DesiredPod::new(pod.clone()), &found).await;
        if let Taking::AfterThese { victims, resource } = taking {
            self.make_room(pod, victims, &resource);
            return;
        }
        self.making_room.remove(&uid);
        let (mut worker, handle) = Worker::new(self.shared.clone(), pod, found);
        if let Taking::Refused(verdict) = taking {
            self.shared.metrics.rejected(&verdict.reason);
            worker.refuse(verdict);
        }
        self.pods.workers.write().insert(uid.clone(), handle);
        // Only now: it counts itself from here on.
        self.pods.to_come.write().remove(&uid);
        let shutdown = shutdown.child_token();
        let task = self.workers.spawn(worker.run(shutdown));
        self.uids.insert(task.id(), uid);
    }

    /// Has pods end for a critical one that misses a resource; it comes after them.
    fn make_room(&mut self, pod: Arc<Pod>, victims: Vec<DesiredPod>, resource: &str) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        for victim in &victims {
            warn!(pod = %victim.key(), critical = %ObjectKey::of(&*pod), "a pod goes for a critical one");
            let recorder = &self.shared.recorder;
            recorder.pod(victim, EventType::Warning, PREEMPTING, preemption::MESSAGE);
            self.shared.metrics.preempted(resource);
            let verdict = Verdict::eviction(PREEMPTING, preemption::MESSAGE, victim.spec_grace());
            self.pods.fail(victim.uid(), verdict);
        }
        let victims = victims.iter().map(|victim| victim.uid().to_owned()).collect();
        self.making_room.insert(uid.clone(), victims);
        self.pods.to_come.write().insert(uid, pod);
    }

    /// A critical pod does not come after all: what was held for it is free.
    fn give_up_room(&mut self, uid: &str) {
        self.making_room.remove(uid);
        self.pods.to_come.write().remove(uid);
    }

    /// Critical pods for which there is room now are taken, before anybody who has come meanwhile.
    async fn look_for_room(&mut self, shutdown: &CancellationToken) {
        let has_room = |victims: &BTreeSet<String>| victims.iter().all(|uid| self.pods.has_stopped(uid));
        let ready: Vec<String> = self
            .making_room
            .iter()
            .filter(|(_, victims)| has_room(victims))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in ready {
            // What has come of it since is newer, and taken first.
            if self.changes.pods.lock().contains_key(&uid) {
                continue;
            }
            let pod = self.pods.to_come.read().get(&uid).cloned();
            if let Some(pod) = pod {
                self.start_worker(pod, Found::default(), shutdown).await;
            }
        }
    }

    /// Whether a pod that has just come is taken. What was taken once is not judged again.
    async fn take(&self, pod: &DesiredPod, found: &Found) -> Taking {
        let status = pod.object.status.as_ref();
        let was_here = status.is_some_and(|s| s.start_time.is_some() || s.container_statuses.is_some());
        if was_here || !found.containers.is_empty() || pod.is_deleted() {
            if pod.terminal_phase().is_none()
                && let Err(verdict) = self.shared.cpus.grant(pod, &Near::new())
            {
                // It was given some by an agent whose note is lost, and others have them by now: it shares.
                warn!(pod = %pod.key(), why = verdict.message, "a pod that runs has no CPUs of its own");
            }
            if pod.terminal_phase().is_none()
                && let Err(verdict) = self.shared.memory.grant(pod, &Near::new())
            {
                warn!(pod = %pod.key(), why = verdict.message, "a pod that runs is promised no memory of its own");
            }
            return Taking::Taken;
        }
        // As upstream counts them: one that was deleted by force is gone, though it may still be stopping.
        let wanted: BTreeSet<String> =
            self.wanted().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let others = self.pods.objects().into_iter().map(DesiredPod::new);
        let others: Vec<DesiredPod> = others
            .filter(|p| p.terminal_phase().is_none() && p.uid() != pod.uid() && wanted.contains(p.uid()))
            // What is made free for a critical pod is not for whoever comes in between.
            .chain(self.pods.critical_to_come(pod.uid()))
            .collect();
        if *self.shared.shutting_down.borrow() {
            return Taking::Refused(shutdown::refusal());
        }
        let name = &self.shared.config.node_name;
        let seen = self.shared.objects.nodes.get(&ObjectKey::new("", name));
        let mut object = seen.unwrap_or_else(|| Arc::new(new_node(&self.shared.config)));
        let mut admitted = admit(&self.node_as(&object, &others), pod);
        if admitted.as_ref().is_err_and(is_of_object)
            && let Some(newest) = self.read_node().await
        {
            object = Arc::new(newest);
            admitted = admit(&self.node_as(&object, &others), pod);
        }
        match admitted {
            Ok(()) => match self.grant(pod).await {
                Ok(()) => {
                    self.shared.metrics.taken(pod);
                    Taking::Taken
                }
                Err(verdict) => Taking::Refused(verdict),
            },
            Err(verdict) if is_critical(pod) => {
                let missing = missing(&self.node_as(&object, &others), pod);
                // Those that are still to come have nothing to give.
                let with_workers: Vec<DesiredPod> = {
                    let workers = self.pods.workers.read();
                    others.iter().filter(|pod| workers.contains_key(pod.uid())).cloned().collect()
                };
                let victims = preemption::victims(pod, &with_workers, &missing);
                match (missing.into_keys().next(), victims) {
                    (Some(resource), Some(victims)) => Taking::AfterThese { victims, resource },
                    _ => Taking::Refused(verdict),
                }
            }
            Err(verdict) => Taking::Refused(verdict),
        }
    }

    /// `object`: as the API shows it; `pods`: those that count.
    fn node_as<'a>(&'a self, object: &'a ApiNode, pods: &'a [DesiredPod]) -> Node<'a> {
        Node {
            config: &self.shared.config,
            object,
            allocatable: self.shared.allocatable,
            pressure: *self.shared.pressure.borrow(),
            has_apparmor: self.shared.has_apparmor,
            pods,
        }
    }

    /// The node as the API has it now, if it answers in time.
    async fn read_node(&self) -> Option<ApiNode> {
        let api: Api<ApiNode> = Api::all(self.shared.client.clone());
        let read = tokio::time::timeout(READ_NODE, api.get(&self.shared.config.node_name)).await;
        read.ok().and_then(Result::ok)
    }

    /// Gives a pod the devices, CPUs and memory that it asks for, from nodes near to each other where that is wanted.
    async fn grant(&self, pod: &DesiredPod) -> Result<(), Verdict> {
        let Shared { devices, cpus, memory, config, metrics, .. } = &*self.shared;
        let began = Instant::now();
        let placed = self.place(pod).await;
        if config.topology_policy != Policy::None {
            metrics.placed(began.elapsed(), placed.is_err());
        }
        let (near, wishes) = placed?;
        devices.grant(pod, &near, &wishes)?;
        let granted = cpus.grant(pod, &near);
        metrics.pinned_cpus(cpus.asking(pod), granted.is_err());
        granted?;
        let granted = memory.grant(pod, &near);
        metrics.pinned_memory(memory.asking(pod), granted.is_err());
        granted
    }

    /// The nodes that each container is to get things from, and which devices of theirs plugins prefer.
    async fn place(&self, pod: &DesiredPod) -> Result<(Near, Wishes), Verdict> {
        let Shared { devices, cpus, memory, config, metrics, .. } = &*self.shared;
        let (mut near, mut wishes) = (Near::new(), Wishes::new());
        let scope = Some(config.topology_scope).filter(|_| config.topology_policy != Policy::None);
        let choose = |hints: &[Vec<Hint>]| {
            let chosen = choose(config.topology_policy, config.numa_distances.as_ref(), hints);
            if config.topology_policy == Policy::SingleNumaNode {
                metrics.aligned(config.topology_scope, chosen.is_err());
            }
            chosen
        };
        if scope == Some(Scope::Pod) {
            let mut hints = devices.hints_of_pod(pod);
            hints.extend(cpus.hints_of_pod(pod));
            hints.extend(memory.hints_of_pod(pod));
            if let Some(nodes) = choose(&hints)? {
                let containers = pod.containers.iter().map(|container| container.name().to_owned());
                near = containers.map(|name| (name, nodes.clone())).collect();
            }
        }
        for (index, container) in pod.containers.iter().enumerate() {
            if scope == Some(Scope::Container) {
                let mut hints = devices.hints(pod, index, &near, &wishes);
                hints.extend(cpus.hints(pod, index, &near));
                hints.extend(memory.hints(pod, index, &near));
                let nodes = choose(&hints)?;
                near.extend(nodes.map(|nodes| (container.name().to_owned(), nodes)));
            }
            devices.ask(pod, index, &near, &mut wishes).await;
        }
        Ok((near, wishes))
    }

    /// Has the runtime's containers listed, from now on, and what was found told to all workers.
    fn list(&mut self) {
        self.list_again = !self.listing.is_empty();
        if !self.list_again {
            self.listing.spawn(find_all(self.shared.clone()));
        }
    }

    async fn take_list(
        &mut self,
        found: Result<BTreeMap<String, Found>, JoinError>,
        shutdown: &CancellationToken,
    ) {
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "listing containers panicked");
                if self.list_again || !self.takeovers.is_empty() {
                    self.list();
                }
                return;
            }
        };
        for uid in self.pods.uids() {
            let listed = found.remove(&uid).unwrap_or_default().containers;
            self.pods.mail(&uid, |mail| mail.listed = Some(listed));
        }
        if self.list_again {
            return self.list();
        }
        let takeovers = std::mem::take(&mut self.takeovers);
        for pod in self.wanted() {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            if takeovers.contains(&uid) && !shutdown.is_cancelled() {
                self.start_worker(pod, found.remove(&uid).unwrap_or_default(), shutdown).await;
            }
        }
    }

    fn worker_ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a pod's worker panicked; another one takes over");
                error.id()
            }
        };
        let Some(uid) = self.uids.remove(&id) else { return };
        self.pods.workers.write().remove(&uid);
        self.shared.statics.touch();
        if self.is_wanted(&uid) {
            self.takeovers.insert(uid);
            self.list();
        }
        self.look_at_waiting();
    }

    fn look_at_waiting(&mut self) {
        let mut changes = self.changes.pods.lock();
        for (uid, pod) in std::mem::take(&mut self.waiting) {
            // What has come since is newer.
            changes.entry(uid).or_insert(Some(pod));
        }
    }

    async fn take_changes(&mut self, shutdown: &CancellationToken) {
        let pods = std::mem::take(&mut *self.changes.pods.lock());
        for (uid, pod) in pods {
            match pod {
                None => {
                    self.waiting.remove(&uid);
                    self.give_up_room(&uid);
                    self.pods.mail(&uid, |mail| mail.gone = true);
                }
                Some(pod) if self.pods.workers.read().contains_key(&uid) => {
                    self.pods.mail(&uid, |mail| mail.pod = Some(pod));
                }
                Some(_) if self.takeovers.contains(&uid) => {}
                Some(pod) if self.making_room.contains_key(&uid) => match pod.metadata.deletion_timestamp {
                    None => drop(self.pods.to_come.write().insert(uid, pod)),
                    // Nobody else goes for it.
                    Some(_) => {
                        self.give_up_room(&uid);
                        self.start_worker(pod, Found::default(), shutdown).await;
                    }
                },
                Some(pod) if !is_static(&pod) && !self.shared.objects.pods.is_synced() => {
                    self.waiting.insert(uid, pod);
                }
                Some(_) if self.unclaimed.remove(&uid) => {
                    self.takeovers.insert(uid);
                    self.list();
                }
                Some(pod) if self.has_to_wait(&pod) => {
                    self.waiting.insert(uid, pod);
                }
                Some(pod) => self.start_worker(pod, Found::default(), shutdown).await,
            }
        }
        for uid in std::mem::take(&mut *self.changes.mirrors.lock()) {
            if let Some(pod) = self.shared.statics.get(&uid) {
                let pod = self.with_mirrors_status(pod);
                self.pods.mail(&uid, |mail| mail.pod = Some(pod));
            }
        }
        let objects = std::mem::take(&mut *self.changes.objects.lock());
        if objects.is_empty() {
            return;
        }
        for (uid, worker) in self.pods.workers.read().iter() {
            let pod = worker.view.lock().pod.clone();
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(spec) = &pod.spec else { continue };
            let concerned = references(spec)
                .into_iter()
                .any(|(kind, name)| objects.contains(&(kind, ObjectKey::new(namespace, name))));
            if concerned {
                tracing::debug!(uid, "an object of the pod changed");
                worker.mailbox.put(|mail| mail.objects_changed = true);
            }
        }
    }

    fn route(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Started { id, pod_uid }
            | RuntimeEvent::Exited { id, pod_uid, .. }
            | RuntimeEvent::Oom { id, pod_uid } => {
                self.pods.mail(&pod_uid, |mail| {
                    mail.containers.insert(id);
                });
            }
            RuntimeEvent::Resync => self.list(),
        }
    }

    fn relist(&mut self) {
        self.list();
        self.clean_up();
    }

    fn clean_up(&mut self) {
        // What is merely unheard of is not gone.
        if !self.cleanup.is_empty() || !self.shared.objects.pods.is_synced() {
            return;
        }
        let orphans = Orphans { shared: self.shared.clone(), pods: self.pods.clone() };
        self.cleanup.spawn(async move {
            orphans.remove_all().await.unwrap_or_else(|error| {
                warn!(error, "orphans were not looked for, trying again");
                false
            })
        });
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What the runtime has, by pod uid; asked until it answers.
async fn find_all(shared: Arc<Shared>) -> BTreeMap<String, Found> {
    loop {
        match try_find_all(&shared).await {
            Ok(found) => return found,
            Err(error) => {
                warn!(%error, "the runtime's containers were not listed, trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn try_find_all(shared: &Shared) -> Result<BTreeMap<String, Found>, hawser_runtime::Error> {
    let began = Instant::now();
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for container in shared.runtime.list_containers().await? {
        found.entry(container.pod_uid.clone()).or_default().containers.push(container);
    }
    let sandboxes = shared.runtime.list_pod_sandboxes().await?;
    let ready: BTreeSet<String> =
        sandboxes.iter().filter(|s| s.ready).map(|s| s.config.pod_uid.clone()).collect();
    for (uid, found) in &mut found {
        found.sandbox_lost = !ready.contains(uid);
    }
    shared.metrics.listed(began.elapsed());
    Ok(found)
}

impl Changes {
    fn pod(&self, change: &Change<'_, Pod>, statics: &StaticPods) {
        let uid = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        let shown: Vec<String> = [change.old, change.new]
            .into_iter()
            .flatten()
            .filter_map(|pod| mirrors(pod).map(str::to_owned))
            .collect();
        if !shown.is_empty() {
            self.mirrors.lock().extend(shown);
            statics.touch();
        }
        let runs = |pod: &&Arc<Pod>| !is_mirror(pod);
        let (old, new) = (change.old.filter(runs), change.new.filter(runs));
        let mut pods = self.pods.lock();
        if let Some(old) = old
            && new.is_none_or(|new| uid(new) != uid(old))
        {
            pods.insert(uid(old), None);
        }
        if let Some(new) = new {
            pods.insert(uid(new), Some(new.clone()));
        }
        drop(pods);
        self.arrived.notify_one();
    }
}

fn watch_objects<K: Kind>(informer: &Informer<K>, kind: &'static str, changes: &Arc<Changes>) {
    let changes = changes.clone();
    informer.on_change(move |change| {
        changes.objects.lock().insert((kind, change.key.clone()));
        changes.arrived.notify_one();
    });
}

/// ConfigMaps and Secrets that the pod names, by kind and name.
fn references(spec: &PodSpec) -> BTreeSet<(&'static str, &str)> {
    let mut found = BTreeSet::new();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        for source in container.env_from.iter().flatten() {
            found.extend(source.config_map_ref.iter().map(|r| ("ConfigMap", r.name.as_str())));
            found.extend(source.secret_ref.iter().map(|r| ("Secret", r.name.as_str())));
        }
        for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            found.extend(source.config_map_key_ref.iter().map(|r| ("ConfigMap", r.name.as_str())));
            found.extend(source.secret_key_ref.iter().map(|r| ("Secret", r.name.as_str())));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        found.extend(volume.config_map.iter().map(|s| ("ConfigMap", s.name.as_str())));
        found.extend(
            volume.secret.iter().filter_map(|s| s.secret_name.as_deref()).map(|name| ("Secret", name)),
        );
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            found.extend(source.config_map.iter().map(|s| ("ConfigMap", s.name.as_str())));
            found.extend(source.secret.iter().map(|s| ("Secret", s.name.as_str())));
        }
    }
    found
}
