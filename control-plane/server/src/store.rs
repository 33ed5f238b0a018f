//! Opens the store that the flags name.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use hawser_store::{EmbeddedOptions, EmbeddedStore, EtcdOptions, EtcdStore, EtcdTls, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// In a local directory: for a control plane of one machine.
    Embedded,
    /// In an etcd cluster (3.4 and later).
    Etcd,
}

#[derive(Args)]
#[group(id = "store-flags")]
pub(crate) struct Flags {
    /// Where cluster state lives.
    #[arg(long, value_enum, default_value = "embedded")]
    store: Engine,
    /// Client URLs of the etcd members.
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    /// Certificates that the members' certificates must come from.
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd.
    #[arg(long, requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate for etcd.
    #[arg(long, requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
}

impl Flags {
    /// Whether other control planes can use the same store.
    pub(crate) fn is_shared(&self) -> bool {
        self.store == Engine::Etcd
    }
}

pub(crate) async fn open(flags: &Flags, data_dir: &std::path::Path) -> anyhow::Result<Arc<dyn Store>> {
    match flags.store {
        Engine::Embedded => {
            if !flags.etcd_servers.is_empty() {
                bail!("--etcd-servers needs --store=etcd");
            }
            let path = data_dir.join("store");
            let store = EmbeddedStore::open(EmbeddedOptions::new(&path)).await;
            Ok(Arc::new(store.with_context(|| format!("cannot open the store in {}", path.display()))?))
        }
        Engine::Etcd => {
            if flags.etcd_servers.is_empty() {
                bail!("--store=etcd needs --etcd-servers");
            }
            let mut options = EtcdOptions::new(flags.etcd_servers.iter().cloned());
            options.tls = etcd_tls(flags)?;
            let store = EtcdStore::connect(options).await;
            Ok(Arc::new(
                store.with_context(|| format!("cannot use etcd at {}", flags.etcd_servers.join(",")))?,
            ))
        }
    }
}

fn etcd_tls(flags: &Flags) -> anyhow::Result<Option<EtcdTls>> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let Some(ca) = &flags.etcd_cafile else {
        if flags.etcd_certfile.is_some() {
            bail!("--etcd-certfile needs --etcd-cafile");
        }
        return Ok(None);
    };
    let identity_pem = match (&flags.etcd_certfile, &flags.etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(Some(EtcdTls { ca_pem: read(ca)?, identity_pem, server_name: None }))
}
