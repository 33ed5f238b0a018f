//! `control-plane explain pod`: why a pod is where it is, or nowhere.
//!
//! Asks no scheduler: it reads the same objects over gRPC and runs the same core in this process. So it works whichever
//! control plane leads, whether one runs at all, takes no lock of a busy scheduler, and needs no right but to read.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use hawser_api::grpc::{Remote, RemoteOptions};

use crate::run::scheduler_config;

#[derive(Args)]
pub(crate) struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Where a pod can go: the scores of each node, or the filter that refuses it and why.
    Pod(PodFlags),
}

#[derive(Args)]
struct PodFlags {
    /// The pod: namespace/name, or a name in the namespace default.
    pod: String,
    /// Who asks, and where. Needs the right to list what the scheduler reads.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// The file that the scheduler has with its own --scheduler-config.
    #[arg(long)]
    scheduler_config: Option<PathBuf>,
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<()> {
    let What::Pod(flags) = &flags.what;
    let (namespace, name) = flags.pod.split_once('/').unwrap_or(("default", &flags.pod));
    ensure!(!namespace.is_empty() && !name.is_empty(), "{:?} is not namespace/name", flags.pod);
    let config = scheduler_config(flags.scheduler_config.as_deref())?;
    let options = RemoteOptions::from_kubeconfig(&flags.kubeconfig)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let explanation = runtime.block_on(async {
        let client = Arc::new(Remote::new(&options)?);
        hawser_scheduler::explain(client, &config, namespace, name).await
    });
    let explanation = explanation.with_context(|| format!("cannot explain the pod {namespace}/{name}"))?;
    match flags.output {
        Output::Table => print!("{explanation}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
    }
    Ok(())
}
