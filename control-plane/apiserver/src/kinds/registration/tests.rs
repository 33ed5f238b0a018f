use serde_json::{Value, json};

use crate::kinds::tests::{created, refused, with};

const WEBHOOK: &str = "admissionregistration.k8s.io/validatingwebhookconfigurations";
const MUTATING: &str = "admissionregistration.k8s.io/mutatingwebhookconfigurations";
const POLICY: &str = "admissionregistration.k8s.io/validatingadmissionpolicies";
const BINDING: &str = "admissionregistration.k8s.io/validatingadmissionpolicybindings";
const MUTATION: &str = "admissionregistration.k8s.io/mutatingadmissionpolicies";

fn pods() -> Value {
    json!([{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }])
}

fn webhook() -> Value {
    json!({
        "metadata": { "name": "check" },
        "webhooks": [{
            "name": "check.example.com", "rules": pods(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": { "service": { "name": "check", "namespace": "a" } },
        }],
    })
}

fn policy() -> Value {
    json!({
        "metadata": { "name": "check" },
        "spec": {
            "matchConstraints": { "resourceRules": pods() },
            "validations": [{ "expression": "object.spec.replicas <= 5" }],
        },
    })
}

#[test]
fn webhooks_get_upstreams_defaults() {
    let made = created(MUTATING, webhook());
    let webhook = &made["webhooks"][0];
    for (field, value) in [
        ("failurePolicy", json!("Fail")),
        ("matchPolicy", json!("Equivalent")),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({})),
        ("timeoutSeconds", json!(10)),
        ("reinvocationPolicy", json!("Never")),
    ] {
        assert_eq!(webhook[field], value, "{field}");
    }
    assert_eq!(webhook["rules"][0]["scope"], "*");
    assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(created(WEBHOOK, self::webhook())["webhooks"][0].get("reinvocationPolicy"), None);
}

#[test]
fn bad_webhooks_are_told_where() {
    let changed = |field: &str, value: Value| with(webhook(), &format!("/webhooks/0/{field}"), value);
    refused(WEBHOOK, webhook(), &[]);
    refused(
        WEBHOOK,
        changed("name", json!("check")),
        &[
            "webhooks[0].name: Invalid value: \"check\": should be a domain with at least three segments separated by dots",
        ],
    );
    refused(
        WEBHOOK,
        changed("sideEffects", json!("Some")),
        &[
            "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
        ],
    );
    refused(
        WEBHOOK,
        changed("timeoutSeconds", json!(31)),
        &[
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ],
    );
    refused(
        WEBHOOK,
        changed("admissionReviewVersions", json!(["v2"])),
        &[
            "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
        ],
    );
    refused(
        WEBHOOK,
        changed("rules/0/operations", json!(["*", "READ"])),
        &[
            "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"READ\"]: if '*' is present, must not specify other \
             operations",
            "webhooks[0].rules[0].operations[1]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \
             \"CREATE\", \"DELETE\", \"UPDATE\"",
        ],
    );
    refused(
        WEBHOOK,
        changed("rules/0/resources", json!(["pods/*", "pods/log", "*"])),
        &[
            "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
        ],
    );
    refused(
        WEBHOOK,
        changed("matchConditions", json!([{ "name": "a", "expression": " " }])),
        &["webhooks[0].matchConditions[0].expression: Required value"],
    );
}

#[test]
fn bad_policies_are_told_where() {
    let spec = |field: &str, value: Value| with(policy(), &format!("/spec/{field}"), value);
    refused(POLICY, policy(), &[]);
    refused(
        POLICY,
        spec("validations", json!([])),
        &[
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
            "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
        ],
    );
    refused(
        POLICY,
        spec("matchConstraints", json!({})),
        &["spec.matchConstraints.resourceRules: Required value"],
    );
    refused(
        POLICY,
        spec("validations/0", json!({ "expression": "true", "message": "a\nb", "reason": "Bored" })),
        &[
            "spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks",
            "spec.validations[0].reason: Unsupported value: \"Bored\": supported values: \"Forbidden\", \"Invalid\", \
             \"RequestEntityTooLarge\", \"Unauthorized\"",
        ],
    );
    refused(
        POLICY,
        spec("paramKind", json!({ "apiVersion": "a/b/c" })),
        &[
            "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            "spec.paramKind.kind: Required value",
        ],
    );
}

#[test]
fn mutations_say_how_they_patch() {
    let of = |mutation: Value| {
        let mut policy = policy();
        policy["spec"]["validations"].take();
        with(policy, "/spec/mutations", json!([mutation]))
    };
    refused(MUTATION, of(json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": "[]" } })), &[]);
    refused(MUTATION, of(json!({})), &["spec.mutations[0].patchType: Required value"]);
    refused(
        MUTATION,
        of(json!({ "patchType": "ApplyConfiguration" })),
        &[
            "spec.mutations[0].applyConfiguration: Required value: must be specified when patchType is ApplyConfiguration",
        ],
    );
}

#[test]
fn bindings_name_a_policy_and_what_follows() {
    let binding = |spec: Value| json!({ "metadata": { "name": "check" }, "spec": spec });
    refused(BINDING, binding(json!({ "policyName": "check", "validationActions": ["Deny", "Audit"] })), &[]);
    refused(
        BINDING,
        binding(json!({ "policyName": "check", "validationActions": ["Deny", "Warn"] })),
        &[
            "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn (repeating the \
             same validation failure information in the API response and headers serves no purpose)",
        ],
    );
    refused(
        BINDING,
        binding(json!({ "paramRef": {} })),
        &[
            "spec.policyName: Required value",
            "spec.paramRef: Required value: one of name or selector must be specified",
            "spec.paramRef.parameterNotFoundAction: Required value",
            "spec.validationActions: Required value: at least one validation action is required",
        ],
    );
}
