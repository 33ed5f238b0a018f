//! Server-side apply and the owners of fields, through the in-process client.

mod common;

use common::*;
use hawser_api::{
    Client, Error, GroupVersionResource,
    client::{Binding, Patch, WriteOptions},
    resource::Target,
};
use serde_json::{Value, json};

fn by(manager: &str) -> WriteOptions {
    WriteOptions { field_manager: manager.to_owned(), ..WriteOptions::default() }
}

fn target(resource: &GroupVersionResource, name: &str) -> Target {
    Target::object(resource.clone(), Some("default"), name)
}

async fn apply_at(
    api: &Api,
    target: &Target,
    manager: &str,
    config: &Value,
    force: bool,
) -> Result<Value, Error> {
    let patch = Patch::Apply { configuration: config.to_string().into(), force };
    let bytes = api.0.patch(target, patch, &by(manager)).await?;
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

async fn apply(api: &Api, manager: &str, config: &Value) -> Result<Value, Error> {
    let name = config["metadata"]["name"].as_str().expect("a name");
    apply_at(api, &target(&CONFIG_MAPS, name), manager, config, false).await
}

async fn merge_by(
    api: &Api,
    resource: &GroupVersionResource,
    manager: &str,
    patch: Value,
) -> Result<Value, Error> {
    let patch = Patch::Merge(patch.to_string().into());
    let bytes = api.0.patch(&target(resource, "a"), patch, &by(manager)).await?;
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

/// Manager, operation, subresource and fields of each entry.
fn owners(object: &Value) -> Vec<(String, String, String, Value)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries
        .map(|entry| {
            assert!(entry["time"].is_string() && entry["fieldsType"] == "FieldsV1", "{entry}");
            (
                text(&entry["manager"]),
                text(&entry["operation"]),
                text(&entry["subresource"]),
                entry["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn owned(object: &Value, manager: &str) -> Value {
    owners(object).into_iter().find(|owner| owner.0 == manager).map_or(Value::Null, |owner| owner.3)
}

fn bare(data: Value) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": "a" }, "data": data })
}

#[tokio::test]
async fn every_sort_of_write_leaves_owners() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let made = admin.create(&PODS, Some("shop"), pod("web")).await.expect("made");
    let found = owners(&made);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].0.as_str(), found[0].1.as_str()), ("unknown", "Update"));
    let spec = &found[0].3["f:spec"];
    assert!(spec["f:containers"]["k:{\"name\":\"main\"}"]["f:image"].is_object(), "{spec}");
    assert!(spec["f:tolerations"].is_null(), "what admission puts in has no owner");
    assert!(found[0].3["f:metadata"]["f:uid"].is_null() && found[0].3["f:status"].is_null());
    let scheduler = running.client("system:kube-scheduler", &[]);
    let binding = Binding {
        namespace: "shop".into(),
        pod: "web".into(),
        uid: made["metadata"]["uid"].as_str().expect("a uid").into(),
        node: "n1".into(),
    };
    scheduler.0.bind(&[binding]).await.pop().expect("a result").expect("bound");
    let mut bound = admin.get(&PODS, Some("shop"), "web").await.expect("there");
    assert_eq!(owners(&bound), found, "so has a binding");
    bound["status"]["phase"] = json!("Running");
    bound["spec"]["nodeName"] = json!("elsewhere");
    let node = running.client("system:node:n1", &["system:nodes"]);
    let reported = node.update(&PODS, &bound, "status").await.expect("reported");
    let expected = ("node-agent".to_owned(), "Update".to_owned(), "status".to_owned());
    let entry = owners(&reported).into_iter().find(|owner| owner.2 == "status").expect("an entry");
    assert_eq!((entry.0, entry.1, entry.2), expected);
    assert_eq!(entry.3, json!({ "f:status": { "f:phase": {} } }));
    running.stop().await;
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_times_and_version() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let first = apply(&admin, "me", &bare(json!({ "x": "1" }))).await.expect("created");
    let again = apply(&admin, "me", &bare(json!({ "x": "1" }))).await.expect("applied");
    assert_eq!(again, first);
    assert_eq!(
        merge_by(&admin, &CONFIG_MAPS, "other", json!({ "data": { "x": "1" } })).await.expect("no change"),
        first
    );
    assert_eq!(admin.update(&CONFIG_MAPS, &first, "").await.expect("no change"), first);
    let shared = apply(&admin, "too", &bare(json!({ "x": "1" }))).await.expect("shared");
    assert_ne!(shared["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(owners(&shared).len(), 2, "the same values have two owners now");
    running.stop().await;
}

#[tokio::test]
async fn applies_conflict_are_forced_and_let_go() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    apply(&admin, "one", &bare(json!({ "x": "1", "y": "1" }))).await.expect("created");
    let error = apply(&admin, "two", &bare(json!({ "x": "2" }))).await.expect_err("a conflict");
    assert_eq!(error.message(), "Apply failed with 1 conflict: conflict with \"one\": .data.x");
    assert_eq!(error.to_status()["details"]["causes"][0]["field"], ".data.x");
    let place = target(&CONFIG_MAPS, "a");
    let taken = apply_at(&admin, &place, "two", &bare(json!({ "x": "2" })), true).await.expect("forced");
    assert_eq!(owned(&taken, "one"), json!({ "f:data": { "f:y": {} } }));
    merge_by(&admin, &CONFIG_MAPS, "three", json!({ "data": { "y": "3" } })).await.expect("patched");
    let error = apply(&admin, "one", &bare(json!({ "y": "1" }))).await.expect_err("a conflict");
    assert_eq!(error.message(), "Apply failed with 1 conflict: conflict with \"three\" using v1: .data.y");
    let left = apply(&admin, "two", &bare(json!({}))).await.expect("let go");
    assert_eq!(left["data"], json!({ "y": "3" }));
    running.stop().await;
}

#[tokio::test]
async fn configurations_that_cannot_be_applied_are_refused_with_a_reason() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let made = apply(&admin, "me", &bare(json!({ "x": "1" }))).await.expect("created");
    let place = target(&CONFIG_MAPS, "a");
    let with = |field: &str, value: Value| {
        let mut config = bare(json!({ "x": "2" }));
        config["metadata"][field] = value;
        config
    };
    let refused = |config: Value, manager: &'static str| {
        let (admin, place) = (admin.clone(), place.clone());
        async move { apply_at(&admin, &place, manager, &config, false).await.expect_err("refused") }
    };
    let error = refused(bare(json!({})), "").await;
    assert_eq!(
        (error.code(), error.message()),
        (
            422,
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
        )
    );
    let error = refused(with("managedFields", json!([])), "me").await;
    assert_eq!((error.code(), error.message()), (400, "metadata.managedFields must be nil"));
    let error = refused(with("resourceVersion", json!("1")), "me").await;
    assert!(error.is_conflict() && error.message().contains("has been modified"), "{}", error.message());
    assert!(refused(with("uid", json!("other")), "me").await.is_conflict());
    assert_eq!(refused(with("name", json!("b")), "me").await.code(), 400);
    let mut other = bare(json!({}));
    other["apiVersion"] = json!("v2");
    let error = refused(other, "me").await;
    assert_eq!(
        error.message(),
        "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1"
    );
    let mut unknown = bare(json!({}));
    unknown["date"] = json!({});
    assert!(refused(unknown, "me").await.message().contains(".date: field not declared in schema"));
    let newest = with("resourceVersion", made["metadata"]["resourceVersion"].clone());
    apply_at(&admin, &place, "me", &newest, false).await.expect("the version is the newest");
    let absent = target(&CONFIG_MAPS, "absent");
    let mut config = with("uid", json!("0"));
    config["metadata"]["name"] = json!("absent");
    let error = apply_at(&admin, &absent, "me", &config, false).await.expect_err("nothing has that uid");
    assert!(error.is_conflict() && error.message().contains("uid mismatch"), "{}", error.message());
    running.stop().await;
}

#[tokio::test]
async fn parts_have_owners_of_their_own() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "main", "image": "demo" }] },
            },
        },
        "status": { "replicas": 7 },
    });
    let place = target(&DEPLOYMENTS, "a");
    let made = apply_at(&admin, &place, "me", &deployment, false).await.expect("created");
    assert_eq!(made["metadata"]["generation"], 1);
    assert!(made["status"]["replicas"].is_null() && owned(&made, "me")["f:status"].is_null());
    assert_eq!(owned(&made, "me")["f:spec"]["f:selector"], json!({}), "a selector is one value");
    let scale = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "a" }, "spec": { "replicas": 3 } });
    let scaled = place.clone().with_subresource("scale");
    let error = apply_at(&admin, &scaled, "hpa", &scale, false).await.expect_err("a conflict");
    assert_eq!(error.message(), "Apply failed with 1 conflict: conflict with \"me\": .spec.replicas");
    let shown = apply_at(&admin, &scaled, "hpa", &scale, true).await.expect("scaled");
    assert_eq!((&shown["kind"], &shown["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    let status = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a" }, "status": { "replicas": 3 } });
    let reported = place.clone().with_subresource("status");
    let now = apply_at(&admin, &reported, "reporter", &status, false).await.expect("reported");
    assert_eq!((&now["spec"]["replicas"], &now["status"]["replicas"]), (&json!(3), &json!(3)));
    let entry = |manager: &str| owners(&now).into_iter().find(|owner| owner.0 == manager).expect("an entry");
    assert_eq!(
        (entry("hpa").2.as_str(), &entry("hpa").3),
        ("scale", &json!({ "f:spec": { "f:replicas": {} } }))
    );
    assert_eq!(
        (entry("reporter").2.as_str(), &entry("reporter").3),
        ("status", &json!({ "f:status": { "f:replicas": {} } }))
    );
    assert!(entry("me").3["f:spec"]["f:replicas"].is_null());
    apply_at(&admin, &scaled, "hpa", &scale, false).await.expect("who owns a field may apply it again");
    running.stop().await;
}

#[tokio::test]
async fn nobody_owns_what_a_subresource_does_not_write() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let mut made = pod("a");
    made["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "50m" } });
    admin.create(&PODS, Some("shop"), made).await.expect("made");
    let place = Target::object(PODS, Some("shop"), "a");
    let meta = json!({ "name": "a", "labels": { "by": "resizer" } });
    let requests = json!({ "requests": { "cpu": "100m" } });
    let container = json!({ "name": "main", "image": "another", "resources": requests });
    let spec = json!({ "containers": [container], "priority": 7 });
    let config = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec });
    let resized = apply_at(&admin, &place.clone().with_subresource("resize"), "resizer", &config, true).await;
    let resized = resized.expect("resized");
    let item = json!({ ".": {}, "f:resources": { "f:requests": { "f:cpu": {} } } });
    let container = json!({ "k:{\"name\":\"main\"}": item });
    assert_eq!(owned(&resized, "resizer")["f:spec"]["f:containers"], container);
    assert_eq!(owned(&resized, "resizer")["f:metadata"], Value::Null);
    assert_eq!(resized["metadata"]["labels"]["by"], Value::Null);
    assert_ne!(resized["spec"]["containers"][0]["image"], "another");

    let config = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": { "nodeName": "n1" }, "status": { "phase": "Running" },
    });
    let reported = apply_at(&admin, &place.with_subresource("status"), "reporter", &config, true).await;
    let reported = reported.expect("reported");
    let own = json!({ "f:metadata": { "f:labels": { "f:by": {} } }, "f:status": { "f:phase": {} } });
    assert_eq!(owned(&reported, "reporter"), own, "labels of pods are written with their status");
    running.stop().await;
}

#[tokio::test]
async fn clients_may_correct_owners_and_not_break_them() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let made = apply(&admin, "me", &bare(json!({ "x": "1" }))).await.expect("created");
    let list = &made["metadata"]["managedFields"];
    for sent in [
        Value::Null,
        json!([{ "operation": "Delete" }]),
        json!([{ "manager": "a", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": { "x": {} } }]),
    ] {
        let mut object = made.clone();
        object["metadata"]["managedFields"] = sent.clone();
        let kept = admin.update(&CONFIG_MAPS, &object, "").await.expect("updated");
        assert_eq!(&kept["metadata"]["managedFields"], list, "{sent}");
    }
    let mut renamed = list[0].clone();
    renamed["manager"] = json!("you");
    let operations = json!([{ "op": "replace", "path": "/metadata/managedFields", "value": [renamed] }]);
    let patch = Patch::Json(operations.to_string().into());
    let place = target(&CONFIG_MAPS, "a");
    admin.0.patch(&place, patch, &by("fixer")).await.expect("patched");
    let found = admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect("there");
    assert_eq!(owners(&found).iter().map(|owner| owner.0.as_str()).collect::<Vec<_>>(), ["you"]);
    let reset =
        merge_by(&admin, &CONFIG_MAPS, "fixer", json!({ "metadata": { "managedFields": [{}] } })).await;
    assert!(reset.expect("reset")["metadata"]["managedFields"].is_null());
    let changed =
        merge_by(&admin, &CONFIG_MAPS, "fixer", json!({ "data": { "x": "2" } })).await.expect("changed");
    assert!(changed["metadata"]["managedFields"].is_null(), "without owners nothing is tracked");
    let error = apply(&admin, "me", &bare(json!({ "x": "1" }))).await.expect_err("a conflict");
    assert!(error.message().contains("\"before-first-apply\" using v1"), "{}", error.message());
    running.stop().await;
}

#[tokio::test]
async fn events_have_owners_in_the_version_that_wrote_them() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let event = json!({
        "metadata": { "name": "a", "namespace": "default" }, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "x/y", "reportingInstance": "z", "action": "Testing", "reason": "Because",
        "regarding": { "kind": "Pod", "namespace": "default", "name": "p" }, "note": "hello", "type": "Normal",
    });
    let made = admin.create(&NEW_EVENTS, Some("default"), event).await.expect("made");
    assert_eq!(owned(&made, "unknown")["f:note"], json!({}));
    assert_eq!(made["metadata"]["managedFields"][0]["apiVersion"], "events.k8s.io/v1");
    let changed = merge_by(&admin, &EVENTS, "counter", json!({ "message": "other" })).await.expect("changed");
    assert_eq!(owned(&changed, "counter"), json!({ "f:message": {} }));
    assert!(owned(&changed, "unknown")["f:note"].is_null(), "the same field under its other name");
    running.stop().await;
}

#[tokio::test]
async fn a_dry_run_applies_nothing_and_appliers_race_for_one_object() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let config = bare(json!({ "x": "1" }));
    let options = WriteOptions { dry_run: true, ..by("me") };
    let patch = Patch::Apply { configuration: config.to_string().into(), force: false };
    let place = target(&CONFIG_MAPS, "a");
    let shown = admin.0.patch(&place, patch, &options).await.expect("tried");
    let shown: Value = serde_json::from_slice(&shown).expect("JSON");
    assert_eq!(owned(&shown, "me"), json!({ "f:data": { "f:x": {} } }));
    assert!(admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect_err("nothing").is_not_found());
    let mut appliers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let admin = admin.clone();
        appliers.spawn(async move {
            let config = bare(json!({ format!("key-{number}"): "x" }));
            apply(&admin, &format!("m{number}"), &config).await.expect("applied");
        });
    }
    while let Some(done) = appliers.join_next().await {
        done.expect("an applier");
    }
    let found = admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect("there");
    assert_eq!((found["data"].as_object().map(serde_json::Map::len), owners(&found).len()), (Some(16), 16));
    running.stop().await;
}

#[tokio::test]
async fn creating_by_apply_needs_the_right_to_create() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let node = running.client("system:node:n1", &["system:nodes"]);
    let lease = GroupVersionResource::fixed("coordination.k8s.io", "v1", "leases");
    let place = Target::object(lease, Some("default"), "other");
    let config =
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "other" } });
    let error = apply_at(&node, &place, "me", &config, false).await.expect_err("refused");
    assert_eq!(error.code(), 403, "{}", error.message());
    running.stop().await;
}
