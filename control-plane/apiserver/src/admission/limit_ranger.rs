//! LimitRanger: containers get what a LimitRange of their namespace has for those that say nothing, and nothing is
//! smaller, larger or further from its request than the LimitRange allows.
//!
//! Pods are looked at when they are made, claims when their size changes too. What a pod got is told in an annotation.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{
    Error,
    quantity::Quantity,
    usage::{self, Amounts, Overhead, amounts, qos_class},
};
use serde_json::{Value, json};

use super::{Operation, Plugin, Request, elements};
use crate::{
    cache::{KindCache, Selection},
    resources::Resources,
};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger {
    ranges: Arc<KindCache>,
}

impl LimitRanger {
    pub(super) fn new(resources: &Resources) -> Self {
        let ranges =
            resources.builtin("", "v1", "limitranges").cache().expect("a kind that is stored").clone();
        Self { ranges }
    }

    /// The LimitRanges of a namespace, in the order of their names.
    fn ranges(&self, namespace: &str) -> impl Iterator<Item = Value> {
        let state = self.ranges.snapshot().state;
        Selection::within(Some(namespace)).select(&self.ranges, &state, "").map(|range| range.value())
    }
}

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if !request.creates("pods") {
            return Ok(());
        }
        let mut is_changed = false;
        for range in self.ranges(request.namespace) {
            is_changed |= set_defaults(request.object, &range);
        }
        if is_changed {
            request.object["status"]["qosClass"] = json!(qos_class(&request.object["spec"]));
        }
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let resizes = request.operation == Operation::Update
            && request.is("", "persistentvolumeclaims")
            && request.subresource.is_empty()
            && request.object["metadata"]["deletionTimestamp"].is_null();
        let is_pod = request.creates("pods") || (request.is("", "pods") && request.subresource == "resize");
        if !is_pod && !resizes && !request.creates("persistentvolumeclaims") {
            return Ok(());
        }
        for range in self.ranges(request.namespace) {
            let wrong =
                if is_pod { check_pod(request.object, &range) } else { check_claim(request.object, &range) };
            match wrong.as_slice() {
                [] => {}
                [only] => return Err(request.forbidden(only)),
                several => return Err(request.forbidden(&format!("[{}]", several.join(", ")))),
            }
        }
        Ok(())
    }
}

/// Fills in what containers leave open; true where something was.
fn set_defaults(pod: &mut Value, range: &Value) -> bool {
    let defaults = |field: &str| {
        let limits = elements(&range["spec"]["limits"]).iter().filter(|limit| limit["type"] == "Container");
        let mut merged = serde_json::Map::new();
        for limit in limits {
            merged.extend(limit[field].as_object().cloned().unwrap_or_default());
        }
        merged
    };
    let defaults =
        [("requests", "request", defaults("defaultRequest")), ("limits", "limit", defaults("default"))];
    let mut told = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, what, defaults) in &defaults {
                let set = fill(&mut container["resources"], field, defaults);
                if !set.is_empty() {
                    told.push(format!("{} {what} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if told.is_empty() {
        return false;
    }
    let annotations = &mut pod["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations[ANNOTATION] = json!(format!("LimitRanger plugin set: {}", told.join("; ")));
    true
}

/// Sets what `resources` does not name in `field`; returns the names, in order.
fn fill(resources: &mut Value, field: &str, defaults: &serde_json::Map<String, Value>) -> Vec<String> {
    let missing = defaults.iter().filter(|(name, _)| resources[field].get(name).is_none());
    let missing: Vec<(String, Value)> =
        missing.map(|(name, amount)| (name.clone(), amount.clone())).collect();
    let mut names = Vec::new();
    for (name, amount) in missing {
        if resources.is_null() {
            *resources = json!({});
        }
        if resources[field].is_null() {
            resources[field] = json!({});
        }
        resources[field][&name] = amount;
        names.push(name);
    }
    names.sort();
    names
}

fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for limit in elements(&range["spec"]["limits"]) {
        match limit["type"].as_str() {
            Some("Container") => {
                let spec = &pod["spec"];
                for container in elements(&spec["containers"]).iter().chain(elements(&spec["initContainers"]))
                {
                    let of = |field: &str| amounts(&container["resources"][field]);
                    check(&mut wrong, limit, &of("requests"), Some(&of("limits")));
                }
            }
            Some("Pod") => {
                let requests = usage::requests(pod, Overhead::Excluded);
                let limits = usage::limits(pod, Overhead::Excluded);
                check(&mut wrong, limit, &requests, Some(&limits));
            }
            _ => {}
        }
    }
    wrong
}

fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for limit in elements(&range["spec"]["limits"]) {
        if limit["type"] == "PersistentVolumeClaim" {
            check(&mut wrong, limit, &requests, None);
        }
    }
    wrong
}

/// Holds amounts against one entry of a LimitRange; `limits` is `None` where the kind has requests only.
fn check(wrong: &mut Vec<String>, limit: &Value, requests: &Amounts, limits: Option<&Amounts>) {
    let kind = limit["type"].as_str().unwrap_or_default();
    let amount = |list: &Amounts, name: &str| list.get(name).copied();
    for (name, least) in amounts(&limit["min"]) {
        let said = format!("minimum {name} usage per {kind} is {least}");
        let (request, limit) = (amount(requests, &name), limits.and_then(|limits| amount(limits, &name)));
        match (request, limit) {
            (None, _) => wrong.push(format!("{said}.  No request is specified")),
            (Some(request), _) if request < least => wrong.push(format!("{said}, but request is {request}")),
            (_, Some(limit)) if limit < least => wrong.push(format!("{said}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["max"]) {
        let said = format!("maximum {name} usage per {kind} is {most}");
        let request = amount(requests, &name);
        match (limits.map(|limits| amount(limits, &name)), request) {
            (Some(None), _) => wrong.push(format!("{said}.  No limit is specified")),
            (Some(Some(limit)), _) if limit > most => wrong.push(format!("{said}, but limit is {limit}")),
            (None, None) => wrong.push(format!("{said}.  No request is specified")),
            (_, Some(request)) if request > most => wrong.push(format!("{said}, but request is {request}")),
            _ => {}
        }
    }
    let Some(limits) = limits else { return };
    for (name, most) in amounts(&limit["maxLimitRequestRatio"]) {
        let said = format!("{name} max limit to request ratio per {kind} is {most}");
        let some = |list: &Amounts| amount(list, &name).filter(|amount| !amount.is_zero());
        match (some(requests), some(limits)) {
            (None, _) => wrong.push(format!("{said}, but no request is specified or request is 0")),
            (_, None) => wrong.push(format!("{said}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = as_float(limit) / as_float(request);
                if ratio > as_float(most) {
                    wrong.push(format!("{said}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

/// In thousandths where those fit 64 bits, else in units: close enough for a ratio.
fn as_float(amount: Quantity) -> f64 {
    match amount.milli_value() {
        i64::MAX | i64::MIN => amount.value() as f64,
        milli => milli as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(limits: Value) -> Value {
        json!({ "spec": { "limits": limits } })
    }

    fn pod(requests: Value, limits: Value) -> Value {
        json!({ "metadata": {}, "spec": { "containers": [
            { "name": "a", "resources": { "requests": requests, "limits": limits } },
        ] } })
    }

    #[test]
    fn containers_get_what_they_leave_open_and_the_pod_tells() {
        let range = range(json!([
            { "type": "Container", "default": { "cpu": "1", "memory": "1Gi" }, "defaultRequest": { "cpu": "100m" } },
            { "type": "Pod", "default": { "cpu": "9" } },
        ]));
        let mut plain = pod(json!({}), json!({ "cpu": "2" }));
        plain["spec"]["initContainers"] = json!([{ "name": "first" }]);
        assert!(set_defaults(&mut plain, &range));
        let resources = |list: &str| plain["spec"][list][0]["resources"].clone();
        let (wanted, all) = (json!({ "cpu": "100m" }), json!({ "cpu": "1", "memory": "1Gi" }));
        assert_eq!(
            resources("containers"),
            json!({ "requests": wanted, "limits": { "cpu": "2", "memory": "1Gi" } })
        );
        assert_eq!(resources("initContainers"), json!({ "requests": wanted, "limits": all }));
        assert_eq!(
            plain["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; memory limit for container a; cpu request for init \
             container first; cpu, memory limit for init container first"
        );
        let before = plain.clone();
        assert!(!set_defaults(&mut plain, &range) && plain == before, "a second run changes nothing");
    }

    #[track_caller]
    fn check_pods(what: &str, limit: Value, pod: &Value, expected: &[&str]) {
        assert_eq!(check_pod(pod, &range(json!([limit]))), expected, "{what}");
    }

    #[test]
    fn amounts_stay_within_their_range() {
        let of = |request: &str, limit: &str| pod(json!({ "cpu": request }), json!({ "cpu": limit }));
        let none = pod(json!({}), json!({}));
        let least = json!({ "type": "Container", "min": { "cpu": "100m" } });
        check_pods("enough", least.clone(), &of("0.1", "1"), &[]);
        check_pods(
            "too small a request",
            least.clone(),
            &of("50m", "1"),
            &["minimum cpu usage per Container is 100m, but request is 50m"],
        );
        check_pods(
            "too small a limit",
            least.clone(),
            &of("100m", "50m"),
            &["minimum cpu usage per Container is 100m, but limit is 50m"],
        );
        check_pods(
            "nothing",
            least,
            &none,
            &["minimum cpu usage per Container is 100m.  No request is specified"],
        );
        let most = json!({ "type": "Container", "max": { "cpu": "2" } });
        check_pods("not too much", most.clone(), &of("1", "2"), &[]);
        check_pods(
            "a large limit",
            most.clone(),
            &of("1", "3"),
            &["maximum cpu usage per Container is 2, but limit is 3"],
        );
        check_pods(
            "a large request",
            most.clone(),
            &of("3", "1"),
            &["maximum cpu usage per Container is 2, but request is 3"],
        );
        check_pods(
            "no limit",
            most,
            &none,
            &["maximum cpu usage per Container is 2.  No limit is specified"],
        );
        let ratio = json!({ "type": "Container", "maxLimitRequestRatio": { "cpu": "2" } });
        check_pods("a ratio that is reached", ratio.clone(), &of("500m", "1"), &[]);
        check_pods(
            "a ratio too large",
            ratio.clone(),
            &of("100m", "1"),
            &["cpu max limit to request ratio per Container is 2, but provided ratio is 10.000000"],
        );
        check_pods(
            "no ratio",
            ratio,
            &of("0", "1"),
            &[
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ],
        );
        let mut both = of("1", "1");
        let container = both["spec"]["containers"][0].clone();
        both["spec"]["containers"] = json!([container, container]);
        let whole = json!({ "type": "Pod", "max": { "cpu": "1500m" } });
        check_pods(
            "the pod as a whole",
            whole,
            &both,
            &["maximum cpu usage per Pod is 1500m, but limit is 2"],
        );
        check_pods(
            "another kind",
            json!({ "type": "PersistentVolumeClaim", "max": { "cpu": "1" } }),
            &both,
            &[],
        );
    }

    #[test]
    fn claims_have_sizes_only() {
        let range = range(
            json!([{ "type": "PersistentVolumeClaim", "min": { "storage": "1Gi" }, "max": { "storage": "9Gi" } }]),
        );
        let of = |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        for (size, expected) in [
            ("1Gi", None),
            ("9Gi", None),
            ("1Mi", Some("minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi")),
            ("10Gi", Some("maximum storage usage per PersistentVolumeClaim is 9Gi, but request is 10Gi")),
        ] {
            assert_eq!(check_claim(&of(size), &range).first().map(String::as_str), expected, "{size}");
        }
    }
}
