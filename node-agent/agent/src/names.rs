//! Feeds cluster DNS: each change of a service, or of one of its slices, renews that service's records.

use hawser_api::{informer::Informer, resource::ObjectKey};
use hawser_dns::Dns;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::slices::{Slices, services_of};

/// Must be called before the caches are filled.
pub(crate) fn feed(
    dns: &Dns,
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    by_service: &Slices,
) {
    let renew = {
        let (dns, services, by_service) = (dns.clone(), services.clone(), by_service.clone());
        move |key: &ObjectKey| dns.update_service(key, services.get(key).as_deref(), &by_service.of(key))
    };
    let renew_service = renew.clone();
    services.on_change(move |change| renew_service(change.key));
    slices.on_change(move |change| services_of(change).iter().for_each(&renew));
}
