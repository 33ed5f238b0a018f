//! Scenarios: a scheduler beside the API server in memory, and the objects that they begin with.

#[path = "../../src/random.rs"]
mod random;

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

/// An API server with as many nodes, `n0` and so on.
pub(crate) fn cluster(nodes: usize, cpu: u32) -> Arc<Fake> {
    let fake = Arc::new(Fake::default());
    (0..nodes).for_each(|index| fake.put("nodes", node(&format!("n{index}"), cpu)));
    fake
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

/// Numbers below a limit, by a seed, so that a failing one can be run again.
pub(crate) fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = random::Random::new(seed);
    move |limit: u64| random.below(limit)
}

/// How many seeds are tried: few, unless `SCHEDULER_SEEDS` asks for more.
pub(crate) fn seeds() -> u64 {
    std::env::var("SCHEDULER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

pub(crate) async fn until_told(fake: &Fake, message: &str) {
    fake.until("events", |events| events.iter().any(|event| event["message"] == message)).await;
}
