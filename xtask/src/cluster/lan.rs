//! The network that nodes share: a bridge, a veth pair and a network namespace for each node, and the routes
//! that keep cluster addresses from leaving.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use ipnet::Ipv4Net;
use nix::mount::{MntFlags, umount2};

use super::{Cluster, Settings};
use crate::command::{ip, output, run, succeeds};

/// Where `ip netns` keeps namespaces.
const NETNS_DIR: &str = "/run/netns";
/// Of the `unreachable` routes: any other route to the same range is preferred.
const METRIC: u32 = 4_278_198_272;
/// In the cluster's folder where that one was not there before.
const NETNS_DIR_MARK: &str = "made-netns-dir";

/// Makes what is missing of the network; what is there stays as it is.
pub(crate) fn ensure(cluster: &Cluster, settings: &Settings) -> anyhow::Result<()> {
    let bridge = cluster.bridge();
    if !succeeds(&mut ip(&format!("link show {bridge}"))) {
        refuse_overlap(settings)?;
        run(&mut ip(&format!("link add {bridge} type bridge stp_state 0 forward_delay 0")))?;
    }
    run(&mut ip(&format!("address replace {}/24 dev {bridge}", settings.host_address())))?;
    run(&mut ip(&format!("link set {bridge} up")))?;
    for range in [&settings.pod_cidr, &settings.service_cidr] {
        run(&mut ip(&format!("route replace unreachable {range} metric {METRIC}")))?;
    }
    for (number, node) in settings.node_names() {
        ensure_node(cluster, settings, number, &node)?;
    }
    Ok(())
}

fn ensure_node(cluster: &Cluster, settings: &Settings, number: u8, node: &str) -> anyhow::Result<()> {
    let netns = cluster.netns(node);
    if !netns_path(cluster, node).exists() {
        if !Path::new(NETNS_DIR).exists() {
            fs::write(cluster.run_dir().join(NETNS_DIR_MARK), "")?;
        }
        run(&mut ip(&format!("netns add {netns}")))?;
    }
    let port = port(cluster, number);
    let inside = |arguments: &str| ip(&format!("-n {netns} {arguments}"));
    if !succeeds(&mut inside("link show eth0")) {
        // A port without its peer is what an interrupted start leaves.
        succeeds(&mut ip(&format!("link delete {port}")));
        run(&mut ip(&format!("link add {port} type veth peer name eth0 netns {netns}")))?;
    }
    run(&mut ip(&format!("link set {port} master {} up", cluster.bridge())))?;
    run(&mut inside("link set lo up"))?;
    run(&mut inside(&format!("address replace {}/24 dev eth0", settings.node_address(number))))?;
    run(&mut inside("link set eth0 up"))?;
    for range in [&settings.pod_cidr, &settings.service_cidr] {
        // Before anything on the node can use such an address; the agent's own routes are preferred to it.
        run(&mut inside(&format!("route replace unreachable {range} metric {METRIC}")))?;
    }
    run(&mut inside(&format!("route replace default via {}", settings.host_address())))
}

/// Removes it all.
pub(crate) fn remove(cluster: &Cluster, settings: Option<&Settings>) -> anyhow::Result<()> {
    for netns in namespaces(cluster) {
        run(&mut ip(&format!("netns delete {netns}")))?;
    }
    if cluster.run_dir().join(NETNS_DIR_MARK).exists() {
        // `ip netns` has made it, and mounted it onto itself. Others may use it by now.
        let is_empty = fs::read_dir(NETNS_DIR).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty && umount2(NETNS_DIR, MntFlags::MNT_DETACH).is_ok() {
            fs::remove_dir(NETNS_DIR)?;
        }
    }
    let bridge = cluster.bridge();
    for link in links_of(&bridge)? {
        // Its peer's namespace may be taking it down already.
        succeeds(&mut ip(&format!("link delete {link}")));
    }
    if succeeds(&mut ip(&format!("link show {bridge}"))) {
        run(&mut ip(&format!("link delete {bridge}")))?;
    }
    if let Some(settings) = settings {
        for range in [&settings.pod_cidr, &settings.service_cidr] {
            succeeds(&mut ip(&format!("route delete unreachable {range} metric {METRIC}")));
        }
    }
    Ok(())
}

pub(crate) fn netns_path(cluster: &Cluster, node: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(cluster.netns(node))
}

/// The bridge's end of a node's link.
fn port(cluster: &Cluster, number: u8) -> String {
    format!("{}p{number}", cluster.name)
}

fn namespaces(cluster: &Cluster) -> Vec<String> {
    let prefix = format!("{}-", cluster.name);
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with("node"))).collect()
}

fn links_of(bridge: &str) -> anyhow::Result<Vec<String>> {
    if !succeeds(&mut ip(&format!("link show {bridge}"))) {
        return Ok(Vec::new());
    }
    let mut command = Command::new("ip");
    command.args(["-json", "link", "show", "master", bridge]);
    let text = output(&mut command)?;
    let links: serde_json::Value = serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text })?;
    let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The cluster's ranges must not hide what the machine reaches by another route than its default one.
fn refuse_overlap(settings: &Settings) -> anyhow::Result<()> {
    let text = output(Command::new("ip").args(["-json", "-4", "route", "show", "table", "all"]))?;
    let routes: serde_json::Value =
        serde_json::from_str(&text).context("cannot read this machine's routes")?;
    let lan = format!("{}.0/24", settings.lan);
    let ours =
        [("--lan", &lan), ("--pod-cidr", &settings.pod_cidr), ("--service-cidr", &settings.service_cidr)];
    for (flag, range) in ours {
        let wanted: Ipv4Net = range.parse().with_context(|| format!("{flag} {range:?} is no IPv4 range"))?;
        for route in routes.as_array().into_iter().flatten() {
            // What keeps other clusters' addresses from leaving hides nothing.
            if route["type"] == "unreachable" && route["metric"] == METRIC {
                continue;
            }
            let Some(used) = route["dst"].as_str().and_then(network) else { continue };
            if used.contains(&wanted) || wanted.contains(&used) {
                bail!(
                    "this machine already has a route to {used}, which {range} would hide; choose another {flag}"
                );
            }
        }
    }
    Ok(())
}

/// A route's destination: a range or an address; `None` for the default.
fn network(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().or_else(|| Some(Ipv4Net::from(text.parse::<std::net::Ipv4Addr>().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_ranges_addresses_or_neither() {
        #[track_caller]
        fn check(text: &str, expected: Option<&str>) {
            assert_eq!(network(text).map(|net| net.to_string()).as_deref(), expected, "{text}");
        }
        check("default", None);
        check("10.0.0.0/8", Some("10.0.0.0/8"));
        check("10.203.0.1", Some("10.203.0.1/32"));
    }
}
