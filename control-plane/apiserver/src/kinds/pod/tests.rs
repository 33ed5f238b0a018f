use jiff::Timestamp;
use serde_json::{Value, json};

use super::{POD, spec};

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
    assert_eq!(named(&["a.b", "a/b"]), ["spec.securityContext.sysctls[1].name: Duplicate value: \"a/b\""]);
    assert_eq!(named(&[""]), ["spec.securityContext.sysctls[0].name: Required value"]);
}
