//! The cases.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    Options,
    cluster::{Cluster, NODE},
    floor::Floor,
    processes::{self, Usage},
    report::{Report, percentile},
};

pub(crate) const NAMES: [&str; 6] = ["one", "many", "memory", "probes", "restart", "pull"];

/// Pods at once in the case `many`.
const MANY: usize = 100;
/// How many a node has by default.
const FULL: usize = 110;
const OVERFULL: usize = 500;
/// Longer than the agent keeps what it has freed.
const GIVEN_BACK: Duration = Duration::from_secs(25);
/// How long probes are watched, and how long it takes until all of them have begun.
const WATCHED: Duration = Duration::from_secs(30);
const SETTLED: Duration = Duration::from_secs(10);
/// `ctr run`s at the same time: as many as make it fastest here.
const CTR_AT_ONCE: usize = 4;

pub(crate) async fn run(options: &Options, cluster: &Cluster, report: &Report) -> Result<()> {
    let bench = Bench { rounds: options.rounds, cluster, report, floor: Floor::new(cluster)? };
    // The image is there from here on.
    let first = names("first", 1);
    cluster.make(&first, &cluster.image("busybox:1")).await?;
    cluster.running(&first).await?;
    cluster.remove(&first).await?;
    if options.wants("one") {
        bench.one().await.context("one")?;
    }
    if options.wants("many") {
        bench.many().await.context("many")?;
    }
    if options.wants("memory") {
        bench.memory().await.context("memory")?;
    }
    if options.wants("probes") {
        bench.probes().await.context("probes")?;
    }
    if options.wants("restart") {
        bench.restart().await.context("restart")?;
    }
    if options.wants("pull") {
        bench.pull().await.context("pull")?;
    }
    Ok(())
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

struct Bench<'a> {
    rounds: usize,
    cluster: &'a Cluster,
    report: &'a Report,
    floor: Floor<'a>,
}

/// Processor time of what a node needs for its pods.
struct Spent {
    agent: Duration,
    containerd: Duration,
    shims: Duration,
    /// What shims have run: runc, and processes in containers that have ended.
    runc: Duration,
}

impl Bench<'_> {
    fn image(&self) -> String {
        self.cluster.image("busybox:1")
    }

    /// Times from asking to running.
    async fn start(&self, names: &[String], image: &str) -> Result<Vec<Duration>> {
        let asked = self.cluster.make(names, image).await?;
        let running = self.cluster.running(names).await?;
        Ok(asked
            .iter()
            .zip(running)
            .map(|(asked, running)| running.saturating_duration_since(*asked))
            .collect())
    }

    fn agent(&self) -> Result<Usage> {
        processes::of(self.cluster.pid_of("agent")?)
    }

    /// The shims of this node's containerd.
    fn shims(&self) -> Usage {
        let socket = self.cluster.containerd_socket();
        let socket = socket.to_string_lossy();
        processes::that(|words| words[0].ends_with("containerd-shim-runc-v2") && words.contains(&&*socket))
    }

    /// The processes that write the logs of this node's containers.
    fn log_writers(&self) -> Usage {
        let place = format!("/{}/{NODE}/", self.cluster.name);
        processes::that(|words| {
            words.get(1) == Some(&"log-writer") && words.iter().any(|word| word.contains(&place))
        })
    }

    fn spent(&self) -> Result<Spent> {
        let containerd = processes::of(self.cluster.pid_of("containerd")?)?;
        let (agent, shims) = (self.agent()?, self.shims());
        Ok(Spent { agent: agent.cpu, containerd: containerd.cpu, shims: shims.cpu, runc: shims.ended_cpu })
    }

    /// One pod after the other, in turns with the floor.
    async fn one(&self) -> Result<()> {
        let (mut pods, mut ctr, mut runc) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds {
            let name = names(&format!("one{round}"), 1);
            pods.extend(self.start(&name, &self.image()).await?);
            self.cluster.remove(&name).await?;
            let id = format!("floor{round}");
            ctr.push(self.floor.ctr_run(&id)?);
            self.floor.ctr_remove(&id)?;
            runc.push(self.floor.runc_run(&id)?);
            self.floor.runc_remove(&id)?;
        }
        self.report.times("one", "hawser", "running", &mut pods);
        self.report.times("one", "ctr", "running", &mut ctr);
        self.report.times("one", "runc", "running", &mut runc);
        let ratio = percentile(&mut pods, 0.5) / percentile(&mut ctr, 0.5);
        self.report.print("one", "hawser", "p50_over_ctr", ratio, "");
        Ok(())
    }

    /// A hundred pods at once.
    async fn many(&self) -> Result<()> {
        let (mut pods, mut all, mut ctr_all) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.rounds.div_ceil(7) {
            let names = names(&format!("many{round}"), MANY);
            let before = self.spent()?;
            let begin = Instant::now();
            pods.extend(self.start(&names, &self.image()).await?);
            all.push(begin.elapsed());
            let after = self.spent()?;
            if round == 0 {
                let each = |time: Duration| time.as_secs_f64() * 1e3 / MANY as f64;
                let cpu = |peer: &str, time: Duration| {
                    self.report.print("many", peer, "cpu_each", each(time), "ms");
                };
                cpu("agent", after.agent.saturating_sub(before.agent));
                cpu("containerd", after.containerd.saturating_sub(before.containerd));
                cpu("shims", after.shims.saturating_sub(before.shims));
                for (peer, usage) in [("shims", self.shims()), ("writers", self.log_writers())] {
                    let each = usage.proportional / usage.processes.max(1) as f64;
                    self.report.print("many", peer, "memory_each", each, "MiB");
                }
            }
            self.cluster.remove(&names).await?;
            ctr_all.push(self.many_by_ctr(round)?);
        }
        self.report.times("many", "hawser", "running", &mut pods);
        for (peer, times) in [("hawser", &mut all), ("ctr", &mut ctr_all)] {
            let milliseconds = percentile(times, 0.5);
            self.report.print("many", peer, "all_running", milliseconds / 1e3, "s");
            self.report.print("many", peer, "rate", MANY as f64 * 1e3 / milliseconds, "pods/s");
        }
        Ok(())
    }

    fn many_by_ctr(&self, round: usize) -> Result<Duration> {
        let ids = names(&format!("floor-many{round}"), MANY);
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let parts: Vec<_> = ids.chunks(MANY / CTR_AT_ONCE).collect();
            let threads: Vec<_> = parts
                .into_iter()
                .map(|part| scope.spawn(|| part.iter().try_for_each(|id| self.floor.ctr_run(id).map(drop))))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
        })?;
        let took = begin.elapsed();
        ids.iter().try_for_each(|id| self.floor.ctr_remove(id))?;
        Ok(took)
    }

    /// The agent's memory with as many pods as a node has, and with many more.
    async fn memory(&self) -> Result<()> {
        self.report.print("memory", "agent", "resident_at_0", self.agent()?.resident, "MiB");
        let all = names("memory", OVERFULL);
        let (first, rest) = all.split_at(FULL);
        for (names, count) in [(first, FULL), (rest, OVERFULL)] {
            self.start(names, &self.image()).await?;
            // The agent gives back what it needed for the starts.
            tokio::time::sleep(GIVEN_BACK).await;
            let agent = self.agent()?;
            self.report.print("memory", "agent", &format!("resident_at_{count}"), agent.resident, "MiB");
        }
        self.cluster.remove(&all).await
    }

    /// Processor time that a full node takes in a second: without probes, with three of a pod that connect to it every second,
    /// and with one that runs a command in it every ten seconds beside two of these. (Each run of runc takes tens of
    /// milliseconds: one a second of each pod would be several processors' work for any kubelet.)
    async fn probes(&self) -> Result<()> {
        let http = || json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 });
        let tcp = || json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
        let exec = || json!({ "exec": { "command": ["true"] }, "periodSeconds": 10, "timeoutSeconds": 5 });
        let server = json!(["sh", "-c", "echo here > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]);
        let pods = |first: [Value; 2], second: Value| {
            json!([
                { "name": "main", "command": server, "readinessProbe": first[0], "livenessProbe": first[1] },
                { "name": "beside", "command": ["sleep", "3600"], "livenessProbe": second },
            ])
        };
        for (metric, containers) in [
            ("cpu_no_probes", pods([Value::Null, Value::Null], Value::Null)),
            ("cpu_http_http_tcp", pods([http(), http()], tcp())),
            ("cpu_http_exec_tcp", pods([http(), exec()], tcp())),
        ] {
            let names = names(&metric.replace('_', "-"), FULL);
            self.cluster.make_of(&names, &self.image(), containers).await?;
            self.cluster.running(&names).await?;
            tokio::time::sleep(SETTLED).await;
            let (before, begin) = (self.spent()?, Instant::now());
            tokio::time::sleep(WATCHED).await;
            let (after, seconds) = (self.spent()?, begin.elapsed().as_secs_f64());
            let each = |peer: &str, now: Duration, then: Duration| {
                let spent = now.saturating_sub(then).as_secs_f64() * 1e3 / seconds;
                self.report.print("probes", peer, metric, spent, "ms/s");
            };
            each("agent", after.agent, before.agent);
            each("containerd", after.containerd, before.containerd);
            each("shims", after.shims, before.shims);
            each("runc", after.runc, before.runc);
            let restarts = self.cluster.restarts(&names);
            self.cluster.remove(&names).await?;
            ensure!(restarts == 0, "{restarts} containers were started again");
        }
        Ok(())
    }

    /// An agent that is killed and started again, beside a full node.
    async fn restart(&self) -> Result<()> {
        let names = names("restart", FULL);
        self.start(&names, &self.image()).await?;
        let (mut known, mut followed) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds.div_ceil(4) {
            let (pods, service_path) = self.restart_agent()?;
            known.push(pods);
            followed.push(service_path);
        }
        self.report.times("restart", "hawser", "pods_adopted", &mut known);
        self.report.times("restart", "hawser", "service_path_adopted", &mut followed);
        let restarts = self.cluster.restarts(&names);
        self.cluster.remove(&names).await?;
        ensure!(restarts == 0, "{restarts} containers were started again");
        Ok(())
    }

    /// Times from the start of the new process until it says that it looks after all pods, and that the service path follows
    /// what changes, which until then it serves as it was.
    fn restart_agent(&self) -> Result<(Duration, Duration)> {
        const PODS: &str = "the API's pods are known";
        const SERVICE_PATH: &str = "pods of the last run are adopted";
        const DEADLINE: Duration = Duration::from_secs(60);
        let log = self.cluster.agent_log()?;
        let [pods_before, followed_before] = [PODS, SERVICE_PATH].map(|text| log.matches(text).count());
        let old = self.cluster.pid_of("agent")?;
        kill(Pid::from_raw(old), Signal::SIGKILL)?;
        let mut up = self.cluster.start_again()?;
        let asked = Instant::now();
        let (mut begin, mut pods) = (None, None);
        loop {
            ensure!(asked.elapsed() < DEADLINE, "no agent after {} s", DEADLINE.as_secs());
            if begin.is_none() && self.cluster.pid_of("agent").is_ok_and(|pid| pid != old) {
                begin = Some(Instant::now());
            }
            let log = self.cluster.agent_log()?;
            if let Some(begin) = begin {
                if pods.is_none() && log.matches(PODS).count() > pods_before {
                    pods = Some(begin.elapsed());
                }
                if let Some(pods) = pods
                    && log.matches(SERVICE_PATH).count() > followed_before
                {
                    let followed = begin.elapsed();
                    ensure!(up.wait()?.success(), "`up` failed");
                    return Ok((pods, followed));
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A large image that the node does not have: until a pod of it runs, and until `ctr` has it.
    async fn pull(&self) -> Result<()> {
        let image = self.cluster.image("large:1");
        let (mut pods, mut ctr) = (Vec::new(), Vec::new());
        for round in 0..self.rounds.div_ceil(7) {
            let name = names(&format!("pull{round}"), 1);
            pods.extend(self.start(&name, &image).await?);
            self.cluster.remove(&name).await?;
            self.cluster.forget_image(&image)?;
            ctr.push(self.floor.pull(&image)?);
            self.floor.forget(&image)?;
        }
        self.report.times("pull", "hawser", "running", &mut pods);
        self.report.times("pull", "ctr", "pulled", &mut ctr);
        Ok(())
    }
}
