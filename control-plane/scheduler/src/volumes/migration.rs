//! Volumes of in-tree plugins as the CSI drivers that took them over know them: which driver, and by which handle.
//!
//! The names are those of `k8s.io/csi-translation-lib`, for the plugins of which upstream's NodeVolumeLimits counts the
//! volumes. That a node runs the driver is not asked here: one without a CSINode has no limits.

use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Volume};

use crate::pod::Labels;

const ZONES: [&str; 2] = ["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"];
/// What a handle says of a part that is not known.
const UNSPECIFIED: &str = "UNSPECIFIED";

const AWS: &str = "ebs.csi.aws.com";
const AZURE: &str = "disk.csi.azure.com";
const CINDER: &str = "cinder.csi.openstack.org";
const GCE: &str = "pd.csi.storage.gke.io";
const PORTWORX: &str = "pxd.portworx.com";

/// A volume that a driver attaches to nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attachable {
    pub(crate) driver: String,
    /// Its name among those of the driver.
    pub(crate) handle: String,
}

impl Attachable {
    pub(super) fn new(driver: &str, handle: impl Into<String>) -> Self {
        Self { driver: driver.to_owned(), handle: handle.into() }
    }
}

/// The driver that makes volumes for a class with the provisioner.
pub(super) fn driver(provisioner: &str) -> &str {
    match provisioner {
        "kubernetes.io/aws-ebs" => AWS,
        "kubernetes.io/azure-disk" => AZURE,
        "kubernetes.io/cinder" => CINDER,
        "kubernetes.io/gce-pd" => GCE,
        "kubernetes.io/portworx-volume" => PORTWORX,
        other => other,
    }
}

/// What of a PersistentVolume is attached; `None` where nothing is that counts.
pub(super) fn of_persistent(spec: &PersistentVolumeSpec, labels: &Labels) -> Option<Attachable> {
    if let Some(csi) = &spec.csi {
        return Some(Attachable::new(&csi.driver, csi.volume_handle.as_str()));
    }
    if let Some(aws) = &spec.aws_elastic_block_store {
        return of_aws(&aws.volume_id);
    }
    if let Some(gce) = &spec.gce_persistent_disk {
        let zones = ZONES.iter().filter_map(|label| labels.get(*label)).find(|zones| !zones.is_empty());
        return Some(Attachable::new(GCE, gce_handle(zones.map_or("", String::as_str), &gce.pd_name)?));
    }
    let azure = spec.azure_disk.as_ref().map(|azure| Attachable::new(AZURE, azure.disk_uri.as_str()));
    let cinder = || spec.cinder.as_ref().map(|cinder| Attachable::new(CINDER, cinder.volume_id.as_str()));
    let portworx =
        || spec.portworx_volume.as_ref().map(|one| Attachable::new(PORTWORX, one.volume_id.as_str()));
    azure.or_else(cinder).or_else(portworx)
}

/// The same of a volume that a pod names itself.
pub(super) fn of_pod(volume: &Volume) -> Option<Attachable> {
    if let Some(aws) = &volume.aws_elastic_block_store {
        return of_aws(&aws.volume_id);
    }
    if let Some(gce) = &volume.gce_persistent_disk {
        return Some(Attachable::new(GCE, gce_handle("", &gce.pd_name)?));
    }
    let azure = volume.azure_disk.as_ref().map(|azure| Attachable::new(AZURE, azure.disk_uri.as_str()));
    let cinder = || volume.cinder.as_ref().map(|cinder| Attachable::new(CINDER, cinder.volume_id.as_str()));
    let portworx =
        || volume.portworx_volume.as_ref().map(|one| Attachable::new(PORTWORX, one.volume_id.as_str()));
    azure.or_else(cinder).or_else(portworx)
}

/// `vol-1`, or as a URL with the zone: `aws://us-east-1a/vol-1`.
fn of_aws(id: &str) -> Option<Attachable> {
    let Some(rest) = id.strip_prefix("aws://") else {
        return Some(Attachable::new(AWS, id));
    };
    let (_, path) = rest.split_once('/')?;
    let handle = path.trim_matches('/');
    let is_id = handle.starts_with("vol-") && !handle.contains('/');
    is_id.then(|| Attachable::new(AWS, handle))
}

/// Of a disk in one zone, or in the region that several zones (joined by `__`) are of.
fn gce_handle(zones: &str, disk: &str) -> Option<String> {
    let place = match zones.split("__").collect::<Vec<_>>()[..] {
        [""] => format!("zones/{UNSPECIFIED}"),
        [zone] => format!("zones/{zone}"),
        ref zones => {
            let mut regions = zones.iter().map(|zone| {
                let (region, zone) = zone.rsplit_once('-')?;
                (region.split('-').count() == 2 && !zone.is_empty()).then_some(region)
            });
            let region = regions.next()??;
            regions.all(|other| other == Some(region)).then(|| format!("regions/{region}"))?
        }
    };
    Some(format!("projects/{UNSPECIFIED}/{place}/disks/{disk}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(source: Value, zones: &str, expected: Option<(&str, &str)>) {
        let labels = Labels::from([("topology.kubernetes.io/zone".to_owned(), zones.to_owned())]);
        let spec = serde_json::from_value(source.clone()).unwrap();
        let expected = expected.map(|(driver, handle)| Attachable::new(driver, handle));
        assert_eq!(of_persistent(&spec, &labels), expected, "{source}");
        if zones.is_empty() && source["csi"].is_null() {
            let mut volume = source;
            volume["name"] = json!("v");
            assert_eq!(of_pod(&serde_json::from_value(volume).unwrap()), expected);
        }
    }

    #[test]
    fn volumes_are_named_as_their_drivers_name_them() {
        check(json!({ "csi": { "driver": "d", "volumeHandle": "h" } }), "", Some(("d", "h")));
        let aws = |id: &str| json!({ "awsElasticBlockStore": { "volumeID": id } });
        check(aws("vol-1"), "", Some((AWS, "vol-1")));
        check(aws("aws://us-east-1a/vol-1"), "", Some((AWS, "vol-1")));
        check(aws("aws:///vol-1"), "", Some((AWS, "vol-1")));
        check(aws("aws://us-east-1a/disk-1"), "", None);
        let gce = || json!({ "gcePersistentDisk": { "pdName": "d" } });
        check(gce(), "", Some((GCE, "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d")));
        check(gce(), "us-east1-b", Some((GCE, "projects/UNSPECIFIED/zones/us-east1-b/disks/d")));
        check(gce(), "us-east1-b__us-east1-c", Some((GCE, "projects/UNSPECIFIED/regions/us-east1/disks/d")));
        check(gce(), "us-east1-b__us-west1-c", None);
        let azure = json!({ "azureDisk": { "diskName": "d", "diskURI": "/disks/d" } });
        check(azure, "", Some((AZURE, "/disks/d")));
        check(json!({ "cinder": { "volumeID": "c" } }), "", Some((CINDER, "c")));
        check(json!({ "portworxVolume": { "volumeID": "p" } }), "", Some((PORTWORX, "p")));
        check(json!({ "vsphereVolume": { "volumePath": "[ds] v.vmdk" } }), "", None);
        check(json!({ "hostPath": { "path": "/" } }), "", None);
    }
}
