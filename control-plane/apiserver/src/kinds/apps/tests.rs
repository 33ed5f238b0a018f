use serde_json::{Value, json};

use crate::kinds::tests::{refused, with};

fn workload(kind: &str) -> Value {
    json!({
        "kind": kind, "apiVersion": "apps/v1", "metadata": { "name": "w", "namespace": "a" },
        "spec": {
            "selector": { "matchLabels": { "app": "w" } },
            "template": {
                "metadata": { "labels": { "app": "w" } },
                "spec": { "containers": [{ "name": "c", "image": "i:1" }] },
            },
        },
    })
}

#[test]
fn bad_stateful_sets_are_told_where() {
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("/spec/podManagementPolicy", json!("Parallel"), &[]),
        ("/spec/updateStrategy", json!({ "type": "OnDelete" }), &[]),
        (
            "/spec/updateStrategy",
            json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "50%" } }),
            &[],
        ),
        (
            "/spec/podManagementPolicy",
            json!("Random"),
            &["spec.podManagementPolicy: Invalid value: \"Random\": must be 'OrderedReady' or 'Parallel'"],
        ),
        (
            "/spec/updateStrategy",
            json!({ "type": "Recreate" }),
            &[
                "spec.updateStrategy: Invalid value: {\"type\":\"Recreate\"}: must be 'RollingUpdate' or 'OnDelete'",
            ],
        ),
        (
            "/spec/updateStrategy",
            json!({ "type": "OnDelete", "rollingUpdate": {} }),
            &[
                "spec.updateStrategy.rollingUpdate: Invalid value: {}: only allowed for updateStrategy 'RollingUpdate'",
            ],
        ),
        (
            "/spec/updateStrategy/rollingUpdate/partition",
            json!(-1),
            &[
                "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
            ],
        ),
        (
            "/spec/updateStrategy/rollingUpdate/maxUnavailable",
            json!(0),
            &["spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0"],
        ),
        (
            "/spec/ordinals/start",
            json!(-1),
            &["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            "/spec/persistentVolumeClaimRetentionPolicy/whenScaled",
            json!("Keep"),
            &[
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\": supported values: \
                 \"Retain\", \"Delete\"",
            ],
        ),
    ];
    for (pointer, value, expected) in rows {
        refused("apps/statefulsets", with(workload("StatefulSet"), pointer, value), expected);
    }
}

#[test]
fn a_stateful_set_mounts_what_its_claims_become() {
    let mounts = json!([{ "name": "data", "mountPath": "/data" }]);
    let set = with(workload("StatefulSet"), "/spec/template/spec/containers/0/volumeMounts", mounts);
    refused(
        "apps/statefulsets",
        set.clone(),
        &["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\""],
    );
    let claim = json!([{ "metadata": { "name": "data" }, "spec": {} }]);
    refused("apps/statefulsets", with(set, "/spec/volumeClaimTemplates", claim), &[]);
}

#[test]
fn bad_daemon_sets_are_told_where() {
    let rolling = |unavailable: Value, surge: Value| json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } });
    let rows: Vec<(Value, &[&str])> = vec![
        (json!({ "type": "OnDelete" }), &[]),
        (rolling(json!(0), json!("10%")), &[]),
        (
            json!({ "type": "Recreate" }),
            &[
                "spec.updateStrategy: Unsupported value: {\"type\":\"Recreate\"}: supported values: \"RollingUpdate\", \
                 \"OnDelete\"",
            ],
        ),
        (
            rolling(json!(0), json!("0%")),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ],
        ),
        (
            rolling(json!(1), json!(1)),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ],
        ),
        (
            rolling(json!(0), json!("101%")),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"101%\": must not be greater than 100%",
            ],
        ),
    ];
    for (strategy, expected) in rows {
        let set = with(workload("DaemonSet"), "/spec/updateStrategy", strategy);
        refused("apps/daemonsets", set, expected);
    }
}
