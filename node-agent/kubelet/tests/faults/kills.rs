//! The agent killed at every step of a pod's start and stop, as a process of its own over a real containerd.
//!
//! The steps are the fault points of [`hawser_runtime::fault`], which a first run writes down. The API that outlives the
//! agent is a directory: the victim puts its pods into an API in memory, and their statuses back.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_kubelet::Objects;
use hawser_runtime::testing::{ImagePack, TestNode, config_in as runtime_config};
use hawser_runtime::{Containerd, Runtime, fault};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerRestartRule, ContainerRestartRuleOnExitCodes, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
    EmptyDirVolumeSource, ObjectFieldSelector, Pod, PodStatus, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::common::agent::{Agent, DEADLINE, LoopbackNetwork, config_in, mount, shell, test_node};
use crate::common::{FakeApi, is_ready, pod, spec, uid};

const DIR: &str = "HAWSER_TEST_VICTIM_DIR";
const CGROUP: &str = "HAWSER_TEST_VICTIM_CGROUP";
const REGISTRY: &str = "HAWSER_TEST_VICTIM_REGISTRY";
const LOG_WRITER: &str = "HAWSER_TEST_VICTIM_LOG_WRITER";

const SCRIPT: &str = "[ $(cat /about/name) = web ] || exit 1; echo up >> /count/starts; trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// An agent in a process of its own; killed on drop.
struct Victim(Child);

impl Victim {
    fn start(node: &TestNode, env: &[(&str, &str)]) -> Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(node.dir().join("agent.log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", "kills::victim", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(DIR, node.dir())
            .env(CGROUP, node.cgroup())
            .env(REGISTRY, node.registry())
            .env(LOG_WRITER, node.log_writer())
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    fn has_died(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pod_file(dir: &Path) -> PathBuf {
    dir.join("api/web.json")
}

fn status_file(dir: &Path) -> PathBuf {
    dir.join("api/web.status.json")
}

/// What the API has of the pod.
fn read_pod(dir: &Path) -> Option<Pod> {
    let mut pod: Pod = serde_json::from_slice(&fs::read(pod_file(dir)).ok()?).ok()?;
    if let Some(status) = fs::read(status_file(dir)).ok().and_then(|text| serde_json::from_slice(&text).ok())
    {
        pod.status = Some(status);
    }
    Some(pod)
}

/// In one piece, whenever it is read.
fn put(path: &Path, content: &impl serde::Serialize) -> Result<()> {
    let new = path.with_extension("new");
    fs::create_dir_all(path.parent().context("a directory")?)?;
    fs::write(&new, serde_json::to_vec(content)?)?;
    Ok(fs::rename(new, path)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of the other tests of this file"]
async fn victim() -> Result<()> {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        // Not started by its killer, but with all the others.
        return Ok(());
    };
    let _ = tracing_subscriber::fmt().try_init();
    let cgroup = std::env::var(CGROUP)?;
    let log_writer = PathBuf::from(std::env::var_os(LOG_WRITER).context("given")?);
    let runtime = Containerd::connect(runtime_config(&dir, std::env::var(REGISTRY)?, &log_writer)).await?;
    let objects = Objects::default();
    let api = Arc::new(FakeApi::new(&objects));
    let mut known = read_pod(&dir);
    if let Some(pod) = &known {
        api.put_pod(pod);
    }
    let network = LoopbackNetwork::of(&cgroup);
    let agent = Agent::start_over(config_in(&dir, &cgroup), runtime, api.clone(), network, objects).await?;
    let mut told = None;
    loop {
        let wanted = read_pod(&dir);
        let changed = |pod: &Pod| {
            known.as_ref().is_none_or(|known| {
                known.metadata.uid != pod.metadata.uid
                    || known.metadata.deletion_timestamp != pod.metadata.deletion_timestamp
            })
        };
        if let Some(pod) = wanted.as_ref().filter(|pod| changed(pod)) {
            let status = agent.api.pod("web").and_then(|known| known.status).or(pod.status.clone());
            api.put_pod(&Pod { status, ..pod.clone() });
        }
        known = wanted;
        match agent.api.pod("web") {
            Some(pod) if pod.status != told => {
                put(&status_file(&dir), &pod.status)?;
                told = pod.status;
            }
            None if known.is_some() => {
                // The status first: the pod's end is what others wait for.
                fs::remove_file(status_file(&dir))?;
                fs::remove_file(pod_file(&dir))?;
                (known, told) = (None, None);
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn wait<T>(node: &TestNode, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = fs::read_to_string(node.dir().join("agent.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    bail!("{what}: not within {DEADLINE:?}; the agent's log ends with\n{tail}")
}

fn wait_ready(node: &TestNode) -> Result<Pod> {
    wait(node, "the pod is ready", || {
        Ok(read_pod(node.dir()).filter(|pod| pod.status.as_ref().is_some_and(is_ready)))
    })
}

/// The pod has gone, and nothing of it is left.
fn wait_gone(node: &TestNode) -> Result<()> {
    wait(node, "the pod is gone", || Ok((!pod_file(node.dir()).exists()).then_some(())))?;
    let left = || -> Result<Vec<String>> {
        let mut left = node.left_behind()?;
        // The agent itself is one of the processes.
        left.retain(|line| !line.contains("kills::victim"));
        left.extend(LoopbackNetwork::of_others(node.cgroup()));
        for dir in ["kubelet/pods", "kubelet/logs"] {
            let entries = fs::read_dir(node.dir().join(dir)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        Ok(left)
    };
    wait(node, "nothing is left", || Ok(left()?.is_empty().then_some(())))
        .with_context(|| format!("left: {:?}", left()))
}

/// The pod that is killed over.
#[derive(Clone, Copy)]
struct Asked<'a> {
    image: &'a str,
    /// `Some(false)`: it has users of its own.
    host_users: Option<bool>,
}

fn bind(node: &TestNode, asked: Asked<'_>) -> Result<()> {
    let with_count = |name: &str| {
        let mut container = shell(name, asked.image, SCRIPT);
        container.volume_mounts =
            Some(["count", "memory", "about"].map(|name| mount(name, &format!("/{name}"), None)).into());
        container
    };
    let mut second = with_count("second");
    // Its streams are FIFOs.
    second.stdin = Some(true);
    let mut spec = spec("Always", vec![with_count("main"), second]);
    spec.share_process_namespace = Some(true);
    spec.host_users = asked.host_users;
    let memory = EmptyDirVolumeSource { medium: Some("Memory".into()), ..EmptyDirVolumeSource::default() };
    let volume =
        |name: &str, source| Volume { name: name.into(), empty_dir: Some(source), ..Volume::default() };
    let name = ObjectFieldSelector { field_path: "metadata.name".into(), ..ObjectFieldSelector::default() };
    let item = DownwardAPIVolumeFile { path: "name".into(), field_ref: Some(name), ..Default::default() };
    let about = DownwardAPIVolumeSource { items: Some(vec![item]), ..DownwardAPIVolumeSource::default() };
    let about = Volume { name: "about".into(), downward_api: Some(about), ..Volume::default() };
    spec.volumes =
        Some(vec![volume("count", EmptyDirVolumeSource::default()), volume("memory", memory), about]);
    ensure!(!status_file(node.dir()).exists(), "the status of an earlier pod is there");
    put(&pod_file(node.dir()), &pod("web", spec))
}

fn delete(node: &TestNode) -> Result<()> {
    let mut pod = read_pod(node.dir()).context("there")?;
    pod.metadata.deletion_timestamp = Some(Time(Timestamp::now() + SignedDuration::from_secs(5)));
    pod.metadata.deletion_grace_period_seconds = Some(5);
    put(&pod_file(node.dir()), &pod)
}

/// The volume in which the pod's containers count.
fn count_dir(node: &TestNode) -> PathBuf {
    let dir = config_in(node.dir(), node.cgroup()).pod_dir(&uid("web"));
    dir.join("volumes/kubernetes.io~empty-dir/count")
}

/// How often the pod's containers were started, in all.
fn starts(node: &TestNode) -> usize {
    let starts = fs::read_to_string(count_dir(node).join("starts"));
    starts.unwrap_or_default().lines().count()
}

/// The points that a pod passes while it starts, and while it stops.
fn record(node: &TestNode, asked: Asked<'_>) -> Result<[Vec<String>; 2]> {
    let logs = ["points-start", "points-stop"].map(|name| node.dir().join(name));
    let points = |log: &Path| -> Result<Vec<String>> {
        let mut seen = BTreeSet::new();
        let text = fs::read_to_string(log)?;
        Ok(text.lines().filter(|line| seen.insert(*line)).map(str::to_owned).collect())
    };
    for log in &logs {
        let _ = fs::remove_file(log);
    }
    bind(node, asked)?;
    let victim = Victim::start(node, &[(fault::LOG, &logs[0].to_string_lossy())])?;
    wait_ready(node)?;
    drop(victim);
    delete(node)?;
    let victim = Victim::start(node, &[(fault::LOG, &logs[1].to_string_lossy())])?;
    wait_gone(node)?;
    drop(victim);
    Ok([points(&logs[0])?, points(&logs[1])?])
}

fn kill_at(node: &TestNode, point: &str) -> Result<()> {
    let mut victim = Victim::start(node, &[(fault::DIE_AT, point)])?;
    wait(node, "the agent dies", || Ok(victim.has_died()?.then_some(())))
}

async fn run(chosen: impl Fn(usize) -> bool) -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    // Removes what a failed test has left.
    let _network = LoopbackNetwork::of(node.cgroup());
    let asked = Asked { image: &image, host_users: None };
    let points = record(&node, asked)?;
    ensure!(points[0].len() > 15 && points[1].len() > 8, "{points:?}");
    kill_at_all(&node, asked, points, chosen).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_is_killed_while_a_pod_gets_users_of_its_own_is_followed_by_one_that_goes_on() -> Result<()>
{
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let _network = LoopbackNetwork::of(node.cgroup());
    let asked = Asked { image: &image, host_users: Some(false) };
    // Points that others do not pass.
    let [mut starting, mut stopping] = record(&node, asked)?;
    let [other_starting, other_stopping] = record(&node, Asked { host_users: None, ..asked })?;
    starting.retain(|point| !other_starting.contains(point));
    stopping.retain(|point| !other_stopping.contains(point));
    ensure!(starting.len() > 6, "{starting:?}");
    kill_at_all(&node, asked, [starting, stopping], |_| true).await
}

async fn kill_at_all(
    node: &TestNode,
    asked: Asked<'_>,
    [starting, stopping]: [Vec<String>; 2],
    chosen: impl Fn(usize) -> bool,
) -> Result<()> {
    println!("{} points while it starts, {} while it stops", starting.len(), stopping.len());
    for (number, point) in starting.iter().enumerate().filter(|(number, _)| chosen(*number)) {
        if point.starts_with("image:") {
            // No agent runs: this one takes part in nothing.
            let runtime = node.connect().await?;
            for image in runtime.list_images().await? {
                runtime.remove_image(&image.id).await?;
            }
        }
        let outcome = killed_while_it_starts(node, asked, point, number % 3 != 0);
        outcome.with_context(|| format!("killed at {point:?}"))?;
    }
    for (_, point) in stopping.iter().enumerate().filter(|(number, _)| chosen(*number)) {
        killed_while_it_stops(node, asked, point).with_context(|| format!("killed at {point:?}"))?;
    }
    Ok(())
}

/// The next agent brings the pod up, and what ran runs on; or, where the pod is deleted meanwhile, takes it down.
fn killed_while_it_starts(node: &TestNode, asked: Asked<'_>, point: &str, stays: bool) -> Result<()> {
    bind(node, asked)?;
    kill_at(node, point)?;
    let before = node.running()?;
    if stays {
        let victim = Victim::start(node, &[])?;
        let pod = wait_ready(node)?;
        let after = node.running()?;
        let goes_on = before.iter().all(|(id, pid)| after.get(id) == Some(pid));
        ensure!(after.len() == 2 && goes_on, "{before:?} {after:?}");
        let statuses = pod.status.and_then(|status| status.container_statuses).context("statuses")?;
        ensure!(statuses.iter().all(|status| status.restart_count == 0), "{statuses:?}");
        wait(node, "both have started", || Ok((starts(node) >= 2).then_some(())))?;
        ensure!(starts(node) == 2, "{} starts", starts(node));
        drop(victim);
    }
    delete(node)?;
    let _victim = Victim::start(node, &[])?;
    wait_gone(node)
}

/// The next agent takes it down.
fn killed_while_it_stops(node: &TestNode, asked: Asked<'_>, point: &str) -> Result<()> {
    bind(node, asked)?;
    let victim = Victim::start(node, &[])?;
    wait_ready(node)?;
    drop(victim);
    delete(node)?;
    kill_at(node, point)?;
    let _victim = Victim::start(node, &[])?;
    wait_gone(node)
}

/// Of the pod of [`bind_starting_over`]: `main` ends when it is told to, once.
const MAIN: &str = "echo main >> /count/starts; [ $(grep -c main /count/starts) = 1 ] || exec sleep 1000000; until [ -e /count/go ]; do sleep 0.05; done; exit 42";
const SECOND: &str = "echo second >> /count/starts; trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A pod that starts nothing again, but all of it where `main` ends with 42.
fn bind_starting_over(node: &TestNode, image: &str) -> Result<()> {
    let with_count = |name: &str, script: &str| {
        let mut container = shell(name, image, script);
        container.volume_mounts = Some(vec![mount("count", "/count", None)]);
        container
    };
    let mut main = with_count("main", MAIN);
    let exit_codes = ContainerRestartRuleOnExitCodes { operator: "In".into(), values: Some(vec![42]) };
    let rule = ContainerRestartRule { action: "RestartAllContainers".into(), exit_codes: Some(exit_codes) };
    (main.restart_policy, main.restart_policy_rules) = (Some("Never".into()), Some(vec![rule]));
    let mut spec = spec("Never", vec![main, with_count("second", SECOND)]);
    spec.init_containers = Some(vec![with_count("init", "echo init >> /count/starts")]);
    let empty_dir = Some(EmptyDirVolumeSource::default());
    spec.volumes = Some(vec![Volume { name: "count".into(), empty_dir, ..Volume::default() }]);
    put(&pod_file(node.dir()), &pod("web", spec))
}

/// All containers run as they did when the pod was made, and each has started once more.
fn wait_started_over(node: &TestNode) -> Result<()> {
    wait(node, "all have started over", || {
        let status = read_pod(node.dir()).and_then(|pod| pod.status).filter(is_ready);
        let is_passing = |status: &PodStatus| {
            status.conditions.iter().flatten().any(|c| c.type_ == "AllContainersRestarting")
        };
        let Some(status) = status.filter(|status| !is_passing(status)) else { return Ok(None) };
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let counts: Vec<i32> = statuses.map(|status| status.restart_count).collect();
        ensure!(counts.iter().all(|count| *count <= 1), "restarts: {counts:?}");
        Ok((counts == [1, 1, 1]).then_some(()))
    })
    .with_context(|| format!("it is {:?}", read_pod(node.dir()).and_then(|pod| pod.status)))?;
    wait(node, "all are counted", || Ok((starts(node) >= 6).then_some(())))?;
    ensure!(starts(node) == 6, "{} starts", starts(node));
    Ok(())
}

/// The pod runs, nobody looks after it, and its `main` is told to end.
fn begin_to_start_over(node: &TestNode, image: &str) -> Result<()> {
    bind_starting_over(node, image)?;
    let victim = Victim::start(node, &[])?;
    wait_ready(node)?;
    wait(node, "all have started", || Ok((starts(node) == 3).then_some(())))?;
    drop(victim);
    Ok(fs::write(count_dir(node).join("go"), "")?)
}

/// Of a round in which all start over. The first container that starts is the one that initializes.
const POINTS: [&str; 8] = [
    "container: exit noted",
    "container: task started",
    "container: task asked for#3",
    "container: record made",
    "container: start noted",
    "container: record made#2",
    "container: task started#2",
    "container: streams made#3",
];
/// So many of these are tried always.
const SOME: usize = 3;

/// The next agent starts what is left to be started, and nothing twice.
async fn run_starting_over(points: &[&str]) -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let _network = LoopbackNetwork::of(node.cgroup());
    for point in points {
        let outcome = || -> Result<()> {
            begin_to_start_over(&node, &image)?;
            kill_at(&node, point)?;
            let victim = Victim::start(&node, &[])?;
            wait_started_over(&node)?;
            drop(victim);
            delete(&node)?;
            let _victim = Victim::start(&node, &[])?;
            wait_gone(&node)
        };
        outcome().with_context(|| format!("killed at {point:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_all_start_over_do_so_once_whoever_dies_meanwhile() -> Result<()> {
    run_starting_over(&POINTS[..SOME]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; `cargo xtask test --all` has it"]
async fn containers_that_all_start_over_do_so_once_whoever_dies_at_another_step() -> Result<()> {
    run_starting_over(&POINTS[SOME..]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shim_of_a_task_whose_creation_nobody_heard_of_ends_with_its_pod() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let _network = LoopbackNetwork::of(node.cgroup());
    bind(&node, Asked { image: &image, host_users: None })?;
    kill_at(&node, "container: task asked for")?;
    let _log = node.start_unknown_shim(&uid("web"))?;
    delete(&node)?;
    let _victim = Victim::start(&node, &[])?;
    wait_gone(&node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_is_killed_at_some_steps_is_followed_by_one_that_goes_on() -> Result<()> {
    run(|number| number % 4 == 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; `cargo xtask test --all` has it"]
async fn agent_that_is_killed_at_any_other_step_is_followed_by_one_that_goes_on() -> Result<()> {
    run(|number| number % 4 != 1).await
}
