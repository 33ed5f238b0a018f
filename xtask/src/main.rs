//! The front door: sets up, builds, runs, tests and measures Hawser on this machine.
//!
//! Every command first makes sure that what it needs is there, says what it installs, and does nothing
//! where all is there.

mod bench;
mod build;
mod cluster;
mod command;
#[allow(dead_code, reason = "the eBPF build script uses the rest of this file")]
mod ebpf_toolchain;
mod gen_schema;
mod image;
mod kernel;
mod setup;
mod test;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Hawser")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what building, running and testing need (Debian 12)
    Setup,
    /// Builds the binaries
    Build(build::Args),
    /// Starts a cluster on this machine and waits until it is ready; starts what is missing of a running one
    Up(cluster::up::Args),
    /// Stops the cluster and removes everything that `up` made
    Down(cluster::Selector),
    /// Shows the cluster's processes, nodes and addresses
    Status(cluster::Selector),
    /// Opens a shell (or runs a command) on a node: in its network namespace, below its cgroup
    Shell(cluster::shell::Args),
    /// Packs the demo and test images into a folder, as OCI layouts
    Image(image::Args),
    /// Runs the test suites: all that CI runs, or the named ones
    Test(test::Args),
    /// Measures what SPECIFICATION.md promises
    Bench(bench::Args),
    /// Writes the schema table anew from upstream's published facts
    GenSchema {
        /// The folder with protobuf-fields.tsv and openapi/
        #[arg(long, default_value = "../shared/kubernetes-v1.36")]
        from: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup => setup::run(setup::Need::EVERYTHING),
        Command::Build(args) => build::run(&args),
        Command::Up(args) => cluster::up::run(&args),
        Command::Down(selector) => cluster::down::run(&selector),
        Command::Status(selector) => cluster::status::run(&selector),
        Command::Shell(args) => cluster::shell::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GenSchema { from } => {
            gen_schema::run(&from, &build::workspace_root().join("control-plane/api/src/schema/schema.txt"))
        }
    }
}
