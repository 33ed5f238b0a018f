//! Quotas in use: objects are counted when they are made, and given back when they go.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::ReplicaSet,
        core::v1::{ConfigMap, Pod, ReplicationController, Secret, Service},
    },
};
use kube::{
    Resource,
    api::{ListParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{quota, uses, uses_now};
use crate::{
    coverage::texts,
    support::{Bed, create, delete, eventually, object, pod, refused, test},
};

texts! {
    "ResourceQuota, object count quota, configmap" => should_create_a_resourcequota_and_capture_the_life_of_a_configmap,
    "ResourceQuota, object count quota, secret" => should_create_a_resourcequota_and_capture_the_life_of_a_secret,
    "ResourceQuota, object count quota, service" => should_create_a_resourcequota_and_capture_the_life_of_a_service,
    "ResourceQuota, object count quota, replicaSet" =>
        should_create_a_resourcequota_and_capture_the_life_of_a_replica_set,
    "ResourceQuota, object count quota, replicationController" =>
        should_create_a_resourcequota_and_capture_the_life_of_a_replication_controller,
    "ResourceQuota, object count quota, pod" => should_create_a_resourcequota_and_capture_the_life_of_a_pod,
}

/// Makes an object, and one more where the quota has room for one alone, and deletes the object.
async fn captures_the_life<K>(bed: &Bed, resource: &str, object_of: impl Fn(&str) -> Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    K: Clone + Serialize + DeserializeOwned + Debug,
{
    let api = bed.api::<K>();
    let before = api.list(&ListParams::default()).await.expect("listed").items.len();
    let (empty, full) = (before.to_string(), (before + 1).to_string());
    quota(bed, "quota", json!({ "hard": { "resourcequotas": "1", resource: full } })).await;
    uses(bed, "quota", json!({ "resourcequotas": "1", resource: empty })).await;

    create(&api, object_of("counted")).await;
    uses_now(bed, "quota", json!({ resource: full })).await;
    let status =
        refused(api.create(&PostParams::default(), &object(object_of("refused"))).await, 403, "Forbidden");
    assert!(status.message.contains("exceeded quota: quota"), "{status:?}");

    delete(&api, "counted").await;
    uses(bed, "quota", json!({ "resourcequotas": "1", resource: empty })).await;
}

/// ResourceQuota, object count quota, configmap
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_configmap() {
    test(async |bed| {
        // A controller makes one in each namespace.
        let maps = bed.api::<ConfigMap>();
        eventually("the authority's map is there", async || Ok(maps.get("kube-root-ca.crt").await?)).await;
        captures_the_life::<ConfigMap>(bed, "configmaps", |name| json!({ "metadata": { "name": name } }))
            .await;
    });
}

/// ResourceQuota, object count quota, secret
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_secret() {
    test(async |bed| {
        captures_the_life::<Secret>(
            bed,
            "secrets",
            |name| json!({ "metadata": { "name": name }, "stringData": { "key": "value" } }),
        )
        .await;
    });
}

/// The specification of either kind of set, without pods.
fn without_pods(selector: Value) -> Value {
    let template = json!({ "metadata": { "labels": { "app": "none" } }, "spec": pod("", json!({}))["spec"] });
    json!({ "replicas": 0, "selector": selector, "template": template })
}

/// ResourceQuota, object count quota, replicaSet
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_replica_set() {
    test(async |bed| {
        captures_the_life::<ReplicaSet>(bed, "count/replicasets.apps", |name| {
            json!({ "metadata": { "name": name }, "spec": without_pods(json!({ "matchLabels": { "app": "none" } })) })
        })
        .await;
    });
}

/// ResourceQuota, object count quota, replicationController
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_replication_controller() {
    test(async |bed| {
        captures_the_life::<ReplicationController>(
            bed,
            "replicationcontrollers",
            |name| json!({ "metadata": { "name": name }, "spec": without_pods(json!({ "app": "none" })) }),
        )
        .await;
    });
}

/// ResourceQuota, object count quota, service
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_service() {
    let service = |name: &str, kind: &str| json!({ "metadata": { "name": name }, "spec": { "type": kind, "ports": [{ "port": 80 }] } });
    test(async |bed| {
        let services = bed.api::<Service>();
        let hard = json!({ "services": "10", "services.nodeports": "1", "services.loadbalancers": "1" });
        quota(bed, "quota", json!({ "hard": hard })).await;
        uses(
            bed,
            "quota",
            json!({ "services": "0", "services.nodeports": "0", "services.loadbalancers": "0" }),
        )
        .await;

        create(&services, service("plain", "ClusterIP")).await;
        create(&services, service("node-port", "NodePort")).await;
        // It would need a second node port.
        let balanced = object(service("balanced", "LoadBalancer"));
        refused(services.create(&PostParams::default(), &balanced).await, 403, "Forbidden");
        uses_now(
            bed,
            "quota",
            json!({ "services": "2", "services.nodeports": "1", "services.loadbalancers": "0" }),
        )
        .await;
        let mut balanced = service("balanced", "LoadBalancer");
        balanced["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        create(&services, balanced).await;
        uses_now(
            bed,
            "quota",
            json!({ "services": "3", "services.nodeports": "1", "services.loadbalancers": "1" }),
        )
        .await;

        for name in ["plain", "node-port", "balanced"] {
            delete(&services, name).await;
        }
        uses(
            bed,
            "quota",
            json!({ "services": "0", "services.nodeports": "0", "services.loadbalancers": "0" }),
        )
        .await;
    });
}

/// A pod that asks for this.
fn asking(name: &str, requests: Value, limits: Value) -> Value {
    let mut asking = pod(name, json!({}));
    asking["spec"]["containers"][0]["resources"] = json!({ "requests": requests, "limits": limits });
    asking
}

/// ResourceQuota, object count quota, pod
#[test]
fn should_create_a_resourcequota_and_capture_the_life_of_a_pod() {
    test(async |bed| {
        let (pods, post) = (bed.api::<Pod>(), PostParams::default());
        let hard = json!({
            "pods": "5", "cpu": "1", "memory": "500Mi", "ephemeral-storage": "50Gi",
            "requests.conformance.example.com/dongle": "3",
        });
        quota(bed, "quota", json!({ "hard": hard })).await;
        let dongles = json!({ "conformance.example.com/dongle": "2" });
        let mut requests = json!({ "cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Gi" });
        requests["conformance.example.com/dongle"] = json!("2");
        let made = create(&pods, asking("counted", requests.clone(), dongles.clone())).await;
        let used = json!({
            "pods": "1", "cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Gi",
            "requests.conformance.example.com/dongle": "2",
        });
        uses_now(bed, "quota", used.clone()).await;

        let too_much = asking("refused", json!({ "cpu": "600m", "memory": "100Mi" }), json!({}));
        refused(pods.create(&post, &object(too_much)).await, 403, "Forbidden");
        requests["ephemeral-storage"] = json!("10Gi");
        requests["memory"] = json!("100Mi");
        let too_much = asking("refused", requests.clone(), dongles);
        let status = refused(pods.create(&post, &object(too_much)).await, 403, "Forbidden");
        assert!(status.message.contains("requests.conformance.example.com/dongle"), "{status:?}");

        let mut changed = json!(made);
        // The scheduler writes the pod's status meanwhile.
        changed["metadata"]["resourceVersion"] = Value::Null;
        changed["spec"]["containers"][0]["resources"]["requests"] =
            json!({ "cpu": "100m", "memory": "100Mi" });
        refused(pods.replace("counted", &post, &object(changed)).await, 422, "Invalid");
        uses_now(bed, "quota", used).await;

        delete(&pods, "counted").await;
        uses(
            bed,
            "quota",
            json!({
                "pods": "0", "cpu": "0", "memory": "0", "ephemeral-storage": "0",
                "requests.conformance.example.com/dongle": "0",
            }),
        )
        .await;
    });
}
