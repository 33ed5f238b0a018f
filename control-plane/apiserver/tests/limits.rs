//! LimitRange and ResourceQuota, seen from outside.

mod common;

use std::time::Duration;

use common::*;
use futures::StreamExt;
use hawser_api::{GroupVersionResource, client::WatchStream};
use serde_json::{Value, json};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

const LIMIT_RANGES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "limitranges");
const QUOTAS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "resourcequotas");

/// A quota whose controller has counted.
async fn quota(admin: &Api, name: &str, hard: Value, used: Value) {
    let object = json!({ "metadata": { "name": name }, "spec": { "hard": hard } });
    let mut made = admin.create(&QUOTAS, Some("shop"), object).await.expect("a quota");
    made["status"] = json!({ "hard": hard, "used": used });
    admin.update(&QUOTAS, &made, "status").await.expect("counted");
}

async fn used(admin: &Api, name: &str) -> Value {
    admin.get(&QUOTAS, Some("shop"), name).await.expect("the quota")["status"]["used"].clone()
}

/// The next change.
async fn next(watch: &mut WatchStream) -> (String, u64) {
    loop {
        let event = timeout(DEADLINE, watch.next()).await.expect("in time").expect("an event");
        if let Some(change) = describe(&event.expect("no error")) {
            return change;
        }
    }
}

#[tokio::test]
async fn a_limit_range_is_heeded_as_soon_as_it_is_made() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let limit = json!({ "type": "Container", "default": { "cpu": "500m" }, "min": { "cpu": "100m" } });
    let range = json!({ "metadata": { "name": "sizes" }, "spec": { "limits": [limit] } });
    admin.create(&LIMIT_RANGES, Some("shop"), range).await.expect("a limit range");
    let made = admin.create(&PODS, Some("shop"), pod("web")).await.expect("a pod");
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "500m" }, "requests": { "cpu": "500m" } })
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container main; cpu limit for container main"
    );
    let mut small = pod("small");
    small["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "50m" } });
    let error = admin.create(&PODS, Some("shop"), small).await.expect_err("too small");
    assert_eq!(
        error.message(),
        "pods \"small\" is forbidden: minimum cpu usage per Container is 100m, but request is 50m"
    );
    admin.delete(&LIMIT_RANGES, Some("shop"), "sizes", None).await.expect("deleted");
    let plain = admin.create(&PODS, Some("shop"), pod("plain")).await.expect("a pod");
    assert_eq!(plain["spec"]["containers"][0]["resources"], json!({}));
    running.stop().await;
}

#[tokio::test]
async fn of_many_creates_at_once_as_many_pass_as_there_is_room_for() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let hard = json!({ "configmaps": "20", "count/configmaps": "15" });
    quota(&admin, "maps", hard, json!({ "configmaps": "3", "count/configmaps": "3" })).await;
    let creates = (0..60).map(|number| {
        let admin = admin.clone();
        async move { admin.create(&CONFIG_MAPS, Some("shop"), config_map(&format!("m{number}"), "1")).await }
    });
    let outcomes = futures::future::join_all(creates).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(outcomes.len() - refused.len(), 12);
    for error in refused {
        assert!(
            error.message().ends_with(
                "is forbidden: exceeded quota: maps, requested: count/configmaps=1, used: count/configmaps=15, \
                 limited: count/configmaps=15"
            ),
            "{error}"
        );
    }
    assert_eq!(used(&admin, "maps").await, json!({ "configmaps": "15", "count/configmaps": "15" }));
    running.stop().await;
}

#[tokio::test]
async fn a_watch_that_ends_between_two_charged_quotas_goes_on_with_the_second() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for name in ["one", "two"] {
        quota(&admin, name, json!({ "configmaps": "5" }), json!({ "configmaps": "0" })).await;
    }
    let (_, from) = admin.list(&QUOTAS, Some("shop"), "").await;
    let mut watch = admin.watch(&QUOTAS, Some("shop"), "", &from).await.expect("a watch");
    admin.create(&CONFIG_MAPS, Some("shop"), config_map("a", "1")).await.expect("there is room");
    let (first, version) = next(&mut watch).await;
    drop(watch);
    let mut watch = admin.watch(&QUOTAS, Some("shop"), "", &version.to_string()).await.expect("it goes on");
    let (second, same) = next(&mut watch).await;
    assert_eq!((first.as_str(), second.as_str()), ("MODIFIED one", "MODIFIED two"));
    assert_eq!(version, same, "one write charges both");
    admin.delete(&QUOTAS, Some("shop"), "one", None).await.expect("deleted");
    assert_eq!(next(&mut watch).await.0, "DELETED one");
    running.stop().await;
}

#[tokio::test]
async fn what_fails_or_is_only_tried_is_not_charged() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    quota(&admin, "services", json!({ "services.nodeports": "2" }), json!({ "services.nodeports": "0" }))
        .await;
    let service = |kind: &str, ports: usize| {
        let ports: Vec<Value> =
            (0..ports).map(|port| json!({ "name": format!("p{port}"), "port": port + 1 })).collect();
        json!({ "metadata": { "name": "web" }, "spec": { "type": kind, "ports": ports } })
    };
    let error = admin.create(&SERVICES, Some("shop"), service("NodePort", 3)).await.expect_err("too many");
    assert_eq!(
        error.message(),
        "services \"web\" is forbidden: exceeded quota: services, requested: services.nodeports=3, used: \
         services.nodeports=0, limited: services.nodeports=2"
    );
    let made = admin.create(&SERVICES, Some("shop"), service("ClusterIP", 2)).await.expect("no node ports");
    assert_eq!(used(&admin, "services").await, json!({ "services.nodeports": "0" }));
    admin.create(&SERVICES, Some("shop"), service("NodePort", 1)).await.expect_err("it is there already");
    assert_eq!(used(&admin, "services").await, json!({ "services.nodeports": "0" }));
    let mut opened = made.clone();
    opened["spec"]["type"] = json!("NodePort");
    admin.update(&SERVICES, &opened, "").await.expect("there is room");
    assert_eq!(used(&admin, "services").await, json!({ "services.nodeports": "2" }));
    running.stop().await;
}

#[tokio::test]
async fn a_pod_is_resized_as_a_whole() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    quota(&admin, "cpu", json!({ "requests.cpu": "4" }), json!({ "requests.cpu": "0" })).await;
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1" } });
    wanted["spec"]["resources"] = json!({ "limits": { "cpu": "2", "memory": "1Gi" } });
    let made = admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    let asked = json!({ "cpu": "1", "memory": "1Gi" });
    assert_eq!(made["spec"]["resources"]["requests"], asked, "of its containers, or its limit");
    let patch = async |resources: Value| {
        let spec = json!({ "resources": resources, "nodeName": "elsewhere" });
        admin.merge_at(&PODS, Some("shop"), "web", "resize", json!({ "spec": spec })).await
    };
    let resized =
        patch(json!({ "requests": { "cpu": "3" }, "limits": { "cpu": "4" } })).await.expect("resized");
    let amounts =
        json!({ "requests": { "cpu": "3", "memory": "1Gi" }, "limits": { "cpu": "4", "memory": "1Gi" } });
    assert_eq!(resized["spec"]["resources"], amounts);
    assert_eq!(resized["spec"]["nodeName"], Value::Null, "nothing else changes");
    assert_eq!(resized["metadata"]["generation"], 2);
    assert_eq!(used(&admin, "cpu").await, json!({ "requests.cpu": "3" }));
    for (refused, why) in [
        (
            json!({ "requests": { "cpu": "500m" } }),
            "must be greater than or equal to aggregate container requests of 1",
        ),
        (json!({ "requests": { "cpu": "5" }, "limits": { "cpu": "6" } }), "exceeded quota: cpu"),
        (json!({ "limits": { "cpu": null } }), "pod-level resource limits cannot be removed"),
        (json!({ "limits": { "memory": "512Mi" } }), "must be less than or equal to memory limit of 512Mi"),
        (json!({ "requests": { "cpu": "4" } }), "Pod QOS Class may not change as a result of resizing"),
    ] {
        let error = patch(refused).await.expect_err(why);
        assert!(error.message().contains(why), "{}", error.message());
    }
    running.stop().await;
}

#[tokio::test]
async fn a_resize_is_charged_and_checked() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    quota(&admin, "cpu", json!({ "requests.cpu": "2" }), json!({ "requests.cpu": "0" })).await;
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "1" } });
    let made = admin.create(&PODS, Some("shop"), wanted).await.expect("a pod");
    assert_eq!(made["metadata"]["generation"], 1);
    let resize = |cpu: &str| {
        let mut pod = made.clone();
        pod["metadata"]["resourceVersion"] = Value::Null;
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = cpu.into();
        pod["spec"]["containers"][0]["image"] = "another".into();
        pod
    };
    let resized = admin.update(&PODS, &resize("1500m"), "resize").await.expect("there is room");
    let container = &resized["spec"]["containers"][0];
    assert_eq!(container["resources"]["requests"]["cpu"], "1500m");
    assert_eq!(container["image"], made["spec"]["containers"][0]["image"], "nothing else changes");
    assert_eq!(resized["metadata"]["generation"], 2);
    assert_eq!(used(&admin, "cpu").await, json!({ "requests.cpu": "1500m" }));
    let error = admin.update(&PODS, &resize("3"), "resize").await.expect_err("too much");
    assert!(error.message().contains("exceeded quota: cpu"), "{}", error.message());
    let limit = json!({ "type": "Container", "min": { "cpu": "100m" } });
    let range = json!({ "metadata": { "name": "sizes" }, "spec": { "limits": [limit] } });
    admin.create(&LIMIT_RANGES, Some("shop"), range).await.expect("a limit range");
    let error = admin.update(&PODS, &resize("50m"), "resize").await.expect_err("too small");
    assert!(error.message().contains("minimum cpu usage per Container is 100m"), "{}", error.message());
    let error = admin.update(&PODS, &resize("50m"), "").await.expect_err("not by an ordinary update");
    assert!(error.message().contains("pod updates may not change fields other than"), "{}", error.message());
    running.stop().await;
}
