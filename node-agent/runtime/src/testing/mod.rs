//! What tests need: a runtime in memory, and images packed from files of this machine.

mod fake;

pub use fake::{ExecHandler, FakeRuntime};
