//! `kill -9` in the middle of writes: everything acknowledged is there afterwards.
//!
//! The victim is this test binary again, told by its environment which directory to write to. It says on a pipe
//! what was acknowledged to it.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::Arc,
};

use hawser_store::{Expect, RangeRequest, Revision, Store, Write};

use crate::engines::{TestDirectory, events_until, open_embedded};

const DIRECTORY: &str = "HAWSER_STORE_TEST_DIRECTORY";
const WRITERS: u64 = 16;
const KEYS_EACH: u64 = 8;

/// Writes until it is killed; acknowledgements go to stdout as `ack <key> <count> <revision>`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of killed_store_has_every_acknowledged_write"]
async fn victim() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let store: Arc<dyn Store> = Arc::new(open_embedded(directory.as_ref()).await);
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        tasks.spawn(async move {
            for count in 1_u64.. {
                let key = format!("/w/{writer:02}/{}", count % KEYS_EACH);
                let current = store.get(&key).await.unwrap();
                let value = format!("{count} {}", "x".repeat(2000));
                let expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
                let revision = store.write(Write::put(key.as_str(), value, expect)).await.unwrap().revision;
                // One call, so that lines of different writers do not mix.
                std::io::stdout().write_all(format!("\nack {key} {count} {revision}\n").as_bytes()).unwrap();
                if revision % 500 == 0 {
                    store.compact(revision - 200).await.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
}

struct Acknowledged {
    count: u64,
    revision: Revision,
}

/// Runs a victim until it has acknowledged `writes`, kills it, and returns the last acknowledgement of each key.
fn kill_after(directory: &TestDirectory, writes: usize) -> HashMap<String, Acknowledged> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::victim", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut acknowledged = HashMap::new();
    let mut seen = 0;
    let mut is_killed = false;
    // What it wrote to the pipe before it died was acknowledged before it died.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(rest) = line.strip_prefix("ack ") else { continue };
        let mut parts = rest.split(' ');
        let mut next = || parts.next().unwrap_or_default();
        let (key, count, revision) = (next().to_owned(), next().parse(), next().parse());
        let (Ok(count), Ok(revision)) = (count, revision) else { continue };
        acknowledged.insert(key, Acknowledged { count, revision });
        seen += 1;
        if seen >= writes && !is_killed {
            child.kill().unwrap();
            is_killed = true;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_killed, "the victim ended by itself after {seen} writes");
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_store_has_every_acknowledged_write() {
    let directory = TestDirectory::new();
    let mut newest = 1;
    // In each round the store goes on from what the last one left.
    for writes in [1, 50, 333, 1500, 2500] {
        let acknowledged = kill_after(&directory, writes);
        let store = open_embedded(directory.path()).await;
        let current = store.current_revision().await.unwrap();
        let last = acknowledged.values().map(|ack| ack.revision).max().unwrap();
        assert!(current >= last, "at {current}, but {last} was acknowledged");
        assert!(last > newest, "revisions grow over restarts");
        for (key, ack) in &acknowledged {
            let kv = store.get(key).await.unwrap().unwrap_or_else(|| panic!("{key} is gone"));
            let count: u64 = str::from_utf8(&kv.value).unwrap().split(' ').next().unwrap().parse().unwrap();
            // One more may have been written and not acknowledged.
            let is_it = count == ack.count && kv.mod_revision == ack.revision;
            let is_next = count == ack.count + KEYS_EACH && kv.mod_revision > ack.revision;
            assert!(
                is_it || is_next,
                "{key}: {count}@{} is not {}@{}",
                kv.mod_revision,
                ack.count,
                ack.revision
            );
        }
        // What is left is whole: every key and every revision of the history can be read.
        let status = store.status().await.unwrap();
        let all = store.range(RangeRequest::prefix("/w/")).await.unwrap();
        assert!(all.kvs.iter().all(|kv| kv.value.len() > 2000));
        let from = status.compacted_revision.unwrap().max(1) + 1;
        let mut watch = store.watch("/", from).await.unwrap();
        let events = events_until(&mut watch, current).await;
        let revisions: Vec<_> = events.iter().map(|event| event.kv.mod_revision).collect();
        assert_eq!(revisions, (from..=current).collect::<Vec<_>>());
        store.write(Write::put("/between", "x", Expect::Any)).await.unwrap();
        newest = store.current_revision().await.unwrap();
        assert_eq!(newest, current + 1);
        drop(watch);
        store.close().await.unwrap();
    }
}
