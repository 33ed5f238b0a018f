//! Whether the node takes a pod that was bound to it: upstream's checks of what the scheduler may not have known.
//!
//! A pod that is refused fails at once, with the reason and the words that upstream gives it.

use std::collections::BTreeSet;

use hawser_api::node_fit::{is_selected, tolerates};
use k8s_openapi::api::core::v1;

use crate::config::Config;
use crate::container::resources::{NodeCapacity, pod_request};
use crate::container::security::apparmor_profile;
use crate::eviction::Pressure;
use crate::interfaces::HostPort;
use crate::pod::DesiredPod;
use crate::pod::state::Verdict;
use crate::preemption::Missing;
use crate::static_pods::is_static;

/// Kernel parameters that a pod may set, because they are its namespaces' own and harm nobody else.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the node has and holds when a pod comes.
pub struct Node<'a> {
    pub config: &'a Config,
    /// As the API shows it.
    pub object: &'a v1::Node,
    pub allocatable: NodeCapacity,
    pub pressure: Pressure,
    /// The kernel has AppArmor, and it is on.
    pub has_apparmor: bool,
    /// The other pods that have not ended and are not gone from the API.
    pub pods: &'a [DesiredPod],
}

/// `Err` says why the node does not take the pod.
pub fn admit(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    fits(node, pod)?;
    match shortages(node, pod).first() {
        None => Ok(()),
        Some(Shortage { resource, requested, used, capacity }) => {
            let message = format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            Err(Verdict::refusal(&format!("OutOf{resource}"), &message))
        }
    }
}

/// What the node has too little of for the pod, where that alone keeps it out; nothing where it would not be taken anyway.
pub fn missing(node: &Node<'_>, pod: &DesiredPod) -> Missing {
    match fits(node, pod) {
        Ok(()) => shortages(node, pod)
            .into_iter()
            .map(|short| (short.resource, short.requested - (short.capacity - short.used)))
            .collect(),
        Err(_) => Missing::new(),
    }
}

/// All but whether there is room.
fn fits(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    if let Some(verdict) = node.pressure.refuses(pod) {
        return Err(verdict);
    }
    sysctls(node.config, pod)?;
    os(pod)?;
    affinity(node, pod)?;
    ports(node, pod)?;
    taints(node, pod)?;
    apparmor(node, pod)
}

const AFFINITY: &str = "NodeAffinity";
const TAINTS: &str = "TaintToleration";

/// The node's labels or taints are why: there may be newer ones than those that were seen.
pub fn is_of_object(verdict: &Verdict) -> bool {
    [AFFINITY, TAINTS].contains(&verdict.reason.as_str())
}

fn failed(predicate: &str, why: &str) -> Result<(), Verdict> {
    Err(Verdict::refusal(predicate, &format!("Predicate {predicate} failed: {why}")))
}

/// The pod is for another system, by its field or by its own label, at which upstream looks too.
fn os(pod: &DesiredPod) -> Result<(), Verdict> {
    const OS: &str = "kubernetes.io/os";
    let label = pod.object.metadata.labels.as_ref().and_then(|labels| labels.get(OS));
    if label.is_some_and(|label| label != "linux") {
        let message = format!("Failed to admit pod as the `{OS}` label doesn't match node label");
        return Err(Verdict::refusal("PodOSSelectorNodeLabelDoesNotMatch", &message));
    }
    if pod.spec().os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Verdict::refusal("PodOSNotSupported", message));
    }
    Ok(())
}

fn affinity(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    match is_selected(pod.spec(), node.object) {
        true => Ok(()),
        false => failed(AFFINITY, "node(s) didn't match Pod's node affinity/selector"),
    }
}

/// A taint that evicts would have the pod go at once; those that only keep pods from being scheduled are the scheduler's
/// matter. Static pods stay whatever taints the node has.
fn taints(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    let taints = node.object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let mut evicting = taints.filter(|taint| taint.effect == "NoExecute");
    let tolerated = |taint: &v1::Taint| pod.spec().tolerations.iter().flatten().any(|t| tolerates(t, taint));
    match is_static(&pod.object) || evicting.all(tolerated) {
        true => Ok(()),
        false => failed(TAINTS, "node(s) had taints that the pod didn't tolerate"),
    }
}

/// Whoever was bound by somebody else than the scheduler may want ports that others have.
fn ports(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    let wanted = HostPort::of(&pod.object);
    let taken = |other: &DesiredPod| {
        HostPort::of(&other.object).iter().any(|port| wanted.iter().any(|wanted| wanted.conflicts(port)))
    };
    if wanted.is_empty() || !node.pods.iter().any(taken) {
        return Ok(());
    }
    failed("NodePorts", "node(s) didn't have free ports for the requested pod ports")
}

fn sysctls(config: &Config, pod: &DesiredPod) -> Result<(), Verdict> {
    let forbidden =
        |why: String| Err(Verdict::refusal("SysctlForbidden", &format!("forbidden sysctl: {why}")));
    let asked = pod.spec().security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    for sysctl in asked.into_iter().flatten() {
        // Both spellings name the same parameter.
        let name = sysctl.name.replace('/', ".");
        let allowed = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *pattern == name,
        };
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !config.allowed_unsafe_sysctls.iter().any(allowed) {
            return forbidden(format!("{name:?} not allowlisted"));
        }
        if name.starts_with("net.") && pod.host_network() {
            return forbidden(format!("{name:?} not allowed with host net enabled"));
        }
        let is_ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| name.starts_with(p));
        if is_ipc && pod.spec().host_ipc == Some(true) {
            return forbidden(format!("{name:?} not allowed with host ipc enabled"));
        }
    }
    Ok(())
}

/// A profile that cannot be enforced is not left out.
fn apparmor(node: &Node<'_>, pod: &DesiredPod) -> Result<(), Verdict> {
    let mut profiles = pod.containers.iter().filter_map(|container| apparmor_profile(pod, container));
    if node.has_apparmor || profiles.all(|profile| profile.type_ == "Unconfined") {
        return Ok(());
    }
    let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
    Err(Verdict::refusal("AppArmor", message))
}

/// Of which there is less left than the pod asks for.
struct Shortage {
    resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

fn shortages(node: &Node<'_>, pod: &DesiredPod) -> Vec<Shortage> {
    let (used, capacity) = (node.pods.len() as i64, i64::from(node.config.max_pods));
    let pods = Shortage { resource: "pods".into(), requested: 1, used, capacity };
    let others = named(pod).into_iter().filter_map(|resource| {
        let capacity = node.allocatable.get(&resource)?;
        let requested = pod_request(pod.spec(), &resource);
        let used = node.pods.iter().map(|other| pod_request(other.spec(), &resource)).sum();
        Some(Shortage { resource, requested, used, capacity })
    });
    let is_short = |short: &Shortage| short.requested > 0 && short.requested > short.capacity - short.used;
    [pods].into_iter().chain(others).filter(is_short).collect()
}

/// Resources that the pod asks for, by name.
fn named(pod: &DesiredPod) -> BTreeSet<String> {
    let resources = pod.containers.iter().filter_map(|container| container.spec.resources.as_ref());
    let lists = resources.flat_map(|resources| [resources.requests.as_ref(), resources.limits.as_ref()]);
    lists.flatten().flat_map(|amounts| amounts.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{container, pod, pod_object, spec, with_resources};
    use k8s_openapi::api::core::v1::{
        AppArmorProfile, ContainerPort, PodSecurityContext, Sysctl, Toleration,
    };
    use serde_json::json;

    fn asking(cpu: &str) -> DesiredPod {
        pod(spec("Always", vec![], vec![with_resources("c", &[("cpu", cpu)], &[])]))
    }

    fn refusal(pressure: Pressure, others: &[DesiredPod], wanted: &DesiredPod) -> Option<(String, String)> {
        refusal_on(&v1::Node::default(), pressure, others, wanted)
    }

    fn refusal_on(
        object: &v1::Node,
        pressure: Pressure,
        others: &[DesiredPod],
        wanted: &DesiredPod,
    ) -> Option<(String, String)> {
        let mut config = Config::new("n", [127, 0, 0, 1].into(), "/tmp/none");
        config.max_pods = 3;
        config.allowed_unsafe_sysctls = vec!["kernel.msg*".into()];
        let allocatable = NodeCapacity { cpu_millis: 2000, memory_bytes: 1 << 30, ephemeral_bytes: 1 << 30 };
        let node = Node { config: &config, object, allocatable, pressure, has_apparmor: false, pods: others };
        admit(&node, wanted).err().map(|verdict| (verdict.reason, verdict.message))
    }

    #[test]
    fn pod_that_does_not_fit_is_told_the_numbers() {
        let none = Pressure::default();
        assert_eq!(refusal(none, &[asking("1")], &asking("1")), None);
        let (reason, message) = refusal(none, &[asking("1500m")], &asking("600m")).expect("refused");
        assert_eq!(reason, "OutOfcpu");
        let told = "Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000";
        assert_eq!(message, told);
        let full = [asking("1m"), asking("1m"), asking("1m")];
        assert_eq!(refusal(none, &full, &asking("1m")).expect("refused").0, "OutOfpods");
    }

    #[test]
    fn port_of_the_node_is_given_once() {
        let with = |address: Option<&str>, protocol: &str, host_port: i32| {
            let mut spec = spec("Always", vec![], vec![container("c")]);
            spec.containers[0].ports = Some(vec![ContainerPort {
                container_port: 80,
                host_ip: address.map(str::to_owned),
                host_port: Some(host_port),
                protocol: Some(protocol.into()),
                ..ContainerPort::default()
            }]);
            pod(spec)
        };
        let there = [with(Some("192.0.2.1"), "TCP", 8080)];
        let check = |wanted: &DesiredPod, refused: bool| {
            let reason = refusal(Pressure::default(), &there, wanted).map(|(reason, _)| reason);
            assert_eq!(reason.as_deref(), refused.then_some("NodePorts"), "{:?}", wanted.spec().containers);
        };
        check(&asking("1m"), false);
        check(&with(None, "TCP", 8080), true);
        check(&with(Some("192.0.2.1"), "TCP", 8080), true);
        check(&with(Some("192.0.2.2"), "TCP", 8080), false);
        check(&with(None, "UDP", 8080), false);
        check(&with(None, "TCP", 8081), false);
    }

    #[test]
    fn pressure_keeps_out_whom_it_concerns() {
        let best_effort = pod(spec("Always", vec![], vec![container("c")]));
        let memory = Pressure { memory: true, ..Pressure::default() };
        let told =
            ("Evicted".to_owned(), "Pod was rejected: The node had condition: [MemoryPressure]. ".to_owned());
        assert_eq!(refusal(memory, &[], &best_effort), Some(told));
        assert_eq!(refusal(memory, &[], &asking("1m")), None);
        let mut tolerant = best_effort.spec().clone();
        let key = Some("node.kubernetes.io/memory-pressure".to_owned());
        tolerant.tolerations = Some(vec![Toleration { key, ..Toleration::default() }]);
        assert_eq!(refusal(memory, &[], &pod(tolerant.clone())), None);
        let disk = Pressure { disk: true, ..memory };
        assert!(refusal(disk, &[], &pod(tolerant.clone())).is_some());
        assert!(refusal(disk, &[], &asking("1m")).is_some());
        tolerant.priority = Some(2_000_000_000);
        assert_eq!(refusal(disk, &[], &pod(tolerant)), None);
    }

    #[test]
    fn profile_that_cannot_be_enforced_is_a_refusal() {
        let with = |type_: &str| {
            let mut spec = spec("Always", vec![], vec![container("c")]);
            let profile = AppArmorProfile { type_: type_.into(), localhost_profile: None };
            spec.security_context = Some(PodSecurityContext {
                app_armor_profile: Some(profile),
                ..PodSecurityContext::default()
            });
            refusal(Pressure::default(), &[], &pod(spec))
        };
        assert_eq!(with("Unconfined"), None);
        let told = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(with("RuntimeDefault"), Some(("AppArmor".into(), told.into())));
    }

    #[test]
    fn sysctls_are_safe_or_allowed() {
        let with = |name: &str, host_network: bool| {
            let sysctl = Sysctl { name: name.into(), value: "1".into() };
            let mut spec = spec("Always", vec![], vec![container("c")]);
            spec.host_network = Some(host_network);
            spec.security_context =
                Some(PodSecurityContext { sysctls: Some(vec![sysctl]), ..PodSecurityContext::default() });
            refusal(Pressure::default(), &[], &pod(spec)).map(|(_, message)| message)
        };
        assert_eq!(with("kernel.shm_rmid_forced", false), None);
        assert_eq!(with("kernel.msgmax", false), None);
        let told = "Pod was rejected: forbidden sysctl: \"net.core.somaxconn\" not allowlisted";
        assert_eq!(with("net/core/somaxconn", false).as_deref(), Some(told));
        assert!(with("net.ipv4.tcp_syncookies", true).is_some_and(|m| m.contains("host net enabled")));
    }

    #[test]
    fn labels_and_taints_of_the_node_refuse_pods() {
        let taint = json!({ "key": "broken", "effect": "NoExecute" });
        let object =
            json!({ "metadata": { "name": "n", "labels": { "zone": "a" } }, "spec": { "taints": [taint] } });
        let node: v1::Node = serde_json::from_value(object).expect("a node");
        let on_node = |pod: &DesiredPod| refusal_on(&node, Pressure::default(), &[], pod);
        let mut spec = spec("Always", vec![], vec![container("c")]);
        spec.priority = Some(2_000_000_000);
        let told = "Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        assert_eq!(on_node(&pod(spec.clone())), Some(("TaintToleration".into(), told.into())));
        let mut of_file = pod_object(spec.clone());
        let source = ("kubernetes.io/config.source".to_owned(), "file".to_owned());
        of_file.metadata.annotations = Some([source].into());
        assert_eq!(on_node(&DesiredPod::new(of_file.clone().into())), None);
        spec.node_selector = Some([("zone".to_owned(), "b".to_owned())].into());
        of_file.spec = Some(spec.clone());
        let told = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        for pod in [pod(spec), DesiredPod::new(of_file.into())] {
            assert_eq!(on_node(&pod), Some(("NodeAffinity".into(), told.into())));
        }
    }

    #[test]
    fn pods_of_other_systems_are_refused() {
        let reason = |pod: &DesiredPod| refusal(Pressure::default(), &[], pod).map(|(reason, _)| reason);
        let with = |name: &str| {
            let mut spec = spec("Always", vec![], vec![container("c")]);
            spec.os = Some(v1::PodOS { name: name.into() });
            pod(spec)
        };
        assert_eq!(reason(&with("linux")), None);
        assert_eq!(reason(&with("windows")).as_deref(), Some("PodOSNotSupported"));
        let mut labelled = pod_object(spec("Always", vec![], vec![container("c")]));
        labelled.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        let reason = reason(&DesiredPod::new(labelled.into()));
        assert_eq!(reason.as_deref(), Some("PodOSSelectorNodeLabelDoesNotMatch"));
    }
}
