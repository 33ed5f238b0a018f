//! The slices of one manager: heard of, read, and written so that no write is planned on a cache that is behind.

use std::{sync::Arc, time::Duration};

use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{MANAGED_BY, tracker::Tracker};
use crate::{
    Context,
    caches::{Caches, service_of},
    meta::{MetaExt, only_this},
    pods::namespace_is_ending,
    queue::Queue,
};

/// A little longer than a write is waited for.
const EVENT_TIMEOUT: Duration = Duration::from_secs(61);

/// What is to be written of a service's slices.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Writes {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

pub(crate) struct Managed {
    /// The value of the label `endpointslice.kubernetes.io/managed-by`.
    manager: &'static str,
    tracker: Tracker,
}

impl Managed {
    /// Wakes the services of the manager's slices that change, and of services themselves.
    pub(crate) fn follow(context: &Context, queue: &Queue<ObjectKey>, manager: &'static str) -> Arc<Self> {
        let managed = Arc::new(Self { manager, tracker: Tracker::default() });
        let (changed, forgetful) = (queue.clone(), managed.clone());
        context.caches.services.on_change(move |change| {
            if change.new.is_none() {
                forgetful.tracker.forget(change.key);
            }
            changed.add(change.key.clone());
        });
        let (changed, shared) = (queue.clone(), managed.clone());
        context.caches.endpoint_slices.on_change(move |change| {
            for slice in change.old.into_iter().chain(change.new).filter(|slice| shared.is_ours(slice)) {
                let Some(service) = service_of(slice) else { continue };
                if change.new.is_none() {
                    shared.tracker.gone(&service, slice);
                }
                changed.add(service);
            }
        });
        managed
    }

    fn is_ours(&self, slice: &EndpointSlice) -> bool {
        slice.labels().get(MANAGED_BY).map(String::as_str) == Some(self.manager)
    }

    /// The service's slices. Fails, with how long to wait, where the cache does not show the last write: the slice's
    /// event comes first, the time is for the one that never comes.
    pub(crate) fn of(
        &self,
        caches: &Caches,
        service: &ObjectKey,
    ) -> Result<Vec<Arc<EndpointSlice>>, Duration> {
        let mut existing = caches.endpoint_slices_by_service.get(&service.to_string());
        existing.retain(|slice| self.is_ours(slice) && !slice.is_deleting());
        if self.tracker.is_ahead_of(service, &existing) { Err(EVENT_TIMEOUT) } else { Ok(existing) }
    }

    /// Writes a service's slices, and remembers that until the cache shows it.
    pub(crate) async fn write(
        &self,
        context: &Context,
        service: &ObjectKey,
        writes: Writes,
    ) -> Result<(), Error> {
        let slices: Api<EndpointSlice> = Api::namespaced(context.client.clone(), &service.namespace);
        for slice in writes.create {
            match slices.create(&slice).await {
                Ok(created) => self.tracker.wrote(service, &created),
                // Nothing can be made there any more, and what is there goes with the namespace.
                Err(error) if namespace_is_ending(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        for slice in writes.update {
            self.tracker.wrote(service, &slices.update(&slice).await?);
        }
        for slice in writes.delete {
            slices.delete(slice.name(), &only_this(&*slice)).await?;
            self.tracker.gone(service, &slice);
        }
        Ok(())
    }
}
