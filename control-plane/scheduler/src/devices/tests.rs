//! Pods with claims, seen through the scheduler's decisions.

use std::time::Duration;

use k8s_openapi::api::resource::v1::{AllocationResult, ResourceSlice};
use serde_json::{Value, json};

use super::{Concerned, Devices};
use crate::{
    config::Config,
    scheduler::{Plan, Scheduler},
    testing::{node, pod},
};

const NOW: Duration = Duration::ZERO;
const DRIVER: &str = "gpu.example.com";

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Two nodes in zones a and b, and a class of all devices of the driver.
fn scheduler() -> Scheduler {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    for (name, zone) in [("n1", "a"), ("n2", "b")] {
        scheduler.node_changed(&node(name, json!({ "metadata": { "labels": { "zone": zone } } })), NOW);
    }
    class(&mut scheduler, "gpu", json!({ "selectors": [cel(&format!("device.driver == '{DRIVER}'"))] }));
    scheduler
}

fn class(scheduler: &mut Scheduler, name: &str, spec: Value) {
    scheduler.device_class_changed(&typed(json!({ "metadata": { "name": name }, "spec": spec })), NOW);
}

fn cel(expression: &str) -> Value {
    json!({ "cel": { "expression": expression } })
}

/// A pool of one slice with devices `d0`, `d1`, ..., each with what `device` says.
fn pool(scheduler: &mut Scheduler, name: &str, count: usize, device: Value, reach: Value) {
    let devices: Vec<Value> = (0..count)
        .map(|index| {
            let mut device = device.clone();
            device["name"] = json!(format!("d{index}"));
            device
        })
        .collect();
    slice(scheduler, name, json!({ "devices": devices }), reach);
}

fn slice(scheduler: &mut Scheduler, name: &str, content: Value, reach: Value) {
    let mut spec =
        json!({ "driver": DRIVER, "pool": { "name": name, "generation": 1, "resourceSliceCount": 1 } });
    for part in [content, reach] {
        spec.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
    }
    scheduler.slice_changed(&typed(json!({ "metadata": { "name": name }, "spec": spec })), NOW);
}

fn on(node: &str) -> Value {
    json!({ "nodeName": node })
}

fn exactly(fields: Value) -> Value {
    let mut exactly = json!({ "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1 });
    exactly.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({ "name": "r", "exactly": exactly })
}

fn claim(scheduler: &mut Scheduler, name: &str, requests: Value) {
    claim_with(scheduler, name, json!({ "requests": requests }), json!({}));
}

fn claim_with(scheduler: &mut Scheduler, name: &str, devices: Value, status: Value) {
    let claim = json!({
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "devices": devices }, "status": status,
    });
    scheduler.device_claim_changed(&typed(claim), NOW);
}

fn schedule(scheduler: &mut Scheduler, name: &str, claims: &[&str]) -> Plan {
    let claims: Vec<Value> =
        claims.iter().map(|claim| json!({ "name": claim, "resourceClaimName": claim })).collect();
    let spec = json!({ "containers": [{ "name": "c" }], "resourceClaims": claims });
    scheduler.pod_changed(&pod(name, spec), NOW);
    round(scheduler, 1, 0)
}

/// A round after which nothing is being written any more.
fn round(scheduler: &mut Scheduler, limit: usize, seconds: u64) -> Plan {
    let now = Duration::from_secs(seconds);
    let plan = scheduler.schedule(limit, now);
    for provisioning in &plan.provisionings {
        scheduler.claims_written(&provisioning.decision.binding.uid, now);
    }
    plan
}

#[track_caller]
fn refused(plan: &Plan, reason: &str) {
    let rejected = plan.rejected.first().unwrap_or_else(|| panic!("{:?}", plan.provisionings));
    let end = rejected.message.find(". ").unwrap();
    assert_eq!(&rejected.message[..end], format!("0/2 nodes are available: {reason}"));
}

/// The node, and what was allocated of each claim.
#[track_caller]
fn granted(plan: &Plan) -> (String, Vec<AllocationResult>) {
    let provisioning = plan.provisionings.first().unwrap_or_else(|| panic!("{:?}", plan.rejected));
    let grants = &provisioning.promises.devices.0;
    let allocations = grants.iter().filter_map(|grant| grant.allocation.as_deref().cloned());
    (provisioning.decision.binding.node.clone(), allocations.collect())
}

/// Names of devices, `pool/device`, with their requests.
#[track_caller]
fn devices(plan: &Plan) -> Vec<(String, String)> {
    let (_, allocations) = granted(plan);
    let results = allocations.into_iter().flat_map(|allocation| allocation.devices.unwrap().results.unwrap());
    results.map(|result| (result.request, format!("{}/{}", result.pool, result.device))).collect()
}

fn names(plan: &Plan) -> Vec<String> {
    devices(plan).into_iter().map(|(_, device)| device).collect()
}

#[test]
fn a_device_is_given_once_and_free_again_where_it_is_given_back() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 2, json!({}), on("n2"));
    for name in ["c1", "c2", "c3"] {
        claim(&mut scheduler, name, json!([exactly(json!({}))]));
    }
    let first = schedule(&mut scheduler, "p1", &["c1"]);
    assert_eq!(granted(&first).0, "n2");
    assert_eq!(names(&first), ["p/d0"]);
    assert_eq!(names(&schedule(&mut scheduler, "p2", &["c2"])), ["p/d1"]);
    refused(&schedule(&mut scheduler, "p3", &["c3"]), "2 cannot allocate all claims");
    scheduler.bind_failed("p1", NOW);
    // The one that waits for a device comes before the one that backs off.
    assert_eq!(names(&round(&mut scheduler, 1, 5)).len(), 1);
    // The API shows an allocation: it is counted once, whatever was promised.
    let status = json!({ "allocation": {
        "devices": { "results": [{ "request": "r", "driver": DRIVER, "pool": "p", "device": "d1" }] } } });
    claim_with(&mut scheduler, "c2", json!({ "requests": [exactly(json!({}))] }), status);
    claim(&mut scheduler, "c4", json!([exactly(json!({}))]));
    refused(&schedule(&mut scheduler, "p4", &["c4"]), "2 cannot allocate all claims");
    // The claim is deleted: its device is free.
    scheduler.device_claim_removed(&hawser_api::resource::ObjectKey::new("a", "c2"), NOW);
    let next = round(&mut scheduler, 1, 60);
    assert_eq!(names(&next), ["p/d1"]);
}

#[test]
fn a_promise_stands_while_its_claim_is_being_written() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 1, json!({}), on("n1"));
    claim(&mut scheduler, "c1", json!([exactly(json!({}))]));
    claim(&mut scheduler, "c2", json!([exactly(json!({}))]));
    let named = json!({ "containers": [], "resourceClaims": [{ "name": "c", "resourceClaimName": "c1" }] });
    scheduler.pod_changed(&pod("p1", named), NOW);
    assert_eq!(names(&scheduler.schedule(1, NOW)), ["p/d0"]);
    // The pod is deleted, and the write may come all the same.
    scheduler.pod_removed("p1", NOW);
    refused(&schedule(&mut scheduler, "p2", &["c2"]), "2 cannot allocate all claims");
    scheduler.claims_written("p1", NOW);
    assert_eq!(names(&round(&mut scheduler, 1, 60)), ["p/d0"]);
}

#[test]
fn a_slice_concerns_the_nodes_that_its_pool_is_for_and_nobody_where_it_says_the_same() {
    let made = |name: &str, pool: &str, devices: usize, reach: Value| -> ResourceSlice {
        let devices: Vec<Value> = (0..devices).map(|index| json!({ "name": format!("d{index}") })).collect();
        let mut spec = json!({
            "driver": DRIVER, "pool": { "name": pool, "generation": 1, "resourceSliceCount": 1 }, "devices": devices,
        });
        spec.as_object_mut().unwrap().extend(reach.as_object().unwrap().clone());
        typed(json!({ "metadata": { "name": name, "resourceVersion": "1" }, "spec": spec }))
    };
    let mut devices = Devices::default();
    let on_n1 = Concerned::Node("n1".to_owned());
    assert_eq!(devices.put_slice(&made("s1", "p", 1, on("n1"))), on_n1);
    let serial = devices.slices["s1"].serial;
    let mut touched = made("s1", "p", 1, on("n1"));
    touched.metadata.resource_version = Some("2".to_owned());
    assert_eq!(devices.put_slice(&touched), Concerned::Nobody);
    assert_eq!(devices.slices["s1"].serial, serial, "what was found out about its devices stands");
    assert_eq!(devices.put_slice(&made("s1", "p", 2, on("n1"))), on_n1);
    assert_eq!(devices.put_slice(&made("s2", "p", 1, on("n1"))), on_n1);
    assert_eq!(devices.put_slice(&made("s2", "q", 1, on("n1"))), on_n1);
    assert_eq!(devices.put_slice(&made("s2", "q", 1, on("n2"))), Concerned::All);
    assert_eq!(devices.put_slice(&made("s3", "q", 1, on("n1"))), Concerned::All);
    assert_eq!(devices.remove_slice("s3"), Concerned::All);
    assert_eq!(devices.put_slice(&made("s4", "p", 1, json!({ "allNodes": true }))), Concerned::All);
    assert_eq!(devices.remove_slice("s4"), Concerned::All);
    assert_eq!(devices.remove_slice("s4"), Concerned::Nobody);
    assert_eq!(devices.remove_slice("s1"), on_n1);
    assert_eq!(devices.remove_slice("s2"), Concerned::Node("n2".to_owned()));
    assert!(devices.by_key.is_empty() && devices.local.is_empty() && devices.shared.is_empty());
}

#[test]
fn claims_that_cannot_be_used_are_told() {
    let mut scheduler = scheduler();
    refused(&schedule(&mut scheduler, "p1", &["c"]), "could not find ResourceClaim \"a/c\"");
    claim(&mut scheduler, "c", json!([exactly(json!({ "deviceClassName": "none" }))]));
    let plan = round(&mut scheduler, 1, 5);
    refused(&plan, "request r: device class none does not exist");
    let end = " no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert!(plan.rejected[0].message.ends_with(end), "{}", plan.rejected[0].message);
    class(&mut scheduler, "none", json!({}));
    let plan = round(&mut scheduler, 1, 60);
    refused(&plan, "2 cannot allocate all claims");
    assert!(plan.rejected[0].message.contains(". still not schedulable, preemption: "));
    // A device appears: the pod is tried again.
    pool(&mut scheduler, "p", 1, json!({}), on("n1"));
    assert_eq!(granted(&round(&mut scheduler, 1, 120)).0, "n1");
    let spec =
        json!({ "containers": [], "resourceClaims": [{ "name": "x", "resourceClaimTemplateName": "t" }] });
    scheduler.pod_changed(&pod("p2", spec.clone()), NOW);
    // What a controller is about to make is waited for, and nobody is told.
    let is_quiet = |scheduler: &mut Scheduler, seconds| {
        assert!(round(scheduler, 1, seconds).rejected.is_empty());
        assert!(scheduler.rests("p2"));
    };
    is_quiet(&mut scheduler, 130);
    let mut made = pod("p2", spec);
    made.status =
        Some(typed(json!({ "resourceClaimStatuses": [{ "name": "x", "resourceClaimName": "c2" }] })));
    scheduler.pod_changed(&made, NOW);
    is_quiet(&mut scheduler, 140);
    claim(&mut scheduler, "c2", json!([exactly(json!({}))]));
    refused(
        &round(&mut scheduler, 1, 200),
        "ResourceClaim a/c2 was not created for Pod a/p2 (Pod is not owner)",
    );
}

#[test]
fn selectors_counts_and_constraints_choose() {
    let mut scheduler = scheduler();
    for (name, node, model) in [("small", "n1", "t4"), ("big", "n2", "a100")] {
        let device = json!({
            "attributes": { "model": { "string": model }, "numa": { "int": 0 } },
            "capacity": { "memory": { "value": if model == "t4" { "16Gi" } else { "80Gi" } } },
        });
        pool(&mut scheduler, name, 3, device, on(node));
    }
    let memory = format!("device.capacity['{DRIVER}'].memory.compareTo(quantity('40Gi')) >= 0");
    claim(&mut scheduler, "c1", json!([exactly(json!({ "count": 2, "selectors": [cel(&memory)] }))]));
    assert_eq!(names(&schedule(&mut scheduler, "p1", &["c1"])), ["big/d0", "big/d1"]);
    claim(&mut scheduler, "c2", json!([exactly(json!({ "count": 2, "selectors": [cel(&memory)] }))]));
    refused(&schedule(&mut scheduler, "p2", &["c2"]), "2 cannot allocate all claims");
    let broken = format!("device.attributes['{DRIVER}'].speed > 3");
    claim(&mut scheduler, "c3", json!([exactly(json!({ "selectors": [cel(&broken)] }))]));
    let error = "2 request r: selector #0: CEL runtime error: no such key: speed";
    refused(&schedule(&mut scheduler, "p3", &["c3"]), error);
    // Two devices of one model each: the slice has both.
    let devices: Vec<Value> = ["x", "y", "y", "x"]
        .iter()
        .enumerate()
        .map(|(index, model)| json!({ "name": format!("m{index}"), "attributes": { "model": { "string": model } } }))
        .collect();
    slice(&mut scheduler, "mixed", json!({ "devices": devices }), on("n1"));
    let mixed = cel(&format!("device.attributes['{DRIVER}'].model in ['x', 'y']"));
    let pair = json!([exactly(json!({ "count": 2, "selectors": [mixed] }))]);
    let constrained =
        |kind: &str| json!({ "requests": pair, "constraints": [{ kind: format!("{DRIVER}/model") }] });
    claim_with(&mut scheduler, "same", constrained("matchAttribute"), json!({}));
    assert_eq!(names(&schedule(&mut scheduler, "p4", &["same"])), ["mixed/m0", "mixed/m3"]);
    claim_with(&mut scheduler, "different", constrained("distinctAttribute"), json!({}));
    refused(&schedule(&mut scheduler, "p5", &["different"]), "2 cannot allocate all claims");
}

#[test]
fn patterns_of_a_claim_take_little_together() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 1, json!({}), on("n1"));
    let large = |number: usize| cel(&format!("!device.driver.matches('[^a]{{200}}{number}')"));
    let asking =
        |count: usize| json!([exactly(json!({ "selectors": (0..count).map(large).collect::<Vec<_>>() }))]);
    claim(&mut scheduler, "c1", asking(12));
    let plan = schedule(&mut scheduler, "p1", &["c1"]);
    let message = "CEL compile error: compilation failed: the patterns of all selectors take more than";
    assert!(plan.rejected[0].message.contains(message), "{}", plan.rejected[0].message);
    claim(&mut scheduler, "c2", asking(3));
    assert_eq!(names(&schedule(&mut scheduler, "p2", &["c2"])), ["p/d0"]);
}

#[test]
fn all_devices_are_all_that_are_chosen_or_none() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 3, json!({}), on("n1"));
    let all = json!({ "allocationMode": "All", "count": null });
    claim(&mut scheduler, "c1", json!([exactly(all.clone())]));
    assert_eq!(names(&schedule(&mut scheduler, "p1", &["c1"])), ["p/d0", "p/d1", "p/d2"]);
    claim(&mut scheduler, "c2", json!([exactly(all.clone())]));
    refused(&schedule(&mut scheduler, "p2", &["c2"]), "2 cannot allocate all claims");
    // Admin access takes nothing, and gets what others have.
    let mut watching = all.clone();
    watching["adminAccess"] = json!(true);
    claim(&mut scheduler, "c3", json!([exactly(watching)]));
    let plan = schedule(&mut scheduler, "p3", &["c3"]);
    assert_eq!(names(&plan).len(), 3);
    assert!(granted(&plan).1[0].devices.as_ref().unwrap().results.as_ref().unwrap()[0].admin_access.unwrap());
    // A pool that is not whole would make it fewer.
    let half = json!({ "devices": [{ "name": "x" }], "pool": { "name": "half", "generation": 2, "resourceSliceCount": 2 } });
    slice(&mut scheduler, "half", half, on("n2"));
    claim(&mut scheduler, "c4", json!([exactly(all)]));
    let message = "1 cannot allocate all claims, 1 request r: asks for all devices, but resource pool \
        gpu.example.com/half is currently being updated";
    refused(&schedule(&mut scheduler, "p4", &["c4"]), message);
}

#[test]
fn the_best_alternative_decides_between_nodes() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "small", 4, json!({ "attributes": { "model": { "string": "t4" } } }), on("n1"));
    pool(&mut scheduler, "big", 1, json!({ "attributes": { "model": { "string": "a100" } } }), on("n2"));
    let of = |name: &str, model: &str, count: u64| {
        let selector = cel(&format!("device.attributes['{DRIVER}'].model == '{model}'"));
        json!({ "name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count, "selectors": [selector] })
    };
    let requests = json!([{ "name": "r", "firstAvailable": [of("best", "a100", 1), of("two", "t4", 2)] }]);
    for name in ["c1", "c2", "c3", "c4"] {
        claim(&mut scheduler, name, requests.clone());
    }
    let given = |plan: &Plan| devices(plan)[0].0.clone();
    assert_eq!(given(&schedule(&mut scheduler, "p1", &["c1"])), "r/best");
    let second = schedule(&mut scheduler, "p2", &["c2"]);
    assert_eq!((granted(&second).0.as_str(), given(&second).as_str()), ("n1", "r/two"));
    assert_eq!(given(&schedule(&mut scheduler, "p3", &["c3"])), "r/two");
    refused(&schedule(&mut scheduler, "p4", &["c4"]), "2 cannot allocate all claims");
}

#[test]
fn allocations_are_what_upstream_writes() {
    let mut scheduler = scheduler();
    let opaque = |value: u64| json!({ "opaque": { "driver": DRIVER, "parameters": { "v": value } } });
    class(&mut scheduler, "gpu", json!({ "config": [opaque(1)] }));
    let selector = json!({ "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] }] });
    pool(&mut scheduler, "net", 2, json!({}), json!({ "nodeSelector": selector }));
    let mut config = opaque(2);
    config["requests"] = json!(["r"]);
    let mut other = opaque(3);
    other["requests"] = json!(["s"]);
    let mut second = exactly(json!({ "tolerations": [{ "key": "k", "operator": "Exists" }] }));
    second["name"] = json!("s");
    let devices = json!({ "requests": [exactly(json!({})), second], "config": [config, opaque(4), other] });
    claim_with(&mut scheduler, "c", devices, json!({}));
    let (node, allocations) = granted(&schedule(&mut scheduler, "p", &["c"]));
    assert_eq!(node, "n2");
    let of_class = json!({ "source": "FromClass", "requests": ["r", "s"], "opaque": opaque(1)["opaque"] });
    let of_claim = |requests: Value, value: u64| {
        let mut config = json!({ "source": "FromClaim", "opaque": opaque(value)["opaque"] });
        if !requests.is_null() {
            config["requests"] = requests;
        }
        config
    };
    let expected = json!({
        "devices": {
            "results": [
                { "request": "r", "driver": DRIVER, "pool": "net", "device": "d0" },
                { "request": "s", "driver": DRIVER, "pool": "net", "device": "d1",
                  "tolerations": [{ "key": "k", "operator": "Exists" }] },
            ],
            "config": [of_class, of_claim(json!(["r"]), 2), of_claim(Value::Null, 4), of_claim(json!(["s"]), 3)],
        },
        "nodeSelector": selector,
    });
    assert_eq!(json!(allocations[0]), expected);
}

#[test]
fn tainted_devices_are_for_those_that_tolerate_it() {
    let mut scheduler = scheduler();
    let tainted = json!({ "taints": [{ "key": "broken", "value": "yes", "effect": "NoSchedule" }] });
    pool(&mut scheduler, "p", 2, tainted, on("n1"));
    claim(&mut scheduler, "c1", json!([exactly(json!({}))]));
    refused(&schedule(&mut scheduler, "p1", &["c1"]), "2 cannot allocate all claims");
    let tolerating = |value: &str| {
        let toleration = json!({ "key": "broken", "operator": "Equal", "value": value });
        json!([exactly(json!({ "tolerations": [toleration] }))])
    };
    claim(&mut scheduler, "c2", tolerating("no"));
    refused(&schedule(&mut scheduler, "p2", &["c2"]), "2 cannot allocate all claims");
    claim(&mut scheduler, "c3", tolerating("yes"));
    assert_eq!(names(&schedule(&mut scheduler, "p3", &["c3"])), ["p/d0"]);
}

#[test]
fn partitions_share_the_counters_of_their_device() {
    let mut scheduler = scheduler();
    let counters = json!([{ "name": "gpu-0", "counters": { "memory": { "value": "40Gi" } } }]);
    let part = |name: &str, memory: &str| json!({ "name": name, "consumesCounters": [{ "counterSet": "gpu-0", "counters": { "memory": { "value": memory } } }] });
    let pool = json!({ "name": "p", "generation": 1, "resourceSliceCount": 2 });
    slice(&mut scheduler, "p-counters", json!({ "sharedCounters": counters, "pool": pool }), on("n1"));
    let parts = [part("big", "30Gi"), part("one", "20Gi"), part("two", "20Gi")];
    slice(&mut scheduler, "p-devices", json!({ "devices": parts, "pool": pool }), on("n1"));
    for name in ["c1", "c2"] {
        claim(&mut scheduler, name, json!([exactly(json!({}))]));
    }
    claim(&mut scheduler, "pair", json!([exactly(json!({ "count": 2 }))]));
    // The first choice leaves no room for a second: others are tried.
    assert_eq!(names(&schedule(&mut scheduler, "p1", &["pair"])), ["p/one", "p/two"]);
    refused(&schedule(&mut scheduler, "p2", &["c1"]), "2 cannot allocate all claims");
    scheduler.pod_removed("p1", NOW);
    assert_eq!(names(&round(&mut scheduler, 1, 60)), ["p/big"]);
    refused(&schedule(&mut scheduler, "p3", &["c2"]), "2 cannot allocate all claims");
}

#[test]
fn capacity_is_consumed_in_parts() {
    let mut scheduler = scheduler();
    let policy = json!({ "default": "10Gi", "validRange": { "min": "5Gi", "step": "5Gi", "max": "30Gi" } });
    let device = json!({
        "allowMultipleAllocations": true,
        "capacity": { "memory": { "value": "40Gi", "requestPolicy": policy } },
    });
    pool(&mut scheduler, "p", 1, device, on("n1"));
    let asking = |amount: &str| json!([exactly(json!({ "capacity": { "requests": { "memory": amount } } }))]);
    claim(&mut scheduler, "c1", asking("12Gi"));
    claim(&mut scheduler, "c2", json!([exactly(json!({}))]));
    claim(&mut scheduler, "c3", asking("20Gi"));
    claim(&mut scheduler, "c4", asking("15Gi"));
    claim(&mut scheduler, "c5", asking("31Gi"));
    let consumed = |plan: &Plan| {
        let (_, allocations) = granted(plan);
        let result = allocations[0].devices.as_ref().unwrap().results.as_ref().unwrap()[0].clone();
        assert!(result.share_id.is_some());
        result.consumed_capacity.unwrap()["memory"].0.clone()
    };
    assert_eq!(consumed(&schedule(&mut scheduler, "p1", &["c1"])), "15Gi");
    assert_eq!(consumed(&schedule(&mut scheduler, "p2", &["c2"])), "10Gi");
    refused(&schedule(&mut scheduler, "p3", &["c3"]), "2 cannot allocate all claims");
    assert_eq!(consumed(&schedule(&mut scheduler, "p4", &["c4"])), "15Gi");
    scheduler.pod_removed("p1", NOW);
    scheduler.pod_removed("p4", NOW);
    assert_eq!(consumed(&round(&mut scheduler, 1, 60)), "20Gi");
    refused(&schedule(&mut scheduler, "p5", &["c5"]), "2 cannot allocate all claims");
}

#[test]
fn a_device_of_which_others_have_parts_is_nobodys_alone() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 1, json!({ "allowMultipleAllocations": true }), on("n1"));
    for name in ["c1", "c2"] {
        claim(&mut scheduler, name, json!([exactly(json!({}))]));
    }
    assert_eq!(names(&schedule(&mut scheduler, "p1", &["c1"])), ["p/d0"]);
    // Its driver publishes it anew, as one that is not shared.
    pool(&mut scheduler, "p", 1, json!({}), on("n1"));
    refused(&schedule(&mut scheduler, "p2", &["c2"]), "2 cannot allocate all claims");
    scheduler.pod_removed("p1", NOW);
    assert_eq!(names(&round(&mut scheduler, 1, 60)), ["p/d0"]);
}

#[test]
fn pods_that_share_a_claim_go_where_its_devices_are() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 1, json!({}), on("n2"));
    claim(&mut scheduler, "c", json!([exactly(json!({}))]));
    let first = schedule(&mut scheduler, "p1", &["c"]);
    assert_eq!(granted(&first).0, "n2");
    let second = schedule(&mut scheduler, "p2", &["c"]);
    // The allocation is the first one's to write.
    assert_eq!(granted(&second), ("n2".to_owned(), Vec::new()));
    assert_eq!(second.provisionings[0].promises.devices.0.len(), 1);
    // With the first, the second's devices go.
    scheduler.bind_refused_for_good("p1", NOW);
    scheduler.bind_failed("p2", NOW);
    assert_eq!(granted(&round(&mut scheduler, 1, 60)).1.len(), 1);
}

#[test]
fn an_idle_claim_in_the_way_is_allocated_anew() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p1", 1, json!({}), on("n1"));
    pool(&mut scheduler, "p2", 1, json!({}), on("n2"));
    let only = json!({ "nodeSelectorTerms": [{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }] });
    let allocated = |consumers: Value| {
        json!({
            "allocation": {
                "nodeSelector": only,
                "devices": { "results": [{ "request": "r", "driver": DRIVER, "pool": "p1", "device": "d0" }] },
            },
            "reservedFor": consumers,
        })
    };
    let spec = json!({ "requests": [exactly(json!({}))] });
    claim_with(&mut scheduler, "c", spec.clone(), allocated(json!([])));
    let full = json!({ "nodeName": "n1", "containers": [{ "name": "c", "resources": { "requests": { "cpu": "4" } } }] });
    scheduler.pod_changed(&pod("full", full), NOW);
    let user = pod(
        "p",
        json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }],
            "resourceClaims": [{ "name": "c", "resourceClaimName": "c" }] }),
    );
    scheduler.pod_changed(&user, NOW);
    let plan = round(&mut scheduler, 1, 0);
    refused(&plan, "1 Insufficient cpu, 1 resourceclaim not available on the node");
    assert!(plan.rejected[0].message.contains(". deallocation of ResourceClaim completed, preemption: "));
    assert_eq!(plan.deallocations[0].claim.metadata.name.as_deref(), Some("c"));
    // What others use stays.
    claim_with(
        &mut scheduler,
        "c",
        spec.clone(),
        allocated(json!([{ "resource": "pods", "name": "o", "uid": "o" }])),
    );
    assert!(round(&mut scheduler, 1, 60).deallocations.is_empty());
    claim_with(&mut scheduler, "c", spec, json!({}));
    assert_eq!(granted(&round(&mut scheduler, 1, 120)).0, "n2");
}

/// Pools on each of the nodes, and a claim that takes too many steps there: any two devices of a pool differ, and the last of
/// its six pairs is to be alike.
fn hopeless(scheduler: &mut Scheduler, nodes: &[String]) {
    let devices: Vec<Value> = (0..120)
        .map(|index| json!({ "name": format!("d{index}"), "attributes": { "id": { "int": index } } }))
        .collect();
    for node in nodes {
        slice(scheduler, &format!("p-{node}"), json!({ "devices": devices }), on(node));
    }
    let requests: Vec<Value> = (0..6)
        .map(|index| {
            let mut request = exactly(json!({ "count": 2 }));
            request["name"] = json!(format!("r{index}"));
            request
        })
        .collect();
    let constraints = json!([{ "matchAttribute": format!("{DRIVER}/id"), "requests": ["r5"] }]);
    claim_with(scheduler, "c", json!({ "requests": requests, "constraints": constraints }), json!({}));
}

#[test]
fn what_is_too_much_work_is_put_off() {
    let mut scheduler = scheduler();
    hopeless(&mut scheduler, &["n1".to_owned()]);
    let plan = schedule(&mut scheduler, "p", &["c"]);
    refused(&plan, "1 cannot allocate all claims, 1 timed out trying to allocate devices");
}

#[test]
fn nodes_share_what_a_decision_may_cost_and_the_next_one_goes_on_from_there() {
    let mut scheduler = scheduler();
    let nodes: Vec<String> = (1..=12).map(|index| format!("n{index}")).collect();
    for name in &nodes {
        scheduler.node_changed(&node(name, json!({})), NOW);
    }
    hopeless(&mut scheduler, &nodes);
    let known = |scheduler: &Scheduler| scheduler.devices().kept.lock().outcomes();
    let plan = schedule(&mut scheduler, "p", &["c"]);
    let message = "0/12 nodes are available: 12 timed out trying to allocate devices. ";
    assert!(plan.rejected[0].message.starts_with(message), "{}", plan.rejected[0].message);
    // Why there is no node was found out with what looking for one left: nothing.
    assert_eq!(known(&scheduler), 5);
    // That a search takes too many steps stays so, and is not found out again.
    for attempt in 1..3 {
        scheduler.pod_removed("p", NOW);
        scheduler.pod_changed(
            &pod(
                "p",
                json!({ "containers": [], "resourceClaims": [{ "name": "c", "resourceClaimName": "c" }] }),
            ),
            NOW,
        );
        round(&mut scheduler, 1, 60 * attempt);
    }
    assert_eq!(known(&scheduler), 12);
}

#[test]
fn a_search_is_no_deeper_than_its_bound_whichever_alternatives_it_tries() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 32, json!({ "allowMultipleAllocations": true }), on("n1"));
    let of = |name: &str, count: u64| json!({ "name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count });
    let names: Vec<String> = (0..500).map(|index| format!("c{index}")).collect();
    for name in &names {
        claim(
            &mut scheduler,
            name,
            json!([{ "name": "r", "firstAvailable": [of("many", 32), of("one", 1)] }]),
        );
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let plan = schedule(&mut scheduler, "p", &names);
    refused(&plan, "1 cannot allocate all claims, 1 timed out trying to allocate devices");
}

#[test]
fn groups_get_their_devices_together_or_not_at_all() {
    let mut scheduler = scheduler();
    pool(&mut scheduler, "p", 2, json!({}), on("n1"));
    for name in ["c0", "c1", "c2", "other"] {
        claim(&mut scheduler, name, json!([exactly(json!({}))]));
    }
    for index in 0..3 {
        let mut member = pod(
            &format!("g{index}"),
            json!({ "containers": [], "resourceClaims": [{ "name": "c", "resourceClaimName": format!("c{index}") }] }),
        );
        let labels = [("name", "g"), ("min-available", "3")];
        let label = |(name, value): (&str, &str)| {
            (format!("pod-group.scheduling.sigs.k8s.io/{name}"), value.to_owned())
        };
        member.metadata.labels = Some(labels.into_iter().map(label).collect());
        scheduler.pod_changed(&member, NOW);
    }
    let plan = round(&mut scheduler, 10, 0);
    assert_eq!((plan.provisionings.len(), plan.rejected.len()), (0, 3));
    // Nothing is promised to those that wait.
    assert_eq!(names(&schedule(&mut scheduler, "single", &["other"])), ["p/d0"]);
    scheduler.pod_removed("single", NOW);
    pool(&mut scheduler, "q", 1, json!({}), on("n2"));
    let plan = round(&mut scheduler, 10, 60);
    assert_eq!(plan.provisionings.len(), 3);
}

#[test]
fn devices_that_have_to_be_attached_come_last() {
    let mut scheduler = scheduler();
    let conditions = json!({ "bindsToNode": true, "bindingConditions": ["attached"], "bindingFailureConditions": ["failed"] });
    pool(&mut scheduler, "a-fabric", 1, conditions, json!({ "allNodes": true }));
    pool(&mut scheduler, "local", 1, json!({}), on("n1"));
    let requests = json!([exactly(json!({ "count": 2 }))]);
    claim(&mut scheduler, "c", requests.clone());
    let plan = schedule(&mut scheduler, "p", &["c"]);
    assert_eq!(names(&plan), ["local/d0", "a-fabric/d0"]);
    let (_, allocations) = granted(&plan);
    let mut status = json!({ "allocation": allocations[0], "reservedFor": [{ "resource": "pods", "name": "p", "uid": "p" }] });
    assert_eq!(status["allocation"]["devices"]["results"][1]["bindingConditions"], json!(["attached"]));
    scheduler.bind_failed("p", NOW);
    // A device that will never be attached makes its claim useless: it is allocated anew.
    let failed = json!({
        "type": "failed", "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    status["devices"] =
        json!([{ "driver": DRIVER, "pool": "a-fabric", "device": "d0", "conditions": [failed] }]);
    claim_with(&mut scheduler, "c", json!({ "requests": requests }), status);
    let plan = round(&mut scheduler, 1, 60);
    refused(&plan, "2 resourceclaim not available on the node");
    assert_eq!(plan.deallocations.len(), 1);
}
