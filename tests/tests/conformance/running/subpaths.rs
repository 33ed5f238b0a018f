//! Parts of volumes: paths below them, also ones made of variables.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};

use super::{Pod, script, sleeper, test};
use crate::{
    coverage::texts,
    steps::create,
    support::{Bed, unique},
};

texts! {
    "VolumeSubpathEnvExpansion, subpath expansion" => should_allow_substituting_values_in_a_volume_subpath,
    "VolumeSubpathEnvExpansion, subpath with backticks" =>
        should_fail_substituting_values_in_a_volume_subpath_with_backticks,
    "VolumeSubpathEnvExpansion, subpath with absolute path" =>
        should_fail_substituting_values_in_a_volume_subpath_with_absolute_path,
    "VolumeSubpathEnvExpansion, subpath ready from failed state" =>
        should_verify_that_a_failing_subpath_expansion_can_be_modified_during_the_lifecycle_of_a_container,
    "VolumeSubpathEnvExpansion, subpath test writes" => should_succeed_in_writing_subpaths_in_container,
    "SubPath: Reading content from a secret volume." => should_support_subpaths_with_secret_pod,
    "SubPath: Reading content from a configmap volume." => should_support_subpaths_with_configmap_pod,
    "SubPath: Reading content from a configmap volume." =>
        should_support_subpaths_with_configmap_pod_with_mountpath_of_existing_file,
    "SubPath: Reading content from a downwardAPI volume." => should_support_subpaths_with_downward_pod,
    "SubPath: Reading content from a projected volume." => should_support_subpaths_with_projected_pod,
}

/// A pod that mounts a part of a volume by this expression at `/part`, and all of it at `/all`.
fn expanded(mut pod: Value, expression: &str, environment: Value) -> Value {
    pod["spec"]["volumes"] = json!([{ "name": "work", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["env"] = environment;
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "work", "mountPath": "/part", "subPathExpr": expression },
        { "name": "work", "mountPath": "/all" },
    ]);
    pod
}

/// VolumeSubpathEnvExpansion, subpath expansion
#[test]
fn should_allow_substituting_values_in_a_volume_subpath() {
    test(async |bed| {
        let pod = script("test -d /all/foo && echo here > /part/file && cat /all/foo/file");
        let pod = expanded(pod, "$(POD_NAME)", json!([{ "name": "POD_NAME", "value": "foo" }]));
        assert_eq!(Pod::output(bed, pod).await, "here\n");
    });
}

/// The pod's container is not made, since its path is not allowed.
fn refused(value: &str) {
    test(async |bed| {
        let environment = json!([{ "name": "POD_NAME", "value": value }]);
        let pod = Pod::create(bed, expanded(sleeper(), "$(POD_NAME)", environment)).await;
        let seen = pod.until("is refused", |pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            state["waiting"]["reason"] == "CreateContainerConfigError"
        });
        let seen = seen.await;
        assert_eq!(seen["status"]["phase"], "Pending");
        assert!(seen["status"]["containerStatuses"][0]["containerID"].as_str().is_none_or(str::is_empty));
    });
}

/// VolumeSubpathEnvExpansion, subpath with backticks
#[test]
fn should_fail_substituting_values_in_a_volume_subpath_with_backticks() {
    refused("..");
}

/// VolumeSubpathEnvExpansion, subpath with absolute path
#[test]
fn should_fail_substituting_values_in_a_volume_subpath_with_absolute_path() {
    refused("/tmp");
}

/// A path of which a part is an annotation of the pod's.
fn annotated(annotations: Value) -> Value {
    let environment = json!([
        { "name": "POD_NAME", "value": "foo" },
        { "name": "ANNOTATION", "valueFrom": { "fieldRef": { "fieldPath": "metadata.annotations['mysubpath']" } } },
    ]);
    let mut pod = expanded(sleeper(), "$(ANNOTATION)/$(POD_NAME)", environment);
    pod["metadata"]["annotations"] = annotations;
    pod
}

/// VolumeSubpathEnvExpansion, subpath ready from failed state
#[test]
fn should_verify_that_a_failing_subpath_expansion_can_be_modified_during_the_lifecycle_of_a_container() {
    test(async |bed| {
        // Without the annotation the path would begin with a slash.
        let pod = Pod::create(bed, annotated(json!({ "notmysubpath": "mypath" }))).await;
        pod.until("is refused", |pod| {
            let state = &pod["status"]["containerStatuses"][0]["state"];
            state["waiting"]["reason"] == "CreateContainerConfigError"
        })
        .await;
        pod.patch(json!({ "metadata": { "annotations": { "mysubpath": "mypath" } } })).await;
        pod.ready().await;
        assert_eq!(pod.run("touch /part/file; ls /all/mypath/foo").await, "file\n");
        pod.delete().await;
        pod.gone().await;
    });
}

/// VolumeSubpathEnvExpansion, subpath test writes
#[test]
fn should_succeed_in_writing_subpaths_in_container() {
    test(async |bed| {
        let pod = Pod::start(bed, annotated(json!({ "mysubpath": "mypath" }))).await;
        pod.run("touch /all/mypath/foo/test.log; test -f /part/test.log").await;
        pod.patch(json!({ "metadata": { "annotations": { "mysubpath": "mynewpath" } } })).await;
        // It runs on as it was started.
        pod.run("test -f /part/test.log; test ! -e /all/mynewpath").await;
        let seen = pod.get().await.expect("the pod is read");
        assert_eq!((super::restarts(&seen), &seen["status"]["phase"]), (0, &json!("Running")));
        pod.delete().await;
        pod.gone().await;
    });
}

async fn contents(bed: &Bed) -> String {
    let name = unique("contents");
    let (metadata, data) = (json!({ "name": name }), json!({ "key": "the content" }));
    create(&bed.api::<ConfigMap>(), json!({ "metadata": metadata, "data": data })).await;
    create(&bed.api::<Secret>(), json!({ "metadata": metadata, "stringData": data })).await;
    name
}

/// One file of a volume, mounted by itself; `source` makes the volume from the name of the objects.
fn one_file(source: fn(&str) -> Value, mount_path: &str, expected: &str) {
    test(async |bed| {
        let mut volume = source(&contents(bed).await);
        volume["name"] = json!("volume");
        let mut pod = script(&format!("cat {mount_path}"));
        pod["spec"]["volumes"] = json!([volume]);
        pod["metadata"]["labels"] = json!({ "here": "label" });
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "volume", "mountPath": mount_path, "subPath": "key" }]);
        assert_eq!(Pod::output(bed, pod).await, expected);
    });
}

fn labels() -> Value {
    json!({ "items": [{ "path": "key", "fieldRef": { "fieldPath": "metadata.labels['here']" } }] })
}

/// SubPath: Reading content from a secret volume.
#[test]
fn should_support_subpaths_with_secret_pod() {
    one_file(|name| json!({ "secret": { "secretName": name } }), "/part/file", "the content");
}

/// SubPath: Reading content from a configmap volume.
#[test]
fn should_support_subpaths_with_configmap_pod() {
    one_file(|name| json!({ "configMap": { "name": name } }), "/part/file", "the content");
}

/// SubPath: Reading content from a configmap volume.
#[test]
fn should_support_subpaths_with_configmap_pod_with_mountpath_of_existing_file() {
    one_file(|name| json!({ "configMap": { "name": name } }), "/etc/group", "the content");
}

/// SubPath: Reading content from a downwardAPI volume.
#[test]
fn should_support_subpaths_with_downward_pod() {
    one_file(|_| json!({ "downwardAPI": labels() }), "/part/file", "label");
}

/// SubPath: Reading content from a projected volume.
#[test]
fn should_support_subpaths_with_projected_pod() {
    let source = |name: &str| json!({ "projected": { "sources": [{ "configMap": { "name": name } }] } });
    one_file(source, "/part/file", "the content");
}
