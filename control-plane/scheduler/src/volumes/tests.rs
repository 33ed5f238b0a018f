//! Pods with volumes, seen through the scheduler's decisions.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    config::Config,
    scheduler::{Plan, Scheduler},
    testing::{node, pod},
};

const NOW: Duration = Duration::ZERO;

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Two nodes, in zones a and b, and classes that wait or do not.
fn scheduler() -> Scheduler {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    for (name, zone) in [("n1", "a"), ("n2", "b")] {
        let labels = json!({ "topology.kubernetes.io/zone": zone });
        scheduler.node_changed(&node(name, json!({ "metadata": { "labels": labels } })), NOW);
    }
    for (name, provisioner, mode) in [
        ("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        ("late", "disks.example.com", "WaitForFirstConsumer"),
        ("now", "disks.example.com", "Immediate"),
    ] {
        let class =
            json!({ "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode });
        scheduler.class_changed(&typed(class), NOW);
    }
    scheduler
}

fn claim(name: &str, class: &str, volume: Option<&str>) -> Value {
    let mut claim = json!({
        "metadata": { "name": name, "namespace": "a", "uid": format!("uid-{name}") },
        "spec": { "storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "5Gi" } } },
    });
    if let Some(volume) = volume {
        claim["spec"]["volumeName"] = volume.into();
        claim["metadata"]["annotations"] = json!({ "pv.kubernetes.io/bind-completed": "yes" });
    }
    claim
}

fn volume(name: &str, class: &str, size: &str, node: &str) -> Value {
    let on = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] });
    json!({
        "metadata": { "name": name }, "status": { "phase": "Available" },
        "spec": {
            "storageClassName": class, "accessModes": ["ReadWriteOnce"], "capacity": { "storage": size },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [on] }] } },
        },
    })
}

fn user(name: &str, claims: &[&str]) -> k8s_openapi::api::core::v1::Pod {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({ "name": claim, "persistentVolumeClaim": { "claimName": claim } }))
        .collect();
    pod(name, json!({ "containers": [{ "name": "c" }], "volumes": volumes }))
}

fn schedule(scheduler: &mut Scheduler, name: &str, claims: &[&str]) -> Plan {
    scheduler.pod_changed(&user(name, claims), NOW);
    scheduler.schedule(1, NOW)
}

#[track_caller]
fn refused(plan: &Plan, reason: &str) {
    let message =
        plan.rejected.first().map(|rejected| rejected.message.split(" preemption:").next().unwrap());
    assert_eq!(message, Some(format!("0/2 nodes are available: {reason}.").as_str()));
}

#[test]
fn claims_that_cannot_be_used_are_told() {
    let mut scheduler = scheduler();
    refused(&schedule(&mut scheduler, "p1", &["c"]), "persistentvolumeclaim \"c\" not found");
    scheduler.claim_changed(&typed(claim("c", "now", None)), NOW);
    let plan = scheduler.schedule(1, NOW);
    refused(&plan, "pod has unbound immediate PersistentVolumeClaims");
    let helpless = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert!(plan.rejected[0].message.ends_with(helpless));
    let mut going = claim("gone", "now", Some("v"));
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    scheduler.claim_changed(&typed(going), NOW);
    refused(&schedule(&mut scheduler, "p2", &["gone"]), "persistentvolumeclaim \"gone\" is being deleted");
    let mut lost = claim("lost", "now", Some("v"));
    lost["status"] = json!({ "phase": "Lost" });
    scheduler.claim_changed(&typed(lost), NOW);
    refused(
        &schedule(&mut scheduler, "p3", &["lost"]),
        "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\"",
    );
    scheduler.claim_changed(&typed(claim("void", "now", Some("v"))), NOW);
    refused(
        &schedule(&mut scheduler, "p4", &["void"]),
        "2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
    );
    let ephemeral = json!({ "containers": [], "volumes": [{ "name": "tmp", "ephemeral": {} }] });
    scheduler.pod_changed(&pod("p5", ephemeral), NOW);
    refused(
        &scheduler.schedule(1, NOW),
        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p5-tmp\"",
    );
}

#[test]
fn bound_volumes_decide_on_the_node() {
    let mut scheduler = scheduler();
    scheduler.claim_changed(&typed(claim("c", "local", Some("v"))), NOW);
    scheduler.volume_changed(&typed(volume("v", "local", "5Gi", "n2")), NOW);
    assert_eq!(schedule(&mut scheduler, "p1", &["c"]).bindings[0].binding.node, "n2");
    scheduler.volume_changed(&typed(volume("v", "local", "5Gi", "n3")), NOW);
    refused(
        &schedule(&mut scheduler, "p2", &["c"]),
        "2 node(s) didn't match PersistentVolume's node affinity",
    );
    let mut zonal = volume("v", "local", "5Gi", "n1");
    zonal["metadata"]["labels"] = json!({ "topology.kubernetes.io/zone": "b__c" });
    scheduler.volume_changed(&typed(zonal), NOW);
    // A volume that changed wakes the pod that waits for it.
    let plan = scheduler.schedule(1, NOW);
    refused(
        &plan,
        "1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) had no available volume zone",
    );
}

#[test]
fn the_smallest_volume_is_promised_once() {
    let mut scheduler = scheduler();
    for name in ["c1", "c2", "c3"] {
        scheduler.claim_changed(&typed(claim(name, "local", None)), NOW);
    }
    for (name, size) in [("large", "50Gi"), ("small", "6Gi"), ("tiny", "1Gi")] {
        scheduler.volume_changed(&typed(volume(name, "local", size, "n1")), NOW);
    }
    let given = |plan: &Plan| plan.provisionings[0].promises.volumes.volumes[0].0.clone();
    let first = schedule(&mut scheduler, "p1", &["c1"]);
    assert!(first.bindings.is_empty());
    assert_eq!(
        (given(&first), first.provisionings[0].decision.binding.node.as_str()),
        ("small".to_owned(), "n1")
    );
    assert_eq!(given(&schedule(&mut scheduler, "p2", &["c2"])), "large");
    let none = "2 node(s) didn't find available persistent volumes to bind";
    refused(&schedule(&mut scheduler, "p3", &["c3"]), none);
    // What failed is free again.
    scheduler.bind_failed("p1", NOW);
    assert_eq!(given(&scheduler.schedule(1, NOW)), "small");
}

#[test]
fn a_volume_of_a_pod_that_somebody_else_binds_is_free_again() {
    let mut scheduler = scheduler();
    scheduler.volume_changed(&typed(volume("v", "local", "9Gi", "n1")), NOW);
    for name in ["c1", "c2"] {
        scheduler.claim_changed(&typed(claim(name, "local", None)), NOW);
    }
    assert_eq!(schedule(&mut scheduler, "p1", &["c1"]).provisionings.len(), 1);
    assert_eq!(schedule(&mut scheduler, "p2", &["c2"]).provisionings.len(), 0);
    let mut taken = user("p1", &["c1"]);
    taken.spec.as_mut().unwrap().node_name = Some("n2".to_owned());
    scheduler.pod_changed(&taken, NOW);
    let plan = scheduler.schedule(1, Duration::from_secs(20));
    assert_eq!(plan.provisionings[0].decision.binding.pod, "p2");
}

#[test]
fn new_volumes_are_made_where_the_class_allows() {
    let mut scheduler = scheduler();
    let only_b =
        json!([{ "matchLabelExpressions": [{ "key": "topology.kubernetes.io/zone", "values": ["b"] }] }]);
    let class = json!({
        "metadata": { "name": "zonal" }, "provisioner": "disks.example.com", "allowedTopologies": only_b,
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    scheduler.class_changed(&typed(class), NOW);
    scheduler.claim_changed(&typed(claim("c", "zonal", None)), NOW);
    let plan = schedule(&mut scheduler, "p1", &["c"]);
    assert_eq!(plan.provisionings[0].decision.binding.node, "n2");
    assert_eq!(plan.provisionings[0].promises.volumes.provisioned[0].name, "c");
    // A second pod of the claim goes where the volume will be.
    scheduler.claim_changed(&typed(claim("late", "late", None)), NOW);
    let node = schedule(&mut scheduler, "p2", &["late"]).provisionings[0].decision.binding.node.clone();
    for name in ["p3", "p4", "p5"] {
        assert_eq!(schedule(&mut scheduler, name, &["late"]).provisionings[0].decision.binding.node, node);
    }
}

#[test]
fn one_pod_alone_may_use_an_exclusive_claim() {
    let mut scheduler = scheduler();
    let mut exclusive = claim("c", "local", Some("v"));
    exclusive["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    scheduler.claim_changed(&typed(exclusive), NOW);
    scheduler.volume_changed(&typed(volume("v", "local", "5Gi", "n1")), NOW);
    assert_eq!(schedule(&mut scheduler, "p1", &["c"]).bindings.len(), 1);
    refused(
        &schedule(&mut scheduler, "p2", &["c"]),
        "2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
    );
    scheduler.pod_removed("p1", NOW);
    assert_eq!(scheduler.schedule(1, NOW).bindings[0].binding.pod, "p2");
}

#[test]
fn disks_are_shared_only_to_be_read() {
    let mut scheduler = scheduler();
    scheduler.node_removed("n2", NOW);
    let disk = |read_only: bool| json!({ "containers": [], "volumes": [{ "name": "d", "gcePersistentDisk": { "pdName": "d", "readOnly": read_only } }] });
    scheduler.pod_changed(&pod("p1", disk(true)), NOW);
    scheduler.pod_changed(&pod("p2", disk(true)), NOW);
    assert_eq!(scheduler.schedule(2, NOW).bindings.len(), 2);
    scheduler.pod_changed(&pod("p3", disk(false)), NOW);
    let message = &scheduler.schedule(1, NOW).rejected[0].message;
    assert!(message.starts_with("0/1 nodes are available: 1 node(s) had no available disk."), "{message}");
}

#[test]
fn nodes_take_as_many_volumes_as_their_driver_says() {
    let mut scheduler = scheduler();
    for name in ["n1", "n2"] {
        let drivers = json!([{ "name": "disks.example.com", "nodeID": name, "allocatable": { "count": 2 } }]);
        let node = json!({ "metadata": { "name": name }, "spec": { "drivers": drivers } });
        scheduler.csi_node_changed(&typed(node), NOW);
    }
    for index in 0..5 {
        scheduler.claim_changed(&typed(claim(&format!("c{index}"), "late", None)), NOW);
    }
    let mut nodes: Vec<String> = (0..4)
        .map(|index| {
            let plan = schedule(&mut scheduler, &format!("p{index}"), &[&format!("c{index}")]);
            plan.provisionings[0].decision.binding.node.clone()
        })
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n1", "n2", "n2"]);
    refused(&schedule(&mut scheduler, "p4", &["c4"]), "2 node(s) exceed max volume count");
    // A volume that is there already counts once.
    assert_eq!(schedule(&mut scheduler, "again", &["c0"]).rejected.len(), 0);
    scheduler.pod_removed("p1", NOW);
    assert_eq!(scheduler.schedule(1, NOW).provisionings[0].decision.binding.pod, "p4");
}

#[test]
fn a_volume_is_made_where_its_driver_has_room() {
    let mut scheduler = scheduler();
    let driver = json!({ "metadata": { "name": "disks.example.com" }, "spec": { "storageCapacity": true } });
    scheduler.driver_changed(&typed(driver), NOW);
    scheduler.claim_changed(&typed(claim("c", "late", None)), NOW);
    let capacity = |zone: &str, size: &str| {
        typed(json!({
            "metadata": { "name": zone, "namespace": "driver" }, "storageClassName": "late", "capacity": size,
            "nodeTopology": { "matchLabels": { "topology.kubernetes.io/zone": zone } },
        }))
    };
    scheduler.capacity_changed(&capacity("a", "1Gi"), NOW);
    let plan = schedule(&mut scheduler, "p", &["c"]);
    refused(&plan, "2 node(s) did not have enough free storage");
    // It is tried again when there is room.
    scheduler.capacity_changed(&capacity("b", "5Gi"), NOW);
    let plan = scheduler.schedule(1, Duration::from_secs(10));
    assert_eq!(plan.provisionings[0].decision.binding.node, "n2");
}

/// A scheduler with one node, which takes so many volumes of the driver.
fn limited(driver: &str, count: i32) -> Scheduler {
    let mut scheduler = scheduler();
    scheduler.node_removed("n2", NOW);
    let drivers = json!([{ "name": driver, "nodeID": "n1", "allocatable": { "count": count } }]);
    let node = json!({ "metadata": { "name": "n1" }, "spec": { "drivers": drivers } });
    scheduler.csi_node_changed(&typed(node), NOW);
    scheduler
}

/// A volume that is bound to a claim of the same name.
fn put_bound(scheduler: &mut Scheduler, name: &str, source: &str, fields: Value) {
    scheduler.claim_changed(&typed(claim(name, "", Some(name))), NOW);
    scheduler
        .volume_changed(&typed(json!({ "metadata": { "name": name }, "spec": { source: fields } })), NOW);
}

#[track_caller]
fn too_many(plan: &Plan) {
    let message = &plan.rejected[0].message;
    assert!(message.starts_with("0/1 nodes are available: 1 node(s) exceed max volume count."), "{message}");
}

#[test]
fn volumes_of_in_tree_plugins_count_as_those_of_their_drivers() {
    let mut scheduler = limited("ebs.csi.aws.com", 2);
    put_bound(&mut scheduler, "old", "awsElasticBlockStore", json!({ "volumeID": "aws://us-east-1a/vol-1" }));
    put_bound(&mut scheduler, "csi", "csi", json!({ "driver": "ebs.csi.aws.com", "volumeHandle": "vol-2" }));
    assert_eq!(schedule(&mut scheduler, "p1", &["old", "csi"]).bindings.len(), 1);
    // The same volume by another name, and one more, in the pod itself.
    let inline = |id: &str| json!({ "containers": [], "volumes": [{ "name": "v", "awsElasticBlockStore": { "volumeID": id } }] });
    put_bound(&mut scheduler, "same", "csi", json!({ "driver": "ebs.csi.aws.com", "volumeHandle": "vol-1" }));
    assert_eq!(schedule(&mut scheduler, "p2", &["same"]).bindings.len(), 1);
    scheduler.pod_changed(&pod("p3", inline("vol-3")), NOW);
    too_many(&scheduler.schedule(1, NOW));
    // A class of the plugin's makes volumes for the driver.
    let class = json!({ "metadata": { "name": "ebs" }, "provisioner": "kubernetes.io/aws-ebs", "volumeBindingMode": "WaitForFirstConsumer" });
    scheduler.class_changed(&typed(class), NOW);
    scheduler.claim_changed(&typed(claim("new", "ebs", None)), NOW);
    too_many(&schedule(&mut scheduler, "p4", &["new"]));
    // Others have other limits, or none.
    put_bound(&mut scheduler, "other", "cinder", json!({ "volumeID": "c" }));
    assert_eq!(schedule(&mut scheduler, "p5", &["other"]).bindings.len(), 1);
    scheduler.pod_removed("p1", NOW);
    scheduler.pod_removed("p2", NOW);
    assert_eq!(scheduler.schedule(2, Duration::from_secs(10)).rejected.len(), 0);
}

#[test]
fn volumes_that_are_still_attached_count() {
    let mut scheduler = limited("d", 1);
    for name in ["left", "new"] {
        put_bound(&mut scheduler, name, "csi", json!({ "driver": "d", "volumeHandle": name }));
    }
    let attachment = |node: &str| {
        let source = json!({ "persistentVolumeName": "left" });
        typed(
            json!({ "metadata": { "name": "a" }, "spec": { "attacher": "d", "nodeName": node, "source": source } }),
        )
    };
    scheduler.attachment_changed(&attachment("n2"), NOW);
    // Another got the name of the one before.
    scheduler.attachment_changed(&attachment("n1"), NOW);
    too_many(&schedule(&mut scheduler, "p1", &["new"]));
    // What is attached is no more with the pod that uses it.
    assert_eq!(schedule(&mut scheduler, "p2", &["left"]).bindings.len(), 1);
    scheduler.pod_removed("p2", NOW);
    too_many(&scheduler.schedule(1, Duration::from_secs(10)));
    scheduler.attachment_removed("a", Duration::from_secs(20));
    assert_eq!(scheduler.schedule(1, Duration::from_secs(20)).bindings[0].binding.pod, "p1");
    // One whose name another takes is gone, too.
    scheduler.pod_removed("p1", Duration::from_secs(30));
    scheduler.attachment_changed(&attachment("n1"), Duration::from_secs(30));
    scheduler.pod_changed(&user("p3", &["new"]), Duration::from_secs(30));
    too_many(&scheduler.schedule(1, Duration::from_secs(30)));
    scheduler.attachment_changed(&attachment("n2"), Duration::from_secs(60));
    assert_eq!(scheduler.schedule(1, Duration::from_secs(60)).bindings[0].binding.pod, "p3");
}

#[test]
fn what_a_node_has_attached_follows_its_pods_and_volumes() {
    let mut scheduler = limited("d", 1);
    for name in ["one", "other"] {
        put_bound(&mut scheduler, name, "csi", json!({ "driver": "d", "volumeHandle": name }));
    }
    assert_eq!(schedule(&mut scheduler, "p1", &["one"]).bindings.len(), 1);
    too_many(&schedule(&mut scheduler, "p2", &["other"]));
    // It is another name of the one that is there.
    let fields = json!({ "driver": "d", "volumeHandle": "one" });
    let same = json!({ "metadata": { "name": "other" }, "spec": { "csi": fields } });
    scheduler.volume_changed(&typed(same), Duration::from_secs(20));
    assert_eq!(scheduler.schedule(1, Duration::from_secs(20)).bindings[0].binding.pod, "p2");
    put_bound(&mut scheduler, "third", "csi", json!({ "driver": "d", "volumeHandle": "third" }));
    scheduler.pod_changed(&user("p3", &["third"]), Duration::from_secs(30));
    too_many(&scheduler.schedule(1, Duration::from_secs(30)));
    scheduler.pod_removed("p1", Duration::from_secs(40));
    scheduler.pod_removed("p2", Duration::from_secs(40));
    assert_eq!(scheduler.schedule(1, Duration::from_secs(60)).bindings[0].binding.pod, "p3");
}

/// KEP-625: the labels are those of whoever attaches the volume on the node.
#[test]
fn bound_volumes_of_in_tree_plugins_are_where_their_drivers_say() {
    let mut scheduler = Scheduler::new(&Config::default(), 7);
    for (name, zone) in [("n1", "a"), ("n2", "b")] {
        let labels = json!({ "topology.gke.io/zone": zone });
        scheduler.node_changed(&node(name, json!({ "metadata": { "labels": labels } })), NOW);
    }
    let within =
        json!({ "key": "failure-domain.beta.kubernetes.io/zone", "operator": "In", "values": ["b"] });
    scheduler.claim_changed(&typed(claim("c", "", Some("v"))), NOW);
    let affinity = json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [within] }] } });
    let spec = json!({ "gcePersistentDisk": { "pdName": "d" }, "nodeAffinity": affinity });
    scheduler.volume_changed(&typed(json!({ "metadata": { "name": "v" }, "spec": spec })), NOW);
    refused(
        &schedule(&mut scheduler, "p", &["c"]),
        "2 node(s) didn't match PersistentVolume's node affinity",
    );
    let migrated = |name: &str, plugins: &str| {
        let annotations = json!({ "storage.alpha.kubernetes.io/migrated-plugins": plugins });
        typed(json!({ "metadata": { "name": name, "annotations": annotations }, "spec": { "drivers": [] } }))
    };
    let later = Duration::from_secs(20);
    scheduler.csi_node_changed(&migrated("n2", "kubernetes.io/aws-ebs"), later);
    assert_eq!(scheduler.schedule(1, later).bindings.len(), 0);
    let later = Duration::from_secs(40);
    scheduler.csi_node_changed(&migrated("n1", "kubernetes.io/aws-ebs,kubernetes.io/gce-pd"), later);
    scheduler.csi_node_changed(&migrated("n2", "kubernetes.io/aws-ebs,kubernetes.io/gce-pd"), later);
    assert_eq!(scheduler.schedule(1, later).bindings[0].binding.node, "n2");
}
