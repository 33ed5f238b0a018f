//! Measures durable writes of 64 clients: `store_throughput embedded <directory>` or `store_throughput etcd <url>`.
//!
//! Creates, then compare-and-puts, of 2 kB under `/bench/`, with one watch reading along. Bounded by `--writes`
//! (default 20000 a phase). Prints one line a phase: writes per second, and latency p50, p99 and the highest; then
//! the time of a list of everything.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hawser_store::{
    EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, Expect, RangeRequest, Revision, Store, Write,
};
use tokio::task::JoinSet;

const CLIENTS: usize = 64;
const VALUE_BYTES: usize = 2048;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (engine, target, writes) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [engine, target] => (engine, target, 20_000),
        [engine, target, "--writes", writes] => (engine, target, writes.parse().context("--writes")?),
        _ => bail!("usage: store_throughput embedded <directory> | etcd <url> [--writes <number>]"),
    };
    let store: Arc<dyn Store> = match engine {
        "embedded" => Arc::new(EmbeddedStore::open(EmbeddedOptions::new(target)).await?),
        "etcd" => Arc::new(EtcdStore::connect(EtcdOptions::new([target])).await?),
        other => bail!("no engine {other:?}"),
    };
    let mut watch = store.watch("/bench/", 0).await?;
    let watcher = tokio::spawn(async move {
        let mut events = 0_usize;
        while events < 2 * (writes / CLIENTS) * CLIENTS {
            let batch = watch.next().await.context("watch ended")??;
            events += batch.events.len();
        }
        anyhow::Ok(events)
    });
    let run = format!("{:x}", std::process::id());
    let mut revisions = vec![None; CLIENTS];
    for phase in ["create", "update"] {
        revisions = measure(&store, phase, &run, writes / CLIENTS, revisions).await?;
    }
    let started = Instant::now();
    let all = store.range(RangeRequest::prefix("/bench/")).await?;
    println!("list of {} keys: {:?}", all.kvs.len(), started.elapsed());
    println!("watch saw {} events", watcher.await??);
    store.close().await?;
    Ok(())
}

type Revisions = Option<Vec<Revision>>;

async fn measure(
    store: &Arc<dyn Store>,
    phase: &str,
    run: &str,
    writes_each: usize,
    revisions: Vec<Revisions>,
) -> anyhow::Result<Vec<Revisions>> {
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for (client, before) in revisions.into_iter().enumerate() {
        let (store, run) = (store.clone(), run.to_owned());
        clients.spawn(async move {
            let mut latencies = Vec::with_capacity(writes_each);
            let mut after = Vec::with_capacity(writes_each);
            for n in 0..writes_each {
                let expect = before.as_ref().map_or(Expect::Absent, |before| Expect::Revision(before[n]));
                let write =
                    Write::put(format!("/bench/{run}/{client:02}/{n:05}"), vec![b'x'; VALUE_BYTES], expect);
                let started = Instant::now();
                after.push(store.write(write).await?.revision);
                latencies.push(started.elapsed());
            }
            anyhow::Ok((client, after, latencies))
        });
    }
    let mut latencies: Vec<Duration> = Vec::new();
    let mut after: Vec<Revisions> = vec![None; CLIENTS];
    while let Some(client) = clients.join_next().await {
        let (client, revisions, mine) = client??;
        after[client] = Some(revisions);
        latencies.extend(mine);
    }
    let elapsed = started.elapsed();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    let rate = latencies.len() as f64 / elapsed.as_secs_f64();
    println!("{phase}: {rate:.0}/s, p50 {:?}, p99 {:?}, max {:?}", at(0.5), at(0.99), at(1.0));
    Ok(after)
}
