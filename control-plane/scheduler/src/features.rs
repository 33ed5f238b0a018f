//! NodeDeclaredFeatures: what a pod needs of its kubelet that not every kubelet does (KEP-5328).
//!
//! Kubelets declare such features in the status of their nodes; which ones a pod needs is read from its spec. Features that
//! matter only to pods that run already, as those of resizing, are none of the scheduler's: the API server checks them.

use k8s_openapi::api::core::v1::{Container, PodSpec};

const RESTART_ALL_CONTAINERS: &str = "RestartAllContainersOnContainerExits";
const USER_NAMESPACE_ON_HOST_NETWORK: &str = "UserNamespacesHostNetworkSupport";

/// The features that a node must have declared to run the pod.
pub(crate) fn required(spec: &PodSpec) -> Vec<&'static str> {
    let restarts_all = |container: &Container| {
        let mut rules = container.restart_policy_rules.iter().flatten();
        rules.any(|rule| rule.action == "RestartAllContainers")
    };
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let on_host_network = spec.host_network == Some(true) && spec.host_users == Some(false);
    let needed = [
        (containers.any(restarts_all), RESTART_ALL_CONTAINERS),
        (on_host_network, USER_NAMESPACE_ON_HOST_NETWORK),
    ];
    needed.into_iter().filter(|(needed, _)| *needed).map(|(_, feature)| feature).collect()
}

/// Those that are not among the declared.
pub(crate) fn missing<'a>(
    required: &'a [&'static str],
    declared: &'a [String],
) -> impl Iterator<Item = &'static str> + 'a {
    required.iter().copied().filter(|feature| !declared.iter().any(|known| known == feature))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::Config,
        scheduler::Scheduler,
        testing::{node, pod},
    };

    #[track_caller]
    fn check(name: &str, spec: Value, expected: &[&str]) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        assert_eq!(required(&spec), expected, "{name}");
    }

    fn restarting(action: &str) -> Value {
        json!({ "name": "c", "restartPolicyRules": [{ "action": "Restart" }, { "action": action }] })
    }

    #[test]
    fn features_are_read_from_the_spec() {
        let all = ["RestartAllContainersOnContainerExits"];
        check("nothing", json!({ "containers": [{ "name": "c" }] }), &[]);
        check("one container restarts", json!({ "containers": [restarting("Restart")] }), &[]);
        check("all containers restart", json!({ "containers": [restarting("RestartAllContainers")] }), &all);
        let init = json!({ "containers": [], "initContainers": [restarting("RestartAllContainers")] });
        check("for one that prepares", init, &all);
        let host = |network: bool, users: bool| json!({ "containers": [], "hostNetwork": network, "hostUsers": users });
        check("own users on the host's network", host(true, false), &["UserNamespacesHostNetworkSupport"]);
        check("the host's users there", host(true, true), &[]);
        check("own users on an own network", host(false, false), &[]);
    }

    #[test]
    fn a_pod_waits_for_a_node_that_declares_its_features() {
        let mut scheduler = Scheduler::new(&Config::default(), 7);
        let declaring = |features: Value| node("n1", json!({ "status": { "declaredFeatures": features } }));
        scheduler.node_changed(&declaring(json!(["Another"])), Duration::ZERO);
        let container = restarting("RestartAllContainers");
        scheduler.pod_changed(&pod("p", json!({ "containers": [container] })), Duration::ZERO);
        let refused = &scheduler.schedule(1, Duration::ZERO).rejected[0];
        let message = "0/1 nodes are available: 1 node(s) didn't match Pod's required features. \
            preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
        assert_eq!(refused.message, message);
        let later = Duration::from_secs(10);
        scheduler.node_changed(&declaring(json!(["Other", "RestartAllContainersOnContainerExits"])), later);
        assert_eq!(scheduler.schedule(1, later).bindings[0].binding.node, "n1");
        // A pod that does without it by now is tried again.
        scheduler.node_changed(&declaring(json!([])), later);
        let second = |action: &str| pod("q", json!({ "containers": [restarting(action)] }));
        scheduler.pod_changed(&second("RestartAllContainers"), later);
        assert_eq!(scheduler.schedule(1, later).rejected.len(), 1);
        scheduler.pod_changed(&second("Restart"), later);
        assert_eq!(scheduler.schedule(1, Duration::from_secs(20)).bindings[0].binding.pod, "q");
    }
}
