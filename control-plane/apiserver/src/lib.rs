//! Hawser's API server: every read and write of cluster state passes here.
//!
//! From the outside in: [`http`] and [`grpc`] are the fronts; [`ops`] is what can be done, for them and for the components
//! in this process ([`local`]); [`chain`] is the one door (flow control, authorization); [`admission`] and [`kinds`] say
//! what is right; [`registry`] writes to the store and reads from [`cache`]. Kinds are data
//! ([`hawser_api::kinds`], [`resources`]); nothing outside `kinds`, `allocator` and the subresources knows a kind by name.

#![forbid(unsafe_code)]

pub mod admission;
pub mod allocator;
pub mod auth;
mod bodies;
mod bootstrap;
pub mod cache;
pub mod chain;
mod codec;
pub mod discovery;
pub mod grpc;
pub mod http;
pub mod kinds;
pub mod local;
mod maintenance;
mod metrics;
pub mod openapi;
pub mod ops;
pub mod registry;
pub mod resources;
mod server;
pub mod spans;
pub mod table;
pub mod version;

pub use server::{ApiServer, Config, MetricsSource};
