use serde_json::{Value, json};

use super::*;
use crate::kinds::tests::{created, refused, update_refused, with};

fn volume() -> Value {
    json!({
        "kind": "PersistentVolume", "apiVersion": "v1", "metadata": { "name": "v" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "hostPath": { "path": "/data" },
        },
    })
}

fn affinity(key: &str) -> Value {
    let term = json!({ "matchExpressions": [{ "key": key, "operator": "In", "values": ["a"] }] });
    json!({ "required": { "nodeSelectorTerms": [term] } })
}

#[test]
fn bad_volumes_are_told_where() {
    let of = |source: &str, value: Value| {
        let mut volume = volume();
        volume["spec"].drop_field("hostPath");
        with(volume, &format!("/spec/{source}"), value)
    };
    let at = |pointer: &str, value: Value| with(volume(), pointer, value);
    let with_affinity = with(of("local", json!({ "path": "/d" })), "/spec/nodeAffinity", affinity("zone"));
    let rows: Vec<(Value, &[&str])> = vec![
        (volume(), &[]),
        (with_affinity, &[]),
        (of("csi", json!({ "driver": "csi.Example.com", "volumeHandle": "1" })), &[]),
        (of("nfs", json!({ "server": "s", "path": "/" })), &[]),
        (
            of("local", json!({ "path": "/d" })),
            &["spec.nodeAffinity: Required value: Local volume requires node affinity"],
        ),
        (of("hostPath", json!({ "path": "" })), &["spec.hostPath.path: Required value"]),
        (
            of("nfs", json!({ "server": "", "path": "d" })),
            &[
                "spec.nfs.server: Required value",
                "spec.nfs.path: Invalid value: \"d\": must be an absolute path",
            ],
        ),
        (
            of("csi", json!({ "driver": "example.com", "nodePublishSecretRef": { "name": "n" } })),
            &[
                "spec.csi.volumeHandle: Required value",
                "spec.csi.nodePublishSecretRef.namespace: Required value",
            ],
        ),
        (
            at("/spec/nodeAffinity", json!({})),
            &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
        ),
        (
            at("/spec/capacity/cpu", json!("1")),
            &[
                "spec.capacity: Unsupported value: {\"cpu\":\"1\",\"storage\":\"1Gi\"}: supported values: \"storage\"",
            ],
        ),
        (
            at("/spec/accessModes", json!(["ReadWriteOncePod", "ReadWriteOnce"])),
            &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"],
        ),
        (
            at("/spec/volumeAttributesClassName", json!("fast")),
            &["spec.csi: Required value: has to be specified when using volumeAttributesClassName"],
        ),
    ];
    for (volume, expected) in rows {
        refused("persistentvolumes", volume, expected);
    }
}

#[test]
fn where_a_volume_is_stands() {
    let at = |key: &str| with(volume(), "/spec/nodeAffinity", affinity(key));
    let beta = "failure-domain.beta.kubernetes.io/zone";
    update_refused("persistentvolumes", volume(), at("zone"), &[]);
    update_refused("persistentvolumes", at(beta), at("topology.kubernetes.io/zone"), &[]);
    update_refused("persistentvolumes", at("topology.kubernetes.io/zone"), at(beta), &["nodeAffinity: "]);
    update_refused("persistentvolumes", at("zone"), volume(), &["nodeAffinity: Invalid value: null"]);
}

fn claim(size: &str, capacity: &str) -> Value {
    let mut status = json!({ "phase": "Bound" });
    if !capacity.is_empty() {
        status["capacity"] = json!({ "storage": capacity });
    }
    json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": { "name": "c", "namespace": "a" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeName": "v", "volumeMode": "Filesystem",
            "resources": { "requests": { "storage": size } },
        },
        "status": status,
    })
}

#[test]
fn a_claim_may_ask_for_less_again_while_it_has_not_got_it() {
    for (from, to, capacity, good) in [
        ("1Gi", "2Gi", "1Gi", true),
        ("10Gi", "2Gi", "1Gi", true),
        ("10Gi", "1Gi", "1Gi", false),
        ("10Gi", "512Mi", "1Gi", false),
        ("10Gi", "1Gi", "", true),
    ] {
        let errors = update_claim(&claim(to, capacity), &claim(from, capacity));
        assert_eq!(errors.is_empty(), good, "{from} to {to} of {capacity}: {errors:?}");
    }
}

#[test]
fn both_fields_say_what_a_claim_is_filled_from() {
    let of = |field: &str, source: Value| {
        created("persistentvolumeclaims", with(claim("1Gi", ""), &format!("/spec/{field}"), source))
    };
    let both = |claim: Value| [claim["spec"]["dataSource"].clone(), claim["spec"]["dataSourceRef"].clone()];
    let snapshot = json!({ "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s" });
    let other = json!({ "apiGroup": "example.com", "kind": "Backup", "name": "b" });
    for field in ["dataSource", "dataSourceRef"] {
        assert_eq!(both(of(field, snapshot.clone())), [snapshot.clone(), snapshot.clone()], "{field}");
    }
    assert_eq!(both(of("dataSource", other.clone())), [Value::Null, Value::Null]);
    assert_eq!(both(of("dataSourceRef", other.clone())), [other.clone(), other.clone()]);
    let far = with(other.clone(), "/namespace", json!("b"));
    assert_eq!(both(of("dataSourceRef", far.clone())), [Value::Null, far]);
    refused(
        "persistentvolumeclaims",
        with(claim("1Gi", ""), "/spec/dataSourceRef", json!({ "kind": "Backup", "name": "b" })),
        &[
            "spec.dataSource: Invalid value: \"Backup\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            "spec.dataSourceRef: Invalid value: \"Backup\": must be 'PersistentVolumeClaim' when referencing the default \
             apiGroup",
        ],
    );
    let unlike = with(with(claim("1Gi", ""), "/spec/dataSource", snapshot), "/spec/dataSourceRef", other);
    refused(
        "persistentvolumeclaims",
        unlike,
        &["spec: Invalid value: \"spec.dataSource\": must match dataSourceRef"],
    );
}

#[test]
fn bad_drivers_are_told_where() {
    let driver = |pointer: &str, value: Value| {
        let driver =
            json!({ "kind": "CSIDriver", "apiVersion": "storage.k8s.io/v1", "metadata": { "name": "d" } });
        with(driver, pointer, value)
    };
    let tokens = json!([{ "audience": "a", "expirationSeconds": 60 }, { "audience": "a" }]);
    let rows: Vec<(&str, Value, &[&str])> = vec![
        ("/spec/fsGroupPolicy", json!("File"), &[]),
        (
            "/spec/fsGroupPolicy",
            json!("Some"),
            &["spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \
                 \"ReadWriteOnceWithFSType\""],
        ),
        (
            "/spec/tokenRequests",
            tokens,
            &[
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            ],
        ),
        (
            "/spec/volumeLifecycleModes",
            json!(["Lasting"]),
            &[
                "spec.volumeLifecycleModes: Unsupported value: \"Lasting\": supported values: \"Persistent\", \"Ephemeral\"",
            ],
        ),
        (
            "/spec/nodeAllocatableUpdatePeriodSeconds",
            json!(9),
            &[
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
            ],
        ),
    ];
    for (pointer, value, expected) in rows {
        refused("storage.k8s.io/csidrivers", driver(pointer, value), expected);
    }
    update_refused(
        "storage.k8s.io/csidrivers",
        driver("/spec/attachRequired", json!(true)),
        driver("/spec/attachRequired", json!(false)),
        &["spec.attachedRequired: Invalid value: false: field is immutable"],
    );
}

#[test]
fn bad_nodes_of_drivers_are_told_where() {
    let node = |drivers: Value| {
        json!({
            "kind": "CSINode", "apiVersion": "storage.k8s.io/v1", "metadata": { "name": "n" },
            "spec": { "drivers": drivers },
        })
    };
    let driver =
        |id: &str, count: i64| json!({ "name": "d", "nodeID": id, "allocatable": { "count": count } });
    refused("storage.k8s.io/csinodes", node(json!([driver("1", 5)])), &[]);
    refused(
        "storage.k8s.io/csinodes",
        node(json!([driver("", -1), { "name": "d", "nodeID": "1", "topologyKeys": ["a", "a"] }])),
        &[
            "spec.drivers[0].nodeID: Required value",
            "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
            "spec.drivers[1].name: Duplicate value: \"d\"",
            "spec.drivers[1]: Duplicate value: \"a\"",
        ],
    );
    let of = |id: &str, count: i64| node(json!([driver(id, count)]));
    update_refused("storage.k8s.io/csinodes", of("1", 5), of("1", 6), &[]);
    update_refused("storage.k8s.io/csinodes", of("1", 5), of("2", 5), &["spec.drivers: Invalid value"]);
}

#[test]
fn a_capacity_is_of_one_class_and_place() {
    let capacity = |class: &str, zone: &str| {
        json!({
            "kind": "CSIStorageCapacity", "apiVersion": "storage.k8s.io/v1",
            "metadata": { "name": "c", "namespace": "a" }, "storageClassName": class, "capacity": "1Gi",
            "nodeTopology": { "matchLabels": { "zone": zone } },
        })
    };
    const KIND: &str = "storage.k8s.io/csistoragecapacities";
    refused(KIND, capacity("fast", "a"), &[]);
    refused(
        KIND,
        with(capacity("fast", "a"), "/capacity", json!("-1")),
        &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"],
    );
    update_refused(
        KIND,
        capacity("fast", "a"),
        capacity("slow", "b"),
        &["nodeTopology: Invalid value", "storageClassName: Invalid value: \"slow\": field is immutable"],
    );
}
