//! FlowSchemas and PriorityLevelConfigurations, as objects.

use kube::discovery::Scope;
use serde_json::{Value, json};

use crate::{coverage::texts, operations::Operations, support::test};

texts! {
    "Priority and Fairness FlowSchema API" => should_support_flowschema_api_operations,
    "Priority and Fairness PriorityLevelConfiguration API" =>
        should_support_prioritylevelconfiguration_api_operations,
}

fn kind(kind: &'static str, plural: &'static str, spec: Value) -> Operations<'static> {
    Operations {
        group: "flowcontrol.apiserver.k8s.io",
        version: "v1",
        kind,
        plural,
        scope: Scope::Cluster,
        subresources: &["status"],
        object: json!({ "spec": spec }),
    }
}

/// Two statuses of either kind.
fn statuses() -> [Value; 2] {
    [("PatchStatusFailed", "False"), ("StatusUpdateFailed", "True")].map(|(kind, status)| {
        json!({ "conditions": [{ "type": kind, "status": status, "reason": "Conformance", "message": "by a test" }] })
    })
}

/// Priority and Fairness FlowSchema API
#[test]
fn should_support_flowschema_api_operations() {
    // Matches nobody: the level does not exist, and the precedence is the last.
    let schemas = kind(
        "FlowSchema",
        "flowschemas",
        json!({
            "matchingPrecedence": 10_000,
            "priorityLevelConfiguration": { "name": "conformance-absent" },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "conformance-nobody" } }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            }],
        }),
    );
    test(async |bed| {
        schemas.check(bed).await;
        let [patched, updated] = statuses();
        schemas.check_status(bed, patched, updated).await;
    });
}

/// Priority and Fairness PriorityLevelConfiguration API
#[test]
fn should_support_prioritylevelconfiguration_api_operations() {
    let levels = kind(
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        json!({ "type": "Limited", "limited": { "nominalConcurrencyShares": 2, "limitResponse": { "type": "Reject" } } }),
    );
    test(async |bed| {
        levels.check(bed).await;
        let [patched, updated] = statuses();
        levels.check_status(bed, patched, updated).await;
    });
}
