//! Pods that wait for something, those that keep them waiting, and what changes.

use serde_json::{Value, json};

use super::{
    HOSTNAME, Which, merge,
    pods::{asking, labelled, node_affinity, pod, required, spread, term},
    update,
};

/// Domains that no cluster here has: so none may have more than the skew.
const DOMAINS: usize = 10_000;

pub(super) fn object(template: &str, Which { index, count }: Which) -> Option<Value> {
    let blue = |skew, domains| {
        let mut spec = spread(skew, HOSTNAME, "DoNotSchedule", "topology", "blue");
        spec["topologySpreadConstraints"][0]["minDomains"] = json!(domains);
        spec
    };
    let within = |namespace: &str| json!({ "namespaces": [namespace] });
    let allowed = |key: &str, spec: Value| with(spec, json!({ "tolerations": [tolerated(key)] }));
    let waiting = |start: &str, labels: Value, spec| pod(metadata(start, "unsched", labels), spec);
    // What the update of a pod calls it, and how it comes.
    let numbered = |name: &str, labels: Value, spec| {
        pod(json!({ "name": format!("{name}-{index}"), "labels": labels }), spec)
    };
    let unschedulable = || json!({ "type": "unsched" });
    let port = || {
        let number: u16 = format!("8{}", index % 12).parse().unwrap_or_default();
        json!([{ "hostPort": number, "containerPort": number }])
    };
    let share = || json!({ "cpu": "0.0001", "memory": format!("{}Mi", 30_000 / count) });
    Some(match template {
        "poddelete-pod-blocker-topology-ports-resources" => {
            let mut spec = blue(10, DOMAINS);
            spec["containers"] = asking(json!({ "cpu": "0.35", "memory": "3Gi" }));
            spec["containers"][0]["ports"] = port();
            spec["terminationGracePeriodSeconds"] = 0.into();
            pod(metadata("pod-blocker-topology-", "blocker", json!({ "topology": "blue" })), spec)
        }
        "poddelete-pod-blocker-affinity" => {
            let labels = json!({ "color": "green" });
            pod(
                metadata("pod-blocker-affinity-", "blocker", labels),
                json!({ "terminationGracePeriodSeconds": 0 }),
            )
        }
        "poddelete-pod-podtopologyspread" => {
            waiting("pod-unsched-", json!({ "topology": "blue" }), blue(11, DOMAINS))
        }
        "poddelete-pod-volumerestrictions" => {
            let source = json!({ "claimName": format!("pvc-{index}") });
            let volumes = json!([{ "name": "vol", "persistentVolumeClaim": source }]);
            waiting("pod-unsched-", json!({}), json!({ "volumes": volumes }))
        }
        "poddelete-pod-nodeports" => {
            let mut containers = asking(json!({}));
            containers[0]["ports"] = port();
            waiting("pod-unsched-", json!({}), json!({ "containers": containers }))
        }
        "poddelete-pod-noderesources" => {
            let containers = asking(json!({ "cpu": "0.2", "memory": "1Gi" }));
            waiting("pod-unsched-", json!({}), json!({ "containers": containers }))
        }
        "poddelete-pod-nodevolumelimits" => waiting("pod-unsched-", json!({}), json!({})),
        "poddelete-pod-interpodaffinity" => {
            let spec = term("color", "green", HOSTNAME, &within("blockeraffinity"));
            waiting("pod-unsched-", json!({ "color": "green" }), required("podAntiAffinity", spec))
        }

        "podupdate-pod-nodeunschedulable" => numbered("pod-nodeunschedulable", unschedulable(), json!({})),
        "podupdate-pod-tainttoleration" => numbered("pod-tainttoleration", unschedulable(), json!({})),
        "podupdate-pod-blocker" => {
            let labels = json!({ "color": format!("green-{index}"), "topology": "blue" });
            numbered("pod-blocker", labels, json!({ "containers": asking(share()) }))
        }
        "podupdate-pod-interpodaffinity" => {
            let color = format!("green-{index}");
            let spec = term("color", &color, HOSTNAME, &within("blocker"));
            waiting("pod-interpodaffinity-", json!({ "color": color }), required("podAntiAffinity", spec))
        }
        "podupdate-pod-noderesources" => {
            numbered("pod-noderesources", unschedulable(), json!({ "containers": asking(share()) }))
        }
        "podupdate-pod-podtopologyspread" => {
            waiting("pod-podtopologyspread-", json!({ "topology": "blue" }), blue(count, 100))
        }
        "podupdate-pod-schedulinggates" => {
            let gates = json!([{ "name": "test.k8s.io/hold" }]);
            numbered("pod-schedulinggates", unschedulable(), json!({ "schedulingGates": gates }))
        }
        "podupdate-pod-nodeunschedulable-update" => {
            let tolerations = with_usual(tolerated("node.kubernetes.io/unschedulable"));
            update(
                "Pod",
                format!("pod-nodeunschedulable-{index}"),
                json!({ "spec": { "tolerations": tolerations } }),
            )
        }
        "podupdate-pod-tainttoleration-update" => {
            let tolerations = with_usual(tolerated("toleration"));
            update(
                "Pod",
                format!("pod-tainttoleration-{index}"),
                json!({ "spec": { "tolerations": tolerations } }),
            )
        }
        "podupdate-pod-blocker-update" => {
            let labels = json!({ "color": null, "topology": null });
            update("Pod", format!("pod-blocker-{index}"), json!({ "metadata": { "labels": labels } }))
        }
        "podupdate-pod-blocker-scale-down" => {
            let containers = asking(json!({ "cpu": "0.0001", "memory": "1Mi" }));
            update("Pod", format!("pod-blocker-{index}"), json!({ "spec": { "containers": containers } }))
        }
        "podupdate-pod-schedulinggates-update" => update(
            "Pod",
            format!("pod-schedulinggates-{index}"),
            json!({ "spec": { "schedulingGates": null } }),
        ),

        "nodeadd-pod-nodeunschedulable" | "nodeupdate-pod-nodeunschedulable" => {
            plain(json!({}), allowed("allow", json!({})))
        }
        "nodeadd-pod-noderesources" => {
            let containers = asking(json!({ "cpu": "0.2", "memory": "200Mi" }));
            plain(json!({}), allowed("allow", json!({ "containers": containers })))
        }
        "nodeadd-pod-interpodaffinity" | "nodeupdate-pod-interpodaffinity" => {
            let near = term("color", "green", "topology.kubernetes.io/zone", &json!({}));
            plain(json!({ "color": "green" }), allowed("allow", required("podAffinity", near)))
        }
        "nodeadd-pod-nodeaffinity" | "nodeupdate-pod-nodeaffinity" => {
            let requirement = json!({ "key": "affinity", "operator": "In", "values": ["allow"] });
            let spec = node_affinity(json!({ "matchExpressions": [requirement] }));
            plain(json!({}), allowed("allow", spec))
        }
        "nodeadd-pod-podtopologyspread" => spread_by_label(1000, DOMAINS),
        "nodeupdate-pod-podtopologyspread" => spread_by_label(1, 1),
        "nodeadd-pod-tainttoleration" => plain(json!({}), allowed("toleration", json!({}))),
        "nodeupdate-pod-noderesources" => {
            let containers = asking(json!({ "cpu": "0.35", "memory": "3Gi" }));
            plain(json!({}), allowed("allow-noderesources", json!({ "containers": containers })))
        }
        "nodeupdate-pod-tainttoleration" => {
            plain(json!({}), allowed(&format!("toleration-{}", index / 10), json!({})))
        }

        "podadd-pod-with-label" => pod(labelled("pod-with-label-", "color", "green"), json!({})),
        "podadd-pod-podtopologyspread" => {
            let apart = term("color", "green", HOSTNAME, &within("podtopologyspread"));
            let spread = spread(1, HOSTNAME, "DoNotSchedule", "topology", "blue");
            let spec = with(required("podAntiAffinity", apart), spread);
            waiting("pod-podtopologyspread-", json!({ "topology": "blue" }), spec)
        }
        "podadd-pod-interpodaffinity" => {
            let near = term("color", &format!("yellow-{index}"), HOSTNAME, &within("interpodaffinity"));
            waiting("pod-interpodaffinity-", json!({}), required("podAffinity", near))
        }
        "podadd-pod-unblocker-topology" => {
            let labels = json!({ "topology": "blue", "color": "green" });
            let near = term("color", "green", HOSTNAME, &within("podtopologyspread"));
            let metadata = json!({ "generateName": "pod-unblocker-topology-", "labels": labels });
            pod(metadata, required("podAffinity", near))
        }
        "podadd-pod-unblocker-affinity" => {
            pod(labelled("pod-unblocker-affinity-", "color", &format!("yellow-{index}")), json!({}))
        }
        _ => return None,
    })
}

/// A pod that waits, and does not say so in a label.
fn plain(labels: Value, spec: Value) -> Value {
    pod(json!({ "generateName": "pod-unsched-", "labels": labels }), spec)
}

fn spread_by_label(skew: usize, domains: usize) -> Value {
    let mut spec = spread(skew, "topology", "DoNotSchedule", "color", "blue");
    spec["topologySpreadConstraints"][0]["minDomains"] = domains.into();
    spec["tolerations"] = json!([tolerated("allow")]);
    plain(json!({ "color": "blue" }), spec)
}

fn metadata(start: &str, kind: &str, labels: Value) -> Value {
    json!({ "generateName": start, "labels": with(labels, json!({ "type": kind })) })
}

fn with(mut one: Value, other: Value) -> Value {
    merge(&mut one, &other);
    one
}

fn tolerated(key: &str) -> Value {
    json!({ "key": key, "operator": "Exists", "effect": "NoSchedule" })
}

/// Beside those that the API server gives each pod, which an update may not take away.
fn with_usual(one: Value) -> Value {
    let usual = |key: &str| {
        let key = format!("node.kubernetes.io/{key}");
        json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 })
    };
    json!([one, usual("not-ready"), usual("unreachable")])
}
