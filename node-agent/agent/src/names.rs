//! Feeds cluster DNS: each change of a service, or of one of its slices, renews that service's records.

use std::{collections::BTreeMap, sync::Arc};

use hawser_api::{informer::Informer, resource::ObjectKey};
use hawser_dns::Dns;
use k8s_openapi::{
    Metadata,
    api::{core::v1::Service, discovery::v1::EndpointSlice},
};
use parking_lot::Mutex;

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Slices by service; bounded by the cluster's slices.
type Slices = BTreeMap<ObjectKey, BTreeMap<String, Arc<EndpointSlice>>>;

/// Must be called before the caches are filled.
pub(crate) fn feed(dns: &Dns, services: &Informer<Service>, slices: &Informer<EndpointSlice>) {
    let by_service: Arc<Mutex<Slices>> = Arc::default();
    let renew = {
        let (dns, services, by_service) = (dns.clone(), services.clone(), by_service.clone());
        move |key: &ObjectKey| {
            let slices: Vec<Arc<EndpointSlice>> =
                by_service.lock().get(key).into_iter().flat_map(|slices| slices.values().cloned()).collect();
            dns.update_service(key, services.get(key).as_deref(), &slices);
        }
    };
    let renew_service = renew.clone();
    services.on_change(move |change| renew_service(change.key));
    slices.on_change(move |change| {
        for (slice, is_present) in [(change.old, false), (change.new, true)] {
            let Some(service) = slice.and_then(|slice| service_of(slice)) else { continue };
            {
                let mut by_service = by_service.lock();
                let slices = by_service.entry(service.clone()).or_default();
                match slice {
                    Some(slice) if is_present => {
                        slices.insert(change.key.name.clone(), slice.clone());
                    }
                    _ => {
                        slices.remove(&change.key.name);
                    }
                }
                if slices.is_empty() {
                    by_service.remove(&service);
                }
            }
            renew(&service);
        }
    });
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let meta = slice.metadata();
    let name = meta.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(meta.namespace.clone().unwrap_or_default(), name.clone()))
}
