//! The workloads through a control plane of its own: every pod is created by an API server, placed by its scheduler, and
//! bound in its embedded store, durably, before it counts.
//!
//! Server and client share the machine's processors. Pods are created as fast as the server takes them while others are
//! bound, so a rate is that of both.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{DeleteOptions, ListOptions, Patch, WatchEvent, WatchOptions, WriteOptions},
    grpc::Remote,
    resource::Target,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    objects::{self, CHURNED},
    report::{Mode, report, report_latency},
    server::Server,
    workloads::{Churn, Step, Workload},
};

/// Requests at a time; enough for the store to commit many together.
const CONCURRENT: usize = 64;
/// No workload takes so long unless something is stuck.
const DEADLINE: Duration = Duration::from_secs(900);
/// As often as upstream's churn.
const CHURN_EVERY: Duration = Duration::from_secs(1);
const PREEMPT_EVERY: Duration = Duration::from_millis(200);
/// What pods of priority 10 name.
const HIGH: &str = "high";

const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");
const NODES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "nodes");
const NAMESPACES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "namespaces");
const ACCOUNTS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "serviceaccounts");
const CLASSES: GroupVersionResource =
    GroupVersionResource::fixed("scheduling.k8s.io", "v1", "priorityclasses");

pub(crate) fn measure(workload: &Workload) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (server, client) = Server::start().await?;
        let work = async { Cluster::new(client).await?.run(workload).await };
        let outcome = tokio::time::timeout(DEADLINE, work).await;
        outcome
            .unwrap_or_else(|_| bail!("not done after {DEADLINE:?}"))
            .with_context(|| format!("the server's log: {}", server.log()))
    })
}

struct Cluster {
    client: Arc<Remote>,
    seen: Arc<Seen>,
    /// Counts pods of all steps, for their names.
    made: usize,
    /// The watch; ends with the cluster.
    _watcher: JoinSet<()>,
}

/// What the watch has shown.
#[derive(Default)]
struct Seen {
    bound: Mutex<Bound>,
    changed: Notify,
}

#[derive(Default)]
struct Bound {
    /// Pods with a smaller number do not count.
    first: usize,
    at: HashMap<usize, Instant>,
    /// Why the watch ended.
    failed: Option<String>,
}

/// The part of a pod that is looked at.
#[derive(Deserialize)]
struct PodSeen {
    metadata: Named,
    spec: Placed,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    node_name: Option<String>,
}

impl Cluster {
    async fn new(client: Remote) -> Result<Self> {
        let client = Arc::new(client);
        let class = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": HIGH }, "value": 10,
        });
        create(&client, &Target::collection(CLASSES, None), encode(&class)).await?;
        account(&client, "default").await?;
        let seen = Arc::new(Seen::default());
        let mut watcher = JoinSet::new();
        watcher.spawn(watch(client.clone(), seen.clone()));
        let mut cluster = Self { client, seen, made: 0, _watcher: watcher };
        cluster.namespaces(&[objects::namespace("sched-0"), objects::namespace("sched-1")]).await?;
        Ok(cluster)
    }

    async fn run(mut self, workload: &Workload) -> Result<()> {
        for step in &workload.steps {
            match step {
                Step::Namespaces(namespaces) => self.namespaces(namespaces).await?,
                Step::Nodes(nodes) => self.nodes(nodes).await?,
                Step::Objects(objects) => {
                    let all = objects.iter().map(object_wire).collect();
                    self.create_all(all).await?;
                }
                Step::Pods { count, make } => _ = self.place(*count, *make, Churn::None).await?,
                Step::Waiting { count, make } => {
                    let pods = self.pods(*count, *make);
                    self.create_all(pods).await?;
                }
                Step::Measured { count, make, churn } => {
                    let (start, bound_at) = self.place(*count, *make, *churn).await?;
                    report(workload, Mode::EndToEnd, start, &bound_at);
                }
                Step::Memory { .. } => (),
                Step::Arriving { count, make, per_second } => {
                    let took = self.arrive(*count, *make, *per_second).await?;
                    report_latency(workload, Mode::EndToEnd, took);
                }
            }
        }
        Ok(())
    }

    async fn namespaces(&mut self, namespaces: &[Namespace]) -> Result<()> {
        for namespace in namespaces {
            create(&self.client, &Target::collection(NAMESPACES, None), encode(namespace)).await?;
            account(&self.client, namespace.metadata.name.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// New nodes have a taint that a controller takes away when they are ready; there is none here.
    async fn nodes(&mut self, nodes: &[Node]) -> Result<()> {
        let client = &self.client;
        let done = stream::iter(nodes).map(|node| async move {
            create(client, &Target::collection(NODES, None), encode(node)).await?;
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let untainted = Patch::Merge(encode(&json!({ "spec": { "taints": null } })));
            client.patch(&Target::object(NODES, None, name), untainted, &WriteOptions::default()).await?;
            Ok::<_, anyhow::Error>(())
        });
        done.buffer_unordered(CONCURRENT).try_collect().await
    }

    /// The next pods, ready to be sent.
    fn pods(&mut self, count: usize, make: fn(usize) -> Pod) -> Vec<(Target, Bytes)> {
        let numbers = self.made + 1..=self.made + count;
        self.made += count;
        numbers.map(|number| wire(&make(number))).collect()
    }

    /// Creates pods and waits until all are bound; returns when it began, and when each was seen to be bound.
    async fn place(
        &mut self,
        count: usize,
        make: fn(usize) -> Pod,
        churn: Churn,
    ) -> Result<(Instant, Vec<Instant>)> {
        let first = self.made + 1;
        self.seen.begin(first);
        // Before the clock starts: a controller of the cluster would have made them.
        let companions = (first..first + count).flat_map(|index| objects::companions(&make(index), index));
        let companions = companions.map(|object| object_wire(&object)).collect();
        self.create_all(companions).await?;
        let pods = self.pods(count, make);
        let mut churner = JoinSet::new();
        match churn {
            Churn::None => (),
            Churn::NodeAndPod => _ = churner.spawn(come_and_go(self.client.clone())),
            Churn::Preemptors => _ = churner.spawn(preempt(self.client.clone())),
        }
        let start = Instant::now();
        tokio::try_join!(self.create_all(pods), self.seen.wait(count))?;
        if let Some(ended) = churner.try_join_next() {
            ended?.context("churn")?;
        }
        let mut bound_at: Vec<Instant> = self.seen.bound.lock().at.values().copied().collect();
        bound_at.sort_unstable();
        Ok((start, bound_at))
    }

    /// Creates so many pods a second, and waits until all are bound; returns how long each took.
    async fn arrive(
        &mut self,
        count: usize,
        make: fn(usize) -> Pod,
        per_second: u32,
    ) -> Result<Vec<Duration>> {
        let first = self.made + 1;
        self.seen.begin(first);
        let pods = self.pods(count, make);
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        let (mut creations, mut created_at) = (JoinSet::new(), Vec::with_capacity(count));
        for (target, pod) in pods {
            pace.tick().await;
            created_at.push(Instant::now());
            let client = self.client.clone();
            creations.spawn(async move { create(&client, &target, pod).await });
        }
        while let Some(created) = creations.join_next().await {
            created??;
        }
        self.seen.wait(count).await?;
        let bound = self.seen.bound.lock();
        let took = (first..).zip(created_at).filter_map(|(number, created)| {
            bound.at.get(&number).map(|at| at.saturating_duration_since(created))
        });
        Ok(took.collect())
    }

    async fn create_all(&self, pods: Vec<(Target, Bytes)>) -> Result<()> {
        let created =
            stream::iter(pods).map(|(target, pod)| async move { create(&self.client, &target, pod).await });
        created.buffer_unordered(CONCURRENT).try_collect().await
    }
}

impl Seen {
    fn begin(&self, first: usize) {
        let mut bound = self.bound.lock();
        bound.first = first;
        bound.at.clear();
    }

    /// Waits until so many pods are bound.
    async fn wait(&self, count: usize) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let bound = self.bound.lock();
                if let Some(why) = &bound.failed {
                    bail!("the watch ended: {why}");
                }
                if bound.at.len() >= count {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

async fn watch(client: Arc<Remote>, seen: Arc<Seen>) {
    let outcome = follow(&client, &seen).await;
    let why = outcome.err().map_or_else(|| "by the server".to_owned(), |error| format!("{error:#}"));
    seen.bound.lock().failed = Some(why);
    seen.changed.notify_waiters();
}

async fn follow(client: &Remote, seen: &Seen) -> Result<()> {
    let all = Target::collection(PODS, None);
    let resource_version = client.list(&all, &ListOptions::default()).await?.resource_version;
    let options = WatchOptions { resource_version, ..WatchOptions::default() };
    let mut events = client.watch(&all, &options).await?;
    while let Some(event) = events.next().await {
        if let WatchEvent::Modified { object, .. } = event? {
            let pod: PodSeen = serde_json::from_slice(&object)?;
            if pod.spec.node_name.is_some() {
                seen.note(&pod.metadata.name);
            }
        }
    }
    Ok(())
}

impl Seen {
    fn note(&self, name: &str) {
        let number = name.strip_prefix("pod-").and_then(|number| number.parse::<usize>().ok());
        let mut bound = self.bound.lock();
        if let Some(number) = number.filter(|number| *number >= bound.first) {
            bound.at.entry(number).or_insert_with(Instant::now);
            drop(bound);
            self.changed.notify_waiters();
        }
    }
}

/// A node and a pod that fits nowhere come and go.
async fn come_and_go(client: Arc<Remote>) -> Result<()> {
    let node = objects::node(CHURNED, &[]);
    let (collection, pod) = wire(&objects::too_large(CHURNED));
    let node_target = Target::object(NODES, None, node.metadata.name.as_deref().unwrap_or_default());
    let pod_target = Target::object(PODS, collection.namespace.as_deref(), &format!("pod-{CHURNED}"));
    let mut every = tokio::time::interval(CHURN_EVERY);
    loop {
        every.tick().await;
        create(&client, &Target::collection(NODES, None), encode(&node)).await?;
        create(&client, &collection, pod.clone()).await?;
        every.tick().await;
        client.delete(&node_target, &DeleteOptions::default()).await?;
        client.delete(&pod_target, &DeleteOptions::default()).await?;
    }
}

/// Pods of high priority come, as often as upstream's.
async fn preempt(client: Arc<Remote>) -> Result<()> {
    let mut every = tokio::time::interval(PREEMPT_EVERY);
    for index in CHURNED.. {
        every.tick().await;
        let (collection, pod) = wire(&objects::high_priority(index));
        create(&client, &collection, pod).await?;
    }
    Ok(())
}

/// The service account that pods of a namespace run as; the controller that makes it is not there.
async fn account(client: &Remote, namespace: &str) -> Result<()> {
    let account = json!({ "kind": "ServiceAccount", "apiVersion": "v1", "metadata": { "name": "default" } });
    create(client, &Target::collection(ACCOUNTS, Some(namespace)), encode(&account)).await
}

async fn create(client: &Remote, target: &Target, object: Bytes) -> Result<()> {
    let created: Result<Bytes, Error> = client.create(target, object, &WriteOptions::default()).await;
    created.map(|_| ()).with_context(|| format!("cannot create one of {}", target.resource))
}

/// The pod as a client sends it: without what the server gives, and gone at once when it is deleted.
fn wire(pod: &Pod) -> (Target, Bytes) {
    let target = Target::collection(PODS, pod.metadata.namespace.as_deref());
    let mut object = serde_json::to_value(pod).expect("a pod is JSON");
    object["metadata"]["uid"] = Value::Null;
    object["spec"]["automountServiceAccountToken"] = false.into();
    object["spec"]["terminationGracePeriodSeconds"] = 0.into();
    if pod.spec.as_ref().and_then(|spec| spec.priority).is_some() {
        object["spec"]["priority"] = Value::Null;
        object["spec"]["priorityClassName"] = HIGH.into();
    }
    (target, object.to_string().into())
}

/// An object of another kind, by what it says it is.
fn object_wire(object: &Value) -> (Target, Bytes) {
    let kind = object["kind"].as_str().unwrap_or_default();
    let resource = match kind {
        "PersistentVolume" => GroupVersionResource::fixed("", "v1", "persistentvolumes"),
        "PersistentVolumeClaim" => GroupVersionResource::fixed("", "v1", "persistentvolumeclaims"),
        "CSINode" => GroupVersionResource::fixed("storage.k8s.io", "v1", "csinodes"),
        "DeviceClass" => GroupVersionResource::fixed("resource.k8s.io", "v1", "deviceclasses"),
        "ResourceSlice" => GroupVersionResource::fixed("resource.k8s.io", "v1", "resourceslices"),
        "ResourceClaim" => GroupVersionResource::fixed("resource.k8s.io", "v1", "resourceclaims"),
        other => unreachable!("no workload has a {other}"),
    };
    let mut object = object.clone();
    object["metadata"]["uid"] = Value::Null;
    (Target::collection(resource, object["metadata"]["namespace"].as_str()), object.to_string().into())
}

fn encode<T: serde::Serialize>(object: &T) -> Bytes {
    serde_json::to_vec(object).expect("the objects of workloads are JSON").into()
}
