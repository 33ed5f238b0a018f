//! The runtime on a real containerd, with a real registry, both started by each test.

mod common;

use std::time::Duration;

use anyhow::{Context, Result};
use common::{Exited, event, node, run_to_end, wait_log};
use hawser_runtime::testing::{ImagePack, TestNode};
use hawser_runtime::{
    ContainerState, Containerd, Error, Mount, PodSandboxConfig, PullErrorKind, Registries, Resources,
    Runtime, RuntimeEvent, RuntimeHandler, Security, container_id,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_pulled_listed_and_removed() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let runtime = node.connect().await?;
    assert_eq!(runtime.image_status(&image).await?, None);

    let (progress, mut reported) = tokio::sync::mpsc::channel(64);
    let pulled = runtime.pull_image(&image, &[], Some(progress)).await?.image;
    assert!(pulled.id.starts_with("sha256:"), "{pulled:?}");
    assert_eq!(pulled.repo_tags, std::slice::from_ref(&image));
    assert!(pulled.repo_digests[0].starts_with(&format!("{}/busybox@sha256:", node.registry())));
    assert!(pulled.size_bytes > 100_000);
    assert!(reported.recv().await.is_some());

    for name in [&image, &pulled.id, &pulled.repo_digests[0]] {
        assert_eq!(runtime.image_status(name).await?.as_ref(), Some(&pulled), "{name}");
    }
    // By digest, and once more when all is here.
    assert_eq!(runtime.pull_image(&pulled.repo_digests[0], &[], None).await?.image, pulled);
    assert_eq!(runtime.list_images().await?, std::slice::from_ref(&pulled));
    runtime.remove_image(&image).await?;
    assert_eq!(runtime.list_images().await?, []);
    assert_eq!(runtime.image_status(&pulled.id).await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_pull_says_why() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (broken, layer) = node.push(&ImagePack::busybox()?, "broken:1")?;
    let blob = node.registry_blob(&layer);
    let mut bytes = std::fs::read(&blob)?;
    bytes[1000] ^= 1;
    std::fs::write(&blob, &bytes)?;
    let runtime = node.connect().await?;
    let kind = async |image: &str| match runtime.pull_image(image, &[], None).await {
        Err(Error::Pull { kind, message, .. }) => {
            println!("{image}: {message}");
            Ok(kind)
        }
        other => anyhow::bail!("{image}: {other:?}"),
    };
    assert_eq!(kind(&broken).await?, PullErrorKind::DigestMismatch);
    assert_eq!(kind(&format!("{}/none:1", node.registry())).await?, PullErrorKind::NotFound);
    assert_eq!(kind("127.0.0.1:1/x:1").await?, PullErrorKind::RegistryUnavailable);
    assert_eq!(kind("Not A Name").await?, PullErrorKind::InvalidReference);
    assert_eq!(runtime.list_images().await?, []);

    // The same blob, whole again: the broken one must not be in the way.
    bytes[1000] ^= 1;
    std::fs::write(&blob, &bytes)?;
    runtime.pull_image(&broken, &[], None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_comes_from_a_mirror_that_a_hosts_file_names() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    node.push(&ImagePack::busybox()?, "busybox:1")?;
    let hub = node.dir().join("certs.d/hub.test");
    std::fs::create_dir_all(&hub)?;
    std::fs::write(hub.join("hosts.toml"), format!("[host.\"http://{}\"]\n", node.registry()))?;
    let mut config = node.config();
    let config_dir = Some(node.dir().join("certs.d"));
    config.registries = Registries { config_dir, ..Registries::default() };
    let runtime = Containerd::connect(config).await?;
    let pulled = runtime.pull_image("hub.test/busybox:1", &[], None).await?;
    assert_eq!((pulled.image.repo_tags, pulled.credential), (vec!["hub.test/busybox:1".to_owned()], None));
    let other = runtime.pull_image(&format!("{}/busybox:1", node.registry()), &[], None).await;
    assert!(matches!(other, Err(Error::Pull { .. })), "plain HTTP is spoken to the mirror alone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_handler_are_run_by_its_program() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let (program, used) = (node.dir().join("other-runc"), node.dir().join("used"));
    std::fs::write(&program, format!("#!/bin/sh\necho $* >> {}\nexec runc \"$@\"\n", used.display()))?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut config = node.config();
    let binary = Some(program.display().to_string());
    let handler = RuntimeHandler { shim: RuntimeHandler::RUNC_SHIM.into(), binary };
    config.handlers = [("other".to_owned(), handler)].into();
    let runtime = Containerd::connect(config).await?;
    runtime.pull_image(&image, &[], None).await?;
    let pod =
        |name: &str, handler: &str| PodSandboxConfig { runtime_handler: handler.into(), ..node.pod(name) };
    runtime.create_pod_sandbox(&pod("web", "other")).await?;
    let out = run_to_end(&runtime, &node.container("web", "main", &image, "echo runs")).await?;
    assert!(out.contains("runs"), "{out}");
    assert!(std::fs::read_to_string(&used)?.contains(" create "), "runc was called through it");
    runtime.create_pod_sandbox(&pod("unknown", "kata")).await?;
    let refused = runtime.create_container(&node.container("unknown", "main", &image, "true")).await;
    assert!(matches!(refused, Err(Error::Invalid { field: "runtimeHandler", .. })), "{refused:?}");
    for uid in ["uid-web", "uid-unknown"] {
        runtime.remove_pod_sandbox(uid).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_runs_and_its_exit_is_told_and_kept() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    let mut events = runtime.events();
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    let script = "echo out; echo err >&2; echo $FROM_IMAGE $GREETING; hostname; exit 7";
    let mut config = node.container("web", "main", &image, script);
    config.env = vec![("GREETING".into(), "hello".into())];
    config.labels.insert("app".into(), "web".into());

    let id = runtime.create_container(&config).await?;
    assert_eq!(id, container_id("uid-web", "main", 0));
    let status = runtime.container_status(&id).await?.context("status")?;
    assert_eq!((status.state, status.started_at), (ContainerState::Created, None));
    assert_eq!(runtime.create_container(&config).await?, id, "repeated");
    runtime.start_container(&id).await?;

    let started = event(&mut events, |e| matches!(e, RuntimeEvent::Started { .. }).then_some(())).await;
    started?;
    let exit = Exited::of(&mut events, &id).await?;
    assert_eq!((exit.exit_code, exit.reason()), (7, "Error"));
    let status = runtime.container_status(&id).await?.context("status")?;
    assert_eq!(status.state, ContainerState::Exited);
    assert_eq!(status.exit.as_ref(), Some(&exit));
    assert!(status.started_at.context("started")? <= exit.finished_at);
    assert_eq!(status.labels["app"], "web");
    assert!(status.image_ref.contains("@sha256:"));

    let log = wait_log(&config.log_path, 4).await?;
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    assert!(log.contains(" stdout F yes hello\n") && log.contains(" stdout F web\n"), "{log}");

    runtime.remove_container(&id).await?;
    runtime.remove_container(&id).await?;
    assert_eq!(runtime.container_status(&id).await?, None);
    runtime.remove_pod_sandbox("uid-web").await?;
    runtime.remove_pod_sandbox("uid-web").await?;
    assert_nothing_left(&node).await
}

/// Mounts, cgroups, files and snapshots of pods are gone; images stay.
async fn assert_nothing_left(node: &TestNode) -> Result<()> {
    let own = |mount: &String| !mount.contains("/containerd/");
    common::eventually("mounts are gone", || Ok(node.mounts()?.iter().filter(|m| own(m)).count() == 0))
        .await?;
    common::eventually("tasks' mounts are gone", || Ok(node.mounts()?.is_empty())).await?;
    assert_eq!(node.cgroups()?, Vec::<std::path::PathBuf>::new());
    for dir in ["run/pods", "run/containers", "state/containers", "run/runc/hawser"] {
        let left: Vec<_> = match std::fs::read_dir(node.dir().join(dir)) {
            Ok(entries) => entries.flatten().map(|e| e.file_name()).collect(),
            Err(_) => Vec::new(),
        };
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    let snapshots = common::snapshots(node)?;
    assert!(snapshots.iter().all(|s| s.contains("Committed")), "{snapshots:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_pod_share_what_a_pod_shares() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("a")).await?;
    let script = "hostname; echo shared > /dev/shm/x; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts";
    let script = script.replace("readlink", "busybox readlink");
    let first = run_to_end(&runtime, &node.container("a", "first", &image, &script)).await?;
    let script = script.replace("echo shared > /dev/shm/x", "cat /dev/shm/x");
    let second = run_to_end(&runtime, &node.container("a", "second", &image, &script)).await?;
    let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
    assert_eq!((first[0], second[0], second[1]), ("a", "a", "shared"));
    assert_eq!(first[1..], second[2..], "namespaces");
    let host = std::fs::read_link("/proc/self/ns/ipc")?;
    assert_ne!(first[1], host.to_string_lossy());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_rights_and_mounts_are_as_asked() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let image = ImagePack::busybox()?.config(serde_json::json!({ "User": "web", "WorkingDir": "/tmp" }));
    let (image, _) = node.push(&image, "web:1")?;
    let runtime = node.connect().await?;
    runtime.pull_image(&image, &[], None).await?;
    runtime.create_pod_sandbox(&node.pod("u")).await?;
    let shared = node.dir().join("shared");
    std::fs::create_dir(&shared)?;
    std::fs::write(shared.join("file"), "from the host\n")?;
    let mut config = node.container(
        "u",
        "main",
        &image,
        "id; pwd; cat /data/file; touch /data/x 2>&1 || echo refused; touch /etc/x 2>&1 || echo no; \
         grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status",
    );
    config.mounts = vec![Mount {
        host_path: shared,
        container_path: "/data".into(),
        read_only: true,
        ..Default::default()
    }];
    config.security = Security {
        read_only_root: true,
        no_new_privileges: true,
        drop_capabilities: vec!["ALL".into()],
        supplemental_groups: vec![4000],
        ..Default::default()
    };
    let out = run_to_end(&runtime, &config).await?;
    assert!(out.contains("uid=101(web) gid=102(web) groups=102(web),103(logs),4000"), "{out}");
    assert!(out.contains("\n/tmp\nfrom the host\n"), "{out}");
    assert!(out.contains("\nrefused\n") && out.contains("\nno\n"), "{out}");
    assert!(out.contains("CapEff:\t0000000000000000") && out.contains("NoNewPrivs:\t1"), "{out}");

    config.attempt = 1;
    config.log_path = config.log_path.with_file_name("1.log");
    config.security = Security { run_as_non_root: true, run_as_user: Some(0), ..Default::default() };
    let refused = runtime.create_container(&config).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid { .. }), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_that_does_not_exist_leaves_nothing() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("bad")).await?;
    let mut config = node.container("bad", "main", &image, "");
    config.command = vec!["/no/such/program".into()];
    let error = runtime.create_container(&config).await.unwrap_err();
    assert!(matches!(&error, Error::Start { message, .. } if message.contains("no such file")), "{error:?}");
    assert_eq!(runtime.list_containers().await?, []);
    runtime.remove_pod_sandbox("uid-bad").await?;
    assert_nothing_left(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_is_removed_with_containers_in_every_state() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("other")).await?;
    let other = runtime.create_container(&node.container("other", "main", &image, "sleep 600")).await?;
    runtime.create_pod_sandbox(&node.pod("e")).await?;
    runtime.create_container(&node.container("e", "created", &image, "sleep 600")).await?;
    let running = runtime.create_container(&node.container("e", "running", &image, "sleep 600")).await?;
    runtime.start_container(&running).await?;
    run_to_end(&runtime, &node.container("e", "ended", &image, "exit 1")).await?;
    runtime.remove_pod_sandbox("uid-e").await?;
    let left: Vec<_> = runtime.list_containers().await?.into_iter().map(|c| c.id).collect();
    assert_eq!(left, [other]);
    runtime.remove_pod_sandbox("uid-other").await?;
    assert_nothing_left(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_asks_first_and_kills_after() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("s")).await?;
    let check = async |name: &str, script: &str, signal: Option<&str>, timeout: u64, expected: i32| {
        let mut config = node.container("s", name, &image, script);
        config.stop_signal = signal.map(Into::into);
        let id = runtime.create_container(&config).await?;
        runtime.start_container(&id).await?;
        wait_log(&config.log_path, 1).await?;
        runtime.stop_container(&id, Duration::from_secs(timeout)).await?;
        let exit = runtime.container_status(&id).await?.and_then(|s| s.exit).context("exit")?;
        assert_eq!(exit.exit_code, expected, "{name}");
        anyhow::Ok(())
    };
    let wait = "echo up; while true; do sleep 0.1; done";
    check("polite", &format!("trap 'exit 3' TERM; {wait}"), None, 20, 3).await?;
    check("own-signal", &format!("trap 'exit 4' USR1; trap '' TERM; {wait}"), Some("SIGUSR1"), 20, 4).await?;
    check("stubborn", &format!("trap '' TERM; {wait}"), None, 1, 137).await?;
    check("no-time", &format!("trap 'exit 3' TERM; {wait}"), None, 0, 137).await?;
    runtime.stop_container("0123", Duration::from_secs(1)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_containers_are_adopted_after_a_restart() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("r")).await?;
    let stays =
        node.container("r", "stays", &image, "i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done");
    let ends = node.container(
        "r",
        "ends",
        &image,
        "echo up; while [ ! -e /dev/shm/go ]; do sleep 0.05; done; exit 5",
    );
    let mut ids = Vec::new();
    for config in [&stays, &ends] {
        let id = runtime.create_container(config).await?;
        runtime.start_container(&id).await?;
        wait_log(&config.log_path, 1).await?;
        ids.push(id);
    }
    let before = runtime.container_status(&ids[0]).await?.context("status")?;
    let pid = before.pid.context("pid")?;
    let ending = runtime.container_status(&ids[1]).await?.and_then(|s| s.pid).context("pid")?;

    // One of them ends while no agent runs.
    drop(runtime);
    std::fs::write(node.dir().join("run/pods/uid-r/shm/go"), "")?;
    common::eventually("one ends", || Ok(!common::is_running(ending))).await?;

    let runtime = node.connect().await?;
    let after = runtime.container_status(&ids[0]).await?.context("status")?;
    assert_eq!((after.state, after.pid), (ContainerState::Running, Some(pid)));
    assert_eq!(after.started_at, before.started_at);
    assert!(runtime.list_pod_sandboxes().await?[0].ready);
    common::eventually_async("the end is known", async || {
        let status = runtime.container_status(&ids[1]).await?.context("status")?;
        Ok(status.exit.is_some_and(|exit| exit.exit_code == 5 && !exit.unobserved))
    })
    .await?;

    // No line is lost or doubled over the restart.
    let log = wait_log(&stays.log_path, 40).await?;
    let numbers: Vec<u32> = log.lines().map(|l| l.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u32), "{numbers:?}");
    runtime.remove_pod_sandbox("uid-r").await?;
    assert_nothing_left(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_of_containerd_disturbs_no_container() -> Result<()> {
    let Some(mut node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    let mut events = runtime.events();
    runtime.create_pod_sandbox(&node.pod("c")).await?;
    let config =
        node.container("c", "main", &image, "echo up; while [ ! -e /dev/shm/go ]; do sleep 0.05; done");
    let id = runtime.create_container(&config).await?;
    runtime.start_container(&id).await?;
    wait_log(&config.log_path, 1).await?;
    let pid = runtime.container_status(&id).await?.context("status")?.pid;

    node.kill_containerd()?;
    let error = runtime.list_containers().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    node.start_containerd()?;
    event(&mut events, |e| matches!(e, RuntimeEvent::Resync).then_some(())).await?;
    let status = runtime.container_status(&id).await?.context("status")?;
    assert_eq!((status.state, status.pid), (ContainerState::Running, pid));
    std::fs::write(node.dir().join("run/pods/uid-c/shm/go"), "")?;
    assert_eq!(Exited::of(&mut events, &id).await?.exit_code, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_for_memory_is_told_apart() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    let mut events = runtime.events();
    runtime.create_pod_sandbox(&node.pod("m")).await?;
    let mut config = node.container("m", "main", &image, "dd if=/dev/zero of=/dev/null bs=200M count=1");
    config.command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"].map(Into::into).into();
    config.resources = Resources { memory_limit_bytes: Some(32 << 20), ..Default::default() };
    let id = runtime.create_container(&config).await?;
    runtime.start_container(&id).await?;
    let exit = Exited::of(&mut events, &id).await?;
    assert_eq!((exit.exit_code, exit.oom_killed, exit.reason()), (137, true, "OOMKilled"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_of_the_shim_is_an_unobserved_exit() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    let mut events = runtime.events();
    runtime.create_pod_sandbox(&node.pod("x")).await?;
    let config = node.container("x", "main", &image, "echo up; sleep 600");
    let id = runtime.create_container(&config).await?;
    runtime.start_container(&id).await?;
    let pid = runtime.container_status(&id).await?.context("status")?.pid.context("pid")?;
    let shim = common::parent_of(pid)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL)?;
    let exit = Exited::of(&mut events, &id).await?;
    assert_eq!(exit.exit_code, 137);
    runtime.remove_pod_sandbox("uid-x").await?;
    common::eventually("its process is gone", || Ok(!std::path::Path::new(&format!("/proc/{pid}")).exists()))
        .await?;
    assert_nothing_left(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_usage_are_in_the_cgroups() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = common::with_busybox(&node).await?;
    let pod = PodSandboxConfig {
        resources: Resources {
            memory_limit_bytes: Some(128 << 20),
            cpu_shares: Some(256),
            ..Default::default()
        },
        ..node.pod("l")
    };
    runtime.create_pod_sandbox(&pod).await?;
    let mut config = node.container("l", "main", &image, "echo up; head -c 1000 /dev/zero; sleep 600");
    config.resources = Resources {
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(50),
        cpu_shares: Some(128),
        cpu_quota_us: Some(20_000),
        ..Default::default()
    };
    let id = runtime.create_container(&config).await?;
    runtime.start_container(&id).await?;
    wait_log(&config.log_path, 1).await?;
    let stats = runtime.stats(&id).await?.context("stats")?;
    assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
    assert!(stats.memory_usage_bytes > 0 && stats.cpu_usage_ns > 0 && stats.pids >= 1, "{stats:?}");
    assert!(stats.memory_working_set_bytes <= stats.memory_usage_bytes);
    let pod_stats = runtime.pod_stats("uid-l").await?.context("pod stats")?;
    assert_eq!(pod_stats.memory_limit_bytes, Some(128 << 20));
    assert!(pod_stats.cpu_usage_ns >= stats.cpu_usage_ns);
    runtime.remove_pod_sandbox("uid-l").await?;
    assert_nothing_left(&node).await
}
