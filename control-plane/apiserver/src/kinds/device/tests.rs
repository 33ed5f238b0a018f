use serde_json::{Value, json};

use super::*;
use crate::kinds::{
    self,
    tests::{created, kind, refused, update_refused, with},
};

const CLASS: &str = "resource.k8s.io/deviceclasses";
const CLAIM: &str = "resource.k8s.io/resourceclaims";
const TEMPLATE: &str = "resource.k8s.io/resourceclaimtemplates";
const SLICE: &str = "resource.k8s.io/resourceslices";

fn claim() -> Value {
    json!({
        "kind": "ResourceClaim", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": "gpu", "namespace": "a" },
        "spec": { "devices": { "requests": [{ "name": "gpu", "exactly": { "deviceClassName": "gpu.example.com" } }] } },
    })
}

fn slice() -> Value {
    json!({
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1", "metadata": { "name": "node1-gpu" },
        "spec": {
            "driver": "gpu.example.com", "nodeName": "node1",
            "pool": { "name": "node1", "generation": 1, "resourceSliceCount": 1 },
            "devices": [{ "name": "gpu-0", "attributes": { "model": { "string": "x" } } }],
        },
    })
}

#[test]
fn a_request_is_for_one_device_by_default() {
    let made = created(CLAIM, claim());
    let exactly = &made["spec"]["devices"]["requests"][0]["exactly"];
    assert_eq!((&exactly["allocationMode"], &exactly["count"]), (&json!("ExactCount"), &json!(1)));
    let all = with(claim(), "/spec/devices/requests/0/exactly/allocationMode", json!("All"));
    assert_eq!(created(CLAIM, all)["spec"]["devices"]["requests"][0]["exactly"].get("count"), None);
}

#[test]
fn bad_claims_are_told_where() {
    let request = |value: Value| with(claim(), "/spec/devices/requests/0", value);
    let exactly = |field: &str, value: Value| {
        with(claim(), &format!("/spec/devices/requests/0/exactly/{field}"), value)
    };
    refused(CLAIM, claim(), &[]);
    refused(
        CLAIM,
        request(json!({ "name": "gpu" })),
        &[
            "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
        ],
    );
    refused(
        CLAIM,
        exactly("deviceClassName", json!("")),
        &["spec.devices.requests[0].exactly.deviceClassName: Required value"],
    );
    refused(
        CLAIM,
        exactly("count", json!(-1)),
        &["spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero"],
    );
    refused(
        CLAIM,
        exactly("allocationMode", json!("Some")),
        &[
            "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \
             \"ExactCount\"",
        ],
    );
    refused(
        CLAIM,
        exactly("selectors", json!([{}])),
        &["spec.devices.requests[0].exactly.selectors[0].cel: Required value"],
    );
    refused(
        CLAIM,
        with(claim(), "/spec/devices/constraints", json!([{ "requests": ["cpu"] }])),
        &[
            "spec.devices.constraints[0].requests[0]: Invalid value: \"cpu\": must be the name of a request in the claim or \
             the name of a request and a subrequest separated by '/'",
            "spec.devices.constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is \
             required",
        ],
    );
    refused(
        CLAIM,
        with(claim(), "/spec/devices/config", json!([{ "opaque": { "driver": "", "parameters": 7 } }])),
        &[
            "spec.devices.config[0].opaque.driver: Required value",
            "spec.devices.config[0].opaque.parameters: Invalid value: \"<value omitted>\": parameters must be a valid JSON \
             object",
        ],
    );
    let two = json!({ "name": "gpu", "firstAvailable": [
        { "name": "big", "deviceClassName": "big" }, { "name": "big", "deviceClassName": "small" } ] });
    refused(
        CLAIM,
        request(two),
        &["spec.devices.requests[0].firstAvailable[1].name: Duplicate value: \"big\""],
    );
}

#[test]
fn selectors_that_do_not_compile_are_told_where() {
    let selecting = |expression: &str| json!([{ "cel": { "expression": "true" } }, { "cel": { "expression": expression } }]);
    let exactly = "spec.devices.requests[0].exactly.selectors[1].cel.expression: Invalid value: ";
    let errors = |name: &str, object: Value| -> Vec<String> {
        let object = created(name, object);
        kinds::validate_create(kind(name), &object).iter().map(ToString::to_string).collect()
    };
    let list = "/spec/devices/requests/0/exactly/selectors";
    for (expression, message) in [
        ("device.driver ==", "\"device.driver ==\": compilation failed: "),
        ("device.drivr == 'x'", "\"device.drivr == 'x'\": compilation failed: undefined field 'drivr'"),
        ("ip('10.0.0.1') == 1", "\"ip('10.0.0.1') == 1\": compilation failed: undeclared reference to 'ip'"),
        ("''.matches('a{1001}')", "\"''.matches('a{1001}')\": compilation failed: error parsing regexp"),
    ] {
        let told = errors(CLAIM, with(claim(), list, selecting(expression)));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("{exactly}{message}")), "{told:?}");
    }
    let alternatives = json!([{ "name": "big", "deviceClassName": "big", "selectors": selecting("1 +") }]);
    let request = json!({ "name": "gpu", "firstAvailable": alternatives });
    let spec = with(claim(), "/spec/devices/requests/0", request)["spec"].clone();
    let template = json!({ "metadata": { "name": "gpu", "namespace": "a" }, "spec": { "spec": spec } });
    let told = errors(TEMPLATE, template);
    let path = "spec.spec.devices.requests[0].firstAvailable[0].selectors[1].cel.expression: Invalid value: ";
    assert!(told[0].starts_with(path), "{told:?}");
    // What takes too much together is told at the first that is too much.
    let large =
        |number: usize| json!({ "cel": { "expression": format!("''.matches('[^a]{{200}}{number}')") } });
    let told = errors(CLAIM, with(claim(), list, (0..12).map(large).collect()));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("the patterns of all selectors take more than"), "{told:?}");
    // What is there already may be touched: its finalizers above all.
    let broken = with(claim(), list, selecting("1 +"));
    update_refused(CLAIM, broken.clone(), with(broken, "/metadata/labels", json!({ "a": "b" })), &[]);
    let class = |expression: &str| json!({ "metadata": { "name": "gpu" }, "spec": { "selectors": selecting(expression) } });
    update_refused(CLASS, class("1 +"), with(class("1 +"), "/metadata/labels", json!({ "a": "b" })), &[]);
    let path = "spec.selectors[1].cel.expression: Invalid value: ";
    assert!(errors(CLASS, class("1 +"))[0].starts_with(path));
    update_refused(CLASS, class("true"), class("1 +"), &[path]);
}

#[test]
fn specs_of_claims_and_templates_stand() {
    let changed = with(claim(), "/spec/devices/requests/0/exactly/count", json!(2));
    update_refused(CLAIM, claim(), changed, &["spec: Invalid value"]);
    let template = json!({
        "metadata": { "name": "gpu", "namespace": "a" },
        "spec": { "metadata": { "labels": { "a": "b" } }, "spec": claim()["spec"] },
    });
    refused(TEMPLATE, template.clone(), &[]);
    let wrong = with(template.clone(), "/spec/spec/devices/requests/0/name", json!("GPU"));
    let errors = kinds::validate_create(kind(TEMPLATE), &created(TEMPLATE, wrong));
    assert!(errors[0].to_string().starts_with("spec.spec.devices.requests[0].name: Invalid value: \"GPU\""));
    update_refused(
        TEMPLATE,
        template.clone(),
        with(template, "/spec/metadata/labels/a", json!("c")),
        &["spec: Invalid value"],
    );
}

#[test]
fn an_allocation_stands_and_consumers_need_one() {
    let status = |status: Value| with(claim(), "/status", status);
    let check = |new: Value, old: Value| -> Vec<String> {
        kinds::validate_status(kind(CLAIM), &new, &old).iter().map(ToString::to_string).collect()
    };
    let pod = json!([{ "resource": "pods", "name": "web", "uid": "1" }]);
    let result = |device: &str| json!({ "request": "gpu", "driver": "gpu.example.com", "pool": "node1", "device": device });
    let allocated = |device: &str| json!({ "devices": { "results": [result(device)] } });
    assert_eq!(
        check(status(json!({ "reservedFor": pod })), claim()),
        ["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]
    );
    let one = status(json!({ "allocation": allocated("gpu-0"), "reservedFor": pod }));
    assert_eq!(check(one.clone(), claim()), [""; 0]);
    assert_eq!(claim::state(&one), "allocated,reserved");
    assert_eq!(claim::state(&claim()), "pending");
    let other = check(status(json!({ "allocation": allocated("gpu-1") })), one.clone());
    assert!(other[0].starts_with("status.allocation: Invalid value"), "{other:?}");
    assert_eq!(check(claim(), one), [""; 0], "it may be given back");
}

#[test]
fn bad_slices_are_told_where() {
    refused(SLICE, slice(), &[]);
    refused(
        SLICE,
        with(slice(), "/spec/allNodes", json!(true)),
        &[
            "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
             `perDeviceNodeSelection` is required, but multiple fields are set",
        ],
    );
    refused(
        SLICE,
        with(slice(), "/spec/pool", json!({ "name": "node1", "generation": -1, "resourceSliceCount": 0 })),
        &[
            "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
            "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero",
        ],
    );
    refused(
        SLICE,
        with(
            slice(),
            "/spec/devices/0/attributes",
            json!({ "example.com/model": { "int": 1, "bool": true } }),
        ),
        &[
            "spec.devices[0].attributes[example.com/model]: Invalid value: {\"bool\":true,\"int\":1}: exactly one value \
             must be specified",
        ],
    );
    refused(
        SLICE,
        with(slice(), "/spec/devices/0/nodeName", json!("node1")),
        &[
            "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if \
             `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
        ],
    );
    let many: Vec<Value> = (0..129).map(|index| json!({ "name": format!("gpu-{index}") })).collect();
    refused(
        SLICE,
        with(slice(), "/spec/devices", many.into()),
        &["spec.devices: Too many: 129: must have at most 128 items"],
    );
    update_refused(
        SLICE,
        slice(),
        with(with(slice(), "/spec/driver", json!("other.example.com")), "/spec/nodeName", json!("node2")),
        &["spec.driver: Invalid value", "spec.nodeName: Invalid value"],
    );
}

#[test]
fn classes_select_and_configure() {
    let class = json!({
        "metadata": { "name": "gpu.example.com" },
        "spec": {
            "selectors": [{ "cel": { "expression": "device.driver == 'gpu.example.com'" } }],
            "config": [{ "opaque": { "driver": "gpu.example.com", "parameters": {} } }],
            "extendedResourceName": "example.com/gpu",
        },
    });
    refused(CLASS, class.clone(), &[]);
    refused(
        CLASS,
        with(class, "/spec/extendedResourceName", json!("gpu")),
        &["spec.extendedResourceName: Invalid value: \"gpu\": must be a valid extended resource name"],
    );
    assert_eq!(created(CLASS, json!({ "spec": {} }))["metadata"]["generation"], 1);
}
