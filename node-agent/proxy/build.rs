//! Builds `ebpf/datapath` for the kernel and leaves the object in `OUT_DIR`, where `src/object.rs` embeds it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

#[path = "../../xtask/src/ebpf_toolchain.rs"]
#[expect(dead_code, reason = "the build script looks for the toolchain and never installs it")]
mod ebpf_toolchain;

fn main() -> Result<()> {
    let manifest_dir =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let workspace =
        manifest_dir.ancestors().nth(2).context("the crate lies two folders below the workspace")?;
    let datapath = workspace.join("ebpf/datapath");

    for path in
        ["ebpf/abi/Cargo.toml", "ebpf/abi/src", "ebpf/datapath/Cargo.toml", "ebpf/datapath/Cargo.lock"]
    {
        watch(&workspace.join(path));
    }
    watch(&datapath.join("src"));
    watch(&workspace.join("xtask/src/ebpf_toolchain.rs"));
    watch(&manifest_dir.join("build.rs"));
    println!("cargo:rerun-if-env-changed=RUSTUP_HOME");

    let toolchain = ebpf_toolchain::find(workspace)?;
    // One directory for all profiles of the agent: the object is the same for each.
    let target_dir = workspace.join("target/ebpf");
    let output = toolchain.cargo_build(&datapath, &target_dir, &out_dir)?.output().context("start cargo")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the eBPF build failed with {}\n{messages}", toolchain.describe());
    for line in messages.lines().filter(|line| line.starts_with("warning")) {
        println!("cargo:warning={line}");
    }

    let object = target_dir.join("bpfel-unknown-none/release/hawser-datapath");
    fs::copy(&object, out_dir.join("datapath.o")).with_context(|| format!("copy {}", object.display()))?;
    Ok(())
}

fn watch(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}
