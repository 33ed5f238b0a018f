use std::{collections::BTreeSet, slice, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::{
    config::Config,
    queue::Place,
    scheduler::{Plan, Scheduler},
    testing::{info, node, pod},
};

const NOW: Duration = Duration::ZERO;
const GPU: &str = "example.com/gpu";

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn class(name: &str, resource: Value, created: &str) -> Arc<DeviceClass> {
    typed::<DeviceClass>(json!({
        "metadata": { "name": name, "creationTimestamp": created }, "spec": { "extendedResourceName": resource },
    }))
    .into()
}

fn container(name: &str, requests: Value) -> Value {
    json!({ "name": name, "resources": { "requests": requests } })
}

fn sidecar(name: &str, requests: Value) -> Value {
    json!({ "name": name, "restartPolicy": "Always", "resources": { "requests": requests } })
}

#[test]
fn the_youngest_class_of_a_name_provides_it() {
    let old = "2026-01-01T00:00:00Z";
    let classes = [
        class("c", json!(GPU), old),
        class("b", json!(GPU), "2026-01-02T00:00:00Z"),
        class("a", json!(GPU), "2026-01-02T00:00:00Z"),
        class("other", Value::Null, old),
    ];
    let providers = providers(classes.iter());
    assert_eq!(providers[GPU], "a");
    assert_eq!(providers[&format!("{IMPLICIT}other")], "other");
    assert_eq!(providers.len(), 5);
}

/// Requests as `name x count`, and mappings as `container resource name`.
#[track_caller]
fn check(spec: Value, requests: &[&str], mappings: &[&str]) {
    let classes = [
        class("gpu", json!(GPU), "2026-01-01T00:00:00Z"),
        class("nic", json!("example.com/nic"), "2026-01-01T00:00:00Z"),
    ];
    let providers = providers(classes.iter());
    let pod = info(&pod("p", spec));
    let resources: BTreeSet<&String> = pod.claims.extended_resources().collect();
    let unmade = unmade(&pod, &resources.into_iter().collect::<Vec<_>>(), &providers);
    let all = unmade.claim.spec.devices.unwrap().requests.unwrap();
    let all: Vec<String> =
        all.iter().map(|request| format!("{} x {}", request.name, count(request))).collect();
    assert_eq!(all, requests);
    let of = |one: &ContainerExtendedResourceRequest| {
        format!("{} {} {}", one.container_name, one.resource_name, one.request_name)
    };
    assert_eq!(unmade.mappings.iter().map(of).collect::<Vec<_>>(), mappings);
}

#[test]
fn containers_share_requests_as_upstreams_do() {
    check(
        json!({ "containers": [container("a", json!({ "cpu": "1", GPU: "2" })), container("b", json!({ GPU: "1" }))] }),
        &["container-0-request-1 x 2", "container-1-request-0 x 1"],
        &["a example.com/gpu container-0-request-1", "b example.com/gpu container-1-request-0"],
    );
    // Two that prepare share one request, beside what comes later and lasts.
    check(
        json!({
            "initContainers": [container("i", json!({ GPU: "4" })), container("j", json!({ GPU: "3" })), sidecar("s", json!({ GPU: "1" }))],
            "containers": [container("a", json!({ GPU: "1" }))],
        }),
        &["container-0-request-0 x 2", "container-2-request-0 x 1", "container-3-request-0 x 1"],
        &[
            "s example.com/gpu container-2-request-0",
            "a example.com/gpu container-3-request-0",
            "i example.com/gpu container-2-request-0",
            "i example.com/gpu container-3-request-0",
            "i example.com/gpu container-0-request-0",
            "j example.com/gpu container-2-request-0",
            "j example.com/gpu container-3-request-0",
            "j example.com/gpu container-0-request-0",
        ],
    );
    // What lasts from before is not free for one that prepares after it.
    check(
        json!({
            "initContainers": [sidecar("s", json!({ GPU: "1" })), container("i", json!({ GPU: "1" }))],
            "containers": [container("a", json!({ "example.com/nic": "1" }))],
        }),
        &["container-0-request-0 x 1", "container-1-request-0 x 1", "container-2-request-0 x 1"],
        &[
            "s example.com/gpu container-0-request-0",
            "i example.com/gpu container-1-request-0",
            "a example.com/nic container-2-request-0",
        ],
    );
}

/// Node `n1` has the resource itself, `n2` has two devices.
fn scheduler(own: &str) -> Scheduler {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    let with =
        json!({ "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110", GPU: own } } });
    scheduler.node_changed(&node("n1", with), NOW);
    scheduler.node_changed(&node("n2", json!({})), NOW);
    let devices = json!([{ "name": "d0" }, { "name": "d1" }]);
    let pool = json!({ "name": "n2", "generation": 1, "resourceSliceCount": 1 });
    let spec = json!({ "driver": "gpu.example.com", "nodeName": "n2", "pool": pool, "devices": devices });
    scheduler.slice_changed(&typed(json!({ "metadata": { "name": "n2" }, "spec": spec })), NOW);
    scheduler
}

fn schedule(scheduler: &mut Scheduler, name: &str, amount: &str, seconds: u64) -> Plan {
    scheduler.pod_changed(&pod(name, json!({ "containers": [container("c", json!({ GPU: amount }))] })), NOW);
    scheduler.schedule(1, Duration::from_secs(seconds))
}

#[test]
fn a_node_without_the_resource_provides_it_by_a_class() {
    let mut scheduler = scheduler("1");
    let plan = schedule(&mut scheduler, "two", "2", 0);
    let message = &plan.rejected[0].message;
    assert!(message.starts_with("0/2 nodes are available: 2 Insufficient example.com/gpu."), "{message}");
    // The class helps the pod that waits.
    scheduler.device_class_changed(&class("gpu", json!(GPU), "2026-01-01T00:00:00Z"), NOW);
    let plan = scheduler.schedule(1, Duration::from_secs(60));
    let grants = &plan.provisionings[0].promises.devices.0;
    assert_eq!(plan.provisionings[0].decision.binding.node, "n2");
    assert!(grants[0].unmade.is_some());
    // Where the node has it, no claim is made; where neither has enough, each says it in its own way.
    let plan = schedule(&mut scheduler, "one", "1", 60);
    assert_eq!((plan.bindings.len(), &*plan.bindings[0].binding.node), (1, "n1"));
    let plan = schedule(&mut scheduler, "three", "1", 60);
    let message = &plan.rejected[0].message;
    let reasons = "0/2 nodes are available: 1 Insufficient example.com/gpu, 1 cannot allocate all claims.";
    assert!(message.starts_with(reasons), "{message}");
    // Without its class the resource is nobody's.
    scheduler.device_class_removed("gpu", NOW);
    let plan = schedule(&mut scheduler, "four", "1", 60);
    assert!(
        plan.rejected[0].message.contains("2 Insufficient example.com/gpu"),
        "{}",
        plan.rejected[0].message
    );
}

/// How many of three pods the event wakes: there is one node without extended resources, and no device.
#[track_caller]
fn woken(classes: &[Arc<DeviceClass>], event: impl FnOnce(&mut Scheduler)) -> usize {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    scheduler.node_changed(&node("n1", json!({})), NOW);
    for class in classes {
        scheduler.device_class_changed(class, NOW);
    }
    for name in ["p", "q"] {
        schedule(&mut scheduler, name, "1", 0);
    }
    // It asks for something else.
    let other = json!({ "containers": [container("c", json!({ "example.com/nic": "1" }))] });
    scheduler.pod_changed(&pod("other", other), NOW);
    scheduler.schedule(1, NOW);
    assert_eq!(scheduler.waiting(Place::Unschedulable), 3);
    event(&mut scheduler);
    3 - scheduler.waiting(Place::Unschedulable)
}

#[test]
fn pods_are_woken_by_what_classes_come_to_provide() {
    let (old, young) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let (gpu, nothing) = (class("gpu", json!(GPU), old), class("gpu", Value::Null, old));
    let changed =
        |class: Arc<DeviceClass>| move |core: &mut Scheduler| core.device_class_changed(&class, NOW);
    let removed = |core: &mut Scheduler| core.device_class_removed("gpu", NOW);
    assert_eq!(woken(&[], changed(gpu.clone())), 2);
    assert_eq!(woken(slice::from_ref(&nothing), changed(gpu.clone())), 2);
    // Without its class the resource is nobody's, and the same class again is no news.
    assert_eq!(woken(slice::from_ref(&gpu), removed), 0);
    assert_eq!(woken(slice::from_ref(&gpu), changed(gpu.clone())), 0);
    // Those that its devices were too few for are tried again when it changes at all.
    assert_eq!(woken(slice::from_ref(&gpu), changed(nothing.clone())), 2);
    assert_eq!(woken(&[nothing], changed(class("nic", json!("example.com/nic"), old))), 1);
    // Where an older class has the name too, the resource is that one's now.
    let shadowing = [class("older", json!(GPU), old), class("gpu", json!(GPU), young)];
    assert_eq!(woken(&shadowing, removed), 2);
    // What a class has no devices for may be the node's own by now.
    let with =
        json!({ "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110", GPU: "1" } } });
    assert_eq!(woken(&[gpu], |core| core.node_changed(&node("n1", with), NOW)), 2);
}

#[test]
fn devices_stay_promised_until_the_made_claim_has_them() {
    let mut scheduler = scheduler("0");
    scheduler.device_class_changed(&class("gpu", json!(GPU), "2026-01-01T00:00:00Z"), NOW);
    let plan = schedule(&mut scheduler, "p", "2", 0);
    let grant = plan.provisionings[0].promises.devices.0[0].clone();
    let lacks = |scheduler: &mut Scheduler, name: &str| {
        let plan = schedule(scheduler, name, "1", 0);
        assert!(
            plan.rejected[0].message.contains("2 cannot allocate all claims"),
            "{}",
            plan.rejected[0].message
        );
    };
    let mut claim = grant.unmade.as_ref().unwrap().claim.clone();
    claim.metadata.name = Some("made".to_owned());
    claim.metadata.uid = Some("made".to_owned());
    scheduler.device_claim_changed(&claim, NOW);
    lacks(&mut scheduler, "q");
    claim.status.get_or_insert_default().allocation = grant.allocation.as_deref().cloned();
    scheduler.device_claim_changed(&claim, NOW);
    assert!(!scheduler.devices().is_promised(grant.promise()));
    lacks(&mut scheduler, "r");
    // The binding fails: what was made is in the way, goes, and is made anew.
    scheduler.claims_written("p", NOW);
    scheduler.bind_failed("p", NOW);
    ["q", "r"].iter().for_each(|name| scheduler.pod_removed(name, NOW));
    let plan = scheduler.schedule(1, Duration::from_secs(60));
    let message = &plan.rejected[0].message;
    let expected = "0/2 nodes are available: 2 cannot schedule extended resource claim. deletion of ResourceClaim completed,";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(plan.deallocations[0].claim.metadata.name.as_deref(), Some("made"));
    scheduler.device_claim_removed(&ObjectKey::of(&claim), NOW);
    assert_eq!(scheduler.schedule(1, Duration::from_secs(120)).provisionings.len(), 1);
}

#[test]
fn nodes_are_compared_by_what_classes_provide() {
    for (kind, expected) in [("LeastAllocated", "n2"), ("MostAllocated", "n1")] {
        let file = format!(
            "{{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, profiles: [{{plugins: {{score: \
                {{disabled: [{{name: '*'}}], enabled: [{{name: NodeResourcesFit}}]}}}}, pluginConfig: [{{name: NodeResourcesFit, \
                args: {{scoringStrategy: {{type: {kind}, resources: [{{name: example.com/gpu}}]}}}}}}]}}]}}"
        );
        let mut scheduler = Scheduler::new(&Config::default().with_file(&file).unwrap(), 7);
        let class =
            json!({ "metadata": { "name": "gpu" }, "spec": { "extendedResourceName": "example.com/gpu" } });
        scheduler.device_class_changed(&typed(class), NOW);
        for (name, devices) in [("n1", 4), ("n2", 2)] {
            scheduler.node_changed(&node(name, json!({})), NOW);
            let devices: Vec<Value> =
                (0..devices).map(|index| json!({ "name": format!("d{index}") })).collect();
            let pool = json!({ "name": name, "generation": 1, "resourceSliceCount": 1 });
            let spec = json!({ "driver": "d", "nodeName": name, "pool": pool, "devices": devices });
            scheduler.slice_changed(&typed(json!({ "metadata": { "name": name }, "spec": spec })), NOW);
        }
        let results: Vec<Value> = (0..2)
            .map(
                |index| json!({ "request": "r", "driver": "d", "pool": "n1", "device": format!("d{index}") }),
            )
            .collect();
        let status = json!({ "allocation": { "devices": { "results": results } } });
        let metadata = json!({ "name": "taken", "namespace": "a", "uid": "taken" });
        let claim = json!({ "metadata": metadata, "spec": { "devices": {} }, "status": status });
        scheduler.device_claim_changed(&typed(claim), NOW);
        // 1 of 4 would be left, or 1 of 2.
        let requests = json!({ "example.com/gpu": "1" });
        let asking =
            pod("p", json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] }));
        let explained = scheduler.explain(&asking);
        let totals: Vec<Option<i64>> =
            explained.nodes.iter().map(crate::explanation::NodeVerdict::total).collect();
        assert_eq!(
            (&*explained.best[0], totals[0], totals[1]),
            (
                expected,
                Some(if kind == "LeastAllocated" { 50 } else { 75 }),
                Some(if kind == "LeastAllocated" { 25 } else { 50 })
            )
        );
        scheduler.pod_changed(&asking, NOW);
        assert_eq!(scheduler.schedule(1, NOW).provisionings[0].decision.binding.node, expected);
    }
}
