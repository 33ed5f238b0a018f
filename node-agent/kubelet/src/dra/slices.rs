//! ResourceSlices of this node whose drivers are not there are removed, so that nothing is placed on their devices.
//!
//! At a start no driver is known, so all go, and drivers that run publish theirs again; later those of a driver that has
//! stayed away for half a minute, upstream's times.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::Api;
use hawser_api::client::{Client, DeleteOptions, ListOptions};
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

const DELAY: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

pub(super) struct Slices {
    node: String,
    client: Arc<dyn Client>,
    /// When the slices of a driver are due, bounded by the drivers that there were.
    due: Mutex<BTreeMap<String, Instant>>,
    changed: Notify,
}

impl Slices {
    pub(super) fn new(node: String, client: Arc<dyn Client>) -> Self {
        Self { node, client, due: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn driver_is_there(&self, name: &str) {
        self.due.lock().remove(name);
    }

    pub(super) fn driver_is_gone(&self, name: &str) {
        self.due.lock().entry(name.to_owned()).or_insert_with(|| Instant::now() + DELAY);
        self.changed.notify_one();
    }

    pub(super) async fn run(&self, is_there: impl Fn(&str) -> bool, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow(is_there) => {}
        }
    }

    async fn follow(&self, is_there: impl Fn(&str) -> bool) {
        // Those that have come meanwhile may have published theirs already.
        self.remove_until_done(|driver| !is_there(driver)).await;
        loop {
            let next = self.due.lock().values().min().copied();
            let wake = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => continue,
                () = wake => {}
            }
            let now = Instant::now();
            let due: Vec<String> =
                self.due.lock().iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
            self.remove_until_done(|driver| due.iter().any(|name| name == driver) && !is_there(driver)).await;
            self.due.lock().retain(|name, _| !due.contains(name));
        }
    }

    async fn remove_until_done(&self, is_meant: impl Fn(&str) -> bool) {
        let mut retry = FIRST_RETRY;
        while let Err(error) = self.remove(&is_meant).await {
            debug!(%error, ?retry, "ResourceSlices were not removed, trying again");
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    async fn remove(&self, is_meant: impl Fn(&str) -> bool) -> Result<(), hawser_api::Error> {
        let api: Api<ResourceSlice> = Api::all(self.client.clone());
        let field_selector = format!("spec.nodeName={}", self.node);
        let (found, _) = api.list(&ListOptions { field_selector, ..ListOptions::default() }).await?;
        for slice in found.into_iter().filter(|slice| is_meant(&slice.spec.driver)) {
            let name = slice.metadata.name.unwrap_or_default();
            let options = DeleteOptions { uid: slice.metadata.uid, ..DeleteOptions::default() };
            match api.delete_if_there(&name, &options).await {
                Ok(_) => info!(
                    name,
                    driver = slice.spec.driver,
                    "ResourceSlice of a driver that is not there is removed"
                ),
                // Another one of that name.
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
