//! CSI drivers, what they can still store, and pods with volumes that a driver provides with the pod.

use k8s_openapi::api::{core::v1::Pod, storage::v1::CSIDriver};
use kube::{ResourceExt, discovery::Scope};
use serde_json::json;

use crate::{
    coverage::texts,
    kubelet::IMAGE,
    operations::Operations,
    steps::{counted, create, delete, delete_all, gone, list, patch, try_create, update},
    support::{refused, test, unique},
};

texts! {
    "CSIDriver, lifecycle" => should_run_through_the_lifecycle_of_a_csidriver,
    "CSIInlineVolumes should support Pods with inline volumes" => should_support_csivolumesource_in_pod_api,
    "CSIStorageCapacity API" => should_support_csistoragecapacities_api_operations,
}

/// CSIDriver, lifecycle
#[test]
fn should_run_through_the_lifecycle_of_a_csidriver() {
    test(async |bed| {
        let (label, drivers) = (unique("drivers"), bed.all::<CSIDriver>());
        let selector = format!("drivers={label}");
        let [first, second] = [unique("inline-driver"), unique("inline-driver")];
        let driver = |name: &str, modes: &[&str]| {
            json!({
                "metadata": { "name": name, "labels": { "drivers": label } },
                "spec": { "volumeLifecycleModes": modes, "fsGroupPolicy": "ReadWriteOnceWithFSType" },
            })
        };
        let made = create(&drivers, driver(&first, &["Ephemeral"])).await;
        create(&drivers, driver(&second, &["Persistent", "Ephemeral"])).await;
        refused(try_create(&drivers, driver(&first, &["Ephemeral"])).await, 409, "AlreadyExists");
        assert_eq!(drivers.get(&first).await.expect("the driver is read").uid(), made.uid());

        let patched =
            patch(&drivers, &second, json!({ "metadata": { "labels": { &second: "patched" } } })).await;
        assert_eq!(patched.labels()[&second], "patched");
        let updated = update(&drivers, &second, |driver| {
            driver.labels_mut().insert(second.clone(), "updated".into());
        })
        .await;
        assert_eq!(updated.labels()[&second], "updated");
        assert_eq!(list(&drivers, &selector).await.len(), 2);

        delete(&drivers, &first).await;
        gone(&drivers, &first).await;
        delete_all(&drivers, &format!("{second}=updated")).await;
        counted(&drivers, &selector, 0).await;
    });
}

/// CSIInlineVolumes should support Pods with inline volumes
#[test]
fn should_support_csivolumesource_in_pod_api() {
    test(async |bed| {
        let (name, pods) = (unique("inline"), bed.api::<Pod>());
        let driver = "e2e.example.com";
        let volumes = json!([
            { "name": "first", "csi": { "driver": driver } },
            { "name": "second", "csi": { "driver": driver, "fsType": "ext4", "readOnly": true } },
        ]);
        let mounts =
            ["first", "second"].map(|name| json!({ "name": name, "mountPath": format!("/mnt/{name}") }));
        let container = json!({ "name": "app", "image": IMAGE, "volumeMounts": mounts });
        let spec = json!({ "volumes": volumes, "containers": [container] });
        let pod = json!({ "metadata": { "name": name }, "spec": spec });

        let made = create(&pods, pod.clone()).await;
        refused(try_create(&pods, pod).await, 409, "AlreadyExists");
        let read = pods.get(&name).await.expect("the pod is read");
        assert_eq!(read.uid(), made.uid());
        let found = read.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let second =
            found.iter().find(|volume| volume.name == "second").and_then(|volume| volume.csi.as_ref());
        let second = second.expect("the second volume");
        assert_eq!(
            (&*second.driver, second.fs_type.as_deref(), second.read_only),
            (driver, Some("ext4"), Some(true))
        );
        assert_eq!(list(&pods, "").await.len(), 1);

        let patched =
            patch(&pods, &name, json!({ "metadata": { "annotations": { "patched": "true" } } })).await;
        assert_eq!(patched.annotations()["patched"], "true");
        delete(&pods, &name).await;
        gone(&pods, &name).await;
    });
}

/// CSIStorageCapacity API
#[test]
fn should_support_csistoragecapacities_api_operations() {
    test(async |bed| {
        let capacities = Operations {
            group: "storage.k8s.io",
            version: "v1",
            kind: "CSIStorageCapacity",
            plural: "csistoragecapacities",
            scope: Scope::Namespaced,
            subresources: &[],
            object: json!({ "storageClassName": "fake-sc", "capacity": "1Gi" }),
        };
        capacities.check(bed).await;
    });
}
