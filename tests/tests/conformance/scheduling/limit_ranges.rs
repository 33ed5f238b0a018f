//! LimitRanges, and what they do to pods.

use k8s_openapi::api::core::v1::{LimitRange, Pod};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::IMAGE,
    steps::{
        as_json, counted, create, delete, delete_all, gone, list, patch, try_create, update, watch_labels,
    },
    support::{object, refused, test, unique},
};

texts! {
    "LimitRange, list, patch and delete a LimitRange by collection" => should_list_patch_and_delete_a_limitrange_by_collection,
    "LimitRange, resources" => should_create_a_limitrange_with_defaults_and_ensure_pod_has_those_defaults_applied,
}

fn amounts(cpu: &str, memory: &str, storage: &str) -> Value {
    json!({ "cpu": cpu, "memory": memory, "ephemeral-storage": storage })
}

/// The limits of containers, with a smallest and a largest amount and defaults between.
fn limits() -> Value {
    json!({
        "type": "Container",
        "min": amounts("50m", "100Mi", "100Gi"),
        "max": amounts("500m", "500Mi", "500Gi"),
        "default": amounts("500m", "500Mi", "500Gi"),
        "defaultRequest": amounts("100m", "200Mi", "200Gi"),
    })
}

fn pod(resources: Value) -> Value {
    let container = json!({ "name": "app", "image": IMAGE, "resources": resources });
    json!({ "metadata": { "name": unique("pod") }, "spec": { "containers": [container] } })
}

/// Resources of the only container.
fn resources(pod: &Pod) -> Value {
    let resources = pod.spec.as_ref().and_then(|spec| spec.containers[0].resources.clone());
    as_json(&resources)
}

/// LimitRange, resources
#[test]
fn should_create_a_limitrange_with_defaults_and_ensure_pod_has_those_defaults_applied() {
    test(async |bed| {
        let (name, ranges, pods) = (unique("limits"), bed.api::<LimitRange>(), bed.api::<Pod>());
        let selector = format!("app={name}");
        let mut events = watch_labels(&ranges, &selector).await;
        let metadata = json!({ "name": name, "labels": { "app": name } });
        create(&ranges, json!({ "metadata": metadata, "spec": { "limits": [limits()] } })).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;
        let read = ranges.get(&name).await.expect("the limits are read");
        let read = as_json(&read.spec.expect("a specification").limits);
        assert_eq!(read, json!([limits()]));

        let bare = create(&pods, pod(json!({}))).await;
        let expected = json!({
            "requests": amounts("100m", "200Mi", "200Gi"), "limits": amounts("500m", "500Mi", "500Gi"),
        });
        assert_eq!(resources(&bare), expected);
        // A limit without a request is the request too; so the default request counts where neither is given.
        let partial = json!({
            "requests": { "memory": "150Mi", "ephemeral-storage": "150Gi" }, "limits": { "cpu": "300m" },
        });
        let partial = create(&pods, pod(partial)).await;
        let expected = json!({
            "requests": amounts("300m", "150Mi", "150Gi"), "limits": amounts("300m", "500Mi", "500Gi"),
        });
        assert_eq!(resources(&partial), expected);

        let below = pod(json!({ "requests": amounts("10m", "50Mi", "50Gi") }));
        let above = pod(json!({ "limits": amounts("600m", "600Mi", "600Gi") }));
        refused(try_create(&pods, below.clone()).await, 403, "Forbidden");
        refused(try_create(&pods, above.clone()).await, 403, "Forbidden");

        // The next pod finds the new limits.
        let smaller = update(&ranges, &name, |range| {
            let limits = &mut range.spec.get_or_insert_default().limits[0];
            limits.min = Some(object(amounts("9m", "49Mi", "49Gi")));
        })
        .await;
        assert_eq!(smaller.metadata.uid, ranges.get(&name).await.expect("the limits are read").metadata.uid);
        create(&pods, below).await;
        refused(try_create(&pods, above.clone()).await, 403, "Forbidden");

        delete(&ranges, &name).await;
        gone(&ranges, &name).await;
        create(&pods, above).await;
    });
}

/// LimitRange, list, patch and delete a LimitRange by collection
#[test]
fn should_list_patch_and_delete_a_limitrange_by_collection() {
    test(async |bed| {
        let (name, here, everywhere) = (unique("limits"), bed.api::<LimitRange>(), bed.all::<LimitRange>());
        let elsewhere = bed.another_namespace().await;
        let elsewhere: Api<LimitRange> = Api::namespaced(bed.client.clone(), &elsewhere);
        let selector = format!("app={name}");
        let metadata = json!({ "name": name, "labels": { "app": name } });
        for ranges in [&here, &elsewhere] {
            create(ranges, json!({ "metadata": metadata, "spec": { "limits": [limits()] } })).await;
        }
        assert_eq!(list(&everywhere, &selector).await.len(), 2);

        let mut smaller = limits();
        smaller["min"] = amounts("40m", "100Mi", "100Gi");
        let change =
            json!({ "metadata": { "labels": { "patched": "yes" } }, "spec": { "limits": [smaller] } });
        let patched = patch(&here, &name, change).await;
        assert_eq!(patched.labels()["patched"], "yes");
        let limits = as_json(&patched.spec.expect("a specification").limits);
        assert_eq!(limits, json!([smaller]));

        delete_all(&here, &format!("{selector},patched=yes")).await;
        let left = counted(&everywhere, &selector, 1).await;
        assert_eq!(left[0].namespace(), elsewhere.get(&name).await.expect("the other stays").namespace());
        assert_eq!(list(&here, &selector).await.len(), 0);
    });
}
