//! The control plane in one process: API server, scheduler and controllers, or a subset of them.

#![forbid(unsafe_code)]

mod explain;
mod files;
mod issue;
mod kubeconfig;
mod leader;
mod logging;
mod node_credentials;
mod pki;
mod run;
mod signer;
mod store;
mod tls;

use clap::{Parser, Subcommand};

/// Objects are trees of many small allocations on their way in; glibc's allocator took a third of the time of a write, and
/// kept what large answers had taken.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hawser's control plane.
#[derive(Parser)]
#[command(name = "control-plane", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the control plane until SIGTERM or SIGINT.
    Run(Box<run::Flags>),
    /// Says what each node is for a pod: the filter that refuses it, or its scores.
    Explain(explain::Flags),
    /// Issues a node's certificates from the cluster's authority.
    NodeCredentials(node_credentials::Flags),
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Run(flags) => logging::start(&flags.log).and_then(|()| run::run(*flags)),
        Command::Explain(flags) => explain::run(&flags),
        Command::NodeCredentials(flags) => node_credentials::run(&flags),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
