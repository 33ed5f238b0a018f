//! Discovery: groups, versions and resources, as separate documents and as one, and the server's version.

use serde_json::Value;

use crate::{
    coverage::texts,
    support::{Bed, test},
};

texts! {
    "Discovery, confirm the groupVerion and a resourcefrom each apiGroup" =>
        should_locate_the_groupversion_and_a_resource_within_each_apigroup,
    "Discovery, confirm the PreferredVersion for each api group" =>
        should_validate_preferredversion_for_each_apigroup,
    "Aggregated Discovery Interface" => should_support_aggregated_discovery_interface,
    "Aggregated Discovery Endpoint Accept Headers" =>
        should_support_raw_aggregated_discovery_endpoint_accept_headers,
    "Confirm a server version" => should_find_the_server_version,
}

/// A resource of each built-in group, which every server has.
const BUILT_IN: [(&str, &str, &str); 14] = [
    ("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    ("apiregistration.k8s.io", "v1", "apiservices"),
    ("apps", "v1", "deployments"),
    ("authentication.k8s.io", "v1", "tokenreviews"),
    ("authorization.k8s.io", "v1", "subjectaccessreviews"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
    ("batch", "v1", "jobs"),
    ("coordination.k8s.io", "v1", "leases"),
    ("discovery.k8s.io", "v1", "endpointslices"),
    ("events.k8s.io", "v1", "events"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("storage.k8s.io", "v1", "storageclasses"),
];

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

#[track_caller]
fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("{value} has no list {name}"))
}

#[track_caller]
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{value} has no {name}"))
}

/// Discovery, confirm the groupVerion and a resourcefrom each apiGroup
#[test]
fn should_locate_the_groupversion_and_a_resource_within_each_apigroup() {
    test(async |bed| {
        let groups = bed.get("/apis").await;
        assert!(array(&groups, "groups").len() >= BUILT_IN.len(), "{groups}");
        for group in array(&groups, "groups") {
            for version in array(group, "versions") {
                let name = text(version, "groupVersion");
                assert_eq!(name, format!("{}/{}", text(group, "name"), text(version, "version")));
                let resources = bed.get(&format!("/apis/{name}")).await;
                assert_eq!(text(&resources, "groupVersion"), name);
                let first = &array(&resources, "resources")[0];
                assert!(!text(first, "name").is_empty() && !text(first, "kind").is_empty(), "{first}");
                assert!(!array(first, "verbs").is_empty(), "{first}");
            }
        }
    });
}

/// Discovery, confirm the PreferredVersion for each api group
#[test]
fn should_validate_preferredversion_for_each_apigroup() {
    test(async |bed| {
        let groups = bed.get("/apis").await;
        for listed in array(&groups, "groups") {
            let group = bed.get(&format!("/apis/{}", text(listed, "name"))).await;
            assert_eq!(group["preferredVersion"], listed["preferredVersion"]);
            let preferred = text(&group["preferredVersion"], "groupVersion");
            let versions = array(&group, "versions");
            assert!(versions.iter().any(|version| version["groupVersion"] == preferred), "{group}");
        }
    });
}

/// Aggregated Discovery Interface
#[test]
fn should_support_aggregated_discovery_interface() {
    test(async |bed| {
        let groups = bed.client.list_api_groups_aggregated().await.expect("the document is read");
        for (group, version, plural) in BUILT_IN {
            let found = groups
                .items
                .iter()
                .find(|item| {
                    item.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()) == Some(group)
                })
                .unwrap_or_else(|| panic!("{group} is missing"));
            let found = found.versions.iter().find(|found| found.version.as_deref() == Some(version));
            let resources = &found.unwrap_or_else(|| panic!("{group}/{version} is missing")).resources;
            assert!(
                resources.iter().any(|resource| resource.resource.as_deref() == Some(plural)),
                "{group}/{version} lacks {plural}"
            );
        }
        let core = bed.client.list_core_api_versions_aggregated().await.expect("the document is read");
        let resources =
            core.items.iter().flat_map(|item| &item.versions).flat_map(|version| &version.resources);
        let names: Vec<_> = resources.filter_map(|resource| resource.resource.as_deref()).collect();
        for plural in ["pods", "services", "namespaces", "configmaps", "secrets"] {
            assert!(names.contains(&plural), "{names:?} lack {plural}");
        }
    });
}

/// Aggregated Discovery Endpoint Accept Headers
#[test]
fn should_support_raw_aggregated_discovery_endpoint_accept_headers() {
    test(async |bed| {
        let groups = aggregated(bed, "/apis").await;
        for (group, version, plural) in BUILT_IN {
            assert!(has(&groups, group, version, plural), "{group}/{version} lacks {plural}");
        }
        let core = aggregated(bed, "/api").await;
        assert!(has(&core, "", "v1", "pods"), "{core}");
        // Who does not ask for it gets the separate documents.
        for (path, kind) in [("/apis", "APIGroupList"), ("/api", "APIVersions")] {
            let answer = bed.send("GET", path, &[("accept", "application/json")], "").await;
            assert_eq!(answer.json()["kind"], kind);
        }
    });
}

async fn aggregated(bed: &Bed, path: &str) -> Value {
    let accept = format!("{AGGREGATED},application/json");
    let answer = bed.send("GET", path, &[("accept", &accept)], "").await;
    assert_eq!((answer.code, answer.header("content-type")), (200, AGGREGATED), "{path}");
    let document = answer.json();
    assert_eq!(document["kind"], "APIGroupDiscoveryList");
    assert_eq!(document["apiVersion"], "apidiscovery.k8s.io/v2");
    document
}

fn has(document: &Value, group: &str, version: &str, plural: &str) -> bool {
    array(document, "items")
        .iter()
        .filter(|item| item["metadata"]["name"].as_str().unwrap_or_default() == group)
        .flat_map(|item| array(item, "versions"))
        .filter(|found| found["version"] == version)
        .flat_map(|found| array(found, "resources"))
        .any(|resource| resource["resource"] == plural)
}

/// Confirm a server version
#[test]
fn should_find_the_server_version() {
    test(async |bed| {
        let version = bed.get("/version").await;
        for part in ["major", "minor"] {
            let number = text(&version, part);
            assert!(number.parse::<u32>().is_ok(), "{part} is no plain number: {version}");
        }
    });
}
