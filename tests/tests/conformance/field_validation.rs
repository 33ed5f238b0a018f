//! Field validation: what a typed object has too much of, or twice.

use serde_json::Value;

use crate::{
    coverage::texts,
    support::{Answer, Bed, test},
};

texts! {
    "Server side field validation, typed object" => should_detect_unknown_and_duplicate_fields_of_a_typed_object,
    "Server side field validation, typed unknown metadata" =>
        should_detect_unknown_metadata_fields_of_a_typed_object,
}

/// Posts a Deployment, as text, since a map could not hold a field twice.
async fn post(bed: &Bed, validation: &str, metadata: &str, spec: &str) -> Answer {
    let namespace = &bed.namespace;
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments?fieldValidation={validation}");
    let body = format!(
        r#"{{ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {{ "name": "web"{metadata} }},
             "spec": {{ "selector": {{ "matchLabels": {{ "app": "web" }} }}{spec}, "template": {{
               "metadata": {{ "labels": {{ "app": "web" }} }},
               "spec": {{ "containers": [{{ "name": "c", "image": "registry.test/web:1" }}] }} }} }} }}"#
    );
    bed.send("POST", &path, &[("content-type", "application/json")], body).await
}

/// Server side field validation, typed object
#[test]
fn should_detect_unknown_and_duplicate_fields_of_a_typed_object() {
    test(async |bed| {
        let spec = r#", "unknownField": "foo", "replicas": 2, "replicas": 3"#;
        let answer = post(bed, "Strict", "", spec).await;
        is_refused(
            &answer,
            r#"strict decoding error: unknown field "spec.unknownField", duplicate field "spec.replicas""#,
        );
        // Who asks for warnings gets the object, with the last value, and is told.
        let answer = post(bed, "Warn", "", spec).await;
        assert_eq!((answer.code, &answer.json()["spec"]["replicas"]), (201, &Value::from(3)));
        let warnings: Vec<_> = answer.headers.get_all("warning").iter().collect();
        let warnings = format!("{warnings:?}");
        assert!(warnings.contains("spec.unknownField") && warnings.contains("spec.replicas"), "{warnings}");
    });
}

/// Server side field validation, typed unknown metadata
#[test]
fn should_detect_unknown_metadata_fields_of_a_typed_object() {
    test(async |bed| {
        let answer = post(bed, "Strict", r#", "unknownMeta": "foo""#, "").await;
        is_refused(&answer, r#"strict decoding error: unknown field "metadata.unknownMeta""#);
    });
}

#[track_caller]
fn is_refused(answer: &Answer, message: &str) {
    let status = answer.json();
    assert_eq!((answer.code, &status["reason"]), (400, &Value::from("BadRequest")), "{status}");
    assert!(status["message"].as_str().is_some_and(|said| said.contains(message)), "{status}");
}
