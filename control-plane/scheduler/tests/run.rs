//! The scheduler as a whole, against an API server in memory, on a paused clock.

mod fake;

use std::{future::Future, sync::Arc};

use fake::{Connection, Fake, Fault};
use hawser_api::election::Election;
use hawser_scheduler::{Config, run};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

fn node(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": { "cpu": cpu.to_string(), "memory": "8Gi", "pods": "110" } },
    })
}

fn pod(name: &str, cpu: u32) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu.to_string() } } }] },
        "status": { "phase": "Pending" },
    })
}

/// Runs a scheduler beside the scenario, then stops it and checks that no rule was broken.
async fn scenario<F: Future<Output = ()>>(fake: Arc<Fake>, act: impl FnOnce(Arc<Fake>) -> F) {
    let shutdown = CancellationToken::new();
    let client = Connection::new(&fake);
    let scheduler = tokio::spawn(run(client, Config::default(), shutdown.clone()));
    act(fake.clone()).await;
    shutdown.cancel();
    scheduler.await.unwrap().unwrap();
    assert_eq!(fake.broken(), Vec::<String>::new());
}

fn bound(pods: &[Value]) -> usize {
    pods.iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count()
}

fn condition(pod: &Value) -> &Value {
    &pod["status"]["conditions"][0]
}

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

/// A small generator of numbers, so that a failing seed can be run again.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) % limit
    }
}

fn seeds() -> u64 {
    std::env::var("SCHEDULER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
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
        let fake = Arc::new(Fake::default());
        let mut next = random(seed);
        for index in 0..5 {
            fake.put("nodes", node(&format!("n{index}"), 4));
        }
        let faults: Vec<Fault> = (0..100)
            .map(|_| match next(6) {
                0 => Fault::Refuse,
                1 => Fault::LoseBefore,
                2 => Fault::LoseAfter,
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

async fn until_told(fake: &Fake, message: &str) {
    fake.until("events", |events| events.iter().any(|event| event["message"] == message)).await;
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

/// A class of all devices, and on each node a pool of its own with so many.
fn put_devices(fake: &Fake, nodes: usize, devices: usize) {
    let spec = json!({ "extendedResourceName": "example.com/gpu" });
    fake.put("deviceclasses", json!({ "metadata": { "name": "gpu" }, "spec": spec }));
    for index in 0..nodes {
        let name = format!("n{index}");
        let devices: Vec<Value> =
            (0..devices).map(|device| json!({ "name": format!("d{device}") })).collect();
        let pool = json!({ "name": name, "generation": 1, "resourceSliceCount": 1 });
        let spec = json!({ "driver": "gpu.example.com", "nodeName": name, "pool": pool, "devices": devices });
        fake.put("resourceslices", json!({ "metadata": { "name": name }, "spec": spec }));
    }
}

fn put_claim(fake: &Fake, name: &str) {
    let request = json!({ "name": "r", "exactly": { "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1 } });
    fake.put(
        "resourceclaims",
        json!({
            "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
            "spec": { "devices": { "requests": [request] } },
        }),
    );
}

fn claiming(name: &str, claim: &str) -> Value {
    let mut pod = pod(name, 1);
    pod["spec"]["resourceClaims"] = json!([{ "name": "c", "resourceClaimName": claim }]);
    pod
}

/// A pod that asks for a device as for an extended resource.
fn asking(name: &str) -> Value {
    let mut pod = pod(name, 1);
    pod["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = "1".into();
    pod
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_asks_for_an_extended_resource_is_given_a_claim() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 1, 1);
    // Left from a scheduler that ended on the way; it has the only device.
    let metadata = json!({
        "name": "left", "namespace": "a", "uid": "uid-left", "finalizers": ["resource.kubernetes.io/delete-protection"],
        "annotations": { "resource.kubernetes.io/extended-resource-claim": "true" },
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p", "controller": true }],
    });
    let result = json!({ "request": "r", "driver": "gpu.example.com", "pool": "n0", "device": "d0" });
    let status = json!({ "allocation": { "devices": { "results": [result] } } });
    fake.put("resourceclaims", json!({ "metadata": metadata, "spec": { "devices": {} }, "status": status }));
    fake.put("pods", asking("p"));
    // The finalizer of the one that is left, and the creation of the next.
    fake.fail_next_claims(&[Fault::LoseBefore, Fault::None, Fault::LoseAfter]);
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        let pod = &fake.all("pods")[0];
        let noted = &pod["status"]["extendedResourceClaimStatus"];
        let mapping = json!([{ "containerName": "c", "requestName": "container-0-request-1", "resourceName": "example.com/gpu" }]);
        assert_eq!(noted["requestMappings"], mapping);
        let claims = fake.all("resourceclaims");
        let claim = claims.iter().find(|claim| claim["metadata"]["name"] == noted["resourceClaimName"]);
        let claim = claim.unwrap();
        for field in ["annotations", "finalizers"] {
            assert_eq!(claim["metadata"][field], metadata[field]);
        }
        assert_eq!(claim["metadata"]["ownerReferences"], metadata["ownerReferences"]);
        let request = json!({ "name": "container-0-request-1", "exactly": { "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1 } });
        assert_eq!(claim["spec"]["devices"]["requests"], json!([request]));
        assert_eq!(claim["status"]["reservedFor"][0]["uid"], "uid-p");
        assert!(fake.deleted().iter().any(|claim| claim["metadata"]["name"] == "left"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_bound_when_its_claim_is_its_own() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 1, 1);
    put_claim(&fake, "c");
    fake.put("pods", claiming("p", "c"));
    scenario(fake, |fake| async move {
        fake.until("pods", |pods| bound(pods) == 1).await;
        let claim = &fake.all("resourceclaims")[0];
        assert_eq!(claim["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
        let status = &claim["status"];
        assert_eq!(status["reservedFor"], json!([{ "resource": "pods", "name": "p", "uid": "uid-p" }]));
        assert_eq!(status["allocation"]["devices"]["results"][0]["device"], "d0");
        assert!(status["allocation"]["allocationTimestamp"].is_string());
        // The pod ends, and another one's claim takes the device.
        put_claim(&fake, "d");
        fake.put("pods", claiming("q", "d"));
        let says = |pods: &[Value]| pods.iter().any(|pod| condition(pod)["reason"] == "Unschedulable");
        fake.until("pods", says).await;
        fake.remove("pods", "a/p");
        fake.tidy_claims();
        fake.until("pods", |pods| bound(pods) == 1).await;
    })
    .await;
}

/// The claim as one that was allocated before: only its status is left to be written.
fn put_guarded_claim(fake: &Fake, name: &str) {
    put_claim(fake, name);
    let mut claims = fake.all("resourceclaims").into_iter();
    let mut claim = claims.find(|claim| claim["metadata"]["name"] == name).unwrap();
    claim["metadata"]["finalizers"] = json!(["resource.kubernetes.io/delete-protection"]);
    fake.put("resourceclaims", claim);
}

fn allocated(claims: &[Value], name: &str) -> bool {
    let claim = claims.iter().find(|claim| claim["metadata"]["name"] == name).unwrap();
    !claim["status"]["allocation"].is_null()
}

fn is_bound(pods: &[Value], name: &str) -> bool {
    let pod = pods.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
    pod["spec"]["nodeName"].is_string()
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_claim_is_still_being_written_is_nobody_elses() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 1, 1);
    put_guarded_claim(&fake, "c");
    put_claim(&fake, "d");
    // Longer than a pod's claims may take, and than the first reads that would tell what came of it.
    fake.slow_down("a/c", 10);
    fake.put("pods", claiming("p", "c"));
    scenario(fake, |fake| async move {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        fake.put("pods", claiming("q", "d"));
        fake.until("resourceclaims", |claims| allocated(claims, "c")).await;
        fake.until("pods", |pods| is_bound(pods, "p")).await;
        assert!(!allocated(&fake.all("resourceclaims"), "d"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_wait_for_anothers_claim_hold_up_nobody() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 100));
    put_devices(&fake, 1, 2);
    put_guarded_claim(&fake, "shared");
    put_claim(&fake, "own");
    fake.slow_down("a/shared", 0);
    fake.put("pods", claiming("first", "shared"));
    scenario(fake, |fake| async move {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        for index in 0..70 {
            fake.put("pods", claiming(&format!("p{index}"), "shared"));
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        fake.put("pods", claiming("q", "own"));
        fake.until("pods", |pods| is_bound(pods, "q")).await;
        assert!(!allocated(&fake.all("resourceclaims"), "shared"));
        // Before the others gave up.
        assert!(!fake.all("events").iter().any(|event| event["reason"] == "FailedScheduling"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_cannot_be_attached_gives_its_claim_back() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 0, 0);
    let device = |name: &str| json!({ "name": name, "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"] });
    let pool = json!({ "name": "fabric", "generation": 1, "resourceSliceCount": 1 });
    let spec = json!({ "driver": "gpu.example.com", "allNodes": true, "pool": pool, "devices": [device("d0"), device("d1")] });
    fake.put("resourceslices", json!({ "metadata": { "name": "fabric" }, "spec": spec }));
    put_claim(&fake, "c");
    fake.put("pods", claiming("p", "c"));
    let say = |fake: &Fake, kind: &str| {
        let mut claim = fake.all("resourceclaims").remove(0);
        let result = claim["status"]["allocation"]["devices"]["results"][0].clone();
        let condition = json!({ "type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        claim["status"]["devices"] = json!([{ "driver": result["driver"], "pool": result["pool"], "device": result["device"], "conditions": [condition] }]);
        fake.put("resourceclaims", claim);
    };
    scenario(fake, |fake| async move {
        let allocated = |claims: &[Value]| claims[0]["status"]["reservedFor"].is_array();
        fake.until("resourceclaims", allocated).await;
        assert_eq!(bound(&fake.all("pods")), 0);
        say(&fake, "failed");
        fake.until("events", |events| {
            let message = "running PreBind plugin \"DynamicResources\": claim c binding failed: reason=R, message=\"m\"";
            events.iter().any(|event| event["message"] == message)
        })
        .await;
        fake.until("resourceclaims", |claims| allocated(claims) && claims[0]["status"]["devices"].is_null()).await;
        say(&fake, "ready");
        fake.until("pods", |pods| bound(pods) == 1).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_a_device_outlives_its_scheduler_and_has_an_end() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 0, 0);
    let pool = json!({ "name": "fabric", "generation": 1, "resourceSliceCount": 1 });
    let device = json!({ "name": "d0", "bindingConditions": ["ready"] });
    let spec = json!({ "driver": "gpu.example.com", "allNodes": true, "pool": pool, "devices": [device] });
    fake.put("resourceslices", json!({ "metadata": { "name": "fabric" }, "spec": spec }));
    put_claim(&fake, "c");
    fake.put("pods", claiming("p", "c"));
    let allocated = |claims: &[Value]| claims[0]["status"]["reservedFor"].is_array();
    scenario(fake.clone(), |fake| async move { fake.until("resourceclaims", allocated).await }).await;
    assert_eq!(bound(&fake.all("pods")), 0);
    // The next one waits too, for what is left of the time.
    let version = |claims: &[Value]| claims[0]["metadata"]["resourceVersion"].clone();
    let before = version(&fake.all("resourceclaims"));
    scenario(fake.clone(), |fake| async move {
        until_told(&fake, "running PreBind plugin \"DynamicResources\": device binding timeout").await;
        fake.until("resourceclaims", |claims| version(claims) != before && allocated(claims)).await;
        assert_eq!(bound(&fake.all("pods")), 0);
    })
    .await;
    // Nothing is left of it.
    let mut claim = fake.all("resourceclaims").remove(0);
    claim["status"]["allocation"]["allocationTimestamp"] = "2020-01-01T00:00:00Z".into();
    fake.put("resourceclaims", claim);
    scenario(fake, |fake| async move {
        let begun = tokio::time::Instant::now();
        let renewed = |claims: &[Value]| {
            allocated(claims)
                && claims[0]["status"]["allocation"]["allocationTimestamp"] != "2020-01-01T00:00:00Z"
        };
        fake.until("resourceclaims", renewed).await;
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "on the paused clock");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_device_is_given_twice_and_no_claim_forgotten_under_a_storm_of_faults() {
    for seed in 1..=seeds() {
        let fake = Arc::new(Fake::default());
        let mut next = random(seed ^ 0xD5A);
        for index in 0..5 {
            fake.put("nodes", node(&format!("n{index}"), 40));
        }
        put_devices(&fake, 5, 2);
        put_claim(&fake, "shared");
        let mut faults = || -> Vec<Fault> {
            let one = |number| [Fault::Refuse, Fault::LoseBefore, Fault::LoseAfter].get(number).copied();
            (0..100).map(|_| one(next(10) as usize).unwrap_or(Fault::None)).collect()
        };
        fake.fail_next(&faults());
        fake.fail_next_claims(&faults());
        scenario(fake, |fake| async move {
            for index in 0..30 {
                let name = format!("p{index}");
                match next(4) {
                    0 => fake.put("pods", claiming(&name, "shared")),
                    1 => fake.put("pods", asking(&name)),
                    _ => {
                        put_claim(&fake, &name);
                        fake.put("pods", claiming(&name, &name));
                    }
                }
                match next(8) {
                    0 | 1 => {
                        let victim = format!("a/p{}", next(index + 1));
                        fake.remove("pods", &victim);
                        if next(2) == 0 {
                            fake.remove("resourceclaims", &victim);
                        }
                    }
                    2 => fake.tidy_claims(),
                    3 => fake.cut_watches(next(2) == 0),
                    4 => fake.refuse_writes(2),
                    _ => (),
                }
                if next(3) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            // All devices are somebody's, or nobody waits.
            let at = fake.clone();
            fake.until("pods", |pods| {
                at.tidy_claims();
                let claims = at.all("resourceclaims");
                let given = claims.iter().filter(|claim| !claim["status"]["allocation"].is_null()).count();
                let placed = bound(pods);
                let shares = |pod: &&Value| pod["spec"]["resourceClaims"][0]["resourceClaimName"] == "shared";
                let sharing = pods.iter().filter(shares).cloned().collect::<Vec<_>>();
                // With the shared claim all that name it have a place, or none.
                let together = bound(&sharing) == sharing.len() || bound(&sharing) == 0;
                placed == pods.len() || given == 10 && together && placed >= 9
            })
            .await;
        })
        .await;
    }
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
        let fake = Arc::new(Fake::default());
        let mut next = random(seed);
        for index in 0..5 {
            fake.put("nodes", node(&format!("n{index}"), 4));
        }
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
