//! `control-plane node-credentials`: what a node needs to join.

use std::{net::IpAddr, path::PathBuf};

use anyhow::ensure;
use clap::Args;

use crate::{
    files::{self, Access},
    pki::{Authority, Purpose},
};

#[derive(Args)]
pub(crate) struct Flags {
    /// Directory of the control plane, with its authority.
    #[arg(long)]
    data_dir: PathBuf,
    /// Name of the node.
    #[arg(long)]
    name: String,
    /// Addresses of the node, for its kubelet's certificate.
    #[arg(long, value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Where to write ca.crt, node.crt and node.key (to talk to the API server), kubelet.crt and kubelet.key (to be
    /// talked to).
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<()> {
    ensure!(!flags.name.is_empty(), "--name is empty");
    let authority = Authority::open(&flags.data_dir)?;
    files::private_directory(&flags.out)?;
    let user = format!("system:node:{}", flags.name);
    files::write(&flags.out.join("ca.crt"), authority.certificate(), Access::Everybody)?;
    authority.issue(&user, &["system:nodes"], Purpose::Client)?.write(&flags.out, "node")?;
    let purpose = Purpose::Server { names: vec![flags.name.clone()], addresses: flags.node_ip.clone() };
    authority.issue(&user, &["system:nodes"], purpose)?.write(&flags.out, "kubelet")
}
