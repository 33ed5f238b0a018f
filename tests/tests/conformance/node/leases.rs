//! Leases and nodes as objects.

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    jiff::Timestamp,
};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    coverage::texts,
    steps::{as_json, counted, create, delete, delete_all, gone, list, patch, update},
    support::{refused, test, unique},
};

texts! {
    "lease API should be available" => lease_api_should_be_available,
    "Node, resource lifecycle" => should_run_through_the_lifecycle_of_a_node,
}

/// lease API should be available
#[test]
fn lease_api_should_be_available() {
    test(async |bed| {
        let (name, leases) = (unique("lease"), bed.api::<Lease>());
        let read = async || leases.get(&name).await.expect("the lease is read").spec;
        let spec = |holder: &str, seconds: i32| {
            json!({
                "holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 0,
                "acquireTime": "2026-01-01T01:00:00.000001Z", "renewTime": "2026-01-01T01:00:05.123456Z",
            })
        };
        let made = create(&leases, json!({ "metadata": { "name": name }, "spec": spec("holder", 30) })).await;
        let wanted = as_json(&made.spec);
        assert_eq!(wanted, spec("holder", 30), "times keep their microseconds");
        assert_eq!(read().await, made.spec);

        let updated = update(&leases, &name, |lease| {
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some("holder2".into());
            spec.lease_duration_seconds = Some(40);
            spec.lease_transitions = Some(1);
        })
        .await;
        assert_eq!(updated.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()), Some("holder2"));
        assert_eq!(read().await, updated.spec);

        let patched = patch(&leases, &name, json!({ "spec": spec("holder3", 50) })).await;
        assert_eq!(patched.spec.as_ref().and_then(|spec| spec.lease_duration_seconds), Some(50));
        assert_eq!(read().await, patched.spec);

        let other = unique("lease");
        let metadata = json!({ "name": other, "labels": { "deletecollection": "true" } });
        create(&leases, json!({ "metadata": metadata, "spec": spec("other", 30) })).await;
        assert_eq!(list(&leases, "").await.len(), 2);
        delete_all(&leases, "deletecollection=true").await;
        let left = counted(&leases, "", 1).await;
        assert_eq!(left[0].name_any(), name);
        delete(&leases, &name).await;
        refused(leases.get(&name).await, 404, "NotFound");
    });
}

/// Node, resource lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_node() {
    test(async |bed| {
        let (name, nodes) = (unique("node"), bed.all::<Node>());
        let node = json!({
            "metadata": { "name": name },
            "spec": { "unschedulable": true },
            "status": {
                "phase": "Running",
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Test", "message": "set from a test",
                    "lastHeartbeatTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                }],
            },
        });
        let made = create(&nodes, node).await;
        // A node, unlike others, comes with its status.
        let conditions =
            made.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        assert_eq!(conditions.iter().map(|condition| &*condition.type_).collect::<Vec<_>>(), ["Ready"]);
        assert_eq!(nodes.get(&name).await.expect("the node is read").uid(), made.uid());

        let patched = patch(&nodes, &name, json!({ "metadata": { "labels": { &name: "patched" } } })).await;
        assert_eq!(patched.labels()[&name], "patched");
        assert_eq!(list(&nodes, &format!("{name}=patched")).await.len(), 1);
        let updated = update(&nodes, &name, |node| {
            node.labels_mut().insert(name.clone(), "updated".into());
        })
        .await;
        assert_eq!(updated.labels()[&name], "updated");
        delete(&nodes, &name).await;
        gone(&nodes, &name).await;
    });
}
