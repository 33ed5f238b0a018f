//! What can be set about the scheduler.

use std::time::Duration;

use crate::{
    configuration::{Extenders, Profiles},
    metrics::Metrics,
};

/// Settings; the defaults are upstream's where upstream has them.
#[derive(Clone, Debug)]
pub struct Config {
    /// How pods are placed, by the scheduler that they name; pods that name another one are left alone.
    pub profiles: Profiles,
    /// Programs outside that have a say.
    pub extenders: Extenders,
    /// Who reports, in events: the host, or the control plane's name.
    pub instance: String,
    /// Wait of a pod that did not fit, doubled with each attempt.
    pub backoff_first: Duration,
    pub backoff_last: Duration,
    /// A pod that nothing seems to help is tried again after this long all the same.
    pub retry_unschedulable: Duration,
    /// Pods placed under one lock and bound in one request. Larger ones make watchers' changes wait longer.
    pub batch: usize,
    /// Batches being written at the same time; more wait, so that a slow API server is not flooded.
    pub batches_in_flight: usize,
    /// Where the scheduler counts what it does.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: Profiles::default(),
            extenders: Extenders::default(),
            instance: String::new(),
            backoff_first: Duration::from_secs(1),
            backoff_last: Duration::from_secs(10),
            retry_unschedulable: Duration::from_secs(300),
            batch: 64,
            batches_in_flight: 4,
            metrics: Metrics::default(),
        }
    }
}

impl Config {
    /// What events name as their source.
    pub(crate) fn component(&self) -> String {
        self.profiles.0.first().map(|profile| profile.scheduler_name.clone()).unwrap_or_default()
    }

    /// Names the field that cannot work.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.batch > 0, "batch is 0");
        anyhow::ensure!(self.batches_in_flight > 0, "batches_in_flight is 0");
        anyhow::ensure!(self.backoff_first <= self.backoff_last, "backoff_first is longer than backoff_last");
        Ok(())
    }
}
