use serde_json::{Value, json};

use super::{PatchType, apply};
use crate::{error::Reason, schema};

fn pod_spec(spec: Value) -> Value {
    json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "web" }, "spec": spec })
}

/// Applies a strategic merge to a pod's spec.
#[track_caller]
fn check(name: &str, original: Value, patch: Value, expected: Value) {
    let patch = json!({ "spec": patch }).to_string();
    let ty = schema::type_of("", "v1", "Pod");
    let patched = apply(PatchType::StrategicMerge, &pod_spec(original), patch.as_bytes(), ty).unwrap();
    assert_eq!(patched["spec"], expected, "{name}");
}

#[track_caller]
fn refused(name: &str, patch_type: PatchType, patch: &str, reason: Reason) {
    let original = pod_spec(json!({ "containers": [{ "name": "a", "image": "a:1" }], "hostname": "h" }));
    let error = apply(patch_type, &original, patch.as_bytes(), schema::type_of("", "v1", "Pod")).unwrap_err();
    assert_eq!(error.reason(), reason, "{name}: {error}");
}

#[test]
fn lists_with_a_merge_key_are_merged_item_by_item() {
    let two = json!({ "containers": [{ "name": "a", "image": "a:1", "tty": true }, { "name": "b", "image": "b:1" }] });
    check(
        "one item changes, the rest stays",
        two.clone(),
        json!({ "containers": [{ "name": "b", "image": "b:2" }] }),
        json!({ "containers": [{ "name": "a", "image": "a:1", "tty": true }, { "name": "b", "image": "b:2" }] }),
    );
    check(
        "a new item is added, without its nulls",
        two.clone(),
        json!({ "containers": [{ "name": "c", "image": "c:1", "tty": null }] }),
        json!({ "containers": [
            { "name": "a", "image": "a:1", "tty": true }, { "name": "b", "image": "b:1" }, { "name": "c", "image": "c:1" }] }),
    );
    check(
        "an item is deleted",
        two.clone(),
        json!({ "containers": [{ "name": "a", "$patch": "delete" }] }),
        json!({ "containers": [{ "name": "b", "image": "b:1" }] }),
    );
    check(
        "the list is replaced",
        two.clone(),
        json!({ "containers": [{ "$patch": "replace" }, { "name": "z", "image": "z:1" }] }),
        json!({ "containers": [{ "name": "z", "image": "z:1" }] }),
    );
    check(
        "null in an item removes a field",
        two,
        json!({ "containers": [{ "name": "a", "tty": null }] }),
        json!({ "containers": [{ "name": "a", "image": "a:1" }, { "name": "b", "image": "b:1" }] }),
    );
}

#[test]
fn other_lists_are_replaced() {
    check(
        "a list without a strategy",
        json!({ "tolerations": [{ "key": "a" }, { "key": "b" }] }),
        json!({ "tolerations": [{ "key": "c" }] }),
        json!({ "tolerations": [{ "key": "c" }] }),
    );
    check(
        "a container's command",
        json!({ "containers": [{ "name": "a", "command": ["x", "y"] }] }),
        json!({ "containers": [{ "name": "a", "command": ["z"] }] }),
        json!({ "containers": [{ "name": "a", "command": ["z"] }] }),
    );
}

#[test]
fn lists_of_scalars_are_merged_as_sets_and_deleted_from() {
    let ty = schema::type_of("", "v1", "Pod");
    let original = json!({ "metadata": { "finalizers": ["a", "b"] } });
    for (name, patch, expected) in [
        ("merge", json!({ "metadata": { "finalizers": ["b", "c"] } }), json!(["a", "b", "c"])),
        ("delete", json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"] } }), json!(["b"])),
        (
            "delete, add and order",
            json!({ "metadata": {
                "$deleteFromPrimitiveList/finalizers": ["a"],
                "$setElementOrder/finalizers": ["c", "b"],
                "finalizers": ["c"],
            } }),
            json!(["c", "b"]),
        ),
    ] {
        let patched = apply(PatchType::StrategicMerge, &original, patch.to_string().as_bytes(), ty).unwrap();
        assert_eq!(patched["metadata"]["finalizers"], expected, "{name}");
    }
}

#[test]
fn maps_merge_and_directives_replace_them() {
    let original = json!({ "nodeSelector": { "a": "1", "b": "2" }, "securityContext": { "runAsUser": 1 } });
    check(
        "members are merged, null removes",
        original.clone(),
        json!({ "nodeSelector": { "a": null, "c": "3" } }),
        json!({ "nodeSelector": { "b": "2", "c": "3" }, "securityContext": { "runAsUser": 1 } }),
    );
    check(
        "replace",
        original.clone(),
        json!({ "nodeSelector": { "$patch": "replace", "c": "3" } }),
        json!({ "nodeSelector": { "c": "3" }, "securityContext": { "runAsUser": 1 } }),
    );
    check(
        "delete",
        original,
        json!({ "securityContext": { "$patch": "delete" } }),
        json!({ "nodeSelector": { "a": "1", "b": "2" }, "securityContext": {} }),
    );
}

#[test]
fn retain_keys_drops_what_is_not_named() {
    check(
        "a volume changes its source, as kubectl apply sends it",
        json!({ "volumes": [{ "name": "v", "emptyDir": { "medium": "Memory" } }] }),
        json!({ "volumes": [{ "$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": { "path": "/tmp" } }] }),
        json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/tmp" } }] }),
    );
    let ty = schema::type_of("apps", "v1", "Deployment");
    let original =
        json!({ "spec": { "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } } });
    let patch = br#"{"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}}"#;
    let patched = apply(PatchType::StrategicMerge, &original, patch, ty).unwrap();
    assert_eq!(patched["spec"]["strategy"], json!({ "type": "Recreate" }));
}

#[test]
fn the_order_asked_for_is_kept_and_the_servers_own_items_stay_in_place() {
    let list = |names: &[&str]| -> Value {
        json!({ "containers": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>() })
    };
    let order = |names: &[&str], change: &[&str]| {
        let mut patch = list(change);
        patch["$setElementOrder/containers"] = list(names)["containers"].clone();
        patch
    };
    check("turned round", list(&["a", "b"]), order(&["b", "a"], &[]), list(&["b", "a"]));
    check("one in front", list(&["a", "b"]), order(&["c", "a", "b"], &["c"]), list(&["c", "a", "b"]));
    check(
        "the server's in the middle",
        list(&["a", "x", "b"]),
        order(&["a", "b"], &[]),
        list(&["a", "x", "b"]),
    );
    check("the server's in front", list(&["x", "a"]), order(&["a", "b"], &["b"]), list(&["x", "a", "b"]));
    let missing = json!({ "$setElementOrder/containers": [{ "name": "b" }] });
    check("no list to order", json!({}), missing, json!({}));
}

#[test]
fn service_ports_are_told_apart_by_number() {
    let ty = schema::type_of("", "v1", "Service");
    let original = json!({ "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } });
    let patch = json!({ "spec": { "ports": [{ "port": 80, "targetPort": 9090 }, { "port": 443, "name": "https" }] } });
    let patched = apply(PatchType::StrategicMerge, &original, patch.to_string().as_bytes(), ty).unwrap();
    let expected =
        json!([{ "name": "http", "port": 80, "targetPort": 9090 }, { "port": 443, "name": "https" }]);
    assert_eq!(patched["spec"]["ports"], expected);
}

#[test]
fn a_field_that_is_replaced_takes_the_patch_as_it_is() {
    let ty = schema::type_of("policy", "v1", "PodDisruptionBudget");
    let original = json!({ "spec": { "selector": { "matchLabels": { "a": "1" } } } });
    let patch = br#"{"spec":{"selector":{"matchLabels":{"b":"2"}}}}"#;
    let patched = apply(PatchType::StrategicMerge, &original, patch, ty).unwrap();
    assert_eq!(patched["spec"]["selector"], json!({ "matchLabels": { "b": "2" } }));
}

#[test]
fn lists_of_inlined_structs_keep_their_merge_keys() {
    let ty = schema::type_of("", "v1", "Pod");
    let original = json!({ "spec": { "ephemeralContainers": [{ "name": "d", "env": [{ "name": "A", "value": "1" }] }] } });
    let patch = br#"{"spec":{"ephemeralContainers":[{"name":"d","env":[{"name":"B","value":"2"}]}]}}"#;
    let patched = apply(PatchType::StrategicMerge, &original, patch, ty).unwrap();
    let expected = json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }]);
    assert_eq!(patched["spec"]["ephemeralContainers"][0]["env"], expected);
}

#[test]
fn merge_patches_follow_the_examples_of_rfc_7386() {
    for (original, patch, expected) in [
        (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
        (json!({ "a": "b" }), json!({ "a": null }), json!({})),
        (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
        (json!({ "a": { "b": "c" } }), json!({ "a": { "b": "d", "c": null } }), json!({ "a": { "b": "d" } })),
        (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
        (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
        (json!({}), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
    ] {
        let patched = apply(PatchType::Merge, &original, patch.to_string().as_bytes(), None).unwrap();
        assert_eq!(patched, expected, "{original} + {patch}");
    }
}

#[test]
fn json_patches_apply_all_or_nothing() {
    let original = json!({ "a": { "b": [1, 2] } });
    let patch = br#"[{"op":"test","path":"/a/b/0","value":1},{"op":"add","path":"/a/b/-","value":3},{"op":"remove","path":"/a/b/0"}]"#;
    assert_eq!(apply(PatchType::Json, &original, patch, None).unwrap(), json!({ "a": { "b": [2, 3] } }));
}

#[test]
fn what_does_not_apply_is_refused_with_a_reason() {
    use PatchType::{Json, Merge, StrategicMerge};
    refused("not JSON", Merge, "{", Reason::BadRequest);
    refused("not an object", Merge, "[]", Reason::BadRequest);
    refused("not a list of operations", Json, "{}", Reason::BadRequest);
    refused("unknown operation", Json, r#"[{"op":"jump","path":"/a"}]"#, Reason::BadRequest);
    refused("path is missing", Json, r#"[{"op":"remove","path":"/nope"}]"#, Reason::Invalid);
    refused("test fails", Json, r#"[{"op":"test","path":"/kind","value":"Node"}]"#, Reason::Invalid);
    refused("unknown directive", StrategicMerge, r#"{"spec":{"$patch":"burn"}}"#, Reason::BadRequest);
    refused("no merge key", StrategicMerge, r#"{"spec":{"containers":[{"image":"x"}]}}"#, Reason::Invalid);
    refused(
        "not retained",
        StrategicMerge,
        r#"{"spec":{"$retainKeys":["hostname"],"hostname":"h","subdomain":"s"}}"#,
        Reason::BadRequest,
    );
    refused(
        "order without the item",
        StrategicMerge,
        r#"{"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"b"}]}}"#,
        Reason::BadRequest,
    );
}

#[test]
fn fields_that_stand_twice_are_named() {
    let patch = br#"{"spec":{"a":1,"containers":[{"name":"x"},{"name":"y","name":"z"}],"a":{"b":1}}}"#;
    assert_eq!(
        super::duplicate_fields(patch),
        ["duplicate field \"spec.containers[1].name\"", "duplicate field \"spec.a\""]
    );
    assert!(super::duplicate_fields(br#"{"a":{"b":1},"c":{"b":1}}"#).is_empty());
    assert!(super::duplicate_fields(br#"{"a":1,"a":2"#).is_empty(), "no JSON");
}

#[test]
fn copies_cannot_blow_an_object_up() {
    let double = r#"{"op":"copy","from":"/a","path":"/a/-"}"#;
    let patch = format!("[{}]", vec![double; 60].join(","));
    let error =
        apply(PatchType::Json, &json!({ "a": ["some text to copy"] }), patch.as_bytes(), None).unwrap_err();
    assert_eq!(error.reason(), Reason::Invalid);
    let many = format!("[{}]", vec![r#"{"op":"test","path":"","value":{}}"#; 10_001].join(","));
    let error = apply(PatchType::Json, &json!({}), many.as_bytes(), None).unwrap_err();
    assert_eq!(error.code(), 413);
}

/// Patches made of directives in any mixture: applied or refused, never a panic, and nothing of them is left.
#[test]
fn arbitrary_strategic_patches_leave_no_directive() {
    let ty = schema::type_of("", "v1", "Pod");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let values = [
        json!(null),
        json!("merge"),
        json!("delete"),
        json!("replace"),
        json!(["a", "b"]),
        json!([{ "name": "a" }, { "name": "b", "image": "i" }]),
        json!([{ "name": "a", "$patch": "delete" }, { "$patch": "replace" }]),
        json!({ "name": "a", "$patch": "replace" }),
        json!({ "a": null, "$retainKeys": ["a"] }),
        json!([[1], {}]),
        json!(1),
    ];
    let names = [
        "containers",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/containers",
        "$patch",
        "$retainKeys",
        "nodeSelector",
        "volumes",
        "$setElementOrder/volumes",
        "tolerations",
        "hostname",
    ];
    let original = pod_spec(json!({
        "containers": [{ "name": "b", "image": "b" }, { "name": "a" }], "volumes": [{ "name": "a", "emptyDir": {} }],
        "nodeSelector": { "a": "b" }, "hostname": "h",
    }));
    let mut applied = 0;
    for _ in 0..20_000 {
        let members =
            (0..=next(4)).map(|_| (names[next(names.len())].to_owned(), values[next(values.len())].clone()));
        let patch = json!({ "spec": members.collect::<serde_json::Map<_, _>>() }).to_string();
        if let Ok(patched) = apply(PatchType::StrategicMerge, &original, patch.as_bytes(), ty) {
            applied += 1;
            assert!(!patched.to_string().contains("\"$"), "{patch} leaves {patched}");
        }
    }
    assert!(applied > 1000, "{applied} applied");
}
