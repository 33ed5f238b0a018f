//! The scheduler as a whole, against an API server in memory, on a paused clock.

mod fake;

use std::{future::Future, sync::Arc};

use fake::{Connection, Fake, Fault};
use hawser_scheduler::{Config, run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

fn node(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": cpu.to_string(), "memory": "8Gi", "pods": "110" } },
    })
}

fn pod(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu.to_string() } } }] },
        "status": { "phase": "Pending" },
    })
}

/// Runs a scheduler beside the scenario, then stops it and checks that no rule was broken.
async fn scenario<F: Future<Output = ()>>(fake: Arc<Fake>, act: impl FnOnce(Arc<Fake>) -> F) {
    let shutdown = CancellationToken::new();
    let client = Arc::new(Connection(fake.clone()));
    let scheduler = tokio::spawn(run(client, Config::default(), shutdown.clone()));
    act(fake.clone()).await;
    shutdown.cancel();
    scheduler.await.unwrap().unwrap();
    assert_eq!(fake.broken(), Vec::<String>::new());
}

fn bound(pods: &[Value]) -> usize {
    pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count()
}

fn condition(pod: &Value) -> &Value {
    &pod["status"]["conditions"][0]
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_in_events() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    fake.put("pods", pod("early", 1));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        fake.put("pods", pod("late", 1));
        fake.until("pods", |pods| bound(pods) == 2).await;
        fake.until("events", |events| events.len() == 2).await;
        let event =
            fake.all("events").into_iter().find(|event| event["involvedObject"]["name"] == "late").unwrap();
        assert_eq!(event["message"], "Successfully assigned a/late to n1");
        assert_eq!(event["reason"], "Scheduled");
        assert_eq!(event["source"]["component"], "default-scheduler");
        assert_eq!(event["involvedObject"]["uid"], "uid-late");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_is_tried_again() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 1));
    fake.put("pods", pod("big", 4));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| condition(&pods[0])["reason"] == "Unschedulable").await;
        let pods = fake.all("pods");
        assert_eq!(condition(&pods[0])["type"], "PodScheduled");
        assert_eq!(condition(&pods[0])["status"], "False");
        let message = "0/1 nodes are available: 1 Insufficient cpu. \
            preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        assert_eq!(condition(&pods[0])["message"], message);
        fake.until("events", |events| events.iter().any(|event| event["reason"] == "FailedScheduling")).await;
        fake.put("nodes", node("n2", 8));
        fake.until("pods", |pods| pods[0]["spec"]["nodeName"] == "n2").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_same_news_counts_up() {
    let fake = Arc::new(Fake::default());
    fake.put("pods", pod("lonely", 1));
    scenario(fake, |fake| async move {
        // Without nodes nothing but time wakes the pod.
        fake.until("events", |events| events.iter().any(|event| event["count"] == 2)).await;
        let events = fake.all("events");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["message"], "no nodes available to schedule pods");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn write_failures_are_undone_and_nothing_is_bound_twice() {
    for fault in [Fault::Refuse, Fault::LoseBefore, Fault::LoseAfter] {
        let fake = Arc::new(Fake::default());
        fake.put("nodes", node("n1", 1));
        fake.put("nodes", node("n2", 1));
        fake.put("pods", pod("a", 1));
        fake.put("pods", pod("b", 1));
        fake.fail_next(&[fault, Fault::None, fault]);
        scenario(fake, |fake| async move {
            fake.until("pods", |pods| bound(pods) == 2).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn capacity_holds_under_a_storm_of_pods_faults_and_losses() {
    for seed in 1..=20_u64 {
        let fake = Arc::new(Fake::default());
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = move |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) % limit
        };
        for index in 0..5 {
            fake.put("nodes", node(&format!("n{index}"), 4));
        }
        let faults: Vec<Fault> = (0..100)
            .map(|_| match next(6) {
                0 => Fault::Refuse,
                1 => Fault::LoseBefore,
                2 => Fault::LoseAfter,
                _ => Fault::None,
            })
            .collect();
        fake.fail_next(&faults);
        scenario(fake, |fake| async move {
            for index in 0..40 {
                fake.put("pods", pod(&format!("p{index}"), 1));
                if next(4) == 0 {
                    let victim = format!("a/p{}", next(index + 1));
                    fake.remove("pods", &victim);
                }
                if next(3) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            // 20 cores in all: as many pods as fit end up with a node.
            fake.until("pods", |pods| bound(pods) == pods.len().min(20)).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn bindings_travel_in_batches() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 100));
    for index in 0..64 {
        fake.put("pods", pod(&format!("p{index}"), 1));
    }
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 64).await;
        assert_eq!(fake.bind_calls.load(std::sync::atomic::Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_stands_still_ends_the_scheduler() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    fake.put("pods", pod("a", 1));
    let client = Arc::new(Connection(fake.clone()));
    let scheduler = tokio::spawn(run(client, Config::default(), CancellationToken::new()));
    fake.until("pods", |pods| bound(pods) == 1).await;
    fake.break_watches();
    let error = scheduler.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "an informer ended early");
}
