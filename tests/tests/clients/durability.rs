//! `kill -9` under writers: what was acknowledged is there, and watches go on from where they were.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    pin::pin,
    process::Stdio,
    time::Duration,
};

use futures::TryStreamExt;
use hawser_tests::{api_server::ApiServer, scripts::python};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
};

use crate::{
    kube_rs::{config_map, connect},
    scripts::python_script,
};

/// How many writes are acknowledged before the server dies.
const WRITES: usize = 300;

#[test]
fn python_writers_find_every_acknowledged_object_after_a_kill() {
    let Some(python) = python() else { return };
    let mut server = ApiServer::start();
    let mut acknowledged = BTreeSet::new();
    for round in 0..2 {
        let mut writers = python_script(&server, &python, "python/writers.py")
            .arg(format!("round{round}"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writers start");
        let output = BufReader::new(writers.stdout.take().expect("the standard output is a pipe"));
        for (position, line) in output.lines().enumerate() {
            acknowledged.insert(line.expect("the writers print names"));
            if position == WRITES {
                server.kill();
            }
        }
        writers.wait().expect("the writers end when the server is gone");
        server.kill_and_restart();
        let kubectl = server.kubectl("default");
        let found: BTreeSet<String> =
            kubectl.ok("get configmaps -l written=yes -o name").lines().into_iter().collect();
        let lost: Vec<_> = acknowledged.iter().filter(|name| !found.contains(*name)).collect();
        assert!(acknowledged.len() > WRITES * (round + 1), "{}", acknowledged.len());
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged objects are lost: {lost:?}",
            lost.len(),
            acknowledged.len()
        );
    }
}

#[test]
fn a_watch_goes_on_after_a_kill_without_a_list() {
    let mut server = ApiServer::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let (mut seen, mut version) = (Vec::new(), String::new());
    runtime.block_on(async {
        let maps: Api<ConfigMap> = Api::namespaced(connect(&server).await, "default");
        let start = maps.list(&ListParams::default()).await.expect("a list").metadata.resource_version;
        version = start.expect("a version");
        let writing: Vec<_> = (0..4)
            .map(|writer| {
                let maps = maps.clone();
                tokio::spawn(async move {
                    for number in 0.. {
                        let map = config_map(&format!("w{writer}-{number:04}"), &[]);
                        if maps.create(&PostParams::default(), &map).await.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        follow(&maps, &mut version, &mut seen, |seen| seen.len() == WRITES).await;
        server.kill();
        for writer in writing {
            writer.await.expect("a writer ends when the server is gone");
        }
    });
    let watched = seen.len();

    server.kill_and_restart();
    runtime.block_on(async {
        let maps: Api<ConfigMap> = Api::namespaced(connect(&server).await, "default");
        let last = config_map("zz-last", &[]);
        maps.create(&PostParams::default(), &last).await.expect("created");
        follow(&maps, &mut version, &mut seen, |seen| seen.last().is_some_and(|name| name == "zz-last"))
            .await;
        let held: BTreeSet<String> = maps
            .list(&ListParams::default())
            .await
            .expect("a list")
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        let seen_once: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(seen_once.len(), seen.len(), "no event comes twice");
        let held: BTreeSet<String> = held.into_iter().filter(|name| name != "kube-root-ca.crt").collect();
        let missed: Vec<_> = held.difference(&seen_once).collect();
        let vanished: Vec<_> = seen_once.difference(&held).collect();
        assert!(missed.is_empty(), "after {watched} events the watch missed {missed:?}");
        assert!(vanished.is_empty(), "a watcher was told of what was not durable: {vanished:?}");
    });
}

/// Takes events after `version` until `enough`, or until the watch breaks.
async fn follow(
    maps: &Api<ConfigMap>,
    version: &mut String,
    seen: &mut Vec<String>,
    enough: impl Fn(&[String]) -> bool,
) {
    let watch = async {
        let events =
            maps.watch(&WatchParams::default().timeout(60), version).await.expect("the watch is accepted");
        let mut events = pin!(events);
        while !enough(seen) {
            match events.try_next().await.expect("the watch goes on").expect("the watch has no end") {
                WatchEvent::Added(map) => {
                    *version = map.resource_version().expect("an object has a version");
                    if map.name_any() != "kube-root-ca.crt" {
                        seen.push(map.name_any());
                    }
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                other => panic!("nothing else happens: {other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), watch).await.expect("the watch hears of all in time");
}
