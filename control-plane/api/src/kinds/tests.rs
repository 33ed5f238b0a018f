use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::*;

/// What upstream serves and this table does not, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io/v1alpha1", "off by default upstream"),
    ("admissionregistration.k8s.io/v1beta1", "off by default upstream"),
    ("certificates.k8s.io/v1alpha1", "off by default upstream"),
    ("certificates.k8s.io/v1beta1/clustertrustbundles", "off by default upstream"),
    ("coordination.k8s.io/v1alpha2", "off by default upstream"),
    ("coordination.k8s.io/v1beta1", "off by default upstream"),
    ("internal.apiserver.k8s.io", "off by default upstream"),
    ("networking.k8s.io/v1beta1", "off by default upstream"),
    ("resource.k8s.io/v1alpha3", "off by default upstream"),
    ("resource.k8s.io/v1beta1", "off by default upstream"),
    ("resource.k8s.io/v1beta2", "off by default upstream"),
    ("scheduling.k8s.io/v1alpha2/workloads", "nothing makes groups of them"),
    ("storage.k8s.io/v1beta1", "off by default upstream"),
    ("storagemigration.k8s.io", "objects have one stored version"),
];

/// What upstream does not serve itself: an add-on does.
const ADDED: &str = "metrics.k8s.io";

/// `v1/pods`, `v1/pods/status create,get ...`: one line for each resource and subresource.
fn served() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for kind in KINDS.iter().filter(|kind| kind.group != ADDED) {
        for version in kind.versions {
            let prefix = format!("{}/{}", kind.api_version(version.name), kind.plural);
            lines.insert(format!(
                "{prefix} {} {} {} {} {} {}",
                kind.kind,
                kind.singular,
                kind.namespaced,
                kind.verbs.join(","),
                kind.short_names.join(","),
                kind.categories.join(",")
            ));
            for sub in kind.subresources {
                let (group, group_version) = sub.group_version.unwrap_or_default();
                lines.insert(format!(
                    "{prefix}/{} {} {} {} {group} {group_version}",
                    sub.name,
                    sub.kind,
                    kind.namespaced,
                    sub.verbs.join(",")
                ));
            }
        }
    }
    lines
}

fn upstream(folder: &Path) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let list: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        if list["kind"] != "APIResourceList" {
            continue;
        }
        for resource in list["resources"].as_array().unwrap() {
            let text = |name: &str| resource[name].as_str().unwrap_or_default().to_owned();
            let words = |name: &str| {
                let all = resource[name].as_array().cloned().unwrap_or_default();
                all.iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
            };
            let path = format!("{}/{}", list["groupVersion"].as_str().unwrap(), text("name"));
            let common = format!("{path} {}", text("kind"));
            let verbs = words("verbs");
            lines.insert(if text("name").contains('/') {
                format!("{common} {} {verbs} {} {}", resource["namespaced"], text("group"), text("version"))
            } else {
                format!(
                    "{common} {} {} {verbs} {} {}",
                    text("singularName"),
                    resource["namespaced"],
                    words("shortNames"),
                    words("categories")
                )
            });
        }
    }
    lines
}

#[test]
fn table_agrees_with_upstream_but_for_what_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/discovery");
    if !folder.exists() {
        println!("skipped: {} is absent", folder.display());
        return;
    }
    let (served, upstream) = (served(), upstream(&folder));
    let extra: Vec<_> = served.difference(&upstream).collect();
    assert!(extra.is_empty(), "not as upstream serves it: {extra:#?}");
    let left_out = |line: &str| {
        let path = line.split(' ').next().unwrap();
        LEFT_OUT.iter().any(|(prefix, _)| path == *prefix || path.starts_with(&format!("{prefix}/")))
    };
    let missing: Vec<_> = upstream.difference(&served).filter(|line| !left_out(line)).collect();
    assert!(missing.is_empty(), "upstream serves it, and no reason is given: {missing:#?}");
    let stale: Vec<_> = served.iter().filter(|line| left_out(line)).collect();
    assert!(stale.is_empty(), "listed as left out, but served: {stale:#?}");
}

#[test]
fn each_kind_is_stored_in_exactly_one_version() {
    for kind in KINDS {
        let stored: Vec<_> = kind.versions.iter().filter(|version| version.storage).collect();
        assert_eq!(stored.len(), 1, "{}", kind.qualified());
        if let (Some(storage), false) = (kind.storage, kind.is_view()) {
            assert_eq!(storage.version, stored[0].name, "{}", kind.qualified());
            assert_eq!(storage.kind, kind.kind, "{}", kind.qualified());
        }
        if kind.storage.is_some() {
            assert_eq!(kind.list_kind, format!("{}List", kind.kind));
        }
    }
}

#[test]
fn lookups_find_the_same_row() {
    let by_plural = Kind::find("apps", "v1", "deployments").unwrap();
    let by_kind = Kind::by_kind("apps", "v1", "Deployment").unwrap();
    assert!(std::ptr::eq(by_plural, by_kind));
    assert!(Kind::find("apps", "v1beta1", "deployments").is_none());
    assert!(Kind::find("", "v1", "deployments").is_none());
    assert_eq!(by_plural.qualified(), "deployments.apps");
    assert!(by_plural.has_status() && by_plural.subresource("scale").is_some());
    assert!(Kind::by_kind("events.k8s.io", "v1", "Event").unwrap().is_view());
}

#[test]
fn groups_start_with_core() {
    let groups = groups();
    assert_eq!(groups[0], Group { name: "", versions: vec!["v1"] });
    assert_eq!(groups.iter().filter(|group| group.name == "apps").count(), 1);
}
