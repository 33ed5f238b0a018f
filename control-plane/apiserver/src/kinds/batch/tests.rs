use serde_json::{Value, json};

use super::*;
use crate::kinds::tests::with;

fn job(status: Value) -> Value {
    let template = json!({
        "metadata": { "labels": { "app": "sum" } },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i:1", "resources": {} }] },
    });
    json!({ "metadata": { "name": "sum" }, "spec": { "suspend": true, "template": template }, "status": status })
}

#[test]
fn a_job_at_rest_may_be_steered_elsewhere() {
    let started = || json!({ "startTime": "2026-01-01T00:00:00Z" });
    let suspended = json!({
        "startTime": "2026-01-01T00:00:00Z", "conditions": [{ "type": "Suspended", "status": "True" }],
    });
    let running = with(job(json!({})), "/spec/suspend", json!(false));
    let nodes = json!({ "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [] } });
    let pods = json!({ "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [] } });
    let template = "/spec/template";
    let rows: Vec<(Value, &str, Value, bool)> = vec![
        (job(json!({})), "/spec/nodeSelector", json!({ "disk": "ssd" }), true),
        (job(json!({})), "/spec/tolerations", json!([{ "operator": "Exists" }]), true),
        (job(json!({})), "/spec/schedulingGates", json!([{ "name": "a.b/c" }]), true),
        (job(json!({})), "/spec/affinity", nodes, true),
        (job(json!({})), "/metadata/labels/more", json!("x"), true),
        (job(json!({})), "/metadata/annotations", json!({ "more": "x" }), true),
        (job(json!({})), "/spec/containers/0/resources", json!({ "requests": { "cpu": "2" } }), true),
        (job(suspended), "/spec/nodeSelector", json!({ "disk": "ssd" }), true),
        (job(json!({})), "/spec/affinity", pods, false),
        (job(json!({})), "/spec/containers/0/image", json!("i:2"), false),
        (job(started()), "/spec/nodeSelector", json!({ "disk": "ssd" }), false),
        (job(json!({ "active": 1 })), "/spec/nodeSelector", json!({ "disk": "ssd" }), false),
        (running, "/spec/nodeSelector", json!({ "disk": "ssd" }), false),
    ];
    for (old, pointer, value, good) in rows {
        let new = with(old.clone(), &format!("{template}{pointer}"), value);
        let errors = (JOB.validate_update)(&new, &old);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        let expected: &[&str] = if good { &[] } else { &["spec.template"] };
        assert_eq!(fields, expected, "{pointer} {:?}", old["status"]);
    }
}
