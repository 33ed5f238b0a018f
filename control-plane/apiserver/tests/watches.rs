//! Lists and watches: one order for everybody, nothing missed, nothing twice.

mod common;

use std::time::Duration;

use common::*;
use futures::StreamExt;
use hawser_api::client::WatchStream;
use serde_json::json;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

/// The next `count` changes.
async fn take(watch: &mut WatchStream, count: usize) -> Vec<(String, u64)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event =
            timeout(DEADLINE, watch.next()).await.expect("in time").expect("an event").expect("no error");
        seen.extend(describe(&event));
    }
    seen
}

fn names(seen: &[(String, u64)]) -> Vec<&str> {
    seen.iter().map(|(event, _)| event.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_watchers_see_one_order() {
    const WRITERS: usize = 32;
    const WATCHERS: usize = 200;
    const ROUNDS: usize = 10;
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let (_, from) = admin.list(&CONFIG_MAPS, Some("default"), "").await;
    let mut watchers = tokio::task::JoinSet::new();
    // A create, some updates and a deletion by each writer.
    let expected = WRITERS * (ROUNDS + 2);
    for _ in 0..WATCHERS {
        let mut watch = admin.watch(&CONFIG_MAPS, Some("default"), "", &from).await.expect("a watch");
        watchers.spawn(async move { take(&mut watch, expected).await });
    }
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let admin = admin.clone();
        writers.spawn(async move {
            let name = format!("w{number}");
            admin.create(&CONFIG_MAPS, Some("default"), config_map(&name, "start")).await.expect("made");
            for round in 0..ROUNDS {
                let patch = json!({ "data": { "value": round.to_string() } });
                admin.merge(&CONFIG_MAPS, Some("default"), &name, patch).await.expect("patched");
            }
            admin.delete(&CONFIG_MAPS, Some("default"), &name, None).await.expect("deleted");
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer");
    }
    let mut order: Option<Vec<(String, u64)>> = None;
    while let Some(seen) = watchers.join_next().await {
        let seen = seen.expect("a watcher");
        assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "versions only grow");
        match &order {
            Some(order) => assert_eq!(&seen, order),
            None => order = Some(seen),
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn objects_enter_and_leave_a_selector() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let (_, from) = admin.list(&CONFIG_MAPS, Some("default"), "").await;
    let mut watch = admin.watch(&CONFIG_MAPS, Some("default"), "color=red", &from).await.expect("a watch");
    admin.create(&CONFIG_MAPS, Some("default"), config_map("a", "1")).await.expect("made");
    let paint = |color: &str| json!({ "metadata": { "labels": { "color": color } } });
    let admin = &admin;
    let patch =
        |body| async move { admin.merge(&CONFIG_MAPS, Some("default"), "a", body).await.expect("patched") };
    patch(paint("red")).await;
    patch(json!({ "data": { "value": "2" } })).await;
    let left = patch(paint("blue")).await;
    patch(json!({ "data": { "value": "3" } })).await;
    patch(paint("red")).await;
    admin.delete(&CONFIG_MAPS, Some("default"), "a", None).await.expect("deleted");
    let seen = take(&mut watch, 5).await;
    assert_eq!(names(&seen), ["ADDED a", "MODIFIED a", "DELETED a", "ADDED a", "DELETED a"]);
    assert_eq!(seen[2].1.to_string(), left["metadata"]["resourceVersion"], "it left with that change");
    let (found, _) = admin.list(&CONFIG_MAPS, Some("default"), "color=red").await;
    assert!(found.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let (_, from) = admin.list(&CONFIG_MAPS, Some("default"), "").await;
    admin.create(&CONFIG_MAPS, Some("default"), config_map("a", "1")).await.expect("made");
    admin.create(&CONFIG_MAPS, Some("default"), config_map("b", "1")).await.expect("made");
    admin.delete(&CONFIG_MAPS, Some("default"), "a", None).await.expect("deleted");
    running.stop().await;
    let running = start(&directory).await;
    let admin = running.admin();
    let mut watch = admin.watch(&CONFIG_MAPS, Some("default"), "", &from).await.expect("a watch from before");
    admin.create(&CONFIG_MAPS, Some("default"), config_map("c", "1")).await.expect("made");
    assert_eq!(names(&take(&mut watch, 4).await), ["ADDED a", "ADDED b", "DELETED a", "ADDED c"]);
    running.stop().await;
}

#[tokio::test]
async fn compacted_history_is_410() {
    let directory = Directory::new();
    let running = start(&directory).await;
    let admin = running.admin();
    let (_, from) = admin.list(&CONFIG_MAPS, Some("default"), "").await;
    for number in 0..5 {
        admin
            .create(&CONFIG_MAPS, Some("default"), config_map(&format!("c{number}"), "1"))
            .await
            .expect("made");
    }
    let newest = running.store.current_revision().await.expect("a revision");
    running.store.compact(newest).await.expect("compacted");
    running.stop().await;
    let running = start(&directory).await;
    let error = match running.admin().watch(&CONFIG_MAPS, Some("default"), "", &from).await {
        Ok(_) => panic!("history is gone"),
        Err(error) => error,
    };
    assert!(error.is_expired() && error.message().starts_with("too old resource version: "), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn lists_by_label_and_namespace_find_what_they_should() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for (namespace, name, tier) in [("default", "a", "x"), ("shop", "b", "x"), ("shop", "c", "y")] {
        let mut wanted = config_map(name, "1");
        wanted["metadata"]["labels"] = json!({ "tier": tier, "all": "yes" });
        admin.create(&CONFIG_MAPS, Some(namespace), wanted).await.expect("made");
    }
    let admin = &admin;
    let find = |namespace, labels| async move {
        let (found, _) = admin.list(&CONFIG_MAPS, namespace, labels).await;
        let names =
            found.iter().map(|object| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(find(None, "all=yes").await, "a b c");
    assert_eq!(find(None, "tier=x").await, "a b");
    assert_eq!(find(Some("shop"), "tier=x").await, "b");
    assert_eq!(find(Some("shop"), "tier in (x,y),all").await, "b c");
    assert_eq!(find(None, "tier!=x,all=yes").await, "c");
    assert_eq!(find(None, "tier=z").await, "");
    running.stop().await;
}
