//! The scheduler alone, without API server and store, on the main workloads of upstream's scheduler-perf.
//!
//! `scheduler_perf [--cases <workload>,...]` prints one JSON object a line: `workload`, `mode`, `metric`, `value`, `unit`,
//! `floor`. A pod counts from its coming to its binding being shown by the API; percentiles are of the rates of slices of
//! 500 pods. `floor` is upstream's threshold for the same workload, 0 where it has none.

mod objects;
mod workloads;

use std::{collections::HashMap, time::Instant};

use hawser_scheduler::{Config, Core};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use workloads::{Step, Workload};

const BATCH: usize = 64;
const SLICE: usize = 500;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let cases = arguments.find(|argument| argument == "--cases").and_then(|_| arguments.next());
    let (wanted, known) = (cases.as_deref().unwrap_or_default(), workloads::all());
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|wanted| wanted == name);
    if !known.iter().any(|workload| is_wanted(workload.name)) {
        let names: Vec<&str> = known.iter().map(|workload| workload.name).collect();
        eprintln!("error: no workload is called {wanted:?}; there are {}", names.join(", "));
        std::process::exit(1);
    }
    known.iter().filter(|workload| is_wanted(workload.name)).for_each(measure);
}

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

fn measure(workload: &Workload) {
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
            Step::Pods { count, make } => cluster.place(*count, *make, None),
            Step::Waiting { count, make } => cluster.add(*count, *make),
            Step::Measured { count, make, churn } => {
                cluster.bound_at.clear();
                let start = Instant::now();
                cluster.place(*count, *make, *churn);
                report(workload, start, &cluster.bound_at);
            }
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
    fn place(&mut self, count: usize, make: fn(usize) -> Pod, churn: Option<fn(&mut Core, usize)>) {
        self.waiting = count;
        self.add(count, make);
        let mut rounds = 0;
        while self.waiting > 0 {
            self.round();
            rounds += 1;
            if let Some(churn) = churn {
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

fn report(workload: &Workload, start: Instant, bound_at: &[Instant]) {
    let rate = |pods: usize, from: Instant, to: Instant| pods as f64 / to.duration_since(from).as_secs_f64();
    let end = bound_at.last().copied().unwrap_or(start);
    let edges: Vec<Instant> = std::iter::once(start)
        .chain(bound_at.chunks(SLICE).filter_map(|slice| slice.last().copied()))
        .collect();
    let mut rates: Vec<f64> = edges.windows(2).map(|pair| rate(SLICE, pair[0], pair[1])).collect();
    rates.sort_by(f64::total_cmp);
    let at = |part: f64| rates.get(((rates.len() - 1) as f64 * part) as usize).copied().unwrap_or_default();
    for (metric, value) in
        [("average", rate(bound_at.len(), start, end)), ("p50", at(0.5)), ("p99", at(0.99))]
    {
        let line = json!({
            "workload": workload.name, "mode": "scheduler_only", "metric": metric,
            "value": value.round(), "unit": "pods/s", "floor": workload.floor,
        });
        println!("{line}");
    }
}
