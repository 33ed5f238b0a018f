//! Scenarios: daemon pods on nodes that come, go and change, and templates that are rolled out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Event, Node, Pod},
};
use serde_json::{Value, json};

use super::pod::node_of;
use crate::{
    meta::{MetaExt, now, pod_is_active, pod_is_ready},
    testing::{FakeApi, Fault, Running, ensure, run_nodes, template},
};

const ALONE: &[&str] = &["daemonset"];

fn daemon_set(strategy: Value) -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "revisionHistoryLimit": 1,
            "selector": { "matchLabels": { "app": "web" } },
            "updateStrategy": strategy,
            "template": template("web", "a"),
        },
    })
}

fn rolling(unavailable: i32, surge: i32) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": unavailable, "maxSurge": surge } })
}

fn node(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": {} })
}

fn image(image: &str) -> Value {
    json!({ "spec": { "template": template("web", image) } })
}

fn status(api: &FakeApi) -> DaemonSetStatus {
    api.read::<DaemonSet>("default", "web").and_then(|set| set.status).unwrap_or_default()
}

/// Desired, updated and available pods.
fn counts(api: &FakeApi) -> [i32; 3] {
    let status = status(api);
    [
        status.desired_number_scheduled,
        status.updated_number_scheduled.unwrap_or_default(),
        status.number_available.unwrap_or_default(),
    ]
}

fn active(api: &FakeApi) -> Vec<Pod> {
    api.all::<Pod>().into_iter().filter(pod_is_active).collect()
}

fn nodes_with_pods(api: &FakeApi) -> BTreeSet<String> {
    active(api).iter().filter_map(|pod| node_of(pod).map(str::to_owned)).collect()
}

fn images(api: &FakeApi) -> BTreeMap<String, usize> {
    let mut images = BTreeMap::new();
    for pod in active(api) {
        *images.entry(pod.spec.unwrap().containers[0].image.clone().unwrap()).or_default() += 1;
    }
    images
}

fn told(api: &FakeApi, reason: &str) -> bool {
    api.all::<Event>().iter().any(|event| event.reason.as_deref() == Some(reason))
}

/// Three nodes, with agents, and the controller.
async fn cluster() -> (Arc<FakeApi>, Running) {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    for name in ["n1", "n2", "n3"] {
        api.put::<Node>(node(name));
    }
    let running = Running::start(&api, ALONE);
    (api, running)
}

#[tokio::test(start_paused = true)]
async fn pods_follow_nodes_as_they_come_and_change() {
    let (api, _running) = cluster().await;
    let mut set = daemon_set(rolling(1, 0));
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({ "disk": "ssd" });
    api.put::<DaemonSet>(set);
    api.until("no node fits", |api| status(api).observed_generation == Some(1)).await;
    assert_eq!(counts(&api), [0, 0, 0]);
    let label = |name: &str, disk: Value| {
        api.patch::<Node>("", name, json!({ "metadata": { "labels": { "disk": disk } } }))
    };
    label("n1", json!("ssd"));
    label("n3", json!("ssd"));
    api.until("two fit", |api| counts(api) == [2, 2, 2]).await;
    assert_eq!(nodes_with_pods(&api), ["n1", "n3"].map(str::to_owned).into());
    label("n3", json!("hdd"));
    api.until("one does not fit any more", |api| counts(api) == [1, 1, 1] && api.all::<Pod>().len() == 1)
        .await;
    let taint = json!([{ "key": "a", "effect": "NoSchedule" }]);
    api.patch::<Node>("", "n1", json!({ "spec": { "taints": taint } }));
    api.until("a pod that is there stays, where it should not be", |api| {
        counts(api)[0] == 0 && status(api).number_misscheduled == 1
    })
    .await;
    assert_eq!(nodes_with_pods(&api), ["n1".to_owned()].into());
    api.patch::<Node>("", "n1", json!({ "spec": { "taints": [{ "key": "a", "effect": "NoExecute" }] } }));
    api.until("or has to go", |api| api.all::<Pod>().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn each_node_has_its_own_pod_whatever_becomes_of_requests() {
    let api = FakeApi::new();
    tokio::spawn(run_nodes(api.clone()));
    for number in 0..10 {
        api.put::<Node>(node(&format!("node-{number}")));
    }
    let mut writes = 0;
    api.fault(move |_, target| {
        writes += u32::from(target.resource.resource == "pods");
        match writes % 4 {
            1 if target.resource.resource == "pods" => Fault::Fails,
            3 if target.resource.resource == "pods" => Fault::AnswerLost,
            _ => Fault::None,
        }
    });
    let mut running = Running::start(&api, ALONE);
    api.put::<DaemonSet>(daemon_set(rolling(3, 0)));
    for turn in 0..6 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(running);
        running = Running::start(&api, ALONE);
        api.patch::<DaemonSet>("default", "web", image(["b", "c"][turn % 2]));
    }
    api.until("all nodes have the last image", |api| {
        counts(api) == [10, 10, 10] && images(api) == [("c".to_owned(), 10)].into()
    })
    .await;
    assert_eq!(nodes_with_pods(&api).len(), 10);
    api.until("of which none is left over", |api| api.all::<Pod>().len() == 10).await;
}

#[tokio::test(start_paused = true)]
async fn rolling_update_misses_no_more_than_it_may() {
    let (api, _running) = cluster().await;
    api.put::<DaemonSet>(daemon_set(rolling(1, 0)));
    api.until("all run", |api| counts(api) == [3, 3, 3]).await;
    api.check_writes(|objects| {
        let pods = objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod);
        let ready = pods.filter(|pod| {
            pod["metadata"].get("deletionTimestamp").is_none() && pod["status"]["phase"] == "Running"
        });
        let ready = ready.count();
        ensure(ready >= 2, format!("{ready} pods are ready"))
    });
    api.patch::<DaemonSet>("default", "web", image("b"));
    api.until("all are new", |api| counts(api) == [3, 3, 3] && images(api) == [("b".to_owned(), 3)].into())
        .await;
    api.patch::<DaemonSet>("default", "web", image("broken"));
    api.until("a broken image stops the update", |api| images(api).get("broken") == Some(&1)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(images(&api), [("b".to_owned(), 2), ("broken".to_owned(), 1)].into());
    api.patch::<DaemonSet>("default", "web", image("b"));
    api.until("and going back ends it", |api| images(api) == [("b".to_owned(), 3)].into()).await;
}

#[tokio::test(start_paused = true)]
async fn surge_brings_the_new_pod_before_the_old_one_goes() {
    let (api, _running) = cluster().await;
    api.put::<DaemonSet>(daemon_set(rolling(0, 1)));
    api.until("all run", |api| counts(api) == [3, 3, 3]).await;
    api.check_writes(|objects| {
        let mut nodes = BTreeSet::new();
        let mut count = 0;
        for pod in objects.iter().filter(|(key, _)| key.0 == "pods").map(|(_, pod)| pod) {
            if pod["metadata"].get("deletionTimestamp").is_none() {
                count += 1;
                if pod["status"]["phase"] == "Running" {
                    nodes.insert(pod["spec"]["nodeName"].to_string());
                }
            }
        }
        ensure(nodes.len() == 3 && count <= 4, format!("{count} pods, ready ones on {nodes:?}"))
    });
    api.patch::<DaemonSet>("default", "web", image("b"));
    api.until("all are new", |api| counts(api) == [3, 3, 3] && images(api) == [("b".to_owned(), 3)].into())
        .await;
}

#[tokio::test(start_paused = true)]
async fn on_delete_leaves_old_pods_until_they_are_deleted() {
    let (api, _running) = cluster().await;
    api.put::<DaemonSet>(daemon_set(json!({ "type": "OnDelete" })));
    api.until("all run", |api| counts(api) == [3, 3, 3]).await;
    api.patch::<DaemonSet>("default", "web", image("b"));
    api.until("none is new", |api| counts(api) == [3, 0, 3]).await;
    let first = active(&api)[0].name().to_owned();
    api.remove::<Pod>("default", &first, &DeleteOptions::default());
    api.until("its successor is", |api| counts(api) == [3, 1, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn failed_pods_are_replaced_more_and_more_slowly() {
    let (api, _running) = cluster().await;
    api.put::<DaemonSet>(daemon_set(rolling(1, 0)));
    let fails = |pod: &Pod| pod_is_ready(pod) && node_of(pod) == Some("n2");
    let mut seen = Vec::new();
    for _ in 0..5 {
        api.until("a pod runs there", |api| active(api).iter().any(fails)).await;
        let pod = active(&api).into_iter().find(fails).unwrap();
        seen.push(now());
        api.patch_status::<Pod>(
            "default",
            pod.name(),
            json!({ "status": { "phase": "Failed", "conditions": [] } }),
        );
        api.until("it is replaced", |api| api.read::<Pod>("default", pod.name()).is_none()).await;
    }
    let waits: Vec<i64> = seen.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect();
    assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]) && waits[3] >= 4, "{waits:?}");
    assert!(told(&api, "FailedDaemonPod"));
}

#[tokio::test(start_paused = true)]
async fn revisions_are_kept_to_go_back_to() {
    let (api, _running) = cluster().await;
    api.put::<DaemonSet>(daemon_set(rolling(3, 0)));
    let numbers = |api: &FakeApi| {
        let mut numbers: Vec<i64> =
            api.all::<ControllerRevision>().iter().map(|revision| revision.revision).collect();
        numbers.sort_unstable();
        numbers
    };
    let rolled = |api: &FakeApi, wanted: &str| images(api) == [(wanted.to_owned(), 3)].into();
    api.until("the first is kept", |api| counts(api) == [3, 3, 3]).await;
    assert_eq!(numbers(&api), [1]);
    let first: ControllerRevision = api.all().remove(0);
    assert_eq!(
        active(&api)[0].labels()["controller-revision-hash"],
        first.labels()["controller-revision-hash"]
    );
    assert_eq!(first.data.as_ref().unwrap().0["spec"]["template"]["$patch"], "replace");
    api.patch::<DaemonSet>("default", "web", image("b"));
    api.until("and the second", |api| rolled(api, "b") && numbers(api) == [1, 2]).await;
    // What `kubectl rollout undo` does.
    api.patch::<DaemonSet>("default", "web", image("a"));
    api.until("going back raises the first", |api| rolled(api, "a") && numbers(api) == [2, 3]).await;
    assert_eq!(api.read::<ControllerRevision>("default", first.name()).unwrap().revision, 3);
    api.patch::<DaemonSet>("default", "web", image("c"));
    api.until("one old revision is enough", |api| rolled(api, "c") && numbers(api) == [3, 4]).await;
    api.remove::<ControllerRevision>("default", first.name(), &DeleteOptions::default());
    let current = api.all::<ControllerRevision>()[0].name().to_owned();
    api.remove::<ControllerRevision>("default", &current, &DeleteOptions::default());
    api.until("a lost one is made again", |api| numbers(api) == [1]).await;
    assert!(rolled(&api, "c"));
}

#[tokio::test(start_paused = true)]
async fn pod_of_a_node_that_is_gone_does_not_wait_for_it() {
    let api = FakeApi::new();
    api.put::<Node>(node("n1"));
    let _running = Running::start(&api, ALONE);
    api.put::<DaemonSet>(daemon_set(rolling(1, 0)));
    api.until("a pod waits to be bound", |api| api.all::<Pod>().len() == 1).await;
    let pod = api.all::<Pod>().remove(0);
    let tolerated = pod.spec.as_ref().unwrap().tolerations.as_ref().unwrap().len();
    assert_eq!((node_of(&pod), tolerated), (Some("n1"), 6));
    api.remove::<Node>("", "n1", &DeleteOptions::default());
    api.until("it is deleted", |api| api.all::<Pod>().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_pod_that_a_finalizer_holds_keeps_no_other_from_its_node() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<Node>(node("n1"));
    api.put::<DaemonSet>(daemon_set(rolling(1, 0)));
    api.until("the pod is made", |api| active(api).len() == 1).await;
    let first = active(&api)[0].name().to_owned();
    let held = json!({ "metadata": { "finalizers": ["example.com/keep"] }, "spec": { "nodeName": "n1" } });
    api.patch::<Pod>("default", &first, held);
    api.patch_status::<Pod>("default", &first, json!({ "status": { "phase": "Failed" } }));
    api.until("another is made beside it", |api| active(api).len() == 1 && api.all::<Pod>().len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_a_gone_node_that_a_finalizer_holds_holds_nobody_up() {
    let api = FakeApi::new();
    let _running = Running::start(&api, ALONE);
    api.put::<Node>(node("n1"));
    api.put::<DaemonSet>(daemon_set(rolling(1, 0)));
    api.until("the pod is made", |api| active(api).len() == 1).await;
    let first = active(&api)[0].name().to_owned();
    api.patch::<Pod>("default", &first, json!({ "metadata": { "finalizers": ["example.com/keep"] } }));
    api.remove::<Node>("", "n1", &DeleteOptions::default());
    api.until("it is to go", |api| active(api).is_empty()).await;
    api.patch::<DaemonSet>("default", "web", json!({ "metadata": { "annotations": { "look": "again" } } }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.put::<Node>(node("n2"));
    let since = tokio::time::Instant::now();
    api.until("the new node has its pod", |api| nodes_with_pods(api).contains("n2")).await;
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
}
