//! What a container runs, and what of its output and end is seen.

use serde_json::{Value, json};

use super::{Pod, image, script, sleeper, test};
use crate::coverage::texts;

texts! {
    "Containers, without command and arguments" => should_use_the_image_defaults_if_command_and_args_are_blank,
    "Containers, with arguments" => should_be_able_to_override_the_image_s_default_arguments_container_cmd,
    "Containers, with command" => should_be_able_to_override_the_image_s_default_command_container_entrypoint,
    "Containers, with command and arguments" => should_be_able_to_override_the_image_s_default_command_and_arguments,
    "Kubelet, log output, default" => should_print_the_output_to_logs,
    "Kubelet, failed pod, delete" => should_be_possible_to_delete,
    "Kubelet, failed pod, terminated reason" => should_have_an_terminated_reason,
    "Kubelet, pod with read only root file system" => should_not_write_to_root_filesystem,
    "Kubelet, hostAliases" => should_write_entries_to_etc_hosts,
    "Kubelet, managed etc hosts" => should_test_kubelet_managed_etc_hosts_file,
    "Image Volume" => should_succeed_with_pod_and_pull_policy_of_always,
}

/// What is said by a container of an image whose entrypoint is `echo entrypoint`, and whose command is `of the image`.
fn said(container: Value, expected: &str) {
    test(async |bed| {
        let mut pod = script("");
        pod["spec"]["containers"][0] = json!({ "name": "main", "image": image("demo/echo:1") });
        for (field, value) in container.as_object().into_iter().flatten() {
            pod["spec"]["containers"][0][field] = value.clone();
        }
        assert_eq!(Pod::output(bed, pod).await, expected);
    });
}

/// Containers, without command and arguments
#[test]
fn should_use_the_image_defaults_if_command_and_args_are_blank() {
    said(json!({}), "entrypoint of the image\n");
}

/// Containers, with arguments
#[test]
fn should_be_able_to_override_the_image_s_default_arguments_container_cmd() {
    said(json!({ "args": ["override", "arguments"] }), "entrypoint override arguments\n");
}

/// Containers, with command
#[test]
fn should_be_able_to_override_the_image_s_default_command_container_entrypoint() {
    // Neither the image's entrypoint nor its command.
    said(json!({ "command": ["/bin/echo", "of", "the", "pod"] }), "of the pod\n");
}

/// Containers, with command and arguments
#[test]
fn should_be_able_to_override_the_image_s_default_command_and_arguments() {
    said(
        json!({ "command": ["/bin/echo", "2"], "args": ["override", "arguments"] }),
        "2 override arguments\n",
    );
}

/// Kubelet, log output, default
#[test]
fn should_print_the_output_to_logs() {
    test(async |bed| {
        let said = Pod::output(bed, script("echo 'Hello World'; echo 'and errors' >&2")).await;
        // The two are not ordered.
        let mut lines: Vec<_> = said.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["Hello World", "and errors"]);
    });
}

/// A pod whose command always fails.
fn failing() -> Value {
    let mut pod = script("/bin/false");
    pod["spec"]["restartPolicy"] = json!("Always");
    pod
}

/// Kubelet, failed pod, terminated reason
#[test]
fn should_have_an_terminated_reason() {
    test(async |bed| {
        let pod = Pod::create(bed, failing()).await;
        let failed = pod.until("the container has failed", |pod| {
            let status = &pod["status"]["containerStatuses"][0];
            [&status["state"], &status["lastState"]].iter().any(|state| state["terminated"]["exitCode"] == 1)
        });
        let failed = failed.await;
        let statuses = failed["status"]["containerStatuses"].as_array().expect("statuses");
        assert_eq!(statuses.len(), 1);
        let status = &statuses[0];
        let ended = [&status["state"]["terminated"], &status["lastState"]["terminated"]];
        assert!(ended.iter().any(|end| end["reason"] == "Error"), "{status}");
    });
}

/// Kubelet, failed pod, delete
#[test]
fn should_be_possible_to_delete() {
    test(async |bed| {
        let pod = Pod::create(bed, failing()).await;
        pod.until("the container has failed", |pod| {
            pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
        })
        .await;
        pod.delete().await;
        pod.gone().await;
    });
}

/// Kubelet, pod with read only root file system
#[test]
fn should_not_write_to_root_filesystem() {
    test(async |bed| {
        let mut pod = script("echo test > /file; ls / | grep -x file || echo nothing");
        pod["spec"]["containers"][0]["securityContext"] = json!({ "readOnlyRootFilesystem": true });
        let said = Pod::output(bed, pod).await;
        assert!(said.contains("Read-only file system") && said.contains("nothing"), "{said}");
    });
}

/// Kubelet, hostAliases
#[test]
fn should_write_entries_to_etc_hosts() {
    test(async |bed| {
        let mut pod = script("cat /etc/hosts");
        let aliases = json!([
            { "ip": "123.45.67.89", "hostnames": ["foo", "bar"] },
            { "ip": "2001:db8::1", "hostnames": ["baz"] },
        ]);
        pod["spec"]["hostAliases"] = aliases;
        let said = Pod::output(bed, pod).await;
        assert!(said.starts_with("# Kubernetes-managed hosts file."), "{said}");
        super::has_line(&said, "123.45.67.89\tfoo\tbar");
        super::has_line(&said, "2001:db8::1\tbaz");
    });
}

/// Kubelet, managed etc hosts
#[test]
fn should_test_kubelet_managed_etc_hosts_file() {
    test(async |bed| {
        const MARK: &str = "# Kubernetes-managed hosts file";
        let mut pod = sleeper();
        let containers = pod["spec"]["containers"].as_array_mut().expect("containers");
        let mut second = containers[0].clone();
        second["name"] = json!("second");
        let mut own = containers[0].clone();
        own["name"] = json!("own");
        own["volumeMounts"] = json!([{ "name": "hosts", "mountPath": "/etc/hosts" }]);
        containers.extend([second, own]);
        pod["spec"]["volumes"] =
            json!([{ "name": "hosts", "hostPath": { "path": "/etc/hosts", "type": "File" } }]);
        let pod = Pod::start(bed, pod).await;

        let mut shared = sleeper();
        shared["spec"]["hostNetwork"] = json!(true);
        let shared = Pod::start(bed, shared).await;

        let hosts = async |pod: &Pod, container: &str| {
            pod.exec(container, &["cat", "/etc/hosts"]).await.expect("the file is read").stdout
        };
        for container in ["main", "second"] {
            let found = hosts(&pod, container).await;
            assert!(found.starts_with(MARK), "{container}: {found}");
        }
        let machine = hosts(&pod, "own").await;
        assert!(!machine.contains(MARK), "{machine}");
        // Written by the kubelet too, but what it holds is the node's.
        let found = hosts(&shared, "main").await;
        assert!(found.contains(machine.trim_end()), "{found}");
        assert!(!found.starts_with(&format!("{MARK}.")), "{found}");
    });
}

/// Image Volume
#[test]
fn should_succeed_with_pod_and_pull_policy_of_always() {
    test(async |bed| {
        let mut pod = script("cat /volume/etc/group; touch /volume/file 2>/dev/null || echo read-only");
        let source = json!({ "reference": image("demo/busybox:1"), "pullPolicy": "Always" });
        pod["spec"]["volumes"] = json!([{ "name": "image", "image": source }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "image", "mountPath": "/volume" }]);
        let said = Pod::output(bed, pod).await;
        assert!(said.contains("nogroup:x:65534:") && said.ends_with("read-only\n"), "{said}");
    });
}
