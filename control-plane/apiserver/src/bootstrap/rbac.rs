//! Keeps the default roles and bindings: makes what is missing, and adds the rules and subjects that are missing in what
//! is there.
//!
//! More than the defaults stays as it is, and so does everything of an object whose annotation
//! `rbac.authorization.kubernetes.io/autoupdate` is `false`. A binding of another role is made anew, because a binding's
//! role cannot be changed. Nothing is written where nothing is missing.

use futures::{StreamExt, TryStreamExt, stream};
use hawser_api::{Error, GroupVersionResource, resource::Target};
use serde_json::{Value, json};

use super::{
    Birth,
    controller_policy::{CONTROLLER_ROLES, PREFIX},
    policy::{self, Role},
};
use crate::{
    auth::rbac::{GROUP, PolicyRule, cover},
    ops::WriteOptions,
    registry::DeleteRequest,
};

/// Objects that are written at the same time: the store commits them together.
const WRITES: usize = 64;

/// Times that an object is looked at again when somebody else changes it meanwhile, another server mostly.
const ATTEMPTS: usize = 5;

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const BOOTSTRAPPING: (&str, &str) = ("kubernetes.io/bootstrapping", "rbac-defaults");
const AGGREGATE_TO: &str = "rbac.authorization.k8s.io/aggregate-to-";

/// An object that every cluster has.
struct Default {
    plural: &'static str,
    namespace: Option<&'static str>,
    object: Value,
}

impl Default {
    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// What is to be done about an object that is there.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Update(Value),
    /// It is to be deleted and made again.
    Replace,
}

pub(super) async fn run(birth: &Birth) -> Result<(), Error> {
    stream::iter(defaults())
        .map(|default| async move { reconcile(birth, &default).await })
        .buffer_unordered(WRITES)
        .try_collect::<Vec<()>>()
        .await?;
    // Whoever is let in after this is decided upon by these roles.
    birth.server.registry().cache().consistent().await.map(drop)
}

async fn reconcile(birth: &Birth, default: &Default) -> Result<(), Error> {
    let server = &birth.server;
    let resource = GroupVersionResource::fixed(GROUP, "v1", default.plural);
    let known = server.registry().resources().of(&resource)?.cache()?;
    let namespace = default.namespace;
    let target = || Target::object(resource.clone(), namespace, default.name());
    for attempt in 1.. {
        let Some(existing) = known.get(namespace.unwrap_or_default(), default.name()) else {
            return birth.ensure(GROUP, default.plural, namespace, default.object.clone()).await;
        };
        let written = match step(existing.value(), &default.object) {
            Step::Nothing => return Ok(()),
            Step::Update(object) => {
                let call = server.enter(&birth.user, "update", target(), "")?;
                server.update(&call, object, &WriteOptions::default()).await.map(drop)
            }
            Step::Replace => {
                let call = server.enter(&birth.user, "delete", target(), "")?;
                server.delete(&call, &DeleteRequest::default()).await.map(drop)
            }
        };
        match written {
            Err(error) if attempt < ATTEMPTS && (error.is_conflict() || error.is_not_found()) => {}
            outcome => outcome?,
        }
        // What was written is looked at again: a deleted one is made, and a changed one is right.
        server.registry().cache().consistent().await?;
        if attempt > ATTEMPTS {
            break;
        }
    }
    Err(Error::conflict(&resource, default.name(), "the object keeps changing"))
}

/// Compares an object with its default.
fn step(existing: Value, default: &Value) -> Step {
    if existing["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return Step::Nothing;
    }
    if existing["roleRef"] != default["roleRef"] {
        return Step::Replace;
    }
    let mut object = existing.clone();
    for map in ["labels", "annotations"] {
        for (key, value) in default["metadata"][map].as_object().into_iter().flatten() {
            let known = &mut object["metadata"][map];
            if known[key].is_null() {
                known[key] = value.clone();
            }
        }
    }
    let add = |object: &mut Value, field: &str, values: Vec<Value>| {
        let all = list(&object[field]).iter().cloned().chain(values).collect();
        object[field] = Value::Array(all);
    };
    let (rules, wanted) = (rules_of(&existing), rules_of(default));
    let covered = |rule: &PolicyRule| cover::missing(&rules, std::slice::from_ref(rule)).is_empty();
    let missing: Vec<Value> = wanted.iter().filter(|rule| !covered(rule)).map(|rule| json!(rule)).collect();
    if !missing.is_empty() {
        add(&mut object, "rules", missing);
    }
    let subjects = without(list(&default["subjects"]), list(&existing["subjects"]));
    if !subjects.is_empty() {
        add(&mut object, "subjects", subjects);
    }
    let selectors = |object: &Value| list(&object["aggregationRule"]["clusterRoleSelectors"]).to_vec();
    let gathered = without(&selectors(default), &selectors(&existing));
    if !gathered.is_empty() {
        let all: Vec<Value> = selectors(&existing).into_iter().chain(gathered).collect();
        object["aggregationRule"] = json!({ "clusterRoleSelectors": all });
    }
    if object == existing { Step::Nothing } else { Step::Update(object) }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Those of `wanted` that are not in `known`.
fn without(wanted: &[Value], known: &[Value]) -> Vec<Value> {
    wanted.iter().filter(|value| !known.contains(value)).cloned().collect()
}

fn rules_of(role: &Value) -> Vec<PolicyRule> {
    let rules = list(&role["rules"]).iter();
    rules.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}

/// Everything of the tables, as objects.
fn defaults() -> Vec<Default> {
    let mut all = Vec::new();
    for role in policy::roles(policy::CLUSTER_ROLES) {
        all.push(role_object("ClusterRole", None, role.name, &role));
    }
    for (role, subjects) in policy::CLUSTER_BINDINGS {
        all.push(binding_object("ClusterRole", None, role, role, subjects));
    }
    for role in policy::roles(CONTROLLER_ROLES) {
        let name = format!("{PREFIX}{}", role.name);
        let account = format!("account:{}", role.name);
        all.push(role_object("ClusterRole", None, &name, &role));
        all.push(binding_object("ClusterRole", None, &name, &name, &[&account]));
    }
    let namespaces = [
        ("kube-system", policy::SYSTEM_ROLES, policy::SYSTEM_BINDINGS),
        ("kube-public", policy::PUBLIC_ROLES, policy::PUBLIC_BINDINGS),
    ];
    for (namespace, roles, bindings) in namespaces {
        for role in policy::roles(roles) {
            all.push(role_object("Role", Some(namespace), role.name, &role));
        }
        for (name, role, subjects) in bindings {
            all.push(binding_object("Role", Some(namespace), name, role, subjects));
        }
    }
    all
}

fn metadata(namespace: Option<&str>, name: &str, label: Option<&str>) -> Value {
    let (key, value) = BOOTSTRAPPING;
    let mut meta = json!({ "name": name, "labels": { key: value }, "annotations": { AUTO_UPDATE: "true" } });
    if let Some(label) = label {
        meta["labels"][format!("{AGGREGATE_TO}{label}")] = json!("true");
    }
    if let Some(namespace) = namespace {
        meta["namespace"] = json!(namespace);
    }
    meta
}

fn role_object(kind: &str, namespace: Option<&'static str>, name: &str, role: &Role) -> Default {
    let mut object = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/v1"),
        "metadata": metadata(namespace, name, role.label), "rules": role.rules,
    });
    if let Some(label) = role.gathers {
        let labels = json!({ format!("{AGGREGATE_TO}{label}"): "true" });
        object["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": labels }] });
    }
    let plural = if namespace.is_some() { "roles" } else { "clusterroles" };
    Default { plural, namespace, object }
}

fn binding_object(
    role_kind: &str,
    namespace: Option<&'static str>,
    name: &str,
    role: &str,
    subjects: &[&str],
) -> Default {
    let (kind, plural) = match namespace {
        Some(_) => ("RoleBinding", "rolebindings"),
        None => ("ClusterRoleBinding", "clusterrolebindings"),
    };
    let mut object = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/v1"), "metadata": metadata(namespace, name, None),
        "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role },
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.iter().map(|subject| subject_of(subject)).collect();
    }
    Default { plural, namespace, object }
}

/// A subject of the tables: `user:name`, `group:name`, or `account:name` of kube-system.
fn subject_of(text: &str) -> Value {
    match text.split_once(':') {
        Some(("account", name)) => {
            json!({ "kind": "ServiceAccount", "name": name, "namespace": "kube-system" })
        }
        Some(("group", name)) => json!({ "kind": "Group", "apiGroup": GROUP, "name": name }),
        Some((_, name)) => json!({ "kind": "User", "apiGroup": GROUP, "name": name }),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::kinds;
    use hawser_api::kinds::Kind;

    fn find(plural: &str, name: &str) -> Value {
        let found = defaults().into_iter().find(|default| default.plural == plural && default.name() == name);
        found.unwrap_or_else(|| panic!("{plural} {name}")).object
    }

    #[test]
    fn the_tables_are_valid_objects_with_names_of_their_own() {
        let mut names = BTreeSet::new();
        for default in defaults() {
            let row = Kind::by_plural(GROUP, default.plural).expect("a kind");
            let mut object = default.object.clone();
            kinds::default(row, &mut object);
            assert_eq!(object, default.object, "has its defaults");
            let errors = kinds::validate_create(row, &object);
            assert!(errors.is_empty(), "{}: {errors:?}", default.name());
            for rule in rules_of(&object) {
                let lists = [&rule.api_groups, &rule.resources, &rule.non_resource_urls, &rule.verbs];
                let texts = lists.into_iter().flatten().chain(&rule.resource_names);
                for text in texts {
                    assert!(!text.contains(':') && !text.contains(' '), "{}: {text:?}", default.name());
                }
            }
            assert!(names.insert((default.plural, default.namespace, default.name().to_owned())));
        }
        let count = |plural: &str| names.iter().filter(|(known, ..)| *known == plural).count();
        assert_eq!((count("roles"), count("rolebindings")), (7, 7));
        assert_eq!(count("clusterrolebindings"), policy::CLUSTER_BINDINGS.len() + 39);
    }

    #[test]
    fn every_binding_is_of_a_role_that_is_there() {
        for default in defaults().into_iter().filter(|default| default.plural.ends_with("bindings")) {
            let role = default.object["roleRef"]["name"].as_str().expect("a name");
            let plural = if default.namespace.is_some() { "roles" } else { "clusterroles" };
            find(plural, role);
        }
    }

    #[test]
    fn tables_read_as_they_are_meant() {
        let scheduler = find("clusterroles", "system:kube-scheduler");
        assert_eq!(
            scheduler["rules"][2],
            json!({
                "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
                "resourceNames": ["kube-scheduler"], "verbs": ["get", "list", "update", "watch"],
            })
        );
        assert_eq!(scheduler["rules"][0]["apiGroups"], json!(["", "events.k8s.io"]));
        let discovery = find("clusterroles", "system:public-info-viewer");
        let urls = json!(["/healthz", "/livez", "/readyz", "/version", "/version/"]);
        assert_eq!(discovery["rules"], json!([{ "nonResourceURLs": urls, "verbs": ["get"] }]));
        let edit = find("clusterroles", "edit");
        assert_eq!(edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
        let selector = json!({ "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-edit": "true" } });
        assert_eq!(edit["aggregationRule"]["clusterRoleSelectors"], json!([selector]));
        let signer = find("clusterroles", "system:certificates.k8s.io:legacy-unknown-approver");
        assert_eq!(signer["rules"][0]["resourceNames"], json!(["kubernetes.io/legacy-unknown"]));
    }

    #[test]
    fn what_is_missing_is_added_and_the_rest_stays() {
        let default = find("clusterroles", "system:node-problem-detector");
        assert_eq!(step(default.clone(), &default), Step::Nothing);

        let mut changed = default.clone();
        let own = json!({ "apiGroups": ["x"], "resources": ["y"], "verbs": ["get"] });
        changed["rules"] = json!([own, default["rules"][0]]);
        changed["metadata"]["labels"] = json!({ "mine": "1" });
        let Step::Update(repaired) = step(changed.clone(), &default) else { panic!("something is missing") };
        assert_eq!(list(&repaired["rules"]).len(), 4);
        assert_eq!(repaired["rules"][0], own);
        assert_eq!(repaired["metadata"]["labels"]["mine"], "1");
        assert_eq!(repaired["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
        assert_eq!(step(repaired, &default), Step::Nothing);

        changed["metadata"]["annotations"][AUTO_UPDATE] = json!("false");
        assert_eq!(step(changed, &default), Step::Nothing);

        let mut wide = default.clone();
        wide["rules"] = json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }]);
        assert_eq!(step(wide, &default), Step::Nothing, "a wider rule covers the defaults");

        let default = find("clusterrolebindings", "system:discovery");
        let mut changed = default.clone();
        changed["subjects"] = json!([{ "kind": "Group", "apiGroup": GROUP, "name": "mine" }]);
        let Step::Update(repaired) = step(changed.clone(), &default) else { panic!("a subject is missing") };
        assert_eq!(list(&repaired["subjects"]).len(), 2);
        changed["roleRef"]["name"] = json!("another");
        assert_eq!(step(changed, &default), Step::Replace);
    }

    /// Compares with upstream's own data, where a copy of it is at hand.
    #[test]
    fn the_tables_agree_with_upstreams_data() {
        let directory =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/kubernetes-v1.36/bootstrap-policy");
        if !directory.is_dir() {
            println!("skipped: {} is not there", directory.display());
            return;
        }
        let mut compared = 0;
        for entry in std::fs::read_dir(directory).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a file");
            let file: Value = serde_yaml_ng::from_str(&text).expect("YAML");
            for item in list(&file["items"]) {
                let (kind, name) = (item["kind"].as_str().unwrap_or_default(), &item["metadata"]["name"]);
                let ours = defaults().into_iter().find(|default| {
                    default.object["kind"] == kind
                        && default.object["metadata"]["name"] == *name
                        && default.object["metadata"]["namespace"] == item["metadata"]["namespace"]
                });
                let ours = ours.unwrap_or_else(|| panic!("{kind} {name} is missing")).object;
                assert_eq!(step(ours.clone(), item), Step::Nothing, "{kind} {name} lacks something");
                assert_eq!(cover::missing(&rules_of(item), &rules_of(&ours)), [], "{kind} {name} has more");
                compared += 1;
            }
        }
        assert!(compared > 0, "no objects were compared");
    }
}
