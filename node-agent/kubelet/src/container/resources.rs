//! Requests and limits as cgroup settings, of containers and of whole pods.

use hawser_runtime::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::pod::qos::{QosClass, limit, oom_score_adj, qos_class, request};

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
        match resource {
            "cpu" => self.cpu_millis,
            "memory" => self.memory_bytes,
            "ephemeral-storage" => self.ephemeral_bytes,
            _ => 0,
        }
    }
}

pub fn container_resources(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> Resources {
    Resources {
        cpu_shares: Some(shares(request(container, "cpu"))),
        memory_limit_bytes: Some(limit(container, "memory")).filter(|n| *n > 0),
        oom_score_adj: Some(oom_score_adj(spec, container, node_memory_bytes)),
        ..quota(limit(container, "cpu"))
    }
}

/// Limits of the pod's cgroup: set only where every container has one.
pub fn pod_resources(spec: &PodSpec) -> Resources {
    let cpu_request = pod_total(spec, |c| Some(request(c, "cpu"))).unwrap_or(0);
    if qos_class(spec) == QosClass::BestEffort {
        return Resources { cpu_shares: Some(MIN_SHARES), ..Resources::default() };
    }
    let limited =
        |resource: &'static str| pod_total(spec, move |c| Some(limit(c, resource)).filter(|n| *n > 0));
    Resources {
        cpu_shares: Some(shares(cpu_request)),
        memory_limit_bytes: limited("memory"),
        ..limited("cpu").map(quota).unwrap_or_default()
    }
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

fn shares(milli_cpu: i64) -> u64 {
    (milli_cpu.max(0).unsigned_abs() * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
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
        let both = pod_resources(&spec("Always", vec![], vec![limited.clone(), limited.clone()]));
        assert_eq!((both.memory_limit_bytes, both.cpu_quota_us), (Some(2 << 30), Some(200_000)));
        let mixed = pod_resources(&spec("Always", vec![], vec![limited.clone(), open]));
        assert_eq!(
            (mixed.memory_limit_bytes, mixed.cpu_quota_us, mixed.cpu_shares),
            (None, None, Some(2048))
        );
        let with_sidecar = spec("Always", vec![sidecar("s")], vec![limited]);
        assert_eq!(pod_resources(&with_sidecar).memory_limit_bytes, None);
    }
}
