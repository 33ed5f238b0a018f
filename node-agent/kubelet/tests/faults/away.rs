//! The API gone for minutes, and more pods than anybody has at once, on a runtime in memory and a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_runtime::testing::Random;
use hawser_runtime::{ContainerState, ExecOutput, Runtime};
use k8s_openapi::api::core::v1::{ExecAction, Probe};

use crate::common::{Node, container, is_ready, spec, uid};

#[tokio::test(start_paused = true)]
async fn probes_act_while_the_api_is_away_and_all_is_told_afterwards() {
    let node = Node::start();
    let (alive, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (answer_alive, answer_ready) = (alive.clone(), ready.clone());
    node.runtime.on_exec(Arc::new(move |_, command: &[String]| {
        let asked = if command == ["alive"] { &answer_alive } else { &answer_ready };
        let exit_code = i32::from(!asked.load(Ordering::SeqCst));
        Ok(ExecOutput { exit_code, stdout: Vec::new(), stderr: Vec::new() })
    }));
    let probe = |command: &str| {
        let exec = ExecAction { command: Some(vec![command.into()]) };
        Some(Probe { exec: Some(exec), period_seconds: Some(1), ..Probe::default() })
    };
    let mut web = container("web");
    (web.liveness_probe, web.readiness_probe) = (probe("alive"), probe("ready"));
    node.bind("web", spec("Always", vec![web]));
    node.bind("once", spec("Never", vec![container("once")]));
    node.wait_ready("web").await;
    node.wait_running("once").await;

    *node.api.down.lock() = true;
    let told =
        || node.news.0.lock().iter().filter(|news| news.starts_with("web ")).cloned().collect::<Vec<_>>();
    ready.store(false, Ordering::SeqCst);
    node.wait("the service path to hear of it", || (told() == ["web ready", "web not ready"]).then_some(()))
        .await;
    alive.store(false, Ordering::SeqCst);
    let instance = |attempt: u32| {
        let found = node.runtime.find(&uid("web"), "web")?;
        (found.attempt == attempt && found.state == ContainerState::Running).then_some(())
    };
    node.wait("the restart", || instance(1)).await;
    alive.store(true, Ordering::SeqCst);
    ready.store(true, Ordering::SeqCst);
    node.wait("the service path to have it back", || (told().last()? == "web ready").then_some(())).await;
    let once = node.runtime.find(&uid("once"), "once").expect("runs");
    node.runtime.exit(&once.id, 3);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(is_ready(&node.status("web")), "the API knows nothing of it");
    assert_eq!(node.status("once").phase.as_deref(), Some("Running"));

    *node.api.down.lock() = false;
    let status = node
        .wait_status("web", "the restart is told", |s| {
            s.container_statuses.as_ref().is_some_and(|c| c[0].restart_count == 1 && c[0].ready)
        })
        .await;
    let last = status.container_statuses.expect("there").remove(0).last_state.and_then(|s| s.terminated);
    assert!(last.is_some(), "how the first one ended");
    node.wait_status("once", "the end is told", |s| s.phase.as_deref() == Some("Failed")).await;
    node.wait("the events", || {
        let events = node.api.events().join("\n");
        ["Unhealthy: Liveness probe failed", "Unhealthy: Readiness probe failed", "Killing: "]
            .iter()
            .all(|wanted| events.contains(wanted))
            .then_some(())
    })
    .await;
    assert_eq!(node.runtime.find(&uid("web"), "web").map(|found| found.attempt), Some(1), "and no more");
}

#[tokio::test(start_paused = true)]
async fn five_hundred_pods_come_and_go_in_any_order() {
    for seed in 0..3 {
        let node = Node::start_set(|config| config.max_pods = 1000);
        let mut random = Random(seed);
        let mut names: Vec<String> = (0..500).map(|n| format!("p{n}")).collect();
        random.shuffle(&mut names);
        let mut alive: Vec<String> = Vec::new();
        for name in names {
            node.bind(&name, spec("Always", vec![container("main"), container("beside")]));
            alive.push(name);
            tokio::time::sleep(Duration::from_millis(random.below(20))).await;
            // Before it runs, while it starts, or long after.
            while random.below(3) == 0 && !alive.is_empty() {
                let chosen = alive.swap_remove(random.below(alive.len() as u64) as usize);
                node.delete(&chosen, random.below(5) as i64);
            }
        }
        let all_ready = || alive.iter().all(|name| is_ready(&node.status(name))).then_some(());
        node.wait("those that stay", all_ready).await;
        random.shuffle(&mut alive);
        for name in &alive {
            node.delete(name, 1);
        }
        node.wait("the workers to end", || node.kubelet.pods.is_empty().then_some(())).await;
        assert!(node.api.pods().is_empty());
        assert!(node.runtime.list_containers().await.expect("listed").is_empty());
        assert!(node.runtime.list_pod_sandboxes().await.expect("listed").is_empty());
        assert!(node.network.pods.lock().is_empty());
        for dir in ["pods", "logs"] {
            let left = std::fs::read_dir(node.dir.path().join(dir)).into_iter().flatten().count();
            assert_eq!(left, 0, "{dir}");
        }
    }
}
