//! Explains a pod's place from outside a running scheduler: reads what decisions depend on, and asks the same core.
//!
//! The API has all of it, nominations too, but for what a scheduler has decided and not written yet.

use std::{sync::Arc, time::Duration};

use hawser_api::{Api, Client, Error, client::ListOptions, resource::ObjectKey, typed::Kind};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{
        Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
    },
    policy::v1::PodDisruptionBudget,
    resource::v1::{DeviceClass, ResourceClaim, ResourceSlice},
    scheduling::v1alpha2::PodGroup,
    storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment},
};

use crate::{
    config::Config,
    explanation::Explanation,
    scheduler::Scheduler,
    workloads::{ControllerKind, Workloads},
};

const NOW: Duration = Duration::ZERO;

/// What each node is for the pod, by the same rules as the scheduler with this configuration.
///
/// Costs a list of each kind that decisions depend on; they are of slightly different moments.
///
/// # Errors
/// Those of the API; NotFound where there is no such pod.
pub async fn explain(
    client: Arc<dyn Client>,
    config: &Config,
    namespace: &str,
    name: &str,
) -> Result<Explanation, Error> {
    // First, so that a name that is wrong costs nothing.
    let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await?;
    let mut core = Scheduler::new(config, 1);
    all::<Namespace>(&client).await?.iter().for_each(|namespace| core.namespace_changed(namespace, NOW));
    all::<Node>(&client).await?.iter().for_each(|node| core.node_changed(node, NOW));
    all::<PodGroup>(&client).await?.iter().for_each(|group| core.pod_group_changed(group, NOW));
    all::<PodDisruptionBudget>(&client).await?.iter().for_each(|budget| core.budget_changed(budget));
    all::<StorageClass>(&client).await?.iter().for_each(|class| core.class_changed(class, NOW));
    all::<CSINode>(&client).await?.iter().for_each(|node| core.csi_node_changed(node, NOW));
    all::<VolumeAttachment>(&client).await?.iter().for_each(|one| core.attachment_changed(one, NOW));
    all::<CSIDriver>(&client).await?.iter().for_each(|driver| core.driver_changed(driver, NOW));
    all::<CSIStorageCapacity>(&client)
        .await?
        .iter()
        .for_each(|capacity| core.capacity_changed(capacity, NOW));
    all::<PersistentVolume>(&client).await?.iter().for_each(|volume| core.volume_changed(volume, NOW));
    all::<PersistentVolumeClaim>(&client).await?.iter().for_each(|claim| core.claim_changed(claim, NOW));
    all::<DeviceClass>(&client).await?.iter().for_each(|class| core.device_class_changed(class, NOW));
    all::<ResourceSlice>(&client).await?.iter().for_each(|slice| core.slice_changed(slice, NOW));
    all::<ResourceClaim>(&client).await?.iter().for_each(|claim| core.device_claim_changed(claim, NOW));
    read_workloads(&client, core.workloads()).await?;
    let key = ObjectKey::of(&pod);
    let mut found = None;
    for other in all::<Pod>(&client).await? {
        core.pod_changed(&other, NOW);
        found = if ObjectKey::of(&other) == key { Some(other) } else { found };
    }
    // It may have gone meanwhile: it is explained as it was.
    Ok(core.explain(found.as_ref().unwrap_or(&pod)))
}

/// Services and controllers, by which pods are spread.
async fn read_workloads(client: &Arc<dyn Client>, workloads: &mut Workloads) -> Result<(), Error> {
    all::<Service>(client).await?.iter().for_each(|service| workloads.put_service(service));
    for object in all::<ReplicationController>(client).await? {
        let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        workloads.put_replication_controller(&ObjectKey::of(&object), selector);
    }
    for object in all::<ReplicaSet>(client).await? {
        let selector = object.spec.as_ref().map(|spec| &spec.selector);
        workloads.put_set(ControllerKind::ReplicaSet, &ObjectKey::of(&object), selector);
    }
    for object in all::<StatefulSet>(client).await? {
        let selector = object.spec.as_ref().map(|spec| &spec.selector);
        workloads.put_set(ControllerKind::StatefulSet, &ObjectKey::of(&object), selector);
    }
    Ok(())
}

async fn all<K: Kind>(client: &Arc<dyn Client>) -> Result<Vec<K>, Error> {
    Ok(Api::<K>::all(client.clone()).list(&ListOptions::default()).await?.0)
}
