//! `test`: the suites that CI runs, one line each and a summary; `--all` adds the long ones.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{
    build::{cargo, target_dir},
    cluster,
    command::{run as run_command, say, succeeds},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Suites to run; all that CI runs where none is named
    #[arg(value_parser = SUITES.map(|suite| suite.name))]
    suites: Vec<String>,
    /// Also what takes long: soaks, many seeds
    #[arg(long)]
    all: bool,
}

struct Suite {
    name: &'static str,
    run: fn(&Args) -> anyhow::Result<()>,
}

/// In the order in which they run: what fails fast comes first.
const SUITES: [Suite; 7] = [
    Suite { name: "lint", run: lint },
    Suite { name: "unit", run: |args| nextest("kind(lib) | kind(bin) | kind(proc-macro)", args) },
    Suite { name: "store", run: |args| nextest("package(hawser-store) & kind(test)", args) },
    Suite {
        name: "api",
        run: |args| {
            let packages = "package(hawser-api) | package(hawser-apiserver) | package(control-plane) \
                            | package(hawser-controllers) | package(hawser-scheduler)";
            nextest(&format!("({packages}) & kind(test)"), args)
        },
    },
    Suite {
        name: "datapath",
        run: |args| {
            let packages = "package(hawser-ebpf-abi) | package(hawser-proxy) | package(hawser-network) | package(hawser-dns)";
            nextest(&format!("({packages}) & kind(test)"), args)
        },
    },
    Suite {
        name: "node",
        run: |args| {
            let packages = "package(hawser-runtime) | package(hawser-kubelet) | package(node-agent)";
            nextest(&format!("({packages}) & kind(test)"), args)
        },
    },
    Suite { name: "e2e", run: end_to_end },
];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run(setup::Need::EVERYTHING)?;
    ensure_nextest()?;
    let chosen = SUITES
        .iter()
        .filter(|suite| args.suites.is_empty() || args.suites.iter().any(|name| name == suite.name));
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
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// Runs the tests that `filter` selects. All are built with one set of features, so that no suite builds anew
/// what another one has built.
fn nextest(filter: &str, args: &Args) -> anyhow::Result<()> {
    run_nextest(&format!("({filter}) & not package(hawser-tests)"), args, &[])
}

fn run_nextest(filter: &str, args: &Args, env: &[(&str, String)]) -> anyhow::Result<()> {
    let mut command = nextest_command();
    command.args(["run", "--workspace", "--cargo-quiet", "--no-tests=warn", "-E", filter]);
    command.args(["--status-level", "fail", "--final-status-level", "fail", "--no-fail-fast"]);
    if args.all {
        command.args(["--run-ignored", "all"]);
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    run_command(&mut command)
}

/// Tests of whole clusters; each test file starts its own by the same commands as a user.
fn end_to_end(args: &Args) -> anyhow::Result<()> {
    cluster::up::check_machine()?;
    let xtask = std::env::current_exe()?.display().to_string();
    run_nextest("package(hawser-tests)", args, &[("HAWSER_XTASK", xtask)])
}

/// The test runner: a process a test, so that a test may enter a network namespace.
fn nextest_command() -> Command {
    let mut command = cargo();
    let path = std::env::var("PATH").unwrap_or_default();
    command.arg("nextest").env("PATH", format!("{}:{path}", target_dir().join("tools/bin").display()));
    command
}

fn ensure_nextest() -> anyhow::Result<()> {
    if succeeds(nextest_command().arg("--version")) {
        return Ok(());
    }
    say("installing cargo-nextest into target/tools");
    run_command(
        cargo().args(["install", "--locked", "cargo-nextest", "--root"]).arg(target_dir().join("tools")),
    )
}
