//! The scheduler as a whole, against an API server in memory, on a paused clock.

mod fake;

use std::sync::Arc;

use fake::{
    Connection, Fake, Fault,
    scenario::{bound, cluster, condition, node, pod, random, scenario, seeds, until_told},
};
use hawser_api::{client::Binding, election::Election};
use hawser_scheduler::{Config, run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_in_events() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    fake.put("pods", pod("early", 1));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        fake.put("pods", pod("late", 1));
        fake.until("pods", |pods| bound(pods) == 2).await;
        fake.until("events", |events| events.len() == 2).await;
        let event =
            fake.all("events").into_iter().find(|event| event["involvedObject"]["name"] == "late").unwrap();
        assert_eq!(event["message"], "Successfully assigned a/late to n1");
        assert_eq!(event["reason"], "Scheduled");
        assert_eq!(event["source"]["component"], "default-scheduler");
        assert_eq!(event["involvedObject"]["uid"], "uid-late");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_fits_nowhere_says_why_and_is_tried_again() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 1));
    fake.put("pods", pod("big", 4));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| condition(&pods[0])["reason"] == "Unschedulable").await;
        let pods = fake.all("pods");
        assert_eq!(condition(&pods[0])["type"], "PodScheduled");
        assert_eq!(condition(&pods[0])["status"], "False");
        let message = "0/1 nodes are available: 1 Insufficient cpu. \
            preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        assert_eq!(condition(&pods[0])["message"], message);
        fake.until("events", |events| events.iter().any(|event| event["reason"] == "FailedScheduling")).await;
        fake.put("nodes", node("n2", 8));
        fake.until("pods", |pods| pods[0]["spec"]["nodeName"] == "n2").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_somebody_else_binds_is_not_told_that_it_waits() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 1));
    let [namespace, name, uid, node] = ["a", "big", "uid-big", "elsewhere"].map(str::to_owned);
    fake.overtake(Binding { namespace, pod: name, uid, node });
    fake.put("pods", pod("big", 4));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        assert_eq!(*condition(&fake.all("pods")[0]), Value::Null);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_same_news_counts_up() {
    let fake = Arc::new(Fake::default());
    fake.put("pods", pod("lonely", 1));
    scenario(fake, |fake| async move {
        // Without nodes nothing but time wakes the pod.
        fake.until("events", |events| events.iter().any(|event| event["count"] == 2)).await;
        let events = fake.all("events");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["message"], "no nodes available to schedule pods");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn write_failures_are_undone_and_nothing_is_bound_twice() {
    for fault in [Fault::Refuse, Fault::LoseBefore, Fault::LoseAfter] {
        let fake = Arc::new(Fake::default());
        fake.put("nodes", node("n1", 1));
        fake.put("nodes", node("n2", 1));
        fake.put("pods", pod("a", 1));
        fake.put("pods", pod("b", 1));
        fake.fail_next(&[fault, Fault::None, fault]);
        scenario(fake, |fake| async move {
            fake.until("pods", |pods| bound(pods) == 2).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_comes_late_takes_no_room_of_another_pod() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 1));
    fake.put("pods", pod("a", 1));
    fake.put("pods", pod("b", 1));
    fake.fail_next(&[Fault::Late]);
    scenario(fake, |fake| async move {
        let at = fake.clone();
        let has_come = || at.late_writes.load(std::sync::atomic::Ordering::Relaxed) == 1;
        fake.until("pods", |pods| has_come() && bound(pods) == 1).await;
    })
    .await;
}

fn ranked(name: &str, cpu: u32, priority: u64) -> Value {
    let mut pod = pod(name, cpu);
    pod["spec"]["priority"] = priority.into();
    pod
}

/// The node is gone, and its pods with it.
fn lose_node(fake: &Fake, node: &str) {
    fake.remove("nodes", node);
    for pod in fake.all("pods").iter().filter(|pod| pod["spec"]["nodeName"] == node) {
        fake.remove("pods", &format!("a/{}", pod["metadata"]["name"].as_str().unwrap()));
    }
}

/// Pods of high priority that wait although one of low priority has a place.
fn waits_unjustly(pods: &[Value]) -> bool {
    let any = |high: bool, placed: bool| {
        pods.iter().any(|pod| {
            (pod["spec"]["priority"] == 10) == high && pod["spec"]["nodeName"].is_string() == placed
        })
    };
    any(true, false) && any(false, true)
}

#[tokio::test(start_paused = true)]
async fn capacity_holds_under_a_storm_of_pods_faults_and_losses() {
    for seed in 1..=seeds() {
        let fake = cluster(5, 4);
        let mut next = random(seed);
        let faults: Vec<Fault> = (0..100)
            .map(|_| match next(6) {
                0 => Fault::Refuse,
                1 => Fault::LoseBefore,
                2 => Fault::LoseAfter,
                3 => Fault::Late,
                _ => Fault::None,
            })
            .collect();
        fake.fail_next(&faults);
        scenario(fake, |fake| async move {
            for index in 0..40 {
                fake.put("pods", ranked(&format!("p{index}"), 1, 10 * next(2)));
                match next(8) {
                    0 | 1 => {
                        let victim = format!("a/p{}", next(index + 1));
                        fake.remove("pods", &victim);
                    }
                    2 => {
                        let lost = format!("n{}", next(5));
                        lose_node(&fake, &lost);
                        tokio::task::yield_now().await;
                        fake.put("nodes", node(&lost, 4));
                    }
                    3 => fake.cut_watches(next(2) == 0),
                    4 => fake.refuse_writes(3),
                    _ => (),
                }
                if next(3) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            // 20 cores in all: as many pods as fit end up with a node, those of high priority before others.
            fake.until("pods", |pods| bound(pods) == pods.len().min(20) && !waits_unjustly(pods)).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_high_priority_takes_the_place_of_others() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    for index in 0..4 {
        fake.put("pods", pod(&format!("low{index}"), 1));
    }
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 4).await;
        // The first attempt to delete fails: the pod is tried again.
        fake.refuse_writes(3);
        fake.put("pods", ranked("high", 3, 10));
        fake.until("pods", |pods| pods.len() == 2 && bound(pods) == 2).await;
        let high = fake.all("pods").into_iter().find(|pod| pod["metadata"]["name"] == "high").unwrap();
        assert_eq!(high["status"]["nominatedNodeName"], "n1");
        let deleted = fake.deleted();
        assert_eq!(deleted.len(), 3);
        for victim in &deleted {
            let condition = victim["status"]["conditions"].as_array().unwrap().last().unwrap();
            assert_eq!(
                (&condition["type"], &condition["status"]),
                (&json!("DisruptionTarget"), &json!("True"))
            );
            assert_eq!(condition["reason"], "PreemptionByScheduler");
            let message = "default-scheduler: preempting to accommodate a higher priority pod";
            assert_eq!(condition["message"], message);
        }
        fake.until("events", |events| {
            events.iter().filter(|event| event["reason"] == "Preempted").count() == 3
        })
        .await;
        let events = fake.all("events");
        let event = events.iter().find(|event| event["reason"] == "Preempted").unwrap();
        assert_eq!(event["message"], "Preempted by pod uid-high on node n1");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_preempt_says_so() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 1));
    fake.put("pods", pod("low", 1));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        let mut polite = ranked("polite", 1, 10);
        polite["spec"]["preemptionPolicy"] = "Never".into();
        fake.put("pods", polite);
        let message = "0/1 nodes are available: 1 Insufficient cpu. \
            preemption: not eligible due to preemptionPolicy=Never.";
        fake.until("pods", |pods| pods.iter().any(|pod| condition(pod)["message"] == message)).await;
        assert_eq!(bound(&fake.all("pods")), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_bound_after_its_volumes() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    let class = |name: &str, provisioner: &str| json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer" });
    fake.put("storageclasses", class("local", "kubernetes.io/no-provisioner"));
    fake.put("storageclasses", class("made", "disks.example.com"));
    let size = json!({ "storage": "1Gi" });
    fake.put(
        "persistentvolumes",
        json!({
            "metadata": { "name": "v" }, "status": { "phase": "Available" },
            "spec": { "storageClassName": "local", "capacity": size, "accessModes": ["ReadWriteOnce"] },
        }),
    );
    let claim = |name: &str, class: &str| {
        json!({
            "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
            "spec": { "storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": { "requests": size } },
        })
    };
    fake.put("persistentvolumeclaims", claim("old", "local"));
    fake.put("persistentvolumeclaims", claim("new", "made"));
    let mut user = pod("user", 1);
    user["spec"]["volumes"] = json!([
        { "name": "old", "persistentVolumeClaim": { "claimName": "old" } },
        { "name": "new", "persistentVolumeClaim": { "claimName": "new" } },
    ]);
    fake.put("pods", user);
    scenario(fake, |fake| async move {
        fake.until("persistentvolumes", |all| all[0]["spec"]["claimRef"]["uid"] == "uid-old").await;
        let selected = "volume.kubernetes.io/selected-node";
        fake.until("persistentvolumeclaims", |all| {
            all.iter().any(|one| one["metadata"]["annotations"][selected] == "n1")
        })
        .await;
        assert_eq!(bound(&fake.all("pods")), 0);
        // What the controllers of volumes do.
        for mut claim in fake.all("persistentvolumeclaims") {
            claim["spec"]["volumeName"] = "v".into();
            claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
            fake.put("persistentvolumeclaims", claim);
        }
        fake.until("pods", |pods| bound(pods) == 1).await;
    })
    .await;
}

/// A node, a class whose volumes are made when a pod has a node, a claim of that class and a pod that uses it.
fn put_user_of_a_volume(fake: &Fake) {
    fake.put("nodes", node("n1", 4));
    let class = json!({ "metadata": { "name": "made" }, "provisioner": "disks.example.com", "volumeBindingMode": "WaitForFirstConsumer" });
    fake.put("storageclasses", class);
    let spec = json!({ "storageClassName": "made", "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    let metadata = json!({ "name": "c", "namespace": "a", "uid": "uid-c" });
    fake.put("persistentvolumeclaims", json!({ "metadata": metadata, "spec": spec }));
    let mut user = pod("user", 1);
    user["spec"]["volumes"] = json!([{ "name": "c", "persistentVolumeClaim": { "claimName": "c" } }]);
    fake.put("pods", user);
}

const SELECTED: &str = "volume.kubernetes.io/selected-node";

async fn until_selected(fake: &Fake, node: &str) {
    let selected = |claims: &[Value]| claims[0]["metadata"]["annotations"][SELECTED] == node;
    fake.until("persistentvolumeclaims", selected).await;
}

/// What the controllers of volumes do.
fn bind_volume(fake: &Fake, node: &str) {
    let mut claim = fake.all("persistentvolumeclaims").remove(0);
    let here = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] });
    let required = json!({ "nodeSelectorTerms": [{ "matchExpressions": [here] }] });
    let spec = json!({ "nodeAffinity": { "required": required } });
    fake.put("persistentvolumes", json!({ "metadata": { "name": "v" }, "spec": spec }));
    claim["spec"]["volumeName"] = "v".into();
    claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
    fake.put("persistentvolumeclaims", claim);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_volume_outlives_its_scheduler_and_has_an_end() {
    let fake = Arc::new(Fake::default());
    put_user_of_a_volume(&fake);
    scenario(fake.clone(), |fake| async move { until_selected(&fake, "n1").await }).await;
    // Another node would be as good, but the volume is being made for the first one.
    fake.put("nodes", node("n2", 4));
    scenario(fake, |fake| async move {
        let begun = tokio::time::Instant::now();
        until_told(
            &fake,
            "running PreBind plugin \"VolumeBinding\": binding volumes: context deadline exceeded",
        )
        .await;
        // Upstream's time, on the paused clock.
        assert_eq!(begun.elapsed().as_secs(), 600);
        bind_volume(&fake, "n1");
        fake.until("pods", |pods| bound(pods) == 1).await;
        assert_eq!(fake.all("pods")[0]["spec"]["nodeName"], "n1");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_looks_for_another_node_when_its_volume_cannot_be_made() {
    let fake = Arc::new(Fake::default());
    put_user_of_a_volume(&fake);
    scenario(fake, |fake| async move {
        until_selected(&fake, "n1").await;
        // The driver gives up.
        let mut cordoned = node("n1", 4);
        cordoned["spec"]["unschedulable"] = true.into();
        fake.put("nodes", cordoned);
        fake.put("nodes", node("n2", 4));
        let mut claim = fake.all("persistentvolumeclaims").remove(0);
        claim["metadata"]["annotations"] = json!({});
        fake.put("persistentvolumeclaims", claim);
        until_told(
            &fake,
            "running PreBind plugin \"VolumeBinding\": binding volumes: provisioning failed for PVC \"c\"",
        )
        .await;
        until_selected(&fake, "n2").await;
        // That node is gone, and what was noted with it.
        fake.put("nodes", node("n3", 4));
        fake.remove("nodes", "n2");
        until_told(&fake, "running PreBind plugin \"VolumeBinding\": binding volumes: node \"n2\" is gone")
            .await;
        let mut claim = fake.all("persistentvolumeclaims").remove(0);
        claim["metadata"]["annotations"] = json!({});
        fake.put("persistentvolumeclaims", claim);
        until_selected(&fake, "n3").await;
        bind_volume(&fake, "n3");
        fake.until("pods", |pods| bound(pods) == 1).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bindings_travel_in_batches() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 100));
    for index in 0..64 {
        fake.put("pods", pod(&format!("p{index}"), 1));
    }
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 64).await;
        assert_eq!(fake.bind_calls.load(std::sync::atomic::Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_group_is_bound_when_enough_of_it_fits() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    fake.put(
        "podgroups",
        json!({
            "metadata": { "name": "g", "namespace": "a", "uid": "uid-g" },
            "spec": { "schedulingPolicy": { "gang": { "minCount": 3 } } },
        }),
    );
    for index in 0..3 {
        let mut member = pod(&format!("p{index}"), 2);
        member["spec"]["schedulingGroup"] = json!({ "podGroupName": "g" });
        fake.put("pods", member);
    }
    scenario(fake, |fake| async move {
        let first = "pod group \"g\": 2 more of its pods could run, and 3 are needed.";
        let says =
            |pod: &Value| condition(pod)["message"].as_str().is_some_and(|text| text.starts_with(first));
        fake.until("pods", |pods| pods.iter().all(says)).await;
        assert_eq!(bound(&fake.all("pods")), 0);
        let says = |groups: &[Value], status: &str| condition(&groups[0])["status"] == status;
        fake.until("podgroups", |groups| says(groups, "False")).await;
        let groups = fake.all("podgroups");
        assert_eq!(condition(&groups[0])["type"], "PodGroupScheduled");
        assert_eq!(condition(&groups[0])["reason"], "Unschedulable");
        assert!(condition(&groups[0])["message"].as_str().unwrap().starts_with(first), "{groups:?}");
        assert!(condition(&groups[0])["lastTransitionTime"].is_string());
        fake.put("nodes", node("n2", 4));
        fake.until("pods", |pods| bound(pods) == 3).await;
        assert_eq!(fake.bind_calls.load(std::sync::atomic::Ordering::Relaxed), 1);
        fake.until("podgroups", |groups| says(groups, "True")).await;
        assert_eq!(condition(&fake.all("podgroups")[0])["reason"], "Scheduled");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_stands_still_ends_the_scheduler() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n1", 4));
    fake.put("pods", pod("a", 1));
    let client = Connection::new(&fake);
    let scheduler = tokio::spawn(run(client, Config::default(), CancellationToken::new()));
    fake.until("pods", |pods| bound(pods) == 1).await;
    fake.break_watches();
    let error = scheduler.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "an informer ended early");
}

#[tokio::test(start_paused = true)]
async fn a_leader_killed_in_the_middle_of_a_batch_loses_and_doubles_nothing() {
    for seed in 1..=seeds() {
        let fake = cluster(5, 4);
        let mut next = random(seed);
        let mut faults = vec![Fault::None; usize::try_from(next(19)).unwrap()];
        faults.push(if next(2) == 0 { Fault::DieBefore } else { Fault::DieAfter });
        fake.fail_next(&faults);
        let shutdown = CancellationToken::new();
        let mut candidates = Vec::new();
        for name in ["first", "second"] {
            let client = Connection::new(&fake);
            let dead = client.dead.clone();
            let election = Election::new("kube-scheduler", name);
            let stop = shutdown.clone();
            let task = tokio::spawn(async move {
                election.run(client.clone(), stop, |stop| run(client.clone(), Config::default(), stop)).await
            });
            candidates.push((task, dead));
            // The first is to lead.
            fake.until("leases", |leases| !leases.is_empty()).await;
        }
        for index in 0..20 {
            fake.put("pods", pod(&format!("p{index}"), 1));
            if next(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
        let (first, dead) = candidates.remove(0);
        dead.cancelled().await;
        first.abort();
        assert!(bound(&fake.all("pods")) < 20);
        fake.until("pods", |pods| bound(pods) == 20).await;
        let lease = &fake.all("leases")[0]["spec"];
        assert_eq!((&lease["holderIdentity"], &lease["leaseTransitions"]), (&json!("second"), &json!(1)));
        shutdown.cancel();
        let (second, _) = candidates.remove(0);
        second.await.unwrap().unwrap();
        assert_eq!(fake.broken(), Vec::<String>::new(), "seed {seed}");
    }
}
