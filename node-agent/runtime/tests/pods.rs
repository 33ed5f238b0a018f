//! What containers of a pod share and what they may use, on a real containerd.

mod common;

use anyhow::{Context, Result};
use common::{node, run_to_end, wait_log, with_busybox};
use hawser_runtime::{ContainerConfig, Mount, PodSandboxConfig, Resources, Runtime, testing::TestNode};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Says what every process that it sees runs, and its own number.
const LIST: &str = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done; echo self $$";
const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done # here to stay";

async fn start(runtime: &impl Runtime, config: &ContainerConfig) -> Result<String> {
    let id = runtime.create_container(config).await?;
    runtime.start_container(&id).await?;
    Ok(id)
}

/// Processes of this machine whose command line holds `words`.
fn processes(words: &str) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").contains(words)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_pod_see_each_others_processes_where_it_asks_for_that() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    let pod = PodSandboxConfig { share_pid: true, ..node.pod("shared") };
    runtime.create_pod_sandbox(&pod).await?;
    let first = format!("pod-init {}", pod.pod_uid);
    assert_eq!(processes(&first), 1);
    assert!(runtime.create_pod_sandbox(&pod).await?.ready);
    assert_eq!(processes(&first), 1, "repeated");
    start(&runtime, &node.container("shared", "stays", &image, STAY)).await?;
    let seen = run_to_end(&runtime, &node.container("shared", "looks", &image, LIST)).await?;
    assert!(seen.contains("here to stay"), "{seen}");
    assert!(seen.contains(&first), "{seen}");
    assert!(!seen.contains("self 1\n"), "{seen}");

    // Its first process gone, all of the pod's are, and the sandbox can be made again.
    assert!(runtime.list_pod_sandboxes().await?[0].ready);
    runtime.remove_pod_sandbox(&pod.pod_uid).await?;
    common::eventually("the first process ends", || Ok(processes(&first) == 0)).await?;
    assert!(node.cgroups()?.is_empty(), "{:?}", node.cgroups()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debugging_container_sees_its_targets_processes_and_others_do_not() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    let target = start(&runtime, &node.container("web", "stays", &image, STAY)).await?;
    let alone = run_to_end(&runtime, &node.container("web", "alone", &image, LIST)).await?;
    assert!(!alone.contains("here to stay") && alone.contains("self 1\n"), "{alone}");
    let debug =
        ContainerConfig { join_pid_of: Some(target.clone()), ..node.container("web", "debug", &image, LIST) };
    let seen = run_to_end(&runtime, &debug).await?;
    assert!(seen.contains("here to stay"), "{seen}");
    let status = runtime.container_status(&target).await?.context("there")?;
    assert!(status.pid.is_some(), "the target goes on: {status:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_while_the_container_runs() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    let limit = |mib: i64| Resources {
        memory_limit_bytes: Some(mib << 20),
        cpu_shares: Some(100),
        pids_limit: Some(50),
        ..Resources::default()
    };
    let pod = PodSandboxConfig { resources: limit(64), ..node.pod("web") };
    runtime.create_pod_sandbox(&pod).await?;
    let config = ContainerConfig { resources: limit(64), ..node.container("web", "main", &image, STAY) };
    let id = start(&runtime, &config).await?;
    let limits = async || -> Result<(Option<u64>, Option<u64>)> {
        let container = runtime.stats(&id).await?.context("runs")?;
        let pod = runtime.pod_stats(&pod.pod_uid).await?.context("there")?;
        Ok((container.memory_limit_bytes, pod.memory_limit_bytes))
    };
    assert_eq!(limits().await?, (Some(64 << 20), Some(64 << 20)));
    runtime.update_pod_sandbox(&pod.pod_uid, &limit(96)).await?;
    runtime.update_container(&id, &limit(96)).await?;
    assert_eq!(limits().await?, (Some(96 << 20), Some(96 << 20)));
    let pid = runtime.container_status(&id).await?.and_then(|status| status.pid);
    runtime.update_container(&id, &limit(32)).await?;
    runtime.update_pod_sandbox(&pod.pod_uid, &limit(32)).await?;
    assert_eq!(limits().await?, (Some(32 << 20), Some(32 << 20)));
    assert_eq!(runtime.container_status(&id).await?.and_then(|status| status.pid), pid, "it runs on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layer_of_a_container_is_measured() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    let script = format!("head -c 3000000 /dev/zero > /big; echo written; {STAY}");
    let config = node.container("web", "main", &image, &script);
    let id = start(&runtime, &config).await?;
    wait_log(&config.log_path, 1).await?;
    let usage = runtime.disk_usage(&id).await?.context("there")?;
    assert!(usage.bytes >= 3_000_000 && usage.inodes >= 1, "{usage:?}");
    assert_eq!(runtime.disk_usage("none").await?, None);
    let images = runtime.image_directory().await?;
    assert!(images.starts_with(node.dir()), "{images:?}");
    let stats = runtime.stats(&id).await?.context("runs")?;
    assert!(stats.cpu_usage_ns > 0 && stats.page_faults > 0 && stats.pids > 0, "{stats:?}");
    Ok(())
}

/// A tmpfs in a directory of the node's, gone with the value.
struct Inner(std::path::PathBuf);

impl Inner {
    fn mount(node: &TestNode) -> Result<Self> {
        let path = node.dir().join("outer/inner");
        std::fs::create_dir_all(&path)?;
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        Ok(Self(path))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_reaches_below_where_asked() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    let inner = Inner::mount(&node)?;
    let outer = inner.0.parent().context("a parent")?.to_owned();
    for (name, recursive, expected) in [("plain", false, "written\n"), ("recursive", true, "refused\n")] {
        let script = "touch /outer/f 2>/dev/null && echo outer; \
                      touch /outer/inner/f 2>/dev/null && echo written || echo refused";
        let mount = Mount {
            container_path: "/outer".into(),
            host_path: outer.clone(),
            read_only: true,
            recursive_read_only: recursive,
            ..Mount::default()
        };
        let config = ContainerConfig { mounts: vec![mount], ..node.container("web", name, &image, script) };
        let said = run_to_end(&runtime, &config).await?;
        assert_eq!(said, expected, "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_may_use_the_devices_that_it_was_given() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    // A device that every machine has, and no container by itself.
    let script = "dd if=/dev/given of=/dev/null bs=1 count=0 2>/dev/null && echo opened || echo refused; \
                  mknod /made c 10 229 && dd if=/made of=/dev/null bs=1 count=0 2>/dev/null && echo opened || echo refused";
    let device = hawser_runtime::DeviceMapping {
        host_path: "/dev/fuse".into(),
        container_path: "/dev/given".into(),
        permissions: "r".into(),
    };
    let config = ContainerConfig { devices: vec![device], ..node.container("web", "given", &image, script) };
    assert_eq!(run_to_end(&runtime, &config).await?, "opened\nopened\n");
    let without = node.container("web", "without", &image, script);
    assert_eq!(run_to_end(&runtime, &without).await?, "refused\nrefused\n");
    let mut missing = config.clone();
    missing.attempt = 1;
    missing.devices[0].host_path = "/dev/none".into();
    assert!(runtime.create_container(&missing).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_gets_what_the_file_of_its_cdi_device_says() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.create_pod_sandbox(&node.pod("web")).await?;
    let (files, shown) = (node.dir().join("cdi"), node.dir().join("shown"));
    std::fs::create_dir_all(&files)?;
    std::fs::create_dir_all(&shown)?;
    std::fs::write(shown.join("library"), "from the vendor\n")?;
    let text = format!(
        "cdiVersion: 0.6.0\nkind: test.com/fuse\ndevices:\n- name: a\n  containerEdits:\n    env: [GIVEN=a]\n    \
         deviceNodes: [{{ path: /dev/given, hostPath: /dev/fuse, permissions: r }}]\n    \
         mounts: [{{ hostPath: {}, containerPath: /shown, options: [ro] }}]\n    additionalGids: [4242]\n",
        shown.display()
    );
    std::fs::write(files.join("fuse.yaml"), text)?;
    let script = "echo $GIVEN; cat /shown/library; id -G | grep -o 4242; \
                  dd if=/dev/given of=/dev/null bs=1 count=0 2>/dev/null && echo opened";
    let config = ContainerConfig {
        cdi_devices: vec!["test.com/fuse=a".into()],
        ..node.container("web", "given", &image, script)
    };
    assert_eq!(run_to_end(&runtime, &config).await?, "a\nfrom the vendor\n4242\nopened\n");
    let missing = ContainerConfig { attempt: 1, cdi_devices: vec!["test.com/fuse=b".into()], ..config };
    let error = runtime.create_container(&missing).await.expect_err("nobody describes it").to_string();
    assert!(error.contains("unresolvable CDI devices test.com/fuse=b"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_is_there_keeps_its_cgroup_and_new_ones_are_put_elsewhere() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    let level = format!("{}/kubepods/burstable", node.cgroup());
    let bounds = Resources { cpu_shares: Some(512), ..Resources::default() };
    runtime.update_group(&level, &bounds).await?;
    let old = node.pod("old");
    runtime.create_pod_sandbox(&old).await?;
    let id = start(&runtime, &node.container("old", "stays", &image, STAY)).await?;
    let cgroup_of = async |id: &str| -> Result<String> {
        let pid = runtime.container_status(id).await?.and_then(|status| status.pid).context("runs")?;
        Ok(std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
    };
    assert!(cgroup_of(&id).await?.contains(&format!("{}/{id}", old.cgroup_parent)));

    let moved = |pod: &PodSandboxConfig, name: &str| PodSandboxConfig {
        cgroup_parent: format!("{level}/pod-{name}"),
        ..pod.clone()
    };
    let again = runtime.create_pod_sandbox(&moved(&old, "old")).await?;
    assert_eq!(again.config.cgroup_parent, old.cgroup_parent, "it runs there");
    let second = start(&runtime, &node.container("old", "second", &image, STAY)).await?;
    assert!(cgroup_of(&second).await?.contains(&format!("{}/{second}", old.cgroup_parent)));
    let new = moved(&node.pod("new"), "new");
    runtime.create_pod_sandbox(&new).await?;
    let third = start(&runtime, &node.container("new", "stays", &image, STAY)).await?;
    assert!(cgroup_of(&third).await?.contains(&format!("{level}/pod-new/{third}")));

    for pod in [&old, &new] {
        runtime.remove_pod_sandbox(&pod.pod_uid).await?;
    }
    assert!(node.cgroups()?.is_empty(), "{:?}", node.cgroups()?);
    Ok(())
}
