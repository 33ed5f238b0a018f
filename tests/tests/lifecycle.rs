//! Life of a whole cluster: `up` and `down` in every order, and after `kill -9` of anything.
//!
//! One test at a time: each compares the machine before and after.

use std::{collections::BTreeSet, env, fs, path::Path, process::Command, time::Duration};

use anyhow::ensure;
use hawser_tests::{cluster::Cluster, eventually};

const NAME: &str = "hwlife";
const LAN: &str = "10.205.0";
const SOON: Duration = Duration::from_secs(60);

/// A cluster of this test's own; ended on drop, also when the test fails.
struct Own(Cluster);

impl Own {
    /// `None`, with a message, where the test was not started by `cargo xtask test`.
    fn prepare() -> Option<Self> {
        let Ok(xtask) = env::var("HAWSER_XTASK") else {
            eprintln!("skipped: run `cargo xtask test e2e`");
            return None;
        };
        let own = Self(Cluster {
            xtask,
            name: NAME.into(),
            kubeconfig: format!("/var/lib/{NAME}/control-plane/admin.kubeconfig"),
            registry: format!("{LAN}.1:5000"),
        });
        own.down().expect("what an earlier run left is removed");
        Some(own)
    }

    fn xtask(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.0.xtask).args(words).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    fn up(&self, more: &[&str]) -> anyhow::Result<String> {
        let flags = [
            "up",
            "--no-build",
            "--name",
            NAME,
            "--lan",
            LAN,
            "--port",
            "8443",
            "--pod-cidr",
            "10.246.0.0/16",
            "--service-cidr",
            "10.98.0.0/16",
        ];
        self.xtask(&[&flags, more].concat())
    }

    fn down(&self) -> anyhow::Result<String> {
        self.xtask(&["down", "--name", NAME])
    }

    fn pid(&self, part: &str) -> i32 {
        let text = fs::read_to_string(format!("/run/{NAME}/{part}.pid")).expect("its process id is recorded");
        text.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a process id")
    }

    fn kill(&self, part: &str) {
        let status = Command::new("kill").args(["-9", &self.pid(part).to_string()]).status();
        assert!(status.expect("kill runs").success(), "{part} was running");
    }

    /// A pod that serves, and its identity: uid of the pod, id of its container, number of restarts.
    fn web_identity(&self) -> anyhow::Result<String> {
        let path = "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
        self.0.kubectl_with(["get", "pod", "web", "-o", path], None)
    }

    fn start_web(&self) {
        let image = self.0.demo_image(1);
        self.0
            .kubectl(&format!("run web --image={image} --port=8080 --expose"))
            .expect("a pod and its service");
        self.0.kubectl("wait --for=condition=Ready pod/web --timeout=60s").expect("it is ready");
    }

    /// Asks the service, from the node.
    fn ask_web(&self) -> anyhow::Result<String> {
        let address = self.0.kubectl("get service web -o jsonpath={.spec.clusterIP}")?;
        let demo = env::var("HAWSER_TEST_DEMO")?;
        self.0.on_node("node1", &[&demo, "get", &format!("{address}:8080"), "20"])
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            eprintln!("the cluster stays: {error:#}");
        }
    }
}

/// What a cluster could leave behind, one line each.
fn machine() -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut add = |kind: &str, text: String| seen.extend(text.lines().map(|line| format!("{kind} {line}")));
    let run = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    add(
        "link",
        run(&["ip", "-o", "-br", "link"])
            .lines()
            .map(|line| line.split(' ').next().unwrap_or_default().to_owned() + "\n")
            .collect(),
    );
    add("route", run(&["ip", "route", "show", "table", "all"]));
    add("netns", run(&["ip", "netns", "list"]));
    add("rules", run(&["nft", "list", "ruleset"]));
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    add(
        "mount",
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(|path| format!("{path}\n")).collect(),
    );
    for folder in ["/run", "/var/lib", "/run/containerd", "/run/containerd/s", "/sys/fs/bpf", "/tmp"] {
        add("file", names(Path::new(folder)));
    }
    for line in mounts.lines().filter(|line| line.starts_with("cgroup")) {
        let root = line.split(' ').nth(1).expect("a mount point");
        add(
            "cgroup",
            names(Path::new(root))
                .lines()
                .filter(|path| Path::new(path).is_dir())
                .map(|path| format!("{path}\n"))
                .collect(),
        );
    }
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if command.contains(NAME) {
            add("process", command.replace('\0', " "));
        }
    }
    // Other parts of the machine come and go beside the test.
    seen.retain(|line| {
        line.contains(NAME)
            || line.contains("hawser")
            || !line.starts_with("file /tmp") && !line.starts_with("process")
    });
    seen.retain(|line| !line.starts_with("process") || !line.contains("lifecycle"));
    seen
}

fn names(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else { return String::new() };
    entries.flatten().map(|entry| format!("{}\n", entry.path().display())).collect()
}

#[test]
fn up_and_down_leave_the_machine_as_it_was() {
    let Some(own) = Own::prepare() else { return };
    let before = machine();
    let printed = own.up(&[]).expect("it starts");
    assert!(printed.contains(&format!("export KUBECONFIG={}", own.0.kubeconfig)), "{printed}");
    own.start_web();
    own.ask_web().expect("the service answers");
    let pids = ["control-plane", "node1.agent", "node1.containerd"].map(|part| own.pid(part));
    own.up(&[]).expect("it is up already");
    assert_eq!(pids, ["control-plane", "node1.agent", "node1.containerd"].map(|part| own.pid(part)));
    own.down().expect("it ends");
    own.down().expect("it has ended already");
    let after = machine();
    let left: Vec<&String> = after.difference(&before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    let lost: Vec<&String> = before.difference(&after).collect();
    assert!(lost.is_empty(), "removed, but not made by it: {lost:#?}");
}

#[test]
fn pods_outlive_every_killed_process() {
    let Some(own) = Own::prepare() else { return };
    own.up(&[]).expect("it starts");
    own.start_web();
    let identity = own.web_identity().expect("the pod's identity");
    for part in ["node1.agent", "control-plane", "node1.containerd"] {
        own.kill(part);
        if part != "control-plane" {
            own.ask_web().unwrap_or_else(|error| panic!("while {part} is down: {error:#}"));
        }
        own.up(&[]).unwrap_or_else(|error| panic!("up after {part} was killed: {error:#}"));
        eventually(SOON, "the service answers", || own.ask_web());
        assert_eq!(own.web_identity().expect("the pod"), identity, "after {part} was killed");
        // The node works: another pod starts and ends.
        let image = own.0.busybox_image();
        own.0.kubectl(&format!("run probe --image={image} --restart=Never -- true")).expect("created");
        eventually(SOON, "a new pod runs to its end", || {
            let phase = own.0.kubectl("get pod probe -o jsonpath={.status.phase}")?;
            ensure!(phase == "Succeeded", "{phase}");
            Ok(())
        });
        own.0.kubectl("delete pod probe").expect("deleted");
    }
}

#[test]
fn etcd_serves_as_the_store() {
    let Some(own) = Own::prepare() else { return };
    own.up(&["--store", "etcd"]).expect("it starts");
    own.start_web();
    own.ask_web().expect("the service answers");
    own.kill("etcd");
    own.up(&[]).expect("it starts again");
    eventually(SOON, "writes work again", || own.0.kubectl("label pod web after=restart --overwrite"));
}

#[test]
fn taken_port_is_named() {
    let Some(own) = Own::prepare() else { return };
    let _taken = std::net::TcpListener::bind("0.0.0.0:8443").expect("the port is free before");
    let error = format!("{:#}", own.up(&[]).expect_err("the port is taken"));
    assert!(error.contains("port 8443") && error.contains("--port"), "{error}");
}
