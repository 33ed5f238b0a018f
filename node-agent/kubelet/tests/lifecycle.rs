//! Pods from binding to deletion, through the whole kubelet over a runtime and an API in memory.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Node, container, is_ready, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::client::{Client, Patch, WriteOptions};
use hawser_api::resource::{ObjectKey, Target};
use hawser_runtime::{ContainerState, Error, ExecOutput, RuntimeEvent};
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapKeySelector, ConfigMapVolumeSource, EnvVar, EnvVarSource, ExecAction,
    ImageVolumeSource, PodStatus, Probe, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
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
    node.wait("the object to be there once", || {
        let cached = node.objects.pods.get(&ObjectKey::new("default", "web"))?;
        let view = node.kubelet.pods.find("default", "web")?;
        Arc::ptr_eq(&cached, &view.pod).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pod_that_somebody_else_has_failed_is_stopped_and_stays_failed() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    let mut pod = node.api.pod("web").expect("there");
    pod.status.get_or_insert_default().phase = Some("Failed".into());
    node.api.put_pod(&pod);
    let has_ended = |status: &PodStatus| {
        let state = status.container_statuses.iter().flatten().find_map(|c| c.state.as_ref());
        state.is_some_and(|state| state.terminated.is_some())
    };
    let ended = node.wait_status("web", "the end", has_ended).await;
    assert_eq!(ended.phase.as_deref(), Some("Failed"));
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
async fn node_that_was_marked_silent_says_soon_that_it_is_ready() {
    let node = Node::start();
    let ready = || {
        let node = node.api.object("nodes", "n1")?;
        let conditions = node["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|condition| condition["type"] == "Ready")
    };
    node.wait("the node", || ready().filter(|r| r["status"] == "True")).await;
    // Past the first writes, which are made in any case.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let unknown = r#"{ "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] } }"#;
    let target = Target::object(GroupVersionResource::of::<k8s_openapi::api::core::v1::Node>(), None, "n1");
    let patch = Patch::StrategicMerge(unknown.into());
    node.api.patch(&target, patch, &WriteOptions::default()).await.expect("marked");
    let marked = tokio::time::Instant::now();
    node.wait("the truth", || ready().filter(|r| r["status"] == "True")).await;
    let took = marked.elapsed().as_secs();
    assert!(took <= 10, "{took} s: one look later, not when the heartbeat is due");
}

#[tokio::test(start_paused = true)]
async fn deleted_pod_leaves_nothing() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    let pod_dir = node.dir.path().join("pods").join(uid("web"));
    assert!(pod_dir.join("etc-hosts").exists());
    node.delete("web", 30);
    node.wait_gone("web").await;
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
async fn old_instances_leave_no_files_but_the_last_two() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    let mut logs = Vec::new();
    for attempt in 0..4 {
        let running = node
            .wait("the next instance", || {
                let found = node.runtime.find(&uid("web"), "web")?;
                (found.attempt == attempt && found.state == ContainerState::Running).then_some(found)
            })
            .await;
        std::fs::create_dir_all(running.log_path.parent().expect("in a directory")).expect("made");
        std::fs::write(&running.log_path, "").expect("written");
        logs.push(running.log_path);
        if attempt < 3 {
            node.runtime.exit(&running.id, 1);
        }
    }
    let messages = node.dir.path().join("pods").join(uid("web")).join("containers/web");
    let left = || -> Vec<bool> {
        let message = |attempt: usize| messages.join(attempt.to_string()).exists();
        logs.iter().enumerate().flat_map(|(attempt, log)| [log.exists(), message(attempt)]).collect()
    };
    let last_two = [false, false, false, false, true, true, true, true];
    node.wait("old files to go", || (left() == last_two).then_some(())).await;
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
async fn orphan_that_cannot_be_removed_holds_up_no_other() {
    let node = Node::start();
    for name in ["a", "db", "web"] {
        node.bind(name, spec("Always", vec![container(name)]));
    }
    for name in ["a", "db", "web"] {
        node.wait_ready(name).await;
    }
    let log_dir = |name: &str| node.dir.path().join("logs").join(format!("default_{name}_{}", uid(name)));
    let (gone, kept) = (log_dir("db"), log_dir("web"));
    for dir in [&gone, &kept] {
        std::fs::create_dir_all(dir.join("main")).expect("made");
    }
    let node = node.restart().await;
    // Both are removed while no agent runs, and the first one resists.
    for name in ["a", "db"] {
        node.objects.pods.remove(&ObjectKey::new("default", name));
    }
    let stuck = Error::Unavailable { attempted: "remove", message: "busy".into() };
    node.runtime.fail_next("remove_pod_sandbox", stuck);
    let began = tokio::time::Instant::now();
    node.wait("the other one to go", || node.runtime.find(&uid("db"), "db").is_none().then_some(())).await;
    node.wait("its logs to go", || (!gone.exists()).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(60), "not only with the next relist");
    assert!(kept.exists(), "logs of a pod that runs stay");
}

#[tokio::test(start_paused = true)]
async fn missed_events_cost_one_list_for_all_pods() {
    let node = Node::start();
    for name in ["a", "b", "web"] {
        node.bind(name, spec("Always", vec![container(name)]));
    }
    for name in ["a", "b", "web"] {
        node.wait_ready(name).await;
    }
    let lists = || node.runtime.calls().iter().filter(|call| call.starts_with("list_containers")).count();
    node.runtime.clear_calls();
    node.runtime.send_event(RuntimeEvent::Resync);
    node.wait("a list", || (lists() > 0).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(lists(), 1);
    let down = Error::Unavailable { attempted: "list containers", message: "down".into() };
    node.runtime.fail_next("list_containers", down);
    node.runtime.send_event(RuntimeEvent::Resync);
    node.wait("another try", || (lists() == 3).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn exit_is_not_lost_when_the_look_at_it_fails() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_ready("web").await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    for _ in 0..3 {
        let down = Error::Unavailable { attempted: "look up container", message: "down".into() };
        node.runtime.fail_next("container_status", down);
    }
    let began = tokio::time::Instant::now();
    node.runtime.exit(&running.id, 1);
    node.wait("the next instance", || node.runtime.find(&uid("web"), "web").filter(|c| c.attempt == 1)).await;
    assert!(began.elapsed() < Duration::from_secs(60), "not only with the next relist");
}

#[tokio::test(start_paused = true)]
async fn start_of_which_nothing_is_heard_is_asked_for_again_and_is_no_failed_one() {
    let node = Node::start();
    let silence = || Error::Unavailable { attempted: "ask", message: "away".into() };
    node.runtime.fail_next("start_container", silence());
    // Longer than anybody waits.
    for _ in 0..200 {
        node.runtime.fail_next("container_status", silence());
    }
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_status("web", "the silence is told", |status| {
        let state = status.container_statuses.as_ref().and_then(|all| all.first()?.state.clone());
        let message = state.and_then(|state| state.waiting?.message).unwrap_or_default();
        message.contains("what has become of the container is not known")
    })
    .await;
    let status = node.wait_ready("web").await;
    assert_eq!(status.container_statuses.expect("statuses")[0].restart_count, 0);
    let made = node.runtime.calls().into_iter().filter(|call| call.starts_with("create_container"));
    assert!(made.clone().count() > 1 && made.clone().all(|call| call.ends_with("/web/0)")), "{made:?}");
}

#[tokio::test(start_paused = true)]
async fn container_that_is_killed_for_its_liveness_still_says_when_it_is_not_ready() {
    let node = Node::start();
    let failing = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let answer = failing.clone();
    node.runtime.on_exec(Arc::new(move |_, command| {
        let exit_code = i32::from(answer.lock().contains(&command[0]));
        Ok(ExecOutput { exit_code, stdout: Vec::new(), stderr: Vec::new() })
    }));
    node.runtime.ignore_stop_signal("web");
    let probe = |command: &str| Probe {
        exec: Some(ExecAction { command: Some(vec![command.into()]) }),
        period_seconds: Some(1),
        failure_threshold: Some(1),
        ..Probe::default()
    };
    let mut web = container("web");
    (web.liveness_probe, web.readiness_probe) = (Some(probe("alive")), Some(probe("ready")));
    node.bind("web", spec("Always", vec![web]));
    node.wait_ready("web").await;
    failing.lock().push("alive".to_owned());
    node.wait("the kill", || node.api.events().join("\n").contains("failed liveness probe").then_some(()))
        .await;
    failing.lock().push("ready".to_owned());
    node.wait("not ready, still running", || {
        let found = node.runtime.find(&uid("web"), "web")?;
        let goes_on = found.attempt == 0 && found.state == ContainerState::Running;
        (goes_on && !is_ready(&node.status("web"))).then_some(())
    })
    .await;
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
async fn config_map_that_changes_while_volumes_are_made_is_followed() {
    let node = Node::start();
    node.objects.config_maps.put(config_map("1", "blue"));
    *node.api.token_delay.lock() = Duration::from_secs(5);
    let mut spec = spec("Always", vec![container("web")]);
    let source = ConfigMapVolumeSource { name: "settings".into(), ..ConfigMapVolumeSource::default() };
    let settings = Volume { name: "settings".into(), config_map: Some(source), ..Volume::default() };
    let token = ServiceAccountTokenProjection { path: "token".into(), ..Default::default() };
    let token = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let token = ProjectedVolumeSource { sources: Some(vec![token]), ..ProjectedVolumeSource::default() };
    let token = Volume { name: "token".into(), projected: Some(token), ..Volume::default() };
    // The order in which they are made.
    spec.volumes = Some(vec![settings, token]);
    node.bind("web", spec);
    let volumes = node.dir.path().join("pods").join(uid("web")).join("volumes");
    let file = volumes.join("kubernetes.io~configmap/settings/color");
    let text = || std::fs::read_to_string(&file).ok();
    node.wait("the first text", || (text()? == "blue").then_some(())).await;
    node.objects.config_maps.put(config_map("2", "green"));
    assert!(node.runtime.find(&uid("web"), "web").is_none(), "the token is still being made");
    node.wait("the new text", || (text()? == "green").then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn image_volume_is_pulled_and_shown_before_its_container() {
    let node = Node::start();
    let mut web = container("web");
    web.volume_mounts =
        Some(vec![VolumeMount { name: "data".into(), mount_path: "/data".into(), ..VolumeMount::default() }]);
    let mut spec = spec("Always", vec![web, container("other")]);
    let source = ImageVolumeSource { reference: Some("registry.test/data:1".into()), pull_policy: None };
    spec.volumes = Some(vec![Volume { name: "data".into(), image: Some(source), ..Volume::default() }]);
    node.bind("web", spec);
    let waiting = |status: &PodStatus, reason: &str| {
        let found = status.container_statuses.iter().flatten().find(|c| c.name == "web");
        let state = found.and_then(|c| c.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        state == Some(reason)
    };
    node.wait_status("web", "the error", |s| waiting(s, "ErrImagePull")).await;
    node.wait_status("web", "the back-off", |s| waiting(s, "ImagePullBackOff")).await;
    let other = node.runtime.find(&uid("web"), "other").expect("does not need it");
    assert_eq!(other.state, ContainerState::Running);
    node.runtime.publish_image("registry.test/data:1");
    node.wait_ready("web").await;
    let made = node.runtime.find(&uid("web"), "web").expect("runs");
    let mounts = node.runtime.config_of(&made.id).expect("known").mounts;
    let mount = mounts.iter().find(|m| m.container_path.ends_with("data")).expect("mounted");
    assert!(mount.read_only && mount.no_exec);
    assert!(mount.host_path.ends_with("volumes/kubernetes.io~image/data"));
    node.wait("events", || {
        let events = node.api.events().join("\n");
        let all =
            ["Pulling image \"registry.test/data:1\"", "Successfully pulled image \"registry.test/data:1\""];
        all.iter().all(|wanted| events.contains(wanted)).then_some(())
    })
    .await;
    node.delete("web", 0);
    node.wait_gone("web").await;
    let taken_back = format!("unmount_image({}-data)", uid("web"));
    assert!(node.runtime.calls().contains(&taken_back), "{:?}", node.runtime.calls());
}

#[tokio::test(start_paused = true)]
async fn pod_that_asks_for_users_of_its_own_is_not_started_without() {
    let node = Node::start();
    let mut spec = spec("Always", vec![container("web")]);
    spec.host_users = Some(false);
    node.bind("web", spec);
    node.wait("the event", || {
        let told = "FailedCreatePodSandBox: Failed to create pod sandbox: hostUsers: false: runtime handler \"\" does not \
                    support user namespaces: there is no kernel below";
        node.api.events().contains(&told.to_owned()).then_some(())
    })
    .await;
    assert!(node.runtime.find(&uid("web"), "web").is_none());
    let metrics = node.kubelet.telemetry().metrics();
    assert!(metrics.contains("kubelet_started_user_namespaced_pods_errors_total 1\n"), "{metrics}");
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
    node.wait_gone("web").await;
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

#[tokio::test(start_paused = true)]
async fn another_image_replaces_the_container_that_runs() {
    let node = Node::start();
    node.bind("web", spec("Never", vec![container("web"), container("beside")]));
    node.wait_running("web").await;
    node.change("web", |spec| spec.containers[0].image = Some("registry.test/web:2".into()));
    node.wait_status("web", "the pull fails", |status| {
        let web = status.container_statuses.iter().flatten().find(|c| c.name == "web").expect("there");
        let waiting = web.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.and_then(|w| w.reason.as_deref()) == Some("ImagePullBackOff") && web.last_state.is_some()
    })
    .await;
    node.runtime.publish_image("registry.test/web:2");
    let status = node
        .wait_status("web", "the new one runs", |status| {
            status.container_statuses.iter().flatten().any(|c| c.image == "registry.test/web:2" && c.ready)
        })
        .await;
    let restarts: Vec<(String, i32)> =
        status.container_statuses.into_iter().flatten().map(|c| (c.name, c.restart_count)).collect();
    assert_eq!(restarts, [("web".to_owned(), 1), ("beside".to_owned(), 0)]);
    let events = node.api.events().join("\n");
    assert!(events.contains("Killing: Container web definition changed, will be restarted"), "{events}");
}
