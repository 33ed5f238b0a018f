//! What tests need: a runtime in memory, a containerd with a registry of a test's own, and images packed
//! from files of this machine.

mod fake;
mod node;
mod pack;
mod pods;

pub use fake::{ExecHandler, FakeRuntime, LogHandler};
pub use node::{TestNode, config_in};
pub use pack::ImagePack;
pub use pods::{container, pod_sandbox};
