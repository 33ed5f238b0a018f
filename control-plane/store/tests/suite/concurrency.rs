//! Many writers on the same keys, many watches on them: nothing lost, nothing twice, one order.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use hawser_store::{Error, Event, EventKind, Expect, RangeRequest, Revision, Store, WatchStream, Write};
use tokio::task::JoinSet;

use crate::{
    engines::{Engine, TestDirectory, events_until, open_embedded},
    for_both_engines,
};

for_both_engines!(
    concurrent_writers_lose_no_update_and_watchers_see_one_order,
    reads_see_every_acknowledged_write,
    transactions_move_amounts_without_making_any,
);

const WRITERS: usize = 64;
const WRITES_EACH: usize = 20;
const KEYS: usize = 16;

/// Increments keys by compare-and-put, each a number of times; returns the revisions acknowledged.
async fn increment(store: Arc<dyn Store>, writer: usize) -> Vec<Revision> {
    let mut revisions = Vec::new();
    for n in 0..WRITES_EACH {
        let key = format!("/counter/{:02}", (writer * 7 + n * 5) % KEYS);
        loop {
            let current = store.get(&key).await.unwrap();
            let count: u64 =
                current.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
            let expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
            match store.write(Write::put(key.as_str(), (count + 1).to_string(), expect)).await {
                Ok(written) => {
                    revisions.push(written.revision);
                    break;
                }
                Err(Error::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(revisions.is_sorted_by(|a, b| a < b), "a writer's revisions grow");
    revisions
}

async fn concurrent_writers_lose_no_update_and_watchers_see_one_order(Engine { store, .. }: Engine) {
    let total = WRITERS * WRITES_EACH;
    let last = 1 + total as Revision;
    let mut watchers = JoinSet::new();
    for n in 0..6 {
        let mut watch: WatchStream = store.watch("/counter/", 2 - n % 2).await.unwrap();
        watchers.spawn(async move { events_until(&mut watch, last).await });
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(increment(store.clone(), writer));
    }
    let mut revisions: Vec<Revision> = writers.join_all().await.into_iter().flatten().collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>(), "one revision a write, none twice, none left out");

    let all = store.range(RangeRequest::prefix("/counter/")).await.unwrap();
    let sum: usize =
        all.kvs.iter().map(|kv| str::from_utf8(&kv.value).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(sum, total, "no update is lost");

    let histories = watchers.join_all().await;
    for events in &histories {
        assert_eq!(
            events.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(),
            (2..=last).collect::<Vec<_>>(),
            "every change once and in order"
        );
        assert_eq!(events, &histories[0], "all watchers see the same");
    }
    check_chain(&histories[0]);
    // A watcher that comes late sees the same history.
    let mut late = store.watch("/counter/", 2).await.unwrap();
    assert_eq!(events_until(&mut late, last).await, histories[0]);
}

/// Each key counts up by one, and each event's previous value is the event before it.
fn check_chain(events: &[Event]) {
    let mut newest: BTreeMap<&str, &Event> = BTreeMap::new();
    for event in events {
        let before = newest.insert(&event.kv.key, event);
        assert_eq!(event.previous.as_ref(), before.map(|event| &event.kv));
        let count: u64 = str::from_utf8(&event.kv.value).unwrap().parse().unwrap();
        let count_before =
            before.map_or(0, |event| str::from_utf8(&event.kv.value).unwrap().parse().unwrap());
        assert_eq!(count, count_before + 1);
    }
}

async fn reads_see_every_acknowledged_write(Engine { store, .. }: Engine) {
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            let prefix = format!("/task/{task}/");
            for n in 1..=20_u64 {
                let written = store.write(Write::create(format!("{prefix}{n:02}"), "x")).await.unwrap();
                let range = store.range(RangeRequest::prefix(&prefix)).await.unwrap();
                assert_eq!(range.count, n);
                assert!(range.revision >= written.revision);
                assert!(store.current_revision().await.unwrap() >= range.revision, "revisions never go back");
                let then = store.range(RangeRequest::prefix(&prefix).at(written.revision)).await.unwrap();
                assert_eq!(then.count, n);
            }
        });
    }
    tasks.join_all().await;
}

async fn transactions_move_amounts_without_making_any(Engine { store, .. }: Engine) {
    const ACCOUNTS: u64 = 5;
    for account in 0..ACCOUNTS {
        store.write(Write::create(format!("/account/{account}"), "100")).await.unwrap();
    }
    let mut watch = store.watch("/account/", 2).await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..16_u64 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut moved = 0;
            let mut step = task;
            while moved < 10 {
                step += 1;
                let (from, to) = (step % ACCOUNTS, (step * 3 + task + 1) % ACCOUNTS);
                if from == to {
                    continue;
                }
                let read = async |account| {
                    let kv = store.get(&format!("/account/{account}")).await.unwrap().unwrap();
                    (str::from_utf8(&kv.value).unwrap().parse::<i64>().unwrap(), kv.mod_revision, kv.key)
                };
                let (a, b) = (read(from).await, read(to).await);
                let outcome = store
                    .transaction(vec![
                        Write::put(a.2, (a.0 - 7).to_string(), Expect::Revision(a.1)),
                        Write::put(b.2, (b.0 + 7).to_string(), Expect::Revision(b.1)),
                    ])
                    .await;
                match outcome {
                    Ok(_) => moved += 1,
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    let last = store.current_revision().await.unwrap();
    assert_eq!(last, 1 + ACCOUNTS + 160);
    let mut amounts: HashMap<String, i64> = HashMap::new();
    for events in events_until(&mut watch, last).await.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision)
    {
        for event in events {
            assert_eq!(event.kind, EventKind::Put);
            let amount = str::from_utf8(&event.kv.value).unwrap().parse().unwrap();
            amounts.insert(event.kv.key.to_string(), amount);
        }
        if amounts.len() == ACCOUNTS as usize {
            assert_eq!(amounts.values().sum::<i64>(), 100 * ACCOUNTS as i64, "after every transaction");
        }
    }
}

/// Compaction and its sweep run all the while; what readers and watchers see must not change by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_under_load_is_not_seen_by_writers_and_watchers() {
    let directory = TestDirectory::new();
    let store: Arc<dyn Store> = Arc::new(open_embedded(directory.path()).await);
    let last = 1 + (WRITERS * WRITES_EACH) as Revision;
    let mut watch = store.watch("/counter/", 2).await.unwrap();
    let watcher = tokio::spawn(async move { events_until(&mut watch, last).await });
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(increment(store.clone(), writer));
    }
    let compactor = {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                let current = store.current_revision().await.unwrap();
                if current == last {
                    return;
                }
                // Behind, so that the watcher is not overtaken.
                store.compact(current.saturating_sub(500)).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    writers.join_all().await;
    compactor.await.unwrap();
    check_chain(&watcher.await.unwrap());
}
