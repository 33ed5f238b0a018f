//! Finds, and installs where it is missing, what builds the eBPF object.
//!
//! `bpfel-unknown-none` has no prebuilt `core`, so two things are needed: a compiler with its library sources, and
//! bpf-linker for that compiler's LLVM. This file is compiled twice: as a module of xtask, which may install, and
//! into the build script of `node-agent/proxy`, which only looks. It therefore uses `std` and `anyhow` alone.
//!
//! Compilers are tried in this order: rustup toolchains that have `rust-src`, then Debian's `rustc-web` with
//! `rust-web-src`. The linker lives under `target/tools`, where nothing else can replace it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The release of bpf-linker that is installed. It speaks LLVM 20, 21 and 22, borrowed from the compiler.
const BPF_LINKER: &str = "0.10.0";
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 20..=22;

/// Debian's compiler with its sources. apt gives both in the same version.
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Everything a build of `ebpf/datapath` needs.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

/// A compiler whose library sources are installed.
#[derive(Clone, Debug)]
struct Compiler {
    rustc: PathBuf,
    llvm: u32,
    /// The compiler's own libLLVM, which bpf-linker loads at run time.
    libllvm: PathBuf,
}

/// Returns the toolchain that is installed, or says what is missing. `workspace` is the root of the repository.
pub(crate) fn find(workspace: &Path) -> Result<Toolchain> {
    let compiler = find_compiler().context(
        "no compiler with library sources for eBPF (a rustup toolchain with rust-src, or Debian's rustc-web and \
         rust-web-src); run `cargo xtask setup`",
    )?;
    let linker = linker_path(workspace, compiler.llvm);
    ensure!(linker.is_file(), "{} is missing; run `cargo xtask setup`", linker.display());
    Ok(Toolchain { compiler, linker })
}

/// Installs what `find` would miss, and says each step to `log`. Does nothing when all is there.
pub(crate) fn ensure(workspace: &Path, log: &dyn Fn(&str)) -> Result<Toolchain> {
    let compiler = match find_compiler() {
        Some(compiler) => compiler,
        None => {
            log(&format!("installing the eBPF compiler: apt-get install {}", DEBIAN_PACKAGES.join(" ")));
            install_debian_compiler()?;
            find_compiler()
                .context("rustc-web and rust-web-src are installed, yet unusable: do their versions match?")?
        }
    };
    let linker = linker_path(workspace, compiler.llvm);
    if !linker.is_file() {
        log(&format!("building bpf-linker {BPF_LINKER} for LLVM {} (about a minute)", compiler.llvm));
        install_linker(&linker, compiler.llvm)?;
    }
    Ok(Toolchain { compiler, linker })
}

impl Toolchain {
    /// Describes the toolchain in one line.
    pub(crate) fn describe(&self) -> String {
        format!("{} (LLVM {}), {}", self.compiler.rustc.display(), self.compiler.llvm, self.linker.display())
    }

    /// Returns a cargo command for the crate in `manifest_dir`, with the compiler, target and linker set.
    ///
    /// `scratch` is a directory of the caller's own: bpf-linker loads the first libLLVM of its library path, so
    /// that path holds exactly one link to the right one.
    pub(crate) fn cargo_build(
        &self,
        manifest_dir: &Path,
        target_dir: &Path,
        scratch: &Path,
    ) -> Result<Command> {
        let library_path = scratch.join("llvm");
        fs::create_dir_all(&library_path).with_context(|| format!("create {}", library_path.display()))?;
        let link = library_path.join("libLLVM.so");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&self.compiler.libllvm, &link)
            .with_context(|| format!("link {}", link.display()))?;

        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Settings of the outer cargo are for another compiler and target.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if (name_text.starts_with("CARGO_")
                && name_text != "CARGO_HOME"
                && name_text != "CARGO_MAKEFLAGS")
                || name_text.starts_with("RUST")
                || name_text.starts_with("DEP_")
            {
                cargo.env_remove(&name);
            }
        }
        let arch = env::consts::ARCH;
        let flags = [
            &format!("--cfg=bpf_target_arch=\"{arch}\"") as &str,
            // v3 brings 32-bit arithmetic and atomic exchange; the oldest kernel served (6.1) has both.
            "-Ctarget-cpu=v3",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            &format!("-Clinker={}", self.linker.display()),
        ]
        .join("\x1f");
        cargo
            .current_dir(manifest_dir)
            .args([
                "build",
                "--release",
                "--locked",
                "--target",
                "bpfel-unknown-none",
                "-Z",
                "build-std=core",
            ])
            .arg("--target-dir")
            .arg(target_dir)
            .env("RUSTC", &self.compiler.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("LD_LIBRARY_PATH", &library_path);
        if let Some(home) = env::var_os("RUSTUP_HOME") {
            cargo.env("RUSTUP_HOME", home);
        }
        Ok(cargo)
    }
}

/// One linker per LLVM, so that a change of compiler does not need a reinstallation to be noticed.
fn linker_path(workspace: &Path, llvm: u32) -> PathBuf {
    workspace.join(format!("target/tools/bpf-linker-{BPF_LINKER}-llvm{llvm}/bin/bpf-linker"))
}

fn find_compiler() -> Option<Compiler> {
    let rustup_home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let mut toolchains: Vec<PathBuf> = rustup_home
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    // "stable-..." before dated and nightly ones: the least surprising of those that would do.
    toolchains.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with("stable"), name)
    });
    toolchains
        .into_iter()
        .map(|toolchain| toolchain.join("bin/rustc"))
        .chain([PathBuf::from(DEBIAN_RUSTC)])
        .find_map(|rustc| probe_compiler(&rustc))
}

/// Returns the compiler if it runs, has its library sources, and has an LLVM that the linker speaks.
fn probe_compiler(rustc: &Path) -> Option<Compiler> {
    if !rustc.is_file() {
        return None;
    }
    let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"])).ok()?.trim());
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return None;
    }
    let version = output(Command::new(rustc).arg("-vV")).ok()?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    let llvm: u32 = llvm.split('.').next()?.parse().ok()?;
    if !BPF_LINKER_LLVM.contains(&llvm) {
        return None;
    }
    let host = version.lines().find_map(|line| line.strip_prefix("host: "))?;
    let multiarch = host.replace("-unknown-", "-");
    let libllvm =
        [sysroot.join("lib"), sysroot.join("lib").join(&multiarch), Path::new("/usr/lib").join(&multiarch)]
            .iter()
            .find_map(|dir| find_libllvm(dir, llvm))?;
    Some(Compiler { rustc: rustc.to_owned(), llvm, libllvm })
}

fn find_libllvm(dir: &Path, llvm: u32) -> Option<PathBuf> {
    let prefix = format!("libLLVM.so.{llvm}.");
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect();
    found.sort();
    found.pop()
}

fn install_debian_compiler() -> Result<()> {
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "this machine has no apt-get: install a rustup toolchain with rust-src \
         (`rustup component add rust-src`) and try again"
    );
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-q", "-y", "--no-install-recommends"])
        .args(DEBIAN_PACKAGES))
}

fn install_linker(linker: &Path, llvm: u32) -> Result<()> {
    let root = linker.parent().and_then(Path::parent).context("the linker's path has a root")?;
    run(Command::new("cargo")
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--locked",
            "--version",
            BPF_LINKER,
            "--no-default-features",
        ])
        .args(["--features", &format!("rust-llvm-{llvm}"), "--root"])
        .arg(root)
        // A target directory or compiler set for the caller is none of the linker's.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    String::from_utf8(output.stdout).context("output is not UTF-8")
}
