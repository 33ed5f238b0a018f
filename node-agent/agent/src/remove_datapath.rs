//! `node-agent remove-datapath`: takes the service path's programs and maps out of the kernel.

use std::path::PathBuf;

use anyhow::Context;

use crate::services::pins;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The agent's --state-dir
    #[arg(long, env = "HAWSER_STATE_DIR", default_value = "/run/hawser/agent")]
    state_dir: PathBuf,
}

/// To be run in the node's network namespace, while no agent runs.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let pins = pins(&options.state_dir);
    hawser_proxy::Proxy::remove_all(&pins)
        .with_context(|| format!("cannot remove the datapath below {}", pins.display()))
}
