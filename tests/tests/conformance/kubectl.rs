//! kubectl, where a server without nodes suffices.
//!
//! No pod runs: what is looked at is what kubectl writes and prints.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::ensure;
use hawser_tests::{
    eventually,
    kubectl::{Kubectl, Said},
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    support::{Bed, pod, test, unique},
};

texts! {
    "Kubectl, check version v1" => should_check_if_v1_is_in_available_api_versions,
    "Kubectl, cluster info" =>
        should_check_if_kubernetes_control_plane_services_is_included_in_cluster_info,
    "Kubectl, version" => should_check_is_all_data_is_printed,
    "Kubectl, describe pod or rc" =>
        should_check_if_kubectl_describe_prints_relevant_information_for_rc_and_pods,
    "Kubectl, diff Deployment" => should_check_if_kubectl_diff_finds_a_difference_for_deployments,
    "Kubectl, server-side dry-run Pod" => should_check_if_kubectl_can_dry_run_update_pods,
    "Kubectl, create service, replication controller" => should_create_services_for_rc,
    "Kubectl, label update" => should_update_the_label_on_a_resource,
    "Kubectl, patch to annotate" => should_add_annotations_for_pods_in_rc,
    "Kubectl, replace" => should_update_a_single_container_pod_s_image,
    "Kubectl, run pod" => should_create_a_pod_from_an_image_when_restart_is_never,
    "Kubectl, proxy port zero" => should_support_proxy_with_port_0,
    "Kubectl, proxy socket" => should_support_unix_socket_path,
}

const IMAGE: &str = "registry.test/web:1";
const OTHER_IMAGE: &str = "registry.test/web:2";

/// Kubectl, check version v1
#[test]
fn should_check_if_v1_is_in_available_api_versions() {
    test(async |bed| {
        let versions = bed.kubectl().ok("api-versions").lines();
        assert!(versions.iter().any(|version| version == "v1"), "{versions:?}");
    });
}

/// Kubectl, cluster info
#[test]
fn should_check_if_kubernetes_control_plane_services_is_included_in_cluster_info() {
    test(async |bed| {
        bed.kubectl().ok("cluster-info").says(&["Kubernetes control plane", "is running at"]);
    });
}

/// Kubectl, version
#[test]
fn should_check_is_all_data_is_printed() {
    test(async |bed| {
        bed.kubectl().ok("version").says(&["Client Version: v", "Server Version: v"]);
        let said = bed.kubectl().ok("version -o json").stdout;
        let versions: Value = serde_json::from_str(&said).expect("kubectl prints JSON");
        for of in ["clientVersion", "serverVersion"] {
            for part in ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "platform"]
            {
                let found = versions[of][part].as_str().unwrap_or_default();
                assert!(!found.is_empty(), "{of} lacks {part}: {versions}");
            }
        }
    });
}

/// Kubectl, diff Deployment
#[test]
fn should_check_if_kubectl_diff_finds_a_difference_for_deployments() {
    let deployment = |image: &str| {
        let labels = json!({ "app": "diff" });
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "diff" },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [{ "name": "c", "image": image }] },
                },
            },
        });
        deployment.to_string()
    };
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok_with("create -f -", &deployment(IMAGE));
        kubectl
            .fails_with("diff -f -", &deployment(OTHER_IMAGE))
            .says(&[&format!("-      - image: {IMAGE}"), &format!("+      - image: {OTHER_IMAGE}")]);
    });
}

fn image_of(kubectl: &Kubectl<'_>, pod: &str) -> String {
    kubectl.path(&format!("pod {pod}"), "{.spec.containers[0].image}")
}

/// Kubectl, server-side dry-run Pod
#[test]
fn should_check_if_kubectl_can_dry_run_update_pods() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok(&format!("run dry --image={IMAGE} --labels=run=dry"));
        let patch = json!({ "spec": { "containers": [{ "name": "dry", "image": OTHER_IMAGE }] } });
        let line = format!(
            "patch pod dry -p '{patch}' --dry-run=server -o 'jsonpath={{.spec.containers[0].image}}'"
        );
        assert_eq!(kubectl.ok(&line).stdout, OTHER_IMAGE);
        assert_eq!(image_of(&kubectl, "dry"), IMAGE);
    });
}

/// A ReplicationController and two pods of it, which listen on port 6379.
fn controller(kubectl: &Kubectl<'_>) -> Vec<String> {
    let labels = json!({ "app": "store", "role": "primary" });
    let mut template = pod("", labels.clone());
    template["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 6379 }]);
    let controller = json!({
        "apiVersion": "v1",
        "kind": "ReplicationController",
        "metadata": { "name": "store", "labels": labels },
        "spec": {
            "replicas": 2,
            "selector": labels,
            "template": { "metadata": { "labels": labels }, "spec": template["spec"] },
        },
    });
    kubectl.ok_with("create -f -", &controller.to_string());
    eventually(Duration::from_secs(20), "the controller has its pods", || {
        let names = kubectl.path("pods -l app=store,role=primary", "{.items[*].metadata.name}");
        let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        ensure!(names.len() == 2, "{names:?}");
        Ok(names)
    })
}

/// Each of these begins a line, where runs of spaces count as one.
#[track_caller]
fn prints(said: &Said, lines: &[&str]) {
    let found = said.lines();
    for line in lines {
        assert!(found.iter().any(|found| found.starts_with(line)), "no line {line:?} in {found:#?}");
    }
}

/// Kubectl, describe pod or rc
///
/// What a node and a controller would report is written by hand.
#[test]
fn should_check_if_kubectl_describe_prints_relevant_information_for_rc_and_pods() {
    test(async |bed| {
        let (kubectl, namespace) = (bed.kubectl(), format!("Namespace: {}", bed.namespace));
        let running = json!({ "status": {
            "phase": "Running",
            "podIP": "10.0.0.9",
            "podIPs": [{ "ip": "10.0.0.9" }],
            "containerStatuses": [{
                "name": "c", "image": "registry.test/pause:1", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": { "startedAt": "2024-01-01T00:00:00Z" } },
            }],
        } });
        for pod in controller(&kubectl) {
            kubectl.ok(&format!("patch pod {pod} --subresource=status -p '{running}'"));
            prints(
                &kubectl.ok(&format!("describe pod {pod}")),
                &[
                    &format!("Name: {pod}"),
                    &namespace,
                    "Labels: app=store",
                    "role=primary",
                    "Status: Running",
                    "IP: 10.0.0.9",
                    "Controlled By: ReplicationController/store",
                    "Image: registry.test/pause:1",
                    "State: Running",
                    "QoS Class: BestEffort",
                ],
            );
        }
        kubectl.ok("patch rc store --subresource=status -p '{\"status\":{\"replicas\":2}}'");
        prints(
            &kubectl.ok("describe rc store"),
            &[
                "Name: store",
                &namespace,
                "Selector: app=store,role=primary",
                "Labels: app=store",
                "Replicas: 2 current / 2 desired",
                "Pods Status: 2 Running / 0 Waiting / 0 Succeeded / 0 Failed",
                "Image: registry.test/pause:1",
            ],
        );
        kubectl.ok("expose rc store --name=store --port=6379");
        prints(
            &kubectl.ok("describe service store"),
            &[
                "Name: store",
                &namespace,
                "Labels: app=store",
                "Selector: app=store,role=primary",
                "Type: ClusterIP",
                "IP: 10.",
                "Port: <unset> 6379/TCP",
                "Endpoints:",
                "Session Affinity: None",
            ],
        );
        prints(
            &kubectl.ok(&format!("describe namespace {}", bed.namespace)),
            &[&format!("Name: {}", bed.namespace), "Labels:", "Annotations:", "Status: Active"],
        );
        describes_a_node(&kubectl);
    });
}

/// A node that takes no pods.
fn describes_a_node(kubectl: &Kubectl<'_>) {
    let name = unique("described");
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "unschedulable": true },
    });
    kubectl.ok_with("create -f -", &node.to_string());
    let status = json!({ "status": {
        "addresses": [{ "type": "Hostname", "address": name }],
        "capacity": { "cpu": "4" },
        "conditions": [{ "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "by a test" }],
        "nodeInfo": { "kubeletVersion": "v1.36.2" },
    } });
    kubectl.ok(&format!("patch node {name} --subresource=status -p '{status}'"));
    prints(
        &kubectl.ok(&format!("describe node {name}")),
        &[
            &format!("Name: {name}"),
            "Labels:",
            "Annotations:",
            "CreationTimestamp:",
            "Conditions:",
            "Type Status LastHeartbeatTime LastTransitionTime Reason Message",
            "Ready False",
            "Addresses:",
            "Capacity:",
            "System Info:",
            "Kubelet Version: v1.36.2",
        ],
    );
    kubectl.ok(&format!("delete node {name}"));
}

/// Kubectl, create service, replication controller
#[test]
fn should_create_services_for_rc() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        controller(&kubectl);
        let is_exposed = |name: &str, port: u16| {
            let service = kubectl.json(&format!("service {name}"));
            let ports = &service["spec"]["ports"];
            assert_eq!(
                (&ports[0]["port"], &ports[0]["targetPort"]),
                (&json!(port), &json!(6379)),
                "{service}"
            );
            assert_eq!(service["spec"]["selector"], json!({ "app": "store", "role": "primary" }));
        };
        kubectl.ok("expose rc store --name=first --port=1234 --target-port=6379");
        is_exposed("first", 1234);
        kubectl.ok("expose service first --name=second --port=2345 --target-port=6379");
        is_exposed("second", 2345);
    });
}

/// Kubectl, label update
#[test]
fn should_update_the_label_on_a_resource() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok(&format!("run labelled --image={IMAGE}"));
        kubectl.ok("label pods labelled testing-label=testing-label-value");
        kubectl.ok("get pod labelled -L testing-label").says(&["testing-label-value"]);
        assert_eq!(
            kubectl.ok("get pods -l testing-label=testing-label-value -o name").lines(),
            ["pod/labelled"]
        );
        kubectl.ok("label pods labelled testing-label-");
        kubectl.ok("get pod labelled -L testing-label").lacks("testing-label-value");
        assert_eq!(kubectl.ok("get pods -l testing-label -o name").stdout, "");
    });
}

/// Kubectl, patch to annotate
#[test]
fn should_add_annotations_for_pods_in_rc() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        for pod in controller(&kubectl) {
            kubectl.ok(&format!(r#"patch pod {pod} -p '{{"metadata":{{"annotations":{{"x":"y"}}}}}}'"#));
        }
        let annotations =
            kubectl.path("pods -l app=store,role=primary", "{.items[*].metadata.annotations.x}");
        assert_eq!(annotations, "y y");
    });
}

/// Kubectl, replace
#[test]
fn should_update_a_single_container_pod_s_image() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok(&format!("run replaced --image={IMAGE} --labels=run=replaced"));
        let mut changed = kubectl.json("pod replaced");
        // The scheduler writes the pod's status meanwhile.
        changed["metadata"]["resourceVersion"] = Value::Null;
        changed["spec"]["containers"][0]["image"] = json!(OTHER_IMAGE);
        kubectl.ok_with("replace -f -", &changed.to_string());
        assert_eq!(image_of(&kubectl, "replaced"), OTHER_IMAGE);

        changed["spec"]["containers"][0]["image"] = json!(IMAGE);
        kubectl.ok_with("replace --force --grace-period=0 -f -", &changed.to_string());
        assert_eq!(image_of(&kubectl, "replaced"), IMAGE);
        assert_ne!(kubectl.json("pod replaced")["metadata"]["uid"], changed["metadata"]["uid"]);
    });
}

/// Kubectl, run pod
#[test]
fn should_create_a_pod_from_an_image_when_restart_is_never() {
    test(async |bed| {
        let kubectl = bed.kubectl();
        kubectl.ok(&format!("run once --restart=Never --image={IMAGE}"));
        let made = kubectl.json("pod once");
        let containers = made["spec"]["containers"].as_array().expect("containers");
        assert_eq!((containers.len(), &containers[0]["image"]), (1, &json!(IMAGE)));
        assert_eq!(made["spec"]["restartPolicy"], "Never");
    });
}

/// A running `kubectl proxy`.
struct Proxy {
    process: Child,
    /// Where it says that it serves: an address and port, or a socket's path.
    place: String,
}

impl Proxy {
    fn start(bed: &Bed, arguments: &[&str]) -> Self {
        let mut command = bed.program("kubectl");
        let mut process = command
            .arg("proxy")
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl is installed");
        let mut line = String::new();
        let output = process.stdout.take().expect("the standard output is a pipe");
        BufReader::new(output).read_line(&mut line).expect("kubectl says where it serves");
        let place = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        Self { process, place }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A polite end, which `timeout` hands on to kubectl. It fails only where the process is gone already.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }
}

/// Asks a proxy for the versions of the core group.
fn versions(bed: &Bed, arguments: &[&str]) -> Value {
    let output = bed
        .program("curl")
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*"])
        .args(arguments)
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).expect("the answer is JSON")["versions"].clone()
}

/// Kubectl, proxy port zero
#[test]
fn should_support_proxy_with_port_0() {
    test(async |bed| {
        let proxy = Proxy::start(bed, &["--port=0", "--disable-filter"]);
        assert_eq!(versions(bed, &[&format!("http://{}/api/", proxy.place)]), json!(["v1"]));
    });
}

/// Kubectl, proxy socket
#[test]
fn should_support_unix_socket_path() {
    test(async |bed| {
        let socket = bed.scratch().join(unique("proxy")).display().to_string();
        let _proxy = Proxy::start(bed, &[&format!("--unix-socket={socket}")]);
        assert_eq!(versions(bed, &["--unix-socket", &socket, "http://localhost/api/"]), json!(["v1"]));
    });
}
