//! The API for components in this process: the same chain as for everybody, without a wire.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{
        Binding, DeleteOptions, List, ListOptions, Patch, WatchEvent, WatchOptions, WatchStream, WriteOptions,
    },
    patch::PatchType,
    resource::Target,
    schema::FieldValidation,
};

use crate::{
    ApiServer,
    auth::User,
    cache::{Change, ChangeKind, Watcher},
    codec::{self, Encoding},
    ops::{Apply, Reply, WatchRequest, WriteOptions as Options, Written},
    registry::{DeleteRequest, ListRequest},
    resources::Resource,
};

pub(crate) const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");

/// Bindings of one call that are written at the same time: enough for the store to commit many together, and fewer than
/// flow control lets in at once, so that a large call does not fill it and fail in part.
const BINDINGS: usize = 64;

/// How long an idle watch goes without a bookmark.
const BOOKMARK_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

/// A client with an identity of its own.
pub struct LocalClient {
    server: Arc<ApiServer>,
    user: Arc<User>,
}

impl LocalClient {
    pub fn new(server: Arc<ApiServer>, user: Arc<User>) -> Arc<Self> {
        Arc::new(Self { server, user })
    }
}

fn body(resource: &Resource, reply: &Reply) -> Result<Bytes, Error> {
    match reply {
        Reply::Object(object) => Ok(resource.encoded(object)?.json().clone()),
        Reply::Value(value) => codec::encode(value, Encoding::Json),
    }
}

fn options(options: &WriteOptions) -> Options {
    Options { dry_run: options.dry_run, field_manager: options.field_manager.clone(), ..Options::default() }
}

/// What a body of this target is expected to be: API version and kind.
pub(crate) fn expected_type(resource: &Resource, target: &Target) -> (String, String) {
    let subresource = target.subresource.as_deref().and_then(|name| resource.row.subresource(name));
    match subresource {
        Some(subresource) => {
            let api_version = match subresource.group_version {
                Some(("", version)) => version.to_owned(),
                Some((group, version)) => format!("{group}/{version}"),
                None => resource.api_version.clone(),
            };
            (api_version, subresource.kind.to_owned())
        }
        None => (resource.api_version.clone(), resource.row.kind.to_owned()),
    }
}

fn decode(resource: &Resource, target: &Target, object: &Bytes) -> Result<serde_json::Value, Error> {
    let (api_version, kind) = expected_type(resource, target);
    Ok(codec::decode(object, Encoding::Json, (&api_version, &kind), FieldValidation::Ignore)?.object)
}

fn answer(resource: &Resource, written: Written) -> Result<Bytes, Error> {
    body(resource, &written.reply)
}

/// A change as the client's event, in the resource's version.
pub(crate) fn event(resource: &Resource, change: &Change) -> Result<WatchEvent, Error> {
    let object = resource.encoded(&change.object)?.json().clone();
    let resource_version = change.object.revision().to_string();
    Ok(match change.kind {
        ChangeKind::Added => WatchEvent::Added { object, resource_version },
        ChangeKind::Modified => WatchEvent::Modified { object, resource_version },
        ChangeKind::Deleted => WatchEvent::Deleted { object, resource_version },
    })
}

#[async_trait]
impl Client for LocalClient {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        let call = self.server.enter(&self.user, "get", target.clone(), "")?;
        let reply = self.server.get(&call, "").await?;
        body(&call.resource, &reply)
    }

    async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Error> {
        let call = self.server.enter(&self.user, "list", target.clone(), &options.field_selector)?;
        let request =
            ListRequest { label_selector: options.label_selector.clone(), ..ListRequest::default() };
        let listed = self.server.list(&call, &request).await?;
        let resource_version = listed.revision.to_string();
        let items = listed
            .objects()
            .map(|object| Ok(call.resource.encoded(&object)?.json().clone()))
            .collect::<Result<_, Error>>()?;
        Ok(List { items, resource_version })
    }

    async fn watch(&self, target: &Target, options: &WatchOptions) -> Result<WatchStream, Error> {
        let call = self.server.enter(&self.user, "watch", target.clone(), &options.field_selector)?;
        let request = WatchRequest {
            label_selector: options.label_selector.clone(),
            resource_version: options.resource_version.clone(),
            ..WatchRequest::default()
        };
        let watched = self.server.watch(&call, &request).await?;
        let resource = call.resource.clone();
        let shown = resource.clone();
        let existing = watched
            .existing
            .map(|(objects, _)| objects)
            .into_iter()
            .flatten()
            .map(move |object| event(&shown, &Change { kind: ChangeKind::Added, object }));
        let shutdown = self.server.shutdown().clone();
        let changes = stream::unfold(Some(watched.watcher), move |watcher| {
            let (resource, shutdown) = (resource.clone(), shutdown.clone());
            async move {
                let mut watcher = watcher?;
                let events = tokio::select! {
                    () = shutdown.cancelled() => return None,
                    events = next_events(&resource, &mut watcher) => events,
                };
                match events {
                    Ok(events) => Some((events, Some(watcher))),
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        Ok(stream::iter(existing).chain(changes.map(stream::iter).flatten()).boxed())
    }

    async fn create(&self, target: &Target, object: Bytes, options_: &WriteOptions) -> Result<Bytes, Error> {
        let call = self.server.enter(&self.user, "create", target.clone(), "")?;
        let object = decode(&call.resource, target, &object)?;
        answer(&call.resource, self.server.create(&call, object, &options(options_)).await?)
    }

    async fn update(&self, target: &Target, object: Bytes, options_: &WriteOptions) -> Result<Bytes, Error> {
        let call = self.server.enter(&self.user, "update", target.clone(), "")?;
        let object = decode(&call.resource, target, &object)?;
        answer(&call.resource, self.server.update(&call, object, &options(options_)).await?)
    }

    async fn patch(&self, target: &Target, patch: Patch, options_: &WriteOptions) -> Result<Bytes, Error> {
        let call = self.server.enter(&self.user, "patch", target.clone(), "")?;
        let (kind, body) = match patch {
            Patch::Json(body) => (PatchType::Json, body),
            Patch::Merge(body) => (PatchType::Merge, body),
            Patch::StrategicMerge(body) => (PatchType::StrategicMerge, body),
            Patch::Apply { configuration, force } => {
                let validation = FieldValidation::Ignore;
                let apply = Apply { body: configuration, force, validation };
                return answer(&call.resource, self.server.apply(&call, apply, &options(options_)).await?);
            }
        };
        let patch = codec::Patch { kind, body, validation: FieldValidation::Ignore };
        answer(&call.resource, self.server.patch(&call, patch, &options(options_)).await?)
    }

    async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Bytes, Error> {
        let request = DeleteRequest {
            grace_period_seconds: options.grace_period_seconds,
            propagation: options.propagation,
            uid: options.uid.clone(),
            resource_version: options.resource_version.clone(),
            dry_run: false,
        };
        if target.name.is_none() {
            let fields = &options.field_selector;
            let call = self.server.enter(&self.user, "deletecollection", target.clone(), fields)?;
            let list =
                ListRequest { label_selector: options.label_selector.clone(), ..ListRequest::default() };
            let (deleted, _) = self.server.delete_collection(&call, &list, &request).await?;
            return codec::encode(&deleted.to_status(&call.resource), Encoding::Json);
        }
        let call = self.server.enter(&self.user, "delete", target.clone(), "")?;
        answer(&call.resource, self.server.delete(&call, &request).await?)
    }

    async fn bind(&self, bindings: &[Binding]) -> Vec<Result<(), Error>> {
        bind_all(&self.server, &self.user, bindings).await
    }
}

/// Binds pods at the same time, so that the store commits them together; one result for each, in order.
pub(crate) async fn bind_all(
    server: &Arc<ApiServer>,
    user: &Arc<User>,
    bindings: &[Binding],
) -> Vec<Result<(), Error>> {
    let bound: Vec<_> = bindings.iter().map(|binding| bind_one(server, user, binding).boxed()).collect();
    stream::iter(bound).buffered(BINDINGS).collect().await
}

/// Where a pod's binding is made.
pub(crate) fn binding_of(namespace: &str, pod: &str) -> Target {
    Target::object(PODS, Some(namespace), pod).with_subresource("binding")
}

async fn bind_one(server: &Arc<ApiServer>, user: &Arc<User>, binding: &Binding) -> Result<(), Error> {
    let call = server.enter(user, "create", binding_of(&binding.namespace, &binding.pod), "")?;
    server.bind(&call, &binding.node, &binding.uid, serde_json::Value::Null, &Options::default()).await
}

/// The next changes, or a bookmark where nothing happened for a while.
async fn next_events(
    resource: &Resource,
    watcher: &mut Watcher,
) -> Result<Vec<Result<WatchEvent, Error>>, Error> {
    match tokio::time::timeout(BOOKMARK_AFTER, watcher.next()).await {
        Ok(changes) => Ok(changes?.iter().map(|change| event(resource, change)).collect()),
        Err(_) => {
            let changes = watcher.poll()?;
            if changes.is_empty() {
                let resource_version = watcher.revision().to_string();
                return Ok(vec![Ok(WatchEvent::Bookmark { resource_version })]);
            }
            Ok(changes.iter().map(|change| event(resource, change)).collect())
        }
    }
}
