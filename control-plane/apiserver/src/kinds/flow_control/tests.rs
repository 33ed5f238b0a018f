use super::*;
use crate::kinds::tests::{created, refused, with};

const SCHEMA: &str = "flowcontrol.apiserver.k8s.io/flowschemas";
const LEVEL: &str = "flowcontrol.apiserver.k8s.io/prioritylevelconfigurations";

fn schema() -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "priorityLevelConfiguration": { "name": "workload-low" },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": "ann" } }],
                "resourceRules": [{
                    "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                }],
            }],
        },
    })
}

fn level(queuing: Value) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": { "type": "Limited", "limited": { "limitResponse": { "type": "Queue", "queuing": queuing } } },
    })
}

#[test]
fn defaults_are_upstreams() {
    assert_eq!(created(SCHEMA, schema())["spec"]["matchingPrecedence"], 1000);
    let limited = &created(LEVEL, level(json!({})))["spec"]["limited"];
    assert_eq!(limited["nominalConcurrencyShares"], 30);
    assert_eq!(
        limited["limitResponse"]["queuing"],
        json!({ "handSize": 8, "queues": 64, "queueLengthLimit": 50 })
    );
}

#[test]
fn bad_schemas_are_told_where() {
    let rule = |field: &str, value: Value| with(schema(), &format!("/spec/rules/0/{field}"), value);
    refused(SCHEMA, schema(), &[]);
    refused(
        SCHEMA,
        with(schema(), "/spec/matchingPrecedence", json!(1)),
        &[
            "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
        ],
    );
    refused(
        SCHEMA,
        rule("subjects", json!([{ "kind": "Group", "user": { "name": "ann" } }])),
        &[
            "spec.rules[0].subjects[0].user: Forbidden: user is forbidden when subject kind is not 'User'",
            "spec.rules[0].subjects[0].group: Required value: group is required when subject kind is 'Group'",
        ],
    );
    refused(
        SCHEMA,
        rule("resourceRules/0/verbs", json!(["*", "get"])),
        &[
            "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify \
             other verbs",
        ],
    );
    refused(
        SCHEMA,
        rule("resourceRules", json!([])),
        &[
            "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
        ],
    );
    for (path, good) in
        [("/", true), ("/healthz/*", true), ("healthz", false), ("/a//b", false), ("/a*", false), ("", false)]
    {
        assert_eq!(url(path).is_none(), good, "{path:?}");
    }
}

#[test]
fn bad_levels_are_told_where() {
    refused(LEVEL, level(json!({})), &[]);
    refused(
        LEVEL,
        level(json!({ "queues": 4, "handSize": 5 })),
        &[
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 5: should not be greater than queues (4)",
        ],
    );
    refused(
        LEVEL,
        level(json!({ "queues": 512, "handSize": 8 })),
        &[
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and \
             handSize 8 should not be greater than 60",
        ],
    );
    refused(
        LEVEL,
        with(level(json!({})), "/spec/type", json!("Exempt")),
        &[
            "spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'",
            "spec.limited: Forbidden: must be nil if the type is not Limited",
        ],
    );
}
