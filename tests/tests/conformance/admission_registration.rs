//! Webhook configurations and admission policies, as objects: nothing here calls or evaluates them.
//!
//! Each names an API group that does not exist, so that no other test's requests are concerned once they are obeyed.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{Api, Resource, api::PostParams, discovery::Scope};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::Operations,
    support::{Bed, create, delete, object, test, unique},
};

texts! {
    "Admission webhook, discovery document" => should_include_webhook_resources_in_discovery_documents,
    "Validating Admission webhook, create and update validating webhook configuration with matchConditions" =>
        should_be_able_to_create_and_update_validating_webhook_configurations_with_match_conditions,
    "Mutating Admission webhook, create and update mutating webhook configuration with matchConditions" =>
        should_be_able_to_create_and_update_mutating_webhook_configurations_with_match_conditions,
    "ValidatingAdmissionPolicy API" => should_support_validatingadmissionpolicy_api_operations,
    "ValidatingadmissionPolicyBinding API" => should_support_validatingadmissionpolicybinding_api_operations,
    "MutatingAdmissionPolicy API" => should_support_mutatingadmissionpolicy_api_operations,
    "MutatingAdmissionPolicyBinding API" => should_support_mutatingadmissionpolicybinding_api_operations,
}

/// Requests that nobody makes.
fn rule() -> Value {
    json!({
        "apiGroups": ["conformance.example.com"],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["nothings"],
    })
}

fn webhook(conditions: Value) -> Value {
    json!({
        "name": "hook.conformance.example.com",
        "clientConfig": { "url": "https://127.0.0.1:1/never" },
        "rules": [rule()],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore",
        "matchConditions": conditions,
    })
}

fn kind(
    kind: &'static str,
    plural: &'static str,
    subresources: &'static [&'static str],
    object: Value,
) -> Operations<'static> {
    Operations {
        group: "admissionregistration.k8s.io",
        version: "v1",
        kind,
        plural,
        scope: Scope::Cluster,
        subresources,
        object,
    }
}

fn webhook_kinds() -> [Operations<'static>; 2] {
    let object = json!({ "webhooks": [webhook(json!([]))] });
    [
        kind("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", &[], object.clone()),
        kind("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", &[], object),
    ]
}

/// Admission webhook, discovery document
#[test]
fn should_include_webhook_resources_in_discovery_documents() {
    test(async |bed| {
        for kind in webhook_kinds() {
            kind.is_discovered(bed).await;
        }
    });
}

/// What the texts about listing and changing webhooks do to the objects.
#[test]
fn webhook_configurations_support_api_operations() {
    test(async |bed| {
        for kind in webhook_kinds() {
            kind.check(bed).await;
        }
    });
}

/// Creates and updates a configuration, and reads the conditions back.
async fn keeps_match_conditions<K>(bed: &Bed)
where
    K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let (configurations, name): (Api<K>, _) = (bed.all(), unique("match-conditions"));
    let first =
        json!([{ "name": "expression-1", "expression": "object.metadata.namespace == 'production'" }]);
    create(&configurations, json!({ "metadata": { "name": name }, "webhooks": [webhook(first.clone())] }))
        .await;
    let mut found = json!(configurations.get(&name).await.expect("found"));
    assert_eq!(found["webhooks"][0]["matchConditions"], first);

    let second = json!([
        { "name": "expression-1", "expression": "object.metadata.namespace == 'production'" },
        { "name": "expression-2", "expression": "request.userInfo.username != 'somebody'" },
    ]);
    found["webhooks"][0]["matchConditions"] = second.clone();
    let post = PostParams::default();
    configurations.replace(&name, &post, &object(found)).await.expect("updated");
    let found = json!(configurations.get(&name).await.expect("found"));
    assert_eq!(found["webhooks"][0]["matchConditions"], second);
    delete(&configurations, &name).await;
}

/// Validating Admission webhook, create and update validating webhook configuration with matchConditions
#[test]
fn should_be_able_to_create_and_update_validating_webhook_configurations_with_match_conditions() {
    test(async |bed| keeps_match_conditions::<ValidatingWebhookConfiguration>(bed).await);
}

/// Mutating Admission webhook, create and update mutating webhook configuration with matchConditions
#[test]
fn should_be_able_to_create_and_update_mutating_webhook_configurations_with_match_conditions() {
    test(async |bed| keeps_match_conditions::<MutatingWebhookConfiguration>(bed).await);
}

/// ValidatingAdmissionPolicy API
#[test]
fn should_support_validatingadmissionpolicy_api_operations() {
    let policies = kind(
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        &["status"],
        json!({ "spec": {
            "failurePolicy": "Ignore",
            "matchConstraints": { "resourceRules": [rule()] },
            "validations": [{ "expression": "object.spec.replicas <= 100" }],
        } }),
    );
    let condition = |kind: &str| {
        json!({ "conditions": [{
            "type": kind, "status": "True", "reason": "Conformance", "message": "by a test",
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }] })
    };
    test(async |bed| {
        policies.check(bed).await;
        policies.check_status(bed, condition("StatusPatched"), condition("StatusUpdated")).await;
    });
}

/// ValidatingadmissionPolicyBinding API
#[test]
fn should_support_validatingadmissionpolicybinding_api_operations() {
    let bindings = kind(
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        &[],
        json!({ "spec": { "policyName": "conformance-absent", "validationActions": ["Deny"] } }),
    );
    test(async |bed| bindings.check(bed).await);
}

/// MutatingAdmissionPolicy API
#[test]
fn should_support_mutatingadmissionpolicy_api_operations() {
    let policies = kind(
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        &[],
        json!({ "spec": {
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "Never",
            "matchConstraints": { "resourceRules": [rule()] },
            "mutations": [{
                "patchType": "ApplyConfiguration",
                "applyConfiguration": { "expression": "Object{}" },
            }],
        } }),
    );
    test(async |bed| policies.check(bed).await);
}

/// MutatingAdmissionPolicyBinding API
#[test]
fn should_support_mutatingadmissionpolicybinding_api_operations() {
    let bindings = kind(
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        &[],
        json!({ "spec": { "policyName": "conformance-absent" } }),
    );
    test(async |bed| bindings.check(bed).await);
}
