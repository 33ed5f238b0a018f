//! What may change in a pod.

use hawser_api::FieldError;
use serde_json::Value;

use crate::kinds::value::{Fields, Path};

const SPEC: Path<'static> = Path::Root("spec");
const NODE_TERMS: &str =
    "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (spec, before) = (new.at("spec"), old.at("spec"));
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
    for detail in crate::kinds::NameRule::Subdomain.check(nominated) {
        if !nominated.is_empty() {
            errors.push(FieldError::invalid("status.nominatedNodeName", nominated, detail));
        }
    }
    if new.text("spec.nodeName") != old.text("spec.nodeName") {
        errors.push(FieldError::forbidden("status.nodeName", "may not be changed directly"));
    }
    if new.text("spec.restartPolicy") != "OnFailure" {
        for list in ["containerStatuses", "initContainerStatuses"] {
            restarted(&mut errors, new, old, list);
        }
    }
    errors
}

fn restarted(errors: &mut Vec<FieldError>, new: &Value, old: &Value, list: &str) {
    if new.text("spec.restartPolicy") == "Always" {
        return;
    }
    let path = Path::Root("status");
    let (path, statuses) = (path.field(list), old.at("status").list(list));
    for (index, before) in statuses.iter().enumerate() {
        let sidecar = old
            .list("spec.initContainers")
            .iter()
            .any(|container| container.text("name") == before.text("name") && container.has("restartPolicy"));
        if sidecar || !before.has("state.terminated") {
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
            errors.push(FieldError::forbidden(path.index(index), detail));
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
