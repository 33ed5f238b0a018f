//! Which names of a ResourceQuota a kind counts for, how much an object counts, and which objects a quota is about.
//!
//! The rules are those of upstream's evaluators (`pkg/quota/v1/evaluator/core`). Pods count until they end; claims by
//! storage and class; services by type; every kind by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{Amounts, Overhead, add, amounts, limits, list, qos_class, quantity, requests, text};
use crate::quantity::{Format, Quantity};

/// Between a storage class and what is counted of it: `gold.storageclass.storage.k8s.io/requests.storage`.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Before the name of a device class, where it stands for an extended resource.
const OF_DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";
const CLAIMS: &str = "persistentvolumeclaims";
const STORAGE: &str = "requests.storage";

/// Kinds whose number has a name of its own beside `count/...`.
const NAMED: [&str; 6] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// Names for pods; of those that are in [`REQUIRED`] every container has to say something.
const OF_PODS: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const REQUIRED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// A kind of objects, as quotas name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
}

impl Counted<'_> {
    /// `count/pods`, `count/deployments.apps`.
    fn number(&self) -> String {
        if self.group.is_empty() {
            format!("count/{}", self.resource)
        } else {
            format!("count/{}.{}", self.resource, self.group)
        }
    }

    fn is(&self, resource: &str) -> bool {
        self.group.is_empty() && self.resource == resource
    }

    /// Whether objects of this kind count under `name`.
    pub fn counts_as(&self, name: &str) -> bool {
        if name.strip_prefix("count/").is_some() {
            return name == self.number();
        }
        if !self.group.is_empty() {
            return false;
        }
        match self.resource {
            "pods" => {
                OF_PODS.contains(&name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || name.strip_prefix("requests.").is_some_and(is_extended)
            }
            CLAIMS => {
                let counted = name.split_once(OF_CLASS).map_or(name, |(_, counted)| counted);
                matches!(counted, CLAIMS | STORAGE)
            }
            "services" => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
            resource => name == resource && NAMED.contains(&resource),
        }
    }

    /// Whether a change of an object can change what it counts.
    pub fn changes_with_updates(&self) -> bool {
        self.is(CLAIMS) || self.is("services")
    }

    /// What one object counts, by every name that it counts under.
    pub fn usage(&self, object: &Value, now: Timestamp) -> Amounts {
        let one = Quantity::from_units(1, Format::DecimalSi);
        let mut usage = Amounts::from([(self.number(), one)]);
        if !self.group.is_empty() {
            return usage;
        }
        match self.resource {
            "pods" if lives(object, now) => add(&mut usage, &pod_usage(object)),
            "pods" => {}
            CLAIMS => claim_usage(object, &mut usage),
            "services" => service_usage(object, &mut usage),
            _ => {}
        }
        if NAMED.contains(&self.resource) {
            usage.insert(self.resource.to_owned(), one);
        }
        usage
    }

    /// Whether a quota with this `spec` and these names is about the object.
    pub fn is_matched(&self, spec: &Value, names: &[&str], object: &Value) -> bool {
        names.iter().any(|name| self.counts_as(name))
            && scopes(spec).all(|scope| self.is_in_scope(&scope, object))
    }

    fn is_in_scope(&self, scope: &Scope<'_>, object: &Value) -> bool {
        let values: BTreeSet<&str> = match (self.resource, scope.name) {
            _ if !self.group.is_empty() => return false,
            ("pods", "Terminating") => return has_deadline(object),
            ("pods", "NotTerminating") => return !has_deadline(object),
            ("pods", "BestEffort") => return is_best_effort(object),
            ("pods", "NotBestEffort") => return !is_best_effort(object),
            ("pods", "CrossNamespacePodAffinity") => {
                return reaches_other_namespaces(&object["spec"]["affinity"]);
            }
            ("pods", "PriorityClass") => [text(&object["spec"]["priorityClassName"])].into(),
            (CLAIMS, "VolumeAttributesClass") => [
                text(&object["spec"]["volumeAttributesClassName"]),
                text(&object["status"]["currentVolumeAttributesClassName"]),
                text(&object["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"]),
            ]
            .into(),
            _ => return false,
        };
        let values: BTreeSet<&str> = values.into_iter().filter(|value| !value.is_empty()).collect();
        let is_listed = |value: &&str| list(scope.values).iter().any(|listed| listed == *value);
        match scope.operator {
            "Exists" => !values.is_empty(),
            "DoesNotExist" => values.is_empty(),
            "In" => values.iter().any(is_listed),
            "NotIn" => values.is_empty() || values.iter().any(|value| !is_listed(value)),
            _ => false,
        }
    }
}

/// What a quota with these names wants every container of a pod to say and does not find: `must specify limits.cpu for: app`.
pub fn missing(names: &[&str], pod: &Value) -> Option<String> {
    let required: BTreeSet<&str> = names.iter().copied().filter(|name| REQUIRED.contains(name)).collect();
    let mut silent: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let spec = &pod["spec"];
    for container in list(&spec["containers"]).iter().chain(list(&spec["initContainers"])) {
        let resources = &container["resources"];
        let said = compute(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
        for name in required.iter().filter(|name| !said.contains_key(**name)) {
            silent.entry(name).or_default().insert(text(&container["name"]));
        }
    }
    if silent.is_empty() {
        return None;
    }
    let parts: Vec<String> = silent
        .into_iter()
        .map(|(name, containers)| {
            format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
        })
        .collect();
    Some(format!("must specify {}", parts.join("; ")))
}

struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: &'a Value,
}

fn scopes(spec: &Value) -> impl Iterator<Item = Scope<'_>> {
    let plain = list(&spec["scopes"]).iter();
    let plain = plain.map(|name| Scope { name: text(name), operator: "Exists", values: &Value::Null });
    let selected = list(&spec["scopeSelector"]["matchExpressions"]).iter().map(|it| Scope {
        name: text(&it["scopeName"]),
        operator: text(&it["operator"]),
        values: &it["values"],
    });
    plain.chain(selected)
}

/// Neither ended nor stuck: a pod whose grace is long over, on a node that does not answer, is not held against anybody.
fn lives(pod: &Value, now: Timestamp) -> bool {
    if matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return false;
    }
    stuck_from(pod).is_none_or(|at| now <= at)
}

/// When a pod that is asked to end stops counting, whether it has ended or not.
pub fn stuck_from(pod: &Value) -> Option<Timestamp> {
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64()?;
    let asked: Timestamp = pod["metadata"]["deletionTimestamp"].as_str()?.parse().ok()?;
    asked.checked_add(Duration::from_secs(grace)).ok()
}

fn pod_usage(pod: &Value) -> Amounts {
    let mut usage = compute(&requests(pod, Overhead::Included), &limits(pod, Overhead::Included));
    usage.insert("pods".to_owned(), Quantity::from_units(1, Format::DecimalSi));
    usage
}

/// Requests and limits under the names that quotas have for them.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::new();
    for (name, amount) in requests {
        let native =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if native {
            usage.insert(name.clone(), *amount);
        }
        if native || is_extended(name) {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), *amount);
        }
    }
    usage
}

/// A resource of somebody else's domain, `example.com/gpu`, or the name by which every device class can be asked for (KEP-5004).
fn is_extended(name: &str) -> bool {
    name.starts_with(OF_DEVICE_CLASS)
        || name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

fn claim_usage(claim: &Value, usage: &mut Amounts) {
    let one = Quantity::from_units(1, Format::DecimalSi);
    let annotated = &claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = annotated.as_str().unwrap_or_else(|| text(&claim["spec"]["storageClassName"]));
    let whole = |amount: Quantity| {
        // Counted in bytes, so parts of one are rounded up.
        let up = Quantity::from_units(amount.value(), amount.format());
        if up == amount { amount } else { up }
    };
    let requested = quantity(&claim["spec"]["resources"]["requests"]["storage"]).map(whole);
    let allocated = quantity(&claim["status"]["allocatedResources"]["storage"]).map(whole);
    let storage =
        requested.map(|requested| allocated.map_or(requested, |allocated| requested.max(allocated)));
    if let Some(storage) = storage {
        usage.insert(STORAGE.to_owned(), storage);
    }
    if !class.is_empty() {
        usage.insert(format!("{class}{OF_CLASS}{CLAIMS}"), one);
        if let Some(storage) = storage {
            usage.insert(format!("{class}{OF_CLASS}{STORAGE}"), storage);
        }
    }
}

fn service_usage(service: &Value, usage: &mut Amounts) {
    let spec = &service["spec"];
    let ports = list(&spec["ports"]);
    // Ports are allocated later: what counts is what is asked for.
    let (balancers, node_ports) = match text(&spec["type"]) {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            (1, ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count())
        }
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    let number =
        |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi);
    usage.insert("services.loadbalancers".to_owned(), number(balancers));
    usage.insert("services.nodeports".to_owned(), number(node_ports));
}

fn has_deadline(pod: &Value) -> bool {
    pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(pod: &Value) -> bool {
    qos_class(&pod["spec"]) == "BestEffort"
}

fn reaches_other_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|side| {
        let side = &affinity[*side];
        let required = list(&side["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = list(&side["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.map(|weighted| &weighted["podAffinityTerm"]))
            .any(|term| !list(&term["namespaces"]).is_empty() || !term["namespaceSelector"].is_null())
    })
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
