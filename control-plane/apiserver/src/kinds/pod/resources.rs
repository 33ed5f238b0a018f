//! What containers, and pods as a whole, ask for and are allowed.

use std::collections::HashSet;

use hawser_api::{
    FieldError,
    usage::{Overhead, limits, requests},
};
use serde_json::{Value, json};

use super::each_container;
use crate::kinds::{
    meta::invalid_all,
    names::dns_label,
    quantity,
    resource_names::{self, can_be_overcommitted, is_huge, is_whole_pages},
    value::{Fields, Path},
};

type NameRule = fn(&mut Vec<FieldError>, &Path<'_>, &str);

/// Amounts of a container, and its claims out of those of its pod.
pub(super) fn of_container(errors: &mut Vec<FieldError>, path: &Path<'_>, resources: &Value, spec: &Value) {
    amounts(errors, path, resources, resource_names::of_container);
    claims(errors, &path.field("claims"), resources, spec);
}

/// What running a pod costs beside its containers.
pub(crate) fn overhead(errors: &mut Vec<FieldError>, path: &Path<'_>, overhead: &Value) {
    amounts(errors, path, &json!({ "limits": overhead }), resource_names::of_container);
}

/// Requests within limits; what is not overcommitted needs a limit, and all of it.
fn amounts(errors: &mut Vec<FieldError>, path: &Path<'_>, resources: &Value, rule: NameRule) {
    let (limits_path, requests_path) = (path.field("limits"), path.field("requests"));
    let limits = resources.map("limits");
    for (list, amounts) in [(&limits_path, limits), (&requests_path, resources.map("requests"))] {
        for (name, amount) in amounts {
            let path = list.key(name);
            rule(errors, &path, name);
            resource_names::amount(errors, &path, name, amount);
            if let Some(pages) = quantity::parse(amount).filter(|_| is_huge(name))
                && !is_whole_pages(name, pages)
            {
                let detail = format!("{pages} is not positive integer multiple of {name}");
                errors.push(FieldError::invalid(path, amount.clone(), detail));
            }
        }
    }
    for (name, amount) in resources.map("requests") {
        let Some(limit) = limits.get(name) else {
            if !can_be_overcommitted(name) {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(limits_path, detail));
            }
            continue;
        };
        let (request, most) = (quantity::parse(amount), quantity::parse(limit));
        let text = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
        let what = match () {
            () if request != most && !can_be_overcommitted(name) => "equal to",
            () if request > most => "less than or equal to",
            () => continue,
        };
        let detail = format!("must be {what} {name} limit of {text}");
        errors.push(FieldError::invalid(requests_path, amount.clone(), detail));
    }
    let names = || limits.keys().chain(resources.map("requests").keys());
    if names().any(|name| is_huge(name)) && !names().any(|name| matches!(name.as_str(), "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Each of the pod's claims, or of its requests, once.
fn claims(errors: &mut Vec<FieldError>, list: &Path<'_>, resources: &Value, spec: &Value) {
    let mut known: Vec<&str> = spec.list("resourceClaims").iter().map(|claim| claim.text("name")).collect();
    known.retain(|name| !name.is_empty());
    known.sort_unstable();
    let mut taken: HashSet<(&str, &str)> = HashSet::new();
    for (index, claim) in resources.list("claims").iter().enumerate() {
        let path = list.index(index);
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        if !request.is_empty() {
            invalid_all(errors, &path.field("request"), request, dns_label(request));
        }
        let overlaps = taken.contains(&(name, ""))
            || taken.contains(&(name, request))
            || request.is_empty() && taken.iter().any(|(other, _)| *other == name);
        if overlaps {
            let shown = if request.is_empty() || taken.contains(&(name, "")) {
                name.to_owned()
            } else {
                format!("{name}/{request}")
            };
            errors.push(FieldError::duplicate(path, shown));
        }
        taken.insert((name, request));
        if !known.contains(&name) {
            let mut error = FieldError::not_found(path, name);
            error.detail = match known.as_slice() {
                [] => "must be one of the names in pod.spec.resourceClaims which is empty".to_owned(),
                known => format!("must be one of the names in pod.spec.resourceClaims: {}", known.join(", ")),
            };
            errors.push(error);
        }
    }
}

/// What the pod as a whole asks for (KEP-2837): no less than its containers together, no limit below one of theirs.
pub(super) fn of_pod(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let whole = spec.at("resources");
    if whole.is_null() {
        return;
    }
    let path = path.field("resources");
    if spec.text("os.name") == "windows" {
        errors.push(FieldError::forbidden(path, "may not be set for a windows pod"));
        return;
    }
    if whole.has("claims") {
        let detail = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(path.field("claims"), detail));
    }
    amounts(errors, &path, whole, |errors, path, name| {
        let supported = matches!(name, "cpu" | "memory") || is_huge(name);
        if resource_names::any(errors, path, name) && !supported {
            errors.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
        }
    });
    let mut alone = json!({ "spec": spec.clone() });
    alone.ensure("spec").drop_field("resources");
    for (field, together) in
        [("requests", requests(&alone, Overhead::Excluded)), ("limits", limits(&alone, Overhead::Excluded))]
    {
        let path = path.field(field);
        for (name, sum) in together.iter().filter(|(name, _)| field == "requests" || is_huge(name)) {
            let own = whole.at(field).get(name.as_str()).unwrap_or(&Value::Null);
            if quantity::parse(own).is_some_and(|own| own < *sum) {
                let detail = format!("must be greater than or equal to aggregate container {field} of {sum}");
                errors.push(FieldError::invalid(path.key(name), own.clone(), detail));
            }
        }
    }
    // Upstream's path, which is none of the pod's.
    let list = path.field("containers");
    for (index, container) in spec.list("containers").iter().enumerate() {
        for (name, limit) in container.map("resources.limits") {
            let Some(most) = whole.map("limits").get(name) else { continue };
            if quantity::parse(limit) > quantity::parse(most) {
                let text = most.as_str().map_or_else(|| most.to_string(), str::to_owned);
                let detail = format!("must be less than or equal to pod limits of {text}");
                let path = list.index(index);
                errors.push(FieldError::invalid(path.key(name).field("limits"), limit.clone(), detail));
            }
        }
    }
}

/// A container that has raw devices runs as users of the host alone.
pub(super) fn devices_of_users(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    each_container(spec, path, |path, container| {
        if !container.list("volumeDevices").is_empty() {
            errors.push(FieldError::forbidden(path.field("volumeDevices"), "when `hostUsers` is false"));
        }
    });
}
