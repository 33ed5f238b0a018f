//! The kubelet: makes the pods that the API binds to this node run, and says how they are.
//!
//! [`pod`] decides, purely; everything else carries out. What is running outlives the agent: at start, pods are
//! found again in the runtime, and nothing restarts. The network, the service path and the API are reached
//! through the traits in [`interfaces`], which the node agent's binary implements.

#![forbid(unsafe_code)]

pub mod admission;
pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod container;
pub mod cpus;
pub mod credentials;
pub mod csi;
pub mod devices;
pub mod dra;
mod durable;
pub mod events;
pub mod eviction;
pub mod image_gc;
pub mod images;
pub mod interfaces;
mod kubelet;
pub mod locality;
pub mod manager;
pub mod memory;
pub mod metrics;
pub mod node;
mod orphans;
pub mod plugins;
pub mod pod;
pub mod preemption;
pub mod probes;
pub mod qos_cgroups;
pub mod quantity;
pub mod rate;
pub mod server;
pub mod shutdown;
pub mod sockets;
pub mod static_pods;
pub mod stats;
pub mod users;
pub mod volumes;
pub mod worker;

pub use config::Config;
pub use interfaces::{
    ClientStatusWriter, HostPort, LocalEndpoints, LocalPod, NetworkError, Objects, PodNetwork,
    PodNetworkRequest, PodNetworkStatus, StatusWriter,
};
pub use kubelet::{Kubelet, Parts, UsageReader};
pub use manager::Pods;
pub use metrics::Telemetry;
