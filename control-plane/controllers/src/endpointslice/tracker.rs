//! Which slices were written and are not in the cache yet, per service.
//!
//! Planning from a cache that misses a slice just made would make it again. So a service is left alone until
//! the cache shows every write; the slice's own event brings it back. A write that is never seen (the slice
//! was made and deleted during a break of the watch) is waited for one minute.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hawser_api::resource::ObjectKey;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::meta::MetaExt;

const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Tracker {
    /// Bounded by the slices of live services: entries go when they are seen, or the service goes.
    services: Mutex<HashMap<ObjectKey, HashMap<String, Written>>>,
}

struct Written {
    revision: Option<u64>,
    at: Instant,
}

impl Tracker {
    pub(crate) fn wrote(&self, service: &ObjectKey, slice: &EndpointSlice) {
        let written = Written { revision: revision(slice), at: Instant::now() };
        let mut services = self.services.lock();
        services.entry(service.clone()).or_default().insert(slice.uid().to_owned(), written);
    }

    pub(crate) fn gone(&self, service: &ObjectKey, slice: &EndpointSlice) {
        let mut services = self.services.lock();
        if let Some(written) = services.get_mut(service) {
            written.remove(slice.uid());
            if written.is_empty() {
                services.remove(service);
            }
        }
    }

    pub(crate) fn forget(&self, service: &ObjectKey) {
        self.services.lock().remove(service);
    }

    /// True where `cached` does not show a write yet.
    pub(crate) fn is_ahead_of(&self, service: &ObjectKey, cached: &[Arc<EndpointSlice>]) -> bool {
        let mut services = self.services.lock();
        let Some(written) = services.get_mut(service) else { return false };
        written.retain(|uid, write| {
            let slice = cached.iter().find(|slice| slice.uid() == uid);
            let is_shown = slice.is_some_and(|slice| revision(slice) >= write.revision);
            !is_shown && write.at.elapsed() < TIMEOUT
        });
        let is_ahead = !written.is_empty();
        if !is_ahead {
            services.remove(service);
        }
        is_ahead
    }
}

fn revision(slice: &EndpointSlice) -> Option<u64> {
    slice.resource_version().parse().ok()
}
