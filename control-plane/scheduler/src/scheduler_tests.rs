//! The core against a slow twin, and what it does when writes fail.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;
use crate::{
    extender::{Answer, Nodes},
    testing::{node, pod},
    workloads::ControllerKind,
};

const START: Duration = Duration::ZERO;

fn scheduler() -> Scheduler {
    Scheduler::new(&Config::default(), 7)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn cpu(name: &str, amount: &str) -> Pod {
    pod(name, json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] }))
}

fn bound_to(mut pod: Pod, node: &str) -> Pod {
    pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    pod
}

fn waiting(scheduler: &Scheduler) -> [usize; 3] {
    [Place::Active, Place::BackingOff, Place::Unschedulable].map(|place| scheduler.waiting(place))
}

fn used_cpu(scheduler: &Scheduler) -> i64 {
    scheduler.snapshot().nodes[0].taken.requested.numbers.cpu_milli
}

fn nodes_of(plan: &Plan) -> Vec<(&str, &str)> {
    plan.bindings
        .iter()
        .map(|decision| &decision.binding)
        .map(|it| (it.pod.as_str(), it.node.as_str()))
        .collect()
}

#[test]
fn assumed_pods_take_their_room() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&cpu("a", "3"), START);
    scheduler.pod_changed(&cpu("b", "3"), START);
    let plan = scheduler.schedule(10, START);
    assert_eq!(nodes_of(&plan), [("a", "n1")]);
    let message = "0/1 nodes are available: 1 Insufficient cpu. \
        preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(plan.rejected[0].message, message);
    // An older view of the assumed pod does not bring it back.
    scheduler.pod_changed(&cpu("a", "3"), START);
    assert_eq!(waiting(&scheduler), [0, 0, 1]);
    // Once shown as bound it is counted once.
    scheduler.pod_changed(&bound_to(cpu("a", "3"), "n1"), START);
    assert_eq!(used_cpu(&scheduler), 3000);
}

#[test]
fn requests_without_measure_add_up_and_are_taken_off_again() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    let requests =
        json!({ "cpu": "9223372036854775807", "memory": "8Ei", "example.com/gpu": "9223372036854775807" });
    let greedy = |name: &str| {
        let container = json!({ "name": "c", "resources": { "requests": requests } });
        pod(name, json!({ "containers": [container.clone(), container] }))
    };
    // Users can put a pod on a node themselves, whatever it asks for.
    for name in ["a", "b", "c"] {
        scheduler.pod_changed(&bound_to(greedy(name), "n1"), START);
    }
    scheduler.pod_changed(&greedy("d"), START);
    scheduler.pod_changed(&cpu("e", "1"), START);
    assert_eq!(scheduler.schedule(10, START).bindings.len(), 0);
    for name in ["a", "b", "c"] {
        scheduler.pod_removed(name, START);
    }
    assert_eq!(used_cpu(&scheduler), 0);
    let later = scheduler.next_wakeup().unwrap_or(START);
    assert_eq!(nodes_of(&scheduler.schedule(10, later)), [("e", "n1")]);
}

#[test]
fn failed_binding_gives_the_room_back() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&cpu("a", "3"), START);
    assert_eq!(scheduler.schedule(10, START).bindings.len(), 1);
    scheduler.bind_failed("a", START);
    assert_eq!(used_cpu(&scheduler), 0);
    assert!(scheduler.schedule(10, START).bindings.is_empty());
    let later = scheduler.next_wakeup().unwrap();
    assert_eq!(nodes_of(&scheduler.schedule(10, later)), [("a", "n1")]);
    // The failure of a binding that the API shows as done undoes nothing.
    scheduler.pod_changed(&bound_to(cpu("a", "3"), "n1"), later);
    scheduler.bind_failed("a", later);
    assert_eq!(used_cpu(&scheduler), 3000);
}

#[test]
fn what_changes_of_a_pod_while_it_is_bound_counts_when_that_fails() {
    let assumed = || {
        let mut scheduler = scheduler();
        scheduler.node_changed(&node("n1", json!({})), START);
        scheduler.pod_changed(&cpu("a", "3"), START);
        assert_eq!(scheduler.schedule(10, START).bindings.len(), 1);
        scheduler
    };
    let mut smaller = assumed();
    smaller.pod_changed(&cpu("a", "1"), START);
    smaller.bind_failed("a", START);
    assert_eq!(nodes_of(&smaller.schedule(10, smaller.next_wakeup().unwrap())), [("a", "n1")]);
    assert_eq!(used_cpu(&smaller), 1000);
    // One that goes is not tried again, however long its finalizers keep it.
    let mut going = assumed();
    let mut terminating = cpu("a", "3");
    terminating.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    going.pod_changed(&terminating, START);
    assert_eq!(used_cpu(&going), 3000);
    going.bind_failed("a", START);
    assert_eq!((used_cpu(&going), waiting(&going)), (0, [0, 0, 0]));
}

#[test]
fn waiting_pods_wake_when_room_appears() {
    let late = Duration::from_secs(60);
    type Case = (&'static str, fn(&mut Scheduler, Duration));
    let cases: [Case; 5] = [
        ("a node comes", |scheduler, now| scheduler.node_changed(&node("n2", json!({})), now)),
        ("a node grows", |scheduler, now| {
            let more = json!({ "status": { "allocatable": { "cpu": "9", "memory": "8Gi", "pods": "110" } } });
            scheduler.node_changed(&node("n1", more), now);
        }),
        ("a pod goes", |scheduler, now| scheduler.pod_removed("full", now)),
        ("a pod ends", |scheduler, now| {
            let mut ended = bound_to(cpu("full", "4"), "n1");
            ended.status = serde_json::from_value(json!({ "phase": "Succeeded" })).unwrap();
            scheduler.pod_changed(&ended, now);
        }),
        ("it asks for less", |scheduler, now| scheduler.pod_changed(&cpu("a", "0"), now)),
    ];
    for (name, change) in cases {
        let mut scheduler = scheduler();
        scheduler.node_changed(&node("n1", json!({})), START);
        scheduler.pod_changed(&bound_to(cpu("full", "4"), "n1"), START);
        scheduler.pod_changed(&cpu("a", "1"), START);
        assert_eq!(scheduler.schedule(10, START).rejected.len(), 1, "{name}");
        // What does not help wakes nobody.
        scheduler.node_changed(&node("n1", json!({ "metadata": { "labels": { "x": "y" } } })), late);
        assert_eq!(waiting(&scheduler), [0, 0, 1], "{name}");
        change(&mut scheduler, late);
        assert_eq!(scheduler.schedule(10, late).bindings.len(), 1, "{name}");
    }
}

#[test]
fn a_round_that_its_limit_ends_says_so() {
    let ranked = |name: &str, priority: i32| {
        let mut pod = cpu(name, "4");
        pod.spec.as_mut().unwrap().priority = Some(priority);
        pod
    };
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&bound_to(ranked("low", 0), "n1"), START);
    scheduler.pod_changed(&ranked("high", 10), START);
    assert_eq!(scheduler.schedule(10, START).preemptions.len(), 1);
    // What room there is helps it, but its own is being cleared: it takes a turn, and nothing comes of it.
    scheduler.node_changed(&node("n2", json!({})), START);
    let later = scheduler.next_wakeup().unwrap();
    scheduler.pod_changed(&ranked("other", 5), later);
    let plan = scheduler.schedule(1, later);
    assert_eq!((plan.bindings.len(), plan.rejected.len(), plan.limited), (0, 0, true));
    let plan = scheduler.schedule(2, later);
    assert_eq!((nodes_of(&plan), plan.limited), (vec![("other", "n2")], false));
}

#[test]
fn pods_that_are_not_ours_to_place_are_left_alone() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    scheduler.pod_changed(&pod("other", json!({ "containers": [], "schedulerName": "another" })), START);
    scheduler
        .pod_changed(&pod("gated", json!({ "containers": [], "schedulingGates": [{ "name": "g" }] })), START);
    assert!(scheduler.schedule(10, START).bindings.is_empty());
    scheduler.pod_changed(&pod("gated", json!({ "containers": [] })), START);
    assert_eq!(nodes_of(&scheduler.schedule(10, START)), [("gated", "n1")]);
}

/// With an extender that has a say about all pods.
fn extended() -> Scheduler {
    let file = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, \
        extenders: [{urlPrefix: 'http://127.0.0.1:9', filterVerb: filter}]}";
    Scheduler::new(&Config::default().with_file(file).unwrap(), 7)
}

#[test]
fn what_happens_while_an_extender_is_asked_is_not_lost() {
    for happens in [false, true] {
        let mut scheduler = extended();
        scheduler.node_changed(&node("n1", json!({})), START);
        scheduler.pod_changed(&cpu("a", "1"), START);
        assert!(scheduler.schedule(1, START).question.is_some());
        if happens {
            scheduler.node_changed(&node("n2", json!({})), START);
        }
        scheduler.answered("a", Answer::Nodes(Nodes { scores: [].into(), refused: Vec::new() }));
        let plan = scheduler.schedule(1, START);
        assert_eq!(plan.rejected.len(), 1);
        assert_eq!(plan.question.is_some(), happens);
    }
}

#[test]
fn wishes_that_are_not_considered_are_told() {
    let mut scheduler = extended();
    scheduler.node_changed(&node("n1", json!({})), START);
    let mut grouped = pod("apart", json!({ "containers": [] }));
    let label =
        |(name, value): (&str, &str)| (format!("pod-group.scheduling.sigs.k8s.io/{name}"), value.to_owned());
    grouped.metadata.labels = Some([("name", "g"), ("min-available", "2")].into_iter().map(label).collect());
    for pod in [grouped, pod("plain", json!({ "containers": [] }))] {
        scheduler.pod_changed(&pod, START);
        let question = scheduler.schedule(1, START).question.unwrap();
        let nodes = Nodes { scores: [("n1".to_owned(), 0)].into(), refused: Vec::new() };
        scheduler.answered(&question.pod.uid, Answer::Nodes(nodes));
        let plan = scheduler.schedule(1, START);
        assert_eq!(plan.bindings.len(), 1);
        let told: Vec<_> = plan.partly.iter().flat_map(|pod| pod.not_considered.clone()).collect();
        let expected: &[&str] = match &*question.pod.uid {
            "apart" => &["its pod group, because extenders have a say"],
            _ => &[],
        };
        assert_eq!(told, expected);
    }
}

#[test]
fn what_is_said_of_a_pod_heeds_labels_of_namespaces() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    let mut other = bound_to(cpu("other", "1"), "n1");
    other.metadata.namespace = Some("b".to_owned());
    scheduler.pod_changed(&other, START);
    let term = |label: &str| {
        let required = json!([{
            "namespaceSelector": { "matchLabels": { (label): "yes" } }, "labelSelector": {},
            "topologyKey": "kubernetes.io/hostname",
        }]);
        json!({ "requiredDuringSchedulingIgnoredDuringExecution": required })
    };
    let affinity = json!({ "podAffinity": term("near"), "podAntiAffinity": term("far") });
    scheduler.pod_changed(&pod("a", json!({ "containers": [], "affinity": affinity })), START);
    let said = |scheduler: &mut Scheduler| scheduler.schedule(1, START).rejected.remove(0).message;
    let first = said(&mut scheduler);
    assert!(first.contains("1 node(s) didn't match pod affinity rules"), "{first}");
    let labels = json!({ "metadata": { "name": "b", "labels": { "near": "yes", "far": "yes" } } });
    scheduler.namespace_changed(&serde_json::from_value(labels).unwrap(), START);
    let then = said(&mut scheduler);
    assert!(then.contains("1 node(s) didn't match pod anti-affinity rules"), "{then}");
}

/// A pod of the ReplicaSet `web`.
fn replica(name: &str) -> Pod {
    let mut replica = cpu(name, "10m");
    replica.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web", "controller": true });
    replica.metadata.owner_references = serde_json::from_value(json!([owner])).unwrap();
    replica
}

#[test]
fn a_service_that_comes_later_than_a_pod_spreads_it() {
    let service =
        json!({ "metadata": { "name": "web", "namespace": "a" }, "spec": { "selector": { "app": "web" } } });
    for (known, node_of_next) in [(false, "n1"), (true, "n2")] {
        let mut scheduler = scheduler();
        ["n1", "n2"].into_iter().for_each(|name| scheduler.node_changed(&node(name, json!({})), START));
        scheduler.pod_changed(&bound_to(replica("there"), "n1"), START);
        // By its resources alone n2 is worth less.
        scheduler.pod_changed(&bound_to(cpu("other", "1"), "n2"), START);
        scheduler.pod_changed(&replica("next"), START);
        if known {
            scheduler.workloads().put_service(&serde_json::from_value(service.clone()).unwrap());
        }
        assert_eq!(nodes_of(&scheduler.schedule(1, START)), [("next", node_of_next)]);
        // Once it is there, it makes no difference how it was spread.
        scheduler.pod_changed(&cpu("big", "9"), START);
        assert_eq!(scheduler.schedule(1, START).rejected.len(), 1);
        let before = scheduler.snapshot().version();
        scheduler.pod_changed(&bound_to(replica("next"), node_of_next), START);
        assert_eq!(scheduler.snapshot().version(), before);
    }
}

#[test]
fn replicas_spread_over_zones_and_hosts() {
    let mut scheduler = scheduler();
    for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "b")] {
        let labels = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        scheduler.node_changed(&node(name, labels), START);
    }
    let mut used = Vec::new();
    let selector = serde_json::from_value(json!({ "matchLabels": { "app": "web" } })).unwrap();
    let key = ObjectKey::new("a", "web");
    scheduler.workloads().put_set(ControllerKind::ReplicaSet, &key, Some(&selector));
    for index in 0..8 {
        scheduler.pod_changed(&replica(&format!("p{index}")), START);
        let plan = scheduler.schedule(1, START);
        used.push(plan.bindings[0].binding.node.clone());
    }
    let first: BTreeSet<_> = used[..4].iter().collect();
    assert_eq!(first.len(), 4, "{used:?}");
    let zone = |node: &String| node == "n1" || node == "n2";
    assert_ne!(zone(&used[0]), zone(&used[1]), "{used:?}");
    assert!(first.iter().all(|node| used.iter().filter(|used| used == node).count() == 2), "{used:?}");
}

/// A pod for which no other goes.
fn ranked(name: &str, amount: &str, priority: i32, fields: &serde_json::Value) -> Pod {
    let mut pod = cpu(name, amount);
    let spec = pod.spec.as_mut().unwrap();
    (spec.priority, spec.preemption_policy) = (Some(priority), Some("Never".to_owned()));
    spec.node_selector = serde_json::from_value(fields["nodeSelector"].clone()).unwrap();
    pod.status = serde_json::from_value(fields["status"].clone()).unwrap();
    pod
}

#[test]
fn what_a_nominated_pod_asks_for_no_more_is_everyones() {
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({})), START);
    let nominated = json!({ "nodeSelector": { "near": "yes" }, "status": { "nominatedNodeName": "n1" } });
    scheduler.pod_changed(&ranked("high", "3", 10, &nominated), START);
    scheduler.pod_changed(&ranked("low", "3", 0, &json!({})), START);
    assert!(scheduler.schedule(10, START).bindings.is_empty());
    scheduler.pod_changed(&ranked("high", "1", 10, &nominated), at(20));
    assert_eq!(nodes_of(&scheduler.schedule(10, at(40))), [("low", "n1")]);
}

#[test]
fn a_nomination_that_somebody_else_writes_is_followed() {
    let ranked = |name: &str, priority: i32, fields: serde_json::Value| ranked(name, "3", priority, &fields);
    let near = json!({ "near": "yes" });
    let mut scheduler = scheduler();
    scheduler.node_changed(&node("n1", json!({ "metadata": { "labels": near } })), START);
    scheduler.pod_changed(&bound_to(ranked("first", 10, json!({})), "n1"), START);
    scheduler.pod_changed(&ranked("high", 10, json!({ "nodeSelector": near })), START);
    assert_eq!(scheduler.schedule(1, START).rejected.len(), 1);
    // Room is made by somebody who writes for whom it is, who waits for more than that.
    let nominated = json!({ "nodeSelector": near, "status": { "nominatedNodeName": "n2" } });
    scheduler.pod_changed(&ranked("high", 10, nominated), START);
    scheduler.node_changed(&node("n2", json!({})), START);
    scheduler.pod_changed(&ranked("low", 0, json!({})), at(1));
    assert!(scheduler.schedule(10, at(20)).bindings.is_empty());
    // What is given up is everyone's.
    scheduler.pod_changed(&ranked("high", 10, json!({ "nodeSelector": near })), at(30));
    assert_eq!(nodes_of(&scheduler.schedule(10, at(40))), [("low", "n2")]);
}

/// Nodes without the resource are looked at only to say why they are refused.
#[test]
fn a_resource_that_few_nodes_have_is_found_and_its_lack_is_told() {
    let mut scheduler = scheduler();
    let gpus = |count: &str| json!({ "status": { "allocatable": { "cpu": "4", "pods": "10", "example.com/gpu": count } } });
    let with_gpu = |name: &str| {
        let requests = json!({ "cpu": "1", "example.com/gpu": "1" });
        pod(name, json!({ "containers": [{ "name": "c", "resources": { "requests": requests } }] }))
    };
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
    for (name, fields) in [("n1", json!({})), ("n2", gpus("1")), ("n3", tainted)] {
        scheduler.node_changed(&node(name, fields), START);
    }
    scheduler.pod_changed(&with_gpu("a"), START);
    assert_eq!(nodes_of(&scheduler.schedule(1, START)), [("a", "n2")]);
    scheduler.pod_changed(&with_gpu("b"), START);
    let told = |plan: &Plan| plan.rejected[0].message.split(" preemption").next().unwrap().to_owned();
    let message =
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient example.com/gpu.";
    assert_eq!(told(&scheduler.schedule(1, START)), message);
    // It comes to a node, and goes with it.
    scheduler.node_changed(&node("n1", gpus("1")), at(20));
    assert_eq!(nodes_of(&scheduler.schedule(1, at(20))), [("b", "n1")]);
    scheduler.node_removed("n1", at(30));
    scheduler.node_changed(&node("n1", gpus("2")), at(40));
    scheduler.pod_changed(&with_gpu("c"), at(40));
    assert_eq!(nodes_of(&scheduler.schedule(1, at(40))), [("c", "n1")]);
    scheduler.node_changed(&node("n1", json!({})), at(50));
    scheduler.pod_removed("a", at(50));
    scheduler.pod_changed(&with_gpu("d"), at(50));
    assert_eq!(nodes_of(&scheduler.schedule(1, at(50))), [("d", "n2")]);
}
