//! Scenarios: order, updates and claims of stateful sets, on nodes that take their time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{Event, PersistentVolumeClaim, Pod},
};
use serde_json::{Value, json};

use crate::{
    meta::{MetaExt, pod_is_active},
    testing::{FakeApi, Fault, Objects, Running, ensure, run_nodes, template},
};

const ALONE: &[&str] = &["statefulset"];

fn set(replicas: i32, policy: &str) -> Value {
    json!({
        "metadata": { "name": "db", "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "serviceName": "peers",
            "podManagementPolicy": policy,
            "selector": { "matchLabels": { "app": "db" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
            "template": template("db", "a"),
        },
    })
}

fn image(image: &str) -> Value {
    json!({ "spec": { "template": template("db", image) } })
}

fn status(api: &FakeApi) -> StatefulSetStatus {
    api.read::<StatefulSet>("default", "db").and_then(|set| set.status).unwrap_or_default()
}

/// All, updated, and available replicas.
fn counts(api: &FakeApi) -> [i32; 3] {
    let status = status(api);
    [
        status.replicas,
        status.updated_replicas.unwrap_or_default(),
        status.available_replicas.unwrap_or_default(),
    ]
}

/// Images of pods that are not about to go, by name.
fn images(api: &FakeApi) -> BTreeMap<String, String> {
    let active = api.all::<Pod>().into_iter().filter(pod_is_active);
    active
        .map(|pod| (pod.name().to_owned(), pod.spec.unwrap().containers[0].image.clone().unwrap()))
        .collect()
}

fn expect(images: &[(&str, &str)]) -> BTreeMap<String, String> {
    images.iter().map(|(name, image)| (name.to_string(), image.to_string())).collect()
}

/// Ready pods that are not about to go, and all pods, by ordinal.
fn ordinals(objects: &Objects) -> (Vec<usize>, Vec<usize>) {
    let (mut ready, mut all) = (Vec::new(), Vec::new());
    for (key, pod) in objects.iter().filter(|(key, _)| key.0 == "pods") {
        let ordinal = key.2.rsplit('-').next().unwrap().parse().unwrap();
        all.push(ordinal);
        if pod["metadata"].get("deletionTimestamp").is_none() && pod["status"]["phase"] == "Running" {
            ready.push(ordinal);
        }
    }
    ready.sort_unstable();
    all.sort_unstable();
    (ready, all)
}

async fn cluster(set: Value) -> (Arc<FakeApi>, Running) {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    let running = Running::start(&api, ALONE);
    api.put::<StatefulSet>(set);
    (api, running)
}

#[tokio::test(start_paused = true)]
async fn ordered_pods_come_one_after_the_other_and_go_in_reverse() {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    // At any time the pods are a row without gaps, of which only the last may not be ready.
    api.check_writes(|objects| {
        let (ready, all) = ordinals(objects);
        let is_row = all.iter().copied().eq(0..all.len());
        ensure(is_row && ready.len() + 1 >= all.len(), format!("ready {ready:?} of {all:?}"))
    });
    let _running = Running::start(&api, ALONE);
    api.put::<StatefulSet>(set(4, "OrderedReady"));
    api.until("all are available", |api| counts(api) == [4, 4, 4]).await;
    let pod: Pod = api.read("default", "db-3").unwrap();
    assert_eq!(pod.labels()["apps.kubernetes.io/pod-index"], "3");
    assert_eq!(pod.labels()["controller-revision-hash"], status(&api).update_revision.unwrap());
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": 1 } }));
    api.until("one is left", |api| counts(api) == [1, 1, 1] && api.all::<Pod>().len() == 1).await;
    assert!(api.read::<Pod>("default", "db-0").is_some());
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": 3 } }));
    api.until("they come again", |api| counts(api) == [3, 3, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn order_holds_whatever_becomes_of_requests() {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    api.check_writes(|objects| {
        let (ready, all) = ordinals(objects);
        let is_row = all.iter().copied().eq(0..all.len());
        ensure(is_row && ready.len() + 1 >= all.len(), format!("ready {ready:?} of {all:?}"))
    });
    let mut writes = 0;
    api.fault(move |_, target| {
        let counts = target.resource.resource == "pods" || target.resource.resource == "statefulsets";
        writes += u32::from(counts);
        match writes % 5 {
            1 if counts => Fault::Fails,
            3 if counts => Fault::AnswerLost,
            _ => Fault::None,
        }
    });
    let mut running = Running::start(&api, ALONE);
    api.put::<StatefulSet>(set(5, "OrderedReady"));
    for size in [5, 2, 4, 0, 5] {
        api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": size } }));
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(running);
        running = Running::start(&api, ALONE);
    }
    api.until("all are available", |api| counts(api) == [5, 5, 5]).await;
}

#[tokio::test(start_paused = true)]
async fn broken_pod_holds_up_those_after_it_unless_they_are_parallel() {
    let mut broken = set(3, "OrderedReady");
    broken["spec"]["template"] = template("db", "broken");
    let (api, _running) = cluster(broken).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(images(&api), expect(&[("db-0", "broken")]));

    let mut broken = set(3, "Parallel");
    broken["spec"]["template"] = template("db", "broken");
    let (api, _running) = cluster(broken).await;
    api.until("all are made", |api| images(api).len() == 3).await;
    api.patch::<StatefulSet>("default", "db", image("a"));
    api.until("and replaced, one after the other", |api| counts(api) == [3, 3, 3]).await;
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": 0 } }));
    api.until("and deleted", |api| api.all::<Pod>().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn update_goes_from_the_last_down_to_the_partition() {
    let (api, _running) = cluster(set(4, "OrderedReady")).await;
    api.until("all are available", |api| counts(api) == [4, 4, 4]).await;
    api.check_writes(|objects| {
        let (ready, _) = ordinals(objects);
        ensure(ready.len() >= 3, format!("ready {ready:?}"))
    });
    let partition =
        |at: i32| json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": at } } } });
    api.patch::<StatefulSet>("default", "db", partition(2));
    let before = status(&api).current_revision.unwrap();
    api.patch::<StatefulSet>("default", "db", image("b"));
    api.until("half of them are new", |api| counts(api) == [4, 2, 4]).await;
    assert_eq!(images(&api), expect(&[("db-0", "a"), ("db-1", "a"), ("db-2", "b"), ("db-3", "b")]));
    assert_eq!(status(&api).current_revision.unwrap(), before);
    assert_eq!(status(&api).current_replicas, Some(2));
    // A pod below the partition comes back as it was.
    api.check_writes(|_| Ok(()));
    api.remove::<Pod>("default", "db-1", &DeleteOptions::default());
    api.until("it is back", |api| counts(api) == [4, 2, 4] && images(api).contains_key("db-1")).await;
    assert_eq!(images(&api)["db-1"], "a");
    api.patch::<StatefulSet>("default", "db", partition(0));
    api.until("all are new", |api| counts(api) == [4, 4, 4] && status(api).current_replicas == Some(4)).await;
    assert_ne!(status(&api).current_revision.unwrap(), before);
    assert_eq!(status(&api).current_revision, status(&api).update_revision);
}

#[tokio::test(start_paused = true)]
async fn as_many_are_replaced_at_a_time_as_may_be_unavailable() {
    let mut wanted = set(6, "Parallel");
    wanted["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = json!("50%");
    let (api, _running) = cluster(wanted).await;
    api.until("all are available", |api| counts(api) == [6, 6, 6]).await;
    let least = Arc::new(parking_lot::Mutex::new(6));
    let seen = least.clone();
    api.check_writes(move |objects| {
        let (ready, _) = ordinals(objects);
        let mut least = seen.lock();
        *least = ready.len().min(*least);
        ensure(ready.len() >= 3, format!("ready {ready:?}"))
    });
    api.patch::<StatefulSet>("default", "db", image("b"));
    api.until("all are new", |api| counts(api) == [6, 6, 6] && images(api).values().all(|it| it == "b"))
        .await;
    assert_eq!(*least.lock(), 3);
}

#[tokio::test(start_paused = true)]
async fn on_delete_replaces_what_is_deleted() {
    let mut wanted = set(2, "OrderedReady");
    wanted["spec"]["updateStrategy"] = json!({ "type": "OnDelete" });
    let (api, _running) = cluster(wanted).await;
    api.until("all are available", |api| counts(api) == [2, 2, 2]).await;
    api.patch::<StatefulSet>("default", "db", image("b"));
    api.until("none is new", |api| counts(api) == [2, 0, 2]).await;
    api.remove::<Pod>("default", "db-0", &DeleteOptions::default());
    api.until("one is", |api| counts(api) == [2, 1, 2]).await;
    assert_eq!(images(&api), expect(&[("db-0", "b"), ("db-1", "a")]));
}

#[tokio::test(start_paused = true)]
async fn revisions_are_kept_to_go_back_to() {
    let (api, _running) = cluster(set(2, "Parallel")).await;
    let numbers = |api: &FakeApi| {
        let mut numbers: Vec<i64> = api.all::<ControllerRevision>().iter().map(|it| it.revision).collect();
        numbers.sort_unstable();
        numbers
    };
    api.until("the first is kept", |api| counts(api) == [2, 2, 2] && numbers(api) == [1]).await;
    for (wanted, expected) in [("b", [1, 2]), ("a", [2, 3]), ("c", [3, 4])] {
        api.patch::<StatefulSet>("default", "db", image(wanted));
        api.until("the update is complete, and one old revision is kept", |api| {
            counts(api) == [2, 2, 2]
                && images(api).values().all(|image| image == wanted)
                && numbers(api) == expected
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn ordinals_start_where_they_are_told() {
    let mut wanted = set(2, "OrderedReady");
    wanted["spec"]["ordinals"] = json!({ "start": 5 });
    let (api, _running) = cluster(wanted).await;
    api.until("all are available", |api| counts(api) == [2, 2, 2]).await;
    assert_eq!(images(&api), expect(&[("db-5", "a"), ("db-6", "a")]));
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "ordinals": { "start": 6 } } }));
    api.until("they move on", |api| images(api) == expect(&[("db-6", "a"), ("db-7", "a")])).await;
}

fn owners(api: &FakeApi, claim: &str) -> Vec<String> {
    let claim = api.read::<PersistentVolumeClaim>("default", claim);
    let owners = claim.and_then(|claim| claim.metadata.owner_references).unwrap_or_default();
    owners.into_iter().map(|owner| format!("{}/{}", owner.kind, owner.name)).collect()
}

#[tokio::test(start_paused = true)]
async fn claims_stay_or_go_with_what_they_are_for() {
    let mut wanted = set(2, "OrderedReady");
    wanted["spec"]["volumeClaimTemplates"] = json!([{ "metadata": { "name": "data" }, "spec": {} }]);
    wanted["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({ "whenDeleted": "Delete", "whenScaled": "Delete" });
    let (api, _running) = cluster(wanted).await;
    api.until("all are available", |api| counts(api) == [2, 2, 2]).await;
    let pod: Pod = api.read("default", "db-1").unwrap();
    let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
    assert_eq!(owners(&api, "data-db-1"), ["StatefulSet/db"]);
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": 1 } }));
    api.until("one is left", |api| api.all::<Pod>().len() == 1).await;
    assert_eq!(owners(&api, "data-db-1"), ["Pod/db-1"]);
    assert_eq!(owners(&api, "data-db-0"), ["StatefulSet/db"]);
    // Its successor must not get a claim that is about to go.
    api.patch::<StatefulSet>("default", "db", json!({ "spec": { "replicas": 2 } }));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(images(&api).len(), 1);
    api.remove::<PersistentVolumeClaim>("default", "data-db-1", &DeleteOptions::default());
    api.until("the claim is gone, and both are made anew", |api| counts(api) == [2, 2, 2]).await;
    assert_eq!(owners(&api, "data-db-1"), ["StatefulSet/db"]);
    let policy = json!({ "whenDeleted": "Retain", "whenScaled": "Retain" });
    api.patch::<StatefulSet>(
        "default",
        "db",
        json!({ "spec": { "persistentVolumeClaimRetentionPolicy": policy } }),
    );
    api.until("nobody owns them", |api| {
        owners(api, "data-db-0").is_empty() && owners(api, "data-db-1").is_empty()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failed_pod_is_replaced_and_matching_orphan_adopted() {
    let (api, _running) = cluster(set(2, "OrderedReady")).await;
    api.until("all are available", |api| counts(api) == [2, 2, 2]).await;
    let uid = |api: &FakeApi| api.read::<Pod>("default", "db-0").map(|pod| pod.uid().to_owned());
    let failed = uid(&api);
    api.patch_status::<Pod>("default", "db-0", json!({ "status": { "phase": "Failed", "conditions": [] } }));
    api.until("another takes its name", |api| counts(api) == [2, 2, 2] && uid(api) != failed).await;
    api.patch::<Pod>("default", "db-1", json!({ "metadata": { "ownerReferences": null } }));
    api.until("it is adopted again", |api| {
        api.read::<Pod>("default", "db-1").is_some_and(|pod| pod.controller().is_some())
    })
    .await;
    let told = |reason: &str, message: &str| {
        api.all::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some(reason) && event.message.as_deref() == Some(message))
    };
    assert!(told("SuccessfulCreate", "create Pod db-0 in StatefulSet db successful"));
    assert!(told("SuccessfulDelete", "delete Pod db-0 in StatefulSet db successful"));
}
