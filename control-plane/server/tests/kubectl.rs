//! A real kubectl against the binary: the verbs of a user's day.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A control plane over a directory of its own; both go with the value.
struct ControlPlane {
    directory: PathBuf,
    process: Child,
}

/// `None`, with a word on why, where this machine has no kubectl.
fn start(roles: &str) -> Option<ControlPlane> {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        eprintln!("skipped: kubectl is not installed");
        return None;
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("hawser-kubectl-{}-{number}", std::process::id()));
    let process = spawn(&directory, roles, 0);
    let plane = ControlPlane { directory, process };
    plane.wait_ready();
    Some(plane)
}

fn spawn(directory: &Path, roles: &str, port: u16) -> Child {
    fs::create_dir_all(directory).expect("a directory");
    let log = fs::File::options().create(true).append(true).open(directory.join("log")).expect("a log");
    Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["run", "--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"])
        .arg(format!("--secure-port={port}"))
        .arg(format!("--roles={roles}"))
        .arg(format!("--data-dir={}", directory.display()))
        .stderr(log)
        .spawn()
        .expect("the binary runs")
}

impl ControlPlane {
    fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    fn wait_ready(&self) {
        self.wait_for("the control plane is ready", || {
            self.kubeconfig().exists() && self.try_kubectl(&["get", "--raw", "/readyz"]).status.success()
        });
    }

    fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < DEADLINE, "{what}: not in time; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.directory);
        command
    }

    fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("kubectl runs")
    }

    /// What kubectl prints; it must succeed.
    #[track_caller]
    fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> String {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The error that kubectl prints; it must fail.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Kills the control plane without a word and starts it again on the same port.
    fn crash_and_restart(&mut self, roles: &str) {
        let config = fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let server = config.lines().find_map(|line| line.trim().strip_prefix("server: ")).expect("a server");
        let port = server.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        self.process.kill().expect("killed");
        self.process.wait().expect("it ended");
        self.process = spawn(&self.directory, roles, port);
        self.wait_ready();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const MANIFEST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

#[test]
fn a_deployment_lives_its_life() {
    let Some(plane) = start("apiserver,scheduler,controllers") else { return };
    plane.kubectl(&["create", "deployment", "web", "--image=demo", "--replicas=3"]);
    plane.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    plane.wait_for("three pods", || plane.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]).lines().count() == 3);
    plane.kubectl(&["scale", "deployment", "web", "--replicas=5"]);
    plane.wait_for("five pods", || plane.kubectl(&["get", "pods", "-o", "name"]).lines().count() == 5);
    plane.kubectl(&["label", "deployment", "web", "tier=front"]);
    plane.kubectl(&["annotate", "deployment", "web", "note=hello"]);
    plane.kubectl(&["set", "image", "deployment/web", "demo=demo:2"]);
    plane.kubectl(&["patch", "deployment", "web", "-p", r#"{"spec":{"minReadySeconds":1}}"#]);
    plane.kubectl(&["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"minReadySeconds":2}}"#]);
    let operations = r#"[{"op":"replace","path":"/spec/minReadySeconds","value":3}]"#;
    plane.kubectl(&["patch", "deployment", "web", "--type=json", "-p", operations]);
    let wait = ["wait", "--for=jsonpath={.spec.minReadySeconds}=3", "deployment/web", "--timeout=10s"];
    plane.kubectl(&wait);
    plane.wait_for("two revisions", || {
        let history = plane.kubectl(&["rollout", "history", "deployment/web"]);
        history.lines().filter(|line| line.starts_with(['1', '2'])).count() == 2
    });
    plane.kubectl(&["rollout", "undo", "deployment/web"]);
    let shown = plane.kubectl(&["get", "deployment", "web", "-o", "wide", "--show-labels"]);
    assert!(shown.contains("tier=front") && shown.contains("READY"), "{shown}");
    assert!(plane.kubectl(&["describe", "deployment", "web"]).contains("ScalingReplicaSet"));
    plane.wait_for("pods that fit nowhere say so", || {
        plane.kubectl(&["describe", "pods"]).contains("no nodes available to schedule pods")
            || plane.kubectl(&["describe", "pods"]).contains("0/0 nodes are available")
    });
    plane.kubectl(&["delete", "deployment", "web"]);
    plane.wait_for("no pods", || plane.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}

#[test]
fn manifests_are_applied_edited_and_deleted() {
    let Some(plane) = start("apiserver") else { return };
    let made = plane.kubectl_with_input(&["apply", "-f", "-"], MANIFEST);
    assert_eq!(made, "configmap/settings created\nservice/web created\n");
    let again = plane.kubectl_with_input(&["apply", "-f", "-"], MANIFEST);
    assert_eq!(again, "configmap/settings unchanged\nservice/web unchanged\n");
    let changed = MANIFEST.replace("red", "blue");
    let changed = plane.kubectl_with_input(&["apply", "-f", "-"], &changed);
    assert_eq!(changed, "configmap/settings configured\nservice/web unchanged\n");
    let dry = plane.kubectl_with_input(&["apply", "--dry-run=server", "-f", "-"], MANIFEST);
    assert_eq!(dry, "configmap/settings configured (server dry run)\nservice/web unchanged (server dry run)\n");
    let edited = plane.command().args(["edit", "configmap", "settings"]).env("EDITOR", "sed -i s/blue/green/").output();
    assert!(edited.expect("kubectl runs").status.success());
    assert_eq!(plane.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}"]), "green");
    let unknown = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, date: {}}";
    let error = {
        let mut child =
            plane.command().args(["create", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        child.stdin.take().expect("piped").write_all(unknown.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(error.contains("unknown field \"date\""), "{error}");
    plane.kubectl_with_input(&["delete", "-f", "-"], MANIFEST);
    let error = plane.refused(&["get", "configmap", "settings"]);
    assert_eq!(error, "Error from server (NotFound): configmaps \"settings\" not found\n");
}

#[test]
fn the_server_describes_itself() {
    let Some(plane) = start("apiserver") else { return };
    let resources = plane.kubectl(&["api-resources", "--no-headers"]);
    for name in ["pods", "deployments", "endpointslices", "roles"] {
        assert!(resources.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} in {resources}");
    }
    assert!(plane.kubectl(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));
    assert!(plane.kubectl(&["version"]).contains("Server Version: v1.36"));
    assert!(plane.kubectl(&["auth", "whoami"]).contains("kubernetes-admin"));
    assert_eq!(plane.kubectl(&["auth", "can-i", "delete", "nodes"]), "yes\n");
    assert_eq!(plane.kubectl(&["get", "--raw", "/livez"]), "ok");
    let namespaces = plane.kubectl(&["get", "namespaces", "-o", "name"]);
    assert_eq!(
        namespaces,
        "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system\n"
    );
    let classes = plane.kubectl(&["get", "priorityclasses", "-o", "name"]);
    assert!(classes.contains("system-node-critical") && classes.contains("system-cluster-critical"));
    assert!(plane.kubectl(&["get", "service", "kubernetes"]).contains("10.96.0.1"));
}

#[test]
fn what_was_acknowledged_survives_a_crash_and_a_watch_sees_it() {
    let Some(mut plane) = start("apiserver") else { return };
    let from = plane.kubectl(&["get", "configmaps", "-o", "jsonpath={.metadata.resourceVersion}"]);
    for name in ["a", "b", "c"] {
        plane.kubectl(&["create", "configmap", name]);
    }
    plane.kubectl(&["delete", "configmap", "b"]);
    plane.crash_and_restart("apiserver");
    let names = plane.kubectl(&["get", "configmaps", "-o", "name"]);
    assert_eq!(names, "configmap/a\nconfigmap/c\n");
    let path =
        format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={from}&timeoutSeconds=1");
    let events = plane.kubectl(&["get", "--raw", &path]);
    let types: Vec<&str> = events.lines().filter_map(|line| line.split('"').nth(3)).collect();
    assert_eq!(types, ["ADDED", "ADDED", "ADDED", "DELETED"], "{events}");
}

#[test]
fn flags_that_cannot_work_are_refused_with_a_reason() {
    let Some(plane) = start("apiserver") else { return };
    let config = fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let server = config.lines().find_map(|line| line.trim().strip_prefix("server: https://")).expect("a server");
    let port = server.rsplit(':').next().expect("a port");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_control-plane")).arg("run").args(arguments).output().expect("runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let elsewhere = format!("--data-dir={}", plane.directory.join("other").display());
    let taken = format!("--secure-port={port}");
    let local = ["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"];
    let error = run(&[local[0], local[1], &elsewhere, &taken]);
    assert!(error.contains(&format!("port {port} is taken")), "{error}");
    let same = format!("--data-dir={}", plane.directory.display());
    let error = run(&[local[0], local[1], &same, "--secure-port=0"]);
    assert!(error.contains("in use by another process"), "{error}");
    let error = run(&[&elsewhere, "--service-cluster-ip-range=10.96.0.0"]);
    assert!(error.contains("service-cluster-ip-range"), "{error}");
    let error = run(&[&elsewhere, "--store=etcd"]);
    assert!(error.contains("--store=etcd needs --etcd-servers"), "{error}");
}
