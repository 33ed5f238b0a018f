//! Changing what a running pod's containers may use (KEP-1287).
//!
//! Three amounts are told apart: what the API asks for, what the node has granted (its allocation, with which the worker
//! sees the pod), and what a running container has. The node grants what it has room for, as a whole or not at all;
//! everything here is decided from values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{ContainerId, Resources};
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};

use super::conditions::PENDING;
use super::desired::{DesiredContainer, DesiredPod};
use super::qos::{QosClass, qos_class};
use super::state::{Instance, Kill, PodState, RETRY_CONFIG};
use crate::container::resources::{NodeCapacity, pod_request, pod_resources};
use crate::quantity::milli_value;

/// What can be changed.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What a pod may use: as a whole, where it says so itself (KEP-2837), and its containers by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts {
    pub pod: Option<ResourceRequirements>,
    pub containers: BTreeMap<String, ResourceRequirements>,
}

/// What the pod as it is asks for.
pub fn amounts(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    Amounts {
        pod: spec.resources.clone(),
        containers: containers.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect(),
    }
}

/// The pod with the amounts that it was granted.
pub fn with_amounts(pod: Arc<Pod>, granted: &Amounts) -> Arc<Pod> {
    if amounts(&pod) == *granted {
        return pod;
    }
    let mut pod = (*pod).clone();
    let Some(spec) = &mut pod.spec else { return pod.into() };
    let set = |container: &mut Container| {
        if let Some(granted) = granted.containers.get(&container.name) {
            container.resources = Some(granted.clone());
        }
    };
    spec.init_containers.iter_mut().flatten().for_each(set);
    spec.containers.iter_mut().for_each(set);
    spec.resources = granted.pod.clone();
    pod.into()
}

/// Amounts that a pod of an earlier agent has: what it and its running containers are reported with, else what it asks for.
pub fn adopted(pod: &Pod) -> Amounts {
    let mut amounts = amounts(pod);
    let Some(status) = &pod.status else { return amounts };
    let reported =
        [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten();
    for container in reported {
        let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
        if let (true, Some(resources), Some(known)) =
            (runs, &container.resources, amounts.containers.get_mut(&container.name))
        {
            *known = resources.clone();
        }
    }
    // An agent that did not report them has granted what it did not put off.
    let pending = |condition: &PodCondition| condition.type_ == PENDING && condition.status == "True";
    if status.resources.is_some() || status.conditions.iter().flatten().any(pending) {
        amounts.pod = status.resources.clone();
    }
    amounts
}

/// Why what is asked for was not granted, as the PodResizePending condition shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub reason: &'static str,
    pub message: String,
}

pub const DEFERRED: &str = "Deferred";
pub const INFEASIBLE: &str = "Infeasible";

/// What the node's policies give to Guaranteed pods for as long as they are there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed {
    pub cpu: bool,
    pub memory: bool,
}

/// Refuses to change what the pod was given for good.
pub fn check_fixed(wanted: &DesiredPod, granted: &Amounts, fixed: Fixed) -> Result<(), Pending> {
    let asked = amounts(&wanted.object);
    let policies = [
        ("cpu", fixed.cpu, "CPU Manager policy \"static\""),
        ("memory", fixed.memory, "Memory Manager policy \"Static\""),
    ];
    for (resource, is_fixed, policy) in policies {
        let request = |of: &ResourceRequirements| {
            let amount = |list: &Option<BTreeMap<String, _>>| list.as_ref()?.get(resource).map(milli_value);
            amount(&of.requests).or_else(|| amount(&of.limits))
        };
        let of_pod = |amounts: &Amounts| amounts.pod.as_ref().and_then(request);
        let changes = of_pod(&asked) != of_pod(granted)
            || asked
                .containers
                .iter()
                .any(|(name, of)| granted.containers.get(name).and_then(request) != request(of));
        if is_fixed && changes && qos_class(wanted.spec()) == QosClass::Guaranteed {
            let message = format!("Resize is infeasible for Guaranteed Pods alongside {policy}");
            return Err(Pending { reason: INFEASIBLE, message });
        }
    }
    Ok(())
}

/// Whether the node can grant what `wanted` asks for, beside `others`.
pub fn judge(wanted: &DesiredPod, allocatable: NodeCapacity, others: &[DesiredPod]) -> Result<(), Pending> {
    for resource in RESIZABLE {
        let (requested, capacity) = (pod_request(wanted.spec(), resource), allocatable.of(resource));
        if requested > capacity {
            let message = format!(
                "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}"
            );
            return Err(Pending { reason: INFEASIBLE, message });
        }
        let used: i64 = others.iter().map(|other| pod_request(other.spec(), resource)).sum();
        if requested > capacity - used {
            let message = format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            return Err(Pending { reason: DEFERRED, message });
        }
    }
    Ok(())
}

/// Running containers that have other amounts than they were granted, or for which it is not known what they have.
pub fn unequal<'a>(pod: &'a DesiredPod, state: &'a PodState) -> impl Iterator<Item = &'a DesiredContainer> {
    pod.containers.iter().filter(|container| {
        let name = container.name();
        let instance = state.track(name).and_then(|track| track.current.as_ref());
        instance.is_some_and(|instance| {
            instance.is_running()
                && instance.kill.is_none()
                && !state.busy.starting.contains(name)
                && !has_granted(instance, container)
        })
    })
}

/// True when the pod's cgroup has other limits than follow from what was granted.
pub fn group_differs(pod: &DesiredPod, state: &PodState) -> bool {
    state.group.as_ref().is_some_and(|group| *group != pod_resources(pod.spec(), group.pids_limit))
}

/// The same, and nothing that runs has more than that: while a container runs with what it had, a change of its own brings
/// the group along, or its end does.
pub fn group_is_unequal(pod: &DesiredPod, state: &PodState) -> bool {
    let settled = pod.containers.iter().all(|container| {
        let instance = state.track(container.name()).and_then(|track| track.current.as_ref());
        let running = instance.filter(|instance| instance.is_running());
        running.is_none_or(|instance| has_granted(instance, container))
    });
    settled && group_differs(pod, state)
}

fn has_granted(instance: &Instance, container: &DesiredContainer) -> bool {
    *instance.resources.as_ref().unwrap_or(&ResourceRequirements::default()) == granted(container)
}

fn granted(container: &DesiredContainer) -> ResourceRequirements {
    container.spec.resources.clone().unwrap_or_default()
}

/// True when a change from `has` to what the container was granted asks for a restart of it.
pub fn needs_restart(container: &DesiredContainer, has: &ResourceRequirements) -> bool {
    let granted = granted(container);
    let of =
        |list: &Option<BTreeMap<String, _>>, name: &str| list.as_ref().and_then(|l| l.get(name)).cloned();
    let changed = |name: &&str| {
        of(&granted.requests, name) != of(&has.requests, name)
            || of(&granted.limits, name) != of(&has.limits, name)
    };
    let policies = container.spec.resize_policy.as_deref().unwrap_or_default();
    RESIZABLE.iter().filter(|name| changed(name)).any(|name| {
        policies.iter().any(|p| p.resource_name == **name && p.restart_policy == "RestartContainer")
    })
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeFailure {
    pub message: String,
    pub retry_at: Duration,
}

/// How far a resize came.
#[derive(Clone, Debug, Default)]
pub struct Resized {
    /// Containers that have now what they were granted, by id.
    pub done: Vec<(ContainerId, ResourceRequirements)>,
    /// Those that have to start anew for it, by id, each with its grace.
    pub restart: Vec<(ContainerId, Kill)>,
    /// Limits that the pod's cgroup has now, where they were changed.
    pub group: Option<Resources>,
    pub failure: Option<String>,
}

impl PodState {
    pub(super) fn resized(&mut self, resized: Resized, now: Duration) {
        self.busy.resizing = false;
        self.resize_failure =
            resized.failure.map(|message| ResizeFailure { message, retry_at: now + RETRY_CONFIG });
        self.group = resized.group.or(self.group.take());
        for (id, resources) in resized.done {
            if let Some((_, instance)) = self.instance_mut(&id) {
                instance.resources = Some(resources);
            }
        }
        for (id, kill) in resized.restart {
            if let Some((_, instance)) = self.instance_mut(&id) {
                instance.kill.get_or_insert(kill);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{at, pod, pod_object, record, spec, with_resources};
    use hawser_runtime::ContainerState;
    use k8s_openapi::api::core::v1::{ContainerResizePolicy, PodStatus};

    const NODE: NodeCapacity = NodeCapacity { cpu_millis: 2000, memory_bytes: 1 << 30, ephemeral_bytes: 0 };

    fn asking(cpu: &str) -> DesiredPod {
        pod(spec("Always", vec![], vec![with_resources("c", &[("cpu", cpu)], &[])]))
    }

    #[test]
    fn node_grants_what_it_has_room_for() {
        assert_eq!(judge(&asking("1500m"), NODE, &[asking("500m")]), Ok(()));
        let deferred = judge(&asking("1500m"), NODE, &[asking("501m")]).expect_err("no room");
        let told = "Node didn't have enough resource: cpu, requested: 1500, used: 501, capacity: 2000";
        assert_eq!((deferred.reason, deferred.message.as_str()), (DEFERRED, told));
        let infeasible = judge(&asking("3"), NODE, &[]).expect_err("never");
        let told = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        assert_eq!((infeasible.reason, infeasible.message.as_str()), (INFEASIBLE, told));
    }

    #[test]
    fn what_is_fixed_for_a_guaranteed_pod_is_not_changed() {
        let asking = |cpu, memory, limit| {
            let amounts = [("cpu", cpu), ("memory", memory)];
            let limits = [("cpu", cpu), ("memory", limit)];
            pod(spec("Always", vec![], vec![with_resources("c", &amounts, &limits)]))
        };
        let has = amounts(&asking("1", "1Gi", "1Gi").object);
        let both = Fixed { cpu: true, memory: true };
        let check = |wanted: &DesiredPod, fixed: Fixed, told: Option<&str>| {
            let refused = check_fixed(wanted, &has, fixed).err();
            let told = told.map(|policy| Pending {
                reason: INFEASIBLE,
                message: format!("Resize is infeasible for Guaranteed Pods alongside {policy}"),
            });
            assert_eq!(refused, told, "{:?} {fixed:?}", wanted.spec().containers[0].resources);
        };
        let (cpu, memory) = ("CPU Manager policy \"static\"", "Memory Manager policy \"Static\"");
        check(&asking("2", "1Gi", "1Gi"), both, Some(cpu));
        check(&asking("2", "1Gi", "1Gi"), Fixed { cpu: false, ..both }, None);
        check(&asking("1", "2Gi", "2Gi"), both, Some(memory));
        check(&asking("1", "2Gi", "2Gi"), Fixed { memory: false, ..both }, None);
        check(&asking("1000m", "1024Mi", "1Gi"), both, None);
        check(&asking("2", "1Gi", "3Gi"), both, None);
    }

    #[test]
    fn pod_is_seen_with_what_it_was_granted() {
        let before = pod_object(asking("1").spec().clone());
        let granted = amounts(&before);
        let after = Arc::new(pod_object(asking("2").spec().clone()));
        assert_eq!(amounts(&with_amounts(after.clone(), &granted)), granted);
        let same = with_amounts(after.clone(), &amounts(&after));
        assert!(Arc::ptr_eq(&same, &after));
    }

    #[test]
    fn what_a_pod_asks_for_as_a_whole_is_granted_too() {
        let whole = |cpu: &str| {
            let mut spec = asking("100m").spec().clone();
            spec.resources = with_resources("whole", &[("cpu", cpu)], &[]).resources;
            spec
        };
        let refused = judge(&pod(whole("3")), NODE, &[]).expect_err("never");
        assert_eq!(refused.reason, INFEASIBLE);
        let granted = amounts(&pod_object(whole("1")));
        let mut asked = pod_object(whole("3"));
        let seen = with_amounts(Arc::new(asked.clone()), &granted);
        assert_eq!(seen.spec.as_ref().and_then(|spec| spec.resources.clone()), whole("1").resources);
        // The next agent knows it by what was reported.
        assert_eq!(adopted(&asked).pod, whole("3").resources);
        let mut status = PodStatus { resources: whole("1").resources, ..PodStatus::default() };
        asked.status = Some(status.clone());
        assert_eq!(adopted(&asked), granted);
        // It had none, and is not granted those that it asks for now.
        let condition =
            PodCondition { type_: PENDING.into(), status: "True".into(), ..PodCondition::default() };
        (status.resources, status.conditions) = (None, Some(vec![condition]));
        asked.status = Some(status);
        assert_eq!(adopted(&asked).pod, None);
    }

    #[test]
    fn container_that_has_other_amounts_is_found_and_its_policy_heeded() {
        let mut wanted = with_resources("c", &[("cpu", "2"), ("memory", "1Mi")], &[]);
        let policy = |resource: &str, restart: &str| ContainerResizePolicy {
            resource_name: resource.into(),
            restart_policy: restart.into(),
        };
        wanted.resize_policy = Some(vec![policy("cpu", "NotRequired"), policy("memory", "RestartContainer")]);
        let pod = pod(spec("Always", vec![], vec![wanted]));
        let mut state = PodState::adopt(&pod, vec![record("c", 0, ContainerState::Running, None)], at(0));
        assert_eq!(unequal(&pod, &state).count(), 1, "nothing is known of what it has");
        let has = |cpu, memory| {
            with_resources("c", &[("cpu", cpu), ("memory", memory)], &[]).resources.expect("set")
        };
        let set = |state: &mut PodState, resources| {
            state.containers.get_mut("c").and_then(|t| t.current.as_mut()).expect("runs").resources =
                Some(resources);
        };
        set(&mut state, has("2", "1Mi"));
        assert_eq!(unequal(&pod, &state).count(), 0);
        set(&mut state, has("1", "1Mi"));
        assert_eq!(unequal(&pod, &state).count(), 1);
        assert!(!needs_restart(&pod.containers[0], &has("1", "1Mi")));
        assert!(needs_restart(&pod.containers[0], &has("2", "2Mi")));
    }
}
