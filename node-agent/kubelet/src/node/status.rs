//! The node's status from what was observed: addresses, capacity, conditions, images.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::machine::Machine;
use crate::config::Config;
use crate::container::resources::NodeCapacity;
use crate::devices::Counts;
use crate::eviction::Pressure;
use crate::pod::status::time;
use crate::quantity::binary_si;

/// The handler that a RuntimeClass can always name here.
pub const RUNC: &str = "runc";

const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

pub struct Observed {
    pub now: Timestamp,
    /// Why pods cannot run here.
    pub not_ready: Option<String>,
    /// Why pods cannot have a network; `None` where they can.
    pub no_network: Option<String>,
    /// `containerd://1.6.20`
    pub runtime: String,
    /// Pods that run with runc can have users of their own.
    pub own_users: bool,
    pub images: Vec<ContainerImage>,
    pub pressure: Pressure,
    /// Of device plugins.
    pub devices: Counts,
    /// Volumes that must not be detached.
    pub volumes_in_use: Vec<String>,
}

/// `previous` keeps transition times of conditions whose status stays.
pub fn node_status(
    config: &Config,
    machine: &Machine,
    observed: &Observed,
    previous: Option<&NodeStatus>,
) -> NodeStatus {
    NodeStatus {
        addresses: Some(addresses(config)),
        capacity: Some(with_devices(
            resources(config, machine, machine.capacity()),
            observed.devices.iter().map(|(name, (all, _))| (name, *all)),
        )),
        allocatable: Some(with_devices(
            resources(config, machine, config.allocatable(machine.capacity())),
            observed.devices.iter().map(|(name, (_, healthy))| (name, *healthy)),
        )),
        conditions: Some(conditions(observed, previous)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }),
        }),
        images: Some(observed.images.clone()),
        declared_features: Some(DECLARED_FEATURES.map(str::to_owned).into()),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(runtime_handlers(config, observed.own_users)),
        node_info: Some(machine.system_info(observed.runtime.clone())),
        volumes_in_use: Some(observed.volumes_in_use.clone()).filter(|volumes| !volumes.is_empty()),
        ..NodeStatus::default()
    }
}

/// What pods may ask for and not every kubelet does (KEP-5328), by upstream's names, in order.
const DECLARED_FEATURES: [&str; 1] = ["RestartAllContainersOnContainerExits"];

/// runc under its own name, and as what pods get that ask for none; others, of which it is not known what they can do.
fn runtime_handlers(config: &Config, own_users: bool) -> Vec<NodeRuntimeHandler> {
    let features = NodeRuntimeHandlerFeatures {
        recursive_read_only_mounts: Some(true),
        user_namespaces: Some(own_users),
    };
    let handler =
        |name: &str| NodeRuntimeHandler { name: Some(name.to_owned()), features: Some(features.clone()) };
    let unknown = |name: &String| NodeRuntimeHandler { name: Some(name.clone()), features: None };
    let others = config.runtime_handlers.iter().map(unknown);
    [handler(""), handler(RUNC)].into_iter().chain(others).collect()
}

pub fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// True when the two say different things; heartbeat times do not count.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(a) != timeless(b)
}

/// The status as a strategic merge patch. Conditions of other owners stay: they merge by type.
pub fn patch(status: &NodeStatus) -> Value {
    let mut fields = json!(status);
    if let Some(Value::Array(addresses)) = fields.get_mut("addresses") {
        // They would merge by type, and hold only one of each.
        addresses.insert(0, json!({ "$patch": "replace" }));
    }
    if status.volumes_in_use.is_none() {
        // What is left out would stay.
        fields["volumesInUse"] = Value::Null;
    }
    json!({ "status": fields })
}

/// True when `shown`, as the API has it, says something else of the node's conditions than `fresh`: somebody else wrote
/// (a node that was silent is marked so).
pub fn is_overwritten(shown: &NodeStatus, fresh: &NodeStatus) -> bool {
    let shown = shown.conditions.as_deref().unwrap_or_default();
    let same = |own: &NodeCondition| {
        shown.iter().any(|c| c.type_ == own.type_ && c.status == own.status && c.reason == own.reason)
    };
    !fresh.conditions.iter().flatten().all(same)
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let internal =
        config.node_ips.iter().map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() });
    let hostname = NodeAddress { type_: "Hostname".into(), address: config.hostname.clone() };
    internal.chain([hostname]).collect()
}

fn with_devices<'a>(
    mut resources: BTreeMap<String, Quantity>,
    devices: impl Iterator<Item = (&'a String, usize)>,
) -> BTreeMap<String, Quantity> {
    resources.extend(devices.map(|(name, count)| (name.clone(), Quantity(count.to_string()))));
    resources
}

fn resources(config: &Config, machine: &Machine, amounts: NodeCapacity) -> BTreeMap<String, Quantity> {
    let cpu_millis = amounts.cpu_millis;
    let cpu = if cpu_millis % 1000 == 0 { (cpu_millis / 1000).to_string() } else { format!("{cpu_millis}m") };
    let kib = |bytes: i64| format!("{}Ki", bytes / 1024);
    let own = [
        ("cpu", cpu),
        ("memory", kib(amounts.memory_bytes)),
        ("ephemeral-storage", kib(amounts.ephemeral_bytes)),
        ("pods", config.max_pods.to_string()),
    ];
    let own = own.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(amount)));
    let pages = machine
        .hugepages
        .iter()
        .map(|(size, bytes)| (format!("hugepages-{}", binary_si(*size)), Quantity(binary_si(*bytes))));
    own.chain(pages).collect()
}

fn conditions(observed: &Observed, previous: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let Pressure { memory, disk, pids } = observed.pressure;
    let pick = |bad: bool, yes: [&str; 2], no: [&str; 2]| -> (bool, String, String) {
        let [reason, message] = if bad { yes } else { no };
        (bad, reason.to_owned(), message.to_owned())
    };
    let ready = match &observed.not_ready {
        None => (true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned()),
        Some(why) => (false, "KubeletNotReady".to_owned(), why.clone()),
    };
    // The node's network is the agent's own, as another one's would be its plugin's: reasons are named as these name theirs.
    let network = match &observed.no_network {
        None => (false, "HawserIsUp".to_owned(), "the network of pods is set up on this node".to_owned()),
        Some(why) => (true, "HawserIsDown".to_owned(), why.clone()),
    };
    let verdicts = [
        (
            "MemoryPressure",
            pick(
                memory,
                ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
                ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
            ),
        ),
        (
            "DiskPressure",
            pick(
                disk,
                ["KubeletHasDiskPressure", "kubelet has disk pressure"],
                ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
            ),
        ),
        (
            "PIDPressure",
            pick(
                pids,
                ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
                ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
            ),
        ),
        (NETWORK_UNAVAILABLE, network),
        ("Ready", ready),
    ];
    let known = previous.and_then(|p| p.conditions.as_deref()).unwrap_or_default();
    let own = verdicts.map(|(type_, (holds, reason, message))| {
        let status = if holds { "True" } else { "False" };
        let before = known.iter().find(|c| c.type_ == type_ && c.status == status);
        NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason),
            message: Some(message),
            last_heartbeat_time: Some(time(observed.now)),
            last_transition_time: before
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(time(observed.now))),
        }
    });
    own.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(not_ready: Option<&str>, second: i64) -> Observed {
        Observed {
            now: Timestamp::from_second(second).expect("valid"),
            not_ready: not_ready.map(str::to_owned),
            runtime: "containerd://1.6.20".into(),
            own_users: true,
            images: vec![],
            no_network: not_ready.map(str::to_owned),
            pressure: Pressure::default(),
            devices: Counts::new(),
            volumes_in_use: Vec::new(),
        }
    }

    #[test]
    fn the_network_is_unavailable_until_it_is_set_up() {
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        let shown = |no_network: Option<&str>| {
            let status = node_status(&config, &Machine::default(), &observed(no_network, 1), None);
            let condition = status.conditions.into_iter().flatten().find(|c| c.type_ == NETWORK_UNAVAILABLE);
            let condition = condition.expect("there");
            (condition.status, condition.reason.expect("given"), condition.message.expect("given"))
        };
        let told = ("True".into(), "HawserIsDown".into(), "no pod range".into());
        assert_eq!(shown(Some("no pod range")), told);
        assert_eq!((shown(None).0.as_str(), shown(None).1.as_str()), ("False", "HawserIsUp"));
    }

    #[test]
    fn volumes_that_are_not_in_use_any_more_are_taken_from_the_list() {
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        let in_use = |volumes: &[&str]| {
            let volumes_in_use = volumes.iter().map(|name| (*name).to_owned()).collect();
            let observed = Observed { volumes_in_use, ..observed(None, 1) };
            node_status(&config, &Machine::default(), &observed, None)
        };
        let ty = hawser_api::schema::type_of("", "v1", "Node");
        let mut node = json!({ "status": { "volumesAttached": [{ "name": "a", "devicePath": "" }] } });
        for volumes in [&["a", "b"][..], &["b"], &[]] {
            let patch = patch(&in_use(volumes)).to_string();
            let merge = hawser_api::patch::PatchType::StrategicMerge;
            node = hawser_api::patch::apply(merge, &node, patch.as_bytes(), ty).expect("applies");
            let status: NodeStatus = serde_json::from_value(node["status"].clone()).expect("a status");
            assert_eq!(status.volumes_in_use.unwrap_or_default(), volumes);
            assert!(status.volumes_attached.is_some(), "another's list");
        }
        assert!(differs(&in_use(&["a"]), &in_use(&[])));
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        let machine = Machine { cpus: 2, memory_bytes: 1 << 30, ..Machine::default() };
        let first = node_status(&config, &machine, &observed(Some("no network"), 1), None);
        let second = node_status(&config, &machine, &observed(None, 2), Some(&first));
        let third = node_status(&config, &machine, &observed(None, 3), Some(&second));
        assert!(!is_ready(&first) && is_ready(&second));
        assert!(differs(&first, &second));
        assert!(!differs(&second, &third), "only heartbeats differ");
        let ready = third.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("there");
        assert_eq!(ready.last_transition_time, Some(time(observed(None, 2).now)));
    }

    #[test]
    fn conditions_and_addresses_merge_into_what_the_api_has() {
        let mut config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        config.node_ips.push("fd00::1".parse().expect("address"));
        let status = node_status(&config, &Machine::default(), &observed(None, 1), None);
        let foreign = json!({ "type": "KernelDeadlock", "status": "False" });
        let node = json!({ "status": {
            "conditions": [foreign, { "type": "Ready", "status": "Unknown" }],
            "addresses": [{ "type": "InternalIP", "address": "10.0.0.9" }],
        } });
        let ty = hawser_api::schema::type_of("", "v1", "Node");
        let patch = patch(&status).to_string();
        let patched = hawser_api::patch::apply(
            hawser_api::patch::PatchType::StrategicMerge,
            &node,
            patch.as_bytes(),
            ty,
        );
        let patched = patched.expect("applies");
        assert_eq!(patched["status"]["conditions"][0], foreign);
        let patched: NodeStatus = serde_json::from_value(patched["status"].clone()).expect("a status");
        assert!(is_ready(&patched));
        assert_eq!(patched.addresses, status.addresses);
        assert!(!is_overwritten(&patched, &status), "conditions of others do not count");
    }

    #[test]
    fn reserved_resources_are_withheld() {
        let mut config = Config::new("n1", "10.0.0.1".parse().expect("address"), "/tmp");
        config.kube_reserved.cpu_millis = 100;
        let machine = Machine { cpus: 2, memory_bytes: 1 << 30, ..Machine::default() };
        let status = node_status(&config, &machine, &observed(None, 1), None);
        let cpu = |map: &Option<BTreeMap<String, Quantity>>| {
            map.as_ref().and_then(|m| m.get("cpu")).map(|q| q.0.clone())
        };
        assert_eq!(cpu(&status.capacity).as_deref(), Some("2"));
        assert_eq!(cpu(&status.allocatable).as_deref(), Some("1900m"));
    }
}
