//! Leader election by a Lease: of several processes that could do a work, one does it.
//!
//! The rules and timings are client-go's: a leader renews every 2 s, stops when it could not for 10 s, and another one takes
//! over when it has seen no renewal for 15 s. So there are never two, as long as no clock runs half as fast again as
//! another: who loses the lease has its work cancelled, and dropped before another one can have taken over. What it had
//! sent by then may still arrive, as with every lease; writes that rest on what was read carry its version or uid.
//! Who is told to stop gives the lease back when its work has ended.

mod record;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{Api, Client, Error};
use record::{Move, Observed};

/// Who competes for which Lease.
#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    /// Of no other candidate.
    pub identity: String,
    /// How long others wait for a leader that is not heard of.
    pub lease_duration: Duration,
    /// How long a leader that cannot renew goes on.
    pub renew_deadline: Duration,
    /// Between two looks.
    pub retry_period: Duration,
    /// True while this candidate leads.
    leads: Arc<AtomicBool>,
}

impl Election {
    /// For a Lease in `kube-system`, with upstream's timings.
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            leads: Arc::default(),
        }
    }

    /// # Errors
    /// Names the setting that cannot work, as a flag of upstream's.
    pub fn check(&self) -> Result<(), String> {
        if self.retry_period.is_zero() {
            return Err("leader-elect-retry-period must be greater than zero".to_owned());
        }
        // As upstream: a candidate looks again after up to 1.2 periods.
        if self.renew_deadline <= self.retry_period * 6 / 5 {
            return Err(
                "leader-elect-renew-deadline must be greater than 1.2 times leader-elect-retry-period"
                    .to_owned(),
            );
        }
        if self.lease_duration <= self.renew_deadline {
            return Err(
                "leader-elect-lease-duration must be greater than leader-elect-renew-deadline".to_owned()
            );
        }
        Ok(())
    }

    /// Whether this candidate leads now, for metrics.
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// Does the work whenever this candidate leads, until `shutdown` or until the work ends by itself.
    ///
    /// The work's token is cancelled at the shutdown, and when the lease is lost; then it has a moment to end before it is
    /// dropped, and this candidate competes again. Returns what the last work returned.
    pub async fn run<F, E>(
        &self,
        client: Arc<dyn Client>,
        shutdown: CancellationToken,
        mut work: impl FnMut(CancellationToken) -> F,
    ) -> Result<(), E>
    where
        F: Future<Output = Result<(), E>>,
        E: fmt::Display,
    {
        let mut candidate = Candidate {
            election: self,
            leases: Api::namespaced(client, &self.namespace),
            observed: Observed::default(),
            start: Instant::now(),
        };
        loop {
            let renewed = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                renewed = candidate.acquire() => renewed,
            };
            info!(lease = %self.name, identity = %self.identity, "leads");
            let _leading = Leading::begin(&self.leads);
            let stop = shutdown.child_token();
            let mut working = pin!(work(stop.clone()));
            let ended = tokio::select! {
                outcome = &mut working => Some(outcome),
                () = candidate.keep(renewed) => None,
            };
            if let Some(outcome) = ended {
                candidate.release().await;
                return outcome;
            }
            warn!(lease = %self.name, identity = %self.identity, "lost the lease: the work stops");
            stop.cancel();
            // Half of what is left before another one may take over.
            let grace = (self.lease_duration - self.renew_deadline) / 2;
            if let Ok(Err(error)) = tokio::time::timeout(grace, working).await {
                warn!(lease = %self.name, %error, "the work ended with an error");
            }
            if shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }
}

/// Shows that somebody leads, until it is dropped.
struct Leading<'a>(&'a AtomicBool);

impl<'a> Leading<'a> {
    fn begin(leads: &'a AtomicBool) -> Self {
        leads.store(true, Ordering::Relaxed);
        Self(leads)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

struct Candidate<'a> {
    election: &'a Election,
    leases: Api<Lease>,
    observed: Observed,
    start: Instant,
}

impl Candidate<'_> {
    /// Returns when this candidate has the lease, with the moment from which it counts.
    async fn acquire(&mut self) -> Instant {
        loop {
            let begin = Instant::now();
            let Election { name, renew_deadline, retry_period, .. } = self.election;
            match tokio::time::timeout(*renew_deadline / 2, self.attempt()).await {
                Ok(Ok(None)) => return begin,
                Ok(Ok(Some(holder))) => debug!(lease = %name, %holder, "another one leads"),
                Ok(Err(error)) => debug!(lease = %name, %error, "cannot take the lease"),
                Err(_) => debug!(lease = %name, "the API server does not answer"),
            }
            tokio::time::sleep(jittered(*retry_period)).await;
        }
    }

    /// Renews the lease, counted from `renewed`, and returns when it is lost.
    async fn keep(&mut self, mut renewed: Instant) {
        let Election { name, renew_deadline, retry_period, .. } = self.election;
        loop {
            let deadline = renewed + *renew_deadline;
            tokio::time::sleep_until(deadline.min(Instant::now() + *retry_period)).await;
            let begin = Instant::now();
            // Half, so that a request that is lost is not the last.
            let patience = deadline.min(begin + *renew_deadline / 2);
            match tokio::time::timeout_at(patience, self.attempt()).await {
                Ok(Ok(None)) => renewed = begin,
                Ok(Ok(Some(holder))) => {
                    warn!(lease = %name, %holder, "another one has taken the lease");
                    return;
                }
                Ok(Err(error)) => warn!(lease = %name, %error, "cannot renew the lease"),
                Err(_) => warn!(lease = %name, "the API server does not answer: the lease is not renewed"),
            }
            if Instant::now() >= renewed + *renew_deadline {
                return;
            }
        }
    }

    /// Takes or renews the lease. Returns who else has it.
    async fn attempt(&mut self) -> Result<Option<String>, Error> {
        let found = self.leases.find(&self.election.name).await?;
        let now = self.start.elapsed();
        match self.observed.decide(self.election, found.as_ref(), now, Timestamp::now()) {
            Move::Create(lease) => self.leases.create(&lease).await.map(|_| None),
            Move::Update(lease) => self.leases.update(&lease).await.map(|_| None),
            Move::Wait { holder } => Ok(Some(holder)),
        }
    }

    /// Gives the lease back; what fails is left to its expiry.
    async fn release(&mut self) {
        let name = &self.election.name;
        let release = async {
            let Some(found) = self.leases.find(name).await? else { return Ok(()) };
            match record::released(self.election, &found, Timestamp::now()) {
                Some(lease) => self.leases.update(&lease).await.map(|_| ()),
                None => Ok(()),
            }
        };
        match tokio::time::timeout(self.election.retry_period, release).await {
            Ok(Ok(())) => info!(lease = %name, "gave the lease back"),
            Ok(Err(error)) => warn!(lease = %name, %error, "cannot give the lease back"),
            Err(_) => warn!(lease = %name, "cannot give the lease back in time"),
        }
    }
}

/// Up to a fifth longer, so that candidates do not all ask at once.
fn jittered(period: Duration) -> Duration {
    // Any number will do: the low digits of the clock.
    let part = Timestamp::now().subsec_nanosecond().unsigned_abs() % 1000;
    period + period * part / 5000
}
