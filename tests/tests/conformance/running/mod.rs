//! Texts about pods that run: tests on a cluster of three nodes, which `cargo xtask test conformance` starts.
//!
//! What a container has is seen from inside: it prints what it finds, or a command is run in it ([`Pod::run`]). Scripts
//! are for busybox's shell; servers are the program of the demo image. All tests share the cluster, many at once:
//! each has a namespace of its own and leaves nodes as they are, apart from labels and extended resources that are
//! its own. Those that take minutes are ignored, and run with `cargo xtask test --all`.

pub(crate) mod containers;
pub(crate) mod contents;
pub(crate) mod cron_jobs;
pub(crate) mod daemon_sets;
pub(crate) mod dns;
pub(crate) mod downward;
pub(crate) mod empty_dir;
pub(crate) mod environment;
pub(crate) mod hooks;
pub(crate) mod init_containers;
pub(crate) mod jobs;
pub(crate) mod kubectl;
pub(crate) mod network;
pub(crate) mod pods;
pub(crate) mod probes;
pub(crate) mod proxy;
pub(crate) mod resize;
pub(crate) mod runtime;
pub(crate) mod scheduling;
pub(crate) mod security;
pub(crate) mod service_accounts;
pub(crate) mod stateful_sets;
pub(crate) mod subpaths;

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use futures::StreamExt;
use hawser_tests::{api_server::ApiServer, cluster::Cluster};
use http::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client, ResourceExt, api::LogParams, client::Body};
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    steps::{as_json, create},
    support::{self, Bed, eventually, unique},
};

/// Runs a test in a namespace of the cluster that was started for the tests; skips, with a message, without one.
fn test(work: impl AsyncFnOnce(&Bed)) {
    test_within(Duration::from_secs(300), work);
}

/// As [`test`], with a time of its own after which it has failed.
fn test_within(limit: Duration, work: impl AsyncFnOnce(&Bed)) {
    if let Some(cluster) = Cluster::shared() {
        support::test_within(limit, Arc::new(ApiServer::at(cluster.kubeconfig.into())), work);
    }
}

fn image(name: &str) -> String {
    let cluster = Cluster::shared().expect("the test runs on a cluster");
    format!("{}/{name}", cluster.registry)
}

/// A shell and the usual commands.
fn busybox() -> String {
    image("demo/busybox:1")
}

/// The demo program, which serves on port 8080 over TCP and UDP, with a shell beside it.
fn web() -> String {
    image("demo/web:1")
}

/// A pod that runs a script once.
fn script(script: &str) -> Value {
    json!({
        "metadata": { "name": unique("pod") },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": busybox(), "command": ["sh", "-c", script] }],
        },
    })
}

/// A pod that serves on port 8080 until it is deleted.
fn server() -> Value {
    json!({
        "metadata": { "name": unique("server") },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": web(), "ports": [{ "containerPort": 8080 }] }],
        },
    })
}

/// A pod that does nothing until it is deleted.
fn sleeper() -> Value {
    script("sleep 3600")
}

/// A pod on the cluster.
struct Pod {
    name: String,
    api: Api<core::Pod>,
    client: Client,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    stdout: String,
    stderr: String,
    /// Zero, or 1 where it failed in whatever way.
    failed: bool,
}

impl Pod {
    async fn create(bed: &Bed, pod: Value) -> Self {
        let api = bed.api::<core::Pod>();
        let name = create(&api, pod).await.name_any();
        Self::at(bed, &name)
    }

    /// A pod that is there.
    fn at(bed: &Bed, name: &str) -> Self {
        Self { name: name.to_owned(), api: bed.api(), client: bed.client.clone() }
    }

    /// Creates a pod and waits until it is ready.
    async fn start(bed: &Bed, pod: Value) -> Self {
        let pod = Self::create(bed, pod).await;
        pod.ready().await;
        pod
    }

    /// Creates a pod, waits until it has succeeded, and returns what its first container said.
    async fn output(bed: &Bed, pod: Value) -> String {
        let container = pod["spec"]["containers"][0]["name"].as_str().expect("a container").to_owned();
        let pod = Self::create(bed, pod).await;
        pod.ended("Succeeded").await;
        pod.log(&container).await
    }

    async fn get(&self) -> anyhow::Result<Value> {
        Ok(as_json(&self.api.get(&self.name).await?))
    }

    /// Waits until the pod is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{}: {what}", self.name), async || {
            let pod = self.get().await?;
            ensure!(wanted(&pod), "{}", pod["status"]);
            Ok(pod)
        })
        .await
    }

    async fn ready(&self) -> Value {
        self.until("is ready", |pod| {
            let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
        .await
    }

    /// Waits until the pod has ended in this phase.
    async fn ended(&self, phase: &str) -> Value {
        let pod = self
            .until("ends", |pod| pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed");
        let pod = pod.await;
        if pod["status"]["phase"] != phase {
            let log = self.api.logs(&self.name, &LogParams::default()).await;
            panic!("{} is not {phase}: {}\n{log:?}", self.name, pod["status"]);
        }
        pod
    }

    async fn log(&self, container: &str) -> String {
        let params = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
        let log = self.api.logs(&self.name, &params).await;
        log.unwrap_or_else(|error| panic!("{} has no log of {container}: {error}", self.name))
    }

    /// Waits until a container has said this.
    async fn says(&self, container: &str, text: &str) {
        eventually(&format!("{} says {text:?}", self.name), async || {
            let params = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
            let log = self.api.logs(&self.name, &params).await?;
            ensure!(log.contains(text), "{log:?}");
            Ok(())
        })
        .await;
    }

    /// Runs a script in the first container, which must succeed, and returns what it said.
    async fn run(&self, script: &str) -> String {
        self.try_run(script).await.unwrap_or_else(|error| panic!("{}: {script}: {error:#}", self.name))
    }

    async fn try_run(&self, script: &str) -> anyhow::Result<String> {
        let ended = self.exec("", &["sh", "-c", script]).await?;
        ensure!(!ended.failed, "{ended:?}");
        Ok(ended.stdout)
    }

    /// Runs a script in a container again and again, until it says what is wanted.
    async fn sees(&self, container: &str, script: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(&format!("{}: {script}", self.name), async || {
            let ended = self.exec(container, &["sh", "-c", script]).await?;
            ensure!(!ended.failed && wanted(&ended.stdout), "{ended:?}");
            Ok(ended.stdout)
        })
        .await
    }

    /// Runs a command in a container, the first one where none is named.
    async fn exec(&self, container: &str, words: &[&str]) -> anyhow::Result<Ended> {
        let mut fields = vec![("stdout", "1"), ("stderr", "1")];
        fields.extend(words.iter().map(|word| ("command", *word)));
        if !container.is_empty() {
            fields.push(("container", container));
        }
        let path = self.path(&format!("exec?{}", form(&fields)));
        let mut stream = web_socket(&self.client, &path, "v4.channel.k8s.io").await?;
        let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
        while let Some(message) = stream.next().await {
            // Some servers close the connection without a closing handshake.
            let Ok(Message::Binary(message)) = message else { continue };
            match message.split_first() {
                Some((1, data)) => stdout.extend_from_slice(data),
                Some((2, data)) => stderr.extend_from_slice(data),
                Some((3, data)) => status = Some(serde_json::from_slice::<Value>(data)?),
                _ => {}
            }
        }
        let Some(status) = status else { bail!("the stream ended without a status") };
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        ensure!(status["status"] == "Success" || status["reason"] == "NonZeroExitCode", "{status} {stderr}");
        let failed = status["status"] != "Success";
        Ok(Ended { stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr, failed })
    }

    /// The path of a subresource.
    fn path(&self, subresource: &str) -> String {
        let namespace = self.api.namespace().unwrap_or_default();
        format!("/api/v1/namespaces/{namespace}/pods/{}/{subresource}", self.name)
    }

    async fn delete(&self) {
        self.api.delete(&self.name, &kube::api::DeleteParams::default()).await.expect("the pod is deleted");
    }

    async fn gone(&self) {
        crate::steps::gone(&self.api, &self.name).await;
    }

    /// A change of the pod, as a strategic merge patch.
    async fn patch(&self, change: Value) {
        let patch = kube::api::Patch::Strategic(change);
        self.api
            .patch(&self.name, &kube::api::PatchParams::default(), &patch)
            .await
            .expect("the pod is patched");
    }
}

/// A WebSocket of the API server's, with this subprotocol.
async fn web_socket(
    client: &Client,
    path: &str,
    protocol: &str,
) -> anyhow::Result<WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>> {
    let request = Request::get(path)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        // Any sixteen bytes: what it guards against are caches.
        .header("Sec-WebSocket-Key", "aGF3c2VyIHRlc3RzIQ==")
        .header("Sec-WebSocket-Protocol", protocol)
        .body(Body::empty())?;
    let response = client.send(request).await?;
    if response.status() != 101 {
        let code = response.status();
        let body = response.into_body().collect_bytes().await?;
        bail!("{path}: {code} {}", String::from_utf8_lossy(&body));
    }
    let upgraded = hyper::upgrade::on(response).await?;
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await)
}

/// Names and values as a query.
fn form(fields: &[(&str, &str)]) -> String {
    let encoded = |value: &str| -> String {
        value
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

/// The number of a container's restarts.
fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default()
}

/// The line is one of the text's.
#[track_caller]
fn has_line(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no {line:?} in {text}");
}
