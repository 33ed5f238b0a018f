//! The scheduler alone: its core in this process, told by hand what the API server would show it.
//!
//! What upstream paces by the clock (churn, deletions, updates) goes on by one object before each batch of 64 pods; and where
//! the scheduler would only wait, time is passed over. Pods are made before the clock starts, where they are measured by the
//! operation that makes them, and do not replace others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hawser_scheduler::{Config, Core};
use k8s_openapi::api::{core::v1::Pod, resource::v1::ResourceClaim};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    ledger::Ledger,
    objects::{self, Which, text},
    report::{Mode, report, report_bytes, report_rate},
    workloads::{self, Churn, Nodes, Op, Pods, Stage, Workload},
};

const BATCH: usize = 64;
/// How much time is passed over at once, and in all before it is said that nothing helps.
const SKIP: Duration = Duration::from_millis(50);
const MOST_SKIPPED: Duration = Duration::from_secs(1800);

/// The scheduler with what the API server would remember.
struct Cluster {
    core: Core,
    start: Instant,
    skipped: Duration,
    /// By uid, which is `<namespace>/<name>`.
    pods: HashMap<String, Pod>,
    /// By name.
    nodes: HashMap<String, Value>,
    claims: HashMap<(String, String), ResourceClaim>,
    ledger: Ledger,
    /// Counts objects, for their names.
    made: usize,
    background: Vec<Background>,
    /// Slices that were made, and how long that took.
    published: (usize, Duration),
}

/// What goes on meanwhile, a step before each batch.
enum Background {
    Come(&'static [&'static str], String),
    /// And what is there now.
    ComeAndGo(&'static [&'static str], String, Vec<Value>),
    /// Pods, the first one last.
    Delete(Vec<String>),
}

pub(crate) fn measure(workload: &Workload) -> Result<()> {
    let mut cluster = Cluster {
        core: Core::new(&Config::default(), 7),
        start: Instant::now(),
        skipped: Duration::ZERO,
        pods: HashMap::new(),
        nodes: HashMap::new(),
        claims: HashMap::new(),
        ledger: Ledger::default(),
        made: 0,
        background: Vec::new(),
        published: (0, Duration::ZERO),
    };
    for (index, op) in workload.ops.iter().enumerate() {
        let own = format!("namespace-{index}");
        cluster.run(workload, op, own).with_context(|| format!("operation {index}"))?;
    }
    Ok(())
}

impl Cluster {
    fn run(&mut self, workload: &Workload, op: &Op, own: String) -> Result<()> {
        match op {
            Op::CreateNodes(nodes) => self.create_nodes(nodes),
            Op::CreateNamespaces { prefix, count, namespace_template } => {
                for index in 0..*count {
                    let mut namespace = match namespace_template {
                        Some(template) => self.named(template, Which { index, count: *count }, None),
                        None => json!({ "kind": "Namespace" }),
                    };
                    namespace["metadata"]["name"] = format!("{prefix}-{index}").into();
                    self.put(namespace);
                }
            }
            Op::CreatePods(pods) => {
                let namespace = pods.namespace.map_or(own, str::to_owned);
                self.create_pods(workload, pods, &namespace)?;
            }
            Op::CreatePodSets { count, namespace_prefix, create_pods_op } => {
                for index in 0..*count {
                    self.create_pods(workload, create_pods_op, &format!("{namespace_prefix}-{index}"))?;
                }
            }
            Op::Churn { mode: Churn::Create, templates, .. } => {
                self.background.push(Background::Come(templates, own));
            }
            Op::Churn { mode: Churn::Recreate, templates, .. } => {
                self.background.push(Background::ComeAndGo(templates, own, Vec::new()));
            }
            Op::CreateAny { template, namespace, count } => {
                let count = count.unwrap_or(1);
                for index in 0..count {
                    let object = self.named(template, Which { index, count }, *namespace);
                    self.put(object);
                }
            }
            Op::UpdateAny { template, namespace, count, .. } => {
                for index in 0..*count {
                    let change = self.named(template, Which { index, count: *count }, *namespace);
                    self.update(&change)?;
                    self.round();
                }
            }
            Op::DeletePods { namespace, label_selector, .. } => {
                let meant = self.pods.iter().filter(|(_, pod)| {
                    pod.metadata.namespace.as_deref() == Some(namespace)
                        && (label_selector.is_none() || kind(pod) == *label_selector)
                });
                let mut uids: Vec<String> = meant.map(|(uid, _)| uid.clone()).collect();
                uids.sort_unstable_by(|a, b| b.cmp(a));
                self.background.push(Background::Delete(uids));
            }
            Op::Barrier { stage_requirement: Stage::Attempted, .. } => while self.round() > 0 {},
            Op::Barrier { stage_requirement: Stage::Scheduled, label_selector } => {
                self.until(|ledger| ledger.is_past(Stage::Scheduled, None, *label_selector))?;
            }
            Op::StartCollectingMetrics { namespaces, label_selector } => {
                self.ledger.collect(namespaces, *label_selector);
                self.published = (0, Duration::ZERO);
            }
            Op::StopCollectingMetrics => self.stop_collecting(workload),
            Op::CreateResourceDriver { max_claims_per_node } => self.publish(*max_claims_per_node),
            Op::AllocResourceClaims { namespace } => self.allocate(namespace),
            Op::Memory { nodes, pods } => self.measure_memory(workload, *nodes, *pods),
            Op::Arrive { .. } => (),
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.start.elapsed() + self.skipped
    }

    fn named(&mut self, template: &str, which: Which, namespace: Option<&str>) -> Value {
        self.made += 1;
        objects::named(template, which, self.made, namespace)
    }

    fn create_nodes(&mut self, op: &Nodes) {
        for index in 0..op.count {
            self.made += 1;
            let (node, csi_node) = objects::node_of(op, index, self.made);
            self.put(node);
            csi_node.into_iter().for_each(|object| self.put(object));
        }
    }

    fn create_pods(&mut self, workload: &Workload, op: &Pods, namespace: &str) -> Result<()> {
        let pods: Vec<Pod> = (0..op.count).map(|index| self.pod(op, namespace, index)).collect();
        if op.collect_metrics {
            self.ledger.collect(&[namespace], None);
        }
        if let Some(first) = pods.first().filter(|_| op.steady_state.is_none()) {
            self.ledger.made(namespace, kind(first), pods.len());
        }
        pods.into_iter().for_each(|pod| self.add(pod));
        if let Some(seconds) = op.steady_state {
            self.replace_for(Duration::from_secs(seconds), op, namespace);
        } else if !op.skip_wait_to_completion {
            self.until(|ledger| ledger.is_past(Stage::Scheduled, Some(namespace), None))?;
        }
        if op.collect_metrics {
            self.stop_collecting(workload);
        }
        Ok(())
    }

    /// A pod with what it names in its place. Where a controller would make a claim for it, that is there, too.
    fn pod(&mut self, op: &Pods, namespace: &str, index: usize) -> Pod {
        self.made += 1;
        let (mut pod, companions) = objects::pod_of(op, namespace, index, self.made);
        companions.into_iter().for_each(|object| self.put(object));
        let reference = pod.pointer_mut("/spec/resourceClaims/0");
        if let Some(reference) = reference.filter(|claim| claim["resourceClaimTemplateName"].is_string()) {
            // A pod that is replaced leaves its claim to the next.
            *reference = json!({ "name": "resource", "resourceClaimName": format!("test-claim-{index}") });
            let which = Which { index, count: op.count };
            self.put(objects::named("resourceclaim", which, 0, Some(namespace)));
        }
        pod["metadata"]["uid"] = uid(&pod).into();
        typed(pod)
    }

    fn add(&mut self, pod: Pod) {
        self.core.pod_changed(&pod, self.now());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.pods.insert(uid, pod);
    }

    /// Deletes each pod that has a node, and makes another one.
    fn replace_for(&mut self, span: Duration, op: &Pods, namespace: &str) {
        let start = Instant::now();
        while start.elapsed() < span {
            self.round();
            // There are few.
            let bound: Vec<String> =
                self.pods.iter().filter(|(_, pod)| has_node(pod)).map(|(uid, _)| uid.clone()).collect();
            for uid in bound {
                self.core.pod_removed(&uid, self.now());
                let gone = self.pods.remove(&uid);
                let index = gone.as_ref().and_then(claim_number).unwrap_or_default();
                let pod = self.pod(op, namespace, index);
                self.add(pod);
            }
        }
    }

    /// An object of another kind than pods.
    fn put(&mut self, object: Value) {
        let now = self.now();
        match text(&object, "/kind") {
            "Namespace" => self.core.namespace_changed(&typed(object), now),
            "Node" => {
                self.nodes.insert(text(&object, "/metadata/name").to_owned(), object.clone());
                self.core.node_changed(&typed(object), now);
            }
            "PersistentVolume" => self.core.volume_changed(&typed(object), now),
            "PersistentVolumeClaim" => self.core.claim_changed(&typed(object), now),
            "CSINode" => self.core.csi_node_changed(&typed(object), now),
            "DeviceClass" => self.core.device_class_changed(&typed(object), now),
            "ResourceSlice" => self.core.slice_changed(&typed(object), now),
            "ResourceClaim" => {
                let uid = uid(&object);
                let mut claim: ResourceClaim = typed(object);
                claim.metadata.uid = Some(uid);
                self.core.device_claim_changed(&claim, now);
                let [namespace, name] = [claim.metadata.namespace.clone(), claim.metadata.name.clone()];
                self.claims.insert((namespace.unwrap_or_default(), name.unwrap_or_default()), claim);
            }
            // The scheduler does not follow them.
            "ResourceClaimTemplate" | "Service" => (),
            other => unreachable!("no workload has a {other}"),
        }
    }

    fn update(&mut self, change: &Value) -> Result<()> {
        let now = self.now();
        if change["kind"] == "Node" {
            let name = text(change, "/metadata/name");
            let mut node = self.nodes.get(name).with_context(|| format!("there is no node {name}"))?.clone();
            objects::merge(&mut node, change);
            self.put(node);
            return Ok(());
        }
        let uid = uid(change);
        let pod = self.pods.get_mut(&uid).with_context(|| format!("there is no pod {uid}"))?;
        let mut changed = serde_json::to_value(&*pod)?;
        objects::merge(&mut changed, change);
        *pod = serde_json::from_value(changed)?;
        self.core.pod_changed(pod, now);
        Ok(())
    }

    /// Slices for the nodes that a driver is for.
    fn publish(&mut self, each: usize) {
        let names = self.nodes.keys().filter(|name| name.starts_with(objects::DRA_NODES));
        let slices: Vec<_> = names.map(|name| typed(objects::slice(name, each))).collect();
        let (start, now) = (Instant::now(), self.now());
        slices.iter().for_each(|slice| self.core.slice_changed(slice, now));
        self.published = (slices.len(), start.elapsed());
    }

    /// In turn: the first device of each node, then the second.
    fn allocate(&mut self, namespace: &str) {
        let mut nodes: Vec<String> =
            self.nodes.keys().filter(|name| name.starts_with(objects::DRA_NODES)).cloned().collect();
        nodes.sort_unstable();
        let mut claims: Vec<ResourceClaim> = self
            .claims
            .iter()
            .filter(|((of, _), _)| of == namespace)
            .map(|(_, claim)| claim.clone())
            .collect();
        claims.sort_unstable_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for (index, mut claim) in claims.into_iter().enumerate() {
            let allocation = objects::allocation(&nodes[index % nodes.len()], index / nodes.len());
            claim.status.get_or_insert_default().allocation = Some(typed(allocation));
            self.core.device_claim_changed(&claim, self.now());
        }
    }

    fn stop_collecting(&mut self, workload: &Workload) {
        let (slices, took) = std::mem::take(&mut self.published);
        if let Some(collected) = self.ledger.collected() {
            if slices > 0 && collected.bound.is_empty() {
                report_rate(workload, Mode::SchedulerOnly, slices, took, "slices/s");
            } else {
                report(workload, Mode::SchedulerOnly, &collected);
            }
        }
    }

    /// Schedules until it is so.
    fn until(&mut self, is_it: impl Fn(&Ledger) -> bool) -> Result<()> {
        let before = self.skipped;
        while !is_it(&self.ledger) {
            if self.round() == 0 {
                self.skipped += SKIP;
            }
            let skipped = self.skipped.saturating_sub(before);
            ensure!(skipped < MOST_SKIPPED, "pods wait without an end: {}", self.ledger.missing());
        }
        Ok(())
    }

    /// One batch; returns how many pods were decided on.
    fn round(&mut self) -> usize {
        self.go_on();
        let now = self.now();
        let decisions = self.core.schedule(BATCH, now);
        let decided = decisions.bindings.len() + decisions.rejected + decisions.preemptions.len();
        for (namespace, name, allocation) in decisions.allocations {
            // As it would be seen in the API.
            if let Some(claim) = self.claims.get_mut(&(namespace, name)) {
                claim.status.get_or_insert_default().allocation = Some(allocation);
                self.core.device_claim_changed(claim, now);
            }
        }
        for binding in decisions.bindings {
            let Some(pod) = self.pods.get_mut(&binding.uid) else { continue };
            pod.spec.get_or_insert_default().node_name = Some(binding.node);
            self.core.pod_changed(pod, now);
            self.ledger.bound(&binding.namespace, kind(pod), &binding.pod);
        }
        for (uid, victims) in decisions.preemptions {
            for victim in victims {
                self.pods.remove(&victim);
                self.core.pod_removed(&victim, now);
            }
            self.core.cleared(&uid, now);
        }
        decided
    }

    /// A step of everything that goes on meanwhile.
    fn go_on(&mut self) {
        let mut background = std::mem::take(&mut self.background);
        for one in &mut background {
            match one {
                Background::Come(templates, namespace) => {
                    for template in *templates {
                        let object = self.churned(template, namespace);
                        self.come(object);
                    }
                }
                Background::ComeAndGo(templates, namespace, there) if there.is_empty() => {
                    *there = templates.iter().map(|template| self.churned(template, namespace)).collect();
                    there.iter().for_each(|object| self.come(object.clone()));
                }
                Background::ComeAndGo(_, _, there) => {
                    for object in std::mem::take(there) {
                        self.go(&object);
                    }
                }
                Background::Delete(uids) => {
                    if let Some(uid) = uids.pop() {
                        self.delete(&uid);
                    }
                }
            }
        }
        self.background = background;
    }

    fn churned(&mut self, template: &str, namespace: &str) -> Value {
        self.named(template, Which { index: 0, count: 1 }, Some(namespace))
    }

    fn come(&mut self, mut object: Value) {
        if object["kind"] == "Pod" {
            object["metadata"]["uid"] = uid(&object).into();
            self.add(typed(object));
        } else {
            self.put(object);
        }
    }

    fn go(&mut self, object: &Value) {
        match text(object, "/kind") {
            "Pod" => self.delete(&uid(object)),
            "Node" => {
                let name = text(object, "/metadata/name");
                self.nodes.remove(name);
                self.core.node_removed(name, self.now());
            }
            _ => (),
        }
    }

    /// A pod with finalizers stays, and is marked.
    fn delete(&mut self, uid: &str) {
        let now = self.now();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.metadata.finalizers.is_some() {
            pod.metadata.deletion_timestamp = Some(typed(json!("2026-01-01T00:00:00Z")));
            self.core.pod_changed(pod, now);
        } else {
            self.pods.remove(uid);
            self.core.pod_removed(uid, now);
        }
    }

    /// Nodes first, then pods that are bound to them in turn.
    fn measure_memory(&mut self, workload: &Workload, nodes: usize, pods: usize) {
        let (node_op, pod_op) = (workloads::nodes(nodes), workloads::pods("pod-default", pods));
        let before = resident();
        for index in 0..nodes {
            let (mut node, _) = objects::node_of(&node_op, index, index);
            node["metadata"]["name"] = format!("node-{index}").into();
            self.core.node_changed(&typed(node), Duration::ZERO);
        }
        let with_nodes = resident();
        for index in 0..pods {
            let (mut pod, _) = objects::pod_of(&pod_op, "default", index, index);
            pod["metadata"]["uid"] = uid(&pod).into();
            pod["spec"]["nodeName"] = format!("node-{}", index % nodes).into();
            self.core.pod_changed(&typed(pod), Duration::ZERO);
        }
        let with_pods = resident();
        report_bytes(workload, "bytes_per_node", with_nodes.saturating_sub(before) / nodes);
        report_bytes(workload, "bytes_per_pod", with_pods.saturating_sub(with_nodes) / pods);
    }
}

fn uid(object: &Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

fn kind(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get("type").map(String::as_str)
}

fn has_node(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Which of an operation's claims the pod has.
fn claim_number(pod: &Pod) -> Option<usize> {
    let claim = pod.spec.as_ref()?.resource_claims.as_ref()?.first()?;
    claim.resource_claim_name.as_deref()?.rsplit('-').next()?.parse().ok()
}

fn typed<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("objects of workloads are well-formed")
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().split(' ').next()).and_then(|number| number.parse::<usize>().ok());
    1024 * kilobytes.unwrap_or_default()
}
