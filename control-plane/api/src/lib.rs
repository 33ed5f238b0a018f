//! Hawser's resource model, shared by every component.
//!
//! Here live what the API server and its clients agree on: names of kinds ([`resource`]), errors as
//! `metav1.Status` ([`error`]), the schema of every built-in type ([`schema`]), patches, selectors,
//! quantities and what objects use of them ([`usage`]), server-side apply and the owners of fields
//! ([`apply`]), the [`Client`] trait through which components reach the API, the typed layer and the
//! watch-fed caches over it ([`Api`], [`informer`]), leader election ([`election`]), the gRPC protocol with its client
//! ([`grpc`]), and when cron schedules are due ([`cron`]).
//! No I/O happens here but in the gRPC client, and to read time zones.

#![forbid(unsafe_code)]

pub mod address_range;
mod any_certificate;
pub mod apply;
pub mod client;
#[cfg(debug_assertions)]
mod codecs;
pub mod cron;
pub mod election;
pub mod error;
pub mod grpc;
pub mod informer;
pub mod kinds;
mod long_lived;
pub mod patch;
pub mod quantity;
pub mod resource;
pub mod scan;
pub mod schema;
pub mod selector;
pub mod time;
pub mod typed;
pub mod usage;
pub mod validation;

pub use address_range::AddressRange;
pub use any_certificate::AnyCertificate;
pub use client::Client;
pub use error::{Error, FieldError};
pub use long_lived::long_lived;
pub use resource::GroupVersionResource;
pub use typed::Api;

/// The generated code of the gRPC protocol, package `hawser.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("hawser.v1");

    /// The protocol's descriptors, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hawser.v1.bin"));
}
