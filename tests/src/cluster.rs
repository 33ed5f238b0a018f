//! A cluster that `cargo xtask up` started, and a namespace in it.

use std::{
    env,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{eventually, output_of};

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The xtask program, with which nodes are entered.
    pub xtask: String,
    /// The cluster's name.
    pub name: String,
    pub kubeconfig: String,
    /// `10.204.0.1:5000`
    pub registry: String,
}

impl Cluster {
    /// The cluster that was started for the tests; `None`, with a message, where there is none.
    pub fn shared() -> Option<Self> {
        let read = |name| env::var(name).ok();
        let cluster = || {
            Some(Self {
                xtask: read("HAWSER_XTASK")?,
                name: read("HAWSER_TEST_CLUSTER")?,
                kubeconfig: read("HAWSER_TEST_KUBECONFIG")?,
                registry: read("HAWSER_TEST_REGISTRY")?,
            })
        };
        let found = cluster();
        if found.is_none() {
            eprintln!(
                "skipped: no cluster was started for the tests; run `cargo xtask test e2e` or `conformance`"
            );
        }
        found
    }

    /// The demo image: a server over TCP and UDP on port 8080.
    pub fn demo_image(&self, version: u8) -> String {
        format!("{}/demo/web:{version}", self.registry)
    }

    pub fn busybox_image(&self) -> String {
        format!("{}/demo/busybox:1", self.registry)
    }

    /// Runs kubectl; its words are split at spaces.
    pub fn kubectl(&self, words: &str) -> anyhow::Result<String> {
        self.kubectl_with(words.split_whitespace(), None)
    }

    /// Runs kubectl with words that may hold spaces, and a standard input.
    pub fn kubectl_with<'a>(
        &self,
        words: impl IntoIterator<Item = &'a str>,
        input: Option<&str>,
    ) -> anyhow::Result<String> {
        run(self.bounded_kubectl().args(words), input)
    }

    /// Runs kubectl in a namespace, with an environment.
    pub fn kubectl_in(
        &self,
        namespace: &str,
        words: &[&str],
        input: Option<&str>,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<String> {
        let mut command = self.bounded_kubectl();
        command.args(["-n", namespace]).args(words).envs(environment.iter().copied());
        run(&mut command, input)
    }

    /// A stream that never ends is to fail one test and not the whole run.
    fn bounded_kubectl(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["120", "kubectl", "--kubeconfig", &self.kubeconfig]);
        command
    }

    /// Runs a program on a node, in its network namespace and below its cgroup.
    pub fn on_node(&self, node: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.xtask);
        command.args(["shell", "--name", &self.name, node]).args(words);
        run(&mut command, None)
    }

    /// Names of the nodes, in order.
    pub fn nodes(&self) -> anyhow::Result<Vec<String>> {
        let text = self.kubectl("get nodes -o jsonpath={.items[*].metadata.name}")?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// A node's address on the nodes' network.
    pub fn node_address(&self, node: &str) -> anyhow::Result<String> {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        self.kubectl_with(["get", "node", node, "-o", path], None)
    }
}

/// A namespace of one test; deleted on drop.
pub struct Namespace {
    pub cluster: Cluster,
    pub name: String,
}

impl Namespace {
    /// `None` where no cluster was started.
    ///
    /// # Panics
    /// Where the namespace cannot be made.
    pub fn of_shared_cluster(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::shared()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{test}-{}-{number}", std::process::id());
        cluster.kubectl(&format!("create namespace {name}")).expect("a namespace can be made");
        eventually(Duration::from_secs(20), "the default service account", || {
            cluster.kubectl(&format!("get serviceaccount default -n {name}"))
        });
        Some(Self { cluster, name })
    }

    /// kubectl in this namespace.
    pub fn kubectl(&self, words: &str) -> anyhow::Result<String> {
        let all: Vec<&str> = ["-n", &self.name].into_iter().chain(words.split_whitespace()).collect();
        self.cluster.kubectl_with(all, None)
    }

    /// kubectl in this namespace, with words that may hold spaces.
    pub fn kubectl_words(&self, words: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl_with(["-n", &self.name].into_iter().chain(words.iter().copied()), None)
    }

    /// Applies a manifest in which `DEMO` and `BUSYBOX` stand for the images.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.cluster.kubectl_with(["-n", &self.name, "apply", "-f", "-"], Some(&self.fill(manifest)))
    }

    fn fill(&self, manifest: &str) -> String {
        let demo = self.cluster.demo_image(1);
        manifest.replace("DEMO", &demo).replace("BUSYBOX", &self.cluster.busybox_image())
    }

    pub fn json(&self, what: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("get {what} -o json"))?)?)
    }

    /// The value at a JSON pointer of an object, as text.
    pub fn field(&self, what: &str, pointer: &str) -> anyhow::Result<String> {
        let object = self.json(what)?;
        match object.pointer(pointer) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Ok(other.to_string()),
            None => bail!("{what} has no {pointer}: {}", object["status"]),
        }
    }

    /// `kubectl edit` with a sed script for an editor.
    pub fn edit(&self, what: &str, script: &str) -> anyhow::Result<String> {
        let mut command = Command::new("kubectl");
        command.args(["--kubeconfig", &self.cluster.kubeconfig, "-n", &self.name, "edit", what]);
        run(command.env("KUBE_EDITOR", format!("sed -i '{script}'")), None)
    }

    /// Runs a command in a pod.
    pub fn exec(&self, pod: &str, words: &[&str]) -> anyhow::Result<String> {
        self.kubectl_words(&[&["exec", pod, "--"], words].concat())
    }

    /// Waits until all pods of a deployment are ready.
    ///
    /// # Panics
    /// When they are not within a minute; the message shows the pods.
    pub fn wait_for_rollout(&self, deployment: &str) {
        let rollout = self.kubectl(&format!("rollout status deployment/{deployment} --timeout=60s"));
        if let Err(error) = rollout {
            let pods = self.kubectl("describe pods").unwrap_or_default();
            panic!("deployment {deployment}: {error:#}\n{pods}");
        }
    }

    /// Waits until a pod is ready.
    ///
    /// # Panics
    /// When it is not within a minute; the message shows it.
    pub fn wait_for_pod(&self, pod: &str) {
        let ready = self.kubectl(&format!("wait --for=condition=Ready pod/{pod} --timeout=60s"));
        if let Err(error) = ready {
            let shown = self.kubectl(&format!("describe pod {pod}")).unwrap_or_default();
            panic!("pod {pod}: {error:#}\n{shown}");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = self.cluster.kubectl(&format!("delete namespace {} --wait=false", self.name));
        if let Err(error) = deleted {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}

fn run(command: &mut Command, input: Option<&str>) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = output_of(command, input).with_context(|| shown.clone())?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{shown} ended with {}: {stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}
