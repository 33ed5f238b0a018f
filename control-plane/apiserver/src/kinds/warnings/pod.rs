//! Warnings about pods, and the templates of pods.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{claim, fractional, node_labels, old_label, old_source};
use crate::admission::warnings::MAX_WARNINGS;
use crate::kinds::{
    names::label_value,
    pod::each_container,
    rules::words,
    value::{Fields, Path},
};

const BYTES: [&str; 2] = ["memory", "ephemeral-storage"];
const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_POD: &str = "a null labelSelector results in matching no pod";

/// `root` is where the template is; empty for a pod.
pub(super) fn of(said: &mut Vec<String>, root: &Path<'_>, pod: &Value) {
    let (path, spec) = (root.field("spec"), pod.at("spec"));
    placement(said, &path, spec);
    let annotations = root.field("metadata");
    let annotations = annotations.field("annotations");
    let notes = pod.at("metadata.annotations");
    for (key, what) in OLD_ANNOTATIONS {
        if notes.get(key).is_some() {
            said.push(format!("{}: {what}", annotations.key(key)));
        }
    }
    let list = path.field("volumes");
    for (index, volume) in spec.list("volumes").iter().enumerate() {
        let path = list.index(index);
        old_source(said, &path, volume);
        let template = path.field("ephemeral.volumeClaimTemplate.spec");
        claim(said, &template, volume.at("ephemeral.volumeClaimTemplate.spec"));
    }
    twice(said, &path, spec, "hostAliases", "ip");
    twice(said, &path, spec, "imagePullSecrets", "name");
    let list = path.field("imagePullSecrets");
    for (index, secret) in spec.list("imagePullSecrets").iter().enumerate() {
        if secret.text("name").is_empty() {
            said.push(format!("{}: invalid empty name \"\"", list.index(index).field("name")));
        }
    }
    fractional(said, &path.field("overhead"), spec.at("overhead"), &BYTES);
    if notes.get(SECCOMP_OF_POD).is_some() && !spec.has("securityContext.seccompProfile") {
        let what = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
        said.push(format!("{}: {what}", annotations.key(SECCOMP_OF_POD)));
    }
    each_container(spec, &path, |path, container| {
        let name = container.text("name");
        for (prefix, field, what) in [
            (SECCOMP, "seccompProfile", "non-functional in v1.27+"),
            (APP_ARMOR, "appArmorProfile", "deprecated since v1.30"),
        ] {
            let key = format!("{prefix}{name}");
            let has = container.at("securityContext").has(field)
                || prefix == APP_ARMOR && spec.at("securityContext").has(field);
            if notes.get(&key).is_some() && !has {
                said.push(format!("{}: {what}; use the {field:?} field instead", annotations.key(&key)));
            }
        }
        for field in ["limits", "requests"] {
            let amounts = path.field("resources");
            fractional(said, &amounts.field(field), container.at("resources").at(field), &BYTES);
        }
        variables(said, &path.field("env"), container.list("env"));
    });
    ports(said, &path, spec);
    if spec.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        let what = "must be >= 0; negative values are invalid and will be treated as 1";
        said.push(format!("{}: {what}", path.field("terminationGracePeriodSeconds")));
    }
    affinity(said, &path, spec);
}

/// Labels of nodes by their older names, and constraints that select nothing.
fn placement(said: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    node_labels(said, &path.field("nodeSelector"), spec.at("nodeSelector"));
    let (of, nodes) = (path.field("affinity.nodeAffinity"), spec.at("affinity.nodeAffinity"));
    let list = of.field(REQUIRED);
    let list = list.field("nodeSelectorTerms");
    for (index, term) in nodes.at(REQUIRED).list("nodeSelectorTerms").iter().enumerate() {
        node_term(said, &list.index(index), term);
    }
    let list = of.field(PREFERRED);
    for (index, term) in nodes.list(PREFERRED).iter().enumerate() {
        let path = list.index(index);
        node_term(said, &path.field("preference"), term.at("preference"));
        values(said, &path.field("preference"), term.at("preference"));
    }
    let list = path.field("topologySpreadConstraints");
    for (index, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let (path, key) = (list.index(index), constraint.text("topologyKey"));
        if let Some(what) = old_label(key) {
            said.push(format!("{}: {key} is {what}", path.field("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            said.push(format!("{}: {NO_POD}", path.field("labelSelector")));
        }
    }
}

fn node_term(said: &mut Vec<String>, path: &Path<'_>, term: &Value) {
    let list = path.field("matchExpressions");
    for (index, expression) in term.list("matchExpressions").iter().enumerate() {
        let key = expression.text("key");
        if let Some(what) = old_label(key) {
            said.push(format!("{}: {key} is {what}", list.index(index).field("key")));
        }
    }
}

/// What is only preferred is not refused where no label can have the value.
fn values(said: &mut Vec<String>, path: &Path<'_>, term: &Value) {
    let list = path.field("matchExpressions");
    for (index, expression) in term.list("matchExpressions").iter().enumerate() {
        let path = list.index(index);
        for (at, value) in words(expression, "values").into_iter().enumerate() {
            let path = path.field("values");
            said.extend(label_value(value).iter().map(|wrong| format!("{}: {wrong}", path.index(at))));
        }
    }
}

fn affinity(said: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    for field in ["podAffinity", "podAntiAffinity"] {
        let of = path.field("affinity");
        let (of, terms) = (of.field(field), spec.at("affinity").at(field));
        for (strength, part) in [(REQUIRED, ""), (PREFERRED, "podAffinityTerm")] {
            let list = of.field(strength);
            for (index, term) in terms.list(strength).iter().enumerate() {
                let (term, path) =
                    if part.is_empty() { (term, "") } else { (term.at(part), "podAffinityTerm.") };
                if !term.has("labelSelector") {
                    let field = format!("{path}labelSelector");
                    said.push(format!("{}: {NO_POD}", list.index(index).field(&field)));
                }
            }
        }
    }
}

/// Items of a list that say the same thing again.
fn twice(said: &mut Vec<String>, path: &Path<'_>, spec: &Value, list: &str, field: &str) {
    let mut taken = HashSet::new();
    let of = path.field(list);
    for (index, item) in spec.list(list).iter().enumerate() {
        let text = item.text(field);
        if !taken.insert(text) {
            said.push(format!("{}: duplicate {field} {text:?}", of.index(index).field(field)));
        }
    }
}

/// A later variable may build on an earlier one of its name; other ones hide it.
fn variables(said: &mut Vec<String>, list: &Path<'_>, variables: &[Value]) {
    let mut taken = HashSet::new();
    for (index, variable) in variables.iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        let reference = format!("$({name})");
        let hides = variable.has("valueFrom") || value == reference || !value.contains(&reference);
        if !taken.insert(name) && hides {
            let what =
                format!("hides previous definition of {name:?}, which may be dropped when using apply");
            said.push(format!("{}: {what}", list.index(index)));
        }
    }
}

/// Ports that several containers, or one of them, have more than once.
fn ports(said: &mut Vec<String>, path: &Path<'_>, spec: &Value) {
    let mut known: HashMap<(i64, String), Vec<(String, Value)>> = HashMap::new();
    each_container(spec, path, |path, container| {
        let list = path.field("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            if said.len() >= MAX_WARNINGS {
                return;
            }
            let number = |port: &Value, field: &str| port.int(field).unwrap_or_default();
            let own = list.index(index).to_string();
            let key = (number(port, "containerPort"), port.text("protocol").to_owned());
            let others = known.entry(key).or_default();
            for (other, earlier) in others.iter() {
                let (ip, other_ip) = (port.text("hostIP"), earlier.text("hostIP"));
                let (host, other_host) = (number(port, "hostPort"), number(earlier, "hostPort"));
                let what = match () {
                    () if ip == other_ip && host == other_host => "duplicate",
                    () if host == 0 || other_host == 0 => "overlapping",
                    () if host == other_host && ip.is_empty() != other_ip.is_empty() => {
                        "dangerously ambiguous"
                    }
                    () => continue,
                };
                said.push(format!("{own}: {what} port definition with {other}"));
                if said.len() >= MAX_WARNINGS {
                    return;
                }
            }
            others.push((own, port.clone()));
        }
    });
}
