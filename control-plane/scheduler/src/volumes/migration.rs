//! Volumes of in-tree plugins as the CSI drivers that took them over know them: which driver, by which handle, and where.
//!
//! The names are those of `k8s.io/csi-translation-lib`, for the plugins of which upstream's NodeVolumeLimits counts the
//! volumes. That a node runs the driver is not asked here: one without a CSINode has no limits.

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeSpec, Volume,
};

use crate::{affinity::NodeAffinity, pod::Labels};

const ZONES: [&str; 2] = [BETA_ZONE, ZONE];
const ZONE: &str = "topology.kubernetes.io/zone";
const BETA_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
const BETA_REGION: &str = "failure-domain.beta.kubernetes.io/region";
/// Of a CSINode: the in-tree plugins that a driver stands for there, joined by commas.
pub(super) const MIGRATED_PLUGINS: &str = "storage.alpha.kubernetes.io/migrated-plugins";
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

/// Where a volume of an in-tree plugin is, on nodes on which a driver stands for the plugin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Migrated {
    pub(crate) plugin: &'static str,
    /// In the driver's labels of nodes. Unset is everywhere.
    pub(crate) affinity: Option<NodeAffinity>,
}

impl Migrated {
    /// `None` where no driver takes the volume over, or keeps its labels.
    pub(super) fn of(spec: &PersistentVolumeSpec, labels: &Labels) -> Option<Self> {
        let (plugin, topology) = if spec.aws_elastic_block_store.is_some() {
            ("kubernetes.io/aws-ebs", "topology.ebs.csi.aws.com/zone")
        } else if spec.gce_persistent_disk.is_some() {
            ("kubernetes.io/gce-pd", "topology.gke.io/zone")
        } else if spec.cinder.is_some() {
            ("kubernetes.io/cinder", "topology.cinder.csi.openstack.org/zone")
        } else {
            return None;
        };
        let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
        let terms = required.map(|required| required.node_selector_terms.clone()).unwrap_or_default();
        let terms = translated(terms, labels, topology);
        let required = (!terms.is_empty()).then_some(NodeSelector { node_selector_terms: terms });
        Some(Self { plugin, affinity: required.as_ref().map(NodeAffinity::selecting) })
    }
}

/// Terms of a volume with the driver's label in place of the zone's. One that says nothing of zones is where its labels say.
fn translated(mut terms: Vec<NodeSelectorTerm>, labels: &Labels, topology: &str) -> Vec<NodeSelectorTerm> {
    let names = |key: &str| terms.iter().flat_map(expressions).any(|one| one.key == key);
    // The new names first, and those of terms before those of labels.
    let is_beta =
        !names(ZONE) && (names(BETA_ZONE) || !labels.contains_key(ZONE) && labels.contains_key(BETA_ZONE));
    let (zone, region) = if is_beta { (BETA_ZONE, BETA_REGION) } else { (ZONE, REGION) };
    let has_values = |key: &str| {
        let mut named = terms.iter().flat_map(expressions).filter(|one| one.key == key);
        named.any(|one| one.values.as_ref().is_some_and(|values| !values.is_empty()))
    };
    let (has_zones, has_regions) = (has_values(zone), has_values(region));
    if has_zones {
        rename(&mut terms, zone, topology);
    } else if let Some(zones) = labels.get(zone) {
        let mut zones: Vec<String> = zones.split("__").map(|zone| zone.trim().to_owned()).collect();
        zones.retain(|zone| !zone.is_empty());
        zones.sort_unstable();
        zones.dedup();
        if !zones.is_empty() {
            within(&mut terms, topology, &zones);
        }
    }
    if is_beta && has_regions {
        rename(&mut terms, BETA_REGION, REGION);
    }
    terms
}

fn expressions(term: &NodeSelectorTerm) -> impl Iterator<Item = &NodeSelectorRequirement> {
    term.match_expressions.iter().flatten()
}

fn rename(terms: &mut [NodeSelectorTerm], from: &str, to: &str) {
    let all = terms.iter_mut().flat_map(|term| term.match_expressions.iter_mut().flatten());
    all.filter(|one| one.key == from).for_each(|one| one.key = to.to_owned());
}

fn within(terms: &mut Vec<NodeSelectorTerm>, key: &str, values: &[String]) {
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        term.match_expressions.get_or_insert_default().push(NodeSelectorRequirement {
            key: key.to_owned(),
            operator: "In".to_owned(),
            values: Some(values.to_vec()),
        });
    }
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

    /// `terms` are lists of expressions, each a key and values.
    #[track_caller]
    fn check_place(labels: Value, terms: Value, expected: &[&[(&str, &[&str])]]) {
        let expression = |one: &Value| json!({ "key": one[0], "operator": "In", "values": one[1] });
        let term = |term: &Value| {
            let all: Vec<Value> = term.as_array().unwrap().iter().map(expression).collect();
            json!({ "matchExpressions": all })
        };
        let terms: Vec<NodeSelectorTerm> =
            terms.as_array().unwrap().iter().map(|one| serde_json::from_value(term(one)).unwrap()).collect();
        let labels: Labels = serde_json::from_value(labels).unwrap();
        let found = translated(terms, &labels, "driver/zone");
        let found: Vec<Value> = found
            .iter()
            .map(|term| expressions(term).map(|one| json!([one.key, one.values])).collect())
            .collect();
        assert_eq!(json!(found), json!(expected), "{labels:?}");
    }

    #[test]
    fn places_are_named_as_drivers_name_them() {
        let in_zone = |key: &str| json!([[[key, ["a"]]]]);
        check_place(json!({}), in_zone(ZONE), &[&[("driver/zone", &["a"])]]);
        check_place(json!({}), in_zone(BETA_ZONE), &[&[("driver/zone", &["a"])]]);
        // What terms say comes before labels.
        check_place(json!({ BETA_ZONE: "b" }), in_zone(ZONE), &[&[("driver/zone", &["a"])]]);
        check_place(json!({ ZONE: "b__ a__b" }), json!([]), &[&[("driver/zone", &["a", "b"])]]);
        check_place(
            json!({ BETA_ZONE: "b" }),
            json!([[["disk", ["ssd"]]], [["disk", ["hdd"]]]]),
            &[&[("disk", &["ssd"]), ("driver/zone", &["b"])], &[("disk", &["hdd"]), ("driver/zone", &["b"])]],
        );
        check_place(
            json!({}),
            json!([[[BETA_ZONE, ["a"]], [BETA_REGION, ["r"]]]]),
            &[&[("driver/zone", &["a"]), (REGION, &["r"])]],
        );
        check_place(json!({}), json!([]), &[]);
        check_place(json!({ ZONE: "" }), json!([]), &[]);
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
