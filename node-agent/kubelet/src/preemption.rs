//! Room for critical pods: when one does not fit, lower ones go for it, as few and as small as will do. Pure.
//!
//! Upstream's rules (`pkg/kubelet/preemption`): pods of no class of service go before burstable ones, and these before
//! guaranteed ones; within a class goes who comes nearest to what is missing.

use std::collections::BTreeMap;

use crate::container::resources::pod_request;
use crate::eviction::rank::is_critical;
use crate::pod::DesiredPod;
use crate::pod::qos::{QosClass, qos_class};

/// Reason of pods that went for a critical one, and of the event that says so.
pub const PREEMPTING: &str = "Preempting";
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// Pods count as one of these each.
const PODS: &str = "pods";

/// What is missing, by resource: CPU in millicores, everything else in units.
pub type Missing = BTreeMap<String, i64>;

/// Which of `pods` have to go so that there is what the critical pod misses; `None` where that would not be enough.
pub fn victims(critical: &DesiredPod, pods: &[DesiredPod], missing: &Missing) -> Option<Vec<DesiredPod>> {
    let of_class = |class: QosClass| -> Vec<&DesiredPod> {
        let lower = pods.iter().filter(|pod| gives_way(pod, critical));
        lower.filter(|pod| qos_class(pod.spec()) == class).collect()
    };
    let best_effort = of_class(QosClass::BestEffort);
    let burstable = of_class(QosClass::Burstable);
    let guaranteed = of_class(QosClass::Guaranteed);
    // Of each class only who is needed when all of the classes below it are gone; then what of these is needed beside.
    let without_lower = without(&without(missing, &best_effort), &burstable);
    let guaranteed = nearest(guaranteed, without_lower)?;
    let burstable = nearest(burstable, without(&without(missing, &best_effort), &guaranteed))?;
    let best_effort = nearest(best_effort, without(&without(missing, &burstable), &guaranteed))?;
    Some(best_effort.into_iter().chain(burstable).chain(guaranteed).cloned().collect())
}

fn gives_way(pod: &DesiredPod, critical: &DesiredPod) -> bool {
    let priority = |pod: &DesiredPod| pod.spec().priority;
    if is_critical(critical) && !is_critical(pod) {
        return true;
    }
    matches!((priority(critical), priority(pod)), (Some(higher), Some(lower)) if higher > lower)
}

fn gives(pod: &DesiredPod, resource: &str) -> i64 {
    if resource == PODS { 1 } else { pod_request(pod.spec(), resource) }
}

/// What is still missing when these are gone.
fn without(missing: &Missing, pods: &[&DesiredPod]) -> Missing {
    let left = missing.iter().map(|(resource, amount)| {
        let given: i64 = pods.iter().map(|pod| gives(pod, resource)).sum();
        (resource.clone(), amount - given)
    });
    left.filter(|(_, amount)| *amount > 0).collect()
}

/// Takes the nearest one after the other, until nothing is missing.
fn nearest(mut pods: Vec<&DesiredPod>, mut missing: Missing) -> Option<Vec<&DesiredPod>> {
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let best = pods.iter().enumerate().min_by(|(_, one), (_, other)| {
            let by_distance = distance(one, &missing).total_cmp(&distance(other, &missing));
            by_distance.then_with(|| size(one).cmp(&size(other)))
        });
        let (index, _) = best?;
        let pod = pods.remove(index);
        missing = without(&missing, &[pod]);
        chosen.push(pod);
    }
    Some(chosen)
}

/// How much of what is missing the pod does not give, 0 to 1 for each resource, squared.
fn distance(pod: &DesiredPod, missing: &Missing) -> f64 {
    let rest = missing.iter().map(|(resource, amount)| {
        let rest = (amount - gives(pod, resource)).max(0) as f64;
        (rest / *amount as f64).powi(2)
    });
    rest.sum()
}

/// Memory is what hurts most, then CPU.
fn size(pod: &DesiredPod) -> (i64, i64) {
    (pod_request(pod.spec(), "memory"), pod_request(pod.spec(), "cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{pod, pod_object, spec, with_resources};
    use std::sync::Arc;

    const CRITICAL: i32 = 2_000_001_000;

    /// `requests` of CPU; limits of the same where it is guaranteed.
    fn one(name: &str, cpu: &str, guaranteed: bool, priority: i32) -> DesiredPod {
        let requests: Vec<(&str, &str)> = match cpu {
            "" => vec![],
            cpu => vec![("cpu", cpu), ("memory", "1Mi")],
        };
        let limits = if guaranteed { requests.clone() } else { vec![] };
        let mut spec = spec("Always", vec![], vec![with_resources("c", &requests, &limits)]);
        spec.priority = Some(priority);
        let mut object = pod_object(spec);
        object.metadata.name = Some(name.to_owned());
        DesiredPod::new(Arc::new(object))
    }

    #[track_caller]
    fn check(pods: &[DesiredPod], missing: &[(&str, i64)], expected: Option<&[&str]>) {
        let critical = one("critical", "1", true, CRITICAL);
        let missing = missing.iter().map(|(name, amount)| ((*name).to_owned(), *amount)).collect();
        let chosen = victims(&critical, pods, &missing);
        let names = chosen.map(|pods| pods.iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>());
        let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names, expected);
    }

    #[test]
    fn lower_classes_go_first_and_no_more_than_needed() {
        let pods = [
            one("guaranteed", "500m", true, 0),
            one("burstable", "400m", false, 0),
            one("large", "900m", false, 0),
            one("idle", "", false, 0),
        ];
        check(&pods, &[], Some(&[]));
        check(&pods, &[("cpu", 300)], Some(&["burstable"]));
        check(&pods, &[("cpu", 800)], Some(&["large"]));
        check(&pods, &[("cpu", 1300)], Some(&["large", "burstable"]));
        check(&pods, &[("cpu", 1500)], Some(&["large", "burstable", "guaranteed"]));
        check(&pods, &[("cpu", 2000)], None);
        check(&pods, &[("pods", 1)], Some(&["idle"]));
    }

    #[test]
    fn who_is_as_critical_stays() {
        let pods = [one("peer", "1", false, CRITICAL), one("higher", "1", false, CRITICAL + 1)];
        check(&pods, &[("cpu", 100)], None);
        let cluster = [one("cluster", "1", false, CRITICAL - 1000)];
        check(&cluster, &[("cpu", 100)], Some(&["cluster"]));
        let plain = pod(spec("Always", vec![], vec![]));
        check(&[plain], &[("pods", 1)], Some(&["web"]));
    }
}
