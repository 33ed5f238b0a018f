//! The kubelet on a real containerd: pods with volumes, probes and network namespaces, adopted after a restart
//! of the agent, and gone without a trace. Skips, saying why, where containers cannot run.

mod common;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::agent::{Agent, mount, shell, test_node};
use common::{is_ready, pod, spec, uid};
use hawser_kubelet::cpus::CpuPolicy;
use hawser_kubelet::cpus::set::CpuSet;
use hawser_kubelet::cpus::topology::Topology;
use hawser_runtime::ContainerState;
use hawser_runtime::testing::ImagePack;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction,
    FileKeySelector, ImageVolumeSource, ObjectFieldSelector, PodSpec, Probe, ResourceRequirements, Secret,
    SecretVolumeSource, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

fn everything(image: &str) -> PodSpec {
    let mut init = shell(
        "init",
        image,
        "echo from init > /data/init; mkdir -p /data/sub; echo deep > /data/sub/f; \
         echo \"GREETING='hello there'\" > /data/app.env",
    );
    init.volume_mounts = Some(vec![mount("data", "/data", None)]);
    let script = "cat /data/init /sub/f /etc/web/color /etc/login/password; echo $NAME $IP; echo $GREETING; hostname; \
                  grep -c tmpfs /proc/mounts >/dev/null && mount | grep -o 'tmpfs on /mem'; \
                  head -1 /etc/resolv.conf; grep web /etc/hosts; \
                  trap 'echo stopping; exit 0' TERM; while :; do sleep 0.1; done";
    let mut web = shell("web", image, script);
    let field = |path: &str| EnvVarSource {
        field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: None }),
        ..EnvVarSource::default()
    };
    let from_file = FileKeySelector {
        volume_name: "data".into(),
        path: "app.env".into(),
        key: "GREETING".into(),
        optional: None,
    };
    let from_file = EnvVarSource { file_key_ref: Some(from_file), ..EnvVarSource::default() };
    web.env = Some(vec![
        EnvVar { name: "NAME".into(), value_from: Some(field("metadata.name")), value: None },
        EnvVar { name: "IP".into(), value_from: Some(field("status.podIP")), value: None },
        EnvVar { name: "GREETING".into(), value_from: Some(from_file), value: None },
    ]);
    web.volume_mounts = Some(vec![
        mount("data", "/data", None),
        mount("data", "/sub", Some("sub")),
        mount("memory", "/mem", None),
        mount("settings", "/etc/web", None),
        mount("login", "/etc/login", None),
    ]);
    let exec = ExecAction { command: Some(vec!["test".into(), "-f".into(), "/data/init".into()]) };
    web.readiness_probe = Some(Probe { exec: Some(exec), period_seconds: Some(1), ..Probe::default() });
    web.resources = Some(ResourceRequirements {
        limits: Some(
            [("cpu".into(), Quantity("500m".into())), ("memory".into(), Quantity("64Mi".into()))].into(),
        ),
        ..ResourceRequirements::default()
    });
    let settings = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let login = SecretVolumeSource { secret_name: Some("login".into()), ..SecretVolumeSource::default() };
    let memory =
        EmptyDirVolumeSource { medium: Some("Memory".into()), size_limit: Some(Quantity("1Mi".into())) };
    let volume = |name: &str| Volume { name: name.into(), ..Volume::default() };
    PodSpec {
        init_containers: Some(vec![init]),
        volumes: Some(vec![
            Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume("data") },
            Volume { empty_dir: Some(memory), ..volume("memory") },
            Volume { config_map: Some(settings), ..volume("settings") },
            Volume { secret: Some(login), ..volume("login") },
        ]),
        ..spec("Always", vec![web])
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_runs_is_adopted_and_leaves_nothing() -> Result<()> {
    runs_is_adopted_and_leaves_nothing(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_with_users_of_its_own_runs_is_adopted_and_leaves_nothing() -> Result<()> {
    runs_is_adopted_and_leaves_nothing(Some(false)).await
}

async fn runs_is_adopted_and_leaves_nothing(host_users: Option<bool>) -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
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
    agent.api.put_pod(&pod("web", PodSpec { host_users, ..everything(&image) }));
    let status = agent.wait_status("ready", is_ready).await?;
    let init = &status.init_container_statuses.as_ref().context("init")?[0];
    ensure!(init.ready && init.image == image, "{init:?}");

    let found = agent.runtime.list_containers().await?;
    let web = found.into_iter().find(|c| c.name == "web").context("runs")?;
    let log = || std::fs::read_to_string(&web.log_path).unwrap_or_default();
    agent.wait("the log", || (log().lines().count() >= 10).then_some(())).await?;
    for line in
        ["from init", "deep", "blue", "hunter2", "web 10.1.0.7", "hello there", "web", "tmpfs on /mem"]
    {
        ensure!(log().contains(&format!(" stdout F {line}\n")), "{line:?} in {}", log());
    }
    ensure!(log().contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{}", log());
    ensure!(log().contains("10.1.0.7\tweb"), "{}", log());

    let agent = agent.restart(&node).await?;
    agent.wait("the worker", || (agent.kubelet.pods.len() == 1).then_some(())).await?;
    let view = |a: &Agent| a.kubelet.pods.find("default", "web").and_then(|v| v.pod.status.clone());
    agent.wait("the pod is seen ready", || view(&agent).filter(is_ready)).await?;
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", web.pid.context("runs")?))?;
    let own = format!("{}/kubepods/burstable/pod{}/{}", node.cgroup(), uid("web"), web.id);
    ensure!(cgroups.contains(&own), "{own} in {cgroups}");
    let again = agent.runtime.container_status(&web.id).await?.context("still there")?;
    ensure!((again.pid, again.state) == (web.pid, ContainerState::Running), "{again:?}");
    ensure!(agent.runtime.list_containers().await?.len() == 2, "nothing was made again");
    ensure!(is_ready(&agent.status()), "never reported as not ready");

    agent.delete(5);
    agent.expect_gone(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_is_told_with_code_and_message_and_made_again() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let script = "echo no database > /dev/termination-log; exit 3";
    let mut spec = spec("Always", vec![shell("web", &image, script)]);
    spec.host_network = Some(true);
    agent.api.put_pod(&pod("web", spec));
    let status = agent
        .wait_status("the second back-off", |s| {
            let state = s.container_statuses.as_ref().and_then(|c| c[0].state.as_ref()?.waiting.clone());
            state.is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"))
        })
        .await?;
    let web = &status.container_statuses.as_ref().context("statuses")?[0];
    ensure!(web.restart_count == 1, "{web:?}");
    let last = web.last_state.as_ref().and_then(|s| s.terminated.as_ref()).context("last state")?;
    ensure!(last.exit_code == 3 && last.reason.as_deref() == Some("Error"), "{last:?}");
    ensure!(last.message.as_deref() == Some("no database\n"), "{last:?}");
    agent.delete(0);
    agent.expect_gone(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_that_never_restarts_tells_how_it_ended() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    let mut hungry =
        shell("hungry", &image, "x=$(head -c 200000000 /dev/zero | tr '\\0' a); echo $x | wc -c");
    hungry.resources = Some(ResourceRequirements {
        limits: Some([("memory".into(), Quantity("32Mi".into()))].into()),
        ..ResourceRequirements::default()
    });
    let mut missing = shell("missing", &image, "");
    missing.command = Some(vec!["/no/such/program".into()]);
    let mut spec = spec("Never", vec![hungry, missing, shell("fine", &image, "exit 0")]);
    spec.host_network = Some(true);
    agent.api.put_pod(&pod("web", spec));
    let status = agent.wait_status("the end", |s| s.phase.as_deref() == Some("Failed")).await?;
    let ended = |name: &str| {
        let all = status.container_statuses.as_ref().context("statuses")?;
        let found = all.iter().find(|c| c.name == name).and_then(|c| c.state.as_ref()?.terminated.as_ref());
        let found = found.with_context(|| format!("{name} has ended: {all:?}"))?;
        anyhow::Ok((found.exit_code, found.reason.clone().unwrap_or_default()))
    };
    ensure!(ended("hungry")?.1 == "OOMKilled", "{:?}", ended("hungry"));
    ensure!(ended("missing")? == (128, "StartError".into()), "{:?}", ended("missing"));
    ensure!(ended("fine")? == (0, "Completed".into()), "{:?}", ended("fine"));
    agent.delete(0);
    agent.expect_gone(&node).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_pods_at_once_all_run() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let agent = Agent::start(&node).await?;
    agent.runtime.pull_image(&image, &[], None).await?;
    let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
    let began = Instant::now();
    for name in &names {
        let main = shell("main", &image, "trap 'exit 0' TERM; while :; do sleep 0.1; done");
        agent.api.put_pod(&pod(name, spec("Always", vec![main])));
    }
    let ready = |name: &String| agent.api.pod(name).and_then(|p| p.status).is_some_and(|s| is_ready(&s));
    agent.wait("all ready", || names.iter().all(ready).then_some(())).await?;
    println!("ten pods ready after {:?}", began.elapsed());
    for name in &names {
        let mut object = agent.api.pod(name).context("there")?;
        object.metadata.deletion_timestamp = Some(Time(Timestamp::now() + SignedDuration::from_secs(10)));
        object.metadata.deletion_grace_period_seconds = Some(10);
        agent.api.put_pod(&object);
    }
    agent.wait("all gone", || agent.kubelet.pods.is_empty().then_some(())).await?;
    println!("gone after {:?}", began.elapsed());
    ensure!(agent.runtime.list_containers().await?.is_empty());
    ensure!(agent.network.names().is_empty());
    ensure!(node.cgroups()?.is_empty(), "{:?}", node.cgroups()?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_is_a_volume_that_can_only_be_read() -> Result<()> {
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let (data, _) = node.push(
        &ImagePack::busybox()?.directory("data").file("data/hello", 0o644, "from an image\n"),
        "data:1",
    )?;
    let agent = Agent::start(&node).await?;
    let script = "cat /data/data/hello /part/hello; touch /data/x || echo read-only; /data/bin/busybox true || echo no programs; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let mut web = shell("web", &image, script);
    web.volume_mounts = Some(vec![mount("data", "/data", None), mount("data", "/part", Some("data"))]);
    let source = ImageVolumeSource { reference: Some(data), pull_policy: None };
    let mut spec = spec("Always", vec![web]);
    spec.volumes = Some(vec![Volume { name: "data".into(), image: Some(source), ..Volume::default() }]);
    agent.api.put_pod(&pod("web", spec));
    agent.wait_status("ready", is_ready).await?;
    let found = agent.runtime.list_containers().await?;
    let web = found.into_iter().find(|c| c.name == "web").context("runs")?;
    let log = || std::fs::read_to_string(&web.log_path).unwrap_or_default();
    agent.wait("the log", || log().contains("no programs").then_some(())).await?;
    ensure!(log().matches(" stdout F from an image\n").count() == 2, "{}", log());
    ensure!(log().contains(" stdout F read-only\n"), "{}", log());
    // A new agent finds it, and takes it back.
    let agent = agent.restart(&node).await?;
    agent.wait("the worker", || (agent.kubelet.pods.len() == 1).then_some(())).await?;
    let again = agent.runtime.container_status(&web.id).await?.context("still there")?;
    ensure!(again.pid == web.pid, "{again:?}");
    agent.delete(5);
    agent.expect_gone(&node).await
}

/// The CPUs that the container's process may run on.
async fn cpus_of(agent: &Agent, name: &str) -> Result<String> {
    let found = agent.runtime.list_containers().await?;
    let pid = found.into_iter().find(|c| c.name == name).and_then(|c| c.pid).context("runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(line.context("told")?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_has_its_cpus_alone() -> Result<()> {
    let topology = Topology::read(Path::new("/sys/devices/system/cpu"));
    if topology.all().len() < 2 {
        println!("skipped: one CPU cannot be shared out");
        return Ok(());
    }
    let Some(node) = test_node()? else { return Ok(()) };
    let (image, _) = node.push(&ImagePack::busybox()?, "busybox:1")?;
    let policy = CpuPolicy::fixed(topology.clone(), CpuSet::default(), 1000).map_err(anyhow::Error::msg)?;
    let agent = Agent::start_set(&node, |config| config.cpu_policy = policy).await?;
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    agent.api.put_pod(&pod("idle", spec("Always", vec![shell("idle", &image, script)])));
    let ready = |name: &str| agent.api.pod(name).and_then(|p| p.status).is_some_and(|s| is_ready(&s));
    agent.wait("the first pod", || ready("idle").then_some(())).await?;
    ensure!(cpus_of(&agent, "idle").await? == topology.all().to_string());
    let mut web = shell("web", &image, script);
    let limits = [("cpu".into(), Quantity("1".into())), ("memory".into(), Quantity("64Mi".into()))];
    web.resources =
        Some(ResourceRequirements { limits: Some(limits.into()), ..ResourceRequirements::default() });
    agent.api.put_pod(&pod("web", spec("Always", vec![web])));
    agent.wait("the second pod", || ready("web").then_some(())).await?;
    let own: CpuSet = cpus_of(&agent, "web").await?.parse().map_err(anyhow::Error::msg)?;
    ensure!(own.len() == 1, "{own}");
    let others: CpuSet = cpus_of(&agent, "idle").await?.parse().map_err(anyhow::Error::msg)?;
    ensure!(others == topology.all().without(&own), "{others} beside {own}");
    for name in ["web", "idle"] {
        let mut object = agent.api.pod(name).context("there")?;
        object.metadata.deletion_timestamp = Some(Time(Timestamp::now() + SignedDuration::from_secs(5)));
        object.metadata.deletion_grace_period_seconds = Some(5);
        agent.api.put_pod(&object);
    }
    agent.wait("all gone", || agent.kubelet.pods.is_empty().then_some(())).await?;
    ensure!(node.cgroups()?.is_empty(), "{:?}", node.cgroups()?);
    Ok(())
}
