//! Scenarios: deployments, replica sets and nodes together, on a paused clock.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use super::{revision, status::PROGRESSING, strategy};
use crate::{
    meta::{MetaExt, pod_is_active},
    testing::{FakeApi, Fault, Objects, Running, deployment, ensure, run_nodes},
};

const BOTH: &[&str] = &["deployment", "replicaset"];

fn image_patch(image: &str) -> Value {
    let template = &deployment("web", 0, image)["spec"]["template"];
    json!({ "spec": { "template": template } })
}

/// The deployment's status says that it is done with its current spec.
fn is_complete(api: &FakeApi) -> bool {
    api.read::<Deployment>("default", "web")
        .is_some_and(|web| web.status.as_ref().is_some_and(|status| super::status::is_complete(&web, status)))
}

fn images(api: &FakeApi) -> BTreeSet<String> {
    let pods = api.all::<Pod>();
    let active = pods.iter().filter(|pod| pod_is_active(pod));
    active.filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone()).collect()
}

fn messages(api: &FakeApi) -> Vec<String> {
    let mut events = api.all::<Event>();
    events.retain(|event| event.involved_object.kind.as_deref() == Some("Deployment"));
    events.sort_by_key(|event| event.resource_version().parse::<u64>().unwrap());
    events.into_iter().filter_map(|event| event.message).collect()
}

fn reason(api: &FakeApi, kind: &str) -> Option<String> {
    let web: Deployment = api.read("default", "web")?;
    super::status::find(web.status.as_ref(), kind)?.reason.clone()
}

#[tokio::test(start_paused = true)]
async fn deployment_rolls_out_and_undo_takes_the_old_set_again() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, BOTH);
    api.put::<Deployment>(deployment("web", 3, "a"));
    api.until("the first rollout is complete", is_complete).await;
    let first = api.all::<ReplicaSet>()[0].name().to_owned();

    api.patch::<Deployment>("default", "web", image_patch("b"));
    api.until("the second rollout is complete", |api| is_complete(api) && images(api) == ["b".into()].into())
        .await;
    assert_eq!(api.all::<ReplicaSet>().len(), 2);

    api.patch::<Deployment>("default", "web", image_patch("a"));
    api.until("the rollback is complete", |api| is_complete(api) && images(api) == ["a".into()].into()).await;
    let sets = api.all::<ReplicaSet>();
    assert_eq!(sets.len(), 2, "the old set is used again");
    let current = sets.iter().find(|set| strategy::size(set) > 0).unwrap();
    assert_eq!((current.name(), revision::revision_of(current)), (first.as_str(), 3));
    let web: Deployment = api.read("default", "web").unwrap();
    assert_eq!(web.annotations()[revision::REVISION], "3");
    assert_eq!(reason(&api, PROGRESSING).as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(messages(&api)[0], format!("Scaled up replica set {first} from 0 to 3"));
}

/// Every write keeps at least `wanted - unavailable` pods ready and at most `wanted + surge` active.
fn check_bounds(api: &FakeApi, wanted: usize, surge: usize, unavailable: usize) {
    api.check_writes(move |objects: &Objects| {
        let pods = objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod);
        let active: Vec<&Value> =
            pods.filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).collect();
        let ready = active.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        ensure(active.len() <= wanted + surge, format!("{} pods of {wanted}+{surge}", active.len()))?;
        ensure(ready >= wanted - unavailable, format!("{ready} ready of {wanted}-{unavailable}"))
    });
}

#[tokio::test(start_paused = true)]
async fn rollout_never_leaves_its_bounds_though_caches_lag_and_writes_fail() {
    for (surge, unavailable) in [(1, 0), (0, 1), (2, 2), (5, 0)] {
        let api = FakeApi::new();
        let nodes = tokio::spawn(run_nodes(api.clone()));
        let running = Running::start(&api, BOTH);
        let mut object = deployment("web", 5, "a");
        object["spec"]["strategy"]["rollingUpdate"] =
            json!({ "maxSurge": surge, "maxUnavailable": unavailable });
        api.put::<Deployment>(object);
        api.until("the first rollout is complete", is_complete).await;
        check_bounds(&api, 5, surge, unavailable);
        let writes = AtomicUsize::new(0);
        api.fault(move |_, _| match writes.fetch_add(1, Ordering::Relaxed) % 7 {
            3 => Fault::Fails,
            5 => Fault::AnswerLost,
            _ => Fault::None,
        });
        let laggard = tokio::spawn(lag(api.clone()));
        for image in ["b", "c", "a"] {
            api.patch::<Deployment>("default", "web", image_patch(image));
            let expected = BTreeSet::from([image.to_owned()]);
            api.until("the rollout is complete", |api| is_complete(api) && images(api) == expected).await;
        }
        laggard.abort();
        nodes.abort();
        running.stop().await;
    }
}

/// Holds back the watches of sets and pods in turn.
async fn lag(api: Arc<FakeApi>) {
    for turn in 0.. {
        let resource = if turn % 2 == 0 { "pods" } else { "replicasets.apps" };
        api.hold(resource);
        tokio::time::sleep(Duration::from_millis(1700)).await;
        api.release(resource);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn killed_after_any_write_the_next_start_brings_the_rollout_to_its_end() {
    for survived in 0..40 {
        let api = FakeApi::new();
        let nodes = tokio::spawn(run_nodes(api.clone()));
        api.put::<Deployment>(deployment("web", 3, "a"));
        {
            let _first = Running::start(&api, BOTH);
            let writes = Arc::new(AtomicUsize::new(0));
            let counter = writes.clone();
            api.fault(move |_, target| {
                if target.resource.resource == "events" {
                    return Fault::None;
                }
                if counter.fetch_add(1, Ordering::Relaxed) < survived { Fault::None } else { Fault::Fails }
            });
            api.until("something was written", |api| api.revision() > 0).await;
            api.patch::<Deployment>("default", "web", image_patch("b"));
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        api.fault(|_, _| Fault::None);
        let running = Running::start(&api, BOTH);
        api.until("the rollout is complete", |api| {
            is_complete(api) && images(api) == ["b".into()].into() && api.all::<Pod>().len() == 3
        })
        .await;
        running.stop().await;
        nodes.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn paused_deployment_scales_but_does_not_roll_out() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, BOTH);
    api.put::<Deployment>(deployment("web", 2, "a"));
    api.until("the first rollout is complete", is_complete).await;
    api.patch::<Deployment>("default", "web", json!({ "spec": { "paused": true } }));
    api.patch::<Deployment>("default", "web", image_patch("b"));
    api.patch::<Deployment>("default", "web", json!({ "spec": { "replicas": 4 } }));
    api.until("it is scaled", |api| api.all::<Pod>().len() == 4).await;
    assert_eq!(images(&api), ["a".to_owned()].into());
    assert_eq!(reason(&api, PROGRESSING).as_deref(), Some("DeploymentPaused"));
    api.patch::<Deployment>("default", "web", json!({ "spec": { "paused": false } }));
    api.until("it rolls out once resumed", |api| is_complete(api) && images(api) == ["b".into()].into())
        .await;
}

#[tokio::test(start_paused = true)]
async fn recreate_starts_new_pods_when_the_old_are_gone() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, BOTH);
    let mut object = deployment("web", 3, "a");
    object["spec"]["strategy"] = json!({ "type": "Recreate" });
    api.put::<Deployment>(object);
    api.until("the first rollout is complete", is_complete).await;
    api.check_writes(|objects| {
        let pods = objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod);
        let images: BTreeSet<&str> =
            pods.filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str()).collect();
        ensure(images.len() <= 1, format!("both at once: {images:?}"))
    });
    api.patch::<Deployment>("default", "web", image_patch("b"));
    api.until("the new pods are there", |api| is_complete(api) && images(api) == ["b".into()].into()).await;
}

#[tokio::test(start_paused = true)]
async fn broken_rollout_times_out_and_can_be_undone() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let _running = Running::start(&api, BOTH);
    api.put::<Deployment>(deployment("web", 4, "a"));
    api.until("the first rollout is complete", is_complete).await;
    check_bounds(&api, 4, 1, 1);
    api.patch::<Deployment>("default", "web", image_patch("broken"));
    api.until("the deadline passes", |api| {
        reason(api, PROGRESSING).as_deref() == Some("ProgressDeadlineExceeded")
    })
    .await;
    api.patch::<Deployment>("default", "web", image_patch("a"));
    api.until("the rollback is complete", |api| is_complete(api) && images(api) == ["a".into()].into()).await;
}

#[tokio::test(start_paused = true)]
async fn colliding_set_of_another_owner_is_left_alone() {
    let api = FakeApi::new();
    let _nodes = tokio::spawn(run_nodes(api.clone()));
    let object = deployment("web", 1, "a");
    let typed: Deployment = serde_json::from_value(object.clone()).unwrap();
    let taken = format!("web-{}", revision::template_hash(&strategy::spec(&typed).template, None));
    let mut other = crate::testing::replica_set(&taken, 0);
    other["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "other", "uid": "other", "controller": true,
    }]);
    api.put::<ReplicaSet>(other);
    api.put::<Deployment>(object);
    let _running = Running::start(&api, BOTH);
    api.until("the rollout is complete", is_complete).await;
    let web: Deployment = api.read("default", "web").unwrap();
    assert_eq!(web.status.unwrap().collision_count, Some(1));
    assert_eq!(api.all::<ReplicaSet>().len(), 2);
}
