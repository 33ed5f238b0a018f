//! Namespaces: labels, finalizers, status, and what goes with them.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{coverage::texts, support::test};

texts! {
    "Namespace patching" => should_patch_a_namespace,
}

/// Namespace patching
#[test]
fn should_patch_a_namespace() {
    test(async |bed| {
        let namespaces = bed.all::<Namespace>();
        let label = Patch::Merge(json!({ "metadata": { "labels": { "conformance": "patched" } } }));
        namespaces.patch(&bed.namespace, &PatchParams::default(), &label).await.expect("patched");
        let found = namespaces.get(&bed.namespace).await.expect("found");
        assert_eq!(found.labels()["conformance"], "patched");
    });
}
