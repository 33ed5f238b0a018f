//! The scheduler alone: its core in this process, told by hand what the API server would show it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hawser_scheduler::{Config, Core};
use k8s_openapi::api::{core::v1::Pod, resource::v1::ResourceClaim};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    objects::{self, CHURNED},
    report::{Mode, report, report_bytes},
    workloads::{Churn, Step, Workload},
};

const BATCH: usize = 64;

/// The scheduler with what the API server would remember.
struct Cluster {
    core: Core,
    start: Instant,
    pods: HashMap<String, Pod>,
    claims: HashMap<String, ResourceClaim>,
    waiting: usize,
    /// Counts pods of all steps, for their names.
    made: usize,
    bound_at: Vec<Instant>,
}

pub(crate) fn measure(workload: &Workload) {
    let mut cluster = Cluster {
        core: Core::new(&Config::default(), 7),
        start: Instant::now(),
        pods: HashMap::new(),
        claims: HashMap::new(),
        waiting: 0,
        made: 0,
        bound_at: Vec::new(),
    };
    for step in &workload.steps {
        match step {
            Step::Namespaces(namespaces) => {
                namespaces
                    .iter()
                    .for_each(|namespace| cluster.core.namespace_changed(namespace, cluster.start.elapsed()));
            }
            Step::Nodes(nodes) => {
                nodes.iter().for_each(|node| cluster.core.node_changed(node, cluster.start.elapsed()));
            }
            Step::Objects(objects) => objects.iter().for_each(|object| cluster.put(object)),
            Step::Pods { count, make } => {
                let pods = cluster.make(*count, *make);
                cluster.place(pods, Churn::None);
            }
            Step::Waiting { count, make } => {
                let pods = cluster.make(*count, *make);
                cluster.add(pods);
            }
            Step::Measured { count, make, churn } => {
                cluster.bound_at.clear();
                let pods = cluster.make(*count, *make);
                let start = Instant::now();
                cluster.place(pods, *churn);
                report(workload, Mode::SchedulerOnly, start, &cluster.bound_at);
            }
            Step::Memory { nodes, pods } => cluster.measure_memory(workload, *nodes, *pods),
            Step::Arriving { .. } => (),
        }
    }
}

impl Cluster {
    /// Makes pods, and puts what they name where it is to be found.
    fn make(&mut self, count: usize, make: fn(usize) -> Pod) -> Vec<Pod> {
        let indices = self.made + 1..=self.made + count;
        self.made += count;
        let pods: Vec<Pod> = indices.clone().map(make).collect();
        for (pod, index) in pods.iter().zip(indices) {
            objects::companions(pod, index).iter().for_each(|object| self.put(object));
        }
        pods
    }

    fn add(&mut self, pods: Vec<Pod>) {
        for pod in pods {
            self.core.pod_changed(&pod, self.start.elapsed());
            self.pods.insert(pod.metadata.uid.clone().unwrap_or_default(), pod);
        }
    }

    /// Adds pods and schedules until all of them are bound.
    fn place(&mut self, pods: Vec<Pod>, churn: Churn) {
        self.waiting = pods.len();
        self.add(pods);
        let mut rounds = 0;
        while self.waiting > 0 {
            self.round();
            rounds += 1;
            match churn {
                Churn::None => (),
                Churn::NodeAndPod => come_and_go(&mut self.core, rounds),
                Churn::Preemptors => {
                    let pod = objects::high_priority(CHURNED + rounds);
                    self.core.pod_changed(&pod, self.start.elapsed());
                }
            }
        }
    }

    /// An object of another kind than nodes and pods.
    fn put(&mut self, object: &Value) {
        let now = self.start.elapsed();
        match object["kind"].as_str().unwrap_or_default() {
            "PersistentVolume" => self.core.volume_changed(&typed(object), now),
            "PersistentVolumeClaim" => self.core.claim_changed(&typed(object), now),
            "CSINode" => self.core.csi_node_changed(&typed(object), now),
            "DeviceClass" => self.core.device_class_changed(&typed(object), now),
            "ResourceSlice" => self.core.slice_changed(&typed(object), now),
            "ResourceClaim" => {
                let claim: ResourceClaim = typed(object);
                self.core.device_claim_changed(&claim, now);
                self.claims.insert(claim.metadata.name.clone().unwrap_or_default(), claim);
            }
            other => unreachable!("no workload has a {other}"),
        }
    }

    /// Nodes first, then pods that are bound to them in turn.
    fn measure_memory(&mut self, workload: &Workload, nodes: usize, pods: usize) {
        let before = resident();
        (0..nodes).for_each(|index| self.core.node_changed(&objects::node(index, &[]), Duration::ZERO));
        let with_nodes = resident();
        for index in 0..pods {
            let mut pod = objects::default_pod(index);
            pod.spec.get_or_insert_default().node_name = Some(format!("node-{}", index % nodes));
            self.core.pod_changed(&pod, Duration::ZERO);
        }
        let with_pods = resident();
        report_bytes(workload, "bytes_per_node", with_nodes.saturating_sub(before) / nodes);
        report_bytes(workload, "bytes_per_pod", with_pods.saturating_sub(with_nodes) / pods);
    }

    fn round(&mut self) {
        let decisions = self.core.schedule(BATCH, self.start.elapsed());
        for (_, name, allocation) in decisions.allocations {
            // As it would be seen in the API.
            if let Some(mut claim) = self.claims.remove(&name) {
                claim.status.get_or_insert_default().allocation = Some(allocation);
                self.core.device_claim_changed(&claim, self.start.elapsed());
            }
        }
        for binding in decisions.bindings {
            let Some(mut pod) = self.pods.remove(&binding.uid) else {
                continue;
            };
            pod.spec.get_or_insert_default().node_name = Some(binding.node);
            self.core.pod_changed(&pod, self.start.elapsed());
            self.waiting = self.waiting.saturating_sub(1);
            self.bound_at.push(Instant::now());
        }
        for (uid, victims) in decisions.preemptions {
            victims.iter().for_each(|victim| self.core.pod_removed(victim, self.start.elapsed()));
            self.core.cleared(&uid, self.start.elapsed());
        }
    }
}

/// A node and a pod that fits nowhere come and go, both before each batch of pods.
fn come_and_go(core: &mut Core, round: usize) {
    let now = Duration::from_secs(round as u64);
    let node = objects::node(CHURNED, &[]);
    core.node_removed(node.metadata.name.as_deref().unwrap_or_default(), now);
    core.node_changed(&node, now);
    let pod = objects::too_large(CHURNED);
    core.pod_removed(pod.metadata.uid.as_deref().unwrap_or_default(), now);
    core.pod_changed(&pod, now);
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).expect("objects of workloads are well-formed")
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().split(' ').next()).and_then(|number| number.parse::<usize>().ok());
    1024 * kilobytes.unwrap_or_default()
}
