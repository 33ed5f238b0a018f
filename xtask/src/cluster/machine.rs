//! What a machine's kernel must have for a cluster's nodes; the agent probes the rest, and falls back.

use std::{fs, process::Command};

use anyhow::{Context, bail};

use super::{NetworkMode, cgroup};
use crate::command::{output, succeeds};

/// Something that is tried out in a network namespace of its own, which goes with the attempt. The kernel loads
/// the module by itself where there is one.
struct Feature {
    name: &'static str,
    /// The kernel's build option, as its documentation has it.
    option: &'static str,
    /// For `sh`.
    attempt: &'static str,
}

const VETH: Feature = Feature {
    name: "veth pairs",
    option: "CONFIG_VETH",
    attempt: "ip link add probe type veth peer name peer",
};
const BRIDGE: Feature =
    Feature { name: "bridges", option: "CONFIG_BRIDGE", attempt: "ip link add probe type bridge" };
const VXLAN: Feature = Feature {
    name: "VXLAN tunnels (--network-mode=routes does without)",
    option: "CONFIG_VXLAN",
    attempt: "ip link add probe type vxlan id 1 dstport 4789",
};
const MASQUERADE: Feature = Feature {
    name: "masquerading in nftables",
    option: "CONFIG_NFT_NAT, CONFIG_NFT_MASQ",
    attempt: "nft 'table inet probe { chain out { type nat hook postrouting priority srcnat; masquerade; }; }'",
};

/// Names the first thing that is missing, and what to do about it.
pub(super) fn check(mode: NetworkMode) -> anyhow::Result<()> {
    cgroup::unified_root()?;
    let known = fs::read_to_string("/proc/filesystems").context("cannot read /proc/filesystems")?;
    for name in ["overlay", "bpf"] {
        if !known.contains(name) && !succeeds(Command::new("modprobe").arg(name)) {
            bail!("this kernel has no {name} file system; Hawser needs one that has (Debian 12's does)");
        }
    }
    let tunnels = (mode == NetworkMode::Vxlan).then_some(VXLAN);
    for feature in [VETH, BRIDGE, MASQUERADE].iter().chain(&tunnels) {
        feature.check()?;
    }
    Ok(())
}

impl Feature {
    fn check(&self) -> anyhow::Result<()> {
        let Self { name, option, attempt } = self;
        let mut command = Command::new("unshare");
        output(command.args(["--net", "sh", "-c", attempt])).map(drop).with_context(|| {
            format!("this kernel has no {name}; Hawser needs one built with {option} (Debian 12's is)")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_feature_is_named_with_what_the_kernel_said() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return;
        }
        let feature =
            Feature { name: "pigeons", option: "CONFIG_PIGEONS", attempt: "ip link add probe type pigeon" };
        let error = format!("{:#}", feature.check().expect_err("no kernel has them"));
        for part in ["no pigeons", "CONFIG_PIGEONS", "Unknown device type"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        check(NetworkMode::Vxlan).expect("a machine that runs these tests has everything");
    }
}
