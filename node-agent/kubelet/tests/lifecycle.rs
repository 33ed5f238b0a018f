//! Pods from binding to deletion, through the whole kubelet over a runtime and an API in memory.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Node, container, is_ready, spec, uid};
use hawser_api::resource::ObjectKey;
use hawser_runtime::{ContainerState, ExecOutput};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapKeySelector, ConfigMapVolumeSource, EnvVar, EnvVarSource, ExecAction, Probe, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

#[tokio::test(start_paused = true)]
async fn bound_pod_runs_and_is_reported() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    let status = node.wait_ready("web").await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.1"));
    assert_eq!(status.host_ip.as_deref(), Some("10.0.0.1"));
    let web = &status.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!((web.ready, web.started, web.restart_count), (true, Some(true), 0));
    assert_eq!(web.image, "registry.test/web:1");
    assert!(web.container_id.as_deref().is_some_and(|id| id.starts_with("containerd://")));
    assert_eq!(*node.news.0.lock(), ["web ready"]);
    node.wait("events", || {
        let events = node.api.events().join("\n");
        let all =
            ["Pulling: Pulling image \"registry.test/web:1\"", "Created: Created container: web", "Started:"];
        all.iter().all(|wanted| events.contains(wanted)).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn node_registers_itself_and_renews_its_lease() {
    let node = Node::start();
    let registered = node.wait("the node", || node.api.object("nodes", "n1")).await;
    assert_eq!(registered["metadata"]["labels"]["kubernetes.io/os"], "linux");
    assert_eq!(registered["status"]["capacity"]["pods"], "110");
    let renewed =
        |n: &Node| n.api.object("leases", "kube-node-lease/n1").map(|l| l["spec"]["renewTime"].clone());
    let first = node.wait("a lease", || renewed(&node)).await;
    node.wait("a renewal", || renewed(&node).filter(|time| *time != first)).await;
}

#[tokio::test(start_paused = true)]
async fn deleted_pod_leaves_nothing() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    let pod_dir = node.dir.path().join("pods").join(uid("web"));
    assert!(pod_dir.join("etc-hosts").exists());
    node.delete("web", 30);
    node.wait("the pod to go", || node.api.pod("web").is_none().then_some(())).await;
    node.wait("the worker to end", || node.kubelet.pods.is_empty().then_some(())).await;
    assert_eq!(*node.api.deletions.lock(), ["web"]);
    assert!(node.network.pods.lock().is_empty());
    assert!(!pod_dir.exists());
    assert!(node.runtime.find(&uid("web"), "web").is_none());
    assert_eq!(node.news.0.lock().iter().filter(|n| *n == "web terminating").count(), 1);
    assert_eq!(node.news.0.lock()[1], "web terminating", "before anything else about the end");
}

#[tokio::test(start_paused = true)]
async fn crashing_container_restarts_with_growing_delays() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    for attempt in 0..3 {
        let running = node
            .wait("the next instance", || {
                let found = node.runtime.find(&uid("web"), "web")?;
                (found.attempt == attempt && found.state == ContainerState::Running).then_some(found)
            })
            .await;
        node.wait_status("web", "the restart count", |s| {
            s.container_statuses.as_ref().is_some_and(|c| c[0].restart_count == attempt as i32 && c[0].ready)
        })
        .await;
        node.runtime.exit(&running.id, 1);
    }
    let waiting = node
        .wait_status("web", "the back-off", |s| {
            let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone());
            state.and_then(|s| s.waiting).is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"))
        })
        .await;
    let web = &waiting.container_statuses.as_ref().expect("statuses")[0];
    let message = web.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.message.clone());
    assert!(
        message
            .expect("a message")
            .starts_with("back-off 20s restarting failed container=web pod=web_default(")
    );
    assert!(!is_ready(&waiting));
    assert!(node.news.0.lock().contains(&"web not ready".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn job_succeeds_and_keeps_its_record() {
    let node = Node::start();
    node.bind("web", spec("Never", vec![container("web")]));
    node.wait_running("web").await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    node.runtime.exit(&running.id, 0);
    let status = node.wait_status("web", "the end", |s| s.phase.as_deref() == Some("Succeeded")).await;
    let ended =
        status.container_statuses.as_ref().and_then(|c| c[0].state.clone()).and_then(|s| s.terminated);
    assert_eq!(ended.expect("terminated").reason.as_deref(), Some("Completed"));
    node.wait("the address to be given back", || node.network.pods.lock().is_empty().then_some(())).await;
    assert!(node.runtime.find(&uid("web"), "web").is_some(), "for its log");

    let node = node.restart().await;
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.status("web").phase.as_deref(), Some("Succeeded"));
    assert!(!node.runtime.calls().iter().any(|c| c.contains("web/1")), "nothing ran again");
}

#[tokio::test(start_paused = true)]
async fn restarted_agent_adopts_what_runs() {
    let node = Node::start();
    let mut web = container("web");
    web.readiness_probe =
        Some(Probe { exec: Some(ExecAction { command: Some(vec!["ok".into()]) }), ..Probe::default() });
    node.bind("web", spec("Always", vec![web]));
    let before = node.wait_ready("web").await;
    node.runtime.clear_calls();
    let node = node.restart().await;
    node.wait("the worker", || (node.kubelet.pods.len() == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let after = node.status("web");
    assert!(is_ready(&after));
    assert_eq!(before.container_statuses, after.container_statuses);
    assert_eq!(before.conditions, after.conditions, "not even for a moment");
    let calls = node.runtime.calls();
    let touched = ["create_container", "start_container", "stop_container", "remove"];
    assert!(!calls.iter().any(|c| touched.iter().any(|t| c.starts_with(t))), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn pods_that_went_away_meanwhile_are_cleaned_up() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.bind("db", spec("Always", vec![container("db")]));
    node.wait_ready("web").await;
    node.wait_ready("db").await;
    // The pod is removed while no agent runs.
    let node = {
        let key = ObjectKey::new("default", "db");
        let shutdown_first = node.restart().await;
        shutdown_first.objects.pods.remove(&key);
        shutdown_first
    };
    node.wait("db's container to go", || node.runtime.find(&uid("db"), "db").is_none().then_some(())).await;
    node.wait("its network to go", || (node.network.pods.lock().len() == 1).then_some(())).await;
    assert!(node.runtime.find(&uid("web"), "web").is_some_and(|c| c.state == ContainerState::Running));
}

#[tokio::test(start_paused = true)]
async fn failed_liveness_probe_restarts_the_container() {
    let node = Node::start();
    node.runtime.on_exec(Arc::new(|_, _| {
        Ok(ExecOutput { exit_code: 1, stdout: b"broken".to_vec(), stderr: Vec::new() })
    }));
    let mut web = container("web");
    let exec = ExecAction { command: Some(vec!["check".into()]) };
    web.liveness_probe = Some(Probe {
        exec: Some(exec),
        period_seconds: Some(1),
        failure_threshold: Some(3),
        ..Probe::default()
    });
    node.bind("web", spec("Always", vec![web]));
    node.wait_status("web", "a restart", |s| {
        s.container_statuses.as_ref().is_some_and(|c| c[0].restart_count >= 1)
    })
    .await;
    node.wait("events", || {
        let events = node.api.events().join("\n");
        let unhealthy = events.contains("Unhealthy: Liveness probe failed: broken");
        let killing = events.contains("Killing: Container web failed liveness probe, will be restarted");
        (unhealthy && killing).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn readiness_probe_gates_the_pod() {
    let node = Node::start();
    let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answer = ready.clone();
    node.runtime.on_exec(Arc::new(move |_, _| {
        let exit_code = i32::from(!answer.load(std::sync::atomic::Ordering::SeqCst));
        Ok(ExecOutput { exit_code, stdout: Vec::new(), stderr: Vec::new() })
    }));
    let mut web = container("web");
    let exec = ExecAction { command: Some(vec!["check".into()]) };
    web.readiness_probe = Some(Probe { exec: Some(exec), period_seconds: Some(1), ..Probe::default() });
    node.bind("web", spec("Always", vec![web]));
    assert!(!is_ready(&node.wait_running("web").await));
    ready.store(true, std::sync::atomic::Ordering::SeqCst);
    node.wait_ready("web").await;
    assert_eq!(*node.news.0.lock(), ["web ready"]);
}

fn config_map(version: &str, color: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some("settings".into()),
            namespace: Some("default".into()),
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        },
        data: Some([("color".into(), color.into())].into()),
        ..ConfigMap::default()
    }
}

#[tokio::test(start_paused = true)]
async fn container_waits_for_its_config_map() {
    let node = Node::start();
    let mut web = container("web");
    let selector = ConfigMapKeySelector { name: "settings".into(), key: "color".into(), optional: None };
    let source = EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() };
    web.env = Some(vec![EnvVar { name: "COLOR".into(), value: None, value_from: Some(source) }]);
    node.bind("web", spec("Always", vec![web]));
    let status = node
        .wait_status("web", "the error", |s| {
            let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone());
            state
                .and_then(|s| s.waiting)
                .is_some_and(|w| w.reason.as_deref() == Some("CreateContainerConfigError"))
        })
        .await;
    let web = &status.container_statuses.as_ref().expect("statuses")[0];
    let message = web.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.message.clone());
    assert_eq!(message.as_deref(), Some("configmap \"settings\" not found"));
    node.objects.config_maps.put(config_map("1", "blue"));
    node.wait_ready("web").await;
    let made = node.runtime.find(&uid("web"), "web").expect("runs");
    let config = node.runtime.config_of(&made.id).expect("known");
    assert!(config.env.contains(&("COLOR".into(), "blue".into())));
}

#[tokio::test(start_paused = true)]
async fn mounted_config_map_follows_the_object() {
    let node = Node::start();
    node.objects.config_maps.put(config_map("1", "blue"));
    let mut web = container("web");
    let mount =
        VolumeMount { name: "settings".into(), mount_path: "/etc/web".into(), ..VolumeMount::default() };
    web.volume_mounts = Some(vec![mount]);
    let mut spec = spec("Always", vec![web]);
    let source = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let volume = Volume { name: "settings".into(), config_map: Some(source), ..Volume::default() };
    spec.volumes = Some(vec![volume]);
    node.bind("web", spec);
    node.wait_ready("web").await;
    let made = node.runtime.find(&uid("web"), "web").expect("runs");
    let mounts = node.runtime.config_of(&made.id).expect("known").mounts;
    let mount = mounts.iter().find(|m| m.container_path.ends_with("web")).expect("mounted");
    assert!(mount.read_only);
    let file = mount.host_path.join("color");
    assert_eq!(std::fs::read_to_string(&file).expect("readable"), "blue");
    node.objects.config_maps.put(config_map("2", "green"));
    node.wait("the new text", || (std::fs::read_to_string(&file).ok()? == "green").then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn running_pods_do_not_care_that_the_api_is_away() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    *node.api.down.lock() = true;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    node.runtime.exit(&running.id, 1);
    node.wait("the restart", || {
        node.runtime.find(&uid("web"), "web").filter(|c| c.attempt == 1 && c.state == ContainerState::Running)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    *node.api.down.lock() = false;
    node.wait_status("web", "the news", |s| {
        s.container_statuses.as_ref().is_some_and(|c| c[0].restart_count == 1 && c[0].ready)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn process_that_ignores_its_stop_signal_is_killed_after_the_grace() {
    let node = Node::start();
    node.runtime.ignore_stop_signal("web");
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    let began = tokio::time::Instant::now();
    node.delete("web", 20);
    node.wait("the pod to go", || node.api.pod("web").is_none().then_some(())).await;
    let took = began.elapsed().as_secs();
    assert!((18..=22).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn missing_image_backs_off() {
    let node = Node::start();
    let pod = common::pod("web", spec("Always", vec![container("web")]));
    node.api.put_pod(&pod);
    node.wait_status("web", "the back-off", |s| {
        let state = s.container_statuses.as_ref().and_then(|c| c[0].state.clone());
        state.and_then(|s| s.waiting).is_some_and(|w| w.reason.as_deref() == Some("ImagePullBackOff"))
    })
    .await;
    node.runtime.publish_image("registry.test/web:1");
    node.wait_ready("web").await;
}
