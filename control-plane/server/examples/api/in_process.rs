//! Parts of the server by themselves, in this process: decisions of RBAC, and owners of fields at a write.

use std::{hint::black_box, sync::Arc, time::Duration, time::Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hawser_api::{
    apply::{ManagedFields, Manager, Reach, Write},
    kinds::Kind,
    schema::{self, FieldValidation, Format},
};
use hawser_apiserver::{
    auth::{AUTHENTICATED, Attributes, Authorizer as _, Decision, User, rbac::Rbac},
    cache::{CachedObject, KindSpec},
    kinds,
};
use serde_json::{Value, json};

use crate::{pods, report::Report};

/// Bindings of three subjects each, and the namespaces that they are in.
const BINDINGS: usize = 10_000;
const NAMESPACES: usize = 100;
/// How often the users are gone through, and how often one user is asked about.
const TURNS: usize = 5;
const OWNERS_ROUNDS: usize = 5;

/// Measures how long a decision takes, about a user that was just seen and about each of 10,000 in turn.
pub(crate) fn rbac(report: &Report) -> Result<()> {
    let rbac = Rbac::default();
    let put = |path: &str, key: &str, object: &Value| -> Result<()> {
        let path = format!("rbac.authorization.k8s.io/{path}");
        let spec = KindSpec { path: path.clone(), namespaced: true, fields: &[], sink: None };
        let sink = rbac.follow(spec).sink.context("a kind of RBAC")?;
        let key = format!("/registry/{path}/{key}");
        sink.put(&CachedObject::parse(key.as_str().into(), &Bytes::from(object.to_string()), 1)?);
        sink.publish();
        Ok(())
    };
    for number in 0..20 {
        let rules = json!([
            {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list", "watch"]},
        ]);
        put("clusterroles", &format!("role-{number}"), &json!({"metadata": {}, "rules": rules}))?;
    }
    let namespace = |number: usize| format!("namespace-{}", number % NAMESPACES);
    for number in 0..BINDINGS {
        let subjects = json!([
            {"kind": "User", "name": format!("user-{number}")},
            {"kind": "Group", "name": format!("group-{number}")},
            {"kind": "ServiceAccount", "name": format!("account-{number}")},
        ]);
        let role = json!({"kind": "ClusterRole", "name": format!("role-{}", number % 20)});
        let binding = json!({"metadata": {}, "roleRef": role, "subjects": subjects});
        put("rolebindings", &format!("{}/binding-{number}", namespace(number)), &binding)?;
    }
    let asked: Vec<(Arc<User>, Attributes)> = (0..BINDINGS)
        .map(|number| {
            // Neighbours in the order of asking are no neighbours in memory.
            let number = number * 7_919 % BINDINGS;
            let groups = [format!("group-of-{number}"), AUTHENTICATED.to_owned()];
            let name = format!("user-{number}");
            let user = Arc::new(User { name, groups: groups.into(), ..User::default() });
            let attributes = Attributes {
                verb: "get".into(),
                resource: "pods".to_owned(),
                namespace: namespace(number),
                ..Attributes::default()
            };
            (user, attributes)
        })
        .collect();
    let decide = |number: usize, namespace: Option<&str>| {
        let (user, attributes) = &asked[number];
        let elsewhere =
            namespace.map(|namespace| Attributes { namespace: namespace.to_owned(), ..attributes.clone() });
        let allowed = rbac.authorize(user, black_box(elsewhere.as_ref().unwrap_or(attributes)));
        matches!(allowed, Decision::Allow(_))
    };
    anyhow::ensure!((0..BINDINGS).all(|number| decide(number, None)), "everybody is allowed something");
    anyhow::ensure!(!decide(0, Some("another")), "and nothing elsewhere");
    let known = best(TURNS, BINDINGS, |_| {
        black_box(decide(0, None));
    });
    report.print("rbac", "known_user", known, "us/decision");
    let new = best(TURNS, BINDINGS, |number| {
        black_box(decide(number, None));
    });
    report.print("rbac", "new_user", new, "us/decision");
    Ok(())
}

/// Measures what the owners of fields add to an update of a pod's status: reading, comparing, printing, entering the
/// cache.
pub(crate) fn owners(report: &Report) -> Result<()> {
    let kind = Kind::by_plural("", "pods").context("there are pods")?;
    let ty = schema::type_of("", "v1", "Pod").context("pods have a type")?;
    let body = pods::body("checkout-6d4b75cb6d-000000");
    let mut pod = schema::decode(ty, &body, Format::Json, FieldValidation::Strict)?.object;
    pod["metadata"]["uid"] = "6d4b75cb-0000-4000-8000-000000000000".into();
    pod["metadata"]["namespace"] = pods::NAMESPACE.into();
    kinds::default(kind, &mut pod);
    let by = |name, subresource, now| Manager { name, api_version: "v1", subresource, now };
    let creator = Write {
        by: by("kubectl", "", "2026-01-01T00:00:00Z"),
        reach: Reach::AllBut(&[&["status"]]),
        convert: &|_, _| None,
    };
    let node = Write {
        by: by("node-agent", "status", "2026-01-01T00:00:01Z"),
        reach: kinds::reach_of_status(kind),
        ..creator
    };
    let managed = creator.create(&pod, ManagedFields::default());
    let running = with_status(&pod, 0);
    let managed = node.update(&pod, &running, managed);
    let stored = |managed: &ManagedFields| -> Result<CachedObject> {
        let text = schema::json::to_vec_managed(ty, &running, managed).into();
        Ok(CachedObject::printed("/registry/pods/bench/a".into(), &text, 1, "")?)
    };
    let (owned, bare) = (stored(&managed)?, stored(&ManagedFields::default())?);
    report.print("owners", "pod", bare.json().len() as f64, "bytes");
    report.print("owners", "owners", (owned.json().len() - bare.json().len()) as f64, "bytes");
    let write = |object: &CachedObject, round: usize, changes: bool| {
        let (old, managed) = object.parts();
        let new = if changes { with_status(&old, round + 1) } else { old.clone() };
        let managed = if managed.is_empty() { managed } else { node.update(&old, &new, managed) };
        let text = schema::json::to_vec_managed(ty, &new, &managed).into();
        black_box(CachedObject::printed(object.key().clone(), &text, 2, "")).is_ok()
    };
    for (metric, changes) in [("status_update", true), ("nothing_changed", false)] {
        let [with, without] = [&owned, &bare].map(|object| {
            best(OWNERS_ROUNDS, 2_000, |round| {
                black_box(write(object, round, changes));
            })
        });
        report.print("owners", metric, with - without, "us/write");
    }
    Ok(())
}

/// The pod as a node reports it; `round` tells one report from the next.
fn with_status(pod: &Value, round: usize) -> Value {
    let at = format!("2026-01-01T00:{:02}:{:02}Z", round / 60 % 60, round % 60);
    let condition = |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": at});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let mut pod = pod.clone();
    pod["status"] = json!({
        "phase": "Running", "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z",
        "hostIP": "10.203.0.11", "podIP": "10.244.1.7",
        "hostIPs": [{"ip": "10.203.0.11"}], "podIPs": [{"ip": "10.244.1.7"}],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "server", "ready": true, "started": true, "restartCount": round,
            "image": "registry.example.com/shop/checkout:1.24.3",
            "imageID": "registry.example.com/shop/checkout@sha256:0f4de2f2f0a4a8c6e6f4d19e7a6f1b3d5c7e9f0a1bc2a1f5f0c8d2b4b7b8c9aa",
            "containerID": "containerd://c2a1f5f0c8d2b4b7b8c9aa0f4de2f2f0a4a8c6e6f4d19e7a6f1b3d5c7e9f0a1b",
            "state": {"running": {"startedAt": at}}, "lastState": {},
        }],
    });
    pod
}

/// Microseconds of one call, in the best of `rounds` of `count` calls: other work on the machine only adds to it.
fn best(rounds: usize, count: usize, mut call: impl FnMut(usize)) -> f64 {
    let round = |_| {
        let begin = Instant::now();
        (0..count).for_each(&mut call);
        begin.elapsed()
    };
    let fastest = (0..rounds).map(round).min().unwrap_or(Duration::ZERO);
    fastest.as_secs_f64() * 1e6 / count as f64
}
