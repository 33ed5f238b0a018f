//! What can go wrong with the pod network.

use std::{io, path::PathBuf};

use ipnet::IpNet;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused a change of links, addresses, routes or neighbours.
    #[error("cannot {action}")]
    Netlink {
        action: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("no link carries the node's address {0}; is --node-ip right?")]
    NoUplink(std::net::IpAddr),
    #[error("there is no link {0}")]
    NoLink(String),
    /// Every address of the block belongs to a pod.
    #[error("the node's pod range {0} has no address left")]
    Exhausted(IpNet),
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A record of a pod's addresses that cannot be read; its addresses are unknown, so none is given out.
    #[error("{} is damaged", path.display())]
    Record {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot {action} a network namespace")]
    Namespace {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("nft refused rules: {0}")]
    Nft(String),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
