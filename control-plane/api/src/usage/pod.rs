//! What a pod asks for as a whole.

use serde_json::Value;

use super::{Amounts, add, amounts, list, raise};

/// Whether the overhead of the pod's runtime class counts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overhead {
    /// What a node and a quota see.
    Included,
    /// What the pod's author sees: limit ranges.
    Excluded,
}

/// What the pod requests: its containers and sidecars together, or its largest init step where that is more.
pub fn requests(pod: &Value, overhead: Overhead) -> Amounts {
    let spec = &pod["spec"];
    let mut total = total(spec, "requests");
    if overhead == Overhead::Included {
        add(&mut total, &amounts(&spec["overhead"]));
    }
    total
}

/// What the pod is limited to, of those containers that have a limit.
pub fn limits(pod: &Value, overhead: Overhead) -> Amounts {
    let spec = &pod["spec"];
    let mut total = total(spec, "limits");
    if overhead == Overhead::Included {
        let mut overhead = amounts(&spec["overhead"]);
        // What has no limit does not get one by its overhead.
        overhead.retain(|name, _| total.get(name).is_some_and(|limit| !limit.is_zero()));
        add(&mut total, &overhead);
    }
    total
}

fn total(spec: &Value, field: &str) -> Amounts {
    let of = |container: &Value| amounts(&container["resources"][field]);
    let mut total = Amounts::new();
    for container in list(&spec["containers"]) {
        add(&mut total, &of(container));
    }
    // Sidecars that have started run beside each later step.
    let (mut sidecars, mut largest) = (Amounts::new(), Amounts::new());
    for container in list(&spec["initContainers"]) {
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, &own);
            raise(&mut largest, &sidecars);
        } else {
            let mut step = sidecars.clone();
            add(&mut step, &own);
            raise(&mut largest, &step);
        }
    }
    add(&mut total, &sidecars);
    raise(&mut total, &largest);
    // What the pod as a whole asks for stands above what its containers ask for.
    let whole = amounts(&spec["resources"][field]);
    total.extend(whole.into_iter().filter(|(name, _)| is_of_pods(name)));
    total
}

/// Resources that a pod can ask for as a whole.
fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::usage::shown;

    fn container(cpu: &str) -> Value {
        json!({ "resources": { "requests": { "cpu": cpu }, "limits": { "cpu": cpu } } })
    }

    #[track_caller]
    fn check(what: &str, spec: Value, requested: &str, limited: &str) {
        let pod = json!({ "spec": spec });
        assert_eq!(shown(&requests(&pod, Overhead::Included)), requested, "{what}");
        assert_eq!(shown(&limits(&pod, Overhead::Included)), limited, "{what}");
    }

    #[test]
    fn a_pod_asks_for_its_containers_or_its_largest_step() {
        let sidecar = |cpu: &str| {
            let mut sidecar = container(cpu);
            sidecar["restartPolicy"] = json!("Always");
            sidecar
        };
        let (one, two) = (container("1"), container("2"));
        check("nothing", json!({}), "", "");
        check("no container asks", json!({ "containers": [{}] }), "", "");
        check("sum", json!({ "containers": [one, two] }), "cpu=3", "cpu=3");
        check("small step", json!({ "containers": [two], "initContainers": [one] }), "cpu=2", "cpu=2");
        check("large step", json!({ "containers": [one], "initContainers": [two] }), "cpu=2", "cpu=2");
        let steps = [sidecar("500m"), container("2")];
        check(
            "step beside a sidecar",
            json!({ "containers": [one], "initContainers": steps }),
            "cpu=2500m",
            "cpu=2500m",
        );
        check(
            "sidecar beside containers",
            json!({ "containers": [two], "initContainers": [sidecar("1")] }),
            "cpu=3",
            "cpu=3",
        );
        let whole = json!({ "requests": { "cpu": "5", "example.com/gpu": "1" } });
        check("pod level", json!({ "containers": [one], "resources": whole }), "cpu=5", "cpu=1");
        let overhead = json!({ "cpu": "250m", "memory": "1Mi" });
        check(
            "overhead",
            json!({ "containers": [one], "overhead": overhead }),
            "cpu=1250m,memory=1Mi",
            "cpu=1250m",
        );
        check("no quantity", json!({ "containers": [container("much")] }), "", "");
    }
}
