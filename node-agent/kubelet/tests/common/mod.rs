//! A node without a machine: the runtime in memory, an API in memory, a network that hands out addresses.

#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod agent;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hawser_api::client::{
    Binding, Client, DeleteOptions, List, ListOptions, Patch, WatchOptions, WatchStream, WriteOptions,
};
use hawser_api::patch::{PatchType, apply};
use hawser_api::resource::{ObjectKey, Target};
use hawser_api::schema::type_of;
use hawser_api::{Error, GroupVersionResource};
use hawser_kubelet::{
    ClientStatusWriter, Config, Kubelet, LocalEndpoints, LocalPod, NetworkError, Objects, Parts, PodNetwork,
    PodNetworkRequest, PodNetworkStatus,
};
use hawser_runtime::Runtime;
use hawser_runtime::testing::FakeRuntime;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Node as ApiNode, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Objects by resource and key; pods go to the kubelet's cache as the node stream would bring them.
pub(crate) struct FakeApi {
    objects: Mutex<BTreeMap<(String, String), Value>>,
    pods: hawser_api::informer::Informer<Pod>,
    nodes: hawser_api::informer::Informer<ApiNode>,
    /// While set, every call fails.
    pub(crate) down: Mutex<bool>,
    /// While set, calls are never answered.
    pub(crate) silent: Mutex<bool>,
    /// How often objects of a resource were read.
    reads: Mutex<BTreeMap<String, usize>>,
    /// How long a token takes to be made.
    pub(crate) token_delay: Mutex<Duration>,
    version: Mutex<u64>,
    pub(crate) deletions: Mutex<Vec<String>>,
}

fn place(target: &Target) -> (String, String) {
    let key =
        ObjectKey::new(target.namespace.clone().unwrap_or_default(), target.name.clone().unwrap_or_default());
    (target.resource.resource.to_string(), key.to_string())
}

/// The kinds that the kubelet patches.
fn kind_of(resource: &str) -> &'static str {
    match resource {
        "pods" => "Pod",
        "nodes" => "Node",
        "leases" => "Lease",
        _ => "Event",
    }
}

impl FakeApi {
    pub(crate) fn new(objects: &Objects) -> Self {
        Self {
            objects: Mutex::default(),
            pods: objects.pods.clone(),
            nodes: objects.nodes.clone(),
            down: Mutex::new(false),
            silent: Mutex::new(false),
            reads: Mutex::default(),
            token_delay: Mutex::default(),
            version: Mutex::new(0),
            deletions: Mutex::default(),
        }
    }

    /// The same API, seen by a new process with empty caches, which it fills.
    pub(crate) fn over(&self, objects: &Objects) -> Self {
        let stored = self.objects.lock().clone();
        let version = Mutex::new(*self.version.lock());
        let over = Self { objects: Mutex::new(stored.clone()), version, ..Self::new(objects) };
        for ((resource, _), object) in &stored {
            over.show(resource, object);
        }
        over
    }

    /// The same API, away.
    pub(crate) fn hidden_from(&self, objects: &Objects) -> Self {
        let (stored, version) = (self.objects.lock().clone(), *self.version.lock());
        Self {
            objects: Mutex::new(stored),
            version: Mutex::new(version),
            down: Mutex::new(true),
            ..Self::new(objects)
        }
    }

    /// Tells the kubelet's caches, as the node stream does.
    fn show(&self, resource: &str, object: &Value) {
        match resource {
            "pods" => self.pods.put(serde_json::from_value(object.clone()).expect("a pod")),
            "nodes" => self.nodes.put(serde_json::from_value(object.clone()).expect("a node")),
            _ => {}
        }
    }

    async fn check_up(&self) -> Result<(), Error> {
        let is_silent = *self.silent.lock();
        if is_silent {
            std::future::pending::<()>().await;
        }
        if *self.down.lock() { Err(Error::unavailable("down")) } else { Ok(()) }
    }

    pub(crate) fn store(&self, target: &Target, mut object: Value) -> Bytes {
        let version = {
            let mut version = self.version.lock();
            *version += 1;
            *version
        };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{version}").into();
        }
        self.objects.lock().insert(place(target), object.clone());
        self.show(&target.resource.resource, &object);
        object.to_string().into()
    }

    /// An object is deleted, by somebody else.
    pub(crate) fn remove(&self, resource: &str, key: &str) {
        self.objects.lock().remove(&(resource.to_owned(), key.to_owned()));
    }

    /// A pod is deleted for good, and the kubelet's cache does not hear of it.
    pub(crate) fn forget(&self, name: &str) {
        self.objects.lock().remove(&("pods".into(), format!("default/{name}")));
    }

    pub(crate) fn put_pod(&self, pod: &Pod) {
        let (namespace, name) =
            (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref().expect("named"));
        let target = Target::object(GroupVersionResource::of::<Pod>(), namespace, name);
        self.store(&target, serde_json::to_value(pod).expect("serialisable"));
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Pod> {
        let found = self.objects.lock().get(&("pods".into(), format!("default/{name}"))).cloned();
        found.map(|value| serde_json::from_value(value).expect("a pod"))
    }

    /// The list of all pods.
    pub(crate) fn pods(&self) -> Vec<Pod> {
        let objects = self.objects.lock();
        let pods = objects.iter().filter(|((resource, _), _)| resource == "pods").map(|(_, pod)| pod.clone());
        pods.map(|pod| serde_json::from_value(pod).expect("a pod")).collect()
    }

    /// Messages of events, oldest first, as `reason: message (xN)`.
    pub(crate) fn events(&self) -> Vec<String> {
        let objects = self.objects.lock();
        let events = objects.iter().filter(|((resource, _), _)| resource == "events").map(|(_, e)| e);
        events
            .map(|e| {
                format!("{}: {}", e["reason"].as_str().unwrap_or(""), e["message"].as_str().unwrap_or(""))
            })
            .collect()
    }

    pub(crate) fn reads(&self, resource: &str) -> usize {
        self.reads.lock().get(resource).copied().unwrap_or(0)
    }

    /// All objects of a resource.
    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        let objects = self.objects.lock();
        let found = objects.iter().filter(|((known, _), _)| known == resource);
        found.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn object(&self, resource: &str, key: &str) -> Option<Value> {
        self.objects.lock().get(&(resource.to_owned(), key.to_owned())).cloned()
    }
}

#[async_trait]
impl Client for FakeApi {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        *self.reads.lock().entry(target.resource.resource.to_string()).or_default() += 1;
        self.check_up().await?;
        let found = self.objects.lock().get(&place(target)).map(|v| v.to_string().into());
        let name = target.name.as_deref().unwrap_or("");
        found.ok_or_else(|| match &*target.resource.resource {
            // What a node may see of these follows from what they say.
            "podcertificaterequests" => Error::forbidden(&target.resource, name, "no relationship found"),
            _ => Error::not_found(&target.resource, name),
        })
    }

    async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Error> {
        self.check_up().await?;
        let wanted: Vec<(String, &str)> = options
            .field_selector
            .split(',')
            .filter_map(|part| part.split_once('='))
            .map(|(field, value)| (format!("/{}", field.replace('.', "/")), value))
            .collect();
        let objects = self.objects.lock();
        let found = objects.iter().filter(|((resource, _), object)| {
            let is_selected = |(field, value): &(String, &str)| object.pointer(field) == Some(&json!(value));
            *resource == *target.resource.resource && wanted.iter().all(is_selected)
        });
        let items = found.map(|(_, object)| object.to_string().into()).collect();
        Ok(List { items, resource_version: self.version.lock().to_string() })
    }

    async fn watch(&self, _: &Target, _: &WatchOptions) -> Result<WatchStream, Error> {
        Err(Error::internal("the kubelet watches nothing"))
    }

    async fn create(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        self.check_up().await?;
        let object: Value = serde_json::from_slice(&object).map_err(Error::internal)?;
        if target.subresource.as_deref() == Some("token") {
            let delay = *self.token_delay.lock();
            tokio::time::sleep(delay).await;
            let expires = Timestamp::now() + SignedDuration::from_hours(1);
            let status = json!({ "token": "a-token", "expirationTimestamp": expires.to_string() });
            return Ok(json!({ "spec": object["spec"], "status": status }).to_string().into());
        }
        let mut object = object;
        if &*target.resource.resource == "pods" {
            object["status"] = json!({ "phase": "Pending" });
        }
        if let Some(prefix) = object["metadata"]["generateName"].as_str() {
            let version = *self.version.lock();
            object["metadata"]["name"] = format!("{prefix}{version}").into();
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let target = Target { name: Some(name.clone()), ..target.clone() };
        if self.objects.lock().contains_key(&place(&target)) {
            return Err(Error::already_exists(&target.resource, &name));
        }
        Ok(self.store(&target, object))
    }

    async fn update(&self, target: &Target, object: Bytes, _: &WriteOptions) -> Result<Bytes, Error> {
        self.check_up().await?;
        Ok(self.store(target, serde_json::from_slice(&object).map_err(Error::internal)?))
    }

    async fn patch(&self, target: &Target, patch: Patch, _: &WriteOptions) -> Result<Bytes, Error> {
        self.check_up().await?;
        let (patch_type, patch) = match patch {
            Patch::Merge(patch) => (PatchType::Merge, patch),
            Patch::StrategicMerge(patch) => (PatchType::StrategicMerge, patch),
            _ => return Err(Error::internal("the kubelet sends no other patches")),
        };
        let resource = &target.resource;
        let ty = type_of(&resource.group, &resource.version, kind_of(&resource.resource));
        let text = patch;
        let patch: Value = serde_json::from_slice(&text).map_err(Error::internal)?;
        let name = target.name.as_deref().unwrap_or("");
        // Held to the end: a write that comes after a deletion must not bring the object back.
        let mut objects = self.objects.lock();
        let object =
            objects.get_mut(&place(target)).ok_or_else(|| Error::not_found(&target.resource, name))?;
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return Err(Error::conflict(&target.resource, name, "the uid differs"));
        }
        *object = apply(patch_type, object, &text, ty)?;
        let mut version = self.version.lock();
        *version += 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.show(&target.resource.resource, object);
        Ok(object.to_string().into())
    }

    async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Bytes, Error> {
        self.check_up().await?;
        let name = target.name.as_deref().unwrap_or("");
        let mut objects = self.objects.lock();
        let known = objects.get(&place(target)).cloned();
        let object = known.ok_or_else(|| Error::not_found(&target.resource, name))?;
        if options.uid.as_deref().is_some_and(|uid| object["metadata"]["uid"] != uid) {
            return Err(Error::conflict(&target.resource, name, "the uid differs"));
        }
        self.deletions.lock().push(name.to_owned());
        objects.remove(&place(target));
        self.pods.remove(&ObjectKey::new(target.namespace.clone().unwrap_or_default(), name));
        Ok(object.to_string().into())
    }

    async fn bind(&self, _: &[Binding]) -> Vec<Result<(), Error>> {
        Vec::new()
    }
}

#[derive(Default)]
pub(crate) struct FakeNetwork {
    pub(crate) pods: Mutex<BTreeMap<String, IpAddr>>,
    next: Mutex<u16>,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus, NetworkError> {
        let mut pods = self.pods.lock();
        let ip = *pods.entry(request.pod_uid.clone()).or_insert_with(|| {
            let mut next = self.next.lock();
            *next += 1;
            let [high, low] = next.to_be_bytes();
            IpAddr::from([10, 1, high, low])
        });
        Ok(PodNetworkStatus { netns: format!("/run/netns/{}", request.pod_uid).into(), ips: vec![ip] })
    }

    async fn teardown(&self, pod_uid: &str) -> Result<(), NetworkError> {
        self.pods.lock().remove(pod_uid);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<String>, NetworkError> {
        Ok(self.pods.lock().keys().cloned().collect())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// News in the order in which it came: `web ready`, `web not ready`, `web terminating`.
#[derive(Default)]
pub(crate) struct News(pub(crate) Mutex<Vec<String>>);

impl LocalEndpoints for News {
    fn pod_ready(&self, pod: &LocalPod, ready: bool) {
        self.0.lock().push(format!("{} {}", pod.name, if ready { "ready" } else { "not ready" }));
    }

    fn pod_terminating(&self, pod: &LocalPod) {
        self.0.lock().push(format!("{} terminating", pod.name));
    }
}

pub(crate) struct Node {
    pub(crate) runtime: FakeRuntime,
    pub(crate) api: Arc<FakeApi>,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) news: Arc<News>,
    pub(crate) objects: Objects,
    pub(crate) kubelet: Kubelet,
    shutdown: CancellationToken,
    /// Last: it goes when nothing of the kubelet is left.
    pub(crate) dir: Arc<Dir>,
}

/// A directory of a test's own, gone with all that is mounted in it.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Arc<Self> {
        Arc::new(Self(tempfile::tempdir().expect("a directory")))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = hawser_kubelet::volumes::mounts::unmount_below(self.path()) {
            println!("{} is left: {error}", self.path().display());
        }
    }
}

impl Node {
    /// A kubelet on an empty node; its list of pods is complete at once.
    pub(crate) fn start() -> Self {
        Self::start_set(|_| {})
    }

    /// The same, with other settings.
    pub(crate) fn start_set(set: impl FnOnce(&mut Config)) -> Self {
        let objects = Objects::default();
        let api = Arc::new(FakeApi::new(&objects));
        let dir = Dir::new();
        Self::start_with(FakeRuntime::new(), api, Arc::default(), objects, dir, set)
    }

    /// The same, and the API is away.
    pub(crate) fn start_offline(set: impl FnOnce(&mut Config)) -> Self {
        let objects = Objects::default();
        let api = Arc::new(FakeApi::new(&objects));
        *api.down.lock() = true;
        let dir = Dir::new();
        Self::start_with(FakeRuntime::new(), api, Arc::default(), objects, dir, set)
    }

    fn start_with(
        runtime: FakeRuntime,
        api: Arc<FakeApi>,
        network: Arc<FakeNetwork>,
        objects: Objects,
        dir: Arc<Dir>,
        set: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::new("n1", IpAddr::from([10, 0, 0, 1]), dir.path());
        config.resolv_conf = dir.path().join("resolv.conf");
        // How full the machine's disk is, is not what is tested.
        config.eviction.thresholds.clear();
        config.image_gc.high_percent = 100;
        set(&mut config);
        let shutdown = CancellationToken::new();
        let news = Arc::new(News::default());
        let parts = Parts {
            runtime: Arc::new(runtime.clone()) as Arc<dyn Runtime>,
            network: network.clone(),
            client: api.clone(),
            status: Arc::new(ClientStatusWriter(api.clone())),
            objects: objects.clone(),
            endpoints: news.clone(),
        };
        let kubelet = Kubelet::start(config, parts, shutdown.clone());
        if !*api.down.lock() {
            objects.pods.replace(api.pods());
        }
        Self { runtime, api, network, news, objects, dir, kubelet, shutdown }
    }

    /// The agent dies and starts again; runtime, network, disk and API stay.
    pub(crate) async fn restart(self) -> Self {
        self.restart_set(|_| {}).await
    }

    /// The same, with other settings.
    pub(crate) async fn restart_set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        self.shutdown.cancel();
        self.kubelet.stopped().await;
        // A new process has a cache of its own, filled by the API again.
        let objects = Objects {
            config_maps: self.objects.config_maps.clone(),
            secrets: self.objects.secrets.clone(),
            ..Objects::default()
        };
        let api = Arc::new(self.api.over(&objects));
        Self::start_with(self.runtime, api, self.network, objects, self.dir, set)
    }

    /// The machine starts again, and the API is away: disk and API stay, and nothing runs.
    pub(crate) async fn reboot_offline(self) -> Self {
        self.offline(FakeRuntime::new(), Arc::default()).await
    }

    /// The agent dies and starts again, and the API is away.
    pub(crate) async fn restart_offline(self) -> Self {
        let (runtime, network) = (self.runtime.clone(), self.network.clone());
        self.offline(runtime, network).await
    }

    async fn offline(self, runtime: FakeRuntime, network: Arc<FakeNetwork>) -> Self {
        let stopped = self.stop().await;
        Self { runtime, network, ..stopped }.start_offline_again()
    }

    /// The agent dies.
    pub(crate) async fn stop(mut self) -> Self {
        self.shutdown.cancel();
        self.kubelet.stopped().await;
        self
    }

    /// The machine starts again after [`Self::stop`], and the API is away.
    pub(crate) fn reboot_offline_again(self) -> Self {
        Self { runtime: FakeRuntime::new(), network: Arc::default(), ..self }.start_offline_again()
    }

    /// It starts again after [`Self::stop`], and the API is away.
    pub(crate) fn start_offline_again(self) -> Self {
        let objects = Objects::default();
        let api = Arc::new(self.api.hidden_from(&objects));
        Self::start_with(self.runtime, api, self.network, objects, self.dir, |_| {})
    }

    /// The API answers, and its list comes in.
    pub(crate) fn api_returns(&self) {
        *self.api.down.lock() = false;
        self.objects.pods.replace(self.api.pods());
    }

    /// Changes a pod as a user does.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut PodSpec)) {
        let mut pod = self.api.pod(name).expect("there");
        change(pod.spec.as_mut().expect("a spec"));
        self.api.put_pod(&pod);
    }

    /// Binds a pod to the node.
    pub(crate) fn bind(&self, name: &str, spec: PodSpec) {
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            self.runtime.publish_image(container.image.as_deref().expect("an image"));
        }
        self.api.put_pod(&pod(name, spec));
    }

    /// Deletes a pod as a user does.
    pub(crate) fn delete(&self, name: &str, grace: i64) {
        let mut pod = self.api.pod(name).expect("there");
        pod.metadata.deletion_timestamp = Some(Time(Timestamp::now() + SignedDuration::from_secs(grace)));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.api.put_pod(&pod);
    }

    pub(crate) fn status(&self, name: &str) -> PodStatus {
        self.api.pod(name).and_then(|p| p.status).unwrap_or_default()
    }

    /// Waits until the pod's status in the API satisfies `condition`.
    pub(crate) async fn wait_status(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&PodStatus) -> bool,
    ) -> PodStatus {
        self.wait(what, || {
            let status = self.status(name);
            condition(&status).then_some(status)
        })
        .await
    }

    /// Polls (on tokio's clock, which tests pause) until `probe` gives something.
    pub(crate) async fn wait<T>(&self, what: &str, probe: impl Fn() -> Option<T>) -> T {
        for _ in 0..100_000 {
            if let Some(found) = probe() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never came: {what}; status {:#?}; events {:#?}", self.status("web"), self.api.events());
    }

    pub(crate) async fn wait_running(&self, name: &str) -> PodStatus {
        self.wait_status(name, "running", |s| s.phase.as_deref() == Some("Running")).await
    }

    /// Waits until the API has no such pod any more.
    pub(crate) async fn wait_gone(&self, name: &str) {
        self.wait("the pod to go", || self.api.pod(name).is_none().then_some(())).await;
    }

    pub(crate) async fn wait_ready(&self, name: &str) -> PodStatus {
        self.wait_status(name, "ready", is_ready).await
    }
}

pub(crate) fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(crate) fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

pub(crate) fn pod(name: &str, spec: PodSpec) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(uid(name)),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec { node_name: Some("n1".into()), ..spec }),
        status: Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() }),
    }
}

pub(crate) fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some(format!("registry.test/{name}:1")), ..Container::default() }
}

pub(crate) fn spec(policy: &str, containers: Vec<Container>) -> PodSpec {
    PodSpec { restart_policy: Some(policy.into()), containers, ..PodSpec::default() }
}
