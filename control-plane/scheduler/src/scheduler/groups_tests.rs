//! Pod groups: all of their pods, or none.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Config,
    random::Random,
    testing::{node, pod, seeds},
};

const START: Duration = Duration::ZERO;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A pod of a group that asks for as many cores.
fn member(name: &str, group: &str, min: usize, cpu: usize, fields: Value) -> Pod {
    let mut spec =
        json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu.to_string() } } }] });
    for (field, value) in fields.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let mut pod = pod(name, spec);
    let labels = [
        ("pod-group.scheduling.sigs.k8s.io/name", group.to_owned()),
        ("pod-group.scheduling.sigs.k8s.io/min-available", min.to_string()),
    ];
    pod.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value)).into());
    pod
}

fn alone(name: &str, cpu: usize, fields: Value) -> Pod {
    let mut pod = member(name, "", 0, cpu, fields);
    pod.metadata.labels = None;
    pod
}

/// As many nodes, each with 4 cores.
fn cluster(nodes: usize) -> Scheduler {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    for index in 0..nodes {
        scheduler.node_changed(&node(&format!("n{index}"), json!({})), START);
    }
    scheduler
}

fn placed(plan: &Plan) -> Vec<&str> {
    let mut names: Vec<&str> = plan.bindings.iter().map(|decision| decision.binding.pod.as_str()).collect();
    names.sort_unstable();
    names
}

fn messages(plan: &Plan) -> BTreeMap<&str, &str> {
    plan.rejected.iter().map(|rejected| (rejected.pod.key.name.as_str(), rejected.message.as_str())).collect()
}

fn used_cpu(scheduler: &Scheduler) -> i64 {
    scheduler.snapshot().nodes.iter().map(|node| node.taken.requested.numbers.cpu_milli).sum()
}

fn bound(mut pod: Pod, node: &str) -> Pod {
    pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
    pod
}

#[test]
fn a_group_waits_until_it_is_complete() {
    let mut scheduler = cluster(2);
    for name in ["a", "b"] {
        scheduler.pod_changed(&member(name, "g", 3, 2, json!({})), START);
    }
    let plan = scheduler.schedule(10, START);
    assert_eq!(placed(&plan), Vec::<&str>::new());
    assert_eq!(messages(&plan)["a"], "pod group \"g\" has 2 of the 3 pods that it needs.");
    // Another group of that name is another group.
    let mut other = member("x", "g", 3, 2, json!({}));
    other.metadata.namespace = Some("b".to_owned());
    scheduler.pod_changed(&other, START);
    assert_eq!(placed(&scheduler.schedule(10, START)), Vec::<&str>::new());
    // The last of them comes: those that wait come with it, whatever their back-off.
    scheduler.pod_changed(&member("c", "g", 3, 2, json!({})), START);
    assert_eq!(placed(&scheduler.schedule(1, START)), ["a", "b", "c"]);
}

#[test]
fn a_group_waits_without_a_word_for_claims_that_are_being_made() {
    let mut scheduler = cluster(2);
    let unmade = json!({ "resourceClaims": [{ "name": "x", "resourceClaimTemplateName": "t" }] });
    for (name, fields) in [("a", json!({})), ("b", unmade)] {
        scheduler.pod_changed(&member(name, "g", 2, 2, fields), START);
    }
    let plan = scheduler.schedule(10, START);
    assert_eq!((placed(&plan).len(), messages(&plan).len()), (0, 0));
    assert!(scheduler.rests("a") && scheduler.rests("b"));
    // One that is ready makes the group complete, and the other goes on waiting.
    scheduler.pod_changed(&member("c", "g", 2, 2, json!({})), START);
    let plan = scheduler.schedule(10, START);
    assert_eq!((placed(&plan), messages(&plan).len()), (vec!["a", "c"], 0));
    assert!(scheduler.rests("b"));
}

#[test]
fn a_group_that_fits_in_part_takes_nothing() {
    let mut scheduler = cluster(2);
    scheduler.pod_changed(&bound(alone("other", 2, json!({})), "n0"), START);
    for name in ["a", "b", "c", "d"] {
        scheduler.pod_changed(&member(name, "g", 4, 2, json!({})), START);
    }
    scheduler.pod_changed(&alone("late", 2, json!({})), at(1));
    let plan = scheduler.schedule(1, at(1));
    assert_eq!(placed(&plan), Vec::<&str>::new());
    assert_eq!(used_cpu(&scheduler), 2000);
    let first = "pod group \"g\": 3 more of its pods could run, and 4 are needed.";
    let preemption = "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    let messages = messages(&plan);
    let mut all: Vec<&str> = messages.values().copied().collect();
    all.sort_by_key(|message| message.len());
    assert_eq!(all[0], format!("{first} {preemption}"));
    assert_eq!(all[3], format!("{first} 0/2 nodes are available: 2 Insufficient cpu. {preemption}"));
    // Whoever comes after it has the room.
    assert_eq!(placed(&scheduler.schedule(1, at(1))), ["late"]);
    scheduler.pod_removed("late", at(1));
    assert_eq!(placed(&scheduler.schedule(9, at(9))), Vec::<&str>::new());
    // Every one of them had a place by itself all the time: the group is woken all the same.
    scheduler.pod_removed("other", at(9));
    assert_eq!(placed(&scheduler.schedule(1, at(30))), ["a", "b", "c", "d"]);
}

#[test]
fn pods_that_have_a_node_or_succeeded_count() {
    let mut scheduler = cluster(1);
    scheduler.pod_changed(&bound(member("a", "g", 3, 1, json!({})), "n0"), START);
    let mut over = bound(member("b", "g", 3, 1, json!({})), "n0");
    over.status = Some(serde_json::from_value(json!({ "phase": "Succeeded" })).unwrap());
    scheduler.pod_changed(&over, START);
    scheduler.pod_changed(&member("c", "g", 3, 1, json!({})), START);
    assert_eq!(placed(&scheduler.schedule(1, START)), ["c"]);
    // A binding that fails is tried again, alone.
    scheduler.bind_failed("c", START);
    assert_eq!(placed(&scheduler.schedule(1, at(5))), ["c"]);
    scheduler.bind_failed("c", at(5));
    // Who is gone, or going, does not count.
    scheduler.pod_removed("b", at(5));
    let plan = scheduler.schedule(1, at(20));
    assert_eq!(messages(&plan)["c"], "pod group \"g\" has 2 of the 3 pods that it needs.");
}

#[test]
fn pods_of_an_earlier_run_do_not_count() {
    let seconds = |seconds: u64| json!(format!("2026-01-01T00:00:{seconds:02}Z"));
    let of_job = |name: &str, job: Option<&str>, created: u64| {
        let mut pod = member(name, "g", 2, 1, json!({}));
        let owner = |job| json!([{ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job, "controller": true }]);
        pod.metadata.owner_references = job.map(|job| serde_json::from_value(owner(job)).unwrap());
        pod.metadata.creation_timestamp = serde_json::from_value(seconds(created)).unwrap();
        pod
    };
    let over = |pod: Pod, phase: &str, ended: u64| {
        let mut over = bound(pod, "n0");
        let terminated = json!({ "exitCode": 0, "finishedAt": seconds(ended) });
        let container = json!({ "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": { "terminated": terminated } });
        over.status = Some(
            serde_json::from_value(json!({ "phase": phase, "containerStatuses": [container] })).unwrap(),
        );
        over
    };
    let first = Some("first");
    for (name, done, next, counts) in [
        ("the same job", over(of_job("a", first, 0), "Succeeded", 5), of_job("b", first, 9), true),
        ("another job", over(of_job("a", first, 0), "Succeeded", 5), of_job("b", Some("second"), 9), false),
        ("what failed", over(of_job("a", first, 0), "Failed", 5), of_job("b", first, 9), false),
        ("without a job, together", over(of_job("a", None, 0), "Succeeded", 5), of_job("b", None, 1), true),
        ("without a job, later", over(of_job("a", None, 0), "Succeeded", 5), of_job("b", None, 9), false),
    ] {
        let mut scheduler = cluster(1);
        scheduler.pod_changed(&done, START);
        scheduler.pod_changed(&next, START);
        assert_eq!(scheduler.schedule(1, START).bindings.len(), usize::from(counts), "{name}");
    }
}

#[test]
fn more_than_a_group_needs_is_on_its_own() {
    let mut scheduler = cluster(1);
    for name in ["a", "b", "c"] {
        scheduler.pod_changed(&member(name, "g", 2, 2, json!({})), START);
    }
    let plan = scheduler.schedule(1, START);
    assert_eq!(plan.bindings.len(), 2);
    let message = plan.rejected[0].message.as_str();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
}

#[test]
fn pods_are_preempted_for_a_whole_group_or_not_at_all() {
    for (min, fits) in [(2, true), (3, false)] {
        let mut scheduler = cluster(2);
        for index in 0..2 {
            let name = format!("low{index}");
            scheduler.pod_changed(&bound(alone(&name, 3, json!({})), &format!("n{index}")), START);
        }
        let names = ["a", "b", "c"];
        for name in &names[..min] {
            scheduler.pod_changed(&member(name, "g", min, 3, json!({ "priority": 10 })), START);
        }
        let plan = scheduler.schedule(10, START);
        assert_eq!(placed(&plan), Vec::<&str>::new());
        // Nothing is gone yet.
        assert_eq!(used_cpu(&scheduler), 6000);
        if !fits {
            assert!(plan.preemptions.is_empty());
            assert!(plan.rejected.iter().all(|rejected| rejected.nomination == Nomination::Keep));
            continue;
        }
        let mut victims: Vec<String> =
            plan.preemptions.iter().map(|preemption| preemption.victims[0].key.name.clone()).collect();
        victims.sort_unstable();
        assert_eq!(victims, ["low0", "low1"]);
        // The nodes are kept for the group, and nobody of it is tried before they are free.
        scheduler.pod_changed(&alone("thief", 3, json!({})), at(1));
        scheduler.pod_removed("low0", at(1));
        let plan = scheduler.schedule(10, at(20));
        assert_eq!(placed(&plan), Vec::<&str>::new());
        scheduler.pod_removed("low1", at(20));
        for name in &names[..min] {
            scheduler.cleared(name, true, at(20));
        }
        assert_eq!(placed(&scheduler.schedule(1, at(40))), ["a", "b"]);
    }
}

#[test]
fn the_victims_of_a_group_are_counted_together_for_budgets() {
    let mut scheduler = cluster(3);
    for (node, name, priority) in [("n0", "web0", 1), ("n1", "web1", 1), ("n2", "other", 2)] {
        let mut pod = bound(alone(name, 4, json!({ "priority": priority })), node);
        pod.metadata.labels = Some([("app".to_owned(), name[..3].to_owned())].into());
        scheduler.pod_changed(&pod, START);
    }
    let budget = json!({
        "metadata": { "name": "web", "namespace": "a" },
        "spec": { "selector": { "matchLabels": { "app": "web" } } },
        "status": { "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2 },
    });
    scheduler.budget_changed(&serde_json::from_value(budget).unwrap());
    for name in ["a", "b"] {
        scheduler.pod_changed(&member(name, "g", 2, 4, json!({ "priority": 10 })), START);
    }
    let plan = scheduler.schedule(10, START);
    let victims = plan.preemptions.iter().flat_map(|preemption| &preemption.victims);
    let mut apps: Vec<&str> = victims.map(|victim| &victim.key.name[..3]).collect();
    apps.sort_unstable();
    assert_eq!(apps, ["oth", "web"]);
}

fn object(name: &str, spec: Value) -> k8s_openapi::api::scheduling::v1alpha2::PodGroup {
    serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "a" }, "spec": spec })).unwrap()
}

/// A pod that names the PodGroup `g`.
fn named(name: &str, cpu: usize) -> Pod {
    alone(name, cpu, json!({ "schedulingGroup": { "podGroupName": "g" } }))
}

#[test]
fn a_pod_group_object_says_how_many_pods_are_needed() {
    let mut scheduler = cluster(2);
    for name in ["a", "b"] {
        scheduler.pod_changed(&named(name, 2), START);
    }
    let plan = scheduler.schedule(10, START);
    assert_eq!(messages(&plan)["a"], "waiting for the pod group \"g\" to be created.");
    let three = json!({ "schedulingPolicy": { "gang": { "minCount": 3 } } });
    scheduler.pod_group_changed(&object("g", three), START);
    let plan = scheduler.schedule(10, at(20));
    assert_eq!(messages(&plan)["a"], "pod group \"g\" has 2 of the 3 pods that it needs.");
    scheduler.pod_changed(&named("c", 2), at(20));
    assert_eq!(placed(&scheduler.schedule(1, at(20))), ["a", "b", "c"]);
}

#[test]
fn pods_that_are_alike_wait_each_for_its_own_group() {
    let mut scheduler = cluster(1);
    for (name, group) in [("a", "g"), ("b", "h")] {
        let fields = json!({ "schedulingGroup": { "podGroupName": group } });
        scheduler.pod_changed(&alone(name, 1, fields), START);
    }
    assert_eq!(scheduler.schedule(10, START).rejected.len(), 2);
    for (group, name) in [("h", "b"), ("g", "a")] {
        let basic = json!({ "schedulingPolicy": { "basic": {} } });
        scheduler.pod_group_changed(&object(group, basic), at(20));
        assert_eq!(placed(&scheduler.schedule(10, at(20))), [name]);
    }
}

#[test]
fn a_basic_group_is_placed_pod_by_pod() {
    let mut scheduler = cluster(1);
    scheduler.pod_group_changed(&object("g", json!({ "schedulingPolicy": { "basic": {} } })), START);
    for name in ["a", "b", "c"] {
        scheduler.pod_changed(&named(name, 2), START);
    }
    assert_eq!(placed(&scheduler.schedule(10, START)), ["a", "b"]);
}

#[test]
fn a_group_is_kept_in_one_topology_domain() {
    let rack = |scheduler: &mut Scheduler, name: &str, rack: &str| {
        let labels = json!({ "metadata": { "labels": { "rack": rack } } });
        scheduler.node_changed(&node(name, labels), START);
    };
    let mut scheduler = cluster(1);
    rack(&mut scheduler, "r1", "r");
    for name in ["s1", "s2"] {
        rack(&mut scheduler, name, "s");
    }
    let policy = json!({
        "schedulingPolicy": { "gang": { "minCount": 3 } }, "schedulingConstraints": { "topology": [{ "key": "rack" }] },
    });
    scheduler.pod_group_changed(&object("g", policy), START);
    for name in ["a", "b", "c"] {
        scheduler.pod_changed(&named(name, 3), START);
    }
    // Four nodes have room, and no rack has three.
    let plan = scheduler.schedule(10, START);
    assert_eq!(placed(&plan), Vec::<&str>::new());
    let message = messages(&plan)["a"].to_owned();
    let first = "pod group \"g\": 2 more of its pods could run with rack=s, and 3 are needed.";
    assert!(message.starts_with(first), "{message}");
    assert_eq!(used_cpu(&scheduler), 0);
    rack(&mut scheduler, "s3", "s");
    let plan = scheduler.schedule(1, at(20));
    assert_eq!(placed(&plan), ["a", "b", "c"]);
    assert!(plan.bindings.iter().all(|decision| decision.binding.node.starts_with('s')));
    // Who comes later goes where the others are.
    scheduler.pod_changed(&named("d", 1), at(20));
    assert!(scheduler.schedule(1, at(20)).bindings[0].binding.node.starts_with('s'));
}

/// Groups of pods that are alike, in clusters that are too small for all: what is placed is whole, and what is not placed
/// would not fit.
#[test]
fn groups_are_whole_and_none_waits_that_would_fit() {
    let seeds = seeds();
    let (mut whole, mut waiting) = (0, 0);
    for seed in 1..=seeds {
        let mut random = Random::new(seed * 7919);
        let mut below = |limit: usize| random.index(limit);
        let nodes = 1 + below(5);
        let mut scheduler = cluster(nodes);
        let (mut free, mut now) = (vec![4; nodes], START);
        let mut on: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for round in 0..12 {
            let (count, cpu) = (2 + below(4), 1 + below(3));
            let name = format!("g{round}");
            for index in 0..count {
                scheduler.pod_changed(&member(&format!("{name}-{index}"), &name, count, cpu, json!({})), now);
            }
            let plan = scheduler.schedule(1, now);
            let room: usize = free.iter().map(|free| free / cpu).sum();
            assert_eq!(
                plan.bindings.len(),
                if room >= count { count } else { 0 },
                "seed {seed}, round {round}"
            );
            (whole, waiting) = if room >= count { (whole + 1, waiting) } else { (whole, waiting + 1) };
            for decision in &plan.bindings {
                let slot: usize = decision.binding.node[1..].parse().unwrap();
                assert!(free[slot] >= cpu, "seed {seed}, round {round}");
                free[slot] -= cpu;
                on.insert(decision.binding.pod.clone(), (slot, cpu));
            }
            assert_eq!(used_cpu(&scheduler), 1000 * (4 * nodes - free.iter().sum::<usize>()) as i64);
            // Groups that wait are out of the way of the next ones.
            for index in 0..if room >= count { 0 } else { count } {
                scheduler.pod_removed(&format!("{name}-{index}"), now);
            }
            if below(2) == 0
                && let Some((name, (slot, cpu))) = on.pop_first()
            {
                scheduler.pod_removed(&name, now);
                free[slot] += cpu;
            }
            now += at(1000);
        }
    }
    assert!(whole > 2 * seeds && waiting > 2 * seeds, "{whole} whole, {waiting} waiting");
}

#[test]
fn a_group_that_is_to_be_on_one_host_finds_the_one_with_room() {
    let mut scheduler = cluster(50);
    for index in (0..50).filter(|index| *index != 31) {
        scheduler
            .pod_changed(&bound(alone(&format!("other{index}"), 2, json!({})), &format!("n{index}")), START);
    }
    let policy = json!({
        "schedulingPolicy": { "gang": { "minCount": 4 } },
        "schedulingConstraints": { "topology": [{ "key": "kubernetes.io/hostname" }] },
    });
    scheduler.pod_group_changed(&object("g", policy), START);
    for name in ["a", "b", "c", "d"] {
        scheduler.pod_changed(&named(name, 1), START);
    }
    let plan = scheduler.schedule(1, START);
    assert_eq!(placed(&plan), ["a", "b", "c", "d"]);
    assert!(plan.bindings.iter().all(|decision| decision.binding.node == "n31"));
}
