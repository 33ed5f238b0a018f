//! Pods that take all they can get, a full disk and a registry that hangs: others go on, and nothing is left.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hawser_kubelet::Objects;
use hawser_runtime::Containerd;
use hawser_runtime::testing::{ImagePack, Random, TestNode};

use crate::common::agent::{Agent, LoopbackNetwork, shell, test_node};
use crate::common::{FakeApi, container, is_ready, pod, spec, uid};

const STAYS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn ready(agent: &Agent, name: &str) -> Option<()> {
    is_ready(&agent.api.pod(name)?.status?).then_some(())
}

async fn expect_all_gone(agent: &Agent, node: &TestNode) -> Result<()> {
    agent.wait("the pods to go", || agent.api.pods().is_empty().then_some(())).await?;
    agent.expect_empty(node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_that_forks_without_end_is_held_to_its_processes_and_goes() -> Result<()> {
    const LIMIT: u64 = 64;
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start_set(&node, |config| config.pod_pids_limit = Some(LIMIT as i64)).await?;
    // Whoever cannot fork ends; another one takes its place.
    let script = "trap '' TERM; bomb() { while :; do (bomb) & done; }; while :; do (bomb); sleep 0.01; done";
    agent.api.put_pod(&pod("bomb", spec("Always", vec![shell("bomb", &image, script)])));
    agent.wait("the bomb", || ready(&agent, "bomb")).await?;
    let mut most = 0;
    while most < LIMIT {
        let pids = agent.runtime.pod_stats(&uid("bomb")).await?.map_or(0, |stats| stats.pids);
        ensure!(pids <= LIMIT, "{pids} processes");
        most = most.max(pids);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    agent.api.put_pod(&pod("web", spec("Always", vec![shell("web", &image, STAYS)])));
    agent.wait("another pod", || ready(&agent, "web")).await?;
    for name in ["bomb", "web"] {
        agent.delete_pod(name, 2);
    }
    expect_all_gone(&agent, &node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_logs_is_kept_to_its_bound_and_its_end_is_there() -> Result<()> {
    const BYTES: u64 = 300 << 20;
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let line = "x".repeat(99);
    let script = format!("yes {line} | head -c {BYTES}; echo the end; {STAYS}");
    agent.api.put_pod(&pod("flood", spec("Always", vec![shell("main", &image, &script)])));
    agent.wait("the flood", || ready(&agent, "flood")).await?;
    agent.api.put_pod(&pod("web", spec("Always", vec![shell("web", &image, STAYS)])));
    agent.wait("a pod beside it", || ready(&agent, "web")).await?;
    let found = agent.runtime.list_containers().await?;
    let log = found.into_iter().find(|c| c.name == "main").context("runs")?.log_path;
    let dir = log.parent().context("a directory")?;
    let bound = node.config().log_writer;
    let bound = bound.max_size_bytes * u64::from(bound.max_files);
    let ended = || tail(&log, 64)?.ends_with(" stdout F the end\n").then_some(());
    agent
        .wait("its end", || {
            let size = size_of(dir);
            assert!(size <= bound, "{size} bytes of logs");
            ended()
        })
        .await?;
    ensure!(size_of(dir) > bound / 2, "{} bytes are kept", size_of(dir));
    for name in ["flood", "web"] {
        agent.delete_pod(name, 2);
    }
    expect_all_gone(&agent, &node).await
}

/// The last bytes of a file.
fn tail(path: &Path, bytes: u64) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let start = file.metadata().ok()?.len().saturating_sub(bytes);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// All that is left of the disk, taken until dropped.
struct Filler(PathBuf);

impl Filler {
    fn fill(node: &TestNode) -> Result<Self> {
        let path = node.dir().join("filler");
        let mut file = fs::File::create(&path)?;
        let filler = Self(path);
        for size in [1 << 20, 4096, 1] {
            while file.write(&vec![1; size]).is_ok_and(|written| written > 0) {}
        }
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_stops_no_running_pod_and_is_over_when_there_is_room() -> Result<()> {
    let program = test_node_program()?;
    let Some(node) = TestNode::start_on(program, Some(128 << 20))? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let talks = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done";
    for name in ["stays", "goes"] {
        agent.api.put_pod(&pod(name, spec("Always", vec![shell("main", &image, talks)])));
        agent.wait("a pod", || ready(&agent, name)).await?;
    }
    let stays = |all: Vec<hawser_runtime::ContainerStatus>| all.into_iter().find(|c| c.pod_name == "stays");
    let before = stays(agent.runtime.list_containers().await?).context("runs")?;

    let filler = Filler::fill(&node)?;
    agent.api.put_pod(&pod("web", spec("Always", vec![shell("web", &image, STAYS)])));
    agent
        .wait("an event that says why", || {
            agent
                .api
                .events()
                .iter()
                .any(|event| event.to_lowercase().contains("no space left"))
                .then_some(())
        })
        .await?;
    agent.delete_pod("goes", 1);
    ensure!(ready(&agent, "web").is_none());
    // Lines that found no room are counted once there is some.
    let written = || fs::read_to_string(&before.log_path).unwrap_or_default();
    let length = written().len();
    agent.wait("the log is full", || (written().len() == length).then_some(())).await?;
    drop(filler);
    agent.wait("the new pod", || ready(&agent, "web")).await?;
    agent.wait("the deleted pod goes", || agent.api.pod("goes").is_none().then_some(())).await?;
    agent.wait("the log goes on", || (written().len() > length).then_some(())).await?;
    let after = stays(agent.runtime.list_containers().await?).context("runs")?;
    ensure!((after.pid, after.state) == (before.pid, before.state), "{after:?}");
    for name in ["stays", "web"] {
        agent.delete_pod(name, 2);
    }
    expect_all_gone(&agent, &node).await
}

fn test_node_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("the test is in target/<profile>/deps")?;
    Ok(target.join("examples/kubelet_log_writer"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_that_hangs_holds_up_no_other_and_no_deletion() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    // Accepts, and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let hangs = listener.local_addr()?.to_string();
    let (asked, mut was_asked) = tokio::sync::watch::channel(0);
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
            asked.send_replace(held.len());
        }
    });
    let mut config = node.config();
    config.registries.plain_http.insert(hangs.clone());
    let objects = Objects::default();
    let api = std::sync::Arc::new(FakeApi::new(&objects));
    let network = LoopbackNetwork::of(node.cgroup());
    let runtime = Containerd::connect(config).await?;
    // Fewer pulls at once than there are pods that wait for one.
    let settings = Agent::config_of(&node, |config| config.max_parallel_pulls = 3);
    let agent = Agent::start_over(settings, runtime, api, network, objects).await?;
    for name in ["first", "second"] {
        let mut main = container("main");
        main.image = Some(format!("{hangs}/{name}:1"));
        agent.api.put_pod(&pod(name, spec("Always", vec![main])));
    }
    was_asked.wait_for(|count| *count >= 2).await?;
    agent.api.put_pod(&pod("web", spec("Always", vec![shell("web", &image, STAYS)])));
    agent.wait("a pod from another registry", || ready(&agent, "web")).await?;
    for name in ["first", "second", "web"] {
        agent.delete_pod(name, 1);
    }
    expect_all_gone(&agent, &node).await?;
    holding.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; `cargo xtask test --all` has it"]
async fn five_hundred_pods_leave_nothing() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let mut random = Random(500);
    let mut names: Vec<String> = (0..500).map(|n| format!("p{n}")).collect();
    random.shuffle(&mut names);
    let mut alive: Vec<String> = Vec::new();
    for name in names {
        agent.api.put_pod(&pod(&name, spec("Always", vec![shell("main", &image, STAYS)])));
        alive.push(name);
        // Some go before they run.
        let most = 20 + random.below(20) as usize;
        while alive.len() > most {
            let chosen = alive.swap_remove(random.below(alive.len() as u64) as usize);
            agent.delete_pod(&chosen, 2);
        }
        let most = agent.config.max_pods as usize - 10;
        agent.wait("room for another pod", || (agent.kubelet.pods.len() < most).then_some(())).await?;
    }
    random.shuffle(&mut alive);
    for name in &alive {
        agent.delete_pod(name, 2);
    }
    expect_all_gone(&agent, &node).await
}
