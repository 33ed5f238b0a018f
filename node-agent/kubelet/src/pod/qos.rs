//! Quality-of-service class of a pod (Guaranteed, Burstable, BestEffort) and what follows from it.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::quantity::{milli_value, value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class by CPU and memory requests and limits: the pod's own where it has some (KEP-2837), else those of all
/// containers, init containers included.
pub fn qos_class(spec: &PodSpec) -> QosClass {
    if let Some(own) = spec.resources.as_ref().filter(|own| own.requests.is_some() || own.limits.is_some()) {
        let whole = Container { resources: Some(own.clone()), ..Container::default() };
        return class_of(std::iter::once(&whole));
    }
    class_of(spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

fn class_of<'a>(containers: impl Iterator<Item = &'a Container>) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = request(container, resource);
            let limit = limit(container, resource);
            any |= request > 0 || limit > 0;
            guaranteed &= limit > 0 && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// `oom_score_adj` of a container, by upstream's `pkg/kubelet/qos` policy.
pub fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i32 {
    if matches!(spec.priority_class_name.as_deref(), Some("system-node-critical")) {
        return -997;
    }
    match qos_class(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = 1000 * request(container, "memory") / node_memory_bytes.max(1);
            // Never as safe as Guaranteed, never as exposed as BestEffort.
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

/// CPU in millicores, everything else in units; a request that is unset follows the limit.
pub fn request(container: &Container, resource: &str) -> i64 {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    match requests.and_then(|r| r.get(resource)) {
        Some(quantity) if resource == "cpu" => milli_value(quantity),
        Some(quantity) => value(quantity),
        None => limit(container, resource),
    }
}

/// CPU in millicores, everything else in units; 0 without a limit.
pub fn limit(container: &Container, resource: &str) -> i64 {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    match limits.and_then(|l| l.get(resource)) {
        Some(quantity) if resource == "cpu" => milli_value(quantity),
        Some(quantity) => value(quantity),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::with_resources;

    fn spec(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..PodSpec::default() }
    }

    #[test]
    fn class_follows_requests_and_limits() {
        let check = |requests: &[(&str, &str)], limits: &[(&str, &str)], expected| {
            assert_eq!(qos_class(&spec(vec![with_resources("c", requests, limits)])), expected);
        };
        check(&[], &[], QosClass::BestEffort);
        check(&[("cpu", "100m")], &[], QosClass::Burstable);
        check(&[], &[("cpu", "1"), ("memory", "1Gi")], QosClass::Guaranteed);
        check(&[("cpu", "1000m")], &[("cpu", "1"), ("memory", "1Gi")], QosClass::Guaranteed);
        check(&[("cpu", "500m")], &[("cpu", "1"), ("memory", "1Gi")], QosClass::Burstable);
    }

    #[test]
    fn oom_scores_rank_by_class_and_request() {
        let gib = 1 << 30;
        let best_effort = spec(vec![with_resources("c", &[], &[])]);
        assert_eq!(oom_score_adj(&best_effort, &best_effort.containers[0], 4 * gib), 1000);
        let burstable = spec(vec![with_resources("c", &[("memory", "1Gi")], &[])]);
        assert_eq!(oom_score_adj(&burstable, &burstable.containers[0], 4 * gib), 750);
    }
}
