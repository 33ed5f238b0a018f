//! A node of a test's own: the kubelet's real API on loopback, over a runtime in memory, with one pod `web`.
//!
//! What the pod serves is [`app`], on a port of loopback; to the API the pod is at another address, so that whoever
//! connected to what the API says would reach nothing.

mod app;

use std::{fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use hawser_kubelet::server::{
    AllowGroups, Backend, LogAttempt, LogFile, PodSource, Refusal, Server, TlsLimits, tls_config,
};
use hawser_runtime::{
    ContainerConfig, ExecOutput, PodSandboxConfig, container_id,
    testing::{FakeRuntime, container, pod_sandbox},
};
use hawser_tests::{api_server::ApiServer, kubectl::Kubectl};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub(crate) const NODE: &str = "node-1";
/// Of a range for documentation: nobody has it.
pub(crate) const POD_IP: &str = "198.51.100.7";
const LOOPBACK: &str = "127.0.0.1";

/// A running node; ends with the value.
pub(crate) struct Node {
    /// Where the pod's program listens.
    pub(crate) port: u16,
    pub(crate) kubelet_port: u16,
    stop: CancellationToken,
    _tasks: Runtime,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts a node and makes its objects, with the pod in kubectl's namespace.
#[track_caller]
pub(crate) fn start(server: &ApiServer, kubectl: &Kubectl<'_>, namespace: &str) -> Node {
    let credentials = server.node_credentials(NODE);
    let read = |name| fs::read(credentials.join(name)).expect("a credential");
    let tls = tls_config(&read("kubelet.crt"), &read("kubelet.key"), &read("ca.crt"), &TlsLimits::default())
        .expect("TLS");
    let tasks = Runtime::new().expect("a runtime");
    let stop = CancellationToken::new();
    let (port, kubelet_port) = tasks.block_on(async {
        let backend = Backend {
            node_name: NODE.to_owned(),
            runtime: Arc::new(fake_runtime(namespace).await),
            pods: Arc::new(OnePod { namespace: namespace.to_owned(), log: server.scratch().join("pod.log") }),
            authorizer: Arc::new(AllowGroups(vec!["system:masters".to_owned()])),
        };
        let address = (LOOPBACK.parse::<IpAddr>().expect("an address"), 0).into();
        let kubelet = Server::bind(address, tls, backend).await.expect("bound");
        let kubelet_port = kubelet.local_addr().expect("bound").port();
        tokio::spawn(kubelet.run(stop.clone()));
        (app::serve().await, kubelet_port)
    });
    let node = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": NODE },
    });
    kubectl.ok_with("create -f -", &node.to_string());
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": LOOPBACK }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet_port } },
    } });
    kubectl.ok(&format!("patch node {NODE} --subresource=status --type=merge -p '{status}'"));
    run_pod(kubectl, "web", port, POD_IP);
    Node { port, kubelet_port, stop, _tasks: tasks }
}

/// A pod of the node that runs and is ready, as far as the API knows.
#[track_caller]
pub(crate) fn run_pod(kubectl: &Kubectl<'_>, name: &str, port: u16, address: &str) {
    let pod = json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeName": NODE,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "main", "image": "demo", "stdin": true, "ports": [{ "containerPort": port }] }],
        },
    });
    kubectl.ok_with("create -f -", &pod.to_string());
    let status = json!({ "status": {
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    kubectl.ok(&format!("patch pod {name} --subresource=status --type=merge -p '{status}'"));
}

/// One container that runs. `cat` is what it is; other commands say their words, and exit with the last one.
async fn fake_runtime(namespace: &str) -> FakeRuntime {
    let runtime = FakeRuntime::new();
    let sandbox = PodSandboxConfig { pod_namespace: namespace.into(), ..pod_sandbox("web") };
    let container = ContainerConfig { stdin: true, ..container("web", "main", "demo") };
    runtime.run(&sandbox, &container).await;
    runtime.on_exec(Arc::new(|_, command| {
        // Real processes take a while as well. kubectl 1.32 reads from a WebSocket before its streams exist, loses what
        // comes at once, and tells nobody when they do.
        std::thread::sleep(Duration::from_millis(80));
        Ok(ExecOutput {
            exit_code: command.last().and_then(|word| word.parse().ok()).unwrap_or(0),
            stdout: format!("{}\n", command.join(" ")).into_bytes(),
            stderr: b"said\n".to_vec(),
        })
    }));
    runtime
}

struct OnePod {
    namespace: String,
    log: PathBuf,
}

impl OnePod {
    fn find(&self, namespace: &str, pod: &str) -> Result<(), Refusal> {
        if (namespace, pod) == (&self.namespace, "web") {
            return Ok(());
        }
        Err(Refusal::not_found(format!("pod {pod:?} in namespace {namespace:?} is not on this node")))
    }
}

impl PodSource for OnePod {
    fn pods(&self) -> Value {
        json!({ "kind": "PodList", "apiVersion": "v1", "items": [] })
    }

    fn container_id(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal> {
        self.find(namespace, pod).map(|()| container_id("uid-web", container, 0))
    }

    fn log(&self, namespace: &str, pod: &str, container: &str, _: LogAttempt) -> Result<LogFile, Refusal> {
        let container_id = self.container_id(namespace, pod, container)?;
        Ok(LogFile { path: self.log.clone(), container_id, has_ended: true })
    }

    fn log_folder(&self) -> PathBuf {
        self.log.parent().expect("a folder").to_owned()
    }

    fn addresses(&self, namespace: &str, pod: &str) -> Result<Vec<IpAddr>, Refusal> {
        self.find(namespace, pod).map(|()| vec![LOOPBACK.parse().expect("an address")])
    }

    fn network(&self, namespace: &str, pod: &str) -> Result<Option<PathBuf>, Refusal> {
        self.find(namespace, pod).map(|()| None)
    }

    fn metrics(&self) -> String {
        "up 1\n".to_owned()
    }
}
