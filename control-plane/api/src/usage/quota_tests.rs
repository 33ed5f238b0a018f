//! Tables of what counts, for whom, and what is asked of pods.

use serde_json::{Value, json};

use super::*;
use crate::usage::shown;

const PODS: Counted<'static> = Counted { group: "", resource: "pods" };
const CLAIM: Counted<'static> = Counted { group: "", resource: CLAIMS };
const SERVICES: Counted<'static> = Counted { group: "", resource: "services" };

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().expect("a time")
}

#[track_caller]
fn uses(what: &str, kind: Counted<'_>, object: Value, expected: &str) {
    assert_eq!(shown(&kind.usage(&object, now())), expected, "{what}");
}

#[test]
fn objects_count_under_their_names() {
    let pod = |requests: Value, limits: Value| json!({ "spec": { "containers": [{ "resources": { "requests": requests, "limits": limits } }] } });
    uses("a pod that asks for nothing", PODS, pod(json!({}), json!({})), "count/pods=1,pods=1");
    uses(
        "cpu and memory",
        PODS,
        pod(json!({ "cpu": "100m" }), json!({ "memory": "1Gi" })),
        "count/pods=1,cpu=100m,limits.memory=1Gi,pods=1,requests.cpu=100m",
    );
    uses(
        "extended and huge pages",
        PODS,
        pod(json!({ "example.com/gpu": "2", "hugepages-2Mi": "4Mi", "kubernetes.io/x": "1" }), json!({})),
        "count/pods=1,hugepages-2Mi=4Mi,pods=1,requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi",
    );
    let of_class = "deviceclass.resource.kubernetes.io/gpu";
    uses(
        "devices of a class, by its name",
        PODS,
        pod(json!({ of_class: "2" }), json!({ of_class: "2" })),
        &format!("count/pods=1,pods=1,requests.{of_class}=2"),
    );
    assert!(PODS.counts_as(&format!("requests.{of_class}")) && !PODS.counts_as(of_class));
    let mut ended = pod(json!({ "cpu": "1" }), json!({}));
    ended["status"]["phase"] = json!("Failed");
    uses("an ended pod", PODS, ended, "count/pods=1");
    let mut stuck = pod(json!({}), json!({}));
    stuck["metadata"] =
        json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30 });
    uses("a pod that should have ended", PODS, stuck.clone(), "count/pods=1");
    stuck["metadata"]["deletionGracePeriodSeconds"] = json!(300);
    uses("a pod that is ending", PODS, stuck, "count/pods=1,pods=1");
    let claim =
        json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "5Gi" } } } });
    uses(
        "a claim",
        CLAIM,
        claim.clone(),
        "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
         gold.storageclass.storage.k8s.io/requests.storage=5Gi,persistentvolumeclaims=1,requests.storage=5Gi",
    );
    let mut grown = claim;
    grown["spec"]["storageClassName"] = json!("");
    grown["status"]["allocatedResources"]["storage"] = json!("8Gi");
    uses(
        "a claim that shrinks",
        CLAIM,
        grown,
        "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=8Gi",
    );
    let service = |kind: &str, allocate: bool| {
        json!({ "spec": { "type": kind, "allocateLoadBalancerNodePorts": allocate,
            "ports": [{ "port": 1 }, { "port": 2, "nodePort": 30_000 }] } })
    };
    for (kind, allocate, balancers, ports) in [
        ("ClusterIP", true, 0, 0),
        ("NodePort", true, 0, 2),
        ("LoadBalancer", true, 1, 2),
        ("LoadBalancer", false, 1, 1),
    ] {
        let expected = format!(
            "count/services=1,services=1,services.loadbalancers={balancers},services.nodeports={ports}"
        );
        uses(kind, SERVICES, service(kind, allocate), &expected);
    }
    uses(
        "by number",
        Counted { group: "apps", resource: "deployments" },
        json!({}),
        "count/deployments.apps=1",
    );
    uses("by a name too", Counted { group: "", resource: "secrets" }, json!({}), "count/secrets=1,secrets=1");
    uses("garbage", PODS, json!({ "spec": 7 }), "count/pods=1,pods=1");
}

#[test]
fn names_belong_to_kinds() {
    for (kind, name, expected) in [
        (PODS, "pods", true),
        (PODS, "count/pods", true),
        (PODS, "count/services", false),
        (PODS, "requests.example.com/gpu", true),
        (PODS, "limits.example.com/gpu", false),
        (PODS, "requests.storage", false),
        (CLAIM, "requests.storage", true),
        (CLAIM, "gold.storageclass.storage.k8s.io/requests.storage", true),
        (CLAIM, "gold.storageclass.storage.k8s.io/pods", false),
        (SERVICES, "services.nodeports", true),
        (Counted { group: "apps", resource: "deployments" }, "deployments", false),
        (Counted { group: "other", resource: "pods" }, "pods", false),
    ] {
        assert_eq!(kind.counts_as(name), expected, "{kind:?} {name}");
    }
}

#[test]
fn scopes_narrow_a_quota_down() {
    let pod = |spec: Value| json!({ "spec": spec });
    let one = |name: &str| json!({ "scopes": [name] });
    let select = |name: &str, operator: &str, values: &[&str]| json!({ "scopeSelector": { "matchExpressions": [{ "scopeName": name, "operator": operator, "values": values }] } });
    let plain = pod(json!({ "containers": [{}] }));
    let high = pod(json!({ "priorityClassName": "high" }));
    let asks = pod(json!({ "containers": [{ "resources": { "requests": { "cpu": "1" } } }] }));
    let short = pod(json!({ "activeDeadlineSeconds": 5 }));
    let term = json!({ "topologyKey": "zone", "namespaceSelector": {} });
    let far = pod(json!({ "affinity": { "podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": term }],
    } } }));
    for (what, spec, object, expected) in [
        ("no scope", json!({}), &plain, true),
        ("best effort", one("BestEffort"), &plain, true),
        ("best effort, and asks", one("BestEffort"), &asks, false),
        ("not best effort", one("NotBestEffort"), &asks, true),
        ("terminating", one("Terminating"), &short, true),
        ("not terminating", one("NotTerminating"), &short, false),
        ("both", json!({ "scopes": ["BestEffort", "Terminating"] }), &plain, false),
        ("other namespaces", one("CrossNamespacePodAffinity"), &far, true),
        ("its own namespace", one("CrossNamespacePodAffinity"), &plain, false),
        ("a class", select("PriorityClass", "In", &["high"]), &high, true),
        ("another class", select("PriorityClass", "In", &["low"]), &high, false),
        ("not a class", select("PriorityClass", "NotIn", &["high"]), &high, false),
        ("not a class, and none", select("PriorityClass", "NotIn", &["high"]), &plain, true),
        ("any class", select("PriorityClass", "Exists", &[]), &high, true),
        ("no class", select("PriorityClass", "DoesNotExist", &[]), &plain, true),
        ("no such scope", one("Sometimes"), &plain, false),
    ] {
        assert_eq!(PODS.is_matched(&spec, &["pods"], object), expected, "{what}");
    }
    assert!(!PODS.is_matched(&json!({}), &["secrets"], &plain), "no name of a pod's");
    assert!(!SERVICES.is_matched(&one("BestEffort"), &["services"], &json!({})), "services have no scopes");
    let volume = json!({ "spec": { "volumeAttributesClassName": "fast" } });
    let fast = select("VolumeAttributesClass", "In", &["fast"]);
    assert!(CLAIM.is_matched(&fast, &["persistentvolumeclaims"], &volume));
}

#[test]
fn containers_say_what_a_quota_of_compute_asks() {
    let pod = json!({ "spec": {
        "initContainers": [{ "name": "init" }],
        "containers": [
            { "name": "b" },
            { "name": "a", "resources": { "requests": { "cpu": "1" }, "limits": { "cpu": "1" } } },
        ],
    } });
    let missing = |names: &[&str]| missing(names, &pod);
    assert_eq!(missing(&["pods", "requests.ephemeral-storage"]), None);
    assert_eq!(missing(&["limits.cpu"]).as_deref(), Some("must specify limits.cpu for: b,init"));
    assert_eq!(
        missing(&["memory", "cpu"]).as_deref(),
        Some("must specify cpu for: b,init; memory for: a,b,init")
    );
}
