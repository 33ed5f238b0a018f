//! What is measured, in an order in which each case finds what it needs: few pods first, many in the end.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::Result;
use bytes::Bytes;
use futures::future::try_join_all;
use http_body_util::Full;
use hyper::Request;

use crate::{
    Options,
    client::{Client, get},
    measure::{Memory, Sample, percentile},
    pods,
    report::Report,
    server::{Engine, Server},
    watching,
};

pub(crate) const NAMES: [&str; 9] =
    ["idle", "list", "lists_at_once", "get", "update", "patch", "watch", "create", "many"];
/// Cases that need no server.
pub(crate) const IN_PROCESS: [&str; 2] = ["rbac", "owners"];

/// Clients that write and get at a time.
const CLIENTS: usize = 64;
/// Pods that are listed, got, changed and watched.
const PODS: usize = 10_000;
/// Lists at a time, for the server's memory.
const LISTS: usize = 16;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

pub(crate) async fn run(options: &Options, engine: Engine, report: &Report) -> Result<()> {
    let mut server = Server::start(engine).await?;
    let idle = idle(&mut server, options, report).await?;
    let connector = server.connector()?;
    let mut clients = connector.connect_many(CLIENTS).await?;
    for request in pods::surroundings()? {
        clients[0].send(request).await?;
    }
    let bench = Bench { server: &server, report, length: Duration::from_secs(options.seconds) };
    let made = Cell::new(0);
    bench.fill(&mut clients, &made, PODS).await?;
    if options.wants("list") {
        bench.list(&mut clients[0]).await?;
    }
    if options.wants("lists_at_once") {
        bench.lists_at_once(&mut clients[..LISTS]).await?;
    }
    for case in ["get", "update", "patch"] {
        if options.wants(case) {
            bench.requests(case, &mut clients).await?;
        }
    }
    if options.wants("watch") {
        watching::run(&bench, &connector, &mut clients).await?;
    }
    if options.wants("create") {
        let sample = bench.drive(&mut clients, Until::Time(bench.length), |_, _| new_pod(&made)).await?;
        bench.print("create", sample);
    }
    if options.wants("many") {
        bench.fill(&mut clients, &made, options.objects).await?;
        drop(clients);
        many(&mut server, idle, made.get(), report).await?;
    }
    Ok(())
}

async fn idle(server: &mut Server, options: &Options, report: &Report) -> Result<Memory> {
    let ready = server.restart().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = server.memory()?;
    if options.wants("idle") {
        report.print("idle", "ready", ready.as_secs_f64(), "s");
        print_memory(report, "idle", memory);
    }
    Ok(memory)
}

/// What many objects cost in memory, and at the next start.
async fn many(server: &mut Server, idle: Memory, pods: usize, report: &Report) -> Result<()> {
    let memory = server.memory()?;
    report.print("many", "pods", pods as f64, "pods");
    print_memory(report, "many", memory);
    let each = (memory.anonymous - idle.anonymous) * f64::from(1 << 20) / pods as f64;
    report.print("many", "memory_each", each, "bytes/pod");
    let ready = server.restart().await?;
    report.print("many", "ready", ready.as_secs_f64(), "s");
    print_memory(report, "many_restarted", server.memory()?);
    Ok(())
}

fn print_memory(report: &Report, case: &str, memory: Memory) {
    report.print(case, "resident", memory.resident, "MiB");
    report.print(case, "anonymous", memory.anonymous, "MiB");
}

pub(crate) fn name(number: usize) -> String {
    format!("checkout-6d4b75cb6d-{number:06}")
}

fn new_pod(made: &Cell<usize>) -> Result<Request<Full<Bytes>>> {
    made.set(made.get() + 1);
    pods::create(&name(made.get() - 1))
}

/// When a measurement ends: after a time, or when all have sent so many requests together.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Duration),
    Requests(usize),
}

/// One server that is measured.
pub(crate) struct Bench<'a> {
    pub(crate) server: &'a Server,
    pub(crate) report: &'a Report,
    /// How long a measurement takes.
    pub(crate) length: Duration,
}

impl Bench<'_> {
    /// Sends requests over all connections at once, each waiting for its answer. `make` gets the client's number and that
    /// of its request.
    pub(crate) async fn drive(
        &self,
        clients: &mut [Client],
        until: Until,
        make: impl Fn(usize, u64) -> Result<Request<Full<Bytes>>>,
    ) -> Result<Sample> {
        let (sent, make) = (Cell::new(0), &make);
        let (cpu, started) = (self.server.cpu()?, Instant::now());
        let goes_on = || match until {
            Until::Time(length) => started.elapsed() < length,
            Until::Requests(count) => sent.get() < count,
        };
        let (sent, goes_on) = (&sent, &goes_on);
        let work = clients.iter_mut().enumerate().map(|(number, client)| async move {
            let mut latencies = Vec::new();
            while goes_on() {
                sent.set(sent.get() + 1);
                let request = make(number, latencies.len() as u64)?;
                let begin = Instant::now();
                client.send(request).await?;
                latencies.push(begin.elapsed());
            }
            anyhow::Ok(latencies)
        });
        let latencies = try_join_all(work).await?.concat();
        Ok(Sample { latencies, elapsed: started.elapsed(), cpu: self.server.cpu()? - cpu })
    }

    fn print(&self, case: &str, mut sample: Sample) {
        self.report.print(case, "rate", sample.rate(), "requests/s");
        self.report.print(case, "p50", sample.percentile(0.5), "ms");
        self.report.print(case, "p99", sample.percentile(0.99), "ms");
        self.report.print(case, "cpu_each", sample.cpu_each(), "us/request");
    }

    /// Makes pods until there are `count`.
    async fn fill(&self, clients: &mut [Client], made: &Cell<usize>, count: usize) -> Result<()> {
        let missing = count.saturating_sub(made.get());
        self.drive(clients, Until::Requests(missing), |_, _| new_pod(made)).await?;
        Ok(())
    }

    async fn requests(&self, case: &str, clients: &mut [Client]) -> Result<()> {
        let update = pods::Update::of(clients[0].json(&format!("{}/{}", pods::PATH, name(0))).await?);
        let make = |client: usize, n: u64| {
            // Each client walks over pods of its own, so that none waits for another's write.
            let each = PODS / CLIENTS;
            let name = name(client * each + n as usize % each);
            match case {
                "get" => get(&format!("{}/{name}", pods::PATH), ""),
                "update" => update.request(&name, n + 1),
                _ => pods::patch(&name, &n.to_string()),
            }
        };
        let sample = self.drive(clients, Until::Time(self.length), make).await?;
        self.print(case, sample);
        Ok(())
    }

    async fn list(&self, client: &mut Client) -> Result<()> {
        for (case, accept) in [("list_json", ""), ("list_protobuf", PROTOBUF), ("list_table", TABLE)] {
            // The first one after a change may have to make what later ones find.
            let begin = Instant::now();
            client.get(pods::PATH, accept).await?;
            self.report.print(case, "first", begin.elapsed().as_secs_f64() * 1e3, "ms");
            let (mut times, mut size) = (Vec::new(), 0);
            let (cpu, started) = (self.server.cpu()?, Instant::now());
            while started.elapsed() < self.length {
                let begin = Instant::now();
                size = client.get(pods::PATH, accept).await?;
                times.push(begin.elapsed());
            }
            let cpu = (self.server.cpu()? - cpu).as_secs_f64() * 1e3 / times.len() as f64;
            let time = percentile(&mut times, 0.5);
            let megabytes = size as f64 / 1e6;
            self.report.print(case, "time", time, "ms");
            self.report.print(case, "size", megabytes, "MB");
            self.report.print(case, "throughput", megabytes / time * 1e3, "MB/s");
            self.report.print(case, "cpu_each", cpu, "ms/list");
        }
        Ok(())
    }

    /// The server's memory while many list at once.
    async fn lists_at_once(&self, clients: &mut [Client]) -> Result<()> {
        self.server.reset_peak()?;
        let mut sample = self.drive(clients, Until::Requests(3 * LISTS), |_, _| get(pods::PATH, "")).await?;
        self.report.print("lists_at_once", "peak", self.server.memory()?.peak, "MiB");
        self.report.print("lists_at_once", "p50", sample.percentile(0.5), "ms");
        Ok(())
    }
}
