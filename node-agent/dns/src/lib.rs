//! Cluster DNS, answered on every node from the same watch that feeds the service path.
//!
//! Names of services and pods under the cluster domain are answered here, after the Kubernetes DNS
//! specification 1.1.0; everything else goes to the node's own resolvers. [`records`] holds what is known and
//! [`answer`] decides, both without I/O; [`server`] and [`forward`] carry the packets.

#![forbid(unsafe_code)]

mod answer;
mod forward;
mod records;
mod server;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hawser_services::{EndpointSlice, Key, Service};
use hickory_proto::rr::Name;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

pub use server::Error;

use crate::records::Records;

#[derive(Clone, Debug)]
pub struct Config {
    /// `cluster.local`
    pub cluster_domain: String,
    /// Where questions come in, over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Resolvers for all other names, asked in this order. Without any such names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Seconds that clients may keep an answer.
    pub ttl_seconds: u32,
    /// How long one resolver has to answer; each question is asked twice at most.
    pub upstream_timeout: Duration,
}

/// The server. Cheap to clone; all clones answer from the same records.
#[derive(Clone)]
pub struct Dns {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    zone: Name,
    /// Bounded by the services and endpoints of the cluster. Held for one look-up or one service's change.
    records: RwLock<Records>,
    /// Until then a name that is not known may well exist.
    is_complete: AtomicBool,
    counters: Counters,
}

/// Since start.
#[derive(Debug, Default)]
struct Counters {
    questions: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
}

/// A reading of the server's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub questions: u64,
    /// Asked of a resolver outside.
    pub forwarded: u64,
    /// Answered SERVFAIL, or not at all.
    pub failed: u64,
}

impl Dns {
    /// # Errors
    /// [`Error::Domain`] where the cluster domain is not a name.
    pub fn new(config: Config) -> Result<Self, Error> {
        let mut zone = Name::from_ascii(&config.cluster_domain)
            .map_err(|source| Error::Domain { domain: config.cluster_domain.clone(), source })?
            .to_lowercase();
        zone.set_fqdn(true);
        let shared = Shared {
            config,
            zone,
            records: RwLock::default(),
            is_complete: AtomicBool::new(false),
            counters: Counters::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes the records of one service those of `service` and its slices; none where it is gone.
    pub fn update_service(&self, key: &Key, service: Option<Arc<Service>>, slices: &[Arc<EndpointSlice>]) {
        let entry = service.and_then(|service| records::Entry::of(service, slices));
        self.shared.records.write().set(key, entry);
    }

    /// Says that all services of the cluster have been named. Before, what is not known is answered with SERVFAIL: a
    /// client asks again, where it would believe that a name does not exist.
    pub fn complete(&self) {
        self.shared.is_complete.store(true, Ordering::Release);
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// [`Error::Listen`] where an address cannot be used.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        server::run(self.shared.clone(), shutdown).await
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            questions: counters.questions.load(Ordering::Relaxed),
            forwarded: counters.forwarded.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
        }
    }
}
