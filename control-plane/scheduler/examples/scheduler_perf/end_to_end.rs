//! The workloads through a control plane of its own: every pod is created by an API server, placed by its scheduler, and
//! bound in its embedded store, durably, before it counts.
//!
//! Server and client share the machine's processors. Pods are created as fast as the server takes them while others are
//! bound, so a rate is that of both. Unlike upstream's benchmark, the server has all its admission plugins: so pods name a
//! PriorityClass and have service accounts, nodes lose the taint of new ones, and an update is a patch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hawser_api::{Client, Error, client::Patch, client::WriteOptions, grpc::Remote};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    background::{self, Made},
    ledger::Ledger,
    objects::{self, HIGH, Which, text},
    report::{Mode, report, report_latency, report_rate},
    seen::{PODS, Seen},
    server::Server,
    wire::{create, delete, object_target, send, wire},
    workloads::{Churn, Nodes, Op, Pods, Stage, Workload},
};

/// Requests at a time; enough for the store to commit many together.
const CONCURRENT: usize = 64;
/// No workload takes so long unless something is stuck.
const DEADLINE: Duration = Duration::from_secs(900);

pub(crate) fn measure(workload: &Workload) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // As upstream, which runs these two where pods have claims from templates.
    let has_templates = |op: &Op| matches!(op, Op::CreateAny { template: "resourceclaimtemplate", .. });
    let controllers: &[&str] = if workload.ops.iter().any(has_templates) {
        &["resourceclaim-controller", "garbage-collector"]
    } else {
        &[]
    };
    runtime.block_on(async {
        let (server, client) = Server::start(controllers).await?;
        let mut cluster = Cluster::new(client).await?;
        let seen = cluster.seen.clone();
        let outcome = tokio::time::timeout(DEADLINE, cluster.run(workload)).await;
        outcome
            .unwrap_or_else(|_| {
                bail!("not done after {DEADLINE:?}; not bound: {}", seen.ledger.lock().missing())
            })
            .with_context(|| format!("the server's log: {}", server.log()))
    })
}

struct Cluster {
    client: Arc<Remote>,
    seen: Arc<Seen>,
    namespaces: BTreeSet<String>,
    /// Names and types of pods, by namespace.
    pods: BTreeMap<String, Vec<(String, Option<String>)>>,
    dra_nodes: Vec<String>,
    /// Counts objects, for their names.
    made: usize,
    /// Slices that were made, and how long that took.
    published: (usize, Duration),
    /// What goes on meanwhile; ends with the cluster.
    background: JoinSet<Result<()>>,
    _watcher: JoinSet<()>,
}

impl Cluster {
    async fn new(client: Remote) -> Result<Self> {
        let client = Arc::new(client);
        let seen = Arc::new(Seen::default());
        let mut watcher = JoinSet::new();
        watcher.spawn(seen.clone().watch(client.clone()));
        let mut cluster = Self {
            client,
            seen,
            namespaces: BTreeSet::new(),
            pods: BTreeMap::new(),
            dra_nodes: Vec::new(),
            made: 0,
            published: (0, Duration::ZERO),
            background: JoinSet::new(),
            _watcher: watcher,
        };
        let class = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": { "name": HIGH }, "value": 10,
        });
        create(&cluster.client, class).await?;
        cluster.service_account("default").await?;
        cluster.namespaces.insert("default".to_owned());
        Ok(cluster)
    }

    async fn run(&mut self, workload: &Workload) -> Result<()> {
        for (index, op) in workload.ops.iter().enumerate() {
            let own = format!("namespace-{index}");
            self.run_one(workload, op, own).await.with_context(|| format!("operation {index}"))?;
            while let Some(ended) = self.background.try_join_next() {
                ended?.context("what goes on meanwhile")?;
            }
        }
        Ok(())
    }

    async fn run_one(&mut self, workload: &Workload, op: &Op, own: String) -> Result<()> {
        match op {
            Op::CreateNodes(nodes) => self.create_nodes(nodes).await?,
            Op::CreateNamespaces { prefix, count, namespace_template } => {
                for index in 0..*count {
                    let which = Which { index, count: *count };
                    let of = |template| objects::named(template, which, 0, None);
                    let namespace = namespace_template.map_or_else(|| json!({ "kind": "Namespace" }), of);
                    self.namespace(&format!("{prefix}-{index}"), namespace).await?;
                }
            }
            Op::CreatePods(pods) => {
                self.create_pods(workload, pods, &pods.namespace.map_or(own, str::to_owned)).await?;
            }
            Op::CreatePodSets { count, namespace_prefix, create_pods_op } => {
                for index in 0..*count {
                    let namespace = format!("{namespace_prefix}-{index}");
                    self.create_pods(workload, create_pods_op, &namespace).await?;
                }
            }
            Op::Churn { mode, templates, interval_milliseconds, .. } => {
                self.ensure_namespace(&own).await?;
                let every = Duration::from_millis(*interval_milliseconds);
                let client = self.client.clone();
                match mode {
                    Churn::Create => self.background.spawn(background::come(client, templates, own, every)),
                    Churn::Recreate => {
                        self.background.spawn(background::come_and_go(client, templates, own, every))
                    }
                };
            }
            Op::CreateAny { template, namespace, count } => {
                if let Some(namespace) = namespace {
                    self.ensure_namespace(namespace).await?;
                }
                let count = count.unwrap_or(1);
                let objects: Vec<Value> = (0..count)
                    .map(|index| self.named(template, Which { index, count }, *namespace))
                    .collect();
                self.create_all(objects).await?;
            }
            Op::UpdateAny { template, namespace, count, update_per_second, subresources } => {
                let mut pace = tokio::time::interval(Duration::from_secs(1) / *update_per_second);
                for index in 0..*count {
                    let which = Which { index, count: *count };
                    let change = objects::named(template, which, 0, *namespace);
                    pace.tick().await;
                    self.update(change, subresources.first().copied()).await?;
                }
            }
            Op::DeletePods { namespace, label_selector, delete_pods_per_second } => {
                let pods = self.pods.get(*namespace).into_iter().flatten();
                let meant =
                    pods.filter(|(_, kind)| label_selector.is_none() || kind.as_deref() == *label_selector);
                let names: Vec<String> = meant.map(|(name, _)| name.clone()).collect();
                let every = Duration::from_secs(1) / *delete_pods_per_second;
                let pods = Made { namespace, names };
                self.background.spawn(background::delete_all(self.client.clone(), pods, every));
            }
            Op::Barrier { stage_requirement, label_selector } => {
                self.seen.until(|ledger| ledger.is_past(*stage_requirement, None, *label_selector)).await?;
            }
            Op::StartCollectingMetrics { namespaces, label_selector } => {
                self.seen.ledger.lock().collect(namespaces, *label_selector);
            }
            Op::StopCollectingMetrics => self.stop_collecting(workload),
            Op::CreateResourceDriver { max_claims_per_node } => {
                let nodes = self.dra_nodes.iter();
                let slices: Vec<Value> =
                    nodes.map(|node| objects::slice(node, *max_claims_per_node)).collect();
                let (count, start) = (slices.len(), Instant::now());
                self.create_all(slices).await?;
                self.published = (count, start.elapsed());
            }
            Op::AllocResourceClaims { namespace } => self.allocate(workload, namespace).await?,
            Op::Memory { .. } => (),
            Op::Arrive { template, count, per_second } => {
                let pods = crate::workloads::pods(template, *count);
                let took = self.arrive(&pods, &own, *per_second).await?;
                report_latency(workload, Mode::EndToEnd, &took);
            }
        }
        Ok(())
    }

    fn named(&mut self, template: &str, which: Which, namespace: Option<&str>) -> Value {
        self.made += 1;
        objects::named(template, which, self.made, namespace)
    }

    async fn ensure_namespace(&mut self, name: &str) -> Result<()> {
        if !self.namespaces.contains(name) {
            self.namespace(name, json!({ "kind": "Namespace" })).await?;
        }
        Ok(())
    }

    async fn namespace(&mut self, name: &str, mut namespace: Value) -> Result<()> {
        namespace["metadata"]["name"] = name.into();
        create(&self.client, namespace).await?;
        self.namespaces.insert(name.to_owned());
        self.service_account(name).await
    }

    /// What pods of a namespace run as; the controller that makes it is not there.
    async fn service_account(&self, namespace: &str) -> Result<()> {
        let metadata = json!({ "name": "default", "namespace": namespace });
        create(&self.client, json!({ "kind": "ServiceAccount", "apiVersion": "v1", "metadata": metadata }))
            .await
    }

    /// New nodes have a taint that a controller takes away when they are ready; there is none here.
    async fn create_nodes(&mut self, op: &Nodes) -> Result<()> {
        let first = self.made + 1;
        self.made += op.count;
        let nodes: Vec<(Value, Option<Value>)> =
            (0..op.count).map(|index| objects::node_of(op, index, first + index)).collect();
        if op.node_template == objects::DRA_NODE {
            self.dra_nodes.extend(nodes.iter().map(|(node, _)| text(node, "/metadata/name").to_owned()));
        }
        let client = &self.client;
        let done = stream::iter(nodes).map(|(node, csi_node)| async move {
            let target = object_target(&node);
            let taints = json!({ "spec": { "taints": node["spec"]["taints"] } });
            create(client, node).await?;
            client.patch(&target, Patch::Merge(encode(&taints)), &WriteOptions::default()).await?;
            match csi_node {
                Some(csi_node) => create(client, csi_node).await,
                None => Ok(()),
            }
        });
        done.buffer_unordered(CONCURRENT).try_collect().await
    }

    async fn create_pods(&mut self, workload: &Workload, op: &Pods, namespace: &str) -> Result<()> {
        self.ensure_namespace(namespace).await?;
        let pods = self.pods_of(op, namespace).await?;
        if op.collect_metrics {
            self.seen.ledger.lock().collect(&[namespace], None);
        }
        if let Some(seconds) = op.steady_state {
            let work = self.replace(op, namespace, pods);
            match tokio::time::timeout(Duration::from_secs(seconds), work).await {
                Err(_) => (),
                Ok(ended) => ended?,
            }
        } else {
            let kind = pods.first().and_then(kind);
            self.seen.ledger.lock().made(namespace, kind, pods.len());
            let is_placed = |ledger: &Ledger| ledger.is_past(Stage::Scheduled, Some(namespace), None);
            if op.skip_wait_to_completion {
                self.create_all(pods).await?;
            } else {
                tokio::try_join!(self.create_all(pods), self.seen.until(is_placed))?;
            }
        }
        if op.collect_metrics {
            self.stop_collecting(workload);
        }
        Ok(())
    }

    /// Makes pods that are not created yet, and creates the volumes that they name.
    async fn pods_of(&mut self, op: &Pods, namespace: &str) -> Result<Vec<Value>> {
        let first = self.made + 1;
        self.made += op.count;
        let made = (0..op.count).map(|index| objects::pod_of(op, namespace, index, first + index));
        let (pods, companions): (Vec<Value>, Vec<Vec<Value>>) = made.unzip();
        self.create_all(companions.into_iter().flatten().collect()).await?;
        let names =
            pods.iter().map(|pod| (text(pod, "/metadata/name").to_owned(), kind(pod).map(str::to_owned)));
        self.pods.entry(namespace.to_owned()).or_default().extend(names);
        Ok(pods)
    }

    /// Deletes each pod that gets a node, and creates another one; ends only where that fails.
    async fn replace(&mut self, op: &Pods, namespace: &str, pods: Vec<Value>) -> Result<()> {
        let mut bound = self.seen.follow(namespace, op.count);
        self.create_all(pods).await?;
        let mut next = self.made;
        let mut replaced = JoinSet::new();
        loop {
            tokio::select! {
                Some(name) = bound.recv() => {
                    next += 1;
                    let (pod, _) = objects::pod_of(op, namespace, 0, next);
                    let (client, namespace) = (self.client.clone(), namespace.to_owned());
                    replaced.spawn(async move {
                        delete(&client, PODS, Some(&namespace), &name, Some(0)).await?;
                        create(&client, pod).await
                    });
                }
                Some(ended) = replaced.join_next() => ended??,
                else => bail!("the watch ended"),
            }
        }
    }

    /// Creates so many pods a second, and waits until all are bound; returns how long each took.
    async fn arrive(&mut self, op: &Pods, namespace: &str, per_second: u32) -> Result<Vec<Duration>> {
        self.ensure_namespace(namespace).await?;
        let pods = self.pods_of(op, namespace).await?;
        {
            let mut ledger = self.seen.ledger.lock();
            ledger.collect(&[namespace], None);
            ledger.made(namespace, None, pods.len());
        }
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        let (mut creations, mut created_at) = (JoinSet::new(), BTreeMap::new());
        for pod in pods {
            pace.tick().await;
            created_at.insert(text(&pod, "/metadata/name").to_owned(), Instant::now());
            let client = self.client.clone();
            creations.spawn(async move { create(&client, pod).await });
        }
        while let Some(created) = creations.join_next().await {
            created??;
        }
        self.seen.until(|ledger| ledger.is_past(Stage::Scheduled, Some(namespace), None)).await?;
        let bound = self.seen.ledger.lock().collected().map(|collected| collected.bound).unwrap_or_default();
        let took = bound.iter().filter_map(|(name, at)| {
            created_at.get(name).map(|created| at.saturating_duration_since(*created))
        });
        Ok(took.collect())
    }

    /// A status is a subresource, and so may be what else the update is about.
    async fn update(&self, mut change: Value, subresource: Option<&'static str>) -> Result<()> {
        let target = object_target(&change);
        let status = change["status"].take();
        let target = subresource.map_or(target.clone(), |name| target.with_subresource(name));
        for field in ["kind", "status"] {
            _ = change.as_object_mut().map(|fields| fields.remove(field));
        }
        let options = WriteOptions::default();
        if status.is_null() {
            self.client.patch(&target, Patch::StrategicMerge(encode(&change)), &options).await?;
        } else {
            let patch = Patch::Merge(encode(&json!({ "status": status })));
            self.client.patch(&target.with_subresource("status"), patch, &options).await?;
        }
        Ok(())
    }

    /// In turn: the first device of each node, then the second.
    async fn allocate(&self, workload: &Workload, namespace: &str) -> Result<()> {
        let made = workload.ops.iter().find_map(|op| match op {
            Op::CreateAny { template: "resourceclaim", namespace: Some(of), count } if *of == namespace => {
                *count
            }
            _ => None,
        });
        let nodes = &self.dra_nodes;
        let done = stream::iter(0..made.unwrap_or_default()).map(|index| async move {
            let claim = objects::named("resourceclaim", Which { index, count: 1 }, 0, Some(namespace));
            let allocation = objects::allocation(&nodes[index % nodes.len()], index / nodes.len());
            let patch = Patch::Merge(encode(&json!({ "status": { "allocation": allocation } })));
            let target = object_target(&claim).with_subresource("status");
            self.client.patch(&target, patch, &WriteOptions::default()).await.map(drop)
        });
        let outcome: Result<(), Error> = done.buffer_unordered(CONCURRENT).try_collect().await;
        outcome.context("cannot allocate claims")
    }

    fn stop_collecting(&mut self, workload: &Workload) {
        let (slices, took) = std::mem::take(&mut self.published);
        if let Some(collected) = self.seen.ledger.lock().collected() {
            if slices > 0 && collected.bound.is_empty() {
                report_rate(workload, Mode::EndToEnd, slices, took, "slices/s");
            } else {
                report(workload, Mode::EndToEnd, &collected);
            }
        }
    }

    async fn create_all(&self, objects: Vec<Value>) -> Result<()> {
        // Encoded before the first is sent.
        let requests: Vec<_> = objects.into_iter().map(wire).collect();
        let created = stream::iter(requests).map(|request| send(&self.client, request));
        created.buffer_unordered(CONCURRENT).try_collect().await
    }
}

fn kind(pod: &Value) -> Option<&str> {
    pod["metadata"]["labels"]["type"].as_str()
}

fn encode(object: &Value) -> Bytes {
    object.to_string().into()
}
