//! Time to make a pod of one container: sandbox, create, start, stop, remove; medians of some rounds, without users of the
//! pod's own and with them.
//! `cargo run -p hawser-runtime --example start_time --features testing` (as root).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hawser_runtime::testing::{ImagePack, TestNode};
use hawser_runtime::{Containerd, IdRange, PodNetwork, Runtime};

const ROUNDS: usize = 15;

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let own = std::env::current_exe()?;
    let writer = own.parent().unwrap_or(Path::new(".")).join("log_writer");
    let Some(node) = TestNode::start(writer)? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let runtime = node.connect().await?;
    let pulled = Instant::now();
    runtime.pull_image(&image, &[], None).await?;
    println!("pull (local registry)  {:>7.1} ms", ms(pulled.elapsed()));

    println!("the node's users:");
    rounds(&node, &runtime, &image, None).await?;
    println!("users of its own:");
    rounds(&node, &runtime, &image, Some(IdRange { first: 1 << 16, count: 1 << 16 })).await
}

async fn rounds(node: &TestNode, runtime: &Containerd, image: &str, users: Option<IdRange>) -> Result<()> {
    let mut steps: [Vec<Duration>; 5] = Default::default();
    for round in 0..ROUNDS {
        let name = format!("p{round}");
        let mut pod = node.pod(&name);
        pod.users = users;
        let mut config = node.container(&name, "main", image, "");
        config.command = vec!["sleep".into(), "600".into()];
        let mut step = Instant::now();
        let mut lap = |index: usize| {
            steps[index].push(step.elapsed());
            step = Instant::now();
        };
        if users.is_some() {
            pod.network = PodNetwork::Path(runtime.create_pod_users(&pod).await?);
        }
        runtime.create_pod_sandbox(&pod).await?;
        lap(0);
        let id = runtime.create_container(&config).await?;
        lap(1);
        runtime.start_container(&id).await?;
        lap(2);
        runtime.stop_container(&id, Duration::ZERO).await?;
        lap(3);
        runtime.remove_pod_sandbox(&format!("uid-{name}")).await?;
        lap(4);
    }
    for (name, times) in ["sandbox", "create", "start", "kill", "remove"].into_iter().zip(&mut steps) {
        times.sort();
        let median = times.get(times.len() / 2).context("no rounds")?;
        println!(
            "{name:<22} {:>7.1} ms (min {:.1}, max {:.1})",
            ms(*median),
            ms(times[0]),
            ms(times[times.len() - 1])
        );
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
