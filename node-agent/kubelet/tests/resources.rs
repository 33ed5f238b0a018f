//! Resources of the node and its pods, through the whole kubelet: who is taken, who has to go, what can change.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Node, container, spec, uid};
use hawser_api::GroupVersionResource;
use hawser_api::resource::{ObjectKey, Target};
use hawser_kubelet::Config;
use hawser_kubelet::cpus::CpuPolicy;
use hawser_kubelet::cpus::topology::{Place, Topology};
use hawser_kubelet::eviction::thresholds::{Amount, Signal, Threshold};
use hawser_kubelet::locality::{Policy, Scope};
use hawser_kubelet::memory::MemoryPolicy;
use hawser_kubelet::memory::ledger::Amounts;
use hawser_runtime::{ContainerState, ContainerStats, DiskUsage, Error};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, ContainerStatus, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EphemeralContainer, Node as ApiNode, PodSpec, PodStatus, ResourceFieldSelector,
    ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn asking(name: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
    let quantities = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), Quantity((*text).to_owned()))).collect()
    };
    let resources = ResourceRequirements {
        requests: Some(quantities(requests)),
        limits: Some(quantities(limits)),
        ..ResourceRequirements::default()
    };
    Container { resources: Some(resources), ..container(name) }
}

fn condition(status: &PodStatus, type_: &str) -> Option<(String, String)> {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == "True")?;
    Some((found.reason.clone().unwrap_or_default(), found.message.clone().unwrap_or_default()))
}

fn web(status: &PodStatus) -> ContainerStatus {
    status.container_statuses.as_ref().expect("statuses")[0].clone()
}

/// On a machine that is always short of memory.
fn short_of_memory() -> Node {
    Node::start_set(|config| {
        // A soft threshold withholds nothing from pods, which come before its grace is over.
        let threshold = Threshold::hard(Signal::MemoryAvailable, Amount::Percent(100.0));
        config.eviction.thresholds = vec![Threshold { grace: Duration::from_secs(60), ..threshold }];
    })
}

#[tokio::test(start_paused = true)]
async fn greediest_pod_goes_and_the_node_says_why() {
    let node = short_of_memory();
    node.bind("modest", spec("Always", vec![asking("main", &[("memory", "1Gi")], &[])]));
    node.bind("web", spec("Always", vec![asking("main", &[("memory", "1Mi")], &[])]));
    for name in ["modest", "web"] {
        node.wait_running(name).await;
        let stats = ContainerStats { memory_working_set_bytes: 64 << 20, ..ContainerStats::default() };
        node.runtime.set_stats(&uid(name), stats);
        let main = node.runtime.find(&uid(name), "main").expect("runs");
        node.runtime.set_stats(&main.id, stats);
    }
    let status = node.wait_status("web", "the end", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.clone().expect("a message");
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    let told = "Container main was using 64Mi, request is 1Mi, has larger consumption of memory. ";
    assert!(message.ends_with(told), "{message}");
    assert_eq!(condition(&status, "DisruptionTarget"), Some(("TerminationByKubelet".into(), message)));
    assert_eq!(node.status("modest").phase.as_deref(), Some("Running"), "one at a time");
    node.wait("the node's condition", || {
        let object = node.api.object("nodes", "n1")?;
        let conditions = object["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|c| c["type"] == "MemoryPressure" && c["status"] == "True")
    })
    .await;
    node.wait("events", || {
        let events = node.api.events().join("\n");
        let all = ["EvictionThresholdMet: Attempting to reclaim memory", "Evicted: The node was low"];
        all.iter().all(|wanted| events.contains(wanted)).then_some(())
    })
    .await;
    // A pod that asks for nothing is not taken now.
    node.bind("late", spec("Always", vec![container("main")]));
    let late = node.wait_status("late", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    let told = "Pod was rejected: The node had condition: [MemoryPressure]. ";
    assert_eq!((late.reason.as_deref(), late.message.as_deref()), (Some("Evicted"), Some(told)));
    assert!(node.runtime.find(&uid("late"), "main").is_none(), "nothing of it was made");
}

#[tokio::test(start_paused = true)]
async fn pods_that_together_near_their_bound_lose_the_greediest() {
    let node = Node::start_set(|config| {
        // Far below what any machine has.
        config.eviction.thresholds =
            vec![Threshold::hard(Signal::MemoryAvailable, Amount::Absolute(1 << 20))];
    });
    for name in ["modest", "web"] {
        node.bind(name, spec("Always", vec![asking("main", &[("memory", "1Mi")], &[])]));
        node.wait_running(name).await;
    }
    let usage = |bytes| ContainerStats { memory_working_set_bytes: bytes, ..ContainerStats::default() };
    node.runtime.set_stats(&uid("modest"), usage(1 << 10));
    node.runtime.set_stats(&uid("web"), usage(63 << 20));
    let bound = ContainerStats { memory_limit_bytes: Some(64 << 20), ..usage((63 << 20) + (1 << 19)) };
    node.runtime.set_stats("/hawser/n1/kubepods", bound);
    let status = node.wait_status("web", "the end", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.expect("a message");
    let told = "The node was low on resource: memory. Threshold quantity: 1Mi, available: 512Ki. ";
    assert!(message.starts_with(told), "{message}");
    assert_eq!(node.status("modest").phase.as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn container_over_its_storage_limit_takes_its_pod_down() {
    let node = Node::start_set(|config| {
        config.volume_stats_interval = Duration::from_secs(1);
        config.eviction.thresholds.clear();
    });
    node.bind("web", spec("Always", vec![asking("web", &[], &[("ephemeral-storage", "1Mi")])]));
    node.wait_running("web").await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    node.runtime.set_disk_usage(&running.id, DiskUsage { bytes: 2 << 20, inodes: 1 });
    let status = node.wait_status("web", "the end", |s| s.phase.as_deref() == Some("Failed")).await;
    let told = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
    assert_eq!(status.message.as_deref(), Some(told));
}

#[tokio::test(start_paused = true)]
async fn levels_of_the_cgroup_tree_follow_the_pods() {
    let node = Node::start();
    let shares = |level: &str| {
        let limits = node.runtime.group(&format!("/hawser/n1/kubepods{level}"))?;
        limits.cpu_shares
    };
    node.wait("the tree", || (shares("/burstable")? == 2 && shares("/besteffort")? == 2).then_some(())).await;
    let all = node.runtime.group("/hawser/n1/kubepods").expect("made");
    assert!(all.memory_limit_bytes.is_some_and(|bytes| bytes > 0), "{all:?}");
    node.wait("the event", || {
        let told = "NodeAllocatableEnforced: Updated Node Allocatable limit across pods";
        node.api.events().contains(&told.to_owned()).then_some(())
    })
    .await;
    node.bind("web", spec("Always", vec![asking("web", &[("cpu", "500m")], &[])]));
    node.bind("idle", spec("Always", vec![container("idle")]));
    for name in ["web", "idle"] {
        node.wait_running(name).await;
    }
    assert_eq!((shares("/burstable"), shares("/besteffort")), (Some(512), Some(2)), "before it was made");
    let group = |name: &str| node.runtime.sandbox_of(&uid(name)).expect("made").cgroup_parent;
    assert_eq!(group("web"), format!("/hawser/n1/kubepods/burstable/pod{}", uid("web")));
    assert_eq!(group("idle"), format!("/hawser/n1/kubepods/besteffort/pod{}", uid("idle")));
    node.delete("web", 0);
    node.wait("its share to go", || (shares("/burstable")? == 2).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn tree_that_cannot_be_written_is_told_and_pods_start_all_the_same() {
    let node = Node::start();
    node.wait("the tree", || node.runtime.group("/hawser/n1/kubepods")).await;
    let busy = Error::Unavailable { attempted: "write", message: "busy".into() };
    node.runtime.fail_next("update_group", busy);
    node.wait("the event", || {
        let told = "FailedNodeAllocatableEnforcement: Failed to update Node Allocatable Limits";
        node.api.events().iter().any(|event| event.starts_with(told)).then_some(())
    })
    .await;
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_running("web").await;
}

/// One socket of two cores with two threads each; CPU 0 is reserved.
fn with_cpus(config: &mut Config) {
    let places = [(0, 0), (1, 1), (2, 0), (3, 1)];
    let places = places.into_iter().map(|(cpu, core)| (cpu, Place { socket: 0, core, node: 0 }));
    let reserved = "0".parse().expect("a set");
    config.cpu_policy = CpuPolicy::fixed(Topology(places.collect()), reserved, 0).expect("a policy");
}

#[tokio::test(start_paused = true)]
async fn whole_cpus_are_taken_from_those_that_share() {
    let node = Node::start_set(with_cpus);
    node.bind("idle", spec("Always", vec![container("idle")]));
    node.wait_running("idle").await;
    let cpus = |node: &Node, name: &str| {
        let found = node.runtime.find(&uid(name), name).expect("made");
        node.runtime.config_of(&found.id).expect("made").resources.cpuset_cpus.expect("told")
    };
    assert_eq!(cpus(&node, "idle"), "0-3");
    let whole = |name: &str| asking(name, &[], &[("cpu", "1"), ("memory", "1Mi")]);
    node.bind("web", spec("Always", vec![whole("web")]));
    node.wait_running("web").await;
    assert_eq!((cpus(&node, "web"), cpus(&node, "idle")), ("2".into(), "0-1,3".into()));
    let calls = node.runtime.calls();
    let first = |wanted: &str| calls.iter().position(|call| call.starts_with(wanted)).expect(wanted);
    let created = first(&format!("create_container({}", uid("web")));
    assert!(first("update_container") < created, "moved before the other one begins");
    // Known again after a restart, and given back at the end.
    let node = node.restart_set(with_cpus).await;
    node.wait("the workers", || (node.kubelet.pods.len() == 2).then_some(())).await;
    node.bind("late", spec("Always", vec![container("late")]));
    node.wait_running("late").await;
    assert_eq!(cpus(&node, "late"), "0-1,3");
    node.delete("web", 0);
    node.wait("the others to have it", || (cpus(&node, "late") == "0-3").then_some(())).await;
    assert_eq!(cpus(&node, "idle"), "0-3");
}

/// Two NUMA nodes of 8 MiB each.
fn with_memory(config: &mut Config) {
    let node = Amounts::from([("memory".to_owned(), 8 << 20)]);
    config.memory_policy = MemoryPolicy::Static([(0, node.clone()), (1, node)].into());
}

#[tokio::test(start_paused = true)]
async fn memory_comes_from_nodes_of_ones_own() {
    let node = Node::start_set(with_memory);
    let mems = |node: &Node, name: &str| {
        let found = node.runtime.find(&uid(name), name).expect("made");
        node.runtime.config_of(&found.id).expect("made").resources.cpuset_mems
    };
    let sized = |name: &str, memory: &str| {
        spec("Always", vec![asking(name, &[], &[("cpu", "1m"), ("memory", memory)])])
    };
    for (name, memory, expected) in [("one", "6Mi", "0"), ("two", "6Mi", "1")] {
        node.bind(name, sized(name, memory));
        node.wait_running(name).await;
        assert_eq!(mems(&node, name).as_deref(), Some(expected));
    }
    node.bind("idle", spec("Always", vec![container("idle")]));
    node.wait_running("idle").await;
    assert_eq!(mems(&node, "idle"), None, "from wherever it is");
    // What it was given for good it keeps.
    node.change("two", |spec| spec.containers[0] = sized("two", "7Mi").containers[0].clone());
    let pending =
        node.wait_status("two", "a condition", |s| condition(s, "PodResizePending").is_some()).await;
    let told = "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
    assert_eq!(condition(&pending, "PodResizePending"), Some(("Infeasible".into(), told.into())));
    node.bind("three", sized("three", "6Mi"));
    let refused = node.wait_status("three", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(refused.reason.as_deref(), Some("UnexpectedAdmissionError"));
    // Known again after a restart, and given back at the end.
    let node = node.restart_set(with_memory).await;
    node.wait("the workers", || (node.kubelet.pods.len() == 4).then_some(())).await;
    node.delete("one", 0);
    node.wait_gone("one").await;
    node.bind("four", sized("four", "6Mi"));
    node.wait_running("four").await;
    assert_eq!(mems(&node, "four").as_deref(), Some("0"));
}

#[tokio::test(start_paused = true)]
async fn pods_or_containers_have_what_they_need_from_one_node() {
    let two = || {
        let half = |name: &str| asking(name, &[], &[("cpu", "1m"), ("memory", "5Mi")]);
        spec("Always", vec![half("a"), half("b")])
    };
    for (scope, expected) in [(Scope::Container, None), (Scope::Pod, Some("TopologyAffinityError"))] {
        let node = Node::start_set(|config| {
            with_memory(config);
            (config.topology_policy, config.topology_scope) = (Policy::SingleNumaNode, scope);
        });
        node.bind("two", two());
        match expected {
            None => {
                node.wait_running("two").await;
            }
            Some(reason) => {
                let refused =
                    node.wait_status("two", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
                assert_eq!(refused.reason.as_deref(), Some(reason));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pod_that_does_not_fit_is_refused() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![asking("web", &[("cpu", "1000")], &[])]));
    let status = node.wait_status("web", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    let message = status.message.expect("a message");
    let told =
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: ";
    assert!(message.starts_with(told), "{message}");
}

#[tokio::test(start_paused = true)]
async fn lower_pod_goes_for_a_critical_one() {
    let node = Node::start_set(|config| config.max_pods = 1);
    node.bind("web", spec("Always", vec![container("main")]));
    node.wait_running("web").await;
    let mut critical = spec("Always", vec![container("main")]);
    critical.priority = Some(2_000_001_000);
    node.bind("critical", critical.clone());
    node.wait_running("critical").await;
    let gone = node.wait_status("web", "its end", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(gone.reason.as_deref(), Some("Preempting"));
    assert_eq!(gone.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let disrupted = condition(&gone, "DisruptionTarget").expect("told");
    assert_eq!(disrupted.0, "TerminationByKubelet");
    node.bind("peer", critical);
    let refused = node.wait_status("peer", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(refused.reason.as_deref(), Some("OutOfpods"), "who is as critical stays");
}

/// A node with room for one pod, which `web` has and takes its time to give back, and a critical pod that waits for it.
async fn with_a_critical_pod_that_waits() -> Node {
    let node = Node::start_set(|config| config.max_pods = 1);
    node.runtime.ignore_stop_signal("web");
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_running("web").await;
    let mut critical = spec("Always", vec![container("main")]);
    critical.priority = Some(2_000_001_000);
    node.bind("critical", critical);
    node.wait("the other to be stopped", || {
        let web = node.runtime.find(&uid("web"), "web").expect("known");
        node.runtime.calls().contains(&format!("stop_container({})", web.id)).then_some(())
    })
    .await;
    node
}

#[tokio::test(start_paused = true)]
async fn room_that_was_made_for_a_critical_pod_is_nobody_elses() {
    let node = with_a_critical_pod_that_waits().await;
    let runs =
        || node.runtime.find(&uid("critical"), "main").is_some_and(|c| c.state == ContainerState::Running);
    let mut others = Vec::new();
    while !runs() {
        assert!(others.len() < 500, "the critical pod does not run");
        others.push(format!("a{:03}", others.len()));
        node.bind(others.last().expect("one"), spec("Always", vec![container("main")]));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for other in others {
        let refused = node.wait_status(&other, "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
        assert_eq!(refused.reason.as_deref(), Some("OutOfpods"), "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn critical_pod_that_is_deleted_while_it_waits_goes_at_once() {
    let node = with_a_critical_pod_that_waits().await;
    node.delete("critical", 30);
    node.wait_gone("critical").await;
    let web = node.runtime.find(&uid("web"), "web").expect("known");
    assert_eq!(web.state, ContainerState::Running, "it still stops");
    node.wait_status("web", "its end", |s| s.phase.as_deref() == Some("Failed")).await;
    node.bind("next", spec("Always", vec![container("main")]));
    node.wait_running("next").await;
}

#[tokio::test(start_paused = true)]
async fn port_of_a_pod_that_was_deleted_by_force_is_free() {
    let node = Node::start();
    let with_port = |name: &str| {
        let mut main = container(name);
        main.ports = Some(vec![ContainerPort {
            container_port: 80,
            host_port: Some(8080),
            ..ContainerPort::default()
        }]);
        spec("Always", vec![main])
    };
    node.runtime.ignore_stop_signal("old");
    node.bind("old", with_port("old"));
    node.wait_running("old").await;
    node.bind("early", with_port("early"));
    let refused = node.wait_status("early", "the refusal", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(refused.reason.as_deref(), Some("NodePorts"));
    node.api.forget("old");
    node.objects.pods.remove(&ObjectKey::new("default", "old"));
    node.bind("web", with_port("web"));
    node.wait_running("web").await;
    let old = node.runtime.find(&uid("old"), "old").expect("known");
    assert_eq!(old.state, ContainerState::Running, "it still stops");
}

#[tokio::test(start_paused = true)]
async fn running_pod_gets_what_it_asks_for_anew() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![asking("web", &[("cpu", "100m")], &[("memory", "64Mi")])]));
    node.wait_running("web").await;
    let before = node.runtime.find(&uid("web"), "web").expect("runs");
    let limits = |id: &str| node.runtime.config_of(id).expect("made").resources;
    assert_eq!(limits(&before.id).cpu_shares, Some(102));
    let asked = asking("web", &[("cpu", "200m")], &[("memory", "128Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    let status = node.wait_status("web", "what it has now", |s| web(s).resources == asked).await;
    assert_eq!(limits(&before.id).cpu_shares, Some(204));
    assert_eq!(limits(&before.id).memory_limit_bytes, Some(128 << 20));
    let pod = node.runtime.sandbox_of(&uid("web")).expect("there").resources;
    assert_eq!((pod.cpu_shares, pod.memory_limit_bytes), (Some(204), Some(128 << 20)));
    assert_eq!(web(&status).restart_count, 0);
    node.wait_status("web", "no condition", |s| condition(s, "PodResizeInProgress").is_none()).await;

    // More than there is, and more than is free.
    node.change("web", |spec| {
        spec.containers[0].resources = asking("web", &[("cpu", "1000")], &[("memory", "128Mi")]).resources;
    });
    let pending =
        node.wait_status("web", "a condition", |s| condition(s, "PodResizePending").is_some()).await;
    let (reason, message) = condition(&pending, "PodResizePending").expect("waited for");
    assert_eq!(reason, "Infeasible");
    assert!(message.starts_with("Node didn't have enough capacity: cpu, requested: 1000000"), "{message}");
    assert_eq!(web(&pending).resources, asked, "it keeps what it has");
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    node.wait_status("web", "peace", |s| condition(s, "PodResizePending").is_none()).await;

    // Less memory than is used would end it.
    let used = ContainerStats { memory_working_set_bytes: 100 << 20, ..ContainerStats::default() };
    node.runtime.set_stats(&before.id, used);
    node.change("web", |spec| {
        spec.containers[0].resources = asking("web", &[("cpu", "200m")], &[("memory", "32Mi")]).resources;
    });
    let failed = node
        .wait_status("web", "the error", |s| {
            condition(s, "PodResizeInProgress").is_some_and(|(reason, _)| reason == "Error")
        })
        .await;
    let (_, message) = condition(&failed, "PodResizeInProgress").expect("waited for");
    assert_eq!(message, "attempting to set memory limit (33554432) below current usage (104857600)");
}

#[tokio::test(start_paused = true)]
async fn resize_restarts_a_container_that_asks_for_it() {
    let node = Node::start();
    let mut main = asking("web", &[("cpu", "100m")], &[("memory", "64Mi")]);
    main.resize_policy = Some(vec![ContainerResizePolicy {
        resource_name: "memory".into(),
        restart_policy: "RestartContainer".into(),
    }]);
    node.bind("web", spec("Always", vec![main]));
    node.wait_running("web").await;
    let asked = asking("web", &[("cpu", "100m")], &[("memory", "128Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    let status = node
        .wait_status("web", "a restart", |s| web(s).restart_count == 1 && web(s).resources == asked)
        .await;
    assert!(web(&status).state.is_some_and(|state| state.running.is_some()));
    let newest = node.runtime.find(&uid("web"), "web").expect("runs");
    let limits = node.runtime.config_of(&newest.id).expect("made").resources;
    assert_eq!(limits.memory_limit_bytes, Some(128 << 20));
    node.wait("events", || {
        let events = node.api.events().join("\n");
        events.contains("Killing: Container web resize requires restart").then_some(())
    })
    .await;
    // The pod's cgroup goes along when nothing has more any longer.
    let less = asking("web", &[("cpu", "100m")], &[("memory", "32Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = less.clone());
    node.wait_status("web", "another restart", |s| web(s).restart_count == 2 && web(s).resources == less)
        .await;
    wait_group_memory(&node, 32 << 20).await;
}

/// Waits until the pod's cgroup has that limit.
async fn wait_group_memory(node: &Node, bytes: i64) {
    node.wait("the limit of the pod's cgroup", || {
        let group = node.runtime.sandbox_of(&uid("web"))?.resources;
        (group.memory_limit_bytes == Some(bytes)).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pod_that_is_granted_more_while_nothing_runs_has_it_as_a_whole() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![asking("web", &[("cpu", "100m")], &[("memory", "64Mi")])]));
    node.wait_running("web").await;
    for restarts in 0..2 {
        let running = node
            .wait("an instance", || {
                node.runtime
                    .find(&uid("web"), "web")
                    .filter(|c| c.attempt == restarts && c.state == ContainerState::Running)
            })
            .await;
        node.runtime.exit(&running.id, 137);
    }
    let waits = |s: &PodStatus| web(s).state.is_some_and(|state| state.waiting.is_some());
    node.wait_status("web", "a back-off", |s| waits(s) && web(s).restart_count == 1).await;
    let asked = asking("web", &[("cpu", "100m")], &[("memory", "128Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    wait_group_memory(&node, 128 << 20).await;
    let status = node.wait_status("web", "a restart", |s| web(s).restart_count == 2).await;
    assert_eq!(web(&status).resources, asked);
    assert_eq!(
        node.runtime.sandbox_of(&uid("web")).expect("there").resources.memory_limit_bytes,
        Some(128 << 20)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_container_has_is_known_after_a_restart_of_the_agent() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![asking("web", &[("cpu", "100m")], &[("memory", "64Mi")])]));
    node.wait_ready("web").await;
    let running = node.runtime.find(&uid("web"), "web").expect("runs");
    node.runtime.clear_calls();
    let node = node.restart().await;
    // Asked for while no agent ran, as far as this one can tell.
    let asked = asking("web", &[("cpu", "300m")], &[("memory", "64Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    node.wait_status("web", "what it has now", |s| web(s).resources == asked).await;
    assert_eq!(node.runtime.config_of(&running.id).expect("made").resources.cpu_shares, Some(307));
    assert_eq!(node.runtime.find(&uid("web"), "web").map(|c| c.id), Some(running.id), "nothing restarted");
}

#[tokio::test(start_paused = true)]
async fn debugging_container_joins_its_target() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_running("web").await;
    node.runtime.publish_image("registry.test/debug:1");
    node.change("web", |spec| {
        spec.ephemeral_containers = Some(vec![EphemeralContainer {
            name: "debug".into(),
            image: Some("registry.test/debug:1".into()),
            target_container_name: Some("web".into()),
            ..EphemeralContainer::default()
        }]);
    });
    let debug = node.wait("the debugger", || node.runtime.find(&uid("web"), "debug")).await;
    let target = node.runtime.find(&uid("web"), "web").expect("runs").id;
    assert_eq!(node.runtime.config_of(&debug.id).expect("made").join_pid_of, Some(target));
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_of_the_node_its_pods_and_the_kubelet() {
    let node = Node::start();
    node.bind("web", spec("Always", vec![container("web")]));
    node.wait_running("web").await;
    let telemetry = node.kubelet.telemetry();
    let main = node.runtime.find(&uid("web"), "web").expect("runs");
    let stats =
        ContainerStats { cpu_usage_ns: 1_500_000_000, memory_rss_bytes: 7, ..ContainerStats::default() };
    node.runtime.set_stats(&main.id, stats);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let snapshot = telemetry.stats.collect().await;
    assert!(Arc::ptr_eq(&snapshot, &telemetry.stats.collect().await), "one gathering for all who ask");
    let resource = hawser_kubelet::metrics::resource::render(&snapshot);
    let line = "container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"web\"} 1.5 ";
    assert!(resource.contains(line), "{resource}");
    let cadvisor = hawser_kubelet::metrics::cadvisor::render(&snapshot);
    let line = format!(
        "container_memory_rss{{container=\"web\",id=\"{2}/{0}\",image=\"{1}\",name=\"{0}\",namespace=\"default\",pod=\"web\"}} 7 ",
        main.id,
        main.image_ref,
        format_args!("/hawser/n1/kubepods/besteffort/pod{}", uid("web"))
    );
    assert!(cadvisor.contains(&line), "{cadvisor}");
    let own = telemetry.metrics();
    for line in [
        "kubelet_running_pods 1\n",
        "kubelet_running_containers{container_state=\"running\"} 1\n",
        "kubelet_node_name{node=\"n1\"} 1\n",
        "kubelet_started_containers_total{container_type=\"container\"} 1\n",
        "kubelet_started_pods_total 1\n",
        "kubelet_started_pods_errors_total 0\n",
        "kubelet_pod_start_duration_seconds_count 1\n",
        "kubelet_image_pull_duration_seconds_count{image_size_in_bytes=\"0-10MB\"} 1\n",
        "kubelet_run_podsandbox_duration_seconds_count{runtime_handler=\"\"} 1\n",
        "kubelet_containers_per_pod_count_sum 1\n",
        "kubelet_active_pods{static=\"\"} 1\n",
        "kubelet_mirror_pods 0\n",
        "kubelet_runtime_operations_total{operation_type=\"start_container\"} 1\n",
    ] {
        assert!(own.contains(line), "{line} in {own}");
    }
}

#[tokio::test]
async fn pod_that_the_node_does_not_suit_is_refused_by_the_newest_labels() {
    let node = Node::start();
    let target = Target::object(GroupVersionResource::of::<ApiNode>(), None, "n1");
    let old = node.wait("the node", || node.api.object("nodes", "n1")).await;
    let asking = |zone: &str| {
        let selector = Some([("zone".to_owned(), zone.to_owned())].into());
        PodSpec { node_selector: selector, ..spec("Always", vec![container("web")]) }
    };
    let mut new = old.clone();
    new["metadata"]["labels"]["zone"] = "a".into();
    node.api.store(&target, new);
    // The kubelet's cache is behind.
    node.objects.nodes.put(serde_json::from_value(old).expect("a node"));
    node.bind("right", asking("a"));
    node.wait_running("right").await;
    node.bind("wrong", asking("b"));
    let status = node.wait_status("wrong", "the end", |s| s.phase.as_deref() == Some("Failed")).await;
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
}

#[tokio::test(start_paused = true)]
async fn files_that_show_what_a_container_may_use_follow_a_resize() {
    let node = Node::start();
    let file = DownwardAPIVolumeFile {
        path: "memory".into(),
        resource_field_ref: Some(ResourceFieldSelector {
            container_name: Some("web".into()),
            resource: "limits.memory".into(),
            ..ResourceFieldSelector::default()
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let source = DownwardAPIVolumeSource { items: Some(vec![file]), ..DownwardAPIVolumeSource::default() };
    let volume = Volume { name: "amounts".into(), downward_api: Some(source), ..Volume::default() };
    let web = spec("Always", vec![asking("web", &[("cpu", "100m")], &[("memory", "64Mi")])]);
    node.bind("web", PodSpec { volumes: Some(vec![volume]), ..web });
    node.wait_running("web").await;
    let path = node.dir.path().join("pods").join(uid("web"));
    let path = path.join("volumes/kubernetes.io~downward-api/amounts/memory");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), (64 << 20).to_string());
    let asked = asking("web", &[("cpu", "100m")], &[("memory", "128Mi")]).resources;
    node.change("web", |spec| spec.containers[0].resources = asked.clone());
    node.wait("the file", || {
        let shown = std::fs::read_to_string(&path).ok()?;
        (shown == (128 << 20).to_string()).then_some(())
    })
    .await;
}
