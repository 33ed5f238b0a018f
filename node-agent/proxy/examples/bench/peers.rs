//! The peers: five ways from a client to a backend, over plain veth routing and over Hawser's wiring.
//!
//! | peer | wiring | the way |
//! |---|---|---|
//! | `direct` | plain, hawser | the backend's own address |
//! | `socket` | plain, hawser | the service's address, translated at the socket |
//! | `packet` | hawser | the same, by a client that no socket program sees |
//! | `iptables`, `nftables` | plain | the same, by kube-proxy's rules in the node's namespace |
//!
//! Each set of rules has namespaces of its own, so that nobody pays for a neighbour's hooks. Plain wiring with a
//! socket program has no packet program at all.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path as FilePath, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hawser_proxy::{Config, Proxy};

use crate::{
    lab::{self, Cluster, Machine, Namespace, Place},
    load::{Path, Turn},
    measure::Watchdog,
    netfilter,
    objects::{self, NODE_PORT, Spec, TCP_PORT, UDP_PORT},
};

/// Where backends listen.
const TARGET_PORT: u16 = 8080;
/// What kube-proxy's users usually have (a Deployment of two).
const ENDPOINTS: u32 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Socket,
    Packet,
    Rules,
}

pub(crate) struct Peer<'a> {
    pub(crate) name: &'static str,
    pub(crate) wiring: &'static str,
    way: Way,
    cluster: &'a Cluster,
    client_cgroup: &'a FilePath,
    server_cgroup: &'a FilePath,
    service: SocketAddr,
    proxy: Option<&'a Proxy>,
}

impl Peer<'_> {
    /// Whether the peer has a way of this kind. A client outside has no socket that a node could serve, and where
    /// only sockets are served nobody forwards.
    pub(crate) fn has(&self, path: Path) -> bool {
        path != Path::Forward || self.way != Way::Socket
    }

    /// One turn of a load along `path`.
    pub(crate) fn turn(&self, path: Path, length: Duration, round: usize) -> Turn<'_> {
        let place = |namespace, cgroup| Place { namespace, cgroup };
        let is_direct = self.way == Way::Direct;
        let backend = SocketAddr::new(lab::BACKENDS[0].into(), TARGET_PORT);
        let (client, server, target) = match path {
            Path::Tcp | Path::Udp => {
                let port = if path == Path::Tcp { TCP_PORT } else { UDP_PORT };
                let client =
                    if self.way == Way::Packet { &self.cluster.unserved } else { &self.cluster.client };
                let target = if is_direct { backend } else { SocketAddr::new(self.service.ip(), port) };
                (place(client, self.client_cgroup), place(&self.cluster.backend, self.server_cgroup), target)
            }
            Path::Forward => {
                let remote = SocketAddr::new(lab::REMOTE_BACKEND.into(), TARGET_PORT);
                let node = SocketAddr::new(lab::NODE.into(), NODE_PORT);
                // Both are other machines: no program of the node sees their sockets.
                let elsewhere = self.outside_cgroup();
                (
                    place(&self.cluster.outside, elsewhere),
                    place(&self.cluster.second, elsewhere),
                    if is_direct { remote } else { node },
                )
            }
        };
        Turn { client, server, target, port: TARGET_PORT, length, round }
    }

    fn outside_cgroup(&self) -> &FilePath {
        match self.client_cgroup.parent() {
            Some(parent) if self.client_cgroup.ends_with(self.wiring) => parent,
            _ => self.client_cgroup,
        }
    }

    /// Runs one load for a moment, and checks that the way is the one that the peer stands for.
    pub(crate) fn check(&self, run: impl FnOnce(&Turn<'_>) -> Result<()>, path: Path) -> Result<()> {
        let context = || format!("{} over {} wiring", self.name, self.wiring);
        let before = self.counts()?;
        run(&self.turn(path, Duration::from_millis(100), 0)).with_context(context)?;
        let after = self.counts()?;
        let [at_socket, at_packet] = [0, 1].map(|which| after[which] > before[which]);
        let expected = match self.way {
            Way::Direct => [false, false],
            Way::Socket => [true, false],
            Way::Packet => [false, true],
            Way::Rules => return Ok(()),
        };
        ensure!(
            [at_socket, at_packet] == expected,
            "{}: translated at the socket: {at_socket}, at the packet: {at_packet}",
            context()
        );
        Ok(())
    }

    /// What was translated at sockets, and in packets, so far.
    fn counts(&self) -> Result<[u64; 2]> {
        let Some(proxy) = self.proxy else { return Ok([0; 2]) };
        let counters = proxy.counters()?;
        let value = |name: &str| counters.iter().filter(|c| c.name == name).map(|c| c.value).sum::<u64>();
        Ok([value("socket_connected") + value("socket_sent"), value("packet_forwarded")])
    }
}

/// Everything that the peers need, for one number of services.
pub(crate) struct Rig {
    specs: Vec<Spec>,
    plain: Cluster,
    hawser: Cluster,
    iptables: Option<Cluster>,
    nftables: Option<Cluster>,
    plain_cgroup: PathBuf,
    hawser_cgroup: PathBuf,
    unserved: PathBuf,
    plain_proxy: Proxy,
    hawser_proxy: Proxy,
    bpffs: [PathBuf; 2],
}

impl Rig {
    /// Makes the namespaces, loads the rules and starts the proxies. Says how long each took.
    pub(crate) fn new(machine: &Machine, services: u32) -> Result<Self> {
        let specs = objects::specs(services, ENDPOINTS, TARGET_PORT);
        let plain_cgroup = machine.node_cgroup("plain")?;
        let hawser_cgroup = machine.node_cgroup("hawser")?;
        let bpffs = [machine.bpffs("plain")?, machine.bpffs("hawser")?];
        let (plain, hawser) = (Cluster::new()?, Cluster::new()?);
        let plain_config = Config::new(bpffs[0].clone(), plain_cgroup.clone(), "node-a".to_owned());
        let mut hawser_config = Config::new(bpffs[1].clone(), hawser_cgroup.clone(), "node-a".to_owned());
        hawser_config.uplinks = vec!["up0".to_owned(), "up1".to_owned()];
        hawser_config.node_addresses = vec![lab::NODE.into()];
        hawser_config.pod_ranges = lab::POD_RANGES.map(|(range, len)| (range.into(), len)).to_vec();
        let plain_proxy = start(&plain, machine, plain_config, &specs)?;
        let hawser_proxy = start(&hawser, machine, hawser_config, &specs)?;
        let node = Place { namespace: &hawser.node, cgroup: machine.unserved() };
        node.run(|| -> Result<()> {
            for pod in lab::PODS {
                let addresses: Vec<_> = pod.addresses.iter().map(|address| (*address).into()).collect();
                let index = nix::net::if_::if_nametoindex(pod.link)?;
                ensure!(hawser_proxy.attach_pod(index, Some(pod.mac), &addresses)?, "no short way");
            }
            Ok(())
        })?;
        let iptables = with_rules("iptables", &specs, netfilter::load_iptables)?;
        let nftables = with_rules("nftables", &specs, netfilter::load_nftables)?;
        Ok(Self {
            specs,
            plain,
            hawser,
            iptables,
            nftables,
            plain_cgroup,
            hawser_cgroup,
            unserved: machine.unserved().to_owned(),
            plain_proxy,
            hawser_proxy,
            bpffs,
        })
    }

    pub(crate) fn peers(&self) -> Vec<Peer<'_>> {
        let service = self.specs.last().map_or(lab::BACKENDS[0], |spec| spec.address);
        let service = SocketAddr::new(IpAddr::V4(service), TCP_PORT);
        let (plain, hawser, unserved) = (&*self.plain_cgroup, &*self.hawser_cgroup, &*self.unserved);
        let peer = |name, wiring, way, cluster, client_cgroup, server_cgroup, proxy| Peer {
            name,
            wiring,
            way,
            cluster,
            client_cgroup,
            server_cgroup,
            service,
            proxy,
        };
        let (at_plain, at_hawser) = (Some(&self.plain_proxy), Some(&self.hawser_proxy));
        let mut peers = vec![
            peer("direct", "plain", Way::Direct, &self.plain, unserved, unserved, at_plain),
            peer("direct", "hawser", Way::Direct, &self.hawser, hawser, hawser, at_hawser),
            peer("socket", "plain", Way::Socket, &self.plain, plain, plain, at_plain),
            peer("socket", "hawser", Way::Socket, &self.hawser, hawser, hawser, at_hawser),
            peer("packet", "hawser", Way::Packet, &self.hawser, unserved, hawser, at_hawser),
        ];
        for (name, cluster) in [("iptables", &self.iptables), ("nftables", &self.nftables)] {
            if let Some(cluster) = cluster {
                peers.push(peer(name, "plain", Way::Rules, cluster, unserved, unserved, None));
            }
        }
        peers
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for dir in &self.bpffs {
            if let Err(error) = Proxy::remove_all(dir) {
                eprintln!("cannot remove the datapath below {}: {error}", dir.display());
            }
        }
    }
}

fn start(cluster: &Cluster, machine: &Machine, config: Config, specs: &[Spec]) -> Result<Proxy> {
    let (services, slices) = objects::objects(specs);
    let node = Place { namespace: &cluster.node, cgroup: machine.unserved() };
    let proxy = node.run(|| Proxy::start(config)).context("start the proxy");
    let mut proxy = proxy?;
    let started = Instant::now();
    let report = proxy.sync(&services, &slices, &[])?;
    if let Some(skipped) = report.skipped.first() {
        bail!("{} is not served: {}", skipped.what, skipped.reason);
    }
    eprintln!("hawser: {} frontends in {:?}", report.frontends, started.elapsed());
    Ok(proxy)
}

/// A cluster of plain wiring with rules on its node; `None`, and a line that says why, where they cannot be loaded.
fn with_rules(
    name: &str,
    specs: &[Spec],
    load: fn(&Namespace, &[Spec]) -> Result<()>,
) -> Result<Option<Cluster>> {
    let cluster = Cluster::new()?;
    Watchdog::pat();
    let started = Instant::now();
    match load(&cluster.node, specs) {
        Ok(()) => {
            eprintln!("{name}: {} services in {:?}", specs.len(), started.elapsed());
            Ok(Some(cluster))
        }
        Err(error) => {
            eprintln!("{name} is left out: {error:#}");
            Ok(None)
        }
    }
}
