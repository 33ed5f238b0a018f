//! `control-plane explain pod`, against a running control plane.

mod common;

use std::process::{Command, Output};

use common::{ControlPlane, start};
use serde_json::{Value, json};

fn explain(plane: &ControlPlane, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["explain", "pod"])
        .args(arguments)
        .env("KUBECONFIG", plane.kubeconfig())
        .output()
        .expect("the binary runs")
}

fn node(name: &str, cpu: &str) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": name },
        "status": { "allocatable": { "cpu": cpu, "memory": "8Gi", "pods": "110" } },
    })
}

#[test]
fn a_pod_that_waits_and_one_that_is_placed_are_explained() {
    let Some(plane) = start("apiserver,scheduler") else { return };
    for (name, cpu) in [("small", "1"), ("large", "4")] {
        plane.kubectl_with_input(&["create", "-f", "-"], &node(name, cpu).to_string());
    }
    // What a controller takes away when a node is ready.
    plane.kubectl(&["taint", "nodes", "--all", "node.kubernetes.io/not-ready-"]);
    let pod = |name: &str, cpu: &str| {
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name },
            "spec": { "automountServiceAccountToken": false, "containers": [
                { "name": "c", "image": "demo", "resources": { "requests": { "cpu": cpu } } },
            ] },
        })
        .to_string()
    };
    plane.kubectl_with_input(
        &["create", "-f", "-"],
        r#"{"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}}"#,
    );
    plane.kubectl_with_input(&["create", "-f", "-"], &pod("placed", "2"));
    plane.kubectl_with_input(&["create", "-f", "-"], &pod("waits", "3"));
    plane.wait_for("one pod is placed", || {
        plane.kubectl(&["get", "pod", "placed", "-o", "jsonpath={.spec.nodeName}"]) == "large"
    });

    let output = explain(&plane, &["waits"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in [
        "default/waits, placed by default-scheduler",
        "Insufficient cpu (cpu: asks 3000m, 1000m of 1000m are free)",
        "Insufficient cpu (cpu: asks 3000m, 2000m of 4000m are free)",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }

    let output = explain(&plane, &["default/placed", "--output=json"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["best"], json!(["large"]), "{found}");
    assert_eq!(found["nodes"][1]["refused"]["plugin"], "NodeResourcesFit", "{found}");

    let output = explain(&plane, &["default/missing"]);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    let expected = "error: cannot explain the pod default/missing: pods \"missing\" not found";
    assert!(error.starts_with(expected), "{error}");
}
