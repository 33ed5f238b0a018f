//! StatefulSets: order, names, and updates in parts.

use anyhow::ensure;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet},
    core::v1::{Pod as CorePod, Service},
};
use kube::{Api, ResourceExt, api::Patch};
use serde_json::{Value, json};

use super::{Pod, image, server, test, web};
use crate::{
    coverage::texts,
    steps::{as_json, create, list, patch, watch_labels},
    support::{Bed, eventually, unique},
};

texts! {
    "StatefulSet, Rolling Update" => should_perform_rolling_updates_and_roll_backs_of_template_modifications,
    "StatefulSet, Rolling Update with Partition" =>
        should_perform_canary_updates_and_phased_rolling_updates_of_template_modifications,
    "StatefulSet, Scaling" => scaling_should_happen_in_predictable_order_and_halt_if_any_stateful_pod_is_unhealthy,
    "StatefulSet, Burst Scaling" => burst_scaling_should_run_to_completion_even_with_unhealthy_pods,
    "StatefulSet, Recreate Failed Pod" => should_recreate_evicted_statefulset,
}

/// A StatefulSet on the cluster, with a headless Service.
struct Set<'a> {
    bed: &'a Bed,
    name: String,
    sets: Api<StatefulSet>,
    pods: Api<CorePod>,
}

impl<'a> Set<'a> {
    async fn start(bed: &'a Bed, replicas: usize, fields: Value) -> Self {
        let name = unique("ss");
        let labels = json!({ "set": name });
        let service = json!({
            "metadata": { "name": name },
            "spec": { "clusterIP": "None", "selector": labels, "ports": [{ "port": 8080 }] },
        });
        create(&bed.api::<Service>(), service).await;
        let mut spec = fields;
        let mut template = json!({ "metadata": { "labels": labels }, "spec": server()["spec"] });
        template["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 10 });
        spec["serviceName"] = json!(name);
        spec["replicas"] = json!(replicas);
        spec["selector"] = json!({ "matchLabels": labels });
        spec["template"] = template;
        let sets = bed.api::<StatefulSet>();
        create(&sets, json!({ "metadata": { "name": name }, "spec": spec })).await;
        Self { bed, name, sets, pods: bed.api() }
    }

    fn selector(&self) -> String {
        format!("set={}", self.name)
    }

    fn pod(&self, ordinal: usize) -> Pod {
        Pod::at(self.bed, &format!("{}-{ordinal}", self.name))
    }

    async fn status(&self) -> Value {
        as_json(&self.sets.get(&self.name).await.expect("the set is read"))["status"].clone()
    }

    /// Waits until there are so many pods, all ready, and returns them by their ordinals.
    async fn ready(&self, replicas: usize) -> Vec<CorePod> {
        self.ready_with(replicas, |_, _| true).await
    }

    async fn ready_with(&self, replicas: usize, as_wanted: impl Fn(usize, &CorePod) -> bool) -> Vec<CorePod> {
        eventually(&format!("{replicas} pods are ready"), async || {
            let mut pods = list(&self.pods, &self.selector()).await;
            pods.sort_by_key(ResourceExt::name_any);
            ensure!(pods.len() == replicas, "{} pods", pods.len());
            for (ordinal, pod) in pods.iter().enumerate() {
                ensure!(pod.name_any() == format!("{}-{ordinal}", self.name), "{}", pod.name_any());
                ensure!(is_ready(pod) && as_wanted(ordinal, pod), "{ordinal}: {:?}", pod.status);
            }
            let status = self.status().await;
            ensure!(status["readyReplicas"].as_u64().unwrap_or(0) as usize == replicas, "{status}");
            Ok(pods)
        })
        .await
    }

    async fn scale(&self, replicas: usize) {
        patch(&self.sets, &self.name, json!({ "spec": { "replicas": replicas } })).await;
    }

    async fn set_image(&self, image: &str) {
        let container = json!([{ "name": "main", "image": image }]);
        let change =
            Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": container } } } }));
        self.sets.patch(&self.name, &Default::default(), &change).await.expect("the set is patched");
    }

    /// Makes a pod unready, or ready again.
    async fn set_ready(&self, ordinal: usize, ready: bool) {
        let pod = self.pod(ordinal);
        pod.run(if ready { "rm /tmp/unready" } else { "touch /tmp/unready" }).await;
        eventually("the probe has seen it", async || {
            let seen = self.pods.get(&pod.name).await?;
            ensure!(is_ready(&seen) == ready, "{:?}", seen.status);
            Ok(())
        })
        .await;
    }

    /// Waits until the controller has seen the set as it is.
    async fn observed(&self) {
        eventually("the controller has seen the set", async || {
            let set = as_json(&self.sets.get(&self.name).await?);
            ensure!(
                set["status"]["observedGeneration"] == set["metadata"]["generation"],
                "{}",
                set["status"]
            );
            Ok(())
        })
        .await;
    }
}

fn is_ready(pod: &CorePod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = |condition: &k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == "Ready" && condition.status == "True"
    };
    pod.metadata.deletion_timestamp.is_none() && conditions.into_iter().flatten().any(ready)
}

fn image_of(pod: &CorePod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.as_deref()).unwrap_or_default()
}

fn revision(pod: &CorePod) -> Value {
    json!(pod.labels()["controller-revision-hash"])
}

/// StatefulSet, Scaling
#[test]
fn scaling_should_happen_in_predictable_order_and_halt_if_any_stateful_pod_is_unhealthy() {
    test(async |bed| {
        let set = Set::start(bed, 1, json!({})).await;
        set.ready(1).await;
        let mut events = watch_labels(&set.pods, &set.selector()).await;
        set.set_ready(0, false).await;
        set.scale(3).await;
        set.observed().await;
        let names = list(&set.pods, &set.selector()).await.len();
        assert_eq!(names, 1, "it waits for the first pod");
        set.set_ready(0, true).await;
        set.ready(3).await;
        // Each began when the one before was ready.
        let mut ready = std::collections::BTreeSet::from([0]);
        while ready.len() < 3 {
            let (kind, pod) = events.next().await;
            let ordinal: usize =
                pod.name_any().rsplit('-').next().and_then(|text| text.parse().ok()).expect("an ordinal");
            if kind == "ADDED" && ordinal > 0 {
                assert!(ready.contains(&(ordinal - 1)), "{ordinal} begins with {ready:?} ready");
            }
            if is_ready(&pod) {
                ready.insert(ordinal);
            }
        }

        set.set_ready(0, false).await;
        set.scale(0).await;
        set.observed().await;
        assert_eq!(list(&set.pods, &set.selector()).await.len(), 3, "it waits for the first pod");
        set.set_ready(0, true).await;
        // In the reverse order.
        for ordinal in [2, 1, 0] {
            let deleted = events.until("DELETED", |_| true).await.name_any();
            assert_eq!(deleted, format!("{}-{ordinal}", set.name));
        }
    });
}

/// StatefulSet, Burst Scaling
#[test]
fn burst_scaling_should_run_to_completion_even_with_unhealthy_pods() {
    test(async |bed| {
        let set = Set::start(bed, 1, json!({ "podManagementPolicy": "Parallel" })).await;
        set.ready(1).await;
        set.set_ready(0, false).await;
        set.scale(3).await;
        eventually("all pods are there", async || {
            let status = set.status().await;
            ensure!(status["replicas"] == 3 && status["readyReplicas"] == 2, "{status}");
            Ok(())
        })
        .await;
        set.set_ready(0, true).await;
        set.ready(3).await;
        set.set_ready(0, false).await;
        set.scale(0).await;
        crate::steps::counted(&set.pods, &set.selector(), 0).await;
    });
}

/// StatefulSet, Recreate Failed Pod
#[test]
fn should_recreate_evicted_statefulset() {
    test(async |bed| {
        // Whoever comes second to a port of the node is rejected there.
        const PORT: u16 = 21017;
        let mut first = server();
        first["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8080, "hostPort": PORT }]);
        let first = Pod::start(bed, first).await;
        let node = first.get().await.expect("the pod is read")["spec"]["nodeName"].clone();
        let set = Set::start(bed, 0, json!({})).await;
        let change = json!({ "spec": { "template": { "spec": {
            "nodeName": node,
            "containers": [{ "name": "main", "ports": [{ "containerPort": 8080, "hostPort": PORT }] }],
        } } } });
        set.sets
            .patch(&set.name, &Default::default(), &Patch::Strategic(change))
            .await
            .expect("the set is patched");
        let mut events = watch_labels(&set.pods, &set.selector()).await;
        set.scale(1).await;
        let phase = |pod: &CorePod| pod.status.as_ref().and_then(|status| status.phase.clone());
        let failed = events.until("MODIFIED", |pod| phase(pod).as_deref() == Some("Failed")).await;
        events.until("DELETED", |pod| pod.uid() == failed.uid()).await;
        first.delete().await;
        first.gone().await;
        let again = set.ready(1).await;
        assert_ne!(again[0].uid(), failed.uid());
    });
}

/// StatefulSet, Rolling Update
#[test]
fn should_perform_rolling_updates_and_roll_backs_of_template_modifications() {
    test(async |bed| {
        let set = Set::start(bed, 3, json!({})).await;
        set.ready(3).await;
        let before = set.status().await;
        assert_eq!(before["currentRevision"], before["updateRevision"]);
        let next = image("demo/web:2");
        let mut events = watch_labels(&set.pods, &set.selector()).await;
        set.set_image(&next).await;
        set.ready_with(3, |_, pod| image_of(pod) == next).await;
        // From the last to the first, each when the one after it was ready.
        for ordinal in [2, 1, 0] {
            let deleted = events.until("DELETED", |_| true).await.name_any();
            assert_eq!(deleted, format!("{}-{ordinal}", set.name));
        }
        let settled = async |before: &Value| {
            eventually("the update is over", async || {
                let status = set.status().await;
                ensure!(status["currentRevision"] == status["updateRevision"], "{status}");
                ensure!(status["currentRevision"] != before["currentRevision"], "{status}");
                Ok(status)
            })
            .await
        };
        let after = settled(&before).await;
        set.set_image(&web()).await;
        set.ready_with(3, |_, pod| image_of(pod) == web()).await;
        let back = settled(&after).await;
        // What was there before is not made again.
        assert_eq!(back["currentRevision"], before["currentRevision"]);
        assert_eq!(list(&bed.api::<ControllerRevision>(), &set.selector()).await.len(), 2);
    });
}

/// StatefulSet, Rolling Update with Partition
#[test]
fn should_perform_canary_updates_and_phased_rolling_updates_of_template_modifications() {
    test(async |bed| {
        let partition =
            |number: usize| json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": number } });
        let set = Set::start(bed, 3, json!({ "updateStrategy": partition(3) })).await;
        let old = revision(&set.ready(3).await[0]);
        let next = image("demo/web:2");
        set.set_image(&next).await;
        set.observed().await;
        let updated = async |from: usize| {
            set.ready_with(3, |ordinal, pod| (image_of(pod) == next) == (ordinal >= from)).await
        };
        // Nobody is behind the partition.
        let pods = updated(3).await;
        assert!(pods.iter().all(|pod| revision(pod) == old));
        // A canary.
        patch(&set.sets, &set.name, json!({ "spec": { "updateStrategy": partition(2) } })).await;
        let pods = updated(2).await;
        assert_eq!(revision(&pods[2]), set.status().await["updateRevision"]);
        assert!(pods[..2].iter().all(|pod| revision(pod) == old));
        // Who is deleted comes back as what he was.
        for ordinal in [0, 2] {
            let uid = set.pods.get(&set.pod(ordinal).name).await.expect("the pod is read").uid();
            set.pod(ordinal).delete().await;
            set.ready_with(3, |which, pod| {
                (image_of(pod) == next) == (which >= 2) && (which != ordinal || pod.uid() != uid)
            })
            .await;
        }
        // In phases.
        for from in [1, 0] {
            patch(&set.sets, &set.name, json!({ "spec": { "updateStrategy": partition(from) } })).await;
            updated(from).await;
        }
        eventually("the update is over", async || {
            let status = set.status().await;
            ensure!(status["currentRevision"] == status["updateRevision"], "{status}");
            ensure!(status["currentRevision"] != old, "{status}");
            Ok(())
        })
        .await;
    });
}
