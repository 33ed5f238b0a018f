//! The scheduler alone: its core in this process, told by hand what the API server would show it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use hawser_scheduler::{Config, Core};
use k8s_openapi::api::core::v1::Pod;

use crate::{
    objects::{self, CHURNED},
    report::{Mode, report},
    workloads::{Step, Workload},
};

const BATCH: usize = 64;

/// The scheduler with what the API server would remember.
struct Cluster {
    core: Core,
    start: Instant,
    pods: HashMap<String, Pod>,
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
            Step::Pods { count, make } => cluster.place(*count, *make, false),
            Step::Waiting { count, make } => cluster.add(*count, *make),
            Step::Measured { count, make, churns } => {
                cluster.bound_at.clear();
                let start = Instant::now();
                cluster.place(*count, *make, *churns);
                report(workload, Mode::SchedulerOnly, start, &cluster.bound_at);
            }
            Step::Arriving { .. } => (),
        }
    }
}

impl Cluster {
    fn add(&mut self, count: usize, make: fn(usize) -> Pod) {
        let pods: Vec<Pod> = (0..count)
            .map(|_| {
                self.made += 1;
                make(self.made)
            })
            .collect();
        for pod in pods {
            self.core.pod_changed(&pod, self.start.elapsed());
            self.pods.insert(pod.metadata.uid.clone().unwrap_or_default(), pod);
        }
    }

    /// Adds pods and schedules until all of them are bound.
    fn place(&mut self, count: usize, make: fn(usize) -> Pod, churns: bool) {
        self.waiting = count;
        self.add(count, make);
        let mut rounds = 0;
        while self.waiting > 0 {
            self.round();
            rounds += 1;
            if churns {
                churn(&mut self.core, rounds);
            }
        }
    }

    fn round(&mut self) {
        let decisions = self.core.schedule(BATCH, self.start.elapsed());
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
fn churn(core: &mut Core, round: usize) {
    let now = Duration::from_secs(round as u64);
    let node = objects::node(CHURNED, &[]);
    core.node_removed(node.metadata.name.as_deref().unwrap_or_default(), now);
    core.node_changed(&node, now);
    let pod = objects::too_large(CHURNED);
    core.pod_removed(pod.metadata.uid.as_deref().unwrap_or_default(), now);
    core.pod_changed(&pod, now);
}
