//! `NodeService`: one stream a node, with all that concerns the node and nothing else.
//!
//! Down: the node's pods, what they name (and its changes), all nodes, services and endpoint slices. Two tasks serve a
//! stream: this one writes what happened in the caches, the other ([`up`]) carries out what the node sends. Both write into
//! one bounded channel: a node that does not read holds back only its own stream, and falls off the ring in the end.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::select_all, stream::BoxStream};
use hawser_api::{
    Error, GroupVersionResource,
    grpc::target_of,
    patch::PatchType,
    resource::Target,
    schema::FieldValidation,
    v1::{self, SyncRequest, SyncResponse, node_service_server::NodeService, sync_request, sync_response},
};
use hawser_store::Revision;
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{Front, count, labels, node_writes::Writes, status_of, user_of, watch::event_type};
use crate::{
    ApiServer,
    auth::{
        User,
        node::{Reference, opened},
    },
    cache::{CachedObject, Change, ChangeKind, KindCache, Selection, Watcher},
    codec,
    ops::WriteOptions,
    resources::Resource,
};

/// Messages on their way to the node; beyond them the stream waits for it.
const QUEUE: usize = 128;
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// How often the node is told how far the stream has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");

/// Kinds that every node hears of in full.
const SHARED: [GroupVersionResource; 3] = [
    GroupVersionResource::fixed("", "v1", "nodes"),
    GroupVersionResource::fixed("", "v1", "services"),
    GroupVersionResource::fixed("discovery.k8s.io", "v1", "endpointslices"),
];

/// Kinds of which a node hears what its pods name.
const REFERENCED: [&str; 5] =
    ["configmaps", "secrets", "serviceaccounts", "persistentvolumeclaims", "persistentvolumes"];

type Sender = mpsc::Sender<Result<SyncResponse, Status>>;

#[tonic::async_trait]
impl NodeService for Front {
    type SyncStream = BoxStream<'static, Result<SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let user = user_of(&request)?;
        let mut messages = request.into_inner();
        let hello = match timeout(HELLO_DEADLINE, messages.message()).await {
            Ok(Ok(Some(SyncRequest { message: Some(sync_request::Message::Hello(hello)) }))) => hello,
            Ok(Err(status)) => return Err(status),
            _ => return Err(status_of(&Error::bad_request("the first message must be hello"))),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut down = Down::open(&self.server, &user, &hello.node_name, sender.clone())
            .map_err(|error| status_of(&error))?;
        let server = self.server.clone();
        server.nodes().touch(&hello.node_name, &user);
        // Ends when the node goes (its receiver is dropped), when the server does, or with an error that the node is told.
        tokio::spawn(async move {
            let shutdown = server.shutdown().clone();
            let node = hello.node_name;
            let outcome = tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                () = sender.closed() => Ok(()),
                outcome = down.run(hello.resume_revision) => outcome,
                outcome = up(&server, &user, &node, messages, &sender) => outcome,
            };
            match outcome {
                Ok(()) => debug!(%node, "node stream ended"),
                Err(error) => {
                    info!(%node, %error, "node stream failed");
                    // A node that does not read does not need to know.
                    let _ = sender.try_send(Err(status_of(&error)));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

/// Carries out what a node sends, until it sends no more.
async fn up(
    server: &Arc<ApiServer>,
    user: &Arc<User>,
    node: &str,
    mut messages: Streaming<SyncRequest>,
    sender: &Sender,
) -> Result<(), Error> {
    let mut writes = Writes::new(|update| write(server, user, update));
    loop {
        tokio::select! {
            Some(answer) = writes.next() => {
                send(sender, sync_response::Message::StatusAnswer(answer)).await?;
            }
            message = messages.message(), if !writes.is_full() => {
                let Ok(Some(message)) = message else { return Ok(()) };
                server.nodes().touch(node, user);
                match message.message {
                    Some(sync_request::Message::StatusUpdate(update)) => writes.push(update),
                    Some(sync_request::Message::Usage(usage)) => server.nodes().report_usage(node, usage),
                    Some(sync_request::Message::Heartbeat(_)) | None => {}
                    Some(sync_request::Message::Hello(_)) => {
                        return Err(Error::bad_request("hello is the first message only"));
                    }
                }
            }
        }
    }
}

async fn write(server: &Arc<ApiServer>, user: &Arc<User>, update: v1::StatusUpdate) -> v1::StatusAnswer {
    let (id, began) = (update.id, Instant::now());
    let target = target_of(update.resource);
    let labels = labels(server, "patch", &target);
    let outcome = async {
        let call = server.enter(user, "patch", target?, "")?;
        let (kind, body) = match update.strategic_merge_patch.is_empty() {
            true => (PatchType::Merge, update.merge_patch),
            false => (PatchType::StrategicMerge, update.strategic_merge_patch),
        };
        let patch = codec::Patch { kind, body, validation: FieldValidation::Ignore };
        let uid = (!update.uid.is_empty()).then_some(update.uid);
        server.patch(&call, patch, &WriteOptions { uid, ..WriteOptions::default() }).await.map(drop)
    };
    let outcome = outcome.await;
    count(server, labels, outcome.as_ref().err().map_or(200, Error::code), began);
    let error = outcome.err().map_or_else(Default::default, |error| error.to_status().to_string().into());
    v1::StatusAnswer { id, error }
}

/// An error only ends the stream: the node is gone.
async fn send(sender: &Sender, message: sync_response::Message) -> Result<(), Error> {
    sender
        .send(Ok(SyncResponse { message: Some(message) }))
        .await
        .map_err(|_| Error::unavailable("the node is gone"))
}

/// One kind on its way down.
struct Feed {
    resource: Arc<Resource>,
    selection: Selection,
    watcher: Option<Watcher>,
}

impl Feed {
    fn cache(&self) -> Result<&Arc<KindCache>, Error> {
        self.resource.cache()
    }
}

/// The way down.
struct Down {
    server: Arc<ApiServer>,
    user: Arc<User>,
    node: String,
    sender: Sender,
    /// Pods first, then the shared kinds, then the referenced ones.
    feeds: Vec<Feed>,
    /// What each pod names, by the pod's key.
    named: HashMap<String, BTreeSet<Reference>>,
    /// What pods name, and what the node knows of it.
    sent: HashMap<Reference, Sent>,
}

/// What a node knows of an object that its pods name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// The object as of this revision; 0 for one that does not exist.
    At(Revision),
    /// Nothing: it may not see the object as things stand (a volume before its claim is bound). Asked again whenever the
    /// object, the pod or the claim changes.
    Refused,
}

impl Down {
    /// Checks that this is the node, and may hear what it asks for.
    fn open(server: &Arc<ApiServer>, user: &Arc<User>, node: &str, sender: Sender) -> Result<Self, Error> {
        if user.node() != Some(node) {
            let why = format!("User {:?} is not the node that the stream is for", user.name);
            let nodes = GroupVersionResource::fixed("", "v1", "nodes");
            return Err(Error::forbidden(&nodes, node, &why));
        }
        let selector = format!("spec.nodeName={node}");
        let mut feeds = Vec::new();
        for (kind, selector) in [(PODS, selector.as_str())].into_iter().chain(SHARED.map(|kind| (kind, ""))) {
            let call = server.enter(user, "watch", Target::collection(kind, None), selector)?;
            let selection =
                if selector.is_empty() { Selection::default() } else { Selection::on_node(node, None) };
            feeds.push(Feed { resource: call.resource, selection, watcher: None });
        }
        for plural in REFERENCED {
            // Each object of these is authorized when it is sent.
            let resource = server.registry().resources().builtin("", "v1", plural).clone();
            feeds.push(Feed { resource, selection: Selection::default(), watcher: None });
        }
        Ok(Self {
            server: server.clone(),
            user: user.clone(),
            node: node.to_owned(),
            sender,
            feeds,
            named: HashMap::new(),
            sent: HashMap::new(),
        })
    }

    async fn run(&mut self, resume: Revision) -> Result<(), Error> {
        self.server.registry().cache().consistent().await?;
        if resume == 0 || !self.resume(resume).await? {
            self.snapshot().await?;
        }
        let mut bookmarks = interval(BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while self.poll().await? {}
            let waits = self.feeds.iter_mut().filter_map(|feed| feed.watcher.as_mut());
            let waits = waits.map(|watcher| Box::pin(watcher.changed()));
            let is_bookmark_due = tokio::select! {
                _ = select_all(waits) => false,
                _ = bookmarks.tick() => true,
            };
            if is_bookmark_due {
                while self.poll().await? {}
                let revision = self.revision();
                send(&self.sender, sync_response::Message::Bookmark(v1::Bookmark { revision })).await?;
            }
        }
    }

    /// Everything up to here was sent.
    fn revision(&self) -> Revision {
        self.feeds.iter().filter_map(|feed| feed.watcher.as_ref()).map(Watcher::revision).min().unwrap_or(0)
    }

    /// Sends everything, then says so.
    async fn snapshot(&mut self) -> Result<(), Error> {
        // Every kind is followed before anything is sent. What pods name is sent with them, and sending takes as long as the
        // node reads: a change in that time must find its watcher there already.
        let mut existing = Vec::new();
        for feed in &mut self.feeds {
            let cache = feed.cache()?.clone();
            let snapshot = cache.snapshot();
            feed.watcher = Some(Watcher::following(&cache, feed.selection.clone(), &snapshot));
            let referenced = is_referenced(&feed.resource);
            existing.push((!referenced).then(|| feed.selection.select(&cache, &snapshot.state, "")));
        }
        for (at, objects) in existing.into_iter().enumerate() {
            for object in objects.into_iter().flatten() {
                self.tell(at, &Change { kind: ChangeKind::Added, object }).await?;
            }
        }
        let revision = self.revision();
        send(&self.sender, sync_response::Message::SnapshotEnd(v1::SnapshotEnd { revision })).await
    }

    /// Goes on after `revision`; false where history does not reach back that far.
    async fn resume(&mut self, revision: Revision) -> Result<bool, Error> {
        for feed in &mut self.feeds {
            let cache = feed.cache()?.clone();
            match Watcher::after(&cache, feed.selection.clone(), revision) {
                Ok(watcher) => feed.watcher = Some(watcher),
                Err(error) if error.is_expired() => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        // What the node's pods name may have changed while nobody looked: it is told how each stands.
        let pods = self.feeds[0].cache()?.clone();
        let state = pods.snapshot().state;
        for pod in self.feeds[0].selection.clone().select(&pods, &state, "") {
            self.name_references(&pod, false).await?;
        }
        Ok(true)
    }

    /// Sends what is new; false where nothing was.
    async fn poll(&mut self) -> Result<bool, Error> {
        let mut any = false;
        for at in 0..self.feeds.len() {
            let Some(watcher) = self.feeds[at].watcher.as_mut() else { continue };
            for change in watcher.poll()? {
                any = true;
                self.tell(at, &change).await?;
            }
        }
        Ok(any)
    }

    async fn tell(&mut self, at: usize, change: &Change) -> Result<(), Error> {
        let resource = self.feeds[at].resource.clone();
        if at == 0 {
            // What the pod needs comes before it, and goes after it.
            let gone = change.kind == ChangeKind::Deleted;
            if !gone {
                self.name_references(&change.object, false).await?;
            }
            self.send_change(&resource, change).await?;
            if gone {
                self.name_references(&change.object, true).await?;
            }
            return Ok(());
        }
        if is_referenced(&resource) {
            return self.tell_referenced(&resource, change).await;
        }
        self.send_change(&resource, change).await
    }

    async fn tell_referenced(&mut self, resource: &Resource, change: &Change) -> Result<(), Error> {
        let reference = reference_to(resource, &change.object);
        let revision = change.object.revision();
        match self.sent.get(&reference) {
            None => return Ok(()),
            Some(Sent::At(known)) if *known >= revision => return Ok(()),
            Some(_) => {}
        }
        if change.kind == ChangeKind::Deleted {
            // What made the object the node's may have gone with it: so it hears that, and nothing of its last state.
            if self.sent.insert(reference.clone(), Sent::At(revision)) != Some(Sent::Refused) {
                self.send_gone(&reference).await?;
            }
            return Ok(());
        }
        self.send_allowed(resource, reference, change).await
    }

    /// Sends an object that a pod names where the node may see it now.
    async fn send_allowed(
        &mut self,
        resource: &Resource,
        reference: Reference,
        change: &Change,
    ) -> Result<(), Error> {
        let namespace = (!reference.namespace.is_empty()).then_some(reference.namespace.as_str());
        let target = Target::object(resource.gvr.clone(), namespace, &reference.name);
        if !self.server.may_get(&self.user, &target) {
            debug!(node = %self.node, resource = reference.resource, name = reference.name, "a referenced object is not for this node");
            self.sent.insert(reference, Sent::Refused);
            return Ok(());
        }
        self.sent.insert(reference, Sent::At(change.object.revision()));
        self.send_change(resource, change).await?;
        if resource.row.plural == "persistentvolumeclaims" {
            Box::pin(self.follow_claim(&change.object)).await?;
        }
        Ok(())
    }

    /// Whether the node has been told how this object stands.
    fn is_told(&self, reference: &Reference) -> bool {
        matches!(self.sent.get(reference), Some(Sent::At(_)))
    }

    /// Takes note of what a pod names; what is new is sent, and what nothing names any more is taken back.
    async fn name_references(&mut self, pod: &CachedObject, gone: bool) -> Result<(), Error> {
        let key = pod.key().to_string();
        let now = if gone { BTreeSet::new() } else { opened(&pod.value()) };
        let before = if gone { self.named.remove(&key) } else { self.named.insert(key, now.clone()) };
        for reference in &now {
            if !self.is_told(reference) {
                self.send_reference(reference).await?;
            }
        }
        for reference in before.unwrap_or_default() {
            let still = self.named.values().any(|named| named.contains(&reference));
            if !still && matches!(self.sent.remove(&reference), Some(Sent::At(_))) {
                self.send_gone(&reference).await?;
            }
        }
        Ok(())
    }

    /// Sends an object that a pod names as it is now, or that it does not exist.
    async fn send_reference(&mut self, reference: &Reference) -> Result<(), Error> {
        let resource = self.server.registry().resources().builtin("", "v1", reference.resource).clone();
        let object = resource.cache()?.get(&reference.namespace, &reference.name);
        let Some(object) = object else {
            self.sent.insert(reference.clone(), Sent::At(0));
            return self.send_gone(reference).await;
        };
        let change = Change { kind: ChangeKind::Added, object };
        self.send_allowed(&resource, reference.clone(), &change).await
    }

    /// A claim's volume concerns the node as the claim does.
    async fn follow_claim(&mut self, claim: &CachedObject) -> Result<(), Error> {
        let value: Value = claim.value();
        let Some(name) = value["spec"]["volumeName"].as_str().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let volume =
            Reference { resource: "persistentvolumes", namespace: String::new(), name: name.to_owned() };
        if self.is_told(&volume) { Ok(()) } else { self.send_reference(&volume).await }
    }

    async fn send_gone(&self, reference: &Reference) -> Result<(), Error> {
        let change = v1::ObjectChange {
            r#type: v1::EventType::Deleted.into(),
            resource: Some(v1::Resource {
                version: "v1".to_owned(),
                resource: reference.resource.to_owned(),
                namespace: reference.namespace.clone(),
                name: reference.name.clone(),
                ..v1::Resource::default()
            }),
            body: Default::default(),
            revision: 0,
        };
        send(&self.sender, sync_response::Message::Change(change)).await
    }

    async fn send_change(&self, resource: &Resource, change: &Change) -> Result<(), Error> {
        let object = &change.object;
        let namespace = if resource.row.namespaced { object.namespace() } else { "" };
        let message = v1::ObjectChange {
            r#type: event_type(change.kind).into(),
            resource: Some(v1::Resource {
                group: resource.row.group.to_owned(),
                version: resource.version.to_owned(),
                resource: resource.row.plural.to_owned(),
                namespace: namespace.to_owned(),
                name: object.name().to_owned(),
                subresource: String::new(),
            }),
            body: resource.encoded(object)?.json().clone(),
            revision: object.revision(),
        };
        send(&self.sender, sync_response::Message::Change(message)).await
    }
}

fn is_referenced(resource: &Resource) -> bool {
    resource.row.group.is_empty() && REFERENCED.contains(&resource.row.plural)
}

fn reference_to(resource: &Resource, object: &CachedObject) -> Reference {
    let namespace = if resource.row.namespaced { object.namespace() } else { "" };
    Reference {
        resource: resource.row.plural,
        namespace: namespace.to_owned(),
        name: object.name().to_owned(),
    }
}

#[cfg(test)]
mod tests;
