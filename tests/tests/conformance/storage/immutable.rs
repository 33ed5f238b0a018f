//! ConfigMaps and Secrets that are marked as never changing.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    steps::{Object, as_json, create, delete, gone, patch, try_patch},
    support::{refused, test, unique},
};

texts! {
    "ConfigMap Volume, immutability" => configmap_should_be_immutable_if_immutable_field_is_set,
    "Secrets Volume, immutability" => secrets_should_be_immutable_if_immutable_field_is_set,
}

/// Goes through what may still change; `data` gives the fields that hold a value.
async fn stays_as_it_is<K: Object>(api: &Api<K>, data: impl Fn(&str) -> Value) {
    let name = unique("immutable");
    let mut first = data("value-1");
    first["metadata"] = json!({ "name": name });
    create(api, first).await;
    patch(api, &name, data("value-2")).await;
    patch(api, &name, json!({ "immutable": true })).await;

    refused(try_patch(api, &name, data("value-3")).await, 422, "Invalid");
    for unmarked in [json!(false), Value::Null] {
        refused(try_patch(api, &name, json!({ "immutable": unmarked })).await, 422, "Invalid");
    }
    let labelled = patch(api, &name, json!({ "metadata": { "labels": { "label": "label-1-value" } } })).await;
    assert_eq!(labelled.labels()["label"], "label-1-value");
    assert_eq!(as_json(&api.get(&name).await.expect("the object is read"))["immutable"], true);
    delete(api, &name).await;
    gone(api, &name).await;
}

/// ConfigMap Volume, immutability
#[test]
fn configmap_should_be_immutable_if_immutable_field_is_set() {
    test(async |bed| {
        stays_as_it_is(&bed.api::<ConfigMap>(), |value| json!({ "data": { "data-1": value } })).await;
    });
}

/// Secrets Volume, immutability
#[test]
fn secrets_should_be_immutable_if_immutable_field_is_set() {
    test(async |bed| {
        stays_as_it_is(&bed.api::<Secret>(), |value| json!({ "stringData": { "data-1": value } })).await;
    });
}
