//! A thousand watchers of all pods: how late they hear of a change, and how many changes they can be told.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Incoming};
use memchr::memmem;
use tokio::task::JoinSet;

use crate::{
    cases::{Bench, Until, name},
    client::{Client, Connector, get},
    measure::percentile,
    pods,
};

const WATCHERS: usize = 1_000;
/// Changes a second where it is measured how late watchers hear of one.
const PACE: u32 = 20;
/// Writers where it is measured how many changes can be told.
const WRITERS: usize = 8;
/// After this long, whoever waits for events waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stands in each event that is counted; the time of the change follows, in microseconds.
const MARK: &[u8] = br#""bench.hawser.io/at":""#;

/// What all watchers have seen.
#[derive(Default)]
struct Seen {
    delays: Vec<Duration>,
    /// Why a watcher ended.
    failure: Option<String>,
}

struct Watching<'a> {
    bench: &'a Bench<'a>,
    seen: Arc<Mutex<Seen>>,
    /// What the times in events are counted from.
    epoch: Instant,
}

pub(crate) async fn run(bench: &Bench<'_>, connector: &Connector, clients: &mut [Client]) -> Result<()> {
    let watching = Watching { bench, seen: Arc::default(), epoch: Instant::now() };
    let list = clients[0].json(&format!("{}?limit=1", pods::PATH)).await?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list has a version")?;
    let path = format!("{}?watch=true&resourceVersion={version}", pods::PATH);
    let before = bench.server.memory()?;
    // They end with this value, and the connections with them.
    let mut readers = JoinSet::new();
    let mut watchers = connector.connect_many(WATCHERS).await?;
    for watcher in &mut watchers {
        let body = watcher.open(get(&path, "")?).await?.into_body();
        readers.spawn(read(body, watching.seen.clone(), watching.epoch));
    }
    let each = (bench.server.memory()?.anonymous - before.anonymous) * 1024.0 / WATCHERS as f64;
    bench.report.print("watch", "memory_each", each, "KiB/watcher");
    watching.paced(&mut clients[0]).await?;
    watching.at_full_speed(&mut clients[..WRITERS]).await
}

impl Watching<'_> {
    async fn paced(&self, client: &mut Client) -> Result<()> {
        let changes = PACE * self.bench.length.as_secs() as u32;
        let mut pace = tokio::time::interval(Duration::from_secs(1) / PACE);
        for change in 0..changes {
            pace.tick().await;
            client.send(self.change(0, u64::from(change))?).await?;
        }
        let mut delays = self.all(changes as usize * WATCHERS).await?;
        let report = self.bench.report;
        report.print("watch_paced", "changes", f64::from(PACE), "changes/s");
        report.print("watch_paced", "delay_p50", percentile(&mut delays, 0.5), "ms");
        report.print("watch_paced", "delay_p99", percentile(&mut delays, 0.99), "ms");
        Ok(())
    }

    async fn at_full_speed(&self, clients: &mut [Client]) -> Result<()> {
        let (cpu, started) = (self.bench.server.cpu()?, Instant::now());
        let until = Until::Time(self.bench.length);
        let sample = self.bench.drive(clients, until, |client, n| self.change(client, n)).await?;
        let events = sample.latencies.len() * WATCHERS;
        let mut delays = self.all(events).await?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu = (self.bench.server.cpu()? - cpu).as_secs_f64() * 1e6 / events as f64;
        let report = self.bench.report;
        report.print("watch", "rate", events as f64 / seconds, "events/s");
        report.print("watch", "delay_p99", percentile(&mut delays, 0.99), "ms");
        report.print("watch", "cpu_each", cpu, "us/event");
        Ok(())
    }

    /// A change that says when it was made, of a pod of the client's own.
    fn change(&self, client: usize, n: u64) -> Result<Request<Full<Bytes>>> {
        let name = name(client * 100 + n as usize % 100);
        pods::patch(&name, &self.epoch.elapsed().as_micros().to_string())
    }

    /// Waits until watchers have seen so many events; returns how late each one was.
    async fn all(&self, events: usize) -> Result<Vec<Duration>> {
        let started = Instant::now();
        loop {
            {
                let mut seen = self.seen.lock().expect("no watcher panicked");
                if let Some(failure) = &seen.failure {
                    bail!("a watcher ended: {failure}");
                }
                if seen.delays.len() >= events {
                    return Ok(std::mem::take(&mut seen.delays));
                }
                ensure!(
                    started.elapsed() < PATIENCE,
                    "watchers saw {} of {events} events",
                    seen.delays.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn read(mut body: Incoming, seen: Arc<Mutex<Seen>>, epoch: Instant) {
    // The end of what was read, where an event's mark may not be whole.
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let frame = match body.frame().await {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return fail(&seen, error.to_string()),
            None => return fail(&seen, "the server ended the watch".into()),
        };
        let Some(data) = frame.data_ref() else { continue };
        let now = epoch.elapsed();
        rest.extend_from_slice(data);
        let mut kept = rest.len().saturating_sub(MARK.len() - 1);
        let mut delays = Vec::new();
        for at in memmem::find_iter(&rest, MARK) {
            match time(&rest[at + MARK.len()..]) {
                Some(made) => {
                    delays.push(now.saturating_sub(made));
                    kept = kept.max(at + MARK.len());
                }
                None => kept = at,
            }
        }
        rest.drain(..kept);
        seen.lock().expect("no watcher panicked").delays.extend(delays);
    }
}

/// The time behind a mark; `None` where its end is not there yet.
fn time(text: &[u8]) -> Option<Duration> {
    let end = text.iter().position(|byte| *byte == b'"')?;
    let micros = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

fn fail(seen: &Mutex<Seen>, why: String) {
    seen.lock().expect("no watcher panicked").failure.get_or_insert(why);
}
