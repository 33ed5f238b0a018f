//! Pods over a containerd that answers late, wrongly or not at all, by seeded plans, and is killed in the middle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_runtime::testing::{ImagePack, Random, TestNode};
use hawser_runtime::{Config as RuntimeConfig, ContainerState, Containerd};
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Volume};

use super::proxy::Proxy;
use crate::common::agent::{Agent, LoopbackNetwork, mount, shell, test_node};
use crate::common::{FakeApi, is_ready, pod, spec, uid};

const SCRIPT: &str = "echo up >> /count/starts; trap 'exit 0' TERM; while :; do sleep 0.1; done";
const PODS: [&str; 3] = ["one", "two", "three"];

/// One after the other on one containerd: what a plan leaves is in the way of the next one.
async fn run(seeds: impl Iterator<Item = u64> + Send) -> Result<()> {
    let Some(mut node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let mut harmed = 0;
    for seed in seeds {
        let begin = Instant::now();
        let of_seed = weather(&mut node, &image, seed).await;
        harmed += of_seed.with_context(|| format!("seed {seed}"))?;
        println!("seed {seed}: {:.1} s", begin.elapsed().as_secs_f64());
    }
    ensure!(harmed > 0, "no call was harmed");
    println!("{harmed} calls were harmed");
    Ok(())
}

/// Pods are made, run and go, each in a storm of its own; afterwards all is as it should be. Returns how many calls were
/// harmed.
async fn weather(node: &mut TestNode, image: &str, seed: u64) -> Result<u64> {
    let mut random = Random(seed);
    let proxy =
        Proxy::start(&node.config().socket, node.dir().join(format!("proxy{seed}.sock")), random.number())?;
    let network = LoopbackNetwork::of(node.cgroup());
    let objects = hawser_kubelet::Objects::default();
    let api = std::sync::Arc::new(FakeApi::new(&objects));
    let config = Agent::config_of(node, |_| {});
    let agent = Agent::start_over(config, connect(node, &proxy).await?, api, network, objects).await?;

    proxy.storm(true);
    for name in PODS {
        let main = with_count(shell("main", image, SCRIPT));
        let mut second = with_count(shell("second", image, SCRIPT));
        // Its streams are FIFOs.
        second.stdin = Some(true);
        let mut spec = spec("Always", vec![main, second]);
        spec.share_process_namespace = Some(random.below(2) == 0);
        let count = EmptyDirVolumeSource::default();
        spec.volumes =
            Some(vec![Volume { name: "count".into(), empty_dir: Some(count), ..Volume::default() }]);
        agent.api.put_pod(&pod(name, spec));
    }
    let agent = disturb(agent, node, &proxy, &mut random).await?;
    proxy.storm(false);
    let ready = |name: &&str| agent.api.pod(name).and_then(|p| p.status).is_some_and(|s| is_ready(&s));
    agent.wait("all pods ready", || PODS.iter().all(ready).then_some(())).await?;
    let before = running(&agent).await?;
    ensure!(before.len() == 2 * PODS.len(), "{before:?}");

    // What runs is not touched, whatever becomes of the calls about it.
    proxy.storm(true);
    let agent = disturb(agent, node, &proxy, &mut random).await?;
    proxy.storm(false);
    let ready = |name: &&str| agent.api.pod(name).and_then(|p| p.status).is_some_and(|s| is_ready(&s));
    agent.wait("all pods ready again", || PODS.iter().all(ready).then_some(())).await?;
    ensure!(running(&agent).await? == before, "a container was restarted");

    proxy.storm(true);
    for name in PODS {
        agent.delete_pod(name, 5);
    }
    let agent = disturb(agent, node, &proxy, &mut random).await?;
    proxy.storm(false);
    agent.wait("all pods to go", || agent.api.pods().is_empty().then_some(())).await?;
    agent.expect_empty(node).await?;
    Ok(proxy.harmed())
}

/// A second of storm, in which containerd or the agent may go and come back.
async fn disturb(agent: Agent, node: &mut TestNode, proxy: &Proxy, random: &mut Random) -> Result<Agent> {
    tokio::time::sleep(Duration::from_millis(random.below(600))).await;
    let agent = match random.below(4) {
        0 => {
            node.kill_containerd()?;
            tokio::time::sleep(Duration::from_millis(random.below(400))).await;
            node.start_containerd()?;
            agent
        }
        1 => agent.restart_over(connect(node, proxy)).await?,
        _ => agent,
    };
    tokio::time::sleep(Duration::from_millis(random.below(600))).await;
    Ok(agent)
}

/// As the agent's supervisor does: again, until it starts.
async fn connect(node: &TestNode, proxy: &Proxy) -> Result<Containerd> {
    let mut last = None;
    for _ in 0..100 {
        let config = RuntimeConfig { socket: proxy.socket.clone(), ..node.config() };
        match Containerd::connect(config).await {
            Ok(runtime) => return Ok(runtime),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(last.context("it was tried")?.into())
}

/// Process and number of starts of each container that runs.
async fn running(agent: &Agent) -> Result<BTreeMap<String, (Option<u32>, u32)>> {
    let containers = agent.runtime.list_containers().await?;
    let running = containers.into_iter().filter(|c| c.state == ContainerState::Running);
    let found: Vec<_> = running.map(|c| (format!("{}/{}", c.pod_name, c.name), (c.pid, c.attempt))).collect();
    let by_name: BTreeMap<_, _> = found.iter().cloned().collect();
    ensure!(by_name.len() == found.len(), "a container runs twice: {found:?}");
    for name in PODS {
        let starts = agent.config.pod_dir(&uid(name)).join("volumes/kubernetes.io~empty-dir/count/starts");
        let read =
            || Some(std::fs::read_to_string(&starts).ok()?.lines().count()).filter(|lines| *lines >= 2);
        let lines = agent.wait("both have started", read).await?;
        let restarts: u32 =
            found.iter().filter(|(n, _)| n.starts_with(&format!("{name}/"))).map(|(_, c)| c.1).sum();
        ensure!(lines <= 2 + restarts as usize, "{name}: {lines} starts, {restarts} restarts");
    }
    Ok(by_name)
}

fn with_count(mut container: Container) -> Container {
    container.volume_mounts = Some(vec![mount("count", "/count", None)]);
    container
}

/// Side by side, each lane on a node of its own: storms are mostly waiting.
async fn run_in_lanes(seeds: Range<u64>, lanes: u64) -> Result<()> {
    let lanes = (0..lanes).map(|lane| {
        let seeds = (seeds.start + lane..seeds.end).step_by(lanes as usize);
        tokio::spawn(run(seeds))
    });
    for lane in futures::future::join_all(lanes).await {
        lane??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pods_live_through_ten_storms() -> Result<()> {
    run_in_lanes(0..10, 5).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes ten minutes; `cargo xtask test --all` has it"]
async fn pods_live_through_two_hundred_storms() -> Result<()> {
    run_in_lanes(10..200, 6).await
}
