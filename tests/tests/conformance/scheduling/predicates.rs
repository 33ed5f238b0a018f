//! What a node must have for a pod: room, labels, free ports.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::{IMAGE, add_node, bound, node_of, tolerates, unschedulable},
    steps::{create, delete, patch},
    support::{test, unique},
};

texts! {
    "Scheduler, resource limits" => validates_resource_limits_of_pods_that_are_allowed_to_run,
    "Scheduler, node selector matching" => validates_that_nodeselector_is_respected_if_matching,
    "Scheduler, node selector not matching" => validates_that_nodeselector_is_respected_if_not_matching,
    "Scheduling, HostPort and Protocol match, HostIPs different but one is default HostIP (0.0.0.0)"
        => validates_that_there_exists_conflict_between_pods_with_same_hostport_and_protocol_but_one_using_0_0_0_0_hostip,
    "Scheduling, HostPort matching and HostIP and Protocol not-matching"
        => validates_that_there_is_no_conflict_between_pods_with_same_hostport_but_different_hostip_and_protocol,
}

/// A pod that can go to this node of the test's only.
fn pod(node: &str, fields: Value) -> Value {
    let mut container = json!({ "name": "app", "image": IMAGE });
    for (field, value) in fields.as_object().expect("fields") {
        container[field] = value.clone();
    }
    let spec = json!({ "tolerations": [tolerates(node)], "containers": [container] });
    json!({ "metadata": { "name": unique("pod") }, "spec": spec })
}

/// Waits until the pod is on the node.
async fn is_put_on(pods: &Api<Pod>, node: &str, pod: Value) -> Pod {
    let made = create(pods, pod).await;
    let found = bound(pods, &made.name_any()).await;
    assert_eq!(node_of(&found), node);
    found
}

/// Scheduler, resource limits
#[test]
fn validates_resource_limits_of_pods_that_are_allowed_to_run() {
    test(async |bed| {
        let pods = bed.api::<Pod>();
        let node = add_node(bed, json!({ "example.com/beards": "1000", "cpu": "2" })).await;
        let asking = |cpu: &str, beards: &str| {
            let amounts = json!({ "cpu": cpu, "example.com/beards": beards });
            pod(&node, json!({ "resources": { "requests": amounts, "limits": amounts } }))
        };
        let first = is_put_on(&pods, &node, asking("1200m", "700")).await;

        for (cpu, beards, lacking) in
            [("900m", "100", "Insufficient cpu"), ("100m", "301", "Insufficient example.com/beards")]
        {
            let made = create(&pods, asking(cpu, beards)).await;
            let reason = unschedulable(&pods, &made.name_any()).await;
            assert!(reason.contains(lacking), "{reason}");
            delete(&pods, &made.name_any()).await;
        }
        // What just fits is put there, and what a pod had is free again after it.
        is_put_on(&pods, &node, asking("800m", "300")).await;
        let waiting = create(&pods, asking("1200m", "700")).await;
        unschedulable(&pods, &waiting.name_any()).await;
        delete(&pods, &first.name_any()).await;
        assert_eq!(node_of(&bound(&pods, &waiting.name_any()).await), node);
    });
}

/// Scheduler, node selector matching
#[test]
fn validates_that_nodeselector_is_respected_if_matching() {
    test(async |bed| {
        let (nodes, pods) = (bed.all::<Node>(), bed.api::<Pod>());
        let [node, other] = [add_node(bed, json!({})).await, add_node(bed, json!({})).await];
        let label = unique("label");
        patch(&nodes, &node, json!({ "metadata": { "labels": { "conformance.test/label": label } } })).await;
        for _ in 0..3 {
            let mut pod = pod(&node, json!({}));
            pod["spec"]["tolerations"] = json!([tolerates(&node), tolerates(&other)]);
            pod["spec"]["nodeSelector"] = json!({ "conformance.test/label": label });
            is_put_on(&pods, &node, pod).await;
        }
    });
}

/// Scheduler, node selector not matching
#[test]
fn validates_that_nodeselector_is_respected_if_not_matching() {
    test(async |bed| {
        let (nodes, pods) = (bed.all::<Node>(), bed.api::<Pod>());
        let node = add_node(bed, json!({})).await;
        let label = unique("label");
        let mut pod = pod(&node, json!({}));
        pod["spec"]["nodeSelector"] = json!({ "conformance.test/label": label });
        let made = create(&pods, pod).await;
        let reason = unschedulable(&pods, &made.name_any()).await;
        assert!(reason.contains("didn't match Pod's node affinity/selector"), "{reason}");
        // It was nothing but the label.
        patch(&nodes, &node, json!({ "metadata": { "labels": { "conformance.test/label": label } } })).await;
        assert_eq!(node_of(&bound(&pods, &made.name_any()).await), node);
    });
}

fn port(host: &str, protocol: &str) -> Value {
    let mut port = json!({ "containerPort": 80, "hostPort": 54_322, "protocol": protocol });
    if !host.is_empty() {
        port["hostIP"] = json!(host);
    }
    json!({ "ports": [port] })
}

/// Scheduling, HostPort and Protocol match, HostIPs different but one is default HostIP (0.0.0.0)
#[test]
fn validates_that_there_exists_conflict_between_pods_with_same_hostport_and_protocol_but_one_using_0_0_0_0_hostip()
 {
    test(async |bed| {
        let pods = bed.api::<Pod>();
        for (first, second) in [("", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")] {
            let node = add_node(bed, json!({})).await;
            is_put_on(&pods, &node, pod(&node, port(first, "TCP"))).await;
            let made = create(&pods, pod(&node, port(second, "TCP"))).await;
            let reason = unschedulable(&pods, &made.name_any()).await;
            assert!(reason.contains("didn't have free ports for the requested pod ports"), "{reason}");
        }
    });
}

/// Scheduling, HostPort matching and HostIP and Protocol not-matching
#[test]
fn validates_that_there_is_no_conflict_between_pods_with_same_hostport_but_different_hostip_and_protocol() {
    test(async |bed| {
        let pods = bed.api::<Pod>();
        let node = add_node(bed, json!({})).await;
        for (host, protocol) in [("127.0.0.1", "TCP"), ("192.0.2.1", "TCP"), ("192.0.2.1", "UDP")] {
            is_put_on(&pods, &node, pod(&node, port(host, protocol))).await;
        }
    });
}
