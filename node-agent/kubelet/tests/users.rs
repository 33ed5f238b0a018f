//! Pods with users of their own (`hostUsers: false`, KEP-127) on a real containerd: what others have they have too, and
//! outside they are nobody. Skips, saying why, where containers cannot run.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::agent::{Agent, mount, shell, test_node};
use common::{is_ready, pod, spec, uid};
use hawser_kubelet::users::IdPool;
use hawser_runtime::Runtime as _;
use hawser_runtime::testing::ImagePack;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, DownwardAPIProjection, DownwardAPIVolumeFile,
    EmptyDirVolumeSource, ExecAction, HostPathVolumeSource, ObjectFieldSelector, PodSecurityContext, PodSpec,
    Probe, ProjectedVolumeSource, Secret, SecretVolumeSource, SecurityContext, Sysctl, Volume,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

/// Volumes of every kind that the kubelet itself makes, and a directory of the node.
fn volumes(of_node: &std::path::Path) -> Vec<Volume> {
    let volume = |name: &str| Volume { name: name.into(), ..Volume::default() };
    let memory = EmptyDirVolumeSource { medium: Some("Memory".into()), ..EmptyDirVolumeSource::default() };
    let settings = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let login = SecretVolumeSource { secret_name: Some("login".into()), ..SecretVolumeSource::default() };
    let name = ObjectFieldSelector { field_path: "metadata.name".into(), ..ObjectFieldSelector::default() };
    let item = DownwardAPIVolumeFile { path: "name".into(), field_ref: Some(name), ..Default::default() };
    let about = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(vec![item]) }),
        ..VolumeProjection::default()
    };
    let about = ProjectedVolumeSource { sources: Some(vec![about]), ..ProjectedVolumeSource::default() };
    let of_node = HostPathVolumeSource { path: of_node.to_string_lossy().into_owned(), type_: None };
    vec![
        Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume("data") },
        Volume { empty_dir: Some(memory), ..volume("memory") },
        Volume { config_map: Some(settings), ..volume("settings") },
        Volume { secret: Some(login), ..volume("login") },
        Volume { projected: Some(about), ..volume("about") },
        Volume { host_path: Some(of_node), ..volume("node") },
    ]
}

/// Lists what it has as its user sees it, makes files, and stays.
const LISTS: &str = "echo w > /data/made; mkdir -p /data/sub; echo m > /memory/made; echo n > /node/made-$HOSTNAME; \
     stat -c '%u:%g %a %n' / /etc/passwd /etc/hosts /etc/resolv.conf /dev/termination-log /data /data/made /memory \
     /memory/made /settings /settings/color /login /login/password /about/name /node /node/secret /sub /dev/shm; \
     cat /settings/color /login/password /node/secret; id; echo said > /dev/termination-log; \
     cat /proc/sys/net/core/somaxconn; echo end; ";

fn lists(image: &str, own_users: bool, of_node: &std::path::Path) -> PodSpec {
    let mut main = shell("main", image, &format!("{LISTS}{STAY}"));
    let mounts = ["data", "memory", "settings", "login", "about", "node"];
    let mounts = mounts.iter().map(|name| mount(name, &format!("/{name}"), None));
    main.volume_mounts = Some(mounts.chain([mount("data", "/sub", Some("sub"))]).collect());
    let exec = ExecAction { command: Some(vec!["test".into(), "-f".into(), "/data/made".into()]) };
    main.readiness_probe = Some(Probe { exec: Some(exec), period_seconds: Some(1), ..Probe::default() });
    let somaxconn = Sysctl { name: "net.core.somaxconn".into(), value: "77".into() };
    PodSpec {
        host_users: own_users.then_some(false),
        hostname: Some("lists".into()),
        security_context: Some(PodSecurityContext {
            fs_group: Some(2000),
            supplemental_groups: Some(vec![3000]),
            sysctls: Some(vec![somaxconn]),
            ..PodSecurityContext::default()
        }),
        volumes: Some(volumes(of_node)),
        ..spec("Always", vec![main])
    }
}

async fn agent_with_objects(node: &hawser_runtime::testing::TestNode) -> Result<Agent> {
    let agent =
        Agent::start_set(node, |config| config.allowed_unsafe_sysctls = vec!["net.core.*".into()]).await?;
    agent.objects.config_maps.put(ConfigMap {
        metadata: named("settings"),
        data: Some([("color".into(), "blue\n".into())].into()),
        ..ConfigMap::default()
    });
    agent.objects.secrets.put(Secret {
        metadata: named("login"),
        data: Some([("password".into(), ByteString(b"hunter2\n".to_vec()))].into()),
        ..Secret::default()
    });
    Ok(agent)
}

/// What a container of a pod has written, once it has written that line.
async fn log_of(agent: &Agent, pod: &str, container: &str, last: &str) -> Result<String> {
    let found = agent.runtime.list_containers().await?;
    let found = found.into_iter().find(|c| c.pod_name == pod && c.name == container).context("is there")?;
    let read = || fs::read_to_string(&found.log_path).unwrap_or_default();
    let text =
        agent.wait(last, || Some(read()).filter(|text| text.contains(&format!(" F {last}\n")))).await?;
    // Without the times.
    Ok(text.lines().filter_map(|line| line.split_once(" F ")).map(|(_, said)| format!("{said}\n")).collect())
}

/// Path of a pod's volume on the node.
fn on_disk(agent: &Agent, pod: &str, volume: &str) -> std::path::PathBuf {
    agent.config.pod_dir(&uid(pod)).join("volumes/kubernetes.io~empty-dir").join(volume)
}

async fn wait_ready(agent: &Agent, name: &str) -> Result<()> {
    agent.wait(&format!("{name} is ready"), || agent.api.pod(name)?.status.filter(is_ready).map(drop)).await
}

/// User ids of the node that a pod's container has, by its map.
async fn map_of(agent: &Agent, pod: &str) -> Result<Vec<u32>> {
    let found = agent.runtime.list_containers().await?;
    let pid = found.iter().filter(|c| c.pod_name == pod).find_map(|c| c.pid).context("runs")?;
    let text = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    text.split_whitespace().map(|word| Ok(word.parse()?)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_look_and_are_written_as_without() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = agent_with_objects(&node).await?;
    let of_node = node.dir().join("of-node");
    fs::create_dir_all(&of_node)?;
    fs::write(of_node.join("secret"), "the node's\n")?;
    fs::set_permissions(of_node.join("secret"), fs::Permissions::from_mode(0o600))?;
    for (name, own_users) in [("plain", false), ("web", true)] {
        let mut spec = lists(&image, own_users, &of_node);
        spec.hostname = Some(name.into());
        agent.api.put_pod(&pod(name, spec));
    }
    for name in ["plain", "web"] {
        wait_ready(&agent, name).await?;
    }
    let (plain, own) =
        (log_of(&agent, "plain", "main", "end").await?, log_of(&agent, "web", "main", "end").await?);
    assert_eq!(plain, own);
    for line in ["0:2000 2777 /data", "blue", "hunter2", "the node's", "77"] {
        ensure!(own.lines().any(|said| said == line), "{line:?} in {own}");
    }
    for file in [on_disk(&agent, "web", "data").join("made"), of_node.join("made-web")] {
        assert_eq!(fs::metadata(&file)?.uid(), 0, "{} is root's on disk", file.display());
    }
    assert_eq!(map_of(&agent, "plain").await?, [0, 0, u32::MAX]);
    assert_eq!(map_of(&agent, "web").await?, [0, 65536, 65536]);
    let features = |node: serde_json::Value| node["status"]["runtimeHandlers"][0]["features"].clone();
    let features = agent.wait("the node", || agent.api.object("nodes", "n1").map(features)).await?;
    assert_eq!(features["userNamespaces"], true);
    let metrics = agent.kubelet.telemetry().metrics();
    ensure!(metrics.contains("kubelet_started_user_namespaced_pods_total 1\n"), "{metrics}");
    agent.delete_pod("plain", 1);
    agent.delete(1);
    agent.expect_gone(&node).await
}

fn main_of(spec: &mut PodSpec) -> &mut Container {
    &mut spec.containers[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_the_pods_own_and_stay_theirs() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let mut agent = Agent::start(&node).await?;
    let own = |name: &str| {
        let mut spec = spec("Always", vec![shell("main", &image, STAY)]);
        spec.host_users = Some(false);
        spec.share_process_namespace = Some(name == "web");
        pod(name, spec)
    };
    for name in ["web", "other"] {
        agent.api.put_pod(&own(name));
        wait_ready(&agent, name).await?;
    }
    let (web, other) = (map_of(&agent, "web").await?, map_of(&agent, "other").await?);
    assert_eq!((&web[..], &other[..]), (&[0, 65536, 65536][..], &[0, 131072, 65536][..]));
    agent = agent.restart(&node).await?;
    agent.delete_pod("web", 1);
    agent.wait("the pod to go", || agent.api.pod("web").is_none().then_some(())).await?;
    agent.api.put_pod(&own("third"));
    wait_ready(&agent, "third").await?;
    assert_eq!(map_of(&agent, "third").await?[1], 65536, "given back");
    assert_eq!(map_of(&agent, "other").await?[1], 131072, "kept");

    // Its processes and what they share are lost, as when the machine starts again: the numbers stay.
    let lose = async || {
        let runtime = node.connect().await?;
        let found = runtime.list_containers().await?;
        for container in found.iter().filter(|container| container.pod_name == "other") {
            runtime.stop_container(&container.id, Duration::ZERO).await?;
        }
        for name in ["uts", "ipc", "user", "net"] {
            let path = node.dir().join("run/pods").join(uid("other")).join(name);
            nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH)?;
        }
        Ok(runtime)
    };
    agent = agent.restart_over(lose()).await?;
    agent
        .wait("it starts over", || {
            let status = agent.api.pod("other")?.status?;
            let again = status.container_statuses.iter().flatten().any(|c| c.restart_count > 0 && c.ready);
            again.then_some(())
        })
        .await?;
    assert_eq!(map_of(&agent, "other").await?[1], 131072, "kept");
    for name in ["other", "third"] {
        agent.delete_pod(name, 1);
    }
    agent.wait("the pods to go", || agent.api.pods().is_empty().then_some(())).await?;
    agent.expect_empty(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_of_pods_that_have_ended_are_given_to_others() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start_set(&node, |config| {
        config.users = IdPool::new(1 << 16, 1, "", "").expect("a pool of one range");
    })
    .await?;
    let own = |name: &str, script: &str| {
        let mut spec = spec("Never", vec![shell("main", &image, script)]);
        spec.host_users = Some(false);
        pod(name, spec)
    };
    agent.api.put_pod(&own("web", "id; echo end"));
    let has_ended = || {
        let phase = agent.api.pod("web")?.status?.phase?;
        (phase == "Succeeded").then_some(())
    };
    agent.wait("the first one to end", has_ended).await?;
    agent.api.put_pod(&own("other", STAY));
    wait_ready(&agent, "other").await?;
    assert_eq!(map_of(&agent, "other").await?, [0, 65536, 65536]);
    ensure!(log_of(&agent, "web", "main", "end").await?.contains("uid=0"), "its log is there");
    for name in ["web", "other"] {
        agent.delete_pod(name, 1);
    }
    agent.wait("the pods to go", || agent.api.pods().is_empty().then_some(())).await?;
    agent.expect_empty(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_end_where_the_pod_ends() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let script = format!(
        "ip link add name d0 type bridge; ls /sys/class/net | grep d0; echo 7 > /proc/sys/net/ipv4/ip_default_ttl; \
         cat /proc/sys/net/ipv4/ip_default_ttl; mount -t tmpfs none /tmp && echo mounted; \
         kill -0 {pid} 2>/dev/null || echo alone; stat -c %u /sys/fs/cgroup; \
         echo 1 2>/dev/null > /proc/sys/vm/overcommit_memory || echo held; echo end; {STAY}",
        pid = std::process::id()
    );
    let mut spec = spec("Always", vec![shell("main", &image, &script)]);
    spec.host_users = Some(false);
    let mut sidecar = shell("sidecar", &image, STAY);
    sidecar.restart_policy = Some("Always".into());
    sidecar.security_context = Some(SecurityContext {
        run_as_user: Some(1000),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        ..SecurityContext::default()
    });
    spec.init_containers = Some(vec![sidecar]);
    main_of(&mut spec).security_context = Some(SecurityContext {
        privileged: Some(true),
        proc_mount: Some("Unmasked".into()),
        ..SecurityContext::default()
    });
    agent.api.put_pod(&pod("web", spec));
    wait_ready(&agent, "web").await?;
    let said = log_of(&agent, "web", "main", "end").await?;
    for line in ["d0", "7", "mounted", "alone", "held"] {
        ensure!(said.lines().any(|found| found == line), "{line:?} in {said}");
    }
    let all = agent.runtime.list_containers().await?;
    let sidecar = all.iter().find(|c| c.name == "sidecar").and_then(|c| c.pid).context("runs")?;
    assert_eq!(fs::metadata(format!("/proc/{sidecar}"))?.uid(), 65536 + 1000);
    agent.delete(1);
    agent.expect_gone(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_such_a_pod_cannot_have_is_told() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let told = async |name: &str, set: fn(&mut PodSpec), expected: &str| -> Result<()> {
        let mut spec = spec("Always", vec![shell("main", &image, STAY)]);
        spec.host_users = Some(false);
        set(&mut spec);
        agent.api.put_pod(&pod(name, spec));
        agent
            .wait(expected, || agent.api.events().iter().any(|event| event.contains(expected)).then_some(()))
            .await?;
        agent.delete_pod(name, 0);
        agent.wait("the pod to go", || agent.api.pod(name).is_none().then_some(())).await
    };
    told("a", |spec| spec.host_network = Some(true), "hostUsers: false: not with hostNetwork").await?;
    let user = |spec: &mut PodSpec| {
        main_of(spec).security_context =
            Some(SecurityContext { run_as_user: Some(65536), ..SecurityContext::default() });
    };
    told("b", user, "securityContext.runAsUser: 65536 is not among the 65536").await?;
    let proc = |spec: &mut PodSpec| {
        let path = HostPathVolumeSource { path: "/proc/sys".into(), type_: None };
        spec.volumes = Some(vec![Volume { name: "node".into(), host_path: Some(path), ..Volume::default() }]);
        main_of(spec).volume_mounts = Some(vec![mount("node", "/node", None)]);
    };
    told("c", proc, "/node (/proc/sys) cannot be shown to users of the pod's own").await?;
    agent.expect_empty(&node).await
}
