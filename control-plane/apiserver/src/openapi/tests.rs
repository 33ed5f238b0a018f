use hawser_api::kinds::{KINDS as ALL, Kind};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, fs, path::PathBuf, sync::LazyLock};

use super::OpenApi;

/// The kinds of upstream's own API; those after them an add-on publishes elsewhere.
static KINDS: LazyLock<&'static [Kind]> = LazyLock::new(|| {
    let own = ALL.iter().position(|kind| kind.group == "metrics.k8s.io");
    &ALL[..own.expect("it is served")]
});

/// The facts about upstream's API, which are kept beside the repository; tests of them skip without.
fn facts() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/openapi");
    if !path.is_dir() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Drops what Hawser does not publish.
///
/// Descriptions (of types and fields, by a test of their own), unions (8 types, which no client reads), CBOR, and lists of the groups that a type of
/// `meta` belongs to, which name groups that are not served here.
fn comparable(value: &Value) -> Value {
    match value {
        // A reference without anything beside it needs no wrapping, and upstream wraps only what has a description.
        Value::Object(members)
            if members.contains_key("allOf") && members.keys().all(|name| is_text_or(name, "allOf")) =>
        {
            comparable(&members["allOf"][0])
        }
        Value::Object(members) => {
            let shared_by_groups = members.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
            let shared_by_groups = shared_by_groups.is_some_and(|list| list.len() > 1);
            let is_left_out = |name: &str, value: &Value| {
                (name == "description" && value.is_string())
                    || name == "x-kubernetes-unions"
                    || (name.starts_with("application/") && name.contains("cbor"))
                    || (name == "x-kubernetes-group-version-kind" && shared_by_groups)
            };
            let kept = members.iter().filter(|(name, value)| !is_left_out(name, value));
            Value::Object(kept.map(|(name, value)| (name.clone(), comparable(value))).collect())
        }
        Value::Array(items) => {
            let is_cbor = |item: &Value| item.as_str().is_some_and(|text| text.contains("cbor"));
            Value::Array(items.iter().filter(|item| !is_cbor(item)).map(comparable).collect())
        }
        other => other.clone(),
    }
}

fn is_text_or(name: &str, other: &str) -> bool {
    name == "description" || name == other
}

/// Where two documents first differ.
fn difference(path: &str, ours: &Value, theirs: &Value) -> Option<String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            names.into_iter().find_map(|name| match (a.get(name), b.get(name)) {
                (Some(a), Some(b)) => difference(&format!("{path}/{name}"), a, b),
                (ours, theirs) => Some(format!("{path}/{name}: {ours:?} and {theirs:?}")),
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| difference(&format!("{path}/{at}"), a, b))
        }
        _ => (ours != theirs).then(|| format!("{path}: {ours} and {theirs}")),
    }
}

/// Compares members of both that ours has; whatever is only theirs is not served here.
fn differences(what: &str, ours: &Value, theirs: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (name, ours) in ours.as_object().unwrap() {
        match theirs.get(name) {
            None => found.push(format!("{what} {name} is not upstream's")),
            Some(theirs) => {
                let mut ours = comparable(ours);
                // The types that every group shares.
                if theirs["x-kubernetes-group-version-kind"].as_array().is_some_and(|list| list.len() > 1) {
                    ours.as_object_mut().unwrap().remove("x-kubernetes-group-version-kind");
                }
                found.extend(difference(&format!("{what} {name}"), &ours, &comparable(theirs)));
            }
        }
    }
    found
}

/// Puts shared parameters where they are used, and all in the order of their names.
fn inline_parameters(value: &mut Value, shared: &Map<String, Value>) {
    match value {
        Value::Object(members) => {
            for value in members.values_mut() {
                inline_parameters(value, shared);
            }
            if let Some(Value::Array(parameters)) = members.get_mut("parameters") {
                for parameter in parameters.iter_mut() {
                    let name = parameter
                        .get("$ref")
                        .and_then(Value::as_str)
                        .and_then(|name| name.rsplit('/').next());
                    if let Some(resolved) = name.map(|name| shared[name].clone()) {
                        *parameter = resolved;
                    }
                }
                parameters.sort_by_key(|parameter| format!("{}{}", parameter["name"], parameter["in"]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| inline_parameters(item, shared)),
        _ => {}
    }
}

#[track_caller]
fn check(failures: &[String]) {
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn version_2_says_what_upstream_says_of_the_kinds_served() {
    let Some(facts) = facts() else { return };
    let mut theirs = parse(&fs::read(facts.join("swagger.json")).unwrap());
    let shared = theirs["parameters"].as_object().unwrap().clone();
    inline_parameters(&mut theirs["paths"], &shared);
    let mut ours = parse(&OpenApi::new(&KINDS).v2_json().body);
    inline_parameters(&mut ours["paths"], &Map::new());
    let mut failures = differences("definition", &ours["definitions"], &theirs["definitions"]);
    failures.extend(differences("path", &ours["paths"], &theirs["paths"]));
    check(&failures);
    assert!(ours["definitions"].as_object().unwrap().len() > 200);
}

/// What upstream publishes and Hawser does not, by a part of the path, with the reason.
const NOT_PUBLISHED: [(&str, &str); 9] = [
    ("/watch/", "deprecated for lists with `watch`"),
    ("/v1alpha", "off by default upstream"),
    ("/v1beta", "off by default upstream"),
    ("/internal.apiserver.k8s.io/", "off by default upstream"),
    ("/storagemigration.k8s.io/", "objects have one stored version"),
    ("/logs/", "files of the machine are not the API's"),
    ("/version/", "is no kind, and the same for all"),
    ("/.well-known/openid-configuration/", "is described by OpenID Connect"),
    ("/openid/v1/jwks/", "is described by OpenID Connect"),
];

#[test]
fn everything_that_upstream_publishes_is_published_or_left_out_for_a_reason() {
    let Some(facts) = facts() else { return };
    let theirs = parse(&fs::read(facts.join("swagger.json")).unwrap());
    let ours = parse(&OpenApi::new(&KINDS).v2_json().body);
    let missing: Vec<&String> = theirs["paths"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|path| ours["paths"].get(path.as_str()).is_none())
        .collect();
    let excused = |path: &str| NOT_PUBLISHED.iter().any(|(part, _)| path.contains(part));
    let unexplained: Vec<String> =
        missing.iter().filter(|path| !excused(path)).map(|path| format!("{path} is missing")).collect();
    check(&unexplained);
    for (part, _) in NOT_PUBLISHED {
        assert!(missing.iter().any(|path| path.contains(part)), "{part} excuses nothing");
    }
}

#[test]
fn version_3_says_what_upstream_says_of_the_kinds_served() {
    let Some(facts) = facts() else { return };
    let api = OpenApi::new(&KINDS);
    let index = parse(&api.v3_index().body);
    let mut failures = Vec::new();
    for path in index["paths"].as_object().unwrap().keys() {
        let file = facts.join(format!("v3/{}_openapi.json", path.replace('/', "__")));
        let mut theirs = parse(&fs::read(&file).unwrap());
        let mut ours = parse(&api.v3_document(path).unwrap().body);
        inline_parameters(&mut theirs["paths"], &Map::new());
        inline_parameters(&mut ours["paths"], &Map::new());
        failures.extend(differences("path", &ours["paths"], &theirs["paths"]));
        let schemas = |document: &Value| document["components"]["schemas"].clone();
        failures.extend(differences(&format!("{path} schema"), &schemas(&ours), &schemas(&theirs)));
    }
    check(&failures);
}

#[test]
fn types_and_fields_are_described_as_upstream_does() {
    let Some(facts) = facts() else { return };
    let theirs = parse(&fs::read(facts.join("swagger.json")).unwrap());
    let ours = parse(&OpenApi::new(&KINDS).v2_json().body);
    let (mut failures, mut seen) = (Vec::new(), 0);
    for (name, ours) in ours["definitions"].as_object().unwrap() {
        let theirs = &theirs["definitions"][name];
        // Lists are not described here, nor is the body of patches.
        let is_patch = name == "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
        if is_patch
            || ours["properties"]["metadata"]["$ref"].as_str().is_some_and(|ty| ty.ends_with(".ListMeta"))
        {
            continue;
        }
        let mut check = |place: &str, ours: &Value, theirs: &Value| {
            seen += usize::from(ours.is_string());
            if ours != theirs {
                failures.push(format!("{name}{place}: {ours} and {theirs}"));
            }
        };
        check("", &ours["description"], &theirs["description"]);
        for (field, ours) in ours["properties"].as_object().into_iter().flatten() {
            check(&format!(".{field}"), &ours["description"], &theirs["properties"][field]["description"]);
        }
    }
    check(&failures);
    assert!(seen > 2_500, "{seen}");
}

#[test]
fn what_is_used_is_published_under_the_names_that_the_add_on_has() {
    let document = parse(&OpenApi::new(ALL).v2_json().body);
    let schema = &document["definitions"]["io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics"];
    assert_eq!(schema["properties"]["containers"]["type"], "array");
    for path in ["nodes", "nodes/{name}", "pods", "namespaces/{namespace}/pods/{name}"] {
        let operations = &document["paths"][format!("/apis/metrics.k8s.io/v1beta1/{path}")];
        assert!(operations["get"].is_object() && operations["post"].is_null(), "{path}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let api = OpenApi::new(ALL);
    let index = parse(&api.v3_index().body);
    let v3 = index["paths"].as_object().unwrap().keys().map(|path| api.v3_document(path).unwrap());
    for document in v3.chain([api.v2_json()]) {
        let document = parse(&document.body);
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }
}

#[test]
fn addresses_carry_the_hash_of_what_they_lead_to() {
    let api = OpenApi::new(&KINDS);
    let index = parse(&api.v3_index().body);
    let address = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = api.v3_document("apis/apps/v1").unwrap();
    assert_eq!(address, format!("/openapi/v3/apis/apps/v1?hash={}", document.hash));
    assert_eq!(document.etag(), format!("\"{}\"", document.hash));
    assert!(api.v3_document("apis/nobody/v1").is_none());
    assert_eq!(OpenApi::new(&KINDS).v2_json().hash, api.v2_json().hash, "made twice, equal twice");
}

#[test]
fn protobuf_has_every_definition_and_path() {
    let api = OpenApi::new(&KINDS);
    let bytes = &api.v2_protobuf().body;
    let document = parse(&api.v2_json().body);
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(bytes.starts_with(b"\x0a\x032.0"));
    for name in ["io.k8s.api.core.v1.PodSpec", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"] {
        assert!(holds(name), "{name}");
    }
    assert!(holds("x-kubernetes-patch-merge-key"));
    assert!(document["definitions"].get("io.k8s.api.core.v1.PodSpec").is_some());
}
