//! Services and what is published for them, and the other kinds of the network. Nothing is connected to: what a proxy
//! would act on is looked at.

pub(crate) mod endpoints;
pub(crate) mod kinds;
pub(crate) mod publishing;
pub(crate) mod service_types;
pub(crate) mod services;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

/// The specification, which every service has.
fn spec(service: &Service) -> &ServiceSpec {
    service.spec.as_ref().expect("a service has a specification")
}
