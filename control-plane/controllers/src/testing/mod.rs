//! An API in memory for the controllers' tests, and nodes that run what it says.
//!
//! [`FakeApi`] keeps what controllers rely on: resource versions with conflicts, watches in order, status
//! apart from spec, generations, finalizers, graceful deletion, namespaces that end. Requests can be made to
//! fail before or after they take effect, and watches can be held back so that caches are behind. Time is the
//! runtime's, which the tests pause: a second costs nothing.

mod fake_api;
mod nodes;
mod store;

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use fake_api::{FakeApi, Fault};
pub(crate) use nodes::run_nodes;
pub(crate) use store::Objects;

use crate::Config;

/// Controllers that run against a [`FakeApi`] until they are dropped, which is like a `kill -9`.
pub(crate) struct Running {
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: CancellationToken,
}

impl Running {
    pub(crate) fn start(api: &Arc<FakeApi>, controllers: &[&str]) -> Self {
        let controllers = controllers.iter().map(ToString::to_string).collect();
        Self::start_with(api, Config { controllers, ..Config::default() })
    }

    pub(crate) fn start_with(api: &Arc<FakeApi>, config: Config) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(crate::run(api.clone(), config, shutdown.clone()));
        Self { task, shutdown }
    }

    /// Stops as a signal would, and waits for the end.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(60), &mut self.task).await;
        ended.expect("controllers stop in time").expect("no panic").expect("no error");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// For [`FakeApi::check_writes`].
pub(crate) fn ensure(holds: bool, otherwise: String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// A deployment of `image`; its selector and labels are `app: <name>`.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "selector": { "matchLabels": { "app": name } },
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" },
            },
            "template": template(name, image),
        },
    })
}

pub(crate) fn replica_set(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": template(name, "a"),
        },
    })
}

/// A pod template with the label `app: <name>`.
pub(crate) fn template(name: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": { "containers": [
            { "name": "c", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] },
        ] },
    })
}
