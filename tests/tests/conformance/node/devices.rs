//! The kinds of dynamic resource allocation.

use kube::discovery::Scope;
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    operations::Operations,
    support::{test, unique},
};

texts! {
    "CRUD operations for deviceclasses" => resource_k8s_io_v1_deviceclass,
    "CRUD operations for resourceclaims" => resource_k8s_io_v1_resourceclaim,
    "CRUD operations for resourceclaimtemplates" => resource_k8s_io_v1_resourceclaimtemplate,
    "CRUD operations for resoureslices" => resource_k8s_io_v1_resourceslice,
}

/// A kind of the group `resource.k8s.io`.
fn operations<'a>(kind: &'a str, plural: &'a str, scope: Scope, spec: Value) -> Operations<'a> {
    Operations {
        group: "resource.k8s.io",
        version: "v1",
        kind,
        plural,
        scope,
        subresources: &[],
        object: json!({ "spec": spec }),
    }
}

/// What a claim asks for: one device of a class.
fn claim() -> Value {
    json!({ "devices": { "requests": [{ "name": "one", "exactly": { "deviceClassName": "gpu.example.com" } }] } })
}

/// CRUD operations for deviceclasses
#[test]
fn resource_k8s_io_v1_deviceclass() {
    test(async |bed| {
        let expression = "device.driver == 'gpu.example.com'";
        let spec = json!({ "selectors": [{ "cel": { "expression": expression } }] });
        operations("DeviceClass", "deviceclasses", Scope::Cluster, spec).check(bed).await;
    });
}

/// CRUD operations for resourceclaims
#[test]
fn resource_k8s_io_v1_resourceclaim() {
    test(async |bed| {
        let mut claims = operations("ResourceClaim", "resourceclaims", Scope::Namespaced, claim());
        claims.subresources = &["status"];
        claims.check(bed).await;
    });
}

/// CRUD operations for resourceclaimtemplates
#[test]
fn resource_k8s_io_v1_resourceclaimtemplate() {
    test(async |bed| {
        let spec = json!({ "spec": claim() });
        operations("ResourceClaimTemplate", "resourceclaimtemplates", Scope::Namespaced, spec)
            .check(bed)
            .await;
    });
}

/// CRUD operations for resoureslices
#[test]
fn resource_k8s_io_v1_resourceslice() {
    test(async |bed| {
        let pool = json!({ "name": unique("pool"), "generation": 1, "resourceSliceCount": 3 });
        let device = json!({ "name": "device-1", "attributes": { "model": { "string": "test" } } });
        let spec =
            json!({ "driver": "gpu.example.com", "pool": pool, "allNodes": true, "devices": [device] });
        operations("ResourceSlice", "resourceslices", Scope::Cluster, spec).check(bed).await;
    });
}
