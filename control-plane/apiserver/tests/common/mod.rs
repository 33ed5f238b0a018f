//! An API server in the test's process, over an embedded store in a directory of its own.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod wire;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{DeleteOptions, ListOptions, Patch, WatchEvent, WatchOptions, WatchStream, WriteOptions},
    resource::Target,
};
use hawser_apiserver::{
    ApiServer, Config,
    auth::{SYSTEM_MASTERS, User, jwt::SigningKey},
    local::LocalClient,
};
use hawser_store::{EmbeddedOptions, EmbeddedStore, Store};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");
pub(crate) const CONFIG_MAPS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "configmaps");
pub(crate) const SECRETS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "secrets");
pub(crate) const SERVICES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "services");
pub(crate) const NAMESPACES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "namespaces");
pub(crate) const NODES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "nodes");
pub(crate) const ACCOUNTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "serviceaccounts");
pub(crate) const EVENTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "events");
pub(crate) const NEW_EVENTS: GroupVersionResource =
    GroupVersionResource::fixed("events.k8s.io", "v1", "events");
pub(crate) const DEPLOYMENTS: GroupVersionResource = GroupVersionResource::fixed("apps", "v1", "deployments");

/// A directory that goes with the value.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hawser-apiserver-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Running {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) store: Arc<dyn Store>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

/// Starts a server over the store in `directory`.
pub(crate) async fn start(directory: &Directory) -> Running {
    start_over(embedded(directory).await, |_| ()).await
}

pub(crate) async fn embedded(directory: &Directory) -> Arc<dyn Store> {
    let options = EmbeddedOptions::new(directory.0.join("store"));
    Arc::new(EmbeddedStore::open(options).await.expect("a store"))
}

/// Starts a server over `store`, with the default configuration changed.
pub(crate) async fn start_over(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Running {
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut config = Config::new("192.0.2.1".parse().expect("an address"), 6443, SigningKey::ephemeral());
    change(&mut config);
    let server =
        ApiServer::start(store.clone(), config, &mut tasks, shutdown.clone()).await.expect("a server");
    Running { server, store, tasks, shutdown }
}

impl Running {
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Api {
        Api(LocalClient::new(self.server.clone(), User::named(user, groups)))
    }

    pub(crate) fn admin(&self) -> Api {
        self.client("admin", &[SYSTEM_MASTERS])
    }

    /// A namespace with the account that pods need.
    pub(crate) async fn namespace(&self, name: &str) {
        let admin = self.admin();
        admin.create(&NAMESPACES, None, json!({ "metadata": { "name": name } })).await.expect("a namespace");
        admin
            .create(&ACCOUNTS, Some(name), json!({ "metadata": { "name": "default" } }))
            .await
            .expect("an account");
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.store.close().await.expect("closed");
    }
}

/// A client whose objects are trees.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Arc<LocalClient>);

fn tree(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

impl Api {
    pub(crate) async fn create(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, Error> {
        let target = Target::collection(resource.clone(), namespace);
        let body = object.to_string().into();
        self.0.create(&target, body, &WriteOptions::default()).await.map(|bytes| tree(&bytes))
    }

    pub(crate) async fn get(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Value, Error> {
        self.0.get(&Target::object(resource.clone(), namespace, name)).await.map(|bytes| tree(&bytes))
    }

    /// Replaces an object, or a part of it.
    pub(crate) async fn update(
        &self,
        resource: &GroupVersionResource,
        object: &Value,
        part: &'static str,
    ) -> Result<Value, Error> {
        let namespace = object["metadata"]["namespace"].as_str();
        let mut target =
            Target::object(resource.clone(), namespace, object["metadata"]["name"].as_str().expect("a name"));
        if !part.is_empty() {
            target = target.with_subresource(part);
        }
        self.0
            .update(&target, object.to_string().into(), &WriteOptions::default())
            .await
            .map(|bytes| tree(&bytes))
    }

    pub(crate) async fn merge(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> Result<Value, Error> {
        self.merge_at(resource, namespace, name, "", patch).await
    }

    /// Merges into a subresource; `""` is the object itself.
    pub(crate) async fn merge_at(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        patch: Value,
    ) -> Result<Value, Error> {
        let mut target = Target::object(resource.clone(), namespace, name);
        target.subresource = (!subresource.is_empty()).then(|| subresource.to_owned().into());
        let patch = Patch::Merge(patch.to_string().into());
        self.0.patch(&target, patch, &WriteOptions::default()).await.map(|bytes| tree(&bytes))
    }

    pub(crate) async fn delete(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        name: &str,
        grace: Option<i64>,
    ) -> Result<Value, Error> {
        let target = Target::object(resource.clone(), namespace, name);
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        self.0.delete(&target, &options).await.map(|bytes| tree(&bytes))
    }

    pub(crate) async fn list(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        labels: &str,
    ) -> (Vec<Value>, String) {
        let options = ListOptions { label_selector: labels.to_owned(), ..ListOptions::default() };
        let list =
            self.0.list(&Target::collection(resource.clone(), namespace), &options).await.expect("a list");
        (list.items.iter().map(|bytes| tree(bytes)).collect(), list.resource_version)
    }

    pub(crate) async fn watch(
        &self,
        resource: &GroupVersionResource,
        namespace: Option<&str>,
        labels: &str,
        from: &str,
    ) -> Result<WatchStream, Error> {
        let options = WatchOptions {
            label_selector: labels.to_owned(),
            resource_version: from.to_owned(),
            ..WatchOptions::default()
        };
        self.0.watch(&Target::collection(resource.clone(), namespace), &options).await
    }
}

/// An event as `ADDED name version`; bookmarks are left out.
pub(crate) fn describe(event: &WatchEvent) -> Option<(String, u64)> {
    let (kind, object, version) = match event {
        WatchEvent::Added { object, resource_version } => ("ADDED", object, resource_version),
        WatchEvent::Modified { object, resource_version } => ("MODIFIED", object, resource_version),
        WatchEvent::Deleted { object, resource_version } => ("DELETED", object, resource_version),
        WatchEvent::Bookmark { .. } => return None,
    };
    let name = tree(object)["metadata"]["name"].as_str().expect("a name").to_owned();
    Some((format!("{kind} {name}"), version.parse().expect("a number")))
}

pub(crate) fn config_map(name: &str, data: &str) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name }, "data": { "value": data } })
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "image": "demo" }] },
    })
}
