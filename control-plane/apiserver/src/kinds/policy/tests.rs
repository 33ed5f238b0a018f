use serde_json::{Value, json};

use crate::kinds::{
    tests::{created, kind},
    validate_create, validate_status, validate_update,
};

/// The fields that a new object is refused for, each with its reason.
#[track_caller]
fn check(name: &str, body: Value, expected: &[&str]) {
    let mut object = json!({ "metadata": { "name": "a", "namespace": "a" } });
    if !kind(name).namespaced {
        object = json!({ "metadata": { "name": "a" } });
    }
    object.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let errors = validate_create(kind(name), &created(name, object));
    let found: Vec<String> = errors.iter().map(|error| format!("{} {:?}", error.field, error.kind)).collect();
    assert_eq!(found, expected, "{body}");
}

#[test]
fn quotas() {
    let spec = |spec: Value| json!({ "spec": spec });
    let check = |body: Value, expected: &[&str]| check("resourcequotas", spec(body), expected);
    check(
        json!({ "hard": { "requests.cpu": "1", "pods": 10, "count/jobs.batch": "3", "requests.example.com/gpu": 2 } }),
        &[],
    );
    check(
        json!({ "hard": { "gpu": "1", "pods": "1500m", "requests.cpu": "-1" } }),
        &[
            "spec.hard[gpu] Invalid",
            "spec.hard[gpu] Invalid",
            "spec.hard[pods] Invalid",
            "spec.hard[requests.cpu] Invalid",
        ],
    );
    check(json!({ "hard": { "storage": "1" } }), &["spec.hard[storage] Invalid"]);
    check(json!({ "hard": { "pods": "1" }, "scopes": ["BestEffort"] }), &[]);
    check(json!({ "hard": { "cpu": "1" }, "scopes": ["BestEffort"] }), &["spec.scopes Invalid"]);
    check(json!({ "scopes": ["Terminating", "NotTerminating"] }), &["spec.scopes Invalid"]);
    check(json!({ "scopes": ["Some"] }), &["spec.scopes Invalid"]);
    let select = |term: Value| json!({ "scopeSelector": { "matchExpressions": [term] } });
    check(select(json!({ "scopeName": "PriorityClass", "operator": "In", "values": ["high"] })), &[]);
    let list = "spec.scopeSelector.matchExpressions";
    let at = |field: &str, kind: &str| format!("{list}.{field} {kind}");
    check(select(json!({ "scopeName": "PriorityClass", "operator": "In" })), &[&at("values", "Required")]);
    check(
        select(json!({ "scopeName": "BestEffort", "operator": "In", "values": ["a"] })),
        &[&at("operator", "Invalid")],
    );
    check(
        select(json!({ "scopeName": "Some", "operator": "Is" })),
        &[&at("scopeName", "Invalid"), &at("operator", "Invalid")],
    );
    let of = |scopes: Value| json!({ "metadata": { "name": "a", "namespace": "a" }, "spec": { "scopes": scopes } });
    let quotas = kind("resourcequotas");
    assert!(
        validate_update(quotas, &of(json!(["A", "B"])), &of(json!(["B", "A"])))
            .iter()
            .all(|it| it.field != "spec.scopes" || it.detail != "field is immutable")
    );
    assert!(
        validate_update(quotas, &of(json!(["A"])), &of(json!([])))
            .iter()
            .any(|it| it.detail == "field is immutable")
    );
    let mut used = of(json!([]));
    used["status"] = json!({ "used": { "pods": "-1" } });
    assert_eq!(validate_status(quotas, &used, &of(json!([])))[0].field, "status.used[pods]");
    assert!(validate_status(quotas, &used, &used).is_empty(), "as it was");
}

#[test]
fn limit_ranges() {
    let check = |limit: Value, expected: &[&str]| {
        let expected: Vec<String> = expected.iter().map(|rest| format!("spec.limits[0].{rest}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check("limitranges", json!({ "spec": { "limits": [limit] } }), &expected);
    };
    check(
        json!({ "type": "Container", "min": { "cpu": "100m" }, "max": { "cpu": "2" }, "default": { "cpu": "1" },
            "defaultRequest": { "cpu": "500m" }, "maxLimitRequestRatio": { "cpu": "4" } }),
        &[],
    );
    check(json!({ "type": "Thing" }), &["type Invalid"]);
    check(json!({ "type": "Pod", "default": { "cpu": "1" } }), &["default Forbidden"]);
    check(json!({ "type": "Pod", "min": { "cpu": "2" }, "max": { "cpu": "1" } }), &["min[cpu] Invalid"]);
    check(json!({ "type": "PersistentVolumeClaim", "max": { "storage": "1Gi" } }), &[]);
    check(json!({ "type": "PersistentVolumeClaim" }), &["limits Required"]);
    check(
        json!({ "type": "Container", "max": { "gpu": "1" } }),
        &[
            "max[gpu] Invalid",
            "max[gpu] Invalid",
            "default[gpu] Invalid",
            "default[gpu] Invalid",
            "defaultRequest[gpu] Invalid",
            "defaultRequest[gpu] Invalid",
        ],
    );
    check(
        json!({ "type": "Container", "max": { "cpu": "1" }, "default": { "cpu": "2" }, "defaultRequest": { "cpu": "3" } }),
        &["defaultRequest[cpu] Invalid", "defaultRequest[cpu] Invalid", "default[cpu] Invalid"],
    );
    check(
        json!({ "type": "Pod", "min": { "cpu": "1" }, "max": { "cpu": "2" }, "maxLimitRequestRatio": { "cpu": "3" } }),
        &["maxLimitRequestRatio[cpu] Invalid"],
    );
    check(
        json!({ "type": "Pod", "maxLimitRequestRatio": { "cpu": "500m" } }),
        &["maxLimitRequestRatio[cpu] Invalid"],
    );
    check(
        json!({ "type": "Container", "default": { "example.com/a": "2" }, "defaultRequest": { "example.com/a": "1" } }),
        &["defaultRequest[example.com/a] Invalid"],
    );
}

#[test]
fn budgets_classes_and_runtimes() {
    let budget = |spec: Value, expected: &[&str]| {
        check("policy/poddisruptionbudgets", json!({ "spec": spec }), expected);
    };
    budget(json!({ "minAvailable": "50%", "unhealthyPodEvictionPolicy": "AlwaysAllow" }), &[]);
    budget(json!({ "minAvailable": 1, "maxUnavailable": 1 }), &["spec Invalid"]);
    budget(json!({ "minAvailable": "101%" }), &["spec.minAvailable Invalid"]);
    budget(json!({ "maxUnavailable": -1 }), &["spec.maxUnavailable Invalid"]);
    budget(
        json!({ "unhealthyPodEvictionPolicy": "Never" }),
        &["spec.unhealthyPodEvictionPolicy NotSupported"],
    );
    let class = "scheduling.k8s.io/priorityclasses";
    check(class, json!({ "value": 10 }), &[]);
    check(class, json!({ "value": 2_000_000_000 }), &["value Forbidden"]);
    check(class, json!({ "value": 1, "preemptionPolicy": "Some" }), &["preemptionPolicy NotSupported"]);
    let runtime = "node.k8s.io/runtimeclasses";
    check(runtime, json!({ "handler": "runc", "overhead": { "podFixed": { "cpu": "100m" } } }), &[]);
    check(
        runtime,
        json!({
            "handler": "A", "overhead": { "podFixed": { "cpu": "-1" } },
            "scheduling": { "nodeSelector": { "a b": "c" }, "tolerations": [{ "key": "a", "operator": "Is" }] },
        }),
        &[
            "handler Invalid",
            "overhead.limits[cpu] Invalid",
            "scheduling.nodeSelector Invalid",
            "scheduling.tolerations[0].operator NotSupported",
        ],
    );
}
