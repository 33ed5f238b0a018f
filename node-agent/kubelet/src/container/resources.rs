//! Requests and limits as cgroup settings, of containers and of whole pods.

use std::collections::BTreeMap;

use hawser_runtime::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::qos::{QosClass, limit, oom_score_adj, qos_class, request};
use crate::quantity::{milli_value, value};

const PERIOD_US: u64 = 100_000;
/// The kernel's smallest quota.
const MIN_QUOTA_US: i64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// What a node has to give, for resource fields without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCapacity {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
}

impl NodeCapacity {
    pub fn of(&self, resource: &str) -> i64 {
        self.get(resource).unwrap_or(0)
    }

    /// `None` for a resource that is not the kubelet's own to count.
    pub fn get(&self, resource: &str) -> Option<i64> {
        match resource {
            "cpu" => Some(self.cpu_millis),
            "memory" => Some(self.memory_bytes),
            "ephemeral-storage" => Some(self.ephemeral_bytes),
            _ => None,
        }
    }
}

pub fn container_resources(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> Resources {
    Resources {
        cpu_shares: Some(shares(request(container, "cpu"))),
        memory_limit_bytes: Some(limit(container, "memory")).filter(|n| *n > 0),
        hugepage_limits: hugepages(container),
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory_bytes)),
        ..quota(limit(container, "cpu"))
    }
}

/// Limits of the pod's cgroup: set only where every container has one. `pids_limit`: the node's for each pod.
pub fn pod_resources(spec: &PodSpec, pids_limit: Option<i64>) -> Resources {
    let hugepage_limits = spec.containers.iter().fold(BTreeMap::new(), |mut total, container| {
        for (size, bytes) in hugepages(container) {
            *total.entry(size).or_insert(0) += bytes;
        }
        total
    });
    let bounds = Resources { pids_limit, hugepage_limits, ..Resources::default() };
    if qos_class(spec) == QosClass::BestEffort {
        return Resources { cpu_shares: Some(MIN_SHARES), ..bounds };
    }
    let quota = pod_limit(spec, "cpu").map(quota).unwrap_or_default();
    Resources {
        cpu_shares: Some(shares(pod_request(spec, "cpu"))),
        cpu_quota_us: quota.cpu_quota_us,
        cpu_period_us: quota.cpu_period_us,
        memory_limit_bytes: pod_limit(spec, "memory"),
        ..bounds
    }
}

/// What the pod asks for as a whole: its own word where it has one, else its containers' together; and its overhead. CPU
/// in millicores, everything else in units.
pub fn pod_request(spec: &PodSpec, resource: &str) -> i64 {
    let own = spec.resources.as_ref().and_then(|r| amount(r.requests.as_ref(), resource));
    let together = || pod_total(spec, |c| Some(request(c, resource))).unwrap_or(0);
    own.unwrap_or_else(together) + overhead(spec, resource)
}

/// What the pod may use as a whole; `None` where one of its containers has no limit, and the pod itself neither.
pub fn pod_limit(spec: &PodSpec, resource: &str) -> Option<i64> {
    let own = spec.resources.as_ref().and_then(|r| amount(r.limits.as_ref(), resource));
    let together = || pod_total(spec, |c| Some(limit(c, resource)).filter(|n| *n > 0));
    Some(own.or_else(together)? + overhead(spec, resource))
}

fn overhead(spec: &PodSpec, resource: &str) -> i64 {
    amount(spec.overhead.as_ref(), resource).unwrap_or(0)
}

fn amount(amounts: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    let quantity = amounts?.get(resource)?;
    Some(if resource == "cpu" { milli_value(quantity) } else { value(quantity) })
}

/// Limits of huge pages, by page size as the kernel spells it: `hugepages-2Mi` is `2MB`.
fn hugepages(container: &Container) -> BTreeMap<String, u64> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let pages = limits.into_iter().flatten().filter_map(|(name, quantity)| {
        let size = name.strip_prefix("hugepages-")?.replace('i', "B");
        Some((size, u64::try_from(value(quantity)).ok()?))
    });
    pages.collect()
}

/// The pod's effective amount: what runs together is summed, init containers count by the largest.
fn pod_total(spec: &PodSpec, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let mut total: i64 = spec.containers.iter().map(&amount).sum::<Option<i64>>()?;
    let mut sidecars = 0;
    let mut peak = 0;
    for container in spec.init_containers.iter().flatten() {
        let amount = amount(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += amount;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + amount);
        }
    }
    total += sidecars;
    Some(total.max(peak))
}

/// CPU shares for millicores, between the least and the most that the kernel takes.
pub fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu.max(0).unsigned_abs().saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(milli_cpu: i64) -> Resources {
    if milli_cpu <= 0 {
        return Resources::default();
    }
    let quota = (milli_cpu * PERIOD_US as i64 / 1000).max(MIN_QUOTA_US);
    Resources { cpu_quota_us: Some(quota), cpu_period_us: Some(PERIOD_US), ..Resources::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{sidecar, spec, with_resources};
    use k8s_openapi::api::core::v1::ResourceRequirements;

    #[test]
    fn requests_and_limits_become_shares_and_quota() {
        let container = with_resources("c", &[("cpu", "250m")], &[("cpu", "500m"), ("memory", "64Mi")]);
        let pod = spec("Always", vec![], vec![container.clone()]);
        let resources = container_resources(&pod, &container, 1 << 30);
        assert_eq!(resources.cpu_shares, Some(256));
        assert_eq!((resources.cpu_quota_us, resources.cpu_period_us), (Some(50_000), Some(100_000)));
        assert_eq!(resources.memory_limit_bytes, Some(64 << 20));
    }

    #[test]
    fn container_without_resources_gets_the_least() {
        let container = with_resources("c", &[], &[]);
        let pod = spec("Always", vec![], vec![container.clone()]);
        let resources = container_resources(&pod, &container, 1 << 30);
        assert_eq!((resources.cpu_shares, resources.cpu_quota_us), (Some(2), None));
        assert_eq!(resources.oom_score_adj, Some(1000));
    }

    #[test]
    fn pod_is_limited_only_where_all_its_containers_are() {
        let limited = with_resources("a", &[], &[("cpu", "1"), ("memory", "1Gi")]);
        let open = with_resources("b", &[("cpu", "1")], &[]);
        let both = pod_resources(&spec("Always", vec![], vec![limited.clone(), limited.clone()]), Some(7));
        assert_eq!((both.memory_limit_bytes, both.cpu_quota_us), (Some(2 << 30), Some(200_000)));
        let mixed = pod_resources(&spec("Always", vec![], vec![limited.clone(), open]), None);
        assert_eq!(
            (mixed.memory_limit_bytes, mixed.cpu_quota_us, mixed.cpu_shares),
            (None, None, Some(2048))
        );
        let with_sidecar = spec("Always", vec![sidecar("s")], vec![limited]);
        assert_eq!(pod_resources(&with_sidecar, None).memory_limit_bytes, None);
        assert_eq!(both.pids_limit, Some(7));
    }

    #[test]
    fn overhead_and_the_pods_own_word_count() {
        let quantities = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, text)| ((*name).to_owned(), Quantity((*text).to_owned()))).collect()
        };
        let limited = with_resources("a", &[], &[("cpu", "1"), ("memory", "1Gi"), ("hugepages-2Mi", "4Mi")]);
        let mut pod = spec("Always", vec![], vec![limited]);
        pod.overhead = Some(quantities(&[("cpu", "250m"), ("memory", "64Mi")]));
        let resources = pod_resources(&pod, None);
        assert_eq!(resources.memory_limit_bytes, Some((1 << 30) + (64 << 20)));
        assert_eq!((resources.cpu_quota_us, resources.cpu_shares), (Some(125_000), Some(1280)));
        assert_eq!(resources.hugepage_limits, BTreeMap::from([("2MB".to_owned(), 4 << 20)]));
        let whole = ResourceRequirements {
            limits: Some(quantities(&[("memory", "2Gi")])),
            requests: Some(quantities(&[("cpu", "2")])),
            ..ResourceRequirements::default()
        };
        pod.resources = Some(whole);
        assert_eq!(pod_request(&pod, "cpu"), 2250);
        assert_eq!(pod_limit(&pod, "memory"), Some((2 << 30) + (64 << 20)));
    }
}
