//! Pods with users of their own (`hostUsers: false`), on a real containerd.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use common::{eventually, node, run_to_end, wait_log, with_busybox};
use hawser_runtime::testing::{ImagePack, TestNode};
use hawser_runtime::{
    ContainerConfig, Containerd, ExecRequest, IdRange, Mount, MountPropagation, PodNetwork, PodSandboxConfig,
    Runtime, Security,
};

use nix::mount::{MntFlags, MsFlags, mount as mount_, umount2};

const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// The n-th range of the node, from 1.
fn ids(number: u32) -> IdRange {
    IdRange { first: number << 16, count: 1 << 16 }
}

/// Makes the sandbox of such a pod, without a network.
async fn sandbox(
    runtime: &Containerd,
    node: &TestNode,
    name: &str,
    number: u32,
    set: impl FnOnce(&mut PodSandboxConfig),
) -> Result<PodSandboxConfig> {
    let mut config = PodSandboxConfig { users: Some(ids(number)), ..node.pod(name) };
    set(&mut config);
    config.network = PodNetwork::Path(runtime.create_pod_users(&config).await?);
    anyhow::ensure!(runtime.create_pod_sandbox(&config).await?.ready);
    Ok(config)
}

async fn start(runtime: &Containerd, config: &ContainerConfig) -> Result<(String, u32)> {
    let id = runtime.create_container(config).await?;
    runtime.start_container(&id).await?;
    let pid = runtime.container_status(&id).await?.and_then(|status| status.pid).context("it runs")?;
    Ok((id, pid))
}

fn mount(host_path: &Path, container_path: &str) -> Mount {
    Mount { host_path: host_path.into(), container_path: container_path.into(), ..Mount::default() }
}

/// The node's numbers of the user and group that a process runs as.
fn owner_of(pid: u32) -> Result<(u32, u32)> {
    let directory = fs::metadata(format!("/proc/{pid}"))?;
    Ok((directory.uid(), directory.gid()))
}

/// Directories with files of several owners on the node, as volumes have them.
fn volume(node: &TestNode) -> Result<std::path::PathBuf> {
    let data = node.dir().join("data");
    fs::create_dir_all(data.join("below"))?;
    for (name, owner, mode) in [("secret", 0, 0o600), ("group", 7, 0o640), ("below/file", 1000, 0o644)] {
        let path = data.join(name);
        fs::write(&path, "content\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        chown(&path, Some(owner), Some(owner))?;
    }
    Ok(data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_with_users_of_its_own_sees_what_another_sees_and_is_nobody_outside() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    runtime.supports_users("").map_err(anyhow::Error::msg)?;
    let data = volume(&node)?;
    runtime.create_pod_sandbox(&node.pod("plain")).await?;
    let own = sandbox(&runtime, &node, "own", 3, |_| {}).await?;
    // Nobody but root has to get that far.
    fs::set_permissions(node.dir().join("run"), fs::Permissions::from_mode(0o700))?;

    let script = "stat -c '%u:%g %a %n' / /bin /bin/busybox /etc/passwd /tmp /dev/shm /data /data/secret /data/group \
                  /data/below/file /file; cat /data/secret; id -u; hostname > /made; stat -c '%u:%g %n' /made; \
                  echo x >> /data/below/file && stat -c '%u:%g %n' /data/below/file; touch /data/NAME /dev/shm/NAME; \
                  stat -c '%u:%g' /data/NAME /dev/shm/NAME; touch /ro/x 2>/dev/null || echo read-only";
    let listing = async |pod: &str| -> Result<String> {
        let mounts = vec![
            mount(&data, "/data"),
            mount(&data.join("secret"), "/file"),
            Mount { read_only: true, ..mount(&data, "/ro") },
        ];
        let container = node.container(pod, "lists", &image, &script.replace("NAME", pod));
        run_to_end(&runtime, &ContainerConfig { mounts, ..container }).await
    };
    let (plain, mapped) = (listing("plain").await?, listing("own").await?);
    assert_eq!(plain, mapped);
    assert!(mapped.contains("0:0 600 /data/secret") && mapped.ends_with("read-only\n"), "{mapped}");
    for made in ["plain", "own"] {
        assert_eq!(fs::metadata(data.join(made))?.uid(), 0, "{made}: on disk it is root's");
    }

    let (id, pid) = start(&runtime, &node.container("own", "stays", &image, STAY)).await?;
    assert_eq!(owner_of(pid)?, (3 << 16, 3 << 16));
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "196608", "65536"]);
    let mounts: Vec<_> = node.mounts()?.into_iter().filter(|mount| mount.contains("/mapped/")).collect();
    assert!(mounts.is_empty(), "only while a container is made: {mounts:?}");

    // Its rights end at what is the pod's own.
    let script = "cat /proc/self/uid_map | sed 's/  */ /g'; hostname changed && hostname; \
                  ip link add name d0 type bridge 2>&1; ip link show d0 > /dev/null && echo linked; \
                  ls /sys/class/net | grep d0; \
                  kill -0 HOST 2>/dev/null || echo no such process; \
                  echo 1 2>/dev/null > /proc/sys/kernel/panic || echo node is safe";
    let mut rights =
        node.container("own", "rights", &image, &script.replace("HOST", &std::process::id().to_string()));
    rights.security = Security { privileged: true, ..Security::default() };
    let said = run_to_end(&runtime, &rights).await?;
    let expected = " 0 196608 65536\nchanged\nlinked\nd0\nno such process\nnode is safe\n";
    assert!(said.contains(expected), "{said}");

    runtime.remove_container(&id).await?;
    runtime.remove_pod_sandbox(&own.pod_uid).await?;
    runtime.remove_pod_sandbox("uid-plain").await?;
    eventually("nothing is left", || Ok(node.left_behind()?.is_empty()))
        .await
        .with_context(|| format!("{:?}", node.left_behind()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_belong_to_whom_the_container_runs_as() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    sandbox(&runtime, &node, "own", 1, |_| {}).await?;
    let as_web = Security { run_as_user: Some(101), ..Security::default() };
    let again = "echo first > /dev/stdout && echo second >> /proc/self/fd/2";
    for (name, security) in [("root", Security::default()), ("web", as_web.clone())] {
        let config = ContainerConfig { security, ..node.container("own", name, &image, again) };
        assert_eq!(run_to_end(&runtime, &config).await?, "first\nsecond\n", "{name}");
    }

    let terminal = node.container("own", "terminal", &image, "tty && echo on it > /dev/tty");
    let terminal = ContainerConfig { tty: true, security: as_web.clone(), ..terminal };
    let said = run_to_end(&runtime, &terminal).await?;
    assert!(said.contains("/dev/") && said.contains("on it"), "{said}");

    let mut config = node.container("own", "stays", &image, "read x; echo got $x; sleep 1000000");
    (config.stdin, config.security) = (true, as_web);
    let (id, pid) = start(&runtime, &config).await?;
    assert_eq!(owner_of(pid)?.0, (1 << 16) + 101);
    let session =
        runtime.attach(&id, &hawser_runtime::AttachRequest { stdin: true, ..Default::default() }).await?;
    let mut stdin = session.stdin.context("asked for")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"it\n").await?;
    assert!(wait_log(&config.log_path, 1).await?.contains("got it"));
    let command = ["sh", "-c", "id -u; echo again > /dev/stderr"].map(str::to_owned);
    let output = runtime.exec_sync(&id, &command, std::time::Duration::from_secs(20), 1000).await?;
    assert_eq!((output.exit_code, &*output.stdout, &*output.stderr), (0, &b"101\n"[..], &b"again\n"[..]));
    let request = ExecRequest { command: vec!["true".into()], tty: true, stdout: true, ..Default::default() };
    assert_eq!(runtime.exec(&id, &request).await?.exit.await?, 0);

    let beyond = Security { run_as_user: Some(1 << 16), ..Security::default() };
    let config = ContainerConfig { security: beyond, ..node.container("own", "beyond", &image, STAY) };
    let error = runtime.create_container(&config).await.expect_err("it has no such user").to_string();
    assert!(error.contains("securityContext.runAsUser: 65536 is not among the 65536"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_are_shared_belong_to_the_pods_users_too() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    let pod = sandbox(&runtime, &node, "shared", 2, |pod| pod.share_pid = true).await?;
    let (target, _) = start(&runtime, &node.container("shared", "stays", &image, STAY)).await?;
    let unmasked = Security { unmasked_proc: true, privileged: true, ..Security::default() };
    // The first process lives among the node's files, and lets nobody in.
    let script = "stat -c %u /proc/1; ls /proc/1/root/ 2>&1; ps | grep -c 'trap'";
    let looks = ContainerConfig { security: unmasked, ..node.container("shared", "looks", &image, script) };
    let said = run_to_end(&runtime, &looks).await?;
    assert!(said.contains("Permission denied") && !said.contains("\n1\n0\n"), "{said}");
    let debug = node.container("shared", "debug", &image, "ps | grep -c '[t]rap'");
    let debug = ContainerConfig { join_pid_of: Some(target), ..debug };
    assert!(run_to_end(&runtime, &debug).await?.starts_with(['1', '2']));
    runtime.remove_pod_sandbox(&pod.pod_uid).await?;
    eventually("nothing is left", || Ok(node.left_behind()?.is_empty()))
        .await
        .with_context(|| format!("{:?}", node.left_behind()))
}

/// What is mounted there, and shared with all that is made of it, as most machines have theirs.
struct SharedMount(std::path::PathBuf);

impl SharedMount {
    fn new(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let none = None::<&str>;
        mount_(Some("test"), path, Some("tmpfs"), MsFlags::empty(), none)?;
        let made = Self(path.to_owned());
        mount_(none, path, none, MsFlags::MS_SHARED, none)?;
        Ok(made)
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_mounted_below_a_shared_volume_stays_there() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    sandbox(&runtime, &node, "own", 1, |_| {}).await?;
    let volume = SharedMount::new(&node.dir().join("shared"))?;
    let below = SharedMount::new(&volume.0.join("below"))?;
    fs::write(below.0.join("file"), "content\n")?;
    for propagation in [MountPropagation::Private, MountPropagation::HostToContainer] {
        let shown = Mount { propagation, ..mount(&volume.0, "/data") };
        let script = format!("cat /data/below/file; {STAY}");
        let container = node.container("own", "reads", &image, &script);
        let config = ContainerConfig { mounts: vec![shown], ..container };
        let (id, _) = start(&runtime, &config).await?;
        assert!(wait_log(&config.log_path, 1).await?.contains("content"), "{propagation:?}");
        let look = ["cat", "/data/below/file"].map(str::to_owned);
        let seen = runtime.exec_sync(&id, &look, std::time::Duration::from_secs(20), 1000).await?;
        assert_eq!(&*seen.stdout, b"content\n", "{propagation:?}: in the container");
        assert!(below.0.join("file").exists(), "{propagation:?}: on the node");
        runtime.remove_container(&id).await?;
        assert!(below.0.join("file").exists(), "{propagation:?}: on the node, after it");
        fs::remove_file(&config.log_path)?;
    }
    Ok(())
}

/// An image of many layers: the paths of their places are longer together than the kernel takes in one mount.
fn many_layers() -> Result<ImagePack> {
    let layers = (0..50)
        .map(|number| ImagePack::default().directory("layers").file(&format!("layers/{number}"), 0o640, "x"));
    Ok(layers.fold(ImagePack::busybox()?, ImagePack::layer))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_of_many_layers_is_a_root_and_a_volume() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let runtime = node.connect().await?;
    let (root, _) = node.push(&many_layers()?, "layers:1")?;
    let deep = ImagePack::default().directory("d").file("d/below", 0o600, "below\n");
    let between = (0..40).map(|number| ImagePack::default().file(&format!("{number}"), 0o600, "x"));
    let deep = between.fold(deep, ImagePack::layer);
    let deep = deep.layer(ImagePack::default().directory("d").file("d/above", 0o600, "above\n"));
    let (data, _) = node.push(&deep, "data:1")?;
    for image in [&root, &data] {
        runtime.pull_image(image, &[], None).await?;
    }
    let volume = node.dir().join("volume");
    runtime.mount_image(&data, "a-data", &volume).await?;
    // As a subPath shows them.
    let parts = [node.dir().join("part"), node.dir().join("one-file")];
    fs::create_dir(&parts[0])?;
    fs::write(&parts[1], "")?;
    for (part, within) in parts.iter().zip(["d", "d/above"]) {
        mount_(Some(&volume.join(within)), part, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    runtime.create_pod_sandbox(&node.pod("plain")).await?;
    sandbox(&runtime, &node, "own", 1, |_| {}).await?;
    let script = "ls /layers | wc -l; stat -c '%u:%g %a' /layers/0 /layers/49 /data/d/above; cat /data/d/above /data/d/below; \
                  touch /data/d/new 2>/dev/null || echo read-only; ls /part; cat /file; touch /part/new 2>/dev/null || echo read-only; echo own > /layers/0; cat /layers/0";
    for pod in ["plain", "own"] {
        let shown = [(&volume, "/data"), (&parts[0], "/part"), (&parts[1], "/file")];
        let shown =
            shown.map(|(on_node, path)| Mount { read_only: true, no_exec: true, ..mount(on_node, path) });
        let config = ContainerConfig { mounts: shown.into(), ..node.container(pod, "reads", &root, script) };
        let expected =
            "50\n0:0 640\n0:0 640\n0:0 600\nabove\nbelow\nread-only\nabove\nbelow\nabove\nread-only\nown\n";
        assert_eq!(run_to_end(&runtime, &config).await?, expected, "{pod}");
    }
    for part in &parts {
        umount2(part, MntFlags::MNT_DETACH)?;
    }
    runtime.unmount_image("a-data", &volume).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_that_cannot_be_shown_is_named() -> Result<()> {
    let Some(node) = node()? else { return Ok(()) };
    let (runtime, image) = with_busybox(&node).await?;
    sandbox(&runtime, &node, "own", 1, |_| {}).await?;
    let config = ContainerConfig {
        mounts: vec![mount(Path::new("/proc/sys"), "/node")],
        ..node.container("own", "main", &image, STAY)
    };
    let error = runtime.create_container(&config).await.expect_err("procfs cannot").to_string();
    assert!(error.contains("/node (/proc/sys) cannot be shown to users of the pod's own"), "{error}");
    assert!(runtime.list_containers().await?.is_empty());
    let left: Vec<_> = node.mounts()?.into_iter().filter(|mount| mount.contains("/mapped/")).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
