//! What a Debian 12 machine needs beyond rustup's toolchain, and its installation.

use std::{env, path::Path, process::Command};

use anyhow::{Context, bail};

use crate::{
    build::workspace_root,
    command::{output, run as run_command, say, succeeds},
    ebpf_toolchain,
};

/// A Debian package, and a file that shows that it (or an equal) is there.
struct Package {
    name: &'static str,
    file: &'static str,
}

const fn package(name: &'static str, file: &'static str) -> Package {
    Package { name, file }
}

const BUILD: &[Package] = &[
    package("gcc", "/usr/bin/cc"),
    package("libc6-dev", "/usr/include/stdio.h"),
    package("protobuf-compiler", "/usr/bin/protoc"),
    package("libprotobuf-dev", "/usr/include/google/protobuf/any.proto"),
];

const RUN: &[Package] = &[
    package("containerd", "/usr/bin/containerd"),
    package("runc", "/usr/sbin/runc"),
    package("iproute2", "/sbin/ip"),
    package("nftables", "/usr/sbin/nft"),
    package("docker-registry", "/usr/bin/docker-registry"),
    package("skopeo", "/usr/bin/skopeo"),
    package("busybox-static", "/bin/busybox"),
    package("kubernetes-client", "/usr/bin/kubectl"),
    package("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

const ETCD: &[Package] = &[package("etcd-server", "/usr/bin/etcd")];

const TEST: &[Package] = &[
    package("etcd-client", "/usr/bin/etcdctl"),
    package("bpftool", "/usr/sbin/bpftool"),
    package("curl", "/usr/bin/curl"),
    // libFuzzer is C++.
    package("g++", "/usr/bin/c++"),
    package("iptables", "/usr/sbin/iptables-restore"),
    package("python3-venv", "/usr/share/doc/python3-venv"),
];

/// For tests on other kernels.
const EMULATE: &[Package] = &[package("qemu-system-x86", "/usr/bin/qemu-system-x86_64")];

/// Which parts a command needs.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    pub(crate) run: bool,
    pub(crate) etcd: bool,
    pub(crate) test: bool,
    pub(crate) emulate: bool,
}

impl Need {
    pub(crate) const BUILD: Self = Self { run: false, etcd: false, test: false, emulate: false };
    /// For everything but other kernels.
    pub(crate) const EVERYTHING: Self = Self { run: true, etcd: true, test: true, emulate: false };
}

/// Installs what is missing of `need`; says so, and does nothing where all is there.
pub(crate) fn run(need: Need) -> anyhow::Result<()> {
    let mut wanted: Vec<&Package> = BUILD.iter().collect();
    let parts = [(need.run, RUN), (need.etcd, ETCD), (need.test, TEST), (need.emulate, EMULATE)];
    for (is_needed, packages) in parts {
        if is_needed {
            wanted.extend(packages);
        }
    }
    let missing: Vec<&str> =
        wanted.iter().filter(|package| !is_present(package)).map(|package| package.name).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    if need.run {
        check_kubectl();
    }
    ebpf_toolchain::ensure(&workspace_root(), &|message| say(message))
        .context("the eBPF toolchain could not be set up")?;
    Ok(())
}

/// A program counts wherever PATH finds it, so that a user's own kubectl is as good as Debian's.
fn is_present(package: &Package) -> bool {
    let file = Path::new(package.file);
    let is_program = file.parent().is_some_and(|folder| folder.ends_with("bin") || folder.ends_with("sbin"));
    let in_path = || {
        let name = file.file_name().unwrap_or_default();
        let folders = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&folders).any(|folder| folder.join(name).exists())
    };
    file.exists() || (is_program && in_path())
}

/// `apt-get install`, without starting the services that packages bring.
fn install(packages: &[&str]) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("missing packages: {}; install them, or run this as root", packages.join(" "));
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("missing: {}; install them with this system's package manager", packages.join(" "));
    }
    say(format!("installing from Debian: {}", packages.join(" ")));
    let policy = ServicePolicy::deny()?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "Dpkg::Use-Pty=0"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        run_command(command.stdout(std::io::stderr()))
    };
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())?;
    drop(policy);
    let brought: Vec<&str> =
        SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, unit)| *unit).collect();
    // Nor at the next boot: the registry's would take the port of the cluster's own.
    if !brought.is_empty() && !succeeds(Command::new("systemctl").arg("disable").args(&brought)) {
        say(format!("these services start at the next boot, and may take ports: {}", brought.join(" ")));
    }
    Ok(())
}

/// Packages whose services listen on ports that a cluster uses.
const SERVICES: &[(&str, &str)] = &[("docker-registry", "docker-registry"), ("etcd-server", "etcd")];

/// Says so where kubectl is so old that some commands fail: Debian 12 has 1.20.
fn check_kubectl() {
    let version = output(Command::new("kubectl").args(["version", "--client", "--output=json"]));
    let version: Option<serde_json::Value> = version.ok().and_then(|text| serde_json::from_str(&text).ok());
    let version = version.map(|version| version["clientVersion"]["gitVersion"].clone());
    let Some(version) = version.as_ref().and_then(serde_json::Value::as_str) else { return };
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    if minor.is_some_and(|minor| minor < OLDEST_KUBECTL) {
        say(format!(
            "kubectl is {version}, which is too old for some commands; 1.{OLDEST_KUBECTL} or later is advised"
        ));
    }
}

/// The first that speaks WebSocket to servers by default.
const OLDEST_KUBECTL: u32 = 31;

/// While it lives, packages do not start services (containerd, etcd and the registry are run by `up`,
/// under settings of the cluster's own). An administrator's policy is left as it is.
struct ServicePolicy {
    is_ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# Hawser's set-up runs: no service is started.\nexit 101\n";

impl ServicePolicy {
    fn deny() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let found = std::fs::read_to_string(POLICY);
        // One that an interrupted run of ours left is taken over, and so removed.
        let is_absent = found.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        if !is_absent && !found.is_ok_and(|text| text == POLICY_TEXT) {
            return Ok(Self { is_ours: false });
        }
        std::fs::write(POLICY, POLICY_TEXT).with_context(|| format!("cannot write {POLICY}"))?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.is_ours {
            // Left behind it would only keep later packages from starting services; nothing to undo it with.
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
