//! Which resources there are names for, and which amounts of them: as containers, quotas and limits ask for them.
//!
//! Follows upstream's `pkg/apis/core/helper` and `validateResourceName`.

use hawser_api::{FieldError, quantity::Quantity};
use serde_json::Value;

use super::{meta::invalid_all, names::qualified_name, quantity, value::Path};

/// What quotas count, without a domain.
const COUNTED: [&str; 10] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

const COMPUTE: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

/// Large pages, which containers ask for by their size.
pub(crate) fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Without a domain, or with the project's own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Of somebody else's domain, and such that a quota can count what is asked of it.
pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

/// Whether more may be allowed than is asked for.
pub(crate) fn can_be_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge(name)
}

fn is_container_resource(name: &str) -> bool {
    COMPUTE.contains(&name) || is_huge(name)
}

pub(crate) fn is_quota_resource(name: &str) -> bool {
    let plain = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    let counts = COMPUTE.contains(&plain) || COUNTED.contains(&name);
    counts || is_huge(name) || name.starts_with("requests.hugepages-")
}

/// A resource of any kind; false, and an error, where it is none.
pub(crate) fn any(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) -> bool {
    let wrong = qualified_name(name);
    if !wrong.is_empty() {
        invalid_all(errors, path, name, wrong);
        return false;
    }
    if !name.contains('/') && name != "storage" && !is_quota_resource(name) {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path, name, detail));
        return false;
    }
    true
}

/// A resource that a container can ask for.
pub(crate) fn of_container(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    any(errors, path, name);
    if !name.contains('/') {
        if !is_container_resource(name) {
            errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// A resource that a quota can limit.
pub(crate) fn of_quota(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    any(errors, path, name);
    if !name.contains('/') && !is_quota_resource(name) {
        errors.push(FieldError::invalid(path, name, "must be a standard resource for quota"));
    }
}

/// No negative amount, and whole ones of what comes in pieces.
pub(crate) fn amount(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str, value: &Value) {
    quantity::not_negative(errors, path, value);
    let whole = COUNTED.contains(&name) && name != "requests.storage" || is_extended(name);
    if whole && quantity::parse(value).is_some_and(|amount| amount.milli_value() % 1000 != 0) {
        errors.push(FieldError::invalid(path, value.clone(), "must be an integer"));
    }
}

/// Whether an amount of large pages is a number of pages.
pub(crate) fn is_whole_pages(name: &str, amount: Quantity) -> bool {
    let size = name.strip_prefix("hugepages-").and_then(|size| size.parse::<Quantity>().ok());
    size.is_some_and(|size| {
        size.sign() > 0 && size.milli_value() % 1000 == 0 && amount.value() % size.value() == 0
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Rule = fn(&mut Vec<FieldError>, &Path<'_>, &str);

    #[track_caller]
    fn check(rule: Rule, name: &str, expected: &[&str]) {
        let mut errors = Vec::new();
        rule(&mut errors, &Path::Root("limits"), name);
        let texts: Vec<String> = errors.iter().map(|error| error.detail.clone()).collect();
        assert_eq!(texts, expected, "{name}");
    }

    #[test]
    fn names_of_resources() {
        const NO_TYPE: &str = "must be a standard resource type or fully qualified";
        const NOT_OF_CONTAINERS: &str = "must be a standard resource for containers";
        for name in
            ["cpu", "memory", "ephemeral-storage", "hugepages-2Mi", "example.com/gpu", "kubernetes.io/batch"]
        {
            check(of_container, name, &[]);
        }
        check(of_container, "gpu", &[NO_TYPE, NOT_OF_CONTAINERS]);
        check(of_container, "storage", &[NOT_OF_CONTAINERS]);
        check(of_container, "requests.example.com/gpu", &["doesn't follow extended resource name standard"]);
        for name in
            ["cpu", "limits.cpu", "requests.storage", "pods", "requests.hugepages-2Mi", "count/jobs.batch"]
        {
            check(of_quota, name, &[]);
        }
        check(of_quota, "storage", &["must be a standard resource for quota"]);
        check(of_quota, "gpu", &[NO_TYPE, "must be a standard resource for quota"]);
    }

    #[test]
    fn amounts_of_resources() {
        for (name, value, expected) in [
            ("cpu", "100m", None),
            ("cpu", "-1", Some("must be greater than or equal to 0")),
            ("pods", "1500m", Some("must be an integer")),
            ("example.com/gpu", "500m", Some("must be an integer")),
            ("example.com/gpu", "1k", None),
            ("requests.storage", "100m", None),
        ] {
            let mut errors = Vec::new();
            amount(&mut errors, &Path::Root("limits"), name, &json!(value));
            assert_eq!(errors.first().map(|error| error.detail.as_str()), expected, "{name} {value}");
        }
        let pages = |amount: &str| is_whole_pages("hugepages-2Mi", amount.parse().unwrap());
        assert!(pages("4Mi") && !pages("3Mi") && !is_whole_pages("hugepages-", Quantity::from_milli(1000)));
    }
}
