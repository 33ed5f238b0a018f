use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// An autoscaler of v2 that says all that v1 cannot.
fn rich() -> Value {
    json!({
        "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2",
        "metadata": { "name": "web", "namespace": "a", "annotations": { "mine": "kept" } },
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            "minReplicas": 1, "maxReplicas": 9,
            "metrics": [
                { "type": "Resource", "resource": {
                    "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 70 } } },
                { "type": "Resource", "resource": {
                    "name": "memory", "target": { "type": "AverageValue", "averageValue": "1Gi" } } },
                { "type": "ContainerResource", "containerResource": {
                    "name": "cpu", "container": "web", "target": { "type": "Utilization", "averageUtilization": 50 } } },
                { "type": "Pods", "pods": {
                    "metric": { "name": "requests", "selector": { "matchLabels": { "verb": "get" } } },
                    "target": { "type": "AverageValue", "averageValue": "100" } } },
                { "type": "Object", "object": {
                    "describedObject": { "kind": "Service", "name": "web", "apiVersion": "v1" },
                    "metric": { "name": "hits" }, "target": { "type": "Value", "value": "2k" } } },
                { "type": "Object", "object": {
                    "describedObject": { "kind": "Service", "name": "web", "apiVersion": "v1" },
                    "metric": { "name": "hits" }, "target": { "type": "AverageValue", "averageValue": "20" } } },
                { "type": "External", "external": {
                    "metric": { "name": "queue", "selector": { "matchLabels": { "name": "jobs" } } },
                    "target": { "type": "AverageValue", "averageValue": "30" } } },
            ],
            "behavior": { "scaleDown": {
                "stabilizationWindowSeconds": 60, "selectPolicy": "Min",
                "policies": [{ "type": "Percent", "value": 10, "periodSeconds": 15 }],
            } },
        },
        "status": {
            "currentReplicas": 3, "desiredReplicas": 4,
            "currentMetrics": [
                { "type": "Resource", "resource": {
                    "name": "cpu", "current": { "averageUtilization": 65, "averageValue": "650m" } } },
                { "type": "Object", "object": {
                    "describedObject": { "kind": "Service", "name": "web", "apiVersion": "v1" },
                    "metric": { "name": "hits" }, "current": { "value": "1k" } } },
            ],
            "conditions": [{ "type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale" }],
        },
    })
}

#[test]
fn what_v1_cannot_say_comes_back() {
    let mut object = rich();
    from_v2(&mut object);
    assert_eq!(object["apiVersion"], "autoscaling/v1");
    assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 70);
    assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 65);
    for gone in ["/spec/metrics", "/spec/behavior", "/status/currentMetrics", "/status/conditions"] {
        assert_eq!(object.pointer(gone), None, "{gone}");
    }
    to_v2(&mut object);
    assert_eq!(object, rich());
}

#[test]
fn annotations_have_upstreams_forms() {
    let mut object = rich();
    from_v2(&mut object);
    let note = |key: &str| -> Value {
        serde_json::from_str(object["metadata"]["annotations"][key].as_str().unwrap()).unwrap()
    };
    let metrics = note(METRICS);
    assert_eq!(
        metrics[0],
        json!({ "type": "Resource", "resource": { "name": "memory", "targetAverageValue": "1Gi" } })
    );
    assert_eq!(
        metrics[3],
        json!({ "type": "Object", "object": {
            "target": { "kind": "Service", "name": "web", "apiVersion": "v1" },
            "metricName": "hits", "targetValue": "2k",
        } })
    );
    assert_eq!(
        metrics[5]["external"],
        json!({
            "metricName": "queue", "metricSelector": { "matchLabels": { "name": "jobs" } }, "targetAverageValue": "30",
        })
    );
    assert_eq!(
        note(CURRENT_METRICS)[0]["resource"],
        json!({ "name": "cpu", "currentAverageUtilization": 65, "currentAverageValue": "650m" })
    );
    assert_eq!(note(BEHAVIOR)["ScaleDown"]["Policies"][0]["PeriodSeconds"], 15);
}

#[test]
fn plain_objects_need_no_annotations() {
    let mut object = json!({
        "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": { "name": "web" },
        "spec": { "scaleTargetRef": { "kind": "Deployment", "name": "web" }, "maxReplicas": 3,
                  "targetCPUUtilizationPercentage": 60 },
    });
    let first = object.clone();
    to_v2(&mut object);
    assert_eq!(
        object["spec"]["metrics"],
        json!([{ "type": "Resource", "resource": {
            "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 60 } } }])
    );
    from_v2(&mut object);
    assert_eq!(object, first);
}

#[test]
fn annotations_that_cannot_be_read_count_as_absent() {
    for text in ["", "{", "7", "[1, null]", "[{\"object\": 7}]", "[{\"pods\": {}}]"] {
        let notes: Map<String, Value> = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR]
            .iter()
            .map(|key| ((*key).to_owned(), text.into()))
            .collect();
        let mut object = json!({ "metadata": { "annotations": notes }, "spec": {} });
        to_v2(&mut object);
        assert_eq!(object["metadata"].get("annotations"), None, "{text}");
        from_v2(&mut object);
    }
}

#[test]
fn filled_in_objects_survive() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/api-testdata");
    let Ok(text) = std::fs::read(folder.join("autoscaling.v1.HorizontalPodAutoscaler.json")) else {
        println!("skipped: {} is absent", folder.display());
        return;
    };
    let first: Value = serde_json::from_slice(&text).unwrap();
    let mut object = first.clone();
    to_v2(&mut object);
    from_v2(&mut object);
    // What is current is kept in full, so it comes back as a note too.
    assert!(object["metadata"]["annotations"][CURRENT_METRICS].is_string());
    drop_notes(&mut object);
    assert_eq!(object, first);
}
