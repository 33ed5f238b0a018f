//! `test`: the suites that CI runs, one line each and a summary; `--all` adds the long ones.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::{
    build::{cargo, own_program, target_dir},
    cluster::{self, Cluster, Selector},
    command::{run as run_command, say, succeeds},
    image, kernel, setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Suites to run; all that CI runs where none is named
    #[arg(value_parser = SUITES.map(|suite| suite.name))]
    suites: Vec<String>,
    /// Also what takes long: soaks, many seeds, an older kernel
    #[arg(long)]
    all: bool,
}

struct Suite {
    name: &'static str,
    run: fn(&Args) -> anyhow::Result<()>,
}

/// Its tests run on this machine's kernel, and on an older one in the suite of that name.
const DATAPATH: &str = "(package(hawser-ebpf-abi) | package(hawser-proxy) | package(hawser-network) \
                        | package(hawser-dns)) & kind(test)";

/// Suites that run only where they are named, or with `--all`.
const KERNEL: &str = "kernel";
const FUZZ: &str = "fuzz";

const LINT: &str = "lint";

/// How long new inputs are looked for; the same ones as ever are part of the suite `api`.
const FUZZ_SECONDS: u32 = 300;
/// An input that takes longer is a find. The whole time is looked at between inputs alone.
const FUZZ_INPUT_SECONDS: u32 = 20;

/// Generated runs of each of the scheduler's tests that are made of such; a few hundred where nobody asks for more.
const SCHEDULER_SEEDS: &str = "5000";

/// In the order in which they run: what fails fast comes first.
const SUITES: [Suite; 10] = [
    Suite { name: LINT, run: lint },
    Suite { name: "unit", run: |args| nextest("kind(lib) | kind(bin) | kind(proc-macro)", args) },
    Suite { name: "store", run: |args| nextest("package(hawser-store) & kind(test)", args) },
    Suite { name: "api", run: api },
    Suite { name: "datapath", run: |args| nextest(DATAPATH, args) },
    Suite {
        name: "node",
        run: |args| {
            let packages = "package(hawser-runtime) | package(hawser-kubelet) | package(node-agent)";
            nextest(&format!("({packages}) & kind(test)"), args)
        },
    },
    Suite { name: "e2e", run: end_to_end },
    Suite { name: "conformance", run: conformance },
    Suite { name: FUZZ, run: fuzz },
    Suite { name: KERNEL, run: |_| kernel::run(DATAPATH) },
];

impl Args {
    fn chooses(&self, suite: &Suite) -> bool {
        if self.suites.is_empty() {
            return self.all || ![KERNEL, FUZZ].contains(&suite.name);
        }
        self.suites.iter().any(|name| name == suite.name)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let chosen: Vec<&Suite> = SUITES.iter().filter(|suite| args.chooses(suite)).collect();
    let emulate = chosen.iter().any(|suite| suite.name == KERNEL);
    setup::run(setup::Need { emulate, ..setup::Need::EVERYTHING })?;
    ensure_tool("nextest")?;
    // These two build what they need by themselves.
    if args.suites.iter().any(|name| ![LINT, FUZZ].contains(&name.as_str())) || args.suites.is_empty() {
        // Everything with one set of features, so that no suite builds anew what another one has built.
        say("building all crates, binaries and tests");
        run_command(cargo().args(["build", "--workspace", "--all-targets"]))?;
    }
    let mut outcomes = Vec::new();
    for suite in chosen {
        say(format!("suite {}", suite.name));
        let begin = Instant::now();
        let outcome = (suite.run)(args);
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        outcomes.push((suite.name, outcome.is_ok(), begin.elapsed()));
    }
    summarize(&outcomes)
}

fn summarize(outcomes: &[(&str, bool, Duration)]) -> anyhow::Result<()> {
    println!();
    for (name, passed, time) in outcomes {
        println!("{name:<10} {:<7} {:>6.1} s", if *passed { "passed" } else { "FAILED" }, time.as_secs_f64());
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|(_, passed, _)| !passed).map(|(name, ..)| *name).collect();
    println!("suites: {} passed, {} failed", outcomes.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn lint(_: &Args) -> anyhow::Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    // With what is off by default; how it is without, the tests' build shows.
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "control-plane/otel",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn api(args: &Args) -> anyhow::Result<()> {
    let packages = "package(hawser-api) | package(hawser-apiserver) | package(control-plane) \
                    | package(hawser-controllers) | package(hawser-scheduler)";
    nextest(&format!("({packages}) & kind(test)"), args)?;
    if !args.all {
        return Ok(());
    }
    // What is off by default is built for this alone.
    run_nextest("binary(otel)", args, &["--features", "control-plane/otel", "--test", "otel"], &[])
}

/// Looks for inputs that break what reads them, with sanitizers, which the stable compiler keeps behind a switch.
fn fuzz(_: &Args) -> anyhow::Result<()> {
    ensure_tool("fuzz")?;
    let mut command = tool("fuzz");
    command.env("RUSTC_BOOTSTRAP", "1").args(["run", "api", "--", "-rss_limit_mb=2048", "-max_len=16384"]);
    let times = [format!("-timeout={FUZZ_INPUT_SECONDS}"), format!("-max_total_time={FUZZ_SECONDS}")];
    run_command(command.args(times))
}

/// Runs the tests that `filter` selects.
fn nextest(filter: &str, args: &Args) -> anyhow::Result<()> {
    run_nextest(&format!("({filter}) & not package(hawser-tests)"), args, &[], &[])
}

fn run_nextest(filter: &str, args: &Args, flags: &[&str], env: &[(&str, String)]) -> anyhow::Result<()> {
    let mut command = nextest_command();
    command.args(["run", "--workspace", "--cargo-quiet", "--no-tests=warn", "-E", filter]);
    command.args(["--status-level", "fail", "--final-status-level", "fail", "--no-fail-fast"]);
    command.args(flags);
    if args.all {
        command.args(["--run-ignored", "all"]).env("SCHEDULER_SEEDS", SCHEDULER_SEEDS);
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let report = target_dir().join("nextest/default/junit.xml");
    // An earlier run's would be counted again.
    if report.exists() {
        std::fs::remove_file(&report)?;
    }
    let outcome = run_command(&mut command);
    for reason in std::fs::read_to_string(&report).iter().flat_map(|report| skips(report)) {
        say(reason);
    }
    outcome
}

/// What tests say that skip, out of the report of a run: they count as passed there.
fn skips(report: &str) -> impl Iterator<Item = &str> {
    let said = report.lines().filter_map(|line| line.find("skipped").map(|at| (line, at)));
    // At the start of a line of a test's output, whose first one stands behind the element's name.
    said.filter(|(line, at)| {
        *at == 0 || line[..*at].ends_with("<system-out>") || line[..*at].ends_with("<system-err>")
    })
    .map(|(line, at)| line[at..].split('<').next().unwrap_or_default())
}

/// Tests of whole clusters, started by the same commands as a user's.
fn end_to_end(args: &Args) -> anyhow::Result<()> {
    // So that a test can make logs rotate without writing much.
    on_cluster(&["--node-agent-arg=--container-log-max-size=64Ki"], |env| {
        run_nextest("package(hawser-tests) & binary(cluster)", args, &["--test-threads=4"], env)
    })?;
    run_nextest("package(hawser-tests) & binary(clients)", args, &[], &environment()?)?;
    // Each of these starts and ends its own cluster, and compares the machine before and after.
    run_nextest("package(hawser-tests) & binary(lifecycle)", args, &["--test-threads=1"], &environment()?)
}

/// Upstream's conformance texts: many tests against one API server without nodes, and many on one cluster.
fn conformance(args: &Args) -> anyhow::Result<()> {
    const ALL: &str = "package(hawser-tests) & binary(conformance)";
    let server = TestServer::start()?;
    let mut env = environment()?;
    env.push(("HAWSER_TEST_SERVER", server.kubeconfig.clone()));
    run_nextest(&format!("{ALL} & !test(/^running::/)"), args, &[], &env)?;
    drop(server);
    // Mostly they wait: for pods, probes and back-offs.
    on_cluster(&[], |env| {
        run_nextest(&format!("{ALL} & test(/^running::/)"), args, &["--test-threads=24"], env)
    })
}

/// Three nodes that many tests use at once; other ranges than a user's, so that both can run.
fn on_cluster(
    flags: &[&str],
    tests: impl FnOnce(&[(&str, String)]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let shared = Selector { name: "hwtest".into() };
    cluster::down::run(&shared)?;
    let outcome = test_shared_cluster(&shared, flags, tests);
    if outcome.is_err() {
        // They go with the cluster.
        cluster::status::print_logs(&shared)?;
    }
    cluster::down::run(&shared)?;
    outcome
}

fn test_shared_cluster(
    shared: &Selector,
    flags: &[&str],
    tests: impl FnOnce(&[(&str, String)]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut up = Command::new(own_program()?);
    up.args(["up", "--no-build", "--name", &shared.name, "--nodes=3", "--lan=10.204.0", "--port=7443"]);
    up.args(["--pod-cidr=10.245.0.0/16", "--service-cidr=10.97.0.0/16"]).args(flags);
    run_command(up.stdout(std::io::stderr()))?;
    let cluster = Cluster::new(shared)?;
    let mut env = environment()?;
    env.push(("HAWSER_TEST_CLUSTER", shared.name.clone()));
    env.push(("HAWSER_TEST_KUBECONFIG", cluster.kubeconfig().display().to_string()));
    env.push(("HAWSER_TEST_REGISTRY", "10.204.0.1:5000".into()));
    tests(&env)
}

/// The control plane that tests share: a program of the crate `tests`, which ends when its standard input does.
struct TestServer {
    process: Child,
    stdin: Option<ChildStdin>,
    kubeconfig: String,
}

impl TestServer {
    fn start() -> anyhow::Result<Self> {
        let program = target_dir().join("debug/test-server");
        let mut process = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().context("its standard output is a pipe")?;
        let mut server = Self { process, stdin, kubeconfig: String::new() };
        BufReader::new(stdout).read_line(&mut server.kubeconfig)?;
        server.kubeconfig.truncate(server.kubeconfig.trim_end().len());
        ensure!(!server.kubeconfig.is_empty(), "{} did not become ready", program.display());
        Ok(server)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It removes its directory before it ends.
        let _ = self.process.wait();
    }
}

/// What the tests need of this program: itself, and the demo program to run on nodes.
fn environment() -> anyhow::Result<Vec<(&'static str, String)>> {
    let xtask = own_program()?.display().to_string();
    let demo = image::compile_demo()?.display().to_string();
    Ok(vec![("HAWSER_XTASK", xtask), ("HAWSER_TEST_DEMO", demo)])
}

/// The test runner: a process a test, so that a test may enter a network namespace.
pub(crate) fn nextest_command() -> Command {
    tool("nextest")
}

/// `cargo <name>`, as [`ensure_tool`] installs it.
fn tool(name: &str) -> Command {
    let mut command = cargo();
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg(name).env("PATH", format!("{}:{path}", target_dir().join("tools/bin").display()));
    command
}

fn ensure_tool(name: &str) -> anyhow::Result<()> {
    if succeeds(tool(name).arg("--version")) {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    say(format!("installing {package} into target/tools"));
    run_command(cargo().args(["install", "--locked", &package, "--root"]).arg(target_dir().join("tools")))
}
