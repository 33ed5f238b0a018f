//! The benchmark's workloads, held against upstream's files where these are beside the repository.

#[expect(dead_code, unused_imports, reason = "only the benchmark uses all of it")]
#[path = "../examples/scheduler_perf/objects/mod.rs"]
mod objects;
#[path = "../examples/scheduler_perf/samples.rs"]
mod samples;
#[expect(unused_imports, reason = "only the benchmark uses all of it")]
#[path = "../examples/scheduler_perf/workloads/mod.rs"]
mod workloads;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use objects::Which;
use samples::{percentile, samples};
use serde_json::{Map, Value, json};
use workloads::{Op, Workload};

/// What upstream's benchmark takes where an operation names no template.
const NODE: &str = "node-default";
const POD: &str = "pod-default";

/// One of upstream's that is measured for its speed.
struct Upstream {
    /// `SchedulingBasic/5000Nodes_10000Pods`.
    name: String,
    case: String,
    threshold: u32,
    ops: Value,
}

/// None, with a message, where the files are absent.
fn upstream() -> Option<Vec<Upstream>> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/scheduler-perf");
    let Ok(files) = fs::read_dir(&folder) else {
        println!("skipped: {} is absent", folder.display());
        return None;
    };
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let cases: Vec<Value> = serde_yaml_ng::from_str(&text).unwrap();
        all.extend(cases.iter().flat_map(measured));
    }
    Some(all)
}

fn measured(case: &Value) -> Vec<Upstream> {
    let workloads = case["workloads"].as_array().unwrap().iter().filter(|workload| {
        let labels = workload["labels"].as_array();
        labels.is_some_and(|labels| labels.contains(&json!("performance")))
            || !workload["threshold"].is_null()
    });
    let one = |workload: &Value| {
        let (case_name, name) = (case["name"].as_str().unwrap(), workload["name"].as_str().unwrap());
        let ops = case["workloadTemplate"].as_array().unwrap().iter().map(|op| plain(op, case, workload));
        // A number, or one for each of what is measured: there is one.
        let threshold = workload["threshold"].as_u64().or_else(|| workload["threshold"]["dra"].as_u64());
        Upstream {
            name: format!("{case_name}/{name}"),
            case: case_name.to_owned(),
            threshold: threshold.unwrap_or_default().try_into().unwrap(),
            ops: ops.collect(),
        }
    };
    workloads.map(one).collect()
}

/// An operation of upstream's as the benchmark would write it: with its parameters, and names of templates for paths.
fn plain(op: &Value, case: &Value, workload: &Value) -> Value {
    let opcode = op["opcode"].as_str().unwrap_or_default();
    let mut plain = Map::new();
    for (field, value) in op.as_object().unwrap() {
        let (field, value) = match (field.as_str(), field.strip_suffix("Param")) {
            (_, Some(field)) => {
                let name = value.as_str().unwrap().trim_start_matches('$');
                (field, workload["params"][name].clone())
            }
            (field, None) => (field, value.clone()),
        };
        match field {
            "labelNodePrepareStrategy" => {
                assert_eq!(value["labelKey"], "topology.kubernetes.io/zone");
                plain.insert("zones".to_owned(), value["labelValues"].clone());
            }
            "nodeAllocatableStrategy" => {
                let driver = &value["csiNodeAllocatable"]["ebs.csi.aws.com"];
                plain.insert("volumeLimit".to_owned(), driver["count"].clone());
                plain.insert("migrated".to_owned(), value["migratedPlugins"].is_array().into());
            }
            "createPodsOp" => {
                let mut inner = self::plain(&value, case, workload);
                _ = inner.as_object_mut().unwrap().remove("opcode");
                plain.insert(field.to_owned(), inner);
            }
            "templatePaths" => {
                let templates = value.as_array().unwrap().iter().map(template);
                plain.insert("templates".to_owned(), templates.collect());
            }
            "labelSelector" => _ = plain.insert(field.to_owned(), value["type"].clone()),
            // With `steadyState: true`; that it lasts so long says it.
            "duration" => {
                let seconds: u64 = value.as_str().unwrap().trim_end_matches('s').parse().unwrap();
                plain.insert("steadyState".to_owned(), seconds.into());
            }
            // One driver, and a collector's name, mean nothing here; deletions always go on meanwhile.
            "steadyState" | "driverName" | "nodes" => (),
            "name" if opcode == "startCollectingMetrics" => (),
            "skipWaitToCompletion" if opcode == "deletePods" => assert_eq!(value, true),
            _ => match field.strip_suffix("Path") {
                Some(field) => _ = plain.insert(field.to_owned(), template(&value)),
                None => _ = plain.insert(field.to_owned(), value),
            },
        }
    }
    if opcode == "createNodes" {
        plain.entry("nodeTemplate").or_insert(NODE.into());
        plain.insert("declaredFeatures".to_owned(), workload["params"]["numNodeDeclaredFeatures"].clone());
    }
    if opcode == "createPods" {
        let usual = &case["defaultPodTemplatePath"];
        plain.entry("podTemplate").or_insert(if usual.is_null() { POD.into() } else { template(usual) });
    }
    if opcode == "barrier" {
        plain.entry("stageRequirement").or_insert("Scheduled".into());
    }
    without_defaults(plain.into())
}

/// `../templates/churn/pod-default.yaml` is `churn/pod-default`.
fn template(path: &Value) -> Value {
    let path = path.as_str().unwrap();
    let (_, name) = path.split_once("templates/").unwrap();
    name.trim_end_matches(".yaml").into()
}

/// What is not given and what says nothing are the same.
fn without_defaults(mut op: Value) -> Value {
    let says = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_u64() != Some(0),
        Value::Array(array) => !array.is_empty(),
        _ => true,
    };
    let fields = op.as_object_mut().unwrap();
    fields.retain(|_, value| says(value));
    for value in fields.values_mut().filter(|value| value.is_object()) {
        *value = without_defaults(value.take());
    }
    op
}

fn ops(workload: &Workload) -> Value {
    workload.ops.iter().map(|op: &Op| without_defaults(serde_json::to_value(op).unwrap())).collect()
}

fn case(workload: &Workload) -> &str {
    workload.name.split('/').next().unwrap()
}

#[test]
fn every_workload_of_upstreams_is_measured_as_it_is_there() {
    let Some(upstream) = upstream() else { return };
    let own = workloads::own();
    let known: Vec<(Workload, Value)> = workloads::all()
        .into_iter()
        .filter(|workload| !own.iter().any(|own| own.name == workload.name))
        .map(|workload| {
            let ops = ops(&workload);
            (workload, ops)
        })
        .collect();
    let mut floors: BTreeMap<&str, u32> = BTreeMap::new();
    for theirs in &upstream {
        let ours = known.iter().find(|(ours, ops)| case(ours) == theirs.case && *ops == theirs.ops);
        let Some((ours, _)) = ours else {
            let of_case = known.iter().filter(|(ours, _)| case(ours) == theirs.case);
            let found: Vec<String> = of_case.map(|(ours, ops)| format!("{}: {ops:#}", ours.name)).collect();
            panic!("{}: {:#}\nis not among {found:#?}", theirs.name, theirs.ops);
        };
        assert!(theirs.name.starts_with(ours.name), "{} is called {}", theirs.name, ours.name);
        let floor = floors.entry(ours.name).or_default();
        *floor = theirs.threshold.max(*floor);
    }
    for (ours, _) in &known {
        assert_eq!(floors.get(ours.name), Some(&ours.floor), "{}: upstream's highest threshold", ours.name);
    }
    println!("{} of upstream's are {} here", upstream.len(), known.len());
}

#[test]
fn every_template_is_known_and_gives_names_that_differ() {
    let check = |template: &str, count: usize| {
        let made = |index| objects::named(template, Which { index, count: count.max(2) }, index, None);
        assert!(objects::object(template, Which { index: 0, count: 1 }).is_some(), "{template}");
        made(0)["metadata"]["name"] != made(1)["metadata"]["name"]
    };
    for workload in workloads::all() {
        for op in &workload.ops {
            match op {
                Op::CreateNodes(op) if op.count > 1 => {
                    let (one, other) = (objects::node_of(op, 0, 1).0, objects::node_of(op, 1, 2).0);
                    assert_ne!(one["metadata"]["name"], other["metadata"]["name"], "{}", workload.name);
                }
                Op::CreatePods(pods) | Op::CreatePodSets { create_pods_op: pods, .. } if pods.count > 0 => {
                    let of = |index| objects::pod_of(pods, "a", index, index);
                    let ((one, volumes), (other, _)) = (of(0), of(1));
                    assert_ne!(one["metadata"]["name"], other["metadata"]["name"], "{}", workload.name);
                    assert_eq!(volumes.is_empty(), pods.persistent_volume_template.is_none());
                }
                Op::Churn { templates, .. } => {
                    assert!(templates.iter().all(|template| check(template, 1)), "{}", workload.name);
                }
                Op::CreateAny { template, .. } => _ = check(template, 1),
                Op::UpdateAny { template, count, .. } => {
                    assert!(check(template, *count), "{}", workload.name)
                }
                _ => (),
            }
        }
    }
}

#[test]
fn seconds_are_sampled_as_upstream_does() {
    let at = |seconds: &[f64]| seconds.iter().copied().map(Duration::from_secs_f64).collect::<Vec<_>>();
    let check =
        |bound_at: &[f64], expected: &[f64]| assert_eq!(samples(&at(bound_at)), expected, "{bound_at:?}");
    check(&[], &[]);
    check(&[0.2, 0.9], &[]);
    // The first second is not counted, the one that is not over neither.
    check(&[0.5, 1.5, 1.6], &[]);
    check(&[0.5, 1.5, 1.6, 2.1], &[2.0]);
    check(&[1.5, 2.1, 2.2, 2.3, 3.5, 4.0], &[2.0, 3.0]);
    // A second without a pod shares in the next one's.
    check(&[0.5, 2.1, 2.2, 2.3, 3.5], &[1.5, 1.5]);

    let values: Vec<f64> = (1..=10).map(f64::from).collect();
    assert_eq!([50, 90, 95, 99].map(|percent| percentile(&values, percent)), [5.0, 9.0, 10.0, 10.0]);
    assert_eq!(percentile(&[], 50), 0.0);
}
