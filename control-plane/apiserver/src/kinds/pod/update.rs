//! What may change in a pod.

use std::collections::HashSet;

use hawser_api::FieldError;
use serde_json::Value;

use super::{annotations, containers::RESTART_ALL};
use crate::kinds::{
    addresses::{address, loose_address},
    meta::invalid_all,
    names::{NameRule, qualified_name},
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const NODE_TERMS: &str =
    "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (spec, before) = (new.at("spec"), old.at("spec"));
    annotations::update(&mut errors, new.at("metadata.annotations"), old.at("metadata.annotations"));
    for list in ["containers", "initContainers"] {
        if spec.list(list).len() != before.list(list).len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(SPEC.field(list), detail));
            return errors;
        }
    }
    deadline(&mut errors, spec, before);
    tolerations(&mut errors, spec, before);
    gates(&mut errors, spec, before);

    // Everything that may change is taken over; what still differs may not.
    let mut allowed = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, original) in allowed.list_mut(list).iter_mut().zip(before.list(list)) {
            container.copy_field("image", original);
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        allowed.copy_field(field, before);
    }
    let shortened = before.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0)
        && spec.int("terminationGracePeriodSeconds") == Some(1);
    if shortened {
        allowed.copy_field("terminationGracePeriodSeconds", before);
    }
    if !before.list("schedulingGates").is_empty() {
        gated(&mut errors, spec, before);
        allowed.copy_field("nodeSelector", before);
        keep_node_affinity(&mut allowed, before);
    }
    let changed = differences(&allowed, before);
    if !changed.is_empty() {
        errors.push(FieldError::forbidden(SPEC, format!("{CHANGEABLE}\n{}", changed.join("\n"))));
    }
    errors
}

/// A status cannot move a pod to another node, nor take back that it ended.
pub(super) fn validate_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let nominated = new.text("status.nominatedNodeName");
    if !nominated.is_empty() && nominated != old.text("status.nominatedNodeName") {
        let wrong = NameRule::Subdomain.check(nominated);
        invalid_all(&mut errors, &Path::Root("status.nominatedNodeName"), nominated, wrong);
    }
    if new.text("spec.nodeName") != old.text("spec.nodeName") {
        errors.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
    }
    let class = new.at("status.qosClass");
    if !class.is_null() && class != old.at("status.qosClass") {
        errors.push(FieldError::invalid("status.qosClass", class.clone(), "field is immutable"));
    }
    conditions(&mut errors, new);
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        restarted(&mut errors, new, old, list);
    }
    claims(&mut errors, new);
    for (list, first) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        families(&mut errors, new.at("status"), list, first);
    }
    errors
}

/// Conditions of others than the node's agent have names like labels.
fn conditions(errors: &mut Vec<FieldError>, pod: &Value) {
    let list = Path::Root("status.conditions");
    for (index, condition) in pod.list("status.conditions").iter().enumerate() {
        let (path, kind) = (list.index(index), condition.text("type"));
        if let Some(generation) = condition.int("observedGeneration").filter(|number| *number < 0) {
            let detail = "must be a non-negative integer";
            errors.push(FieldError::invalid(path.field("observedGeneration"), generation, detail));
        }
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            invalid_all(errors, &path.field("Type"), kind, qualified_name(kind));
        }
    }
}

/// Claims that were made for the pod are those that it asks for.
fn claims(errors: &mut Vec<FieldError>, pod: &Value) {
    let list = Path::Root("status.resourceClaimStatuses");
    let mut taken = HashSet::new();
    for (index, status) in pod.list("status.resourceClaimStatuses").iter().enumerate() {
        let (path, name) = (list.index(index), status.text("name"));
        if !pod.list("spec.resourceClaims").iter().any(|claim| claim.text("name") == name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.push(FieldError::invalid(path.field("name"), name, detail));
        }
        if !taken.insert(name) {
            errors.push(FieldError::duplicate(path.field("name"), name));
        }
        if let Some(claim) = status.at("resourceClaimName").as_str() {
            invalid_all(errors, &path.field("resourceClaimName"), claim, NameRule::Subdomain.check(claim));
        }
    }
}

/// Addresses, of which the first has a field of its own: at most one of each family.
fn families(errors: &mut Vec<FieldError>, status: &Value, list: &str, first: &str) {
    let path = Path::Root("status");
    let path = path.field(list);
    let all: Vec<&str> = status.list(list).iter().map(|address| address.text("ip")).collect();
    for (index, text) in all.iter().enumerate() {
        address(errors, &path.index(index), text);
    }
    let of = |is_v4: bool| {
        let is = |text: &&str| loose_address(text).is_some_and(|address| address.is_ipv4() == is_v4);
        all.iter().copied().filter(is).count()
    };
    if of(true) > 1 || of(false) > 1 {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(path, status.at(list).clone(), detail));
    }
    if let Some(text) = all.first().filter(|text| **text != status.text(first)) {
        let detail = format!("must be equal to `{first}`");
        errors.push(FieldError::invalid(path.index(0).field("ip"), *text, detail));
    }
}

/// Whether a container that ended may be started again, by its own policy and its rules, or its pod's. That it succeeded
/// does not count: in a pod that is set up anew it runs again.
fn may_restart(pod: &Value, list: &str, status: &Value) -> bool {
    let containers = match list {
        "containerStatuses" => pod.list("spec.containers"),
        "initContainerStatuses" => pod.list("spec.initContainers"),
        _ => return false,
    };
    let starts_all_over = |container: &Value| {
        container.list("restartPolicyRules").iter().any(|rule| rule.text("action") == RESTART_ALL)
    };
    if pod.list("spec.containers").iter().chain(pod.list("spec.initContainers")).any(starts_all_over) {
        return true;
    }
    let own = containers.iter().find(|container| container.text("name") == status.text("name"));
    let code = status.at("state.terminated.exitCode");
    let is_ruled = own.is_some_and(|container| {
        container.list("restartPolicyRules").iter().any(|rule| {
            let is_listed = rule.list("exitCodes.values").contains(code);
            is_listed == (rule.text("exitCodes.operator") == "In")
        })
    });
    let policy = match own.map(|container| container.text("restartPolicy")) {
        None | Some("") => pod.text("spec.restartPolicy"),
        Some(own) => own,
    };
    is_ruled || policy != "Never"
}

fn restarted(errors: &mut Vec<FieldError>, new: &Value, old: &Value, list: &str) {
    let path = Path::Root("status");
    let (path, statuses) = (path.field(list), old.at("status").list(list));
    for (index, before) in statuses.iter().enumerate() {
        if !before.has("state.terminated") || may_restart(old, list, before) {
            continue;
        }
        let now =
            new.at("status").list(list).iter().find(|status| status.text("name") == before.text("name"));
        if now.is_some_and(|now| !now.has("state.terminated")) {
            let detail = "may not be transitioned to non-terminated state";
            errors.push(FieldError::forbidden(path.index(index).field("state"), detail));
        }
    }
}

fn deadline(errors: &mut Vec<FieldError>, spec: &Value, before: &Value) {
    let path = SPEC.field("activeDeadlineSeconds");
    match (spec.int("activeDeadlineSeconds"), before.int("activeDeadlineSeconds")) {
        (Some(new), Some(old)) if new > old => {
            errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Value::Null, detail));
        }
        _ => (),
    }
}

/// Tolerations may be added; their seconds may change.
fn tolerations(errors: &mut Vec<FieldError>, spec: &Value, before: &Value) {
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|field| a.text(field) == b.text(field))
    };
    let kept = |old: &Value| spec.list("tolerations").iter().any(|new| same(new, old));
    if !before.list("tolerations").iter().all(kept) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden(SPEC.field("tolerations"), detail));
    }
}

fn gates(errors: &mut Vec<FieldError>, spec: &Value, before: &Value) {
    let known = before.list("schedulingGates");
    let path = SPEC.field("schedulingGates");
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        if !known.contains(gate) {
            let detail = "only deletion is allowed, but found new scheduling gate ";
            let detail = format!("{detail}'{}'", gate.text("name"));
            errors.push(FieldError::forbidden(path.index(index).field("name"), detail));
        }
    }
}

/// A pod that is held back may be steered further, never less.
fn gated(errors: &mut Vec<FieldError>, spec: &Value, before: &Value) {
    let kept =
        before.map("nodeSelector").iter().all(|(key, value)| spec.at("nodeSelector").get(key) == Some(value));
    if !kept {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        let value = spec.at("nodeSelector").clone();
        errors.push(FieldError::invalid(SPEC.field("nodeSelector"), value, detail));
    }
    let (terms, known) = (spec.list(NODE_TERMS), before.list(NODE_TERMS));
    let path = SPEC.field(NODE_TERMS);
    if !known.is_empty() && terms.len() != known.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(FieldError::invalid(path, terms.to_vec(), detail));
        return;
    }
    for (index, (term, known)) in terms.iter().zip(known).enumerate() {
        if !only_adds(term, known) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(FieldError::invalid(path.index(index), term.clone(), detail));
        }
    }
}

/// Whether a term begins with all that was in it. One without requirements selects nothing, and stays so.
fn only_adds(term: &Value, known: &Value) -> bool {
    let fields = ["matchExpressions", "matchFields"];
    if fields.iter().all(|field| known.list(field).is_empty()) {
        return fields.iter().all(|field| term.list(field).is_empty());
    }
    fields.iter().all(|field| term.list(field).starts_with(known.list(field)))
}

/// Makes the affinity what it was where the pods' part of it did not change.
pub(crate) fn keep_node_affinity(spec: &mut Value, before: &Value) {
    let of_pods =
        |spec: &Value| ["podAffinity", "podAntiAffinity"].map(|part| spec.at("affinity").at(part).clone());
    if of_pods(spec) == of_pods(before) {
        spec.copy_field("affinity", before);
    }
}

/// One line for each top-level field of the spec that differs.
fn differences(new: &Value, old: &Value) -> Vec<String> {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else {
        return Vec::new();
    };
    let mut names: Vec<&String> = new.keys().chain(old.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let changed = names.into_iter().filter(|name| new.get(*name) != old.get(*name));
    changed.map(|name| format!("  spec.{name}")).collect()
}
