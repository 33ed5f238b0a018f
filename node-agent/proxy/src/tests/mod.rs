//! Tests of the pure cores.

use std::sync::Arc;

use hawser_services::{EndpointSlice, Service};
use k8s_openapi::api;
use serde_json::Value;

mod desired;
mod endpoints;
mod histories;
mod maglev;
mod ranges;
mod services;
mod sizes;
mod slots;
mod table;

/// xorshift64: every run draws the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn service_of(object: Value) -> Arc<Service> {
    Arc::new(Service::from(&serde_json::from_value::<api::core::v1::Service>(object).unwrap()))
}

fn slice_of(object: Value) -> Arc<EndpointSlice> {
    let object: api::discovery::v1::EndpointSlice = serde_json::from_value(object).unwrap();
    Arc::new(EndpointSlice::of(&object).expect("a slice that is a service's"))
}
