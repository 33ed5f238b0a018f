//! Discovery: the documents that tell clients what is served, built from the table of kinds.
//!
//! Pure functions from [`KINDS`] to JSON, in upstream's shapes and order: the plain documents (`/api`, `/api/v1`,
//! `/apis`, `/apis/{group}`, `/apis/{group}/{version}`) and the aggregated ones that one request fetches
//! (`apidiscovery.k8s.io/v2` and `v2beta1`). They change only when the table does, so callers may keep them.

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::kinds::{Group, KINDS, Kind, Storage, Subresource, groups};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// `/api`. `server_address` is where clients outside reach this server, with its port.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server_address }],
    })
}

/// `/apis`.
pub fn group_list() -> Value {
    let groups: Vec<Value> = named_groups().iter().map(group_entry).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/{group}`; `None` where no kind is served in it.
pub fn group(name: &str) -> Option<Value> {
    let mut entry = group_entry(named_groups().iter().find(|group| group.name == name)?);
    entry["kind"] = "APIGroup".into();
    entry["apiVersion"] = "v1".into();
    Some(entry)
}

/// `/api/v1` and `/apis/{group}/{version}`; `None` where no kind is served in it.
pub fn resources(group: &str, version: &str) -> Option<Value> {
    let mut resources: Vec<Value> = Vec::new();
    for kind in served(group, version) {
        resources.push(resource_entry(kind));
        resources.extend(kind.subresources.iter().map(|subresource| subresource_entry(kind, subresource)));
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let mut list = json!({ "kind": "APIResourceList", "resources": resources });
    if group.is_empty() {
        list["groupVersion"] = version.into();
    } else {
        list["apiVersion"] = "v1".into();
        list["groupVersion"] = format!("{group}/{version}").into();
    }
    Some(list)
}

/// Which of the two roots an aggregated document describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// `/api`: the core group.
    Core,
    /// `/apis`: all others.
    Groups,
}

/// The aggregated document of a root; `version` is `v2` or `v2beta1`.
pub fn aggregated(root: Root, version: &str) -> Value {
    let items: Vec<Value> = groups()
        .iter()
        .filter(|group| group.name.is_empty() == (root == Root::Core))
        .map(|group| {
            let versions: Vec<Value> =
                group.versions.iter().map(|version| aggregated_version(group, version)).collect();
            // The core group has no name to give.
            let metadata = if group.name.is_empty() { json!({}) } else { json!({ "name": group.name }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn named_groups() -> Vec<Group> {
    groups().into_iter().filter(|group| !group.name.is_empty()).collect()
}

fn served(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| kind.group == group && kind.serves(version))
}

fn group_entry(group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| json!({ "groupVersion": format!("{}/{version}", group.name), "version": version }))
        .collect();
    json!({ "name": group.name, "versions": versions, "preferredVersion": versions[0] })
}

fn resource_entry(kind: &Kind) -> Value {
    let mut entry = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if let Some(storage) = kind.storage {
        entry["storageVersionHash"] = storage_version_hash(&storage).into();
    }
    entry
}

/// Tells two ways of storing a kind apart; the same function of names as upstream's.
fn storage_version_hash(storage: &Storage) -> String {
    let digest = Sha256::digest(format!("{}/{}/{}", storage.group, storage.version, storage.kind));
    STANDARD.encode(&digest[..8])
}

fn subresource_entry(kind: &Kind, subresource: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", kind.plural, subresource.name),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": subresource.kind,
        "verbs": subresource.verbs,
    });
    if let Some((group, version)) = subresource.group_version {
        entry["group"] = group.into();
        entry["version"] = version.into();
    }
    entry
}

fn aggregated_version(group: &Group, version: &str) -> Value {
    let mut kinds: Vec<&Kind> = served(group.name, version).collect();
    kinds.sort_by_key(|kind| kind.plural);
    let resources: Vec<Value> = kinds.into_iter().map(aggregated_resource).collect();
    json!({ "version": version, "freshness": "Current", "resources": resources })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".to_owned(), kind.plural.into());
    entry.insert("responseKind".to_owned(), response_kind(kind.kind, None));
    entry.insert("scope".to_owned(), if kind.namespaced { "Namespaced" } else { "Cluster" }.into());
    entry.insert("singularResource".to_owned(), kind.singular.into());
    entry.insert("verbs".to_owned(), json!(kind.verbs));
    if !kind.short_names.is_empty() {
        entry.insert("shortNames".to_owned(), json!(kind.short_names));
    }
    if !kind.categories.is_empty() {
        entry.insert("categories".to_owned(), json!(kind.categories));
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|subresource| {
            json!({
                "subresource": subresource.name,
                "responseKind": response_kind(subresource.kind, subresource.group_version),
                "verbs": subresource.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry.insert("subresources".to_owned(), subresources.into());
    }
    Value::Object(entry)
}

/// Empty group and version stand for those of the document.
fn response_kind(kind: &str, group_version: Option<(&str, &str)>) -> Value {
    let (group, version) = group_version.unwrap_or_default();
    json!({ "group": group, "version": version, "kind": kind })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn upstream(file: &str) -> Option<Value> {
        let folder: PathBuf =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/discovery");
        let Ok(bytes) = std::fs::read(folder.join(file)) else {
            println!("skipped: {} has no {file}", folder.display());
            return None;
        };
        Some(serde_json::from_slice(&bytes).unwrap())
    }

    /// Kinds that upstream still stores in an older version, which is not served here, and the hash of v1.
    const STORED_OTHERWISE: [(&str, &str); 3] = [
        ("customresourcedefinitions", "M5uH+AlWATY="),
        ("mutatingadmissionpolicies", "mHCkTKpUTrE="),
        ("mutatingadmissionpolicybindings", "ZKgZT1uTmZ0="),
    ];

    /// What an add-on serves elsewhere.
    const ADDED: &str = "metrics.k8s.io";

    fn own_groups() -> impl Iterator<Item = Group> {
        groups().into_iter().filter(|group| group.name != ADDED)
    }

    #[test]
    fn what_is_used_is_told_as_the_add_on_tells_it() {
        let entry = |name: &str, kind: &str, namespaced: bool| {
            json!({
                "name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"],
            })
        };
        let list = resources(ADDED, "v1beta1").unwrap();
        assert_eq!(list["groupVersion"], "metrics.k8s.io/v1beta1");
        let expected = json!([entry("nodes", "NodeMetrics", false), entry("pods", "PodMetrics", true)]);
        assert_eq!(list["resources"], expected);
    }

    /// Takes out of upstream's list what the table of kinds leaves out; what is left must be the same.
    fn keep(list: &mut Value, pointer: &str, name: &str, ours: &Value) {
        let known = ours.pointer(pointer).unwrap().as_array().unwrap().clone();
        let all = list.pointer_mut(pointer).unwrap().as_array_mut().unwrap();
        all.retain(|item| known.iter().any(|own| own[name] == item[name]));
    }

    #[test]
    fn resource_lists_are_upstreams_for_the_kinds_served() {
        for group in own_groups() {
            for version in &group.versions {
                let file = match group.name {
                    "" => format!("api__{version}.json"),
                    name => format!("apis__{name}__{version}.json"),
                };
                let Some(mut expected) = upstream(&file) else { return };
                let ours = resources(group.name, version).unwrap();
                keep(&mut expected, "/resources", "name", &ours);
                for resource in expected["resources"].as_array_mut().unwrap() {
                    if let Some((_, hash)) =
                        STORED_OTHERWISE.iter().find(|(name, _)| resource["name"] == *name)
                    {
                        resource["storageVersionHash"] = json!(hash);
                    }
                }
                assert_eq!(ours, expected, "{file}");
            }
        }
    }

    /// What upstream serves (with every gate on, as the facts were taken) and this server does not: a version of a group, or
    /// a resource of it, and why.
    const LEFT_OUT: [(&str, &str); 14] = [
        ("admissionregistration.k8s.io/v1alpha1", OLDER),
        ("admissionregistration.k8s.io/v1beta1", OLDER),
        ("certificates.k8s.io/v1alpha1", "trust bundles are off where upstream is not told otherwise"),
        ("certificates.k8s.io/v1beta1/clustertrustbundles", "the same"),
        ("coordination.k8s.io/v1alpha2", "candidates of coordinated elections are off likewise"),
        ("coordination.k8s.io/v1beta1", "the same"),
        ("internal.apiserver.k8s.io/v1alpha1", "one server: none else has a version of storage to tell"),
        ("networking.k8s.io/v1beta1", OLDER),
        ("resource.k8s.io/v1alpha3", "taints of devices and reports of pools are off likewise"),
        ("resource.k8s.io/v1beta1", OLDER),
        ("resource.k8s.io/v1beta2", "but for taints of devices, an older version of what v1 serves"),
        (
            "scheduling.k8s.io/v1alpha2/workloads",
            "groups of pods are made one by one; nothing reads templates of them",
        ),
        ("storage.k8s.io/v1beta1", OLDER),
        (
            "storagemigration.k8s.io/v1beta1",
            "each kind is stored in one version: there is nothing to migrate",
        ),
    ];
    const OLDER: &str = "an older version of what a newer one serves";

    #[test]
    fn what_is_left_out_is_listed_with_its_reason() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/discovery");
        let Ok(files) = std::fs::read_dir(&folder) else {
            println!("skipped: there is no {}", folder.display());
            return;
        };
        let mut missing = std::collections::BTreeSet::new();
        for file in files {
            let name = file.unwrap().file_name().into_string().unwrap();
            let Some(list) = upstream(&name).filter(|list| list["resources"].is_array()) else { continue };
            let whole = list["groupVersion"].as_str().unwrap();
            let (group, version) = whole.split_once('/').unwrap_or(("", whole));
            let Some(ours) = resources(group, version) else {
                missing.insert(whole.to_owned());
                continue;
            };
            let ours = ours["resources"].as_array().unwrap();
            for resource in list["resources"].as_array().unwrap() {
                if !ours.iter().any(|own| own["name"] == resource["name"]) {
                    missing.insert(format!("{whole}/{}", resource["name"].as_str().unwrap()));
                }
            }
        }
        let listed = LEFT_OUT.iter().map(|(what, _)| (*what).to_owned()).collect();
        assert_eq!(missing, listed, "what is missing, and what is listed");
    }

    #[test]
    fn group_lists_are_upstreams_for_the_groups_served() {
        let Some(mut expected) = upstream("apis.json") else { return };
        let mut ours = group_list();
        ours["groups"].as_array_mut().unwrap().retain(|group| group["name"] != ADDED);
        keep(&mut expected, "/groups", "name", &ours);
        for (own, theirs) in
            ours["groups"].as_array().unwrap().iter().zip(expected["groups"].as_array().unwrap())
        {
            assert_eq!(own["name"], theirs["name"], "order");
            if own["versions"] == theirs["versions"] {
                assert_eq!(own, theirs);
            }
            assert_eq!(own["preferredVersion"], theirs["preferredVersion"]);
        }
        assert_eq!(ours["groups"].as_array().unwrap().len(), expected["groups"].as_array().unwrap().len());
        assert_eq!(group("apps"), upstream("apis__apps.json"));
        assert_eq!(group("nothing.example.com"), None);
    }

    #[test]
    fn aggregated_document_is_upstreams_for_the_kinds_served() {
        let Some(expected) = upstream("aggregated_v2.json") else { return };
        let ours = aggregated(Root::Groups, "v2");
        for own in ours["items"].as_array().unwrap() {
            if own["metadata"]["name"] == ADDED {
                continue;
            }
            let theirs = expected["items"].as_array().unwrap();
            let theirs = theirs.iter().find(|group| group["metadata"] == own["metadata"]).unwrap();
            for version in own["versions"].as_array().unwrap() {
                let all = theirs["versions"].as_array().unwrap();
                let mut same =
                    all.iter().find(|other| other["version"] == version["version"]).unwrap().clone();
                keep(&mut same, "/resources", "resource", version);
                assert_eq!(version, &same, "{}", own["metadata"]["name"]);
            }
        }
        assert_eq!(aggregated(Root::Core, "v2beta1")["items"].as_array().unwrap().len(), 1);
    }
}
