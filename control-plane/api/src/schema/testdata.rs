//! One filled-in object of every type, in three encodings: they must agree and come back byte for byte.

use super::{FieldValidation, Format, json, peek_type_meta, protobuf, type_of, type_of_object};
use std::{fs, path::PathBuf};

/// The facts about upstream's API, which are kept beside the repository; tests of them skip without.
pub(crate) fn facts() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36");
    if !path.is_dir() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn every_object_reads_the_same_from_json_yaml_and_protobuf_and_comes_back_identical() {
    let Some(facts) = facts() else { return };
    let mut names: Vec<String> = fs::read_dir(facts.join("api-testdata"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 180, "{} objects", names.len());
    let mut failures = Vec::new();
    for name in &names {
        let read =
            |extension: &str| fs::read(facts.join(format!("api-testdata/{name}.{extension}"))).unwrap();
        if let Err(failure) = round_trip(name, &read("json"), &read("yaml"), &read("pb")) {
            failures.push(format!("{name}: {failure}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), names.len(), failures.join("\n"));
}

fn round_trip(name: &str, json_text: &[u8], yaml: &[u8], pb: &[u8]) -> Result<(), String> {
    let meta = peek_type_meta(json_text, Format::Json).map_err(|error| error.to_string())?;
    let kind = name.rsplit('.').next().unwrap();
    let ty = type_of_object(&meta.api_version, &meta.kind).or_else(|| type_of("meta.k8s.io", "v1", kind));
    let ty = ty.ok_or("no type")?;
    let read = |bytes, format| {
        super::decode(ty, bytes, format, FieldValidation::Strict)
            .map(|decoded| decoded.object)
            .map_err(|e| e.to_string())
    };
    let from_json = read(json_text, Format::Json)?;
    let from_yaml = read(yaml, Format::Yaml)?;
    let envelope = protobuf::open(pb).map_err(|error| error.to_string())?;
    // The outer object of a watch frame does not say what it is.
    let from_pb = match envelope.kind {
        "" => protobuf::decode_message(ty, envelope.raw),
        _ => protobuf::decode(pb).map(|(_, object)| object),
    };
    let from_pb = from_pb.map_err(|error| error.to_string())?;
    if from_json != from_yaml {
        return Err(differ("yaml and json", &from_yaml, &from_json));
    }
    if from_json != from_pb {
        return Err(differ("protobuf and json", &from_pb, &from_json));
    }
    let raw = protobuf::encode_message(ty, &from_json).map_err(|error| error.to_string())?;
    let back = protobuf::seal(envelope.api_version, envelope.kind, &raw);
    if back != pb {
        let at = back.iter().zip(pb).position(|(ours, theirs)| ours != theirs);
        return Err(format!("protobuf differs at {at:?}, lengths {} and {}", back.len(), pb.len()));
    }
    let printed = String::from_utf8(json::to_vec_pretty(ty, &from_json)).unwrap();
    let expected = String::from_utf8_lossy(json_text);
    if printed.trim() != expected.trim() {
        let line = printed.lines().zip(expected.lines()).position(|(ours, theirs)| ours != theirs);
        let at = line.unwrap_or(0);
        return Err(format!(
            "json differs at line {at}: {:?} should be {:?}",
            printed.lines().nth(at),
            expected.lines().nth(at)
        ));
    }
    Ok(())
}

fn differ(what: &str, left: &serde_json::Value, right: &serde_json::Value) -> String {
    fn first(path: &str, left: &serde_json::Value, right: &serde_json::Value) -> Option<String> {
        use serde_json::Value::{Array, Object};
        match (left, right) {
            (Object(a), Object(b)) => {
                let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                let null = serde_json::Value::Null;
                names.into_iter().find_map(|name| {
                    first(
                        &format!("{path}.{name}"),
                        a.get(name).unwrap_or(&null),
                        b.get(name).unwrap_or(&null),
                    )
                })
            }
            (Array(a), Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).enumerate().find_map(|(at, (a, b))| first(&format!("{path}[{at}]"), a, b))
            }
            _ => (left != right).then(|| format!("{path}: {left} and {right}")),
        }
    }
    format!("{what} differ: {}", first("", left, right).unwrap_or_default())
}

/// Reads an object into its typed struct and prints it again, as a component does that changes one field.
fn through_typed<K: k8s_openapi::Resource + serde::de::DeserializeOwned + serde::Serialize>(
    facts: &std::path::Path,
) -> Result<(), String> {
    let group = if K::GROUP.is_empty() { "core" } else { K::GROUP };
    let name = format!("{group}.{}.{}", K::VERSION, K::KIND);
    let text = fs::read(facts.join(format!("api-testdata/{name}.json")))
        .map_err(|error| format!("{name}: {error}"))?;
    let ty = type_of(K::GROUP, K::VERSION, K::KIND).ok_or_else(|| format!("{name}: no type"))?;
    let object = super::decode(ty, &text, Format::Json, FieldValidation::Strict).unwrap().object;
    let typed: K = serde_json::from_value(object.clone()).map_err(|error| format!("{name}: {error}"))?;
    let printed = serde_json::to_value(&typed).unwrap();
    let back = super::canonicalize(ty, &printed, FieldValidation::Strict)
        .map_err(|error| format!("{name}: {error}"))?;
    if back.object == object {
        Ok(())
    } else {
        Err(format!("{name}: {}", differ("typed and canonical", &back.object, &object)))
    }
}

/// Left out: StatefulSet, whose typed claim templates gain a kind (upstream's server adds it too), and
/// PodDisruptionBudget, whose sample holds a zero time in a map, which prints as null.
#[test]
fn typed_structs_lose_no_field() {
    use k8s_openapi::api::{
        apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core,
        discovery::v1 as discovery, events::v1 as events, networking::v1 as networking,
        storage::v1 as storage,
    };
    let Some(facts) = facts() else { return };
    let results = [
        through_typed::<core::ConfigMap>(&facts),
        through_typed::<core::Endpoints>(&facts),
        through_typed::<core::Event>(&facts),
        through_typed::<core::LimitRange>(&facts),
        through_typed::<core::Namespace>(&facts),
        through_typed::<core::Node>(&facts),
        through_typed::<core::PersistentVolume>(&facts),
        through_typed::<core::PersistentVolumeClaim>(&facts),
        through_typed::<core::Pod>(&facts),
        through_typed::<core::ResourceQuota>(&facts),
        through_typed::<core::Secret>(&facts),
        through_typed::<core::Service>(&facts),
        through_typed::<core::ServiceAccount>(&facts),
        through_typed::<apps::DaemonSet>(&facts),
        through_typed::<apps::Deployment>(&facts),
        through_typed::<apps::ReplicaSet>(&facts),
        through_typed::<batch::CronJob>(&facts),
        through_typed::<batch::Job>(&facts),
        through_typed::<coordination::Lease>(&facts),
        through_typed::<discovery::EndpointSlice>(&facts),
        through_typed::<events::Event>(&facts),
        through_typed::<networking::Ingress>(&facts),
        through_typed::<networking::NetworkPolicy>(&facts),
        through_typed::<storage::StorageClass>(&facts),
    ];
    let failures: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
