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
        self.signal(part, "-KILL");
    }

    fn signal(&self, part: &str, signal: &str) {
        let status = Command::new("kill").args([signal, &self.pid(part).to_string()]).status();
        assert!(status.expect("kill runs").success(), "{part} was running");
    }

    /// Whether the node is ready, as the API has it: `True`, `False`, `Unknown`.
    fn wait_for_node(&self, node: &str, expected: &str) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        eventually(SOON, &format!("node {node} is {expected}"), || {
            let status = self.0.kubectl_with(["get", "node", node, "-o", path], None)?;
            ensure!(status == expected, "{status}");
            Ok(())
        });
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

/// The machine is as it was before the cluster: nothing more, nothing less.
#[track_caller]
fn check_machine(before: &BTreeSet<String>) {
    let after = machine();
    let left: Vec<&String> = after.difference(before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    let lost: Vec<&String> = before.difference(&after).collect();
    assert!(lost.is_empty(), "removed, but not made by it: {lost:#?}");
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
    check_machine(&before);
}

#[test]
fn down_after_a_crash_leaves_the_machine_as_it_was() {
    let Some(own) = Own::prepare() else { return };
    let before = machine();
    own.up(&[]).expect("it starts");
    own.start_web();
    own.ask_web().expect("the service answers");
    for part in ["control-plane", "node1.agent", "node1.containerd"] {
        own.kill(part);
    }
    own.down().expect("it ends");
    check_machine(&before);
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
            let status = own.0.kubectl("get pod probe -o jsonpath={.status}")?;
            ensure!(status.contains(r#""phase":"Succeeded""#), "after {part} was killed: {status}");
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
fn pods_of_a_lost_node_are_made_anew_on_another() {
    let Some(own) = Own::prepare() else { return };
    let grace = "--control-plane-arg=--node-monitor-grace-period=4";
    let stay = "--control-plane-arg=--default-unreachable-toleration-seconds=2";
    own.up(&["--nodes", "2", grace, stay]).expect("it starts");
    let image = own.0.demo_image(1);
    own.0.kubectl(&format!("create deployment web --image={image} --replicas=2")).expect("created");
    own.0.kubectl("rollout status deployment/web --timeout=60s").expect("they are ready");
    own.kill("node1.agent");
    own.wait_for_node("node1", "Unknown");
    let taints = own.0.kubectl("get node node1 -o jsonpath={.spec.taints[*].key}").expect("its taints");
    assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    // Pods of a node that does not answer stay as terminating; two others take their place.
    eventually(SOON, "two pods are ready on the other node", || {
        let pods = own.0.kubectl(
            "get pods -l app=web --field-selector=spec.nodeName=node2 --no-headers -o custom-columns=S:.status.phase",
        )?;
        ensure!(pods.lines().filter(|phase| *phase == "Running").count() == 2, "{pods}");
        let available = own.0.kubectl("get deployment web -o jsonpath={.status.availableReplicas}")?;
        ensure!(available == "2", "{available} available");
        Ok(())
    });
    own.up(&[]).expect("the agent comes back");
    own.wait_for_node("node1", "True");
    eventually(SOON, "what was evicted is gone, and the node is open again", || {
        let taints = own.0.kubectl("get node node1 -o jsonpath={.spec.taints[*].key}")?;
        ensure!(taints.is_empty(), "{taints}");
        let pods = own.0.kubectl("get pods -l app=web -o jsonpath={.items[*].spec.nodeName}")?;
        ensure!(pods == "node2 node2", "{pods}");
        Ok(())
    });
}

#[test]
fn silent_node_is_well_again_when_it_speaks_and_has_missed_nothing() {
    let Some(own) = Own::prepare() else { return };
    own.up(&["--control-plane-arg=--node-monitor-grace-period=4"]).expect("it starts");
    own.0.kubectl("create configmap colours --from-literal=colour=blue").expect("created");
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: { name: reader }
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{ name: colours, configMap: { name: colours } }]
  containers:
  - { name: main, image: BUSYBOX, command: [sleep, "600"], volumeMounts: [{ name: colours, mountPath: /colours }] }
"#;
    let pod = pod.replace("BUSYBOX", &own.0.busybox_image());
    own.0.kubectl_with(["apply", "-f", "-"], Some(&pod)).expect("applied");
    own.0.kubectl("wait --for=condition=Ready pod/reader --timeout=60s").expect("it is ready");
    own.signal("node1.agent", "-STOP");
    own.wait_for_node("node1", "Unknown");
    own.0
        .kubectl_with(["patch", "configmap", "colours", "-p", r#"{"data":{"colour":"green"}}"#], None)
        .expect("patched");
    own.signal("node1.agent", "-CONT");
    own.wait_for_node("node1", "True");
    eventually(SOON, "the change reaches the pod", || {
        let colour = own.0.kubectl("exec reader -- cat /colours/colour")?;
        ensure!(colour == "green", "{colour}");
        Ok(())
    });
    let restarts = "get pod reader -o jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(own.0.kubectl(restarts).expect("the pod"), "0");
}

#[test]
fn plain_routes_carry_pods_between_nodes() {
    let Some(own) = Own::prepare() else { return };
    own.up(&["--nodes", "2", "--network-mode", "routes"]).expect("it starts");
    let image = own.0.demo_image(1);
    for (pod, node) in [("one", "node1"), ("two", "node2")] {
        let place = format!(r#"{{"spec":{{"nodeName":"{node}"}}}}"#);
        let words = ["run", pod, "--image", &image, "--port=8080", "--expose", "--overrides", &place];
        own.0.kubectl_with(words, None).expect("a pod and its service");
    }
    own.0.kubectl("wait --for=condition=Ready pod/one pod/two --timeout=60s").expect("they are ready");
    for (from, to) in [("one", "two"), ("two", "one")] {
        let pod = own.0.kubectl(&format!("get pod {to} -o jsonpath={{.status.podIP}}")).expect("an address");
        let service =
            own.0.kubectl(&format!("get service {to} -o jsonpath={{.spec.clusterIP}}")).expect("an address");
        for address in [pod, service] {
            let answer =
                own.0.kubectl(&format!("exec {from} -- /demo get {address}:8080 3")).expect("answered");
            assert!(answer.starts_with(&format!("3 {to} ")), "{from} to {to} at {address}: {answer}");
        }
    }
    let links = own.0.on_node("node1", &["ip", "-br", "link"]).expect("its links");
    assert!(!links.contains("vxlan"), "a tunnel: {links}");
}

#[test]
fn other_node_answers_at_a_load_balancer_address_itself() {
    let Some(own) = Own::prepare() else { return };
    own.up(&["--nodes", "2", "--node-agent-arg=--load-balancer-mode=dsr"]).expect("it starts");
    let image = own.0.demo_image(1);
    for (pod, node) in [("one", "node1"), ("two", "node2")] {
        let place = format!(r#"{{"spec":{{"nodeName":"{node}"}}}}"#);
        let words = ["run", pod, "--image", &image, "--labels=app=web", "--overrides", &place];
        own.0.kubectl_with(words, None).expect("a pod");
    }
    own.0.kubectl("wait --for=condition=Ready pod/one pod/two --timeout=60s").expect("they are ready");
    own.0.kubectl("create service loadbalancer web --tcp=80:8080").expect("a service for both");
    let demo = env::var("HAWSER_TEST_DEMO").expect("the path of the demo program");
    eventually(SOON, "both pods answer this machine", || {
        let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let address = own.0.kubectl_with(["get", "service", "web", "-o", path], None)?;
        let output = Command::new(&demo).args(["get", &format!("{address}:80"), "40"]).output()?;
        let answers = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{answers}");
        ensure!(answers.contains("one") && answers.contains("two"), "{answers}");
        Ok(())
    });
    // One node has the address. What it sends on comes back from the other.
    eventually(SOON, "packets were sent on as they are", || {
        let sent_on = ["node1", "node2"].map(|node| {
            let metrics = own.0.on_node(node, &["curl", "-s", "http://127.0.0.1:10249/metrics"])?;
            let line = metrics.lines().find(|line| line.contains(r#"event="packet_dsr""#));
            Ok(line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0))
        });
        let sent_on: anyhow::Result<Vec<f64>> = sent_on.into_iter().collect();
        let sent_on = sent_on?;
        ensure!(sent_on.iter().any(|packets| *packets > 0.0), "{sent_on:?}");
        Ok(())
    });
}

#[test]
fn taken_port_is_named() {
    let Some(own) = Own::prepare() else { return };
    let taken = std::net::TcpListener::bind("0.0.0.0:8443").expect("the port is free before");
    let error = format!("{:#}", own.up(&[]).expect_err("the port is taken"));
    assert!(error.contains("port 8443") && error.contains("--port"), "{error}");
    let registry = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = registry.local_addr().expect("bound").port();
    drop(taken);
    let error = own.up(&["--registry-port", &port.to_string()]).expect_err("the registry's port is taken");
    let error = format!("{error:#}");
    assert!(error.contains(&format!("port {port}")) && error.contains("--registry-port"), "{error}");
}
