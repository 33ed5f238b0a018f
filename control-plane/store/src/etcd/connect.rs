//! Connecting to etcd's members, and learning what their versions can be trusted with.

use std::{fmt, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::call::attempt;
use crate::{Error, WatchProgress};

/// How to reach an etcd cluster.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// `http://` or `https://` URLs of the members' client ports. Requests go to those that answer.
    pub endpoints: Vec<String>,
    /// Needed for `https://`.
    pub tls: Option<EtcdTls>,
    /// A call that takes longer has failed; a read is then tried again.
    pub attempt_timeout: Duration,
    /// Time in which a read, or a write that was refused, is tried again.
    pub deadline: Duration,
    /// Keys in one answer of etcd; larger ranges are read in several.
    pub page_size: usize,
}

impl EtcdOptions {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            attempt_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(15),
            page_size: 1000,
        }
    }
}

/// PEM documents for TLS with etcd.
#[derive(Clone)]
pub struct EtcdTls {
    /// Certificates that the members' certificates must come from.
    pub ca_pem: Vec<u8>,
    /// Client certificate and its key.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// Name expected in the members' certificates, instead of the endpoint's host.
    pub server_name: Option<String>,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of logs.
        f.debug_struct("EtcdTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// A connection dead for this long is given up: the member is gone without a word, or partitioned away.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of `endpoints`. Connections are made when they are needed.
pub(super) async fn client(options: &EtcdOptions, endpoints: &[String]) -> Result<Client, Error> {
    let mut connect = ConnectOptions::new()
        .with_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        // A member cut off from its cluster ends watches and refuses calls, instead of going silent.
        .with_require_leader(true);
    if let Some(tls) = &options.tls {
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
        if let Some((certificate, key)) = &tls.identity_pem {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        connect = connect.with_tls(config);
    }
    attempt(options.attempt_timeout, Client::connect(endpoints, Some(connect)))
        .await
        .map_err(|error| Error::Configuration { reason: format!("etcd endpoints: {}", error.source) })
}

/// What the members that answer say of themselves.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) version: String,
    pub(super) revision: u64,
    pub(super) size_bytes: u64,
    pub(super) watch_progress: WatchProgress,
}

/// Asks every member. Fails when none answers; progress is trusted only if all answer and all may be trusted,
/// because a watch can be served by any of them.
pub(super) async fn probe(options: &EtcdOptions, members: &[Client]) -> Result<Probe, Error> {
    let answers = futures::future::join_all(members.iter().map(|member| {
        let mut client = member.maintenance_client();
        async move { attempt(options.attempt_timeout, client.status()).await }
    }))
    .await;
    let mut probe: Option<Probe> = None;
    let mut all_trusted = true;
    let mut last_error = None;
    for answer in answers {
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                all_trusted = false;
                last_error = Some(error);
                continue;
            }
        };
        all_trusted &= is_progress_trusted(status.version());
        let revision = status.header().map_or(0, |header| header.revision().unsigned_abs());
        let size_bytes = status.db_size().unsigned_abs();
        let best = probe.get_or_insert_with(|| Probe {
            version: status.version().to_owned(),
            revision,
            size_bytes,
            watch_progress: WatchProgress::EventsOnly,
        });
        best.revision = best.revision.max(revision);
        best.size_bytes = best.size_bytes.max(size_bytes);
    }
    match (probe, last_error) {
        (Some(mut probe), _) => {
            if all_trusted {
                probe.watch_progress = WatchProgress::Announced;
            }
            Ok(probe)
        }
        (None, Some(error)) => Err(error.into_error("asking etcd for its status")),
        (None, None) => Err(Error::Configuration { reason: "no etcd endpoints are given".into() }),
    }
}

/// Whether progress notifications only come after the events that they announce: from 3.4.31 and 3.5.13 on
/// (etcd-io/etcd issue 15220). 3.4.23 was seen to announce revisions before their events.
fn is_progress_trusted(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse::<u32>().ok()
    });
    match (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten()) {
        (Some(3), Some(4), Some(patch)) => patch >= 31,
        (Some(3), Some(5), Some(patch)) => patch >= 13,
        (Some(3), Some(minor), _) => minor >= 6,
        (Some(major), ..) => major > 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: &str, expected: bool) {
        assert_eq!(is_progress_trusted(version), expected, "{version}");
    }

    #[test]
    fn progress_is_trusted_from_the_fixed_versions_on() {
        check("3.4.23", false);
        check("3.4.30", false);
        check("3.4.31", true);
        check("3.5.12", false);
        check("3.5.13", true);
        check("3.5.13-rc.0", true);
        check("3.6.0", true);
        check("3.3.99", false);
        check("4.0.0", true);
        check("", false);
        check("unknown", false);
    }

    #[test]
    fn debug_output_shows_no_key() {
        let tls = EtcdTls {
            ca_pem: b"ca".into(),
            identity_pem: Some((b"cert".into(), b"private".into())),
            server_name: None,
        };
        assert_eq!(format!("{tls:?}"), "EtcdTls { server_name: None, .. }");
    }
}
