//! Mirrors Endpoints that users write, for Services without a selector, to EndpointSlices.
//!
//! Nodes read slices only. The slices are owned by the Endpoints; where those are gone, or are to be mirrored no more, the
//! slices are deleted here.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Error, resource::ObjectKey};
use k8s_openapi::api::core::v1::{Endpoints, Service};

use crate::{
    Context, Starts,
    endpointslice::managed::{Managed, Writes},
    events::Recorder,
    meta::MetaExt,
    queue::Queue,
    worker::{Next, Reconciler},
};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Of Endpoints that are made from pods, and have slices by that.
const ENDPOINTS_MANAGER: &str = "endpoints.kubernetes.io/managed-by";
/// Of Endpoints that leaders of old are elected with.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("endpointslicemirroring") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let slices = Managed::follow(&context, &queue, MANAGER);
    let changed = queue.clone();
    context.caches.endpoints.on_change(move |change| changed.add(change.key.clone()));
    let recorder = context.recorder.of("endpoint-slice-mirroring-controller");
    let workers = context.config.workers;
    starts.add(Controller { context, slices, recorder }, queue, workers);
}

/// The service has no selector, so nobody else makes its slices from pods.
fn has_no_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.selector.as_ref().is_none_or(|it| it.is_empty()))
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let is_skipped = endpoints.labels().get(SKIP).is_some_and(|skip| skip == "true");
    let is_made = endpoints.labels().get(ENDPOINTS_MANAGER).is_some_and(|by| by == "endpoint-controller");
    !is_skipped && !is_made && !endpoints.annotations().contains_key(LEADER) && !endpoints.is_deleting()
}

struct Controller {
    context: Arc<Context>,
    slices: Arc<Managed>,
    recorder: Recorder,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "endpointslicemirroring";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let existing = match self.slices.of(caches, key) {
            Ok(existing) => existing,
            Err(wait) => return Ok(Next::After(wait)),
        };
        let service = caches.services.get(key).filter(|service| has_no_selector(service));
        let endpoints = caches.endpoints.get(key).filter(|endpoints| is_mirrored(endpoints));
        let changes = match (&service, &endpoints) {
            (Some(_), Some(endpoints)) => plan::plan(endpoints, &existing),
            _ => plan::Changes {
                writes: Writes { delete: existing, ..Writes::default() },
                ..plan::Changes::default()
            },
        };
        if let Some(endpoints) = &endpoints {
            self.tell(endpoints, &changes);
        }
        self.slices.write(&self.context, key, changes.writes).await?;
        Ok(Next::Done)
    }
}

impl Controller {
    fn tell(&self, endpoints: &Endpoints, changes: &plan::Changes) {
        if changes.invalid > 0 {
            let message =
                format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", changes.invalid);
            self.recorder.warning(endpoints, "InvalidIPAddress", message);
        }
        if changes.skipped > 0 {
            let message = format!(
                "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were \
                 skipped",
                changes.skipped
            );
            self.recorder.warning(endpoints, "TooManyAddressesToMirror", message);
        }
    }
}
