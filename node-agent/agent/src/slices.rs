//! EndpointSlices by the Service that they belong to. Bounded by the cluster's slices.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use hawser_api::{
    informer::{Change, Informer},
    resource::ObjectKey,
};
use k8s_openapi::{
    Metadata,
    api::discovery::v1::{Endpoint, EndpointSlice},
};
use parking_lot::RwLock;

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

type ByService = HashMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Slices {
    by_service: Arc<RwLock<ByService>>,
}

impl Slices {
    /// Follows `informer`. To be made before the informer is fed, and before the handlers that read it.
    pub(crate) fn new(informer: &Informer<EndpointSlice>) -> Self {
        let slices = Self::default();
        let shared = slices.clone();
        informer.on_change(move |change| shared.apply(change));
        slices
    }

    /// The slices of a service, in the order of their names.
    pub(crate) fn of(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.by_service
            .read()
            .get(service)
            .map(|slices| slices.values().cloned().collect())
            .unwrap_or_default()
    }

    fn apply(&self, change: &Change<'_, EndpointSlice>) {
        let mut by_service = self.by_service.write();
        if let Some(service) = change.old.and_then(|slice| service_of(slice))
            && let Some(slices) = by_service.get_mut(&service)
        {
            slices.remove(&change.key.name);
            if slices.is_empty() {
                by_service.remove(&service);
            }
        }
        if let Some((slice, service)) = change.new.and_then(|slice| Some((slice, service_of(slice)?))) {
            by_service.entry(service).or_default().insert(change.key.name.clone(), slice.clone());
        }
    }
}

/// The services that a change of a slice concerns: more than one where its label changed.
pub(crate) fn services_of(change: &Change<'_, EndpointSlice>) -> BTreeSet<ObjectKey> {
    [change.old, change.new].into_iter().flatten().filter_map(|slice| service_of(slice)).collect()
}

/// Ready endpoints, by the node that they are on.
pub(crate) fn ready_endpoints(slices: &[Arc<EndpointSlice>]) -> impl Iterator<Item = (&str, &Endpoint)> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints
        .filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
        .filter_map(|endpoint| Some((endpoint.node_name.as_deref()?, endpoint)))
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let meta = slice.metadata();
    let name = meta.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(meta.namespace.clone().unwrap_or_default(), name.clone()))
}
