//! Scenarios: a scheduler beside the API server in memory, and the objects that they begin with.

use std::{future::Future, sync::Arc};

use hawser_scheduler::{Config, run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Connection, Fake};

pub(crate) fn node(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": cpu.to_string(), "memory": "8Gi", "pods": "110" } },
    })
}

pub(crate) fn pod(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu.to_string() } } }] },
        "status": { "phase": "Pending" },
    })
}

/// Runs a scheduler beside the scenario, then stops it and checks that no rule was broken.
pub(crate) async fn scenario<F: Future<Output = ()>>(fake: Arc<Fake>, act: impl FnOnce(Arc<Fake>) -> F) {
    let shutdown = CancellationToken::new();
    let client = Connection::new(&fake);
    let scheduler = tokio::spawn(run(client, Config::default(), shutdown.clone()));
    act(fake.clone()).await;
    shutdown.cancel();
    scheduler.await.unwrap().unwrap();
    assert_eq!(fake.broken(), Vec::<String>::new());
}

pub(crate) fn bound(pods: &[Value]) -> usize {
    pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count()
}

pub(crate) fn condition(pod: &Value) -> &Value {
    &pod["status"]["conditions"][0]
}

/// A small generator of numbers, so that a failing seed can be run again.
pub(crate) fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) % limit
    }
}

pub(crate) fn seeds() -> u64 {
    std::env::var("SCHEDULER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

pub(crate) async fn until_told(fake: &Fake, message: &str) {
    fake.until("events", |events| events.iter().any(|event| event["message"] == message)).await;
}
