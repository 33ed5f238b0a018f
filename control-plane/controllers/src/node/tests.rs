//! Scenarios: nodes that register, go silent, come back, and are deleted.

use std::{collections::HashSet, sync::Arc, time::Duration};

use hawser_api::client::DeleteOptions;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{ready_status, taints_of};
use crate::{
    Config,
    meta::{MetaExt, now, pod_is_ready},
    testing::{FakeApi, Fault, Running},
};

/// A monitor period and a little.
const ONE_LOOK: Duration = Duration::from_secs(6);
const LIFECYCLE: &[&str] = &["nodelifecycle", "taint-eviction", "podgc"];

fn node(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {},
        "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }] },
    })
}

fn pod(name: &str, node: &str, seconds: i64) -> Value {
    let toleration = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeName": node, "containers": [],
            "tolerations": [
                toleration("node.kubernetes.io/unreachable"), toleration("node.kubernetes.io/not-ready"),
            ],
        },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

/// Renews the node's Lease every ten seconds until aborted.
fn beat(api: &Arc<FakeApi>, name: &str) -> JoinHandle<()> {
    let (api, name) = (api.clone(), name.to_owned());
    let metadata = json!({ "name": name, "namespace": "kube-node-lease" });
    if api.read::<Lease>("kube-node-lease", &name).is_none() {
        api.put::<Lease>(json!({ "metadata": metadata, "spec": {} }));
    }
    tokio::spawn(async move {
        loop {
            let renewed = now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
            api.patch::<Lease>("kube-node-lease", &name, json!({ "spec": { "renewTime": renewed } }));
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    })
}

fn has_taint(api: &FakeApi, name: &str, effect: &str) -> bool {
    let node = api.read::<Node>("", name).unwrap();
    taints_of(&node).iter().any(|it| it.key == "node.kubernetes.io/unreachable" && it.effect == effect)
}

fn status(api: &FakeApi, name: &str) -> String {
    ready_status(&api.read::<Node>("", name).unwrap()).to_owned()
}

#[tokio::test(start_paused = true)]
async fn silent_node_is_unknown_tainted_and_emptied_in_time() {
    let api = FakeApi::new();
    for name in ["n1", "n2"] {
        api.put::<Node>(node(name));
    }
    api.put::<Pod>(pod("short", "n1", 300));
    api.put::<Pod>(pod("elsewhere", "n2", 300));
    let (first, _second) = (beat(&api, "n1"), beat(&api, "n2"));
    let _running = Running::start(&api, LIFECYCLE);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(status(&api, "n1"), "True");

    first.abort();
    let silent_since = tokio::time::Instant::now();
    api.until("the node is unknown", |api| status(api, "n1") == "Unknown").await;
    let took = silent_since.elapsed();
    assert!(took >= Duration::from_secs(30) && took <= Duration::from_secs(40) + ONE_LOOK, "{took:?}");
    api.until("it is tainted", |api| has_taint(api, "n1", "NoSchedule") && has_taint(api, "n1", "NoExecute"))
        .await;
    api.until("its pod is not ready", |api| !pod_is_ready(&api.read::<Pod>("default", "short").unwrap()))
        .await;
    let tainted_since = tokio::time::Instant::now();
    api.until("its pod is deleted", |api| api.read::<Pod>("default", "short").unwrap().is_deleting()).await;
    let took = tainted_since.elapsed();
    assert!(took >= Duration::from_secs(295) && took < Duration::from_secs(310), "{took:?}");
    assert!(!api.read::<Pod>("default", "elsewhere").unwrap().is_deleting());

    // Back again: the agent reports its status, the taints go.
    let _first = beat(&api, "n1");
    api.patch_status::<Node>("", "n1", node("n1"));
    api.until("it is clean", |api| taints_of(&api.read::<Node>("", "n1").unwrap()).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_while_no_node_is_ready() {
    let api = FakeApi::new();
    let beats: Vec<_> = ["n1", "n2"]
        .map(|name| {
            api.put::<Node>(node(name));
            api.put::<Pod>(pod(name, name, 300));
            beat(&api, name)
        })
        .into();
    let _running = Running::start(&api, LIFECYCLE);
    tokio::time::sleep(Duration::from_secs(60)).await;
    beats.iter().for_each(JoinHandle::abort);
    api.until("both are unknown", |api| status(api, "n1") == "Unknown" && status(api, "n2") == "Unknown")
        .await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    for name in ["n1", "n2"] {
        assert!(has_taint(&api, name, "NoSchedule") && !has_taint(&api, name, "NoExecute"));
        assert!(!api.read::<Pod>("default", name).unwrap().is_deleting());
    }
}

#[tokio::test(start_paused = true)]
async fn new_leader_gives_every_node_a_full_grace_period() {
    let api = FakeApi::new();
    for name in ["n1", "n2"] {
        api.put::<Node>(node(name));
        beat(&api, name).abort();
    }
    // Silent for much longer than the grace period, but nobody was there to see.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let _running = Running::start(&api, LIFECYCLE);
    tokio::time::sleep(Duration::from_secs(38)).await;
    assert_eq!((status(&api, "n1").as_str(), status(&api, "n2").as_str()), ("True", "True"));
    api.until("they are unknown later", |api| status(api, "n1") == "Unknown").await;
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_deleted_node_are_collected() {
    let api = FakeApi::new();
    for name in ["n1", "n2"] {
        api.put::<Node>(node(name));
        api.put::<Pod>(pod(name, name, 300));
    }
    let _running = Running::start(&api, &["podgc"]);
    api.remove::<Node>("", "n1", &DeleteOptions::default());
    api.until("its pod is gone", |api| api.read::<Pod>("default", "n1").is_none()).await;
    assert!(api.read::<Pod>("default", "n2").is_some());
}

fn addresses(range: &str) -> Config {
    Config {
        controllers: vec!["nodeipam".to_owned()],
        cluster_cidrs: vec![range.parse().unwrap()],
        ..Config::default()
    }
}

fn blocks(api: &FakeApi) -> Vec<String> {
    api.all::<Node>().into_iter().filter_map(|node| node.spec?.pod_cidr).collect()
}

#[tokio::test(start_paused = true)]
async fn every_node_gets_one_block_though_writes_fail_and_controllers_are_killed() {
    let api = FakeApi::new();
    let mut writes = 0;
    api.fault(move |_, _| {
        writes += 1;
        match writes % 5 {
            1 => Fault::AnswerLost,
            3 => Fault::Fails,
            _ => Fault::None,
        }
    });
    api.check_writes(|objects| {
        let given: Vec<&str> = objects.values().filter_map(|node| node["spec"]["podCIDR"].as_str()).collect();
        let distinct: HashSet<&str> = given.iter().copied().collect();
        crate::testing::ensure(given.len() == distinct.len(), format!("given twice: {given:?}"))
    });
    for round in 0..8 {
        let running = Running::start_with(&api, addresses("10.244.0.0/18"));
        for number in 0..8 {
            api.put::<Node>(node(&format!("n{round}-{number}")));
        }
        if round % 2 == 0 {
            // Killed in the middle; the next start goes on.
            api.until("some have one", |api| blocks(api).len() > round * 8 + 3).await;
            drop(running);
        } else {
            api.until("all have one", |api| blocks(api).len() == (round + 1) * 8).await;
            running.stop().await;
        }
    }
    assert_eq!(blocks(&api).len(), 64);
}

#[tokio::test(start_paused = true)]
async fn node_without_a_block_gets_the_one_that_a_deleted_node_gives_back() {
    let api = FakeApi::new();
    let _running = Running::start_with(&api, addresses("10.244.0.0/24"));
    api.put::<Node>(node("n1"));
    api.until("the first has the only block", |api| blocks(api).len() == 1).await;
    api.put::<Node>(node("n2"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(blocks(&api).len(), 1);
    api.remove::<Node>("", "n1", &DeleteOptions::default());
    api.until("the second has it", |api| blocks(api).len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_fail_together_are_given_up_one_after_the_other() {
    let api = FakeApi::new();
    let names: Vec<String> = (0..20).map(|number| format!("n{number}")).collect();
    let beats: Vec<_> = names
        .iter()
        .map(|name| {
            api.put::<Node>(node(name));
            beat(&api, name)
        })
        .collect();
    let _running = Running::start(&api, LIFECYCLE);
    tokio::time::sleep(Duration::from_secs(60)).await;
    beats[..8].iter().for_each(JoinHandle::abort);
    let given_up = |api: &FakeApi| names.iter().filter(|name| has_taint(api, name, "NoExecute")).count();
    api.until("no new pods come to them", |api| {
        names[..8].iter().all(|name| has_taint(api, name, "NoSchedule"))
    })
    .await;
    assert!(given_up(&api) <= 1, "{} at once", given_up(&api));
    let since = tokio::time::Instant::now();
    api.until("all are given up", |api| given_up(api) == 8).await;
    assert!(since.elapsed() >= Duration::from_secs(60), "one in ten seconds");
    // One that is given up stays so, and one that comes back is not held against the others.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(given_up(&api), 8);
}
