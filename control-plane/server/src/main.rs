//! The control plane in one process: API server, scheduler and controllers, or a subset of them.

#![forbid(unsafe_code)]

mod explain;
mod files;
mod issue;
mod kubeconfig;
mod leader;
mod logging;
mod node_credentials;
#[cfg(feature = "otel")]
mod otel;
mod pki;
mod run;
mod signer;
mod store;
mod tls;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

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

/// Every flag of a subcommand with its value, given or by default.
fn all_flags(subcommand: &str, matches: &ArgMatches) -> Vec<(String, String)> {
    let mut command = Arguments::command();
    command.build();
    let known = command.find_subcommand(subcommand).into_iter().flat_map(clap::Command::get_arguments);
    let Some(matches) = matches.subcommand_matches(subcommand) else { return Vec::new() };
    known
        .filter_map(|flag| {
            let values = matches.try_get_raw(flag.get_id().as_str()).ok().flatten();
            let values: Vec<_> = values.into_iter().flatten().map(|value| value.to_string_lossy()).collect();
            Some((flag.get_long()?.to_owned(), values.join(",")))
        })
        .filter(|(name, _)| name != "help")
        .collect()
}

fn main() -> std::process::ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let outcome = match arguments.command {
        Command::Run(flags) => run::run(*flags, all_flags("run", &matches)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_shown_as_given_or_by_default() {
        let line = ["control-plane", "run", "--data-dir=/data", "--tls-san=a,b", "--tls-san=c"];
        let matches = Arguments::command().get_matches_from(line);
        let flags = all_flags("run", &matches);
        let value =
            |name: &str| flags.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(value("data-dir"), Some("/data"));
        assert_eq!(value("tls-san"), Some("a,b,c"));
        assert_eq!(value("secure-port"), Some("6443"), "by default");
        assert_eq!(value("advertise-address"), Some(""), "not given");
        assert_eq!(value("help"), None);
    }
}
