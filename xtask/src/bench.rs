//! `bench`: measures what SPECIFICATION.md promises, each beside a peer of the same run.
//!
//! A benchmark is an example program of the crate that it measures; this front door builds and runs it.

use std::process::Command;

use anyhow::Context;

use crate::{
    build::{cargo, own_program, target_dir},
    cluster::{self, Cluster, Selector},
    command::{run as run_command, say},
    image, setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// `scheduler`: only this workload, of all its sizes (SchedulingBasic) or of one (SchedulingBasic/5000Nodes_10000Pods)
    workload: Option<String>,
    /// `service`, `program`: how many services there are, one run each
    #[arg(long, value_delimiter = ',')]
    services: Vec<u32>,
    /// `service`: only cases that begin so (tcp_crr, http, ...); `api`: only these (create, list, rbac, ...); `pods`: only
    /// these (one, many, memory, probes, restart, pull); `scheduler`: only these workloads, too
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// `service`, `xdp`, `pods`: turns of each peer
    #[arg(long)]
    rounds: Option<u32>,
    /// `service`: length of a turn
    #[arg(long)]
    milliseconds: Option<u32>,
    /// `api`: length of a measurement
    #[arg(long)]
    seconds: Option<u32>,
    /// `api`: how many pods there are in the end
    #[arg(long)]
    objects: Option<u32>,
    /// `scheduler`: `scheduler_only`, or `end_to_end` through an API server and its store; both if not given
    #[arg(long, value_delimiter = ',')]
    mode: Vec<String>,
    /// `api`: with which stores: embedded, etcd
    #[arg(long, value_delimiter = ',')]
    store: Vec<String>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// What clients get through a service, beside no proxy, iptables and nftables
    Service,
    /// How fast a node's kernel follows what changes, and what that costs in memory (1,000, 10,000 and 50,000 services)
    Program,
    /// Nanoseconds per packet of the programs that packets from outside meet: known and new flows, misses
    Xdp,
    /// The API server as clients meet it: requests, lists, watches, memory, with either store
    Api,
    /// Pods per second of the scheduler, alone and with API server and durable store, on the workloads of upstream's
    /// scheduler-perf, beside their floors; one JSON object a line in any case
    Scheduler,
    /// Durable writes per second of the embedded store, 64 clients, 2 kB
    Store,
    /// Time from a container's configuration to its running process
    Container,
    /// Pods on a node: until they run, one and a hundred at once, beside `ctr run` and `runc run`; processor time and memory;
    /// an agent that is killed; a large image
    Pods,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let is_scheduler = matches!(args.name, Name::Scheduler);
    anyhow::ensure!(is_scheduler || args.workload.is_none(), "only the scheduler has workloads");
    setup::run(setup::Need::EVERYTHING)?;
    match args.name {
        Name::Service => service_path("service", args),
        Name::Program => service_path("program", args),
        Name::Xdp => service_path("xdp", args),
        Name::Api => api(args),
        Name::Scheduler => scheduler(args),
        Name::Store => {
            let folder = target_dir().join("bench/store");
            // What an earlier run left would be measured too.
            if folder.exists() {
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            std::fs::create_dir_all(&folder)?;
            example("hawser-store", "store_throughput", &["embedded", &folder.display().to_string()])
        }
        Name::Pods => pods(args),
        Name::Container => {
            run_command(cargo().args([
                "build",
                "--package",
                "hawser-runtime",
                "--features",
                "testing",
                "--examples",
            ]))?;
            example("hawser-runtime", "start_time", &[])
        }
    }
}

/// A cluster of one node of its own, beside a user's; gone at the end.
fn pods(args: &Args) -> anyhow::Result<()> {
    let selector = Selector { name: "hwpods".into() };
    cluster::down::run(&selector)?;
    let outcome = measure_pods(&selector, args);
    cluster::down::run(&selector)?;
    outcome
}

fn measure_pods(selector: &Selector, args: &Args) -> anyhow::Result<()> {
    let xtask = own_program()?;
    let mut up = Command::new(&xtask);
    up.args(["up", "--measured", "--name", &selector.name, "--nodes=1", "--lan=10.205.0", "--port=8443"]);
    up.args(["--pod-cidr=10.246.0.0/16", "--service-cidr=10.98.0.0/16"]);
    up.args(["--control-plane-arg=--node-cidr-mask-size-ipv4=20", "--node-agent-arg=--max-pods=600"]);
    run_command(up.stdout(std::io::stderr()))?;
    let cluster = Cluster::new(selector)?;
    if args.cases.is_empty() || args.cases.iter().any(|case| case == "pull") {
        let settings = cluster.settings()?.context("the cluster has just been started")?;
        cluster::up::push(&settings, &image::pack_large(&target_dir().join("images"))?)?;
    }
    let xtask = xtask.display().to_string();
    let mut arguments = vec!["--name", &cluster.name, "--xtask", &xtask];
    let (cases, rounds) = (args.cases.join(","), args.rounds.map(|rounds| rounds.to_string()));
    if !cases.is_empty() {
        arguments.extend(["--cases", &cases]);
    }
    if let Some(rounds) = &rounds {
        arguments.extend(["--rounds", rounds]);
    }
    if args.json {
        arguments.push("--json");
    }
    example("hawser-tests", "pods", &arguments)
}

/// The server is a process beside the clients'.
fn api(args: &Args) -> anyhow::Result<()> {
    run_command(measured("build").args(["--package", "control-plane", "--bins"]))?;
    measure("control-plane", "api", &[], args)
}

/// The server is a process beside the client's, where one is needed.
fn scheduler(args: &Args) -> anyhow::Result<()> {
    if args.mode.is_empty() || args.mode.iter().any(|mode| mode == "end_to_end") {
        run_command(measured("build").args(["--package", "control-plane", "--bins"]))?;
    }
    measure("hawser-scheduler", "scheduler_perf", args.workload.as_deref().as_slice(), args)
}

fn service_path(name: &str, args: &Args) -> anyhow::Result<()> {
    measure("hawser-proxy", "bench", &[name], args)
}

/// Runs an example program that is optimised as what is deployed, but for link-time optimisation.
fn measure(package: &str, example: &str, what: &[&str], args: &Args) -> anyhow::Result<()> {
    say(format!("measuring {}", what.first().unwrap_or(&example)));
    let mut command = measured("run");
    command.args(["--package", package, "--example", example, "--"]).args(what);
    if !args.services.is_empty() {
        let services: Vec<String> = args.services.iter().map(u32::to_string).collect();
        command.args(["--services", &services.join(",")]);
    }
    for (option, values) in [("--cases", &args.cases), ("--mode", &args.mode), ("--store", &args.store)] {
        if !values.is_empty() {
            command.args([option, &values.join(",")]);
        }
    }
    for (option, value) in [
        ("--rounds", args.rounds),
        ("--milliseconds", args.milliseconds),
        ("--seconds", args.seconds),
        ("--objects", args.objects),
    ] {
        if let Some(value) = value {
            command.args([option, &value.to_string()]);
        }
    }
    if args.json {
        command.arg("--json");
    }
    run_command(&mut command)
}

/// A command of cargo's with the profile for measuring.
fn measured(command: &str) -> Command {
    let mut measured = cargo();
    measured.args([command, "--quiet", "--profile", "measure"]);
    measured
}

fn example(package: &str, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    say(format!("measuring {name}"));
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", package, "--example", name]);
    if package == "hawser-runtime" {
        command.args(["--features", "testing"]);
    }
    run_command(command.arg("--").args(arguments))
}
