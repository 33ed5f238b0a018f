//! Real clients against the API server: kubectl, the Python and JavaScript clients, kube-rs, curl, gRPC.
//!
//! Each test starts a control plane of its own, without nodes ([`node`] is as much of one as streams need), and does what
//! users of that client do. What a client
//! prints and parses is the assertion: the server is right when the client understands it.

mod curl;
mod durability;
mod grpc;
mod kube_rs;
mod kubectl;
mod node;
mod proxy;
mod scripts;
mod store_failures;
mod streams;
