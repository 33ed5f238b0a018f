//! What a node knows of the cluster's Services: one directory, read by the service path, DNS and the kubelet.
//!
//! A node holds every Service and every EndpointSlice of the cluster, so their size here is the agent's size. The
//! API's objects are reduced as they come in to what somebody on the node reads; names that many objects share are
//! one string. What is not here (labels, annotations, owners, managed fields) nobody on the node may come to need.

#![forbid(unsafe_code)]

mod directory;
mod endpoints;
mod names;
mod service;

pub use directory::{Change, Directory};
pub use endpoints::{Endpoint, EndpointPort, EndpointSlice, Family};
pub use names::Key;
pub use service::{External, Protocol, Service, ServicePort, ServiceType, SourceRange};
