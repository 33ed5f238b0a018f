//! What tests need: a runtime in memory, a containerd with a registry of a test's own, images packed
//! from files of this machine, and numbers by a seed.

mod fake;
mod node;
mod pack;
mod pods;
mod random;

pub use fake::{ExecHandler, FakeRuntime, LogHandler};
pub use node::{TestNode, config_in};
pub use pack::ImagePack;
pub use pods::{container, pod_sandbox};
pub use random::Random;
