//! `node-agent explain`: what this node would do with a connection, and why, read from the pinned maps and the kernel's
//! routes; the agent need not run.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use hawser_network::pod_addresses;
use hawser_proxy::{Client, Datapath, Explanation, Outcome, Query};

use crate::{
    flows,
    services::{pins, print_line},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Who connects: `host` (a process of this node), <namespace>/<name> of a pod of this node, or an address
    client: String,
    /// <address>:<port>
    destination: SocketAddr,
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: Protocol,
    /// The agent's --state-dir
    #[arg(long, env = "HAWSER_STATE_DIR", default_value = "/run/hawser/agent")]
    state_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let pins = pins(&options.state_dir);
    let datapath = Datapath::open(&pins)
        .with_context(|| format!("cannot read the datapath's maps below {}", pins.display()))?;
    let client = client(&options.client, options.destination, &options.state_dir)?;
    let protocol = if options.protocol == Protocol::Tcp { "TCP" } else { "UDP" };
    let explanation = datapath.explain(&Query { client, destination: options.destination, protocol })?;
    let next_hops = match &explanation.outcome {
        Outcome::Translated { backends } => backends.iter().map(SocketAddr::ip).take(MOST_ROUTES).collect(),
        Outcome::Untouched => vec![options.destination.ip()],
        Outcome::Refused | Outcome::Dropped { .. } => Vec::new(),
    };
    let routes = next_hops.into_iter().map(|address| format!("route: {}", route(address)));
    for line in describe(&explanation).into_iter().chain(routes) {
        if !print_line(line) {
            break;
        }
    }
    Ok(())
}

/// Backends whose routes are shown; the rest go the same few ways.
const MOST_ROUTES: usize = 16;

fn describe(explanation: &Explanation) -> Vec<String> {
    let mut lines: Vec<String> = explanation.steps.clone();
    if let Some(frontend) = &explanation.frontend {
        let flags = [
            (frontend.served_to_wire, "served to packets from outside"),
            (frontend.wire_local, "externalTrafficPolicy Local"),
            (frontend.node_only, "served to this node's own processes alone"),
            (frontend.departed, "a departed UDP backend's address"),
        ];
        let words: Vec<&str> = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, word)| *word).collect();
        let words =
            if words.is_empty() { "served inside the cluster alone".into() } else { words.join(", ") };
        lines.push(format!("flags: {words}"));
    }
    lines.push(match &explanation.outcome {
        Outcome::Untouched => "verdict: left as it is".into(),
        Outcome::Refused => "verdict: refused".into(),
        Outcome::Dropped { counter } => format!("verdict: dropped, counted as {counter}"),
        Outcome::Translated { backends } => format!("verdict: to one of {} backends", backends.len()),
    });
    if let (Outcome::Translated { backends }, Some(frontend)) = (&explanation.outcome, &explanation.frontend)
    {
        for backend in backends {
            let place = if frontend.local_backends.contains(backend) { "this node" } else { "another node" };
            lines.push(format!("backend: {backend} on {place}"));
        }
    }
    lines
}

/// Who `text` is, as the programs see it.
fn client(text: &str, destination: SocketAddr, state_dir: &Path) -> anyhow::Result<Client> {
    if text == "host" {
        return Ok(Client::Host);
    }
    let addresses = flows::pods(text, state_dir)?;
    let is_same_family = |address: &&IpAddr| address.is_ipv4() == destination.is_ipv4();
    let Some(address) = addresses.iter().find(is_same_family).copied() else {
        bail!("{text} has no address of the destination's family");
    };
    // Without records there are no pods: the agent has not run, or its folder is another one.
    let pods = pod_addresses(&state_dir.join("network")).unwrap_or_default();
    if pods.iter().any(|(_, addresses)| addresses.contains(&address)) {
        return Ok(Client::Pod(address));
    }
    // An address of the node's own is one that can be bound here.
    let is_own = std::net::UdpSocket::bind((address, 0)).is_ok();
    Ok(if is_own { Client::Host } else { Client::Outside(address) })
}

/// The kernel's way to `address`, in the words of `ip route`.
fn route(address: IpAddr) -> String {
    let output = Command::new("ip").args(["-o", "route", "get", &address.to_string()]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(output) => format!("{address}: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("{address}: cannot run ip: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_told_from_its_address() {
        let folder = Path::new("/nonexistent");
        let to = "127.0.0.1:80".parse().unwrap();
        assert_eq!(client("host", to, folder).unwrap(), Client::Host);
        assert_eq!(client("127.0.0.1", to, folder).unwrap(), Client::Host);
        let outside = client("192.0.2.77", to, folder).unwrap();
        assert_eq!(outside, Client::Outside("192.0.2.77".parse().unwrap()));
        assert!(client("fd00::1", to, folder).is_err(), "another family");
        assert!(client("not-a-pod", to, folder).is_err());
    }
}
