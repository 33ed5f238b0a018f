//! Helpers of the tests on a real containerd.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_runtime::testing::{ImagePack, TestNode};
use hawser_runtime::{ContainerConfig, ContainerExit, Containerd, EventStream, Runtime, RuntimeEvent};

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn node() -> Result<Option<TestNode>> {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    TestNode::start(log_writer()?)
}

/// The example of that name, which cargo builds with the tests.
fn log_writer() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("the test is in target/<profile>/deps")?;
    Ok(target.join("examples/log_writer"))
}

/// A runtime that has the busybox image.
pub(crate) async fn with_busybox(node: &TestNode) -> Result<(Containerd, String)> {
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let runtime = node.connect().await?;
    runtime.pull_image(&image, &[], None).await?;
    Ok((runtime, image))
}

/// The first event that `wanted` accepts.
pub(crate) async fn event<T>(
    events: &mut EventStream,
    wanted: impl Fn(&RuntimeEvent) -> Option<T>,
) -> Result<T> {
    let find = async {
        loop {
            let event = events.next().await.context("events ended")?;
            if let Some(found) = wanted(&event) {
                return anyhow::Ok(found);
            }
        }
    };
    tokio::time::timeout(DEADLINE, find).await.context("no such event")?
}

pub(crate) struct Exited;

impl Exited {
    pub(crate) async fn of(events: &mut EventStream, container: &str) -> Result<ContainerExit> {
        event(events, |event| match event {
            RuntimeEvent::Exited { id, exit, .. } if id == container => Some(exit.clone()),
            _ => None,
        })
        .await
    }
}

/// Runs a container to its end and returns its standard output and error, without the log's heads.
pub(crate) async fn run_to_end(runtime: &Containerd, config: &ContainerConfig) -> Result<String> {
    let mut events = runtime.events();
    let id = runtime.create_container(config).await?;
    runtime.start_container(&id).await?;
    Exited::of(&mut events, &id).await?;
    read_output(runtime, &id, &config.log_path).await
}

/// The whole log of a container that has ended.
pub(crate) async fn read_output(runtime: &Containerd, id: &str, path: &Path) -> Result<String> {
    use hawser_runtime::logs::{LogOptions, LogReader, already_ended};

    runtime.log_complete(id).await;
    let mut reader = LogReader::open(path.to_owned(), LogOptions::default(), already_ended()).await?;
    let mut out = Vec::new();
    while let Some(chunk) = reader.next_chunk().await? {
        out.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(out)?)
}

/// Waits until a log has so many lines, and returns it as it is on disk.
pub(crate) async fn wait_log(path: &Path, lines: usize) -> Result<String> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    eventually("the log is written", || Ok(read().lines().count() >= lines)).await?;
    Ok(read())
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    eventually_async(what, async || condition()).await
}

pub(crate) async fn eventually_async(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition().await? {
        if tokio::time::Instant::now() > deadline {
            bail!("{what}: not within {DEADLINE:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Lines of `ctr snapshots ls`, without the head.
pub(crate) fn snapshots(node: &TestNode) -> Result<Vec<String>> {
    let socket = node.dir().join("containerd.sock");
    let output = Command::new("ctr")
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "hawser", "snapshots", "ls"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().skip(1).map(str::to_owned).collect())
}

pub(crate) fn parent_of(pid: u32) -> Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("PPid")?;
    Ok(line.trim().parse()?)
}

/// False for a process that has ended, also while its parent has not noticed.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}
