//! Limits of local storage: of emptyDir volumes, of containers, and of pods as a whole. Who exceeds one goes, whatever is
//! left on the disk.

use crate::container::resources::pod_limit;
use crate::pod::DesiredPod;
use crate::pod::qos::limit;
use crate::quantity::{binary_si, value};
use crate::stats::disk::Measured;

const RESOURCE: &str = "ephemeral-storage";

/// Which limit the pod exceeds, as it is told.
pub fn exceeded(pod: &DesiredPod, disk: &Measured) -> Option<String> {
    empty_dir(pod, disk).or_else(|| whole(pod, disk)).or_else(|| container(pod, disk))
}

fn empty_dir(pod: &DesiredPod, disk: &Measured) -> Option<String> {
    pod.spec().volumes.iter().flatten().find_map(|volume| {
        let size = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
        let limit = u64::try_from(value(size)).ok().filter(|n| *n > 0)?;
        let used = disk.volumes.get(&volume.name).filter(|v| v.is_ephemeral)?.usage.bytes;
        let name = &volume.name;
        (used > limit)
            .then(|| format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{}\". ", size.0))
    })
}

fn whole(pod: &DesiredPod, disk: &Measured) -> Option<String> {
    let limit = u64::try_from(pod_limit(pod.spec(), RESOURCE)?).ok()?;
    let shown = binary_si(limit);
    (disk.ephemeral().bytes > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "))
}

fn container(pod: &DesiredPod, disk: &Measured) -> Option<String> {
    pod.containers.iter().find_map(|container| {
        let limit = u64::try_from(limit(&container.spec, RESOURCE)).ok().filter(|n| *n > 0)?;
        let used = disk.containers.get(container.name())?;
        let (name, shown) = (container.name(), binary_si(limit));
        (used.layer.bytes + used.logs.bytes > limit)
            .then(|| format!("Container {name} exceeded its local ephemeral storage limit {shown:?}. "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container, pod, spec, with_resources};
    use crate::stats::disk::{ContainerDisk, VolumeDisk};
    use hawser_runtime::DiskUsage;
    use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn measured(layer: u64, volume: u64) -> Measured {
        let usage = |bytes| DiskUsage { bytes, inodes: 1 };
        let container = ContainerDisk { layer: usage(layer), logs: usage(0) };
        let volume = VolumeDisk { usage: usage(volume), is_ephemeral: true, ..VolumeDisk::default() };
        Measured {
            volumes: [("data".to_owned(), volume)].into(),
            containers: [("web".to_owned(), container)].into(),
        }
    }

    #[test]
    fn each_limit_is_told_by_name() {
        let mut with_volume = spec("Always", vec![], vec![container("web")]);
        let source = EmptyDirVolumeSource { size_limit: Some(Quantity("1Mi".into())), medium: None };
        with_volume.volumes =
            Some(vec![Volume { name: "data".into(), empty_dir: Some(source), ..Volume::default() }]);
        let check = |pod: &DesiredPod, disk: Measured, expected: Option<&str>| {
            assert_eq!(exceeded(pod, &disk).as_deref(), expected);
        };
        let volume = pod(with_volume);
        check(&volume, measured(9 << 20, 1 << 20), None);
        let told = "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ";
        check(&volume, measured(0, (1 << 20) + 1), Some(told));
        let limited = with_resources("web", &[], &[(RESOURCE, "1Mi")]);
        let alone = pod(spec("Always", vec![], vec![limited.clone()]));
        let told = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
        check(&alone, measured(1 << 19, 1 << 20), Some(told));
        let beside = pod(spec("Always", vec![], vec![limited, container("open")]));
        check(&beside, measured(1 << 19, 1 << 30), None);
        let told = "Container web exceeded its local ephemeral storage limit \"1Mi\". ";
        check(&beside, measured(1 << 21, 0), Some(told));
    }
}
