//! Amounts of resources, as whole numbers: thousandths of a core, bytes, counts.

use std::collections::BTreeMap;

use hawser_api::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity as Text,
};

pub(crate) const CPU: &str = "cpu";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const EPHEMERAL_STORAGE: &str = "ephemeral-storage";
pub(crate) const PODS: &str = "pods";

/// What a container that asks for nothing is taken for when nodes are compared (upstream's numbers).
const UNASKED_CPU_MILLI: i64 = 100;
const UNASKED_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// More than any node has, and still small enough that thousands of them add up. What asks for more fits nowhere anyway.
const MAX_AMOUNT: i64 = i64::MAX >> 12;

/// Amounts by resource name; cpu in thousandths. Names with nothing are left out.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// Reads a resource list; what is no quantity counts as nothing.
pub(crate) fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    list.into_iter()
        .flatten()
        .filter_map(|(name, text)| {
            let quantity: Quantity = text.0.parse().ok()?;
            let amount = if name == CPU { quantity.milli_value() } else { quantity.value() };
            Some((name.clone(), amount.clamp(0, MAX_AMOUNT)))
        })
        .collect()
}

/// What a pod needs on its node: containers together, or its largest init step, and its overhead.
///
/// The rules are those of `k8s.io/component-helpers/resource`: sidecars count with the containers and with every
/// init step after them; requests of the pod as a whole stand above those of its containers.
pub(crate) fn pod_requests(spec: &PodSpec) -> Amounts {
    requests(spec, false)
}

/// The same, with a small amount in place of what was not asked for: cpu and memory, for scores.
pub(crate) fn scored_requests(spec: &PodSpec) -> (i64, i64) {
    let amounts = requests(spec, true);
    let of = |name: &str| amounts.get(name).copied().unwrap_or_default();
    (of(CPU), of(MEMORY))
}

fn requests(spec: &PodSpec, fill: bool) -> Amounts {
    let of = |container: &Container| {
        let mut asked =
            amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        if fill {
            asked.entry(CPU.to_owned()).or_insert(UNASKED_CPU_MILLI);
            asked.entry(MEMORY.to_owned()).or_insert(UNASKED_MEMORY_BYTES);
        }
        asked
    };
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut largest_step) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut total, &step);
            add(&mut sidecars, &step);
            step = sidecars.clone();
        } else {
            add(&mut step, &sidecars);
        }
        raise(&mut largest_step, &step);
    }
    raise(&mut total, &largest_step);
    for (name, amount) in amounts(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref())) {
        total.insert(name, amount);
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.retain(|_, amount| *amount > 0);
    total.values_mut().for_each(|amount| *amount = (*amount).min(MAX_AMOUNT));
    total
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: serde_json::Value, cpu: i64, memory: i64) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let amounts = pod_requests(&spec);
        let of = |name: &str| amounts.get(name).copied().unwrap_or_default();
        assert_eq!((of(CPU), of(MEMORY)), (cpu, memory));
    }

    #[test]
    fn requests_of_a_pod() {
        let container = |cpu: &str, memory: &str| json!({ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } });
        let sidecar = |cpu: &str| json!({ "name": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": cpu } } });
        check(json!({ "containers": [container("100m", "1Ki"), container("1", "1")] }), 1100, 1025);
        check(
            json!({ "containers": [container("1", "1")], "initContainers": [container("3", "1")] }),
            3000,
            1,
        );
        check(
            json!({ "containers": [container("1", "1")], "initContainers": [sidecar("500m"), container("1", "1")] }),
            1500,
            1,
        );
        check(
            json!({ "containers": [container("1", "1")], "initContainers": [sidecar("500m"), container("2", "1")] }),
            2500,
            1,
        );
        check(json!({ "containers": [container("1", "1")], "overhead": { "cpu": "250m" } }), 1250, 1);
        check(
            json!({ "containers": [container("1", "1")], "resources": { "requests": { "cpu": "4" } } }),
            4000,
            1,
        );
        check(json!({ "containers": [{ "name": "c" }] }), 0, 0);
        let spec: PodSpec =
            serde_json::from_value(json!({ "containers": [{ "name": "c" }, { "name": "d" }] })).unwrap();
        assert_eq!(scored_requests(&spec), (200, 400 * 1024 * 1024));
    }
}
