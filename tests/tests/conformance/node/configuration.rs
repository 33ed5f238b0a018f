//! ConfigMaps and Secrets as objects. (Texts of sig-storage on those that never change are with it.)

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    coverage::texts,
    steps::{counted, create, delete_all, list, patch, try_create, update, watch_labels},
    support::{refused, test, unique},
};

texts! {
    "ConfigMap lifecycle" => should_run_through_a_configmap_lifecycle,
    "ConfigMap Update" => should_update_configmap_successfully,
    "ConfigMap, with empty-key" => should_fail_to_create_configmap_with_empty_key,
    "Secret patching" => should_patch_a_secret,
    "Secrets, with empty-key" => should_fail_to_create_secret_due_to_empty_secret_key,
}

/// ConfigMap, with empty-key
#[test]
fn should_fail_to_create_configmap_with_empty_key() {
    test(async |bed| {
        let map = json!({ "metadata": { "name": unique("empty-key") }, "data": { "": "value" } });
        refused(try_create(&bed.api::<ConfigMap>(), map).await, 422, "Invalid");
    });
}

/// ConfigMap Update
#[test]
fn should_update_configmap_successfully() {
    test(async |bed| {
        let (name, maps) = (unique("updated"), bed.api::<ConfigMap>());
        create(&maps, json!({ "metadata": { "name": name } })).await;
        update(&maps, &name, |map| {
            map.data = Some(BTreeMap::from([("data".into(), "value".into())]));
        })
        .await;
        let read = maps.get(&name).await.expect("the map is read");
        assert_eq!(read.data.unwrap_or_default()["data"], "value");
    });
}

/// ConfigMap lifecycle
#[test]
fn should_run_through_a_configmap_lifecycle() {
    test(async |bed| {
        let (name, maps) = (unique("lifecycle"), bed.api::<ConfigMap>());
        let selector = format!("static={name}");
        let mut events = watch_labels(&maps, &selector).await;
        let metadata = json!({ "name": name, "labels": { "static": name } });
        create(&maps, json!({ "metadata": metadata, "data": { "valueName": "value" } })).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;

        let change =
            json!({ "metadata": { "labels": { "patched": "yes" } }, "data": { "valueName": "value1" } });
        patch(&maps, &name, change).await;
        events.until("MODIFIED", |seen| seen.labels().contains_key("patched")).await;
        let read = maps.get(&name).await.expect("the map is read");
        assert_eq!(read.labels()["patched"], "yes");
        assert_eq!(read.data.unwrap_or_default()["valueName"], "value1");
        let listed = list(&bed.all::<ConfigMap>(), &selector).await;
        let [listed] = &*listed else { panic!("{listed:?}") };
        assert_eq!(listed.data.as_ref().map(|data| &*data["valueName"]), Some("value1"));

        delete_all(&maps, &selector).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        counted(&bed.all::<ConfigMap>(), &selector, 0).await;
    });
}

/// Secrets, with empty-key
#[test]
fn should_fail_to_create_secret_due_to_empty_secret_key() {
    test(async |bed| {
        let secret = json!({ "metadata": { "name": unique("empty-key") }, "data": { "": "dmFsdWUtMQ==" } });
        refused(try_create(&bed.api::<Secret>(), secret).await, 422, "Invalid");
    });
}

/// Secret patching
#[test]
fn should_patch_a_secret() {
    test(async |bed| {
        let (name, secrets) = (unique("patched"), bed.api::<Secret>());
        let (selector, everywhere) = (format!("test={name}"), bed.all::<Secret>());
        assert_eq!(list(&everywhere, &selector).await.len(), 0);
        let metadata = json!({ "name": name, "labels": { "test": name } });
        let secret = json!({ "metadata": metadata, "data": { "key": "dmFsdWU=" }, "type": "Opaque" });
        create(&secrets, secret).await;
        assert_eq!(list(&everywhere, &selector).await.len(), 1);

        let change =
            json!({ "metadata": { "labels": { "patched": "true" } }, "data": { "key": "dmFsdWUx" } });
        patch(&secrets, &name, change).await;
        let found = list(&everywhere, &format!("{selector},patched=true")).await;
        let [found] = &*found else { panic!("{found:?}") };
        let value = ByteString(b"value1".to_vec());
        assert_eq!(
            (found.name_any(), found.data.as_ref().and_then(|data| data.get("key"))),
            (name, Some(&value))
        );

        delete_all(&secrets, &format!("{selector},patched=true")).await;
        counted(&everywhere, &selector, 0).await;
    });
}
