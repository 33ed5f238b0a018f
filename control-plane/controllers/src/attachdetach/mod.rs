//! Attaches volumes of CSI drivers to the nodes whose pods use them, and lets go of them after.
//!
//! What is attached where is what the VolumeAttachments say; a driver's own attacher carries them out. Before one is
//! deleted the node must not have the volume in use: its kubelet lists what it has mounted, and mounts only what
//! `volumesAttached` lists. Both are in the node's status, and the volume is taken from the list by a write that fails
//! where the node has changed since, so that one of the two always sees the other. A node that is not ready is waited for
//! six minutes, one that is out of service, or is gone and had nothing in use, not at all.
//!
//! PersistentVolumes with one driver and handle are one volume, and it is volumes that are worked on: what is attached
//! outlives the PersistentVolume that it was attached for. [`wake`] knows which volumes a change is about, [`known`] which
//! volume an attachment is of, [`plan`] what is to be done.

mod known;
pub(crate) mod plan;
#[cfg(test)]
mod tests;
mod wake;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{
    api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::{VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Context, Starts,
    caches::claim_term,
    events::Recorder,
    meta::{MetaExt, only_this, pod_node},
    node::ready_status,
    persistentvolume::matching::claim_ref,
    queue::Queue,
    worker::{Next, Reconciler},
};
use known::Known;
use plan::{Access, Attachable, Step};
use wake::{Key, Waker, attaches, volume_of};

/// What a lost node has in use is let go after this, as upstream does.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(360);

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("attachdetach") {
        return;
    }
    let context = starts.context.clone();
    let waker = Arc::new(Waker::new(&context));
    let wakes = waker.clone();
    context.caches.volumes.on_change(move |change| wakes.volume_changed(change));
    let wakes = waker.clone();
    context.caches.claims.on_change(move |change| {
        change.old.into_iter().chain(change.new).for_each(|claim| wakes.claim(claim));
    });
    let wakes = waker.clone();
    context.caches.attachments.on_change(move |change| wakes.attachment_changed(change));
    let wakes = waker.clone();
    context.caches.pods.on_change(move |change| {
        plan::moved(change.old, change.new).into_iter().for_each(|pod| wakes.pod(pod));
    });
    let wakes = waker.clone();
    context.caches.nodes.on_change(move |change| wakes.node_changed(change));
    let wakes = waker.clone();
    context.caches.drivers.on_change(move |change| {
        if attaches(change.old) != attaches(change.new) {
            wakes.driver(&change.key.name);
        }
    });
    let recorder = context.recorder.of("attachdetach-controller");
    let workers = context.config.workers;
    let (queue, known) = (waker.queue.clone(), waker.known.clone());
    let controller = Controller { context, recorder, queue: queue.clone(), known, held_up: Mutex::default() };
    starts.add(controller, queue, workers);
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    queue: Queue<Key>,
    known: Arc<Known>,
    /// Since when nodes that should let go do not. Bounded by the attachments.
    held_up: Mutex<HashMap<Key, BTreeMap<String, Instant>>>,
}

/// A pod that uses a volume, and by which PersistentVolume.
#[derive(Clone)]
struct User {
    pod: Arc<Pod>,
    volume: Arc<PersistentVolume>,
}

type Users = BTreeMap<String, Vec<User>>;
/// Attachments of a volume, by node.
type Attachments = BTreeMap<String, Arc<VolumeAttachment>>;

#[async_trait]
impl Reconciler for Controller {
    type Key = Key;

    const NAME: &'static str = "attachdetach";

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        match key {
            Key::Volume(volume) => self.volume(key, volume).await,
            Key::Attachment(name) => self.recognize(key, name).await,
        }
    }
}

/// The nodes differ, and one that cannot be written must not hold up the others; the first error is told.
fn both(one: Result<Next, Error>, other: Result<Next, Error>) -> Result<Next, Error> {
    Ok(one?.or(other?))
}

impl Controller {
    async fn volume(&self, key: &Key, volume: &Attachable) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let known = self.known.attachments_of(volume).into_iter();
        let attachments = known.filter_map(|name| caches.attachments.get(&ObjectKey::new("", name)));
        let held: Attachments = attachments.map(|it| (it.spec.node_name.clone(), it)).collect();
        let users = if self.is_attached_at_all(volume) { self.users(volume) } else { Users::new() };
        let wanted = users.iter().map(|(node, users)| (node.as_str(), access(users))).collect();
        let stages = held.iter().map(|(node, it)| (node.as_str(), plan::stage(it))).collect();
        let steps = plan::steps(&wanted, &stages);
        self.forget(key, |node| steps.get(node) != Some(&Step::Release));
        let mut outcome = Ok(Next::Done);
        for (node, step) in &steps {
            let acted = match (step, held.get(node)) {
                (Step::Release, Some(attachment)) => self.release(key, volume, attachment).await,
                _ => self.act(volume, (node, *step), &users, &held).await.map(|()| Next::Done),
            };
            outcome = both(outcome, acted);
        }
        both(outcome, self.correct(volume, &held).await.map(|()| Next::Done))
    }

    async fn act(
        &self,
        volume: &Attachable,
        (node, step): (&str, Step),
        users: &Users,
        held: &Attachments,
    ) -> Result<(), Error> {
        let here = users.get(node).map(Vec::as_slice).unwrap_or_default();
        match (step, held.get(node)) {
            (Step::Attach, _) => self.attach(volume, node, here).await?,
            (Step::Refuse, _) => self.tell_refused(users, here, held),
            (Step::Show, _) => self.show(volume, node, here).await?,
            (Step::Wait, Some(attachment)) => self.tell_failure(attachment, here),
            (Step::Wait, None) | (Step::Release, _) => {}
        }
        Ok(())
    }

    /// Nodes that do not have to let go, or not any more, hold nothing up.
    fn forget(&self, key: &Key, is_over: impl Fn(&str) -> bool) {
        let mut held_up = self.held_up.lock();
        let Some(nodes) = held_up.get_mut(key) else { return };
        nodes.retain(|node, _| !is_over(node));
        if nodes.is_empty() {
            held_up.remove(key);
        }
    }

    /// How long a node that should let go is still waited for.
    fn patience_with(&self, key: &Key, node: &str) -> Duration {
        let mut held_up = self.held_up.lock();
        let nodes = held_up.entry(key.clone()).or_default();
        let since = nodes.entry(node.to_owned()).or_insert_with(Instant::now);
        UNMOUNT_PATIENCE.saturating_sub(since.elapsed())
    }

    fn is_attached_at_all(&self, volume: &Attachable) -> bool {
        let driver = self.context.caches.drivers.get(&ObjectKey::new("", volume.driver.as_str()));
        attaches(driver.as_ref())
    }

    /// The pods that use the volume, by node.
    fn users(&self, volume: &Attachable) -> Users {
        let caches = &self.context.caches;
        let mut users = Users::new();
        for volume in caches.volumes_by_unique_name.get(&volume.unique_name()) {
            let Some(claim) = self.claim_of(&volume) else { continue };
            for pod in caches.pods_by_claim.get(&claim_term(&ObjectKey::of(&*claim))) {
                let Some(node) = pod_node(&pod).filter(|_| !plan::has_ended(&pod)) else { continue };
                if plan::mounts(&pod, &claim) && caches.nodes.get(&ObjectKey::new("", node)).is_some() {
                    let user = User { pod: pod.clone(), volume: volume.clone() };
                    users.entry(node.to_owned()).or_default().push(user);
                }
            }
        }
        users
    }

    /// The claim that the volume is bound to, both ways.
    fn claim_of(&self, volume: &PersistentVolume) -> Option<Arc<PersistentVolumeClaim>> {
        let reference = claim_ref(volume)?;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = ObjectKey::new(text(&reference.namespace), text(&reference.name));
        let claim = self.context.caches.claims.get(&key)?;
        let is_bound = Some(claim.uid()) == reference.uid.as_deref()
            && volume_of(&claim).is_some_and(|key| key.name == volume.name());
        is_bound.then_some(claim)
    }

    /// Finds out what an attachment attaches whose PersistentVolume is gone: its node lists what it may have in use. Where
    /// it lists no volume that the attachment could be of, nothing is left that could be lost.
    async fn recognize(&self, key: &Key, name: &str) -> Result<Next, Error> {
        let attachment = self.context.caches.attachments.get(&ObjectKey::new("", name));
        let source = attachment.as_ref().and_then(|it| it.spec.source.persistent_volume_name.as_deref());
        let (Some(attachment), Some(source)) = (&attachment, source) else {
            self.forget(key, |_| true);
            return Ok(Next::Done);
        };
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        // Where it is there, the cache is behind, and its next event brings the volume.
        if volumes.find(source).await?.is_some() {
            return Ok(Next::Done);
        }
        let place = &attachment.spec.node_name;
        let node = self.nodes().find(place).await?.map(Arc::new).or_else(|| self.known.last_of(place));
        let Some(node) = node else {
            let left = self.patience_with(key, place);
            if left.is_zero() {
                self.delete(attachment).await?;
            }
            return Ok(Next::after(Some(left).filter(|left| !left.is_zero())));
        };
        self.forget(key, |_| true);
        match plan::listed(&node).find(|volume| self.known.learn(attachment, volume)) {
            Some(volume) => self.queue.add(Key::Volume(volume)),
            None if attachment.is_deleting() => {}
            None => self.delete(attachment).await?,
        }
        Ok(Next::Done)
    }

    fn attachments(&self) -> Api<VolumeAttachment> {
        Api::all(self.context.client.clone())
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.context.client.clone())
    }

    async fn attach(&self, volume: &Attachable, node: &str, users: &[User]) -> Result<(), Error> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(volume.attachment_name(node)), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: volume.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: users.first().and_then(|user| user.volume.metadata.name.clone()),
                    inline_volume_spec: None,
                },
            },
            status: None,
        };
        match self.attachments().create(&attachment).await {
            // The cache is behind; its next event brings the volume back.
            Err(error) if error.is_already_exists() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Lists the volume in the node's status, where its kubelet looks.
    async fn show(&self, volume: &Attachable, node: &str, users: &[User]) -> Result<(), Error> {
        let name = volume.unique_name();
        let known = self.context.caches.nodes.get(&ObjectKey::new("", node));
        if known.is_none_or(|known| plan::is_shown(&known, &name)) {
            return Ok(());
        }
        let Some(node) = self.nodes().find(node).await? else { return Ok(()) };
        if plan::is_shown(&node, &name) {
            return Ok(());
        }
        let shown: Vec<&str> = plan::shown(&node).chain([name.as_str()]).collect();
        self.write_shown(&node, &shown).await?;
        for User { pod, volume } in users {
            let message = format!("AttachVolume.Attach succeeded for volume {:?} ", volume.name());
            self.recorder.normal(&**pod, "SuccessfulAttachVolume", message);
        }
        Ok(())
    }

    /// Fails where the node is not as it was read.
    async fn write_shown(&self, node: &Node, volumes: &[&str]) -> Result<(), Error> {
        let shown: Vec<Value> =
            volumes.iter().map(|name| json!({ "name": name, "devicePath": "" })).collect();
        let patch = json!({
            "metadata": { "uid": node.uid(), "resourceVersion": node.resource_version() },
            "status": { "volumesAttached": shown },
        });
        self.nodes().merge_patch_status(node.name(), &patch).await.map(drop)
    }

    /// Deletes the attachment once its node has let go of the volume.
    async fn release(
        &self,
        key: &Key,
        volume: &Attachable,
        attachment: &VolumeAttachment,
    ) -> Result<Next, Error> {
        let (name, place) = (volume.unique_name(), &attachment.spec.node_name);
        let found = self.nodes().find(place).await?;
        let last = if found.is_none() { self.known.last_of(place) } else { None };
        let is_free = found
            .as_ref()
            .or(last.as_deref())
            .is_some_and(|node| !plan::is_in_use(node, &name) || plan::is_out_of_service(node));
        if !is_free {
            let left = self.patience_with(key, place);
            if !left.is_zero() {
                return Ok(Next::After(left));
            }
            if found.as_ref().is_some_and(|node| ready_status(node) == "True") {
                // It says itself what it has in use, and brings the volume back when that changes.
                return Ok(Next::Done);
            }
        }
        if let Some(node) = found.filter(|node| plan::is_shown(node, &name)) {
            self.hide(&node, &name).await?;
        }
        self.delete(attachment).await?;
        Ok(Next::Done)
    }

    async fn hide(&self, node: &Node, name: &str) -> Result<(), Error> {
        let shown: Vec<&str> = plan::shown(node).filter(|shown| *shown != name).collect();
        self.write_shown(node, &shown).await
    }

    async fn delete(&self, attachment: &VolumeAttachment) -> Result<(), Error> {
        self.attachments().delete(attachment.name(), &only_this(attachment)).await
    }

    /// Nodes do not list what is not attached to them, whoever deleted the attachment.
    async fn correct(&self, volume: &Attachable, held: &Attachments) -> Result<(), Error> {
        let name = volume.unique_name();
        let mut outcome = Ok(());
        for known in self.context.caches.nodes_by_attached.get(&name) {
            if !held.contains_key(known.name()) {
                outcome = outcome.and(self.correct_at(volume, &name, known.name()).await);
            }
        }
        outcome
    }

    async fn correct_at(&self, volume: &Attachable, name: &str, node: &str) -> Result<(), Error> {
        let Some(node) = self.nodes().find(node).await? else { return Ok(()) };
        // The cache may lack an attachment that is newer than the node.
        let attachment = self.attachments().find(&volume.attachment_name(node.name())).await?;
        if attachment.is_none() && plan::is_shown(&node, name) {
            self.hide(&node, name).await?;
        }
        Ok(())
    }

    fn tell_failure(&self, attachment: &VolumeAttachment, users: &[User]) {
        let error = attachment.status.as_ref().and_then(|status| status.attach_error.as_ref());
        let Some(why) = error.and_then(|error| error.message.as_deref()) else { return };
        for User { pod, volume } in users {
            let message = format!("AttachVolume.Attach failed for volume {:?} : {why}", volume.name());
            self.recorder.warning(&**pod, "FailedAttachVolume", message);
        }
    }

    fn tell_refused(&self, users: &Users, refused: &[User], held: &Attachments) {
        let others = users.iter().filter(|(node, _)| held.contains_key(node.as_str()));
        let others: Vec<&User> = others.flat_map(|(_, users)| users).collect();
        for User { pod, volume } in refused {
            // Names of another namespace are not told.
            let namespace = pod.namespace();
            let near = others.iter().filter(|other| other.pod.namespace() == namespace);
            let names: Vec<&str> = near.map(|other| other.pod.name()).collect();
            let why = if names.is_empty() {
                "Volume is already exclusively attached to one node and can't be attached to another"
                    .to_owned()
            } else {
                format!("Volume is already used by pod(s) {}", names.join(", "))
            };
            let message = format!("Multi-Attach error for volume {:?} {why}", volume.name());
            self.recorder.warning(&**pod, "FailedAttachVolume", message);
        }
    }
}

/// All that use the volume on one node must have it alone, or it may be shared.
fn access(users: &[User]) -> Access {
    let is_exclusive = users.iter().all(|user| plan::access(&user.volume) == Access::Exclusive);
    if is_exclusive { Access::Exclusive } else { Access::Shared }
}
