//! Writes: what the registry does to objects of any kind.

mod common;

use common::*;
use hawser_store::{Expect, Write};
use serde_json::{Value, json};

#[tokio::test]
async fn objects_get_what_the_server_owes_them() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let made = admin.create(&PODS, Some("shop"), pod("web")).await.expect("a pod");
    let meta = &made["metadata"];
    assert_eq!(meta["namespace"], "shop");
    assert!(
        meta["uid"].is_string()
            && meta["creationTimestamp"].is_string()
            && meta["resourceVersion"].is_string()
    );
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    let volume = made["spec"]["volumes"][0]["name"].as_str().expect("a token volume");
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(admin.get(&PODS, Some("shop"), "web").await.expect("the pod"), made, "a read sees the write");
    let error = admin.create(&PODS, Some("shop"), pod("web")).await.expect_err("a second one");
    assert_eq!(error.message(), "pods \"web\" already exists");
    let error = admin.get(&PODS, Some("shop"), "nothing").await.expect_err("not there");
    assert_eq!(error.message(), "pods \"nothing\" not found");
    let error = admin.create(&PODS, Some("nowhere"), pod("web")).await.expect_err("no namespace");
    assert_eq!(error.message(), "namespaces \"nowhere\" not found");
    running.stop().await;
}

#[tokio::test]
async fn generated_names_differ() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let wanted = json!({ "metadata": { "generateName": "web-" } });
    let one = admin.create(&CONFIG_MAPS, Some("default"), wanted.clone()).await.expect("one");
    let two = admin.create(&CONFIG_MAPS, Some("default"), wanted).await.expect("two");
    assert!(one["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("web-") && name.len() == 9));
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    running.stop().await;
}

#[tokio::test]
async fn an_update_of_an_old_version_is_refused_and_a_patch_is_not() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let first = admin.create(&CONFIG_MAPS, Some("default"), config_map("a", "1")).await.expect("made");
    let mut second = first.clone();
    second["data"]["value"] = json!("2");
    admin.update(&CONFIG_MAPS, &second, "").await.expect("the newest version");
    let mut third = first.clone();
    third["data"]["value"] = json!("3");
    let error = admin.update(&CONFIG_MAPS, &third, "").await.expect_err("an old version");
    assert_eq!(
        error.message(),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    third["metadata"].as_object_mut().expect("metadata").remove("resourceVersion");
    let third = admin.update(&CONFIG_MAPS, &third, "").await.expect("without a version it is unconditional");
    assert_eq!(third["data"]["value"], "3");
    let same = admin.update(&CONFIG_MAPS, &third, "").await.expect("no change");
    assert_eq!(
        same["metadata"]["resourceVersion"], third["metadata"]["resourceVersion"],
        "nothing is written"
    );
    running.stop().await;
}

#[tokio::test]
async fn concurrent_patches_all_arrive() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    admin.create(&CONFIG_MAPS, Some("default"), config_map("a", "1")).await.expect("made");
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..32 {
        let admin = admin.clone();
        writers.spawn(async move {
            let patch = json!({ "data": { format!("key-{number}"): "x" } });
            admin.merge(&CONFIG_MAPS, Some("default"), "a", patch).await.expect("patched");
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer");
    }
    let found = admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect("there");
    assert_eq!(found["data"].as_object().map(serde_json::Map::len), Some(33));
    running.stop().await;
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let deployment = json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "main", "image": "demo" }] },
            },
        },
        "status": { "replicas": 7 },
    });
    let mut made = admin.create(&DEPLOYMENTS, Some("shop"), deployment).await.expect("made");
    assert!(made["status"]["replicas"].is_null(), "a client does not say the status");
    assert_eq!(made["metadata"]["generation"], 1);
    made["spec"]["replicas"] = json!(2);
    made["status"]["replicas"] = json!(9);
    let updated = admin.update(&DEPLOYMENTS, &made, "").await.expect("updated");
    assert_eq!((&updated["spec"]["replicas"], &updated["status"]["replicas"]), (&json!(2), &json!(null)));
    assert_eq!(updated["metadata"]["generation"], 2);
    let mut status = updated.clone();
    status["status"]["replicas"] = json!(2);
    status["spec"]["replicas"] = json!(99);
    let reported = admin.update(&DEPLOYMENTS, &status, "status").await.expect("reported");
    assert_eq!((&reported["spec"]["replicas"], &reported["status"]["replicas"]), (&json!(2), &json!(2)));
    assert_eq!(reported["metadata"]["generation"], 2, "a status is nothing desired");
    running.stop().await;
}

#[tokio::test]
async fn what_the_server_added_to_a_pod_outlives_an_update_without_it() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let made = admin.create(&PODS, Some("shop"), pod("web")).await.expect("a pod");
    let mut written = made.clone();
    written["metadata"]["labels"] = json!({ "app": "web" });
    for field in ["tolerations", "priority", "preemptionPolicy"] {
        assert!(written["spec"].as_object_mut().and_then(|spec| spec.remove(field)).is_some(), "{field}");
    }
    let updated = admin.update(&PODS, &written, "").await.expect("updated");
    assert_eq!(updated["spec"], made["spec"]);
    assert_eq!(updated["metadata"]["labels"]["app"], "web");
    running.stop().await;
}

#[tokio::test]
async fn bound_pods_are_deleted_gracefully_and_others_at_once() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    admin.create(&PODS, Some("shop"), pod("waiting")).await.expect("made");
    admin.delete(&PODS, Some("shop"), "waiting", None).await.expect("deleted");
    assert!(admin.get(&PODS, Some("shop"), "waiting").await.expect_err("gone").is_not_found());

    let mut bound = pod("bound");
    bound["spec"]["nodeName"] = json!("n1");
    admin.create(&PODS, Some("shop"), bound).await.expect("made");
    let going = admin.delete(&PODS, Some("shop"), "bound", None).await.expect("asked");
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let again = admin.delete(&PODS, Some("shop"), "bound", None).await.expect("asked again");
    assert_eq!(again["metadata"]["resourceVersion"], going["metadata"]["resourceVersion"], "nothing changes");
    let shorter = admin.delete(&PODS, Some("shop"), "bound", Some(5)).await.expect("shortened");
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    admin.delete(&PODS, Some("shop"), "bound", Some(0)).await.expect("the kubelet is done");
    assert!(admin.get(&PODS, Some("shop"), "bound").await.expect_err("gone").is_not_found());
    running.stop().await;
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let mut wanted = config_map("a", "1");
    wanted["metadata"]["finalizers"] = json!(["example.com/one", "example.com/two"]);
    admin.create(&CONFIG_MAPS, Some("default"), wanted).await.expect("made");
    let going = admin.delete(&CONFIG_MAPS, Some("default"), "a", None).await.expect("asked");
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let one = json!({ "metadata": { "finalizers": ["example.com/two"] } });
    admin.merge(&CONFIG_MAPS, Some("default"), "a", one).await.expect("one is done");
    admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect("still there");
    let none = json!({ "metadata": { "finalizers": null } });
    admin.merge(&CONFIG_MAPS, Some("default"), "a", none).await.expect("both are done");
    assert!(admin.get(&CONFIG_MAPS, Some("default"), "a").await.expect_err("gone").is_not_found());
    running.stop().await;
}

#[tokio::test]
async fn an_object_that_is_older_than_a_rule_changes_beside_what_is_wrong_with_it() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let mut made = config_map("old", "1");
    made["metadata"]["finalizers"] = json!(["example.com/a", "example.com/b"]);
    admin.create(&CONFIG_MAPS, Some("shop"), made).await.expect("made");
    let key = "/registry/configmaps/shop/old";
    let stored = running.store.get(key).await.expect("the store").expect("an object");
    let mut object: Value = serde_json::from_slice(&stored.value).expect("JSON");
    object["data"]["a b"] = "1".into();
    object["metadata"]["finalizers"][0] = "a b".into();
    let write = Write::put(key, object.to_string(), Expect::Revision(stored.mod_revision));
    running.store.write(write).await.expect("stored as no server would today");

    let merge = async |patch: Value| admin.merge(&CONFIG_MAPS, Some("shop"), "old", patch).await;
    let changed = merge(json!({ "metadata": { "labels": { "a": "b" } }, "data": { "value": "2" } })).await;
    assert_eq!(changed.expect("beside it")["data"], json!({ "value": "2", "a b": "1" }));
    for (made_worse, field) in [
        (json!({ "data": { "c d": "1" } }), "data[c d]"),
        (json!({ "metadata": { "finalizers": ["a b", "c d"] } }), "metadata.finalizers"),
    ] {
        let error = merge(made_worse).await.expect_err(field);
        assert!(error.message().contains(field), "{error}");
        assert!(!error.message().contains("data[a b]"), "{error}");
    }
    merge(json!({ "immutable": true })).await.expect("beside it");
    let error = merge(json!({ "data": { "value": "3" } })).await.expect_err("a rule about the change");
    assert!(error.message().contains("field is immutable"), "{error}");
    merge(json!({ "metadata": { "finalizers": ["a b"] } })).await.expect("the other one is gone");
    admin.delete(&CONFIG_MAPS, Some("shop"), "old", None).await.expect("marked");
    merge(json!({ "metadata": { "finalizers": null } })).await.expect("the last one");
    admin.get(&CONFIG_MAPS, Some("shop"), "old").await.expect_err("it is gone");
    running.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_when_it_is_finalized() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let going = admin.delete(&NAMESPACES, None, "shop", None).await.expect("asked");
    assert_eq!(going["status"]["phase"], "Terminating");
    let error = admin.create(&CONFIG_MAPS, Some("shop"), config_map("a", "1")).await.expect_err("too late");
    assert_eq!(
        error.message(),
        "configmaps \"a\" is forbidden: unable to create new content in namespace shop because it is being terminated"
    );
    let mut last = going.clone();
    last["spec"]["finalizers"] = json!([]);
    admin.update(&NAMESPACES, &last, "finalize").await.expect("finalized");
    assert!(admin.get(&NAMESPACES, None, "shop").await.expect_err("gone").is_not_found());
    let error = admin.delete(&NAMESPACES, None, "kube-system", None).await.expect_err("never");
    assert_eq!(error.message(), "namespaces \"kube-system\" is forbidden: this namespace may not be deleted");
    running.stop().await;
}

#[tokio::test]
async fn events_are_one_kind_under_two_names() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let event = json!({
        "metadata": { "name": "web.1", "namespace": "default" },
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "web" },
        "reason": "Started", "message": "it runs", "type": "Normal", "source": { "component": "kubelet" },
    });
    admin.create(&EVENTS, Some("default"), event).await.expect("made");
    let seen = admin.get(&NEW_EVENTS, Some("default"), "web.1").await.expect("the same");
    assert_eq!(seen["apiVersion"], "events.k8s.io/v1");
    assert_eq!((&seen["note"], &seen["regarding"]["name"]), (&json!("it runs"), &json!("web")));
    running.stop().await;
}

#[tokio::test]
async fn ephemeral_containers_come_by_their_subresource_alone() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let debugger = json!({ "name": "debugger", "image": "busybox" });
    let mut born = pod("born");
    born["spec"]["ephemeralContainers"] = json!([debugger]);
    let error = admin.create(&PODS, Some("shop"), born).await.expect_err("not at birth");
    assert!(error.message().contains("spec.ephemeralContainers: Forbidden: cannot be set on create"));

    let mut made = admin.create(&PODS, Some("shop"), pod("web")).await.expect("a pod");
    made["spec"]["ephemeralContainers"] = json!([debugger]);
    admin.update(&PODS, &made, "").await.expect_err("not by an ordinary update");
    let labels = std::mem::replace(&mut made["metadata"]["labels"], json!({ "new": "label" }));
    let debugged = admin.update(&PODS, &made, "ephemeralcontainers").await.expect("added");
    assert_eq!(debugged["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"], "File");
    assert_eq!(debugged["metadata"]["labels"], labels, "nothing else changes");
    let mut emptied = debugged.clone();
    emptied["spec"]["ephemeralContainers"] = json!([]);
    let error = admin.update(&PODS, &emptied, "ephemeralcontainers").await.expect_err("they stay");
    assert!(error.message().contains("may not be removed"), "{}", error.message());
    running.stop().await;
}
