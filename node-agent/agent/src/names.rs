//! Feeds cluster DNS: each change of a service, or of one of its slices, renews that service's records.

use hawser_dns::Dns;
use hawser_services::Directory;

/// Must be called before the directory is filled.
pub(crate) fn feed(dns: &Dns, services: &Directory) {
    let (dns, known) = (dns.clone(), services.clone());
    services.on_change(move |key, _| dns.update_service(key, known.get(key), &known.slices(key)));
}
