//! Amounts of resources, as whole numbers: thousandths of a core, bytes, counts.

use std::collections::BTreeMap;

use hawser_api::quantity::Quantity;
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, ResourceRequirements},
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

/// The amounts that every evaluation reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Numbers {
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) ephemeral_bytes: i64,
    pub(crate) pods: i64,
}

/// Amounts of every kind: what a pod asks for, what a node has, what is taken of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Requests {
    pub(crate) numbers: Numbers,
    pub(crate) extended: Amounts,
}

impl Requests {
    pub(crate) fn from_amounts(mut amounts: Amounts) -> Self {
        let mut take = |name: &str| amounts.remove(name).unwrap_or_default();
        let numbers = Numbers {
            cpu_milli: take(CPU),
            memory_bytes: take(MEMORY),
            ephemeral_bytes: take(EPHEMERAL_STORAGE),
            pods: take(PODS),
        };
        Self { numbers, extended: amounts }
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            CPU => self.numbers.cpu_milli,
            MEMORY => self.numbers.memory_bytes,
            EPHEMERAL_STORAGE => self.numbers.ephemeral_bytes,
            PODS => self.numbers.pods,
            _ => self.extended.get(name).copied().unwrap_or_default(),
        }
    }

    /// Adds one pod's amounts, or takes them off again.
    ///
    /// Saturating, because users choose the amounts. One pod's are bounded so that no number of pods a node can hold gets
    /// there: what is taken off again later is then exact.
    pub(crate) fn count(&mut self, pod: &Self, sign: i64) {
        let change = |sum: &mut i64, amount: i64| *sum = sum.saturating_add(amount.saturating_mul(sign));
        change(&mut self.numbers.cpu_milli, pod.numbers.cpu_milli);
        change(&mut self.numbers.memory_bytes, pod.numbers.memory_bytes);
        change(&mut self.numbers.ephemeral_bytes, pod.numbers.ephemeral_bytes);
        for (name, amount) in &pod.extended {
            change(self.extended.entry(name.clone()).or_default(), *amount);
        }
        if !pod.extended.is_empty() {
            self.extended.retain(|_, amount| *amount != 0);
        }
    }
}

/// Whether a resource is beside cpu, memory and storage: nodes without it are no better or worse for pods that do not
/// ask for it.
pub(crate) fn is_extended(name: &str) -> bool {
    !matches!(name, CPU | MEMORY | EPHEMERAL_STORAGE | PODS)
}

/// What a pod needs on its node: containers together, or its largest init step, and its overhead.
///
/// The rules are those of `k8s.io/component-helpers/resource`: sidecars count with the containers and with every
/// init step after them; requests of the pod as a whole stand above those of its containers. Of a container, or a pod as a
/// whole, that is being resized the larger of what is asked and what it has counts.
pub(crate) fn requests(pod: &Pod, spec: &PodSpec) -> Requests {
    Requests::from_amounts(total(pod, spec, false))
}

/// The same, with a small amount of cpu and memory in place of what was not asked for.
pub(crate) fn scored_requests(pod: &Pod, spec: &PodSpec) -> Requests {
    Requests::from_amounts(total(pod, spec, true))
}

fn total(pod: &Pod, spec: &PodSpec, fill: bool) -> Amounts {
    let of = |container: &Container| {
        let mut asked = container_requests(pod, container);
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
    total.extend(pod_requests(pod, spec));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total.retain(|_, amount| *amount > 0);
    total.values_mut().for_each(|amount| *amount = (*amount).min(MAX_AMOUNT));
    total
}

fn asked(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What the container asks for, or has while it is resized.
fn container_requests(pod: &Pod, container: &Container) -> Amounts {
    let wanted = asked(container.resources.as_ref());
    let Some(status) = container_status(pod, &container.name) else {
        return wanted;
    };
    let has = [asked(status.resources.as_ref()), amounts(status.allocated_resources.as_ref())];
    resized(pod, wanted, &has)
}

/// The same of the pod as a whole, where it asks as such.
fn pod_requests(pod: &Pod, spec: &PodSpec) -> Amounts {
    let wanted = asked(spec.resources.as_ref());
    let Some(status) = &pod.status else {
        return wanted;
    };
    let mut has = [asked(status.resources.as_ref()), amounts(status.allocated_resources.as_ref())];
    // The rest is what its containers have together.
    has.iter_mut().for_each(|has| has.retain(|name, _| wanted.contains_key(name)));
    resized(pod, wanted, &has)
}

fn resized(pod: &Pod, wanted: Amounts, has: &[Amounts]) -> Amounts {
    // A status that says nothing of resources is older than resizing.
    if has.iter().all(Amounts::is_empty) {
        return wanted;
    }
    let mut amount = if resize_is_infeasible(pod) { Amounts::new() } else { wanted };
    has.iter().for_each(|has| raise(&mut amount, has));
    amount
}

fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|status| status.name == name)
}

fn resize_is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    })
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
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        let requests = requests(&pod, pod.spec.as_ref().unwrap());
        assert_eq!((requests.get(CPU), requests.get(MEMORY)), (cpu, memory));
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
        let pod: Pod =
            serde_json::from_value(json!({ "spec": { "containers": [{ "name": "c" }, { "name": "d" }] } }))
                .unwrap();
        let scored = scored_requests(&pod, pod.spec.as_ref().unwrap());
        assert_eq!((scored.get(CPU), scored.get(MEMORY)), (200, 400 * 1024 * 1024));
    }

    #[test]
    fn a_container_that_is_resized_counts_with_the_larger_amount() {
        let cpu_of = |asked: &str, has: &str, conditions: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({
                "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": asked } } }] },
                "status": { "conditions": conditions, "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": { "cpu": has },
                }] },
            }))
            .unwrap();
            requests(&pod, pod.spec.as_ref().unwrap()).get(CPU)
        };
        check_resize(cpu_of);
    }

    #[test]
    fn a_pod_that_is_resized_as_a_whole_counts_with_the_larger_amount() {
        check_resize(|asked, has, conditions| {
            let pod: Pod = serde_json::from_value(json!({
                "spec": { "containers": [{ "name": "c" }], "resources": { "requests": { "cpu": asked } } },
                "status": { "conditions": conditions, "allocatedResources": { "cpu": has, "memory": "9" } },
            }))
            .unwrap();
            let requests = requests(&pod, pod.spec.as_ref().unwrap());
            assert_eq!(requests.get(MEMORY), 0);
            requests.get(CPU)
        });
    }

    #[track_caller]
    fn check_resize(cpu_of: impl Fn(&str, &str, serde_json::Value) -> i64) {
        let infeasible = json!([{ "type": "PodResizePending", "status": "True", "reason": "Infeasible" }]);
        assert_eq!(cpu_of("1", "2", json!([])), 2000);
        assert_eq!(cpu_of("3", "2", json!([])), 3000);
        assert_eq!(cpu_of("3", "2", infeasible), 2000);
    }
}
