//! CustomResourceDefinitions, as objects; custom resources themselves are not looked at.

use anyhow::ensure;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    discovery::Scope,
};
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::Operations,
    support::{create, delete, eventually, gone, test, unique},
};

texts! {
    "Custom Resource Definition, create" => creating_deleting_custom_resource_definition_objects_works,
    "Custom Resource Definition, list" => listing_custom_resource_definition_objects_works,
    "Custom Resource Definition, status sub-resource" =>
        getting_updating_patching_custom_resource_definition_status_sub_resource_works,
    "Custom Resource Definition, discovery" =>
        should_include_custom_resource_definition_resources_in_discovery_documents,
}

const GROUP: &str = "conformance.example.com";

/// A definition of a kind that nobody else has, with a label.
fn definition(label: &str) -> Value {
    let singular = unique("thing");
    let plural = format!("{singular}s");
    json!({
        "metadata": { "name": format!("{plural}.{GROUP}"), "labels": { "conformance": label } },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": { "plural": plural, "singular": singular, "kind": singular.replace("thing-", "Thing") },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                } },
                "subresources": { "status": {} },
            }],
        },
    })
}

/// Custom Resource Definition, create
#[test]
fn creating_deleting_custom_resource_definition_objects_works() {
    test(async |bed| {
        let definitions = bed.all::<CustomResourceDefinition>();
        let made = create(&definitions, definition("create")).await;
        let found = definitions.get(&made.name_any()).await.expect("found");
        assert_eq!((found.uid(), &found.spec), (made.uid(), &made.spec));
        delete(&definitions, &made.name_any()).await;
        gone(&definitions, &made.name_any()).await;
    });
}

/// Custom Resource Definition, list
#[test]
fn listing_custom_resource_definition_objects_works() {
    test(async |bed| {
        let definitions = bed.all::<CustomResourceDefinition>();
        let label = unique("list");
        let labelled = ListParams::default().labels(&format!("conformance={label}"));
        let other = create(&definitions, definition("other")).await.name_any();
        let mut names = Vec::new();
        for _ in 0..10 {
            names.push(create(&definitions, definition(&label)).await.name_any());
        }
        names.sort();
        let found = definitions.list(&labelled).await.expect("listed");
        assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), names);

        definitions.delete_collection(&DeleteParams::default(), &labelled).await.expect("deleted");
        for name in &names {
            gone(&definitions, name).await;
        }
        definitions.get(&other).await.expect("the one without the label stays");
        delete(&definitions, &other).await;
    });
}

/// Custom Resource Definition, status sub-resource
#[test]
fn getting_updating_patching_custom_resource_definition_status_sub_resource_works() {
    test(async |bed| {
        let definitions = bed.all::<CustomResourceDefinition>();
        let made = create(&definitions, definition("status")).await;
        let name = made.name_any();
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": "Conformance", "message": "by a test" });

        // A controller of definitions writes conditions as well: an update may conflict, and starts anew then.
        eventually("the status is updated", async || {
            let mut newest = definitions.get_status(&name).await?;
            let status = newest.status.get_or_insert_default();
            status
                .conditions
                .get_or_insert_default()
                .push(serde_json::from_value(condition("StatusUpdate"))?);
            let written = definitions.replace_status(&name, &PostParams::default(), &newest).await?;
            ensure!(has(&written, "StatusUpdate"), "{written:?}");
            Ok(())
        })
        .await;
        assert!(has(&definitions.get(&name).await.expect("found"), "StatusUpdate"));

        let patch = Patch::Merge(json!({ "status": { "conditions": [condition("StatusPatch")] } }));
        let params = PatchParams::default();
        let patched = definitions.patch_status(&name, &params, &patch).await.expect("patched");
        assert!(has(&patched, "StatusPatch"), "{patched:?}");
        assert_eq!(patched.spec, made.spec);
        assert!(has(&definitions.get_status(&name).await.expect("the status is read"), "StatusPatch"));
        delete(&definitions, &name).await;
    });
}

fn has(definition: &CustomResourceDefinition, condition: &str) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|found| found.type_ == condition)
}

/// Custom Resource Definition, discovery
#[test]
fn should_include_custom_resource_definition_resources_in_discovery_documents() {
    let definitions = Operations {
        group: "apiextensions.k8s.io",
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        scope: Scope::Cluster,
        subresources: &["status"],
        object: json!({}),
    };
    test(async |bed| definitions.is_discovered(bed).await);
}
