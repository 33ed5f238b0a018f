use jiff::Timestamp;
use serde_json::{Value, json};

use super::{POD, spec};
use crate::kinds::tests::refused;

fn row(spec: Value, status: Value, deleted: bool) -> Vec<String> {
    let mut pod = json!({
        "metadata": { "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z" }, "spec": spec, "status": status,
    });
    if deleted {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
    }
    let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
    (POD.cells)(&pod, now)[1..4].iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
}

#[test]
fn rows_read_as_upstreams() {
    let one = || json!({ "containers": [{ "name": "a" }] });
    let two = || json!({ "containers": [{ "name": "a" }, { "name": "b" }] });
    let init =
        || json!({ "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }, { "name": "j" }] });
    let sidecar = || json!({ "containers": [{ "name": "a" }], "initContainers": [{ "name": "i", "restartPolicy": "Always" }] });
    let running = || json!({ "ready": true, "restartCount": 0, "state": { "running": {} } });
    let completed = || json!({ "ready": false, "restartCount": 0, "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } });
    let rows: Vec<(&str, Value, Value, bool, [&str; 3])> = vec![
        ("new", one(), json!({ "phase": "Pending" }), false, ["0/1", "Pending", "0"]),
        (
            "running",
            one(),
            json!({ "phase": "Running", "containerStatuses": [running()] }),
            false,
            ["1/1", "Running", "0"],
        ),
        (
            "creating",
            one(),
            json!({ "phase": "Pending", "containerStatuses": [{ "state": { "waiting": { "reason": "ContainerCreating" } } }] }),
            false,
            ["0/1", "ContainerCreating", "0"],
        ),
        (
            "crash loop",
            one(),
            json!({ "phase": "Running", "containerStatuses": [{ "restartCount": 4, "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                "lastState": { "terminated": { "finishedAt": "2026-01-01T00:04:00Z" } } }] }),
            false,
            ["0/1", "CrashLoopBackOff", "4 (60s ago)"],
        ),
        (
            "signal",
            one(),
            json!({ "phase": "Failed", "containerStatuses": [{ "state": { "terminated": { "exitCode": 137, "signal": 9 } } }] }),
            false,
            ["0/1", "Signal:9", "0"],
        ),
        (
            "first init container",
            init(),
            json!({ "phase": "Pending", "initContainerStatuses": [{ "name": "i", "state": { "running": {} } }, { "name": "j", "state": { "waiting": { "reason": "PodInitializing" } } }] }),
            false,
            ["0/1", "Init:0/2", "0"],
        ),
        (
            "init container failed",
            init(),
            json!({ "phase": "Failed", "initContainerStatuses": [{ "name": "i", "state": { "terminated": { "exitCode": 1, "reason": "Error" } } }] }),
            false,
            ["0/1", "Init:Error", "0"],
        ),
        (
            "sidecar counts",
            sidecar(),
            json!({ "phase": "Running", "initContainerStatuses": [{ "name": "i", "ready": true, "started": true, "restartCount": 2, "state": { "running": {} } }],
                "containerStatuses": [running()] }),
            false,
            ["2/2", "Running", "2"],
        ),
        (
            "completed",
            one(),
            json!({ "phase": "Succeeded", "containerStatuses": [completed()] }),
            false,
            ["0/1", "Completed", "0"],
        ),
        (
            "one completed, one ready",
            two(),
            json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }], "containerStatuses": [completed(), running()] }),
            false,
            ["1/2", "Running", "0"],
        ),
        (
            "one completed, pod not ready",
            two(),
            json!({ "phase": "Running", "containerStatuses": [completed(), running()] }),
            false,
            ["1/2", "NotReady", "0"],
        ),
        (
            "terminating",
            one(),
            json!({ "phase": "Running", "containerStatuses": [running()] }),
            true,
            ["1/1", "Terminating", "0"],
        ),
        (
            "lost",
            one(),
            json!({ "phase": "Running", "reason": "NodeLost", "containerStatuses": [running()] }),
            true,
            ["1/1", "Unknown", "0"],
        ),
        ("evicted", one(), json!({ "phase": "Failed", "reason": "Evicted" }), false, ["0/1", "Evicted", "0"]),
        (
            "gated",
            one(),
            json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "SchedulingGated" }] }),
            false,
            ["0/1", "SchedulingGated", "0"],
        ),
    ];
    for (name, spec, status, deleted, expected) in rows {
        assert_eq!(row(spec, status, deleted), expected, "{name}");
    }
}

#[test]
fn sysctls_are_named_as_the_kernels() {
    let named = |names: &[&str]| {
        let sysctls: Vec<Value> = names.iter().map(|name| json!({ "name": name, "value": "1" })).collect();
        let pod = json!({ "spec": { "securityContext": { "sysctls": sysctls } } });
        let errors = spec::validate_pod(&pod).into_iter();
        errors.map(|error| error.to_string()).filter(|error| error.contains("sysctls")).collect::<Vec<_>>()
    };
    assert!(named(&["kernel.shm_rmid_forced", "net/ipv4/tcp_syncookies", "a-b.c"]).is_empty());
    for wrong in ["foo-", "bar..", ".a", "A.b", "a b"] {
        let said = named(&[wrong]);
        let begin = format!(
            "spec.securityContext.sysctls[0].name: Invalid value: \"{wrong}\": must have at most 253"
        );
        assert!(said.len() == 1 && said[0].starts_with(&begin), "{wrong}: {said:?}");
    }
    assert!(named(&["a.b", "a/b"]).is_empty());
    assert_eq!(named(&["a.b", "a.b"]), ["spec.securityContext.sysctls[1].name: Duplicate value: \"a.b\""]);
    assert_eq!(named(&[""]), ["spec.securityContext.sysctls[0].name: Required value"]);
}

fn mounting(container: Value) -> Value {
    let mut container = container;
    container["name"] = "c".into();
    container["image"] = "i:1".into();
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "a" },
        "spec": {
            "containers": [container],
            "volumes": [
                { "name": "claim", "persistentVolumeClaim": { "claimName": "c" } },
                { "name": "own", "ephemeral": { "volumeClaimTemplate": { "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
                } } } },
                { "name": "empty", "emptyDir": {} },
            ],
        },
    })
}

#[test]
fn mounts_and_devices_keep_apart() {
    let mount = |more: Value| {
        let mut mount = json!({ "name": "empty", "mountPath": "/m" });
        mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "volumeMounts": [mount] })
    };
    let device = |name: &str, path: &str| json!({ "volumeDevices": [{ "name": name, "devicePath": path }] });
    let privileged = |mut container: Value| {
        container["securityContext"] = json!({ "privileged": true });
        container
    };
    let rows: Vec<(Value, &[&str])> = vec![
        (mount(json!({ "mountPropagation": "HostToContainer" })), &[]),
        (privileged(mount(json!({ "mountPropagation": "Bidirectional" }))), &[]),
        (
            mount(json!({ "mountPropagation": "Bidirectional" })),
            &[
                "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged \
                 containers",
            ],
        ),
        (
            mount(json!({ "mountPropagation": "Both" })),
            &[
                "volumeMounts.mountPropagation: Unsupported value: \"Both\": supported values: \"Bidirectional\", \
                 \"HostToContainer\", \"None\"",
            ],
        ),
        (mount(json!({ "recursiveReadOnly": "Enabled", "readOnly": true })), &[]),
        (
            mount(json!({ "recursiveReadOnly": "IfPossible" })),
            &["volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"],
        ),
        (device("claim", "/dev/a"), &[]),
        (device("own", "/dev/a"), &[]),
        (
            device("empty", "/dev/a"),
            &[
                "volumeDevices[0].name: Invalid value: \"empty\": can only use volume source type of PersistentVolumeClaim or \
                 Ephemeral for block mode",
            ],
        ),
        (device("none", "/dev/a"), &["volumeDevices[0].name: Not found: \"none\""]),
        (device("claim", ""), &["volumeDevices[0].devicePath: Required value"]),
        (
            device("claim", "/dev/../a"),
            &["volumeDevices[0].devicePath: Invalid value: \"/dev/../a\": can not contain backsteps ('..')"],
        ),
        (
            json!({ "volumeDevices": [
                { "name": "claim", "devicePath": "/dev/a" }, { "name": "claim", "devicePath": "/dev/a" },
            ] }),
            &[
                "volumeDevices[1].name: Invalid value: \"claim\": must be unique",
                "volumeDevices[1].devicePath: Invalid value: \"/dev/a\": must be unique",
            ],
        ),
        (
            json!({
                "volumeMounts": [{ "name": "claim", "mountPath": "/dev/a" }],
                "volumeDevices": [{ "name": "claim", "devicePath": "/dev/a" }],
            }),
            &[
                "volumeMounts[0].name: Invalid value: \"claim\": must not already exist in volumeDevices",
                "volumeMounts[0].mountPath: Invalid value: \"/dev/a\": must not already exist as a path in volumeDevices",
                "volumeDevices[0].name: Invalid value: \"claim\": must not already exist in volumeMounts",
                "volumeDevices[0].devicePath: Invalid value: \"/dev/a\": must not already exist as a path in volumeMounts",
            ],
        ),
    ];
    for (container, expected) in rows {
        let expected: Vec<String> =
            expected.iter().map(|error| format!("spec.containers[0].{error}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        refused("pods", mounting(container), &expected);
    }
}

#[test]
fn a_gated_pod_is_steered_to_fewer_nodes_only() {
    const TERMS: &str =
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let pod = |affinity: Value| {
        let mut pod = mounting(json!({}));
        pod["spec"]["schedulingGates"] = json!([{ "name": "example.com/wait" }]);
        pod["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
        if !affinity.is_null() {
            pod["spec"]["affinity"] = affinity;
        }
        pod
    };
    let term = |keys: &[&str]| {
        let terms: Vec<Value> = keys.iter().map(|key| json!({ "key": key, "operator": "Exists" })).collect();
        json!({ "matchExpressions": terms })
    };
    let required = |terms: &[Value]| {
        json!({ "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms },
        } })
    };
    let beside = json!({ "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [] } });
    let additions = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
    let only = "only additions are allowed (no mutations or deletions)";
    type Row = (Value, Value, Option<(String, &'static str)>);
    let rows: Vec<Row> = vec![
        (Value::Null, required(&[term(&["a"])]), None),
        (required(&[term(&["a"])]), required(&[term(&["a", "b"])]), None),
        (required(&[term(&["a"])]), Value::Null, Some((TERMS.to_owned(), additions))),
        (
            required(&[term(&["a"])]),
            required(&[term(&["a"]), term(&["b"])]),
            Some((TERMS.to_owned(), additions)),
        ),
        (required(&[term(&["a", "b"])]), required(&[term(&["a"])]), Some((format!("{TERMS}[0]"), only))),
        (required(&[term(&["a"])]), required(&[term(&["b"])]), Some((format!("{TERMS}[0]"), only))),
        (Value::Null, beside, Some(("spec".to_owned(), "spec.affinity"))),
    ];
    for (old, new, expected) in rows {
        let errors = super::update::validate(&pod(new.clone()), &pod(old));
        match (errors.as_slice(), expected) {
            ([], None) => (),
            ([error], Some((field, detail))) => {
                assert_eq!(error.field, field, "{new}");
                assert!(error.detail.ends_with(detail), "{error}");
            }
            (errors, expected) => panic!("{new}: {errors:?}, not {expected:?}"),
        }
    }
}
