//! The node agent: kubelet, service proxy, pod network and cluster DNS of one node, in one process.

mod caches;
mod cgroup;
mod configuration;
mod explain;
mod flows;
mod health_check;
mod healthz;
mod http_server;
mod kubelet_api;
mod load_balancer;
mod memory;
mod metrics;
mod names;
mod options;
mod pod_network;
mod remove_datapath;
mod run;
mod service_path;
mod services;
mod visibility;

use std::{path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use hawser_runtime::{pod_init, pod_namespaces};

/// First argument of the log writers that containers' shims start from this program.
const LOG_WRITER: &str = "log-writer";

#[derive(Parser)]
#[command(name = "node-agent", version, about = "Runs the pods of a node, and its part of the network")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the node
    Run(Box<options::Options>),
    /// Shows the services and backends that this node's kernel holds
    Services(services::Options),
    /// Shows the flows that this node's kernel holds, or what it counts
    Flows(flows::Options),
    /// Says what this node would do with a connection, and why
    Explain(explain::Options),
    /// Takes the service path out of this node's kernel; connections of the packet path end. For a node that is taken
    /// down, or whose agent is replaced by one that cannot go on with what the kernel holds
    RemoveDatapath(remove_datapath::Options),
}

fn main() -> ExitCode {
    // Before anything else: there is one such process for every container or pod, and it must stay small.
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.as_slice() {
        [mode, file, ..] if mode == LOG_WRITER => return hawser_runtime::logger::run(Path::new(file)),
        [mode, _, ..] if mode == pod_init::MODE => return pod_init::run(),
        [mode, words @ ..] if mode == pod_namespaces::MODE => return pod_namespaces::run(words),
        _ => {}
    }
    memory::share_arenas();
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Command::Run(options) => run::run(*options, &configuration::Given::of(&matches)),
        Command::Services(options) => services::run(&options),
        Command::Flows(options) => flows::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::RemoveDatapath(options) => remove_datapath::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
