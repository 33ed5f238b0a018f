//! Worked examples of every sort of list and map, and laws that hold for all objects.

use serde_json::{Value, json};

use super::*;
use crate::schema::{self, FieldValidation, Format, Type};

const NOW: &str = "2026-01-01T00:00:10Z";

fn type_of(kind: &str, api_version: &str) -> &'static Type {
    schema::type_of_object(api_version, kind).expect("a type")
}

fn pod_type() -> &'static Type {
    type_of("Pod", "v1")
}

#[track_caller]
fn canonical(object: &Value) -> Value {
    let text = |field: &str| object[field].as_str().expect("its type").to_owned();
    let ty = type_of(&text("kind"), &text("apiVersion"));
    schema::canonicalize(ty, object, FieldValidation::Strict).expect("an object").object
}

#[track_caller]
fn set(fields: &Value) -> FieldSet {
    serde_json::from_value(fields.clone()).expect("a set")
}

fn text(set: &FieldSet) -> String {
    let mut out = Vec::new();
    set.write(&mut out);
    String::from_utf8(out).expect("text")
}

fn write<'a>(name: &'a str, api_version: &'a str) -> Write<'a> {
    let by = Manager { name, api_version, subresource: "", now: NOW };
    Write { by, reach: Reach::AllBut(&[&["status"]]), convert: &|_, _| None }
}

/// An object and its owners, as they go through writes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cluster {
    object: Option<Value>,
    managed: ManagedFields,
}

impl Cluster {
    fn try_apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<(), crate::Error> {
        let api_version = config["apiVersion"].as_str().expect("a version");
        let ty = type_of(config["kind"].as_str().expect("a kind"), api_version);
        let config =
            schema::decode_applied(ty, config.to_string().as_bytes(), Format::Json, FieldValidation::Strict)?;
        let managed = self.managed.clone();
        let applied =
            write(manager, api_version).apply(self.object.as_ref(), &config.object, managed, force)?;
        self.object = Some(canonical(&applied.object));
        self.managed = applied.managed;
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, manager: &str, config: &Value) {
        self.try_apply(manager, config, false).expect("applied");
    }

    #[track_caller]
    fn update(&mut self, manager: &str, new: &Value) {
        let new = canonical(new);
        let api_version = new["apiVersion"].as_str().expect("a version");
        let empty = empty(type_of(new["kind"].as_str().expect("a kind"), api_version));
        let live = self.object.as_ref().unwrap_or(&empty);
        self.managed = write(manager, api_version).update(live, &new, std::mem::take(&mut self.managed));
        self.object = Some(new);
    }

    fn owned(&self, manager: &str) -> String {
        let entries = self.managed.entries().iter();
        entries.filter(|entry| entry.manager == manager).map(|entry| text(entry.fields())).collect()
    }
}

fn config_map(data: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data })
}

fn pod(spec: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": spec })
}

#[test]
fn field_sets_survive_the_wire_in_canonical_order() {
    let cases = [
        r#"{}"#,
        r#"{"f:spec":{"f:replicas":{}}}"#,
        r#"{"f:metadata":{"f:labels":{".":{},"f:app":{},"f:x/y\"z":{}}}}"#,
        r#"{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}},"k:{\"containerPort\":443,\"protocol\":\"TCP\"}":{}}}"#,
        r#"{"f:a":{"v:\"x\"":{},"v:\"y\"":{}},"f:b":{"i:2":{},"i:10":{}}}"#,
    ];
    for case in cases {
        let read: FieldSet = serde_json::from_str(case).expect("a set");
        assert_eq!(text(&read), case);
    }
    let unordered = r#"{"f:b":{},"f:a":{"f:z":{},".":{}},"z:future":{"f:x":{}},"f:b":{"f:c":{}}}"#;
    let read: FieldSet = serde_json::from_str(unordered).expect("a set");
    assert_eq!(text(&read), r#"{"f:a":{".":{},"f:z":{}},"f:b":{".":{},"f:c":{}}}"#);
    for hostile in [
        r#"{"x":{}}"#,
        r#"{"k:{}":{}}"#,
        r#"{"k:x":{}}"#,
        r#"{"v:":{}}"#,
        r#"{"i:x":{}}"#,
        r#"{"f:a":1}"#,
        "[]",
        "1",
    ] {
        assert!(serde_json::from_str::<FieldSet>(hostile).is_err(), "{hostile}");
    }
    let deep = format!("{}{}{}", r#"{"f:a":"#.repeat(1000), "{}", "}".repeat(1000));
    assert!(serde_json::from_str::<FieldSet>(&deep).is_err(), "nesting is bounded");
    let many: String = (0..100_001).map(|at| format!(r#""f:{at}":{{}},"#)).collect();
    let many = format!("{{{}}}", many.trim_end_matches(','));
    assert!(serde_json::from_str::<FieldSet>(&many).is_err(), "so is the number of fields");
}

#[test]
fn sets_are_united_and_subtracted_path_by_path() {
    let one = set(&json!({ "f:a": { ".": {}, "f:b": {}, "f:c": {} }, "f:d": {} }));
    let two = set(&json!({ "f:a": { "f:b": {} }, "f:e": { "f:f": {} } }));
    assert_eq!(
        text(&one.clone().union(&two)),
        r#"{"f:a":{".":{},"f:b":{},"f:c":{}},"f:d":{},"f:e":{"f:f":{}}}"#
    );
    assert_eq!(text(&one.clone().difference(&two)), r#"{"f:a":{".":{},"f:c":{}},"f:d":{}}"#);
    assert_eq!(text(&one.intersection(&two)), r#"{"f:a":{"f:b":{}}}"#);
    let parent = set(&json!({ "f:a": {} }));
    assert_eq!(text(&one.clone().difference(&parent)), r#"{"f:a":{"f:b":{},"f:c":{}},"f:d":{}}"#);
    assert_eq!(one.paths().len(), 4);
    assert!(one.paths().iter().all(|path| one.has(path)));
    assert!(!two.has(&[PathElement::field("a")]));
}

#[test]
fn a_comparison_knows_each_sort_of_list_and_map() {
    #[track_caller]
    fn check(what: &str, old: &Value, new: &Value, changed: &str, removed: &str) {
        let (old, new) = (canonical(&pod(old)), canonical(&pod(new)));
        let found = compare(pod_type(), &old, &new);
        assert_eq!(
            (text(&found.changed).as_str(), text(&found.removed).as_str()),
            (changed, removed),
            "{what}"
        );
    }
    let spec = |more: Value| {
        let mut spec = json!({ "containers": [{ "name": "a" }] });
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        spec
    };
    check("nothing", &spec(json!({})), &spec(json!({})), "{}", "{}");
    check(
        "a scalar",
        &spec(json!({ "nodeName": "a" })),
        &spec(json!({ "nodeName": "b" })),
        r#"{"f:spec":{"f:nodeName":{}}}"#,
        "{}",
    );
    check(
        "a new scalar",
        &spec(json!({})),
        &spec(json!({ "nodeName": "b" })),
        r#"{"f:spec":{"f:nodeName":{}}}"#,
        "{}",
    );
    check(
        "one less",
        &spec(json!({ "nodeName": "a" })),
        &spec(json!({})),
        "{}",
        r#"{"f:spec":{"f:nodeName":{}}}"#,
    );
    check(
        "an atomic map",
        &spec(json!({ "nodeSelector": { "a": "1", "b": "1" } })),
        &spec(json!({ "nodeSelector": { "a": "2", "b": "1" } })),
        r#"{"f:spec":{"f:nodeSelector":{}}}"#,
        "{}",
    );
    check(
        "an atomic list",
        &spec(json!({ "tolerations": [{ "key": "a" }] })),
        &spec(json!({ "tolerations": [{ "key": "b" }] })),
        r#"{"f:spec":{"f:tolerations":{}}}"#,
        "{}",
    );
    check(
        "a list by key: one changes, one goes, one comes; order does not matter",
        &json!({ "containers": [{ "name": "a", "image": "1" }, { "name": "b" }, { "name": "d" }] }),
        &json!({ "containers": [{ "name": "d" }, { "name": "c" }, { "name": "a", "image": "2" }] }),
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:image":{}},"k:{\"name\":\"c\"}":{".":{},"f:name":{},"f:resources":{}}}}}"#,
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"b\"}":{".":{},"f:name":{},"f:resources":{}}}}}"#,
    );
    check(
        "keys with defaults",
        &json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80 }] }] }),
        &json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "protocol": "UDP" }] }] }),
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"UDP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}}}}}}"#,
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}"#,
    );
    check(
        "several with one key",
        &json!({ "containers": [{ "name": "a", "env": [{ "name": "x", "value": "1" }, { "name": "x", "value": "2" }] }] }),
        &json!({ "containers": [{ "name": "a", "env": [{ "name": "x", "value": "1" }, { "name": "x", "value": "3" }] }] }),
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{"f:env":{"k:{\"name\":\"x\"}":{}}}}}}"#,
        "{}",
    );
    let meta = |labels: Value, finalizers: Value| {
        let mut pod = pod(&spec(json!({})));
        pod["metadata"]["labels"] = labels;
        pod["metadata"]["finalizers"] = finalizers;
        canonical(&pod)
    };
    let old = meta(json!({}), json!(["a/x", "a/y"]));
    let found = compare(pod_type(), &old, &meta(json!({ "app": "web" }), json!(["a/y", "a/z"])));
    let expected = r#"{"f:metadata":{"f:finalizers":{"v:\"a/z\"":{}},"f:labels":{".":{},"f:app":{}}}}"#;
    assert_eq!(text(&found.changed), expected, "a set, and a map that is new");
    assert_eq!(text(&found.removed), r#"{"f:metadata":{"f:finalizers":{"v:\"a/x\"":{}}}}"#);
}

#[test]
fn who_creates_an_object_owns_it_as_upstream_writes_it() {
    let mut cluster = Cluster::default();
    let spec = json!({ "containers": [{ "name": "main", "image": "demo", "ports": [{ "containerPort": 80 }] }], "dnsPolicy": "ClusterFirst" });
    let mut object = pod(&spec);
    object["metadata"]["labels"] = json!({ "app": "web" });
    object["metadata"]["uid"] = json!("1");
    object["status"] = json!({ "phase": "Pending" });
    cluster.update("kubectl-create", &object);
    assert_eq!(
        cluster.owned("kubectl-create"),
        concat!(
            r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"main\"}":"#,
            r#"{".":{},"f:image":{},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":"#,
            r#"{".":{},"f:containerPort":{}}},"f:resources":{}}},"f:dnsPolicy":{}}}"#
        )
    );
}

#[test]
fn an_update_takes_what_it_changes_and_gives_up_what_it_removes() {
    let mut cluster = Cluster::default();
    cluster.update("one", &config_map(&json!({ "a": "1", "b": "1", "c": "1" })));
    cluster.update("two", &config_map(&json!({ "a": "1", "b": "2" })));
    assert_eq!(cluster.owned("one"), r#"{"f:data":{".":{},"f:a":{}}}"#);
    assert_eq!(cluster.owned("two"), r#"{"f:data":{"f:b":{}}}"#);
    let before = cluster.clone();
    cluster.update("three", &config_map(&json!({ "a": "1", "b": "2" })));
    assert_eq!(cluster, before, "who changes nothing owns nothing");
    cluster.update("two", &config_map(&json!({})));
    assert!(cluster.managed.is_empty());
}

#[test]
fn an_apply_that_would_take_a_field_is_refused_in_upstreams_words() {
    let deployment = |replicas: i64| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
            "spec": {
                "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "main", "image": "demo" }] } },
            },
        })
    };
    let mut cluster = Cluster::default();
    cluster.update("kubectl-client-side-apply", &deployment(1));
    let error = cluster.try_apply("me", &deployment(2), false).expect_err("a conflict");
    assert_eq!(
        error.message(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    assert_eq!(
        error.to_status()["details"]["causes"],
        json!([{
            "reason": "FieldManagerConflict", "field": ".spec.replicas",
            "message": "conflict with \"kubectl-client-side-apply\" using apps/v1",
        }])
    );
    assert_eq!((error.code(), &error.to_status()["reason"]), (409, &json!("Conflict")));
    let mut other = deployment(3);
    other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
    let error = cluster.try_apply("me", &other, false).expect_err("two conflicts");
    assert_eq!(
        error.message(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.replicas\n\
         - .spec.template.spec.containers[name=\"main\"].image"
    );
    cluster.try_apply("me", &deployment(2), true).expect("forced");
    assert!(!cluster.owned("kubectl-client-side-apply").contains("replicas"));
    assert!(cluster.owned("me").contains("replicas"));
    cluster.apply("third", &deployment(2));
    let error = cluster.try_apply("third", &deployment(3), false).expect_err("shared");
    assert!(error.message().ends_with("conflict with \"me\": .spec.replicas"), "{}", error.message());
}

#[test]
fn what_is_no_longer_applied_goes_unless_somebody_else_owns_it() {
    let mut cluster = Cluster::default();
    cluster.apply("one", &config_map(&json!({ "a": "1", "b": "1", "c": "1" })));
    cluster.apply("two", &config_map(&json!({ "b": "1" })));
    cluster.update("three", &config_map(&json!({ "a": "1", "b": "1", "c": "1", "d": "1" })));
    cluster.apply("one", &config_map(&json!({ "a": "1" })));
    let object = cluster.object.clone().expect("there");
    assert_eq!(object["data"], json!({ "a": "1", "b": "1", "d": "1" }));
    assert_eq!(cluster.owned("one"), r#"{"f:data":{"f:a":{}}}"#);
    cluster.apply("one", &json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" } }));
    assert_eq!(cluster.object.expect("there")["data"], json!({ "b": "1", "d": "1" }));
}

#[test]
fn items_are_owned_merged_and_removed_by_key() {
    let containers = |list: Value| pod(&json!({ "containers": list }));
    let mut cluster = Cluster::default();
    cluster.apply("app", &containers(json!([{ "name": "main", "image": "1", "args": ["x"] }])));
    cluster.apply("mesh", &containers(json!([{ "name": "proxy", "image": "p" }, { "name": "main", "env": [{ "name": "P", "value": "1" }] }])));
    let names = |cluster: &Cluster| -> Vec<String> {
        let list = cluster.object.as_ref().expect("there")["spec"]["containers"].clone();
        list.as_array()
            .expect("a list")
            .iter()
            .map(|item| item["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(&cluster), ["proxy", "main"], "shared items come in the order of the configuration");
    let main = cluster.object.as_ref().expect("there")["spec"]["containers"][1].clone();
    assert_eq!(
        main,
        json!({ "name": "main", "image": "1", "args": ["x"], "env": [{ "name": "P", "value": "1" }], "resources": {} })
    );
    cluster.apply("app", &containers(json!([{ "name": "main", "image": "2" }])));
    assert!(cluster.object.as_ref().expect("there")["spec"]["containers"][1].get("args").is_none());
    cluster.apply("mesh", &containers(json!([])));
    assert_eq!(names(&cluster), ["main"], "an item that only the other applied is gone");
    assert_eq!(cluster.object.as_ref().expect("there")["spec"]["containers"][0]["env"], json!(null));
    let error = cluster
        .try_apply("app", &containers(json!([{ "name": "main", "imag": "2" }])), true)
        .expect_err("no such field");
    assert_eq!(
        error.message(),
        "failed to create typed patch object (/a; v1, Kind=Pod): .spec.containers[0].imag: field not declared in schema"
    );
}

#[test]
fn live_items_keep_their_places_among_those_that_are_applied() {
    let finalizers = |names: &[&str]| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a", "finalizers": names } });
    #[track_caller]
    fn check(live: &Value, config: &Value, expected: &[&str]) {
        let mut cluster = Cluster::default();
        cluster.update("one", live);
        cluster.apply("two", config);
        assert_eq!(cluster.object.expect("there")["metadata"]["finalizers"], json!(expected));
    }
    check(&finalizers(&["a/1", "a/2"]), &finalizers(&["a/3"]), &["a/1", "a/2", "a/3"]);
    check(&finalizers(&["a/1", "a/2", "a/3"]), &finalizers(&["a/3", "a/1"]), &["a/2", "a/3", "a/1"]);
    check(&finalizers(&["a/1", "a/2"]), &finalizers(&["a/0", "a/2", "a/9"]), &["a/1", "a/0", "a/2", "a/9"]);
}

#[test]
fn zero_values_and_quantities_are_applied_as_what_they_mean() {
    let config = |cpu: &str| {
        pod(
            &json!({ "containers": [{ "name": "a", "resources": { "limits": { "cpu": cpu } } }], "hostNetwork": false }),
        )
    };
    let mut cluster = Cluster::default();
    cluster.apply("one", &config("1000m"));
    assert!(cluster.owned("one").contains("f:hostNetwork"), "false is owned too");
    let before = cluster.clone();
    cluster.apply("two", &config("1"));
    assert_eq!(cluster.object, before.object, "the same amount in other words");
    cluster.apply("one", &config("1"));
}

#[test]
fn objects_without_owners_belong_to_before_first_apply() {
    let mut cluster =
        Cluster { object: Some(canonical(&config_map(&json!({ "a": "1" })))), ..Cluster::default() };
    let error = cluster.try_apply("me", &config_map(&json!({ "a": "2" })), false).expect_err("a conflict");
    assert!(
        error.message().contains("conflict with \"before-first-apply\" using v1: .data.a"),
        "{}",
        error.message()
    );
    cluster.apply("me", &config_map(&json!({ "a": "1", "b": "1" })));
    assert_eq!(cluster.owned("before-first-apply"), r#"{"f:data":{".":{},"f:a":{}}}"#);
}

#[test]
fn kubectl_takes_over_what_client_side_apply_set() {
    let remembered = |data: &Value| {
        let mut object = config_map(data);
        let text = object.to_string();
        object["metadata"]["annotations"] =
            json!({ "kubectl.kubernetes.io/last-applied-configuration": text });
        object
    };
    let mut cluster = Cluster::default();
    cluster.update("kubectl-client-side-apply", &remembered(&json!({ "a": "1", "b": "1" })));
    let error = cluster.try_apply("other", &config_map(&json!({ "a": "2" })), false).expect_err("a conflict");
    assert!(error.message().starts_with("Apply failed with 1 conflict"), "{}", error.message());
    cluster.apply("kubectl", &config_map(&json!({ "a": "2" })));
    let object = cluster.object.clone().expect("there");
    assert_eq!(object["data"]["a"], "2");
    let annotation = &object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    assert!(annotation.as_str().expect("text").contains(r#""data":{"a":"2"}"#), "{annotation}");
}

#[test]
fn old_entries_of_updates_become_one() {
    let mut cluster = Cluster::default();
    for number in 0..15 {
        let mut data = cluster.object.as_ref().map_or(json!({}), |object| object["data"].clone());
        data[format!("k{number}")] = json!("x");
        cluster.update(&format!("m{number:02}"), &config_map(&data));
    }
    let managers: Vec<&str> = cluster.managed.entries().iter().map(|entry| entry.manager.as_str()).collect();
    assert_eq!(managers.len(), 10);
    assert!(managers.contains(&"ancient-changes"), "{managers:?}");
    let all =
        cluster.managed.entries().iter().fold(FieldSet::default(), |all, entry| all.union(entry.fields()));
    assert_eq!(all.paths().len(), 16, "no field lost its owner");
}

#[test]
fn lists_of_owners_are_read_strictly_and_reset_on_request() {
    let entry = json!({ "manager": "a", "operation": "Update", "apiVersion": "v1", "time": NOW, "fieldsType": "FieldsV1", "fieldsV1": { "f:data": {} } });
    let list = json!([entry]);
    assert_eq!(ManagedFields::decode(&list).expect("a list").to_value(), list);
    for (field, value) in [
        ("operation", json!("Delete")),
        ("apiVersion", json!("")),
        ("fieldsType", json!("")),
        ("fieldsV1", json!({ "x": {} })),
    ] {
        let mut broken = list.clone();
        broken[0][field] = value;
        assert!(ManagedFields::decode(&broken).is_err(), "{field}");
    }
    for reset in [json!([]), json!([{}]), json!([{ "manager": "", "fieldsV1": null }])] {
        assert!(ManagedFields::is_reset(&reset), "{reset}");
    }
    for other in [json!(null), list, json!([{}, {}])] {
        assert!(!ManagedFields::is_reset(&other), "{other}");
    }
}

#[test]
fn names_of_managers_are_checked_and_made() {
    assert_eq!(manager_of_user_agent("kubectl/v1.36 (linux/amd64)"), "kubectl");
    assert_eq!(manager_of_user_agent("a\u{7}b"), "ab");
    assert_eq!(manager_of_user_agent(&"x".repeat(500)).len(), 128);
    assert!(validate_manager("me").is_ok());
    assert!(validate_manager(&"x".repeat(129)).is_err());
    assert!(validate_manager("a\nb").is_err());
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's multiplier; the high bits are good enough.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn chance(&mut self) -> bool {
        self.below(2) == 0
    }

    fn object(&mut self) -> Value {
        // Something is always owned: who owns nothing has never applied.
        let mut object = pod(&json!({ "containers": [], "nodeName": "n" }));
        if self.chance() {
            object["spec"]["nodeSelector"] = json!({ "x": self.below(2).to_string() });
        }
        if self.chance() {
            object["metadata"]["labels"] = json!({});
            for label in 0..self.below(3) {
                object["metadata"]["labels"][format!("l{label}")] = json!("same");
            }
        }
        for container in 0..3 {
            if self.chance() {
                let mut item = json!({ "name": format!("c{container}") });
                if self.chance() {
                    item["image"] = json!("same");
                }
                if self.chance() {
                    item["ports"] = json!([{ "containerPort": 80 + self.below(2) }]);
                }
                if self.chance() {
                    item["args"] = json!(["a"]);
                }
                object["spec"]["containers"].as_array_mut().expect("a list").push(item);
            }
        }
        object
    }

    fn subset(&mut self, value: &Value, must: bool) -> Option<Value> {
        if !must && self.below(3) == 0 {
            return None;
        }
        Some(match value {
            Value::Object(members) => {
                let kept = members.iter().filter_map(|(name, value)| {
                    let must = matches!(
                        name.as_str(),
                        "name" | "nodeName" | "containerPort" | "apiVersion" | "kind" | "metadata" | "spec"
                    );
                    // What is one value is there as a whole, or not at all.
                    let value = if name == "nodeSelector" {
                        self.chance().then(|| value.clone())
                    } else {
                        self.subset(value, must)
                    };
                    Some((name.clone(), value?))
                });
                Value::Object(kept.collect())
            }
            Value::Array(items) if items.iter().all(Value::is_object) => {
                Value::Array(items.iter().filter_map(|item| self.subset(item, false)).collect())
            }
            other => other.clone(),
        })
    }
}

#[test]
fn applying_twice_changes_nothing_and_a_subset_removes_the_difference() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let config = random.object();
        let mut cluster = Cluster::default();
        cluster.apply("me", &config);
        let once = cluster.clone();
        cluster.apply("me", &config);
        assert_eq!(cluster, once, "seed {seed}: {config}");
        let subset = random.subset(&config, true).expect("the root");
        cluster.apply("me", &subset);
        let mut alone = Cluster::default();
        alone.apply("me", &subset);
        let meaning = |cluster: &Cluster| {
            let mut object = cluster.object.clone().expect("there");
            // Whether a list or map is empty or not there is no difference to anybody.
            for place in ["/metadata/labels", "/spec/containers"] {
                if let Some(part) = object.pointer_mut(place)
                    && (*part == json!({}) || *part == json!([]))
                {
                    *part = Value::Null;
                }
            }
            canonical(&object)
        };
        assert_eq!(meaning(&cluster), meaning(&alone), "seed {seed}: {config} then {subset}");
        assert_eq!(cluster.managed, alone.managed, "seed {seed}");
    }
}

#[test]
fn a_second_manager_loses_nothing_when_the_first_lets_go() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let (one, two) = (random.object(), random.object());
        let mut cluster = Cluster::default();
        cluster.apply("one", &one);
        if cluster.try_apply("two", &two, true).is_err() {
            continue;
        }
        let owned = cluster.managed.clone();
        cluster.apply("one", &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" } }));
        let fields = fields_of(pod_type(), cluster.object.as_ref().expect("there"));
        let others = owned.entries().iter().filter(|entry| entry.manager == "two");
        for entry in others {
            for path in entry.fields().paths() {
                let shown: String = path.iter().map(ToString::to_string).collect();
                let zero = shown.ends_with("labels") || shown.ends_with(".resources");
                assert!(fields.has(&path) || zero, "seed {seed}: {shown} of {two} is gone");
            }
        }
    }
}

#[test]
fn sets_obey_the_laws_of_sets() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let one = fields_of(pod_type(), &random.object());
        let two = fields_of(pod_type(), &random.object());
        let union = one.clone().union(&two);
        assert_eq!(union, two.clone().union(&one));
        assert_eq!(one.intersection(&two), two.intersection(&one));
        let parts =
            one.clone().difference(&two).union(&two.clone().difference(&one)).union(&one.intersection(&two));
        assert_eq!(parts, union, "seed {seed}");
        let read: FieldSet = serde_json::from_str(&text(&union)).expect("a set");
        assert_eq!(read, union);
    }
}

#[test]
fn stored_owners_answer_as_text_what_they_would_as_sets() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut cluster = Cluster::default();
        cluster.update("one", &random.object());
        cluster.update("two", &random.object());
        let text = cluster.managed.to_value().to_string();
        let read = ManagedFields::decode(&serde_json::from_str(&text).expect("JSON")).expect("a list");
        let mut out = Vec::new();
        read.write(&mut out);
        let stored = ManagedFields::stored(&out.clone().into()).expect("a list");
        let mut again = Vec::new();
        stored.write(&mut again);
        assert_eq!(out, again);
        let other = fields_of(pod_type(), &random.object());
        for (lazy, entry) in stored.entries().iter().zip(read.entries()) {
            assert_eq!(lazy.owned.common(&other), entry.fields().intersection(&other).len(), "seed {seed}");
        }
        assert_eq!(stored, read);
        let live = cluster.object.clone().expect("there");
        let new = canonical(&random.object());
        let by = write("one", "v1");
        assert_eq!(by.update(&live, &new, stored), by.update(&live, &new, read), "seed {seed}");
    }
    for other in
        ["", "{}", "[1]", r#"[{"manager":1}]"#, r#"[{"operation":"Delete"}]"#, r#"[{"later":true}]"#, "[{"]
    {
        let found = ManagedFields::stored(&bytes::Bytes::copy_from_slice(other.as_bytes()));
        assert!(found.is_none_or(|found| found.is_empty()), "{other}");
    }
}

/// Owners that are printed straight from a new object are those that a comparison with nothing finds.
#[track_caller]
fn check_created(object: &Value, name: &str) {
    let api_version = object["apiVersion"].as_str().expect("a version");
    let nothing = empty(versions::type_of(object).expect("a type"));
    let patterns: [&[&[&str]]; 3] = [&[], &[&["status"]], &[&["spec"], &["metadata"]]];
    for reach in patterns.map(Reach::AllBut) {
        let by = Write { reach, ..write("one", api_version) };
        let compared = by.update(&nothing, object, ManagedFields::default());
        let printed = by.create(object, ManagedFields::default());
        assert_eq!(printed.to_value(), compared.to_value(), "{name}");
        let (mut one, mut other) = (Vec::new(), Vec::new());
        printed.write(&mut one);
        compared.write(&mut other);
        assert_eq!(one, other, "{name}: the order");
    }
}

#[test]
fn owners_of_new_objects_are_printed_as_they_are_compared() {
    for seed in 1..=300 {
        check_created(&canonical(&Random(seed).object()), &format!("seed {seed}"));
    }
    let list = |items: Value| {
        json!({ "kind": "Service", "apiVersion": "v1", "metadata": { "name": "a" },
                "spec": { "ports": items, "clusterIPs": ["10.0.0.1"] } })
    };
    let port = json!({ "port": 80, "protocol": "TCP", "targetPort": 80 });
    check_created(&canonical(&list(json!([]))), "no items");
    check_created(&canonical(&list(json!([port, port]))), "two items of one key");
    let odd = json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": {
        "name": "a", "annotations": { "a\"b\\c": "x", "é": "y" }, "finalizers": ["z/b", "a/b"],
    }, "data": {} });
    check_created(&canonical(&odd), "keys with escapes");
}

#[test]
fn every_type_compares_with_itself_and_with_nothing() {
    let Some(facts) = schema::testdata::facts() else { return };
    let mut count = 0;
    for file in std::fs::read_dir(facts.join("api-testdata")).expect("a directory") {
        let path = file.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let object: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        let Some(ty) = versions::type_of(&object) else { continue };
        count += 1;
        let object = canonical(&object);
        assert!(compare(ty, &object, &object).is_empty(), "{}", ty.name);
        let added = compare(ty, &empty(ty), &object);
        assert!(added.removed.is_empty(), "{}", ty.name);
        let read: FieldSet = serde_json::from_str(&text(&added.changed)).expect("a set");
        assert_eq!(read, added.changed, "{}", ty.name);
        check_created(&object, ty.name);
    }
    assert!(count > 150, "{count} objects");
}
