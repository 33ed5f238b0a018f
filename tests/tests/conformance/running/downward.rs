//! Volumes with what the pod is: names, labels, annotations, resources; alone and projected.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::{Pod, script, sleeper, test};
use crate::{coverage::cases, steps::as_json};

/// What kind of volume the files are in.
#[derive(Clone, Copy)]
enum Kind {
    Alone,
    Projected,
}
use Kind::{Alone, Projected};

/// Puts a volume of one file into the pod, at `/podinfo/file`.
fn with_file(mut pod: Value, kind: Kind, item: Value, default_mode: Option<u32>) -> Value {
    let mut item = item;
    item["path"] = json!("file");
    let items = json!({ "items": [item] });
    let (field, mut volume) = match kind {
        Alone => ("downwardAPI", items),
        Projected => ("projected", json!({ "sources": [{ "downwardAPI": items }] })),
    };
    if let Some(mode) = default_mode {
        volume["defaultMode"] = json!(mode);
    }
    pod["spec"]["volumes"] = json!([{ "name": "podinfo", field: volume }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "podinfo", "mountPath": "/podinfo" }]);
    pod
}

fn field(path: &str) -> Value {
    json!({ "fieldRef": { "fieldPath": path } })
}

/// The pod's name, in a file of this mode.
fn named(kind: Kind, default_mode: Option<u32>, mode: Option<u32>) {
    test(async |bed| {
        let mut item = field("metadata.name");
        if let Some(mode) = mode {
            item["mode"] = json!(mode);
        }
        let pod =
            with_file(script("cat /podinfo/file; echo; stat -Lc %a /podinfo/file"), kind, item, default_mode);
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        let mode = mode.or(default_mode).unwrap_or(0o644);
        assert_eq!(Pod::output(bed, pod).await, format!("{name}\n{mode:o}\n"));
    });
}

/// A resource of the container, in what its unit is in files: whole cores, rounded up, and bytes.
fn resource(kind: Kind, resource: &str, expected: &str) {
    test(async |bed| {
        let item = json!({ "resourceFieldRef": { "containerName": "main", "resource": resource } });
        let mut pod = with_file(script("cat /podinfo/file"), kind, item, None);
        pod["spec"]["containers"][0]["resources"] = json!({
            "requests": { "cpu": "250m", "memory": "32Mi" },
            "limits": { "cpu": "1250m", "memory": "64Mi" },
        });
        assert_eq!(Pod::output(bed, pod).await, expected);
    });
}

/// A limit that the container does not have is what the node has.
fn of_node(kind: Kind, resource: &str) {
    test(async |bed| {
        let reference = json!({ "containerName": "main", "resource": format!("limits.{resource}") });
        let pod =
            with_file(script("cat /podinfo/file"), kind, json!({ "resourceFieldRef": reference }), None);
        let pod = Pod::create(bed, pod).await;
        let seen = pod.ended("Succeeded").await;
        let node = seen["spec"]["nodeName"].as_str().expect("a node");
        let node = as_json(&bed.all::<Node>().get(node).await.expect("the node is read"));
        let amount = node["status"]["allocatable"][resource].as_str().expect("an amount");
        let expected = match amount.strip_suffix("Ki") {
            Some(kib) => (kib.parse::<u64>().expect("a number") * 1024).to_string(),
            None => amount.to_owned(),
        };
        assert_eq!(pod.log("main").await, expected);
    });
}

/// Labels or annotations, which follow those of a running pod.
fn followed(kind: Kind, which: &str) {
    test(async |bed| {
        let mut pod = with_file(sleeper(), kind, field(&format!("metadata.{which}")), None);
        pod["metadata"][which] = json!({ "key1": "value1", "key2": "value2" });
        let pod = Pod::start(bed, pod).await;
        let said = pod.run("cat /podinfo/file").await;
        for line in ["key1=\"value1\"", "key2=\"value2\""] {
            super::has_line(&said, line);
        }
        pod.patch(json!({ "metadata": { which: { "key3": "value3", "key1": null } } })).await;
        pod.sees("main", "cat /podinfo/file", |said| {
            let lines: Vec<_> = said.lines().collect();
            lines.contains(&"key3=\"value3\"") && lines.contains(&"key2=\"value2\"") && !said.contains("key1")
        })
        .await;
    });
}

mod names {
    use super::*;

    cases! { named:
        "DownwardAPI volume, pod name" => should_provide_podname_only(Alone, None, None),
        "DownwardAPI volume, volume mode 0400" => should_set_defaultmode_on_files(Alone, Some(0o400), None),
        "DownwardAPI volume, file mode 0400" => should_set_mode_on_item_file(Alone, None, Some(0o400)),
        "Projected Volume, DownwardAPI, pod name" =>
            projected_downwardapi_should_provide_podname_only(Projected, None, None),
        "Projected Volume, DownwardAPI, volume mode 0400" =>
            projected_downwardapi_should_set_defaultmode_on_files(Projected, Some(0o400), None),
        "Projected Volume, DownwardAPI, volume mode 0400" =>
            projected_downwardapi_should_set_mode_on_item_file(Projected, None, Some(0o400)),
    }
}
pub(crate) use names::TEXTS as NAMES;

mod resources {
    use super::*;

    cases! { resource:
        "DownwardAPI volume, CPU limits" => should_provide_container_s_cpu_limit(Alone, "limits.cpu", "2"),
        "DownwardAPI volume, CPU request" => should_provide_container_s_cpu_request(Alone, "requests.cpu", "1"),
        "DownwardAPI volume, memory limits" =>
            should_provide_container_s_memory_limit(Alone, "limits.memory", "67108864"),
        "DownwardAPI volume, memory request" =>
            should_provide_container_s_memory_request(Alone, "requests.memory", "33554432"),
        "Projected Volume, DownwardAPI, CPU limits" =>
            projected_downwardapi_should_provide_container_s_cpu_limit(Projected, "limits.cpu", "2"),
        "Projected Volume, DownwardAPI, CPU request" =>
            projected_downwardapi_should_provide_container_s_cpu_request(Projected, "requests.cpu", "1"),
        "Projected Volume, DownwardAPI, memory limits" =>
            projected_downwardapi_should_provide_container_s_memory_limit(Projected, "limits.memory", "67108864"),
        "Projected Volume, DownwardAPI, memory request" =>
            projected_downwardapi_should_provide_container_s_memory_request(Projected, "requests.memory", "33554432"),
    }
}
pub(crate) use resources::TEXTS as RESOURCES;

mod defaults {
    use super::*;

    cases! { of_node:
        "DownwardAPI volume, CPU limit, default node allocatable" =>
            should_provide_node_allocatable_cpu_as_default_cpu_limit_if_the_limit_is_not_set(Alone, "cpu"),
        "DownwardAPI volume, memory limit, default node allocatable" =>
            should_provide_node_allocatable_memory_as_default_memory_limit_if_the_limit_is_not_set(Alone, "memory"),
        "Projected Volume, DownwardAPI, CPU limit, node allocatable" =>
            projected_downwardapi_should_provide_node_allocatable_cpu_as_default_cpu_limit_if_the_limit_is_not_set(
                Projected, "cpu"
            ),
        "Projected Volume, DownwardAPI, memory limit, node allocatable" =>
            projected_downwardapi_should_provide_node_allocatable_memory_as_default_memory_limit_if_the_limit_is_not_set(
                Projected, "memory"
            ),
    }
}
pub(crate) use defaults::TEXTS as DEFAULTS;

mod changes {
    use super::*;

    cases! { followed:
        "DownwardAPI volume, update label" => should_update_labels_on_modification(Alone, "labels"),
        "DownwardAPI volume, update annotations" => should_update_annotations_on_modification(Alone, "annotations"),
        "Projected Volume, DownwardAPI, update labels" =>
            projected_downwardapi_should_update_labels_on_modification(Projected, "labels"),
        "Projected Volume, DownwardAPI, update annotation" =>
            projected_downwardapi_should_update_annotations_on_modification(Projected, "annotations"),
    }
}
pub(crate) use changes::TEXTS as CHANGES;
