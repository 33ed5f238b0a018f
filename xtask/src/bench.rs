//! `bench`: measures what SPECIFICATION.md promises, each beside a peer of the same run.
//!
//! A benchmark is an example program of the crate that it measures; this front door builds and runs it.

use anyhow::Context;

use crate::{
    build::{cargo, target_dir},
    command::{run as run_command, say},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// Services in the datapath's maps
    #[arg(long, default_value_t = 10)]
    services: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Connections per second through a cluster IP, beside the backend's own address
    Service,
    /// Durable writes per second of the embedded store, 64 clients, 2 kB
    Store,
    /// Time from a container's configuration to its running process
    Container,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run(setup::Need::EVERYTHING)?;
    match args.name {
        Name::Service => example("hawser-proxy", "crr", &[&args.services.to_string()]),
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

fn example(package: &str, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    say(format!("measuring {name}"));
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", package, "--example", name]);
    if package == "hawser-runtime" {
        command.args(["--features", "testing"]);
    }
    run_command(command.arg("--").args(arguments))
}
