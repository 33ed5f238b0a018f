//! Claims over the API in memory: made, reserved, given back.

use hawser_api::client::DeleteOptions;

use super::*;
use crate::testing::{FakeApi, Fault, Running};

const NAME: &str = "resourceclaim-controller";

fn template(api: &FakeApi, name: &str) {
    let request = json!({ "name": "r", "exactly": { "deviceClassName": "gpu" } });
    api.put::<ResourceClaimTemplate>(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "metadata": { "labels": { "tier": "1" }, "annotations": { "note": "x" } },
            "spec": { "devices": { "requests": [request] } },
        },
    }));
}

fn pod(api: &FakeApi, name: &str, claims: Value) -> Pod {
    api.put::<Pod>(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "containers": [], "resourceClaims": claims },
    }))
}

fn from_template() -> Value {
    json!([{ "name": "gpu", "resourceClaimTemplateName": "t" }])
}

fn read(api: &FakeApi, name: &str) -> Option<ResourceClaim> {
    api.read::<ResourceClaim>("default", name)
}

fn noted_in(api: &FakeApi, name: &str) -> Option<String> {
    noted(&api.read::<Pod>("default", name)?, "gpu").map(str::to_owned)
}

/// What a scheduler does.
fn allocate(api: &FakeApi, name: &str, consumers: &[&Pod]) {
    api.patch::<ResourceClaim>("default", name, json!({ "metadata": { "finalizers": [FINALIZER] } }));
    let consumer = |pod: &&Pod| json!({ "resource": "pods", "name": pod.name(), "uid": pod.uid() });
    let consumers: Vec<Value> = consumers.iter().map(consumer).collect();
    let status = json!({ "allocation": { "devices": { "results": [] } }, "reservedFor": consumers });
    api.patch_status::<ResourceClaim>("default", name, json!({ "status": status }));
}

fn is_free(api: &FakeApi, name: &str) -> bool {
    read(api, name).is_some_and(|claim| !is_allocated(&claim) && !has_finalizer(&claim))
}

/// The name of the claim that was made for pod `a` from a template, with devices that the pod uses.
async fn allocated(api: &FakeApi) -> String {
    template(api, "t");
    let owner = pod(api, "a", from_template());
    api.until("the name is noted", |api| noted_in(api, "a").is_some()).await;
    let name = noted_in(api, "a").unwrap();
    allocate(api, &name, &[&owner]);
    name
}

/// Lets everything happen that would: the clock stands still, and moves on only when nobody has anything to do.
async fn a_quiet_minute() {
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn pods_get_claims_of_their_own_once_there_is_a_template() {
    let api = FakeApi::new();
    let mut requests = 0;
    api.fault(move |verb, target| {
        let fails = target.resource.resource == "resourceclaims" && verb == "create";
        requests += u32::from(fails);
        // The first answer is lost after the write.
        if fails && requests == 1 { Fault::AnswerLost } else { Fault::None }
    });
    let _running = Running::start(&api, &[NAME]);
    let owner = pod(&api, "a", from_template());
    a_quiet_minute().await;
    assert_eq!(api.all::<ResourceClaim>().len(), 0);
    template(&api, "t");
    api.until("the name is noted", |api| noted_in(api, "a").is_some()).await;
    let claims = api.all::<ResourceClaim>();
    assert_eq!(claims.len(), 1, "{claims:?}");
    let claim = &claims[0];
    assert_eq!(noted_in(&api, "a").as_deref(), Some(claim.name()));
    assert!(claim.name().starts_with("a-gpu-"), "{}", claim.name());
    assert_eq!(json!(claim.annotations()), json!({ "note": "x", POD_CLAIM: "gpu" }));
    assert_eq!(json!(claim.labels()), json!({ "tier": "1" }));
    assert_eq!(json!(claim.metadata.owner_references), json!([controller_reference(&owner)]));
    assert_eq!(claim.spec.devices.as_ref().unwrap().requests.as_ref().unwrap()[0].name, "r");
    // One that is lost is made again.
    let name = claim.name().to_owned();
    let uid = claim.uid().to_owned();
    api.remove::<ResourceClaim>("default", &name, &DeleteOptions::default());
    api.until("there is another", |api| read(api, &name).is_some_and(|claim| claim.uid() != uid)).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_free_when_its_last_pod_has_ended() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    api.put::<ResourceClaim>(json!({ "metadata": { "name": "shared", "namespace": "default" }, "spec": {} }));
    let named = || json!([{ "name": "gpu", "resourceClaimName": "shared" }]);
    let (one, other) = (pod(&api, "one", named()), pod(&api, "other", named()));
    allocate(&api, "shared", &[&one, &other]);
    api.patch_status::<Pod>("default", "one", json!({ "status": { "phase": "Succeeded" } }));
    let users = |api: &FakeApi| read(api, "shared").map(|claim| consumers(&claim).len());
    api.until("one is left", |api| users(api) == Some(1)).await;
    assert!(is_allocated(&read(&api, "shared").unwrap()));
    api.remove::<Pod>("default", "other", &DeleteOptions::default());
    api.until("it is free", |api| is_free(api, "shared")).await;
    // Nobody made it for a pod: it stays.
    a_quiet_minute().await;
    assert!(is_free(&api, "shared"));
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_a_pod_that_has_ended_goes() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    let name = allocated(&api).await;
    a_quiet_minute().await;
    assert!(is_allocated(&read(&api, &name).unwrap()));
    api.patch_status::<Pod>("default", "a", json!({ "status": { "phase": "Failed" } }));
    api.until("it is gone", |api| read(api, &name).is_none()).await;
    a_quiet_minute().await;
    assert_eq!(api.all::<ResourceClaim>().len(), 0, "it is not made again");
}

/// What was asked of claims, in order.
fn noted_requests(api: &FakeApi) -> Arc<Mutex<Vec<String>>> {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let noted = requests.clone();
    api.fault(move |verb, target| {
        if target.resource.resource == "resourceclaims" {
            noted.lock().push(verb.to_owned());
        }
        Fault::None
    });
    requests
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_a_pod_that_is_gone_goes_with_its_devices_in_two_writes() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    let name = allocated(&api).await;
    a_quiet_minute().await;
    let requests = noted_requests(&api);
    api.remove::<Pod>("default", "a", &DeleteOptions::default());
    api.until("it is gone", |api| read(api, &name).is_none()).await;
    assert_eq!(*requests.lock(), ["delete", "patch"]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_others_keep_gives_its_devices_back_before_it_goes() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    let name = allocated(&api).await;
    let metadata = json!({ "finalizers": [FINALIZER, "example.com/keep"] });
    api.patch::<ResourceClaim>("default", &name, json!({ "metadata": metadata }));
    api.remove::<Pod>("default", "a", &DeleteOptions::default());
    api.until("it is free", |api| is_free(api, &name)).await;
    assert!(read(&api, &name).is_some_and(|claim| claim.is_deleting()));
}

#[test]
fn pods_that_are_gone_are_remembered_up_to_a_bound() {
    let mut gone = Gone::default();
    (0..=MOST_GONE).for_each(|number| gone.add(&number.to_string()));
    gone.add("1");
    assert_eq!((gone.uids.len(), gone.order.len()), (MOST_GONE, MOST_GONE));
    assert!(!gone.uids.contains("0") && gone.uids.contains("1"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_for_extended_resources_goes_with_the_end_of_its_pod() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    let owner = pod(&api, "a", json!([]));
    // What a scheduler does.
    let metadata =
        json!({ "name": "made", "namespace": "default", "ownerReferences": [controller_reference(&owner)] });
    api.put::<ResourceClaim>(json!({ "metadata": metadata, "spec": {} }));
    allocate(&api, "made", &[&owner]);
    let noted = json!({ "resourceClaimName": "made", "requestMappings": [] });
    api.patch_status::<Pod>("default", "a", json!({ "status": { "extendedResourceClaimStatus": noted } }));
    a_quiet_minute().await;
    assert!(is_allocated(&read(&api, "made").unwrap()));
    api.patch_status::<Pod>("default", "a", json!({ "status": { "phase": "Succeeded" } }));
    api.until("it is gone", |api| read(api, "made").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_deleted_goes_when_nobody_uses_it() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    api.put::<ResourceClaim>(json!({ "metadata": { "name": "c", "namespace": "default" }, "spec": {} }));
    let user = pod(&api, "a", json!([{ "name": "gpu", "resourceClaimName": "c" }]));
    allocate(&api, "c", &[&user]);
    api.remove::<ResourceClaim>("default", "c", &DeleteOptions::default());
    a_quiet_minute().await;
    assert!(read(&api, "c").is_some_and(|claim| is_allocated(&claim)));
    api.remove::<Pod>("default", "a", &DeleteOptions::default());
    api.until("it is gone", |api| read(api, "c").is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_a_node_has_its_allocated_claim_reserved() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    api.put::<ResourceClaim>(json!({ "metadata": { "name": "c", "namespace": "default" }, "spec": {} }));
    let first = pod(&api, "first", json!([{ "name": "gpu", "resourceClaimName": "c" }]));
    allocate(&api, "c", &[&first]);
    let by_hand = api.put::<Pod>(json!({
        "metadata": { "name": "by-hand", "namespace": "default" },
        "spec": { "nodeName": "n1", "containers": [], "resourceClaims": [{ "name": "gpu", "resourceClaimName": "c" }] },
    }));
    let uids = |api: &FakeApi| -> Vec<String> {
        let claim = read(api, "c").unwrap();
        consumers(&claim).iter().map(|consumer| consumer.uid.clone()).collect()
    };
    api.until("it is reserved", |api| uids(api).len() == 2).await;
    assert_eq!(uids(&api), [first.uid(), by_hand.uid()]);
}

fn users(api: &FakeApi, name: &str) -> Vec<String> {
    let claim = read(api, name).expect("it is there");
    consumers(&claim).iter().map(|consumer| consumer.uid.clone()).collect()
}

fn bound_by_hand(api: &FakeApi, name: &str, claim: &str) -> Pod {
    let claims = json!([{ "name": "gpu", "resourceClaimName": claim }]);
    api.put::<Pod>(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": "n1", "containers": [], "resourceClaims": claims },
    }))
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_allocated_later_is_reserved_for_the_pods_that_have_a_node() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    let by_hand = bound_by_hand(&api, "by-hand", "c");
    a_quiet_minute().await;
    api.put::<ResourceClaim>(json!({ "metadata": { "name": "c", "namespace": "default" }, "spec": {} }));
    let first = pod(&api, "first", json!([{ "name": "gpu", "resourceClaimName": "c" }]));
    a_quiet_minute().await;
    allocate(&api, "c", &[&first]);
    api.until("it is reserved", |api| users(api, "c") == [first.uid(), by_hand.uid()]).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_without_room_is_reserved_once_it_has_some() {
    let api = FakeApi::new();
    let _running = Running::start(&api, &[NAME]);
    for name in ["full", "going"] {
        api.put::<ResourceClaim>(json!({ "metadata": { "name": name, "namespace": "default" }, "spec": {} }));
    }
    let first = pod(&api, "first", json!([{ "name": "gpu", "resourceClaimName": "full" }]));
    allocate(&api, "going", &[&first]);
    api.remove::<ResourceClaim>("default", "going", &DeleteOptions::default());
    // Consumers that are no pods are nobody's business here.
    let other = |n: usize| json!({ "resource": "others", "name": n.to_string(), "uid": n.to_string() });
    let others: Vec<Value> = (0..MOST_CONSUMERS).map(other).collect();
    let status = json!({ "allocation": { "devices": { "results": [] } }, "reservedFor": others });
    api.patch_status::<ResourceClaim>("default", "full", json!({ "status": status }));
    let late = bound_by_hand(&api, "late", "full");
    bound_by_hand(&api, "too-late", "going");
    a_quiet_minute().await;
    assert_eq!(users(&api, "full").len(), MOST_CONSUMERS);
    assert_eq!(users(&api, "going"), [first.uid()]);
    let fewer = json!({ "status": { "reservedFor": others[1..].to_vec() } });
    api.patch_status::<ResourceClaim>("default", "full", fewer);
    api.until("it is reserved", |api| users(api, "full").last().is_some_and(|uid| uid == late.uid())).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_anothers_is_left_to_it() {
    let api = FakeApi::new();
    let owner = pod(&api, "a", from_template());
    template(&api, "t");
    let found: ResourceClaimTemplate = api.read("default", "t").expect("it is there");
    let foreign = generated(&owner, "gpu", &found, 0).name().to_owned();
    api.put::<ResourceClaim>(json!({ "metadata": { "name": foreign, "namespace": "default" }, "spec": {} }));
    let _running = Running::start(&api, &[NAME]);
    api.until("the name is noted", |api| noted_in(api, "a").is_some()).await;
    let own = noted_in(&api, "a").expect("noted");
    assert_ne!(own, foreign);
    let claim = read(&api, &own).expect("it is there");
    assert_eq!(claim.controller().map(|owner| owner.uid.as_str()), Some(owner.uid()));
    assert_eq!(api.all::<ResourceClaim>().len(), 2);
}
