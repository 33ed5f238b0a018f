//! What can go wrong between the proxy and the kernel.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was touched: the maps belong to another version of the agent, whose programs still run.
    #[error(
        "the maps in {} have layout {found}, and this agent speaks {expected}: go back to the agent that made them, or \
         give their flows up by `node-agent remove-datapath`",
        path.display()
    )]
    Layout { found: u32, expected: u32, path: PathBuf },
    #[error("cannot prepare {}", path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel lacks a feature, or its verifier refused the program.
    #[error("cannot load {program}")]
    Load {
        program: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the eBPF object has no program {name}")]
    MissingProgram { name: &'static str },
    #[error("map {name}")]
    Map {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot attach {program} to {target}")]
    Attach {
        program: &'static str,
        target: String,
        #[source]
        source: io::Error,
    },
    #[error("{what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}
