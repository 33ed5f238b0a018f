//! Builds the two binaries.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

use crate::{
    command::{run as run_command, say},
    setup,
};

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Optimise fully, as for production (slow)
    #[arg(long)]
    pub(crate) release: bool,
    /// Optimise as benchmarks do: as for production, but for link-time optimisation
    #[arg(long, conflicts_with = "release")]
    pub(crate) measured: bool,
}

impl Args {
    /// The profile for cargo, and the folder below `target` where it builds.
    fn profile(&self) -> (&'static str, &'static str) {
        match self {
            Self { release: true, .. } => ("release", "release"),
            Self { measured: true, .. } => ("measure", "measure"),
            _ => ("dev", "debug"),
        }
    }
}

/// Where the workspace's Cargo.toml lives.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the workspace").to_owned()
}

pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// `cargo`, as it was called, in the workspace.
///
/// What `cargo run` told this program about its own package is taken out of the environment: build scripts that
/// look at it (ring's) would run anew, and with them half of all crates, after every build without xtask.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(workspace_root());
    command
}

/// This program's file, for running it again. It may have been built anew since it started.
pub(crate) fn own_program() -> anyhow::Result<PathBuf> {
    let program = env::args_os().next().context("this program was started without a name")?;
    Ok(std::path::absolute(program)?)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run(setup::Need::BUILD)?;
    binaries(args)?;
    Ok(())
}

pub(crate) struct Binaries {
    pub(crate) control_plane: PathBuf,
    pub(crate) node_agent: PathBuf,
}

/// Builds both and returns where they are.
pub(crate) fn binaries(args: &Args) -> anyhow::Result<Binaries> {
    say("building control-plane and node-agent");
    let mut build = cargo();
    build.args(["build", "--package", "control-plane", "--package", "node-agent"]);
    build.args(["--profile", args.profile().0]);
    run_command(&mut build)?;
    built(args)
}

/// Where the last build left them.
pub(crate) fn built(args: &Args) -> anyhow::Result<Binaries> {
    let folder = target_dir().join(args.profile().1);
    let find = |name: &str| {
        let file = folder.join(name);
        if file.exists() { Ok(file) } else { Err(anyhow::anyhow!("{} is not built", file.display())) }
    };
    Ok(Binaries { control_plane: find("control-plane")?, node_agent: find("node-agent")? })
}
