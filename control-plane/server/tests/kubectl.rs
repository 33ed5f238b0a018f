//! A real kubectl against the binary: the verbs of a user's day.

mod common;

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use common::start;

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
    plane.wait_for("three pods", || {
        plane.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]).lines().count() == 3
    });
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
    assert_eq!(
        dry,
        "configmap/settings configured (server dry run)\nservice/web unchanged (server dry run)\n"
    );
    let edited = plane
        .command()
        .args(["edit", "configmap", "settings"])
        .env("EDITOR", "sed -i s/blue/green/")
        .output();
    assert!(edited.expect("kubectl runs").status.success());
    assert_eq!(plane.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}"]), "green");
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndate: {}\n";
    let error = {
        let mut child = plane
            .command()
            .args(["create", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(unknown.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(error.contains("unknown field \"date\""), "{error}");
    plane.kubectl_with_input(&["delete", "-f", "-"], MANIFEST);
    let error = plane.refused(&["get", "configmap", "settings"]);
    assert_eq!(error, "Error from server (NotFound): configmaps \"settings\" not found\n");
}

/// Manager and operation of each entry, in order.
fn managers(plane: &common::ControlPlane, object: &str) -> Vec<String> {
    let path = "{range .metadata.managedFields[*]}{.manager} {.operation}{\"\\n\"}{end}";
    let path = format!("jsonpath={path}");
    let shown = plane.kubectl(&["get", object, "--show-managed-fields", "-o", &path]);
    shown.lines().map(str::to_owned).collect()
}

#[test]
fn manifests_are_applied_by_the_server_and_fields_have_owners() {
    let Some(plane) = start("apiserver") else { return };
    let apply = |manager: &str, more: &[&str], manifest: &str| {
        let manager = format!("--field-manager={manager}");
        let arguments = [&["apply", "--server-side", manager.as_str()], more, &["-f", "-"]].concat();
        let mut child = plane
            .command()
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(manifest.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    };
    let made = apply("one", &[], MANIFEST).expect("applied");
    assert_eq!(made, "configmap/settings serverside-applied\nservice/web serverside-applied\n");
    assert_eq!(managers(&plane, "configmap/settings"), ["one Apply"]);
    assert!(!plane.kubectl(&["get", "service", "web", "-o", "yaml"]).contains("managedFields"));
    let blue = MANIFEST.replace("red", "blue");
    let error = apply("two", &[], &blue).expect_err("a conflict");
    assert!(error.contains("Apply failed with 1 conflict: conflict with \"one\": .data.color"), "{error}");
    assert!(error.contains("--force-conflicts"), "{error}");
    apply("two", &["--force-conflicts"], &blue).expect("taken over");
    assert_eq!(managers(&plane, "configmap/settings"), ["two Apply"]);
    apply("two", &[], &blue.replace("{color: blue}", "{size: big}")).expect("a field less");
    assert_eq!(
        plane.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]),
        "{\"size\":\"big\"}"
    );
    plane.kubectl(&["label", "configmap", "settings", "tier=front"]);
    assert_eq!(managers(&plane, "configmap/settings"), ["two Apply", "kubectl-label Update"]);
    let error = apply("two", &[], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndate: {}\n");
    assert!(error.expect_err("unknown").contains(".date: field not declared in schema"));
    let dry = apply("two", &["--dry-run=server"], &blue).expect("tried");
    assert!(dry.starts_with("configmap/settings serverside-applied (server dry run)"), "{dry}");
}

#[test]
fn what_client_side_apply_made_goes_on_with_server_side_apply_and_back() {
    let Some(plane) = start("apiserver") else { return };
    plane.kubectl_with_input(&["apply", "-f", "-"], MANIFEST);
    assert_eq!(managers(&plane, "configmap/settings"), ["kubectl-client-side-apply Update"]);
    let green = MANIFEST.replace("red", "green");
    plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &green);
    // kubectl rewrites the owners by a patch, and applies the annotation of client-side apply apart.
    assert_eq!(managers(&plane, "configmap/settings"), ["kubectl Apply", "kubectl-last-applied Apply"]);
    let less = green.replace("{color: green}", "{}");
    plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &less);
    assert_eq!(plane.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]), "");
    plane.kubectl_with_input(&["apply", "-f", "-"], MANIFEST);
    assert_eq!(plane.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}"]), "red");
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
    let list = plane.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let from = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
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
fn a_log_that_cannot_be_written_ends_nothing() {
    let Some(mut plane) = start("apiserver") else { return };
    let log = plane.directory.join("log");
    fs::remove_file(&log).expect("a log");
    std::os::unix::fs::symlink("/dev/full", &log).expect("linked");
    plane.crash_and_restart("apiserver");
    plane.kubectl(&["create", "configmap", "still-here"]);
}

#[test]
fn flags_that_cannot_work_are_refused_with_a_reason() {
    let Some(plane) = start("apiserver") else { return };
    let config = fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let server =
        config.lines().find_map(|line| line.trim().strip_prefix("server: https://")).expect("a server");
    let port = server.rsplit(':').next().expect("a port");
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .arg("run")
            .args(arguments)
            .output()
            .expect("runs");
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
    let error = run(&[local[0], local[1], &elsewhere, "--secure-port=0", "--store=etcd"]);
    assert!(error.contains("--store=etcd needs --etcd-servers"), "{error}");
}
