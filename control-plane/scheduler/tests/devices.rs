//! Pods with claims of devices, against an API server in memory, on a paused clock.

mod fake;

use std::sync::Arc;

use fake::{
    Fake, Fault,
    scenario::{bound, cluster, condition, node, pod, random, scenario, seeds, until_told},
};
use serde_json::{Value, json};

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
async fn a_promise_stands_for_as_long_as_nobody_knows_what_came_of_its_write() {
    let fake = Arc::new(Fake::default());
    fake.put("nodes", node("n0", 4));
    put_devices(&fake, 1, 1);
    put_guarded_claim(&fake, "c");
    put_claim(&fake, "d");
    fake.fail_next_claims(&[Fault::LoseBefore; 100]);
    fake.put("pods", claiming("p", "c"));
    scenario(fake, |fake| async move {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        fake.put("pods", claiming("q", "d"));
        fake.until("pods", |pods| is_bound(pods, "p")).await;
        assert!(!allocated(&fake.all("resourceclaims"), "d"));
        let failed =
            |event: &Value| event["reason"] == "FailedScheduling" && event["involvedObject"]["name"] == "p";
        assert!(!fake.all("events").iter().any(failed), "{:?}", fake.all("events"));
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
        let fake = cluster(5, 40);
        let mut next = random(seed ^ 0xD5A);
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
