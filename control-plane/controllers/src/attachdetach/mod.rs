//! Attaches volumes of CSI drivers to the nodes whose pods use them, and lets go of them after.
//!
//! What is attached where is what the VolumeAttachments say; a driver's own attacher carries them out. Before one is
//! deleted the node must not have the volume in use: its kubelet lists what it has mounted, and mounts only what
//! `volumesAttached` lists. Both are in the node's status, and the volume is taken from the list by a write that fails
//! where the node has changed since, so that one of the two always sees the other. A node that is not ready is waited for
//! six minutes, one that is out of service not at all.

pub(crate) mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::{Api, Error, informer::Change, resource::ObjectKey};
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
    caches::{claim_term, claims_of},
    events::Recorder,
    meta::{MetaExt, only_this, pod_node},
    node::ready_status,
    persistentvolume::matching::claim_ref,
    queue::Queue,
    worker::{Next, Reconciler},
};
use plan::{Attachable, Stage, Step};

/// What a lost node has in use is let go after this, as upstream does.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(360);

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("attachdetach") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.volumes.on_change(move |change| {
        if change.old.map(|old| &old.spec) != change.new.map(|new| &new.spec) {
            changed.add(change.key.clone());
        }
    });
    let changed = queue.clone();
    context.caches.claims.on_change(move |change| {
        for claim in change.old.into_iter().chain(change.new) {
            volume_of(claim).into_iter().for_each(|volume| changed.add(volume));
        }
    });
    let changed = queue.clone();
    context.caches.attachments.on_change(move |change| {
        for attachment in change.old.into_iter().chain(change.new) {
            let volume = attachment.spec.source.persistent_volume_name.as_deref();
            volume.into_iter().for_each(|name| changed.add(ObjectKey::new("", name)));
        }
    });
    // Weak: the caches, which own the handlers, are in the context.
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.pods.on_change(move |change| {
        let node = |pod: Option<&Arc<Pod>>| {
            let pod = pod.filter(|pod| !plan::has_ended(pod))?;
            pod_node(pod).map(str::to_owned)
        };
        if node(change.old) != node(change.new)
            && let Some(context) = weak.upgrade()
        {
            change.new.or(change.old).into_iter().for_each(|pod| wake_volumes(&context, &changed, pod));
        }
    });
    let (changed, weak) = (queue.clone(), Arc::downgrade(&context));
    context.caches.nodes.on_change(move |change| {
        if let Some(context) = weak.upgrade() {
            node_changed(&context, &changed, change);
        }
    });
    let recorder = context.recorder.of("attachdetach-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, recorder, held_up: Mutex::default() }, queue, workers);
}

fn volume_of(claim: &PersistentVolumeClaim) -> Option<ObjectKey> {
    let name = claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectKey::new("", name))
}

fn wake_volumes(context: &Context, queue: &Queue<ObjectKey>, pod: &Pod) {
    let claims = claims_of(pod).into_iter().filter_map(|key| context.caches.claims.get(&key));
    claims.filter_map(|claim| volume_of(&claim)).for_each(|volume| queue.add(volume));
}

fn node_changed(context: &Context, queue: &Queue<ObjectKey>, change: &Change<'_, Node>) {
    match (change.old, change.new) {
        (Some(old), Some(new)) if !plan::differs(old, new) => return,
        // Pods may have been there before it.
        (None, Some(_)) => {
            let pods = context.caches.pods_by_node.get(&change.key.name);
            pods.iter().for_each(|pod| wake_volumes(context, queue, pod));
        }
        _ => {}
    }
    for attachment in context.caches.attachments_by_node.get(&change.key.name) {
        let volume = attachment.spec.source.persistent_volume_name.as_deref();
        volume.into_iter().for_each(|name| queue.add(ObjectKey::new("", name)));
    }
}

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    /// Since when nodes that should let go do not, by volume. Bounded by the attachments.
    held_up: Mutex<HashMap<ObjectKey, BTreeMap<String, Instant>>>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "attachdetach";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let mut attachments = caches.attachments_by_volume.get(&key.name);
        let Some(volume) = caches.volumes.get(key) else {
            self.forget(key, &BTreeMap::new());
            self.abandon(&key.name, &attachments).await?;
            return Ok(Next::Done);
        };
        let Some(attachable) = Attachable::of(&volume) else { return Ok(Next::Done) };
        // Others' are theirs to keep.
        attachments.retain(|it| it.name() == attachable.attachment_name(&it.spec.node_name));
        let wanted = if self.is_attached_at_all(&attachable) { self.users(&volume) } else { BTreeMap::new() };
        let nodes: BTreeSet<&str> = wanted.keys().map(String::as_str).collect();
        let held: BTreeMap<&str, Stage> =
            attachments.iter().map(|it| (it.spec.node_name.as_str(), plan::stage(it))).collect();
        let at = |node: &str| attachments.iter().find(|attachment| attachment.spec.node_name == node);
        let mut next = Next::Done;
        let steps = plan::steps(&nodes, &held, attachable.is_exclusive);
        self.forget(key, &steps);
        for (node, step) in steps {
            let pods = wanted.get(&node).map(Vec::as_slice).unwrap_or_default();
            match (step, at(&node)) {
                (Step::Attach, _) => self.attach(&volume, &attachable, &node).await?,
                (Step::Refuse, _) => self.tell_refused(&volume, &wanted, pods, &held),
                (Step::Show, _) => self.show(&volume, &attachable, &node, pods).await?,
                (Step::Wait, Some(attachment)) => self.tell_failure(&volume, attachment, pods),
                (Step::Release, Some(attachment)) => {
                    next = next.or(self.release(key, attachment, &attachable).await?);
                }
                (Step::Wait | Step::Release, None) => {}
            }
        }
        self.correct(&attachable, &held).await?;
        Ok(next)
    }
}

impl Controller {
    /// Nodes that do not have to let go of the volume, or not any more, do not hold it up.
    fn forget(&self, key: &ObjectKey, steps: &BTreeMap<String, Step>) {
        let mut held_up = self.held_up.lock();
        let Some(nodes) = held_up.get_mut(key) else { return };
        nodes.retain(|node, _| steps.get(node) == Some(&Step::Release));
        if nodes.is_empty() {
            held_up.remove(key);
        }
    }

    fn held_up_since(&self, key: &ObjectKey, node: &str) -> Instant {
        let mut held_up = self.held_up.lock();
        *held_up.entry(key.clone()).or_default().entry(node.to_owned()).or_insert_with(Instant::now)
    }

    fn is_attached_at_all(&self, attachable: &Attachable) -> bool {
        let driver = self.context.caches.drivers.get(&ObjectKey::new("", attachable.driver.as_str()));
        driver.and_then(|driver| driver.spec.attach_required) != Some(false)
    }

    /// The pods that use the volume, by node.
    fn users(&self, volume: &PersistentVolume) -> BTreeMap<String, Vec<Arc<Pod>>> {
        let caches = &self.context.caches;
        let mut users: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        let Some(reference) = claim_ref(volume) else { return users };
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let key = ObjectKey::new(text(&reference.namespace), text(&reference.name));
        let is_bound = |claim: &Arc<PersistentVolumeClaim>| {
            Some(claim.uid()) == reference.uid.as_deref()
                && volume_of(claim).is_some_and(|key| key.name == volume.name())
        };
        if caches.claims.get(&key).filter(is_bound).is_none() {
            return users;
        }
        for pod in caches.pods_by_claim.get(&claim_term(&key)) {
            let Some(node) = pod_node(&pod).filter(|_| !plan::has_ended(&pod)) else { continue };
            if caches.nodes.get(&ObjectKey::new("", node)).is_some() {
                users.entry(node.to_owned()).or_default().push(pod.clone());
            }
        }
        users
    }

    /// Of a volume that is gone nothing is left that could be lost.
    async fn abandon(&self, volume: &str, attachments: &[Arc<VolumeAttachment>]) -> Result<(), Error> {
        let is_doomed = |it: &&Arc<VolumeAttachment>| !it.is_deleting() && plan::is_made_here(it.name());
        let doomed: Vec<&Arc<VolumeAttachment>> = attachments.iter().filter(is_doomed).collect();
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        // The cache may be behind.
        if doomed.is_empty() || volumes.find(volume).await?.is_some() {
            return Ok(());
        }
        for attachment in doomed {
            self.delete(attachment).await?;
        }
        Ok(())
    }

    fn attachments(&self) -> Api<VolumeAttachment> {
        Api::all(self.context.client.clone())
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.context.client.clone())
    }

    async fn attach(
        &self,
        volume: &PersistentVolume,
        attachable: &Attachable,
        node: &str,
    ) -> Result<(), Error> {
        let attachment = VolumeAttachment {
            metadata: ObjectMeta { name: Some(attachable.attachment_name(node)), ..ObjectMeta::default() },
            spec: VolumeAttachmentSpec {
                attacher: attachable.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: volume.metadata.name.clone(),
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
    async fn show(
        &self,
        volume: &PersistentVolume,
        attachable: &Attachable,
        node: &str,
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let name = attachable.unique_name();
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
        let message = format!("AttachVolume.Attach succeeded for volume {:?} ", volume.name());
        for pod in pods {
            self.recorder.normal(&**pod, "SuccessfulAttachVolume", message.clone());
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
        key: &ObjectKey,
        attachment: &VolumeAttachment,
        attachable: &Attachable,
    ) -> Result<Next, Error> {
        let name = attachable.unique_name();
        let node = self.nodes().find(&attachment.spec.node_name).await?;
        let is_free =
            node.as_ref().is_some_and(|node| !plan::is_in_use(node, &name) || plan::is_out_of_service(node));
        if !is_free {
            let since = self.held_up_since(key, &attachment.spec.node_name);
            let left = UNMOUNT_PATIENCE.saturating_sub(since.elapsed());
            if !left.is_zero() {
                return Ok(Next::After(left));
            }
            if node.as_ref().is_some_and(|node| ready_status(node) == "True") {
                // It says itself what it has in use, and brings the volume back when that changes.
                return Ok(Next::Done);
            }
        }
        if let Some(node) = node.filter(|node| plan::is_shown(node, &name)) {
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
    async fn correct(&self, attachable: &Attachable, held: &BTreeMap<&str, Stage>) -> Result<(), Error> {
        let name = attachable.unique_name();
        for known in self.context.caches.nodes_by_attached.get(&name) {
            if held.contains_key(known.name()) {
                continue;
            }
            let Some(node) = self.nodes().find(known.name()).await? else { continue };
            // The cache may lack an attachment that is newer than the node.
            let attachment = self.attachments().find(&attachable.attachment_name(node.name())).await?;
            if attachment.is_none() && plan::is_shown(&node, &name) {
                self.hide(&node, &name).await?;
            }
        }
        Ok(())
    }

    fn tell_failure(&self, volume: &PersistentVolume, attachment: &VolumeAttachment, pods: &[Arc<Pod>]) {
        let error = attachment.status.as_ref().and_then(|status| status.attach_error.as_ref());
        let Some(why) = error.and_then(|error| error.message.as_deref()) else { return };
        let message = format!("AttachVolume.Attach failed for volume {:?} : {why}", volume.name());
        for pod in pods {
            self.recorder.warning(&**pod, "FailedAttachVolume", message.clone());
        }
    }

    fn tell_refused(
        &self,
        volume: &PersistentVolume,
        wanted: &BTreeMap<String, Vec<Arc<Pod>>>,
        pods: &[Arc<Pod>],
        held: &BTreeMap<&str, Stage>,
    ) {
        let others = wanted.iter().filter(|(node, _)| held.contains_key(node.as_str()));
        let others: Vec<&Arc<Pod>> = others.flat_map(|(_, pods)| pods).collect();
        let message = if others.is_empty() {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        } else {
            // All are of the claim's namespace.
            let names: Vec<&str> = others.iter().map(|pod| pod.name()).collect();
            format!("Volume is already used by pod(s) {}", names.join(", "))
        };
        let message = format!("Multi-Attach error for volume {:?} {message}", volume.name());
        for pod in pods {
            self.recorder.warning(&**pod, "FailedAttachVolume", message.clone());
        }
    }
}
