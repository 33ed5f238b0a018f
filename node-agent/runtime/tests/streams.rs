//! Exec, attach and logs on a real containerd.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Exited, eventually, eventually_async, node, wait_log};
use hawser_runtime::logs::{LogOptions, LogReader};
use hawser_runtime::testing::TestNode;
use hawser_runtime::{
    AttachRequest, BoxRead, ContainerConfig, Containerd, Error, ExecRequest, Runtime, TerminalSize,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MD5_OF_A_MEGABYTE_OF_X: &str = "b561f87202d04959e37588ee05cf5b10";
const SECONDS_10: Duration = Duration::from_secs(10);

/// A running container, started from `change`d configuration.
async fn running(
    node: &TestNode,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<(Containerd, String, ContainerConfig)> {
    let (runtime, image) = common::with_busybox(node).await?;
    runtime.create_pod_sandbox(&node.pod("p")).await?;
    let mut config = node.container("p", "main", &image, "echo up; sleep 600");
    change(&mut config);
    let id = runtime.create_container(&config).await?;
    runtime.start_container(&id).await?;
    wait_log(&config.log_path, 1).await?;
    Ok((runtime, id, config))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn sh(script: &str) -> Vec<String> {
    words(&["sh", "-c", script])
}

async fn read_until(stream: &mut BoxRead, wanted: &str) -> Result<String> {
    let mut text = String::new();
    let mut chunk = [0; 1024];
    while !text.contains(wanted) {
        let read = tokio::time::timeout(SECONDS_10, stream.read(&mut chunk)).await;
        let count = read.with_context(|| format!("only {text:?} of {wanted:?}"))??;
        anyhow::ensure!(count > 0, "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_sync_returns_output_and_exit_code() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    let run = async |command: &[String], limit| runtime.exec_sync(&id, command, SECONDS_10, limit).await;
    let output = run(&sh("echo out; echo err >&2; exit 3"), 100).await?;
    assert_eq!((output.exit_code, &output.stdout[..], &output.stderr[..]), (3, &b"out\n"[..], &b"err\n"[..]));
    let output = run(&sh("yes | head -c 1000000"), 10).await?;
    assert_eq!((output.exit_code, output.stdout.len()), (0, 10));
    let missing = run(&words(&["/no/such/program"]), 100).await.unwrap_err();
    assert!(
        matches!(&missing, Error::Start { message, .. } if message.contains("no such file")),
        "{missing:?}"
    );
    let absent = runtime.exec_sync(&"0".repeat(64), &sh("true"), SECONDS_10, 10).await.unwrap_err();
    assert!(matches!(absent, Error::NotFound { .. }), "{absent:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_that_takes_too_long_is_killed() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    let command = sh("echo $$ > /dev/shm/pid; exec sleep 555");
    let error = runtime.exec_sync(&id, &command, Duration::from_secs(1), 10).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    let check = sh("kill -0 $(cat /dev/shm/pid)");
    eventually_async("it is gone", async || {
        Ok(runtime.exec_sync(&id, &check, SECONDS_10, 10).await?.exit_code == 1)
    })
    .await?;
    // Nothing of these processes is left in the container's directory but its own files.
    let left = std::fs::read_dir(node.dir().join("run/containers").join(&id))?;
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("exec-")), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_that_is_given_up_while_it_is_made_is_killed() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    // Some are given up before the process is made, some while it starts, some when it runs.
    for milliseconds in [0, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120] {
        let command = sh("exec sleep 555");
        let timeout = Duration::from_millis(milliseconds);
        let error = runtime.exec_sync(&id, &command, timeout, 10).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    }
    let directory = node.dir().join("run/containers").join(&id);
    eventually_async("they are gone", async || {
        let files = std::fs::read_dir(&directory)?.flatten().map(|entry| entry.file_name());
        // Its own streams are there while it runs; what was given up has none, made or not.
        let streams = files.filter(|name| name.to_string_lossy().starts_with("exec-")).count();
        let count = runtime.exec_sync(&id, &sh("ps | grep -c '[s]leep 555'"), SECONDS_10, 10).await?;
        Ok(streams == 0 && count.stdout == b"0\n")
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_ends_with_its_container() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    let request = ExecRequest { command: words(&["sleep", "555"]), stdout: true, ..Default::default() };
    let session = runtime.exec(&id, &request).await?;
    let attached = runtime.attach(&id, &AttachRequest { stdout: true, ..Default::default() }).await?;
    runtime.stop_container(&id, Duration::ZERO).await?;
    assert_eq!(session.exit.await?, 137);
    assert_eq!(attached.exit.await?, 137);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_takes_input_to_its_end() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    let request =
        ExecRequest { command: words(&["md5sum"]), stdin: true, stdout: true, ..Default::default() };
    let mut session = runtime.exec(&id, &request).await?;
    let mut stdin = session.stdin.take().context("stdin")?;
    stdin.write_all(&vec![b'x'; 1 << 20]).await?;
    stdin.shutdown().await?;
    let mut output = String::new();
    session.stdout.take().context("stdout")?.read_to_string(&mut output).await?;
    assert_eq!(output.split_whitespace().next(), Some(MD5_OF_A_MEGABYTE_OF_X));
    assert_eq!(session.exit.await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_with_a_terminal_follows_its_size() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |_| {}).await?;
    let request = ExecRequest { command: words(&["sh"]), tty: true, stdin: true, stdout: true, stderr: true };
    let mut session = runtime.exec(&id, &request).await?;
    assert!(session.stderr.is_none());
    let (mut stdin, mut stdout) =
        (session.stdin.take().context("in")?, session.stdout.take().context("out")?);
    let resize = session.resize.take().context("resize")?;
    resize.send(TerminalSize { width: 123, height: 45 }).await?;
    eventually_async("the size is set", async || Ok(resize.capacity() == resize.max_capacity())).await?;
    stdin
        .write_all(b"while [ \"$(stty size)\" != '45 123' ]; do sleep 0.1; done; echo set''ted; tty\n")
        .await?;
    let text = read_until(&mut stdout, "/dev/pts/").await?;
    assert!(text.contains("setted"), "{text}");
    stdin.write_all(b"exit 9\n").await?;
    assert_eq!(session.exit.await?, 9);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_client_sees_output_and_gives_input() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, config) = running(&node, |config| {
        config.stdin = true;
        config.stdin_once = true;
        config.command = sh("echo up; while read x; do echo got $x; echo err $x >&2; done; echo end; exit 6");
    })
    .await?;
    let request = AttachRequest { stdin: true, stdout: true, stderr: true };
    let mut session = runtime.attach(&id, &request).await?;
    let mut stdin = session.stdin.take().context("stdin")?;
    stdin.write_all(b"one\n").await?;
    read_until(session.stdout.as_mut().context("stdout")?, "got one\n").await?;
    read_until(session.stderr.as_mut().context("stderr")?, "err one\n").await?;
    drop(stdin);
    read_until(session.stdout.as_mut().context("stdout")?, "end\n").await?;
    assert_eq!(session.exit.await?, 6);
    let log = common::read_output(&runtime, &id, &config.log_path).await?;
    assert!(log.contains("got one\n") && log.ends_with("end\n"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_terminal_works_and_outlives_its_client() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |config| {
        config.stdin = true;
        config.tty = true;
        config.command = sh("echo up; exec sh");
    })
    .await?;
    for round in ["first", "second"] {
        let request = AttachRequest { stdin: true, stdout: true, stderr: true };
        let mut session = runtime.attach(&id, &request).await?;
        assert!(session.resize.is_some() && session.stderr.is_none());
        session.stdin.as_mut().context("stdin")?.write_all(format!("echo {round}'!'\n").as_bytes()).await?;
        read_until(session.stdout.as_mut().context("stdout")?, &format!("{round}!")).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_client_that_is_behind_is_told_that_it_was_cut_off() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, id, _) = running(&node, |config| {
        config.stdin = true;
        config.command =
            sh("echo up; read x; head -c 8000000 /dev/zero | tr '\\0' x; echo; touch /said; sleep 600");
    })
    .await?;
    let mut session = runtime.attach(&id, &AttachRequest { stdin: true, stdout: true, stderr: true }).await?;
    session.stdin.as_mut().context("stdin")?.write_all(b"go\n").await?;
    eventually_async("the container does not wait for its reader", async || {
        let output = runtime.exec_sync(&id, &words(&["test", "-f", "/said"]), SECONDS_10, 1024).await?;
        Ok(output.exit_code == 0)
    })
    .await?;
    let mut output = Vec::new();
    session.stdout.take().context("stdout")?.read_to_end(&mut output).await?;
    assert!(output.len() < 8_000_000, "{} bytes", output.len());
    let ended = tokio::time::timeout(SECONDS_10, session.exit).await?;
    assert!(matches!(ended, Err(Error::CutOff { .. })), "{ended:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_rotates_and_is_followed_to_the_end() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (_, image) = common::with_busybox(&node).await?;
    let mut settings = node.config();
    settings.log_writer.max_size_bytes = 20_000;
    let runtime = Containerd::connect(settings).await?;
    runtime.create_pod_sandbox(&node.pod("p")).await?;
    let mut events = runtime.events();
    let config = node.container("p", "main", &image, "for i in $(seq 1500); do echo line $i; done");
    let id = runtime.create_container(&config).await?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let options = LogOptions { follow: true, ..Default::default() };
    let ended = Box::pin(async { ended.await.unwrap_or_default() });
    let mut reader = LogReader::open(config.log_path.clone(), options, ended).await?;
    runtime.start_container(&id).await?;
    Exited::of(&mut events, &id).await?;
    runtime.log_complete(&id).await;
    let _ = end.send(());
    let mut output = String::new();
    while let Some(chunk) = reader.next_chunk().await? {
        output.push_str(std::str::from_utf8(&chunk)?);
    }
    let numbers: Vec<u32> = output.lines().map(|l| l[5..].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=1500).collect::<Vec<_>>());
    let files = || anyhow::Ok(std::fs::read_dir(config.log_path.parent().context("parent")?)?.count());
    assert!((2..=5).contains(&files()?), "{}", files()?);
    eventually("files are bounded", || Ok(files()? <= 5)).await
}

/// Its shim asks the log's writer to end as soon as the container has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_words_without_an_end_of_line_are_kept() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("p")).await?;
    let mut events = runtime.events();
    for round in 0..8 {
        let config = node.container("p", &format!("c{round}"), &image, "echo whole; printf rest");
        let id = runtime.create_container(&config).await?;
        runtime.start_container(&id).await?;
        Exited::of(&mut events, &id).await?;
        runtime.log_complete(&id).await;
        let options = LogOptions::default();
        let mut reader =
            LogReader::open(config.log_path, options, hawser_runtime::logs::already_ended()).await?;
        let mut output = Vec::new();
        while let Some(chunk) = reader.next_chunk().await? {
            output.extend_from_slice(&chunk);
        }
        assert_eq!(String::from_utf8(output)?, "whole\nrest", "round {round}");
    }
    Ok(())
}
