//! The service proxy of a node: Services, EndpointSlices and host ports become entries of the datapath's maps.
//!
//! [`Proxy::start`] loads the eBPF programs, or adopts what an earlier agent left in the kernel, and attaches them to
//! the node's cgroup, uplinks and pod interfaces. [`Proxy::sync`] takes all objects and writes the difference. Maps
//! and links are pinned below one directory; dropping the proxy leaves them at work.
//!
//! Decisions are made in pure modules (`desired`, `endpoints`, `table`, `slots`); `kernel` is the thin shell. Every
//! service of the cluster is held here twice, as what is wanted (`services`) and as what the maps have (`table`): both
//! keep flat lists and share names, as these are most of an agent's memory. The
//! proxy belongs to one thread at a time and never blocks on anything but the kernel.

mod attach;
mod desired;
mod endpoints;
mod error;
mod frontends;
mod growth;
mod inspect;
mod kernel;
mod maglev;
pub mod object;
mod pods;
mod proxy;
mod ranges;
mod services;
mod sizes;
mod skipped;
mod slots;
mod table;
mod view;
mod xdp;

#[cfg(test)]
mod tests;

pub use desired::{HostPort, Kind, LoadBalancerMode, ServicePortName, Skipped};
pub use error::Error;
pub use inspect::{Client, Datapath, Explanation, FlowState, FlowView, MapUsage, Outcome, Query};
pub use kernel::sys::TestRun;
pub use pods::ShortWays;
pub use proxy::{Config, PacketAttachment, Proxy, SyncReport, netns_cookie};
pub use services::ServiceObjects;
pub use sizes::Sizes;
pub use skipped::Subject;
pub use view::{Counter, ExhaustedSource, FrontendView, dump_services};
pub use xdp::Xdp;
