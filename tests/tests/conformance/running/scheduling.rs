//! Pods that make room for others: by extended resources of a test's own, so that nobody else is in the way.

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{Node, Pod as CorePod},
    scheduling::v1::PriorityClass,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Pod, sleeper, test};
use crate::{
    coverage::texts,
    steps::{as_json, create, list},
    support::{Bed, eventually, object, unique},
};

texts! {
    "Scheduler, Basic Preemption" => validates_basic_preemption_works,
    "Scheduler, Preemption for critical pod" => validates_lower_priority_pod_preemption_by_critical_pod,
    "Verify the DisruptionTarget condition is added to the preempted pod" =>
        validates_pod_disruption_condition_is_added_to_the_preempted_pod,
    "Pod preemption verification" => runs_replicasets_to_verify_preemption_running_path,
}

/// A resource that every node has some of, until the value is dropped; and priority classes.
struct Room<'a> {
    bed: &'a Bed,
    resource: String,
    nodes: Vec<String>,
}

impl<'a> Room<'a> {
    /// So much of it on each of `nodes` nodes.
    async fn new(bed: &'a Bed, nodes: usize, amount: u8) -> Self {
        let all = list(&bed.all::<Node>(), "").await;
        let nodes = all.iter().take(nodes).map(ResourceExt::name_any).collect();
        let room = Self { bed, resource: format!("conformance.test/{}", unique("room")), nodes };
        room.set(json!(amount.to_string())).await;
        // Nodes' own writers leave it alone.
        eventually("the nodes have it to give", async || {
            for name in &room.nodes {
                let node = as_json(&bed.all::<Node>().get(name).await?);
                let found = &node["status"]["allocatable"][&room.resource];
                ensure!(found.as_str() == Some(&*amount.to_string()), "{name} has {found}");
            }
            Ok(())
        })
        .await;
        room
    }

    async fn set(&self, amount: Value) {
        let amount = json!({ &self.resource: amount });
        let change = Patch::Merge(json!({ "status": { "capacity": amount, "allocatable": amount } }));
        for name in &self.nodes {
            let nodes = self.bed.all::<Node>();
            nodes.patch_status(name, &PatchParams::default(), &change).await.expect("the node is patched");
        }
    }

    async fn end(self) {
        self.set(Value::Null).await;
    }

    /// A pod that takes so much of it.
    fn pod(&self, class: &str, amount: u8) -> Value {
        let mut pod = sleeper();
        let amount = json!({ &self.resource: amount.to_string() });
        pod["spec"]["containers"][0]["resources"] = json!({ "requests": amount, "limits": amount });
        pod["spec"]["priorityClassName"] = json!(class);
        pod
    }
}

/// A priority class, which goes with the test.
async fn class(bed: &Bed, value: i32) -> String {
    let class = json!({ "metadata": { "name": unique("class") }, "value": value });
    create(&bed.all::<PriorityClass>(), class).await.name_any()
}

async fn delete_classes(bed: &Bed, names: &[&String]) {
    for name in names {
        let deleted = bed.all::<PriorityClass>().delete(name, &DeleteParams::default()).await;
        deleted.expect("the class is deleted");
    }
}

/// One pod of low priority and others of middle on the nodes, all of which are full then.
async fn fill(bed: &Bed, room: &Room<'_>, low: &str, middle: &str) -> (Pod, Vec<Pod>) {
    let victim = Pod::start(bed, room.pod(low, 2)).await;
    let mut others = Vec::new();
    for _ in 1..room.nodes.len() {
        others.push(Pod::start(bed, room.pod(middle, 2)).await);
    }
    (victim, others)
}

async fn node_of(pod: &Pod) -> Value {
    pod.get().await.expect("the pod is read")["spec"]["nodeName"].clone()
}

/// The pod's uid is not this one's any more, or is to be deleted.
async fn preempted(pod: &Pod) {
    eventually("it makes room", async || {
        let seen = pod.api.get_opt(&pod.name).await?;
        ensure!(seen.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()));
        Ok(())
    })
    .await;
}

async fn are_left_alone(pods: &[Pod]) {
    for pod in pods {
        let seen = pod.get().await.expect("the pod is read");
        assert!(seen["metadata"]["deletionTimestamp"].is_null(), "{seen}");
    }
}

/// Scheduler, Basic Preemption
#[test]
fn validates_basic_preemption_works() {
    test(async |bed| {
        let room = Room::new(bed, 3, 2).await;
        let (low, middle, high) = (class(bed, 1).await, class(bed, 100).await, class(bed, 1000).await);
        let (victim, others) = fill(bed, &room, &low, &middle).await;
        let node = node_of(&victim).await;
        let preemptor = Pod::start(bed, room.pod(&high, 2)).await;
        preempted(&victim).await;
        assert_eq!(node_of(&preemptor).await, node);
        are_left_alone(&others).await;
        room.end().await;
        delete_classes(bed, &[&low, &middle, &high]).await;
    });
}

/// Scheduler, Preemption for critical pod
#[test]
fn validates_lower_priority_pod_preemption_by_critical_pod() {
    test(async |bed| {
        let room = Room::new(bed, 3, 2).await;
        let (low, middle) = (class(bed, 1).await, class(bed, 100).await);
        let (victim, others) = fill(bed, &room, &low, &middle).await;
        // Only system namespaces have such pods where a quota says so; it is deleted here, since the namespace stays.
        let system: Api<CorePod> = Api::namespaced(bed.client.clone(), "kube-system");
        let name = create(&system, room.pod("system-cluster-critical", 2)).await.name_any();
        let critical = Pod { name, api: system, client: bed.client.clone() };
        critical.ready().await;
        preempted(&victim).await;
        are_left_alone(&others).await;
        critical.delete().await;
        room.end().await;
        delete_classes(bed, &[&low, &middle]).await;
    });
}

/// Verify the DisruptionTarget condition is added to the preempted pod
#[test]
fn validates_pod_disruption_condition_is_added_to_the_preempted_pod() {
    test(async |bed| {
        let room = Room::new(bed, 1, 1).await;
        let (low, high) = (class(bed, 1).await, class(bed, 1000).await);
        let mut victim = room.pod(&low, 1);
        victim["metadata"]["finalizers"] = json!(["example.com/test-finalizer"]);
        let victim = Pod::start(bed, victim).await;
        let preemptor = Pod::create(bed, room.pod(&high, 1)).await;
        let seen = victim.until("is to end", |pod| pod["metadata"]["deletionTimestamp"].is_string()).await;
        let conditions = seen["status"]["conditions"].as_array().expect("conditions");
        let target = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget");
        let target = target.unwrap_or_else(|| panic!("{conditions:?}"));
        assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
        victim.patch(json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["example.com/test-finalizer"] } })).await;
        victim.gone().await;
        preemptor.ready().await;
        room.end().await;
        delete_classes(bed, &[&low, &high]).await;
    });
}

/// Pod preemption verification
#[test]
fn runs_replicasets_to_verify_preemption_running_path() {
    test(async |bed| {
        // Room for five pods of the first three levels; the fourth takes all but one place.
        let room = Room::new(bed, 1, 5).await;
        let mut classes = Vec::new();
        for level in 1..=4 {
            classes.push(class(bed, level * 10).await);
        }
        let sets = bed.api::<ReplicaSet>();
        let start = async |level: usize, replicas: u8, amount: u8| {
            let name = format!("level-{level}");
            let mut template = room.pod(&classes[level - 1], amount);
            template["metadata"] = json!({ "labels": { "app": name } });
            template["spec"]["restartPolicy"] = json!("Always");
            let set = json!({
                "metadata": { "name": name },
                "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template },
            });
            sets.create(&Default::default(), &object(set)).await.expect("the set is created");
        };
        let ready = async |level: usize, expected: i64| {
            eventually(&format!("level {level} has {expected} pods that are ready"), async || {
                let set = as_json(&sets.get(&format!("level-{level}")).await?);
                ensure!(
                    set["status"]["readyReplicas"].as_i64().unwrap_or(0) == expected,
                    "{}",
                    set["status"]
                );
                Ok(())
            })
            .await;
        };
        for (level, replicas) in [(1, 1), (2, 1), (3, 3)] {
            start(level, replicas, 1).await;
            ready(level, i64::from(replicas)).await;
        }
        // Who has the least priority goes first, and no more than needed.
        start(4, 1, 2).await;
        ready(4, 1).await;
        ready(1, 0).await;
        ready(2, 0).await;
        ready(3, 3).await;
        room.end().await;
        delete_classes(bed, &classes.iter().collect::<Vec<_>>()).await;
    });
}
