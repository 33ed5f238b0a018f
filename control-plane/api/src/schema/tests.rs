use serde_json::{Value, json};

use super::{FieldValidation, Format, canonicalize, decode, json, peek_type_meta, protobuf, type_of, types};

fn deployment(spec: &str) -> String {
    format!(r#"{{"apiVersion":"apps/v1","kind":"Deployment","metadata":{{"name":"web"}},"spec":{spec}}}"#)
}

/// The message with which a body of a Deployment is refused in strict mode.
#[track_caller]
fn refused(body: &str, message: &str) {
    let ty = type_of("apps", "v1", "Deployment").unwrap();
    let error = decode(ty, body.as_bytes(), Format::Json, FieldValidation::Strict).unwrap_err();
    assert_eq!((error.code(), error.message()), (400, message), "{body}");
}

#[track_caller]
fn pod(spec: Value) -> Value {
    let ty = type_of("", "v1", "Pod").unwrap();
    let body = json!({ "spec": spec }).to_string();
    decode(ty, body.as_bytes(), Format::Json, FieldValidation::Strict).unwrap().object["spec"].take()
}

#[test]
fn strict_validation_names_unknown_and_duplicate_fields() {
    let head = "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: ";
    refused(&deployment(r#"{"foo":1}"#), &format!("{head}unknown field \"spec.foo\""));
    refused(
        &deployment(r#"{"replicas":1,"replicas":2}"#),
        &format!("{head}duplicate field \"spec.replicas\""),
    );
    refused(
        &deployment(
            r#"{"template":{"spec":{"containers":[{"name":"a"},{"name":"b","imagee":"x","x":{}}]}}}"#,
        ),
        &format!(
            "{head}unknown field \"spec.template.spec.containers[1].imagee\", \
             unknown field \"spec.template.spec.containers[1].x\""
        ),
    );
    refused(
        r#"{"metadata":{"labels":{"a":"1","a":"2"}}}"#,
        &format!("{head}duplicate field \"metadata.labels.a\""),
    );
}

#[test]
fn warnings_say_the_same_and_the_field_is_dropped() {
    let ty = type_of("apps", "v1", "Deployment").unwrap();
    let body = deployment(r#"{"foo":{"bar":[1]},"replicas":1,"replicas":2}"#);
    let warned = decode(ty, body.as_bytes(), Format::Json, FieldValidation::Warn).unwrap();
    assert_eq!(warned.warnings, ["unknown field \"spec.foo\"", "duplicate field \"spec.replicas\""]);
    assert_eq!(warned.object["spec"]["replicas"], 2);
    assert_eq!(warned.object["spec"].get("foo"), None);
    let ignored = decode(ty, body.as_bytes(), Format::Json, FieldValidation::Ignore).unwrap();
    assert_eq!((ignored.warnings.len(), ignored.object), (0, warned.object));
}

#[test]
fn wrong_types_are_refused_with_their_path() {
    let head = "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal ";
    for (spec, message) in [
        (r#"{"replicas":"3"}"#, "string into Go struct field DeploymentSpec.spec.replicas of type int32"),
        (r#"{"replicas":1.5}"#, "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
        (
            r#"{"replicas":3000000000}"#,
            "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (r#"{"paused":1}"#, "number into Go struct field DeploymentSpec.spec.paused of type bool"),
        (
            r#"{"template":[]}"#,
            "array into Go struct field DeploymentSpec.spec.template of type v1.PodTemplateSpec",
        ),
        (
            r#"{"template":{"spec":{"containers":{}}}}"#,
            "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            r#"{"template":{"spec":{"containers":[{"name":5}]}}}"#,
            "number into Go struct field Container.spec.template.spec.containers.name of type string",
        ),
    ] {
        refused(&deployment(spec), &format!("{head}{message}"));
    }
    refused(
        r#"{"metadata":{"labels":{"a":1}}}"#,
        &format!("{head}number into Go struct field ObjectMeta.metadata.labels of type string"),
    );
}

#[test]
fn bodies_of_other_kinds_are_refused() {
    refused(
        r#"{"apiVersion":"apps/v1beta9","kind":"Deployment"}"#,
        "the API version in the data (apps/v1beta9) does not match the expected API version (apps/v1)",
    );
    refused(
        r#"{"apiVersion":"apps/v1","kind":"DaemonSet"}"#,
        "DaemonSet in version \"v1\" cannot be handled as a Deployment",
    );
    let ty = type_of("apps", "v1", "Deployment").unwrap();
    for body in ["", "{", "null", "[]", "1", "\"x\"", "{}{}", "{\"a\":}"] {
        let error = decode(ty, body.as_bytes(), Format::Json, FieldValidation::Ignore).unwrap_err();
        assert_eq!(error.code(), 400, "{body:?}: {error}");
    }
    let named = decode(ty, b"{}", Format::Json, FieldValidation::Strict).unwrap().object;
    assert_eq!((&named["kind"], &named["apiVersion"]), (&json!("Deployment"), &json!("apps/v1")));
}

#[test]
fn values_take_their_canonical_form() {
    let spec = pod(json!({
        "containers": [{
            "name": "a",
            "image": "",
            "tty": false,
            "args": [],
            "env": null,
            "resources": { "requests": { "cpu": "1000m", "memory": "1024Ki" }, "limits": { "cpu": 0.5 } },
            "ports": [{ "containerPort": 80, "hostPort": 0 }],
            "securityContext": { "privileged": false },
            "livenessProbe": { "httpGet": { "port": "http" } },
        }],
        "terminationGracePeriodSeconds": 0,
        "hostNetwork": false,
        "nodeSelector": {},
    }));
    let expected = json!({
        "containers": [{
            "name": "a",
            "resources": { "requests": { "cpu": "1", "memory": "1Mi" }, "limits": { "cpu": "500m" } },
            "ports": [{ "containerPort": 80 }],
            "securityContext": { "privileged": false },
            "livenessProbe": { "httpGet": { "port": "http" } },
        }],
        "terminationGracePeriodSeconds": 0,
    });
    assert_eq!(spec, expected);
    assert_eq!(pod(json!({ "containers": [{ "name": "a" }] }))["containers"][0]["resources"], json!({}));
}

#[test]
fn unreadable_values_are_refused() {
    let ty = type_of("", "v1", "Pod").unwrap();
    for (body, part) in [
        (json!({ "spec": { "overhead": { "cpu": "much" } } }), "quantities must match"),
        (json!({ "metadata": { "creationTimestamp": "today" } }), "parsing time \"today\""),
    ] {
        let error =
            decode(ty, body.to_string().as_bytes(), Format::Json, FieldValidation::Ignore).unwrap_err();
        assert!(error.message().contains(part), "{error}");
    }
    let secret = type_of("", "v1", "Secret").unwrap();
    let error = decode(secret, br#"{"data":{"a":"!!"}}"#, Format::Json, FieldValidation::Ignore).unwrap_err();
    assert!(error.message().contains("illegal base64 data at input byte 0"), "{error}");
}

#[test]
fn yaml_bodies_are_checked_the_same_way() {
    let ty = type_of("", "v1", "ConfigMap").unwrap();
    let body = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  a: |\n    text\n  b: \"1\"\nextra: 1\n";
    let decoded = decode(ty, body, Format::Yaml, FieldValidation::Warn).unwrap();
    assert_eq!(decoded.warnings, ["unknown field \"extra\""]);
    assert_eq!(decoded.object["data"], json!({ "a": "text\n", "b": "1" }));
    assert!(decode(ty, b"a: 1\n---\nb: 2\n", Format::Yaml, FieldValidation::Ignore).is_err());
    assert_eq!(peek_type_meta(body, Format::Yaml).unwrap().kind, "ConfigMap");
}

#[test]
fn yaml_that_repeats_itself_or_grows_without_end_is_refused() {
    let ty = type_of("", "v1", "ConfigMap").unwrap();
    let twice = decode(ty, b"data:\n  a: x\n  a: y\n", Format::Yaml, FieldValidation::Strict).unwrap_err();
    assert!(twice.message().ends_with("strict decoding error: duplicate field \"data.a\""), "{twice}");
    let mut bomb = "a: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        bomb.push_str(&format!("b{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(",")));
    }
    let skipped = decode(ty, bomb.as_bytes(), Format::Yaml, FieldValidation::Ignore).unwrap().object;
    assert_eq!(skipped.get("a"), None, "what is unknown is not even expanded");
    let raw = type_of("apps", "v1", "ControllerRevision").unwrap();
    let bomb = format!("data:\n{}", bomb.lines().map(|line| format!("  {line}\n")).collect::<String>());
    assert!(decode(raw, bomb.as_bytes(), Format::Yaml, FieldValidation::Ignore).is_err());
}

#[test]
fn canonical_objects_stay_as_they_are() {
    let ty = type_of("apps", "v1", "Deployment").unwrap();
    let body = deployment(r#"{"selector":{},"template":{"spec":{"containers":[{"name":"a"}]}}}"#);
    let first = decode(ty, body.as_bytes(), Format::Json, FieldValidation::Strict).unwrap().object;
    let again = canonicalize(ty, &first, FieldValidation::Strict).unwrap().object;
    assert_eq!(first, again);
    let (_, back) = protobuf::decode(&protobuf::encode(&first).unwrap()).unwrap();
    assert_eq!(first, back, "a sparse object survives protobuf");
}

#[test]
fn printing_starts_with_kind_and_keeps_what_the_table_does_not_know() {
    let ty = type_of("", "v1", "ConfigMap").unwrap();
    let object = json!({ "apiVersion": "v1", "data": { "b": "2", "a": "1" }, "kind": "ConfigMap", "metadata": { "uid": "u", "name": "n" }, "zz": 1 });
    assert_eq!(
        String::from_utf8(json::to_vec(ty, &object)).unwrap(),
        r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"n","uid":"u"},"data":{"a":"1","b":"2"},"zz":1}"#
    );
}

#[test]
fn lists_are_made_of_encoded_items() {
    let ty = type_of("", "v1", "ConfigMap").unwrap();
    let item = |name: &str| json!({ "metadata": { "name": name }, "data": { "a": "1" } });
    let items: Vec<Vec<u8>> =
        ["x", "y"].iter().map(|name| protobuf::encode_message(ty, &item(name)).unwrap()).collect();
    // As long as lengths that take one, two and three bytes.
    let mut items = items;
    let long = json!({ "metadata": { "name": "z" }, "data": { "a": "1".repeat(20_000) } });
    items.extend(
        [item(&"w".repeat(200)), long.clone()].map(|item| protobuf::encode_message(ty, &item).unwrap()),
    );
    let lengths = items.iter().map(Vec::len);
    let meta = json!({ "resourceVersion": "7" });
    let mut list = protobuf::list_head("v1", "ConfigMapList", &meta, lengths).unwrap();
    for item in &items {
        protobuf::list_item(item, &mut list);
    }
    list.extend_from_slice(protobuf::LIST_END);
    let (meta, list) = protobuf::decode(&list).unwrap();
    assert_eq!(meta.kind, "ConfigMapList");
    assert_eq!(list["metadata"], json!({ "resourceVersion": "7" }));
    assert_eq!(list["items"], json!([item("x"), item("y"), item(&"w".repeat(200)), long]));
}

#[test]
fn list_types_hold_metadata_and_items_where_lists_are_built() {
    for ty in
        types().filter(|ty| ty.kind().ends_with("List") && ty.has_type_meta && ty.field("items").is_some())
    {
        // Its fields stand the other way round, and it was replaced long ago.
        if ty.name == "k8s.io.apimachinery.pkg.apis.meta.v1beta1.PartialObjectMetadataList" {
            continue;
        }
        let number = |json| ty.field(json).map(|field| field.number);
        assert_eq!((number("metadata"), number("items")), (Some(1), Some(2)), "{}", ty.name);
    }
}

#[test]
fn watch_frames_carry_their_length_and_a_sealed_object() {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" } });
    let frame = protobuf::watch_frame("ADDED", &protobuf::encode(&object).unwrap());
    let (length, event) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
    assert!(event.starts_with(b"\x0a\x05ADDED\x12"));
    let at = event.windows(4).position(|window| window == protobuf::MAGIC).unwrap();
    assert_eq!(protobuf::decode(&event[at..]).unwrap().1, object);
}

#[test]
fn hostile_protobuf_is_refused_without_harm() {
    use protobuf::DecodeError;
    let seal = |raw: &[u8]| protobuf::seal("v1", "Pod", raw);
    assert_eq!(protobuf::decode(b"").unwrap_err(), DecodeError::Magic);
    assert_eq!(
        protobuf::decode(b"k8s\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").unwrap_err(),
        DecodeError::Truncated
    );
    assert_eq!(protobuf::decode(&seal(b"\x0a\x7f")).unwrap_err(), DecodeError::Truncated);
    assert_eq!(protobuf::decode(&seal(b"\x0b")).unwrap_err(), DecodeError::Tag(0x0b));
    assert_eq!(protobuf::decode(&seal(b"\x00")).unwrap_err(), DecodeError::Tag(0));
    assert!(matches!(
        protobuf::decode(&seal(b"\x08\x01")).unwrap_err(),
        DecodeError::WireType { field: 1, .. }
    ));
    assert!(matches!(
        protobuf::decode(&seal(b"\x0a\x03\x0a\x01\xff")).unwrap_err(),
        DecodeError::Utf8 { field: 1, .. }
    ));
    assert!(matches!(
        protobuf::decode(&protobuf::seal("v9", "Pod", b"")).unwrap_err(),
        DecodeError::UnknownKind { .. }
    ));
    // A million empty containers in two megabytes would each decode to an object.
    let spec: Vec<u8> = std::iter::repeat_n([0x12, 0], 1_000_000).flatten().collect();
    let mut raw = vec![0x12];
    let mut length = spec.len();
    while length >= 0x80 {
        raw.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    raw.push(length as u8);
    raw.extend(spec);
    assert_eq!(protobuf::decode(&seal(&raw)).unwrap_err(), DecodeError::Size);
}

#[test]
fn deep_schemas_are_refused() {
    let ty = type_of("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    let mut schema = "{}".to_owned();
    for _ in 0..2000 {
        schema = format!(r#"{{"not":{schema}}}"#);
    }
    let body = format!(r#"{{"spec":{{"versions":[{{"schema":{{"openAPIV3Schema":{schema}}}}}]}}}}"#);
    assert!(decode(ty, body.as_bytes(), Format::Json, FieldValidation::Ignore).is_err());
}

/// Flips, cuts and repeats bytes of real objects: every answer is fine but a panic.
#[test]
fn mutated_objects_never_panic() {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "labels": { "a": "b" }, "creationTimestamp": "2024-01-01T00:00:00Z" },
        "spec": { "containers": [{ "name": "a", "ports": [{ "containerPort": 1 }], "resources": { "limits": { "cpu": "1" } },
            "livenessProbe": { "httpGet": { "port": "http" }, "periodSeconds": -1 } }] },
    });
    let ty = type_of("", "v1", "Pod").unwrap();
    let bodies = [protobuf::encode(&object).unwrap(), object.to_string().into_bytes()];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for round in 0..20_000 {
        let mut body = bodies[round % 2].clone();
        for _ in 0..=next(4) {
            let at = next(body.len());
            match next(4) {
                0 => body[at] = next(256) as u8,
                1 => body.truncate(at.max(1)),
                2 => body.insert(at, next(256) as u8),
                _ => {
                    body.remove(at);
                    body.push(0);
                }
            }
        }
        if let Ok((_, decoded)) = protobuf::decode(&body) {
            let _ = protobuf::encode(&decoded);
        }
        if let Ok(decoded) = decode(ty, &body, Format::Json, FieldValidation::Strict) {
            protobuf::encode(&decoded.object).unwrap();
        }
        let _ = decode(ty, &body, Format::Yaml, FieldValidation::Warn);
    }
}
