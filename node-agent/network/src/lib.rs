//! The pod network of one node: namespaces and addresses for pods, routes between nodes, the way outside.
//!
//! A pod gets a network namespace of its own, pinned as a file, with one link whose other end is in the node's
//! namespace; its address is a /32 from the node's block, there is no bridge. Other nodes' blocks are reached
//! through a VXLAN device without learning, or by plain routes. What leaves the cluster's range is masqueraded.
//! `unreachable` routes keep addresses of the cluster that nobody serves from ever leaving the node.
//!
//! All calls are level-triggered: they make what is missing and leave what is right, so that an agent that
//! restarts interrupts nothing. What belongs to a pod is written to disk before it is made. Host ports and
//! service addresses are the service path's matter (`hawser-proxy`).
//!
//! The process runs in the node's network namespace; nothing here looks at `/sys`, which may show another one.

mod addresses;
mod announce;
mod error;
mod gratuitous;
mod guard;
mod masquerade;
mod netlink;
mod netns;
mod nft;
mod nodes;
mod pods;
mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use hawser_fault::point;
use ipnet::IpNet;
use tokio::sync::Mutex;

pub use crate::{
    announce::{Announced, LIFETIME as ANNOUNCEMENT_LIFETIME},
    error::Error,
    nodes::NodeRoute,
    pods::{PodId, PodInterface, pod_addresses},
};
use crate::{netlink::Netlink, pods::Pods};

/// Name of the tunnel device; its addresses are the first of the node's blocks.
pub const TUNNEL: &str = "hawser-vxlan";
/// What a VXLAN header over IPv4 takes of every packet (RFC 7348: 50 bytes), and over IPv6.
const TUNNEL_OVERHEAD_V4: u32 = 50;
const TUNNEL_OVERHEAD_V6: u32 = 70;

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// RFC 7348, between the nodes' addresses, over UDP port `port`.
    Vxlan { vni: u32, port: u16 },
    /// Plain routes; nodes are neighbours on one network.
    Routes,
}

/// The link that leads to the other nodes and to outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub name: String,
    /// The node's own: without those of services that are announced on the link, without link-local ones, and without
    /// those of IPv6 that are not to last (temporary, deprecated) or not yet in use.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// The node's own address, by which other nodes reach it.
    pub node_ip: IpAddr,
    /// The link that carries `node_ip`; found by it where unset.
    pub uplink: Option<String>,
    /// The node's blocks, at most one a family.
    pub pod_cidrs: Vec<IpNet>,
    /// All pods' ranges; traffic from pods to elsewhere is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges of service addresses.
    pub service_cidrs: Vec<IpNet>,
    pub mode: Mode,
    /// Whether pods' traffic to outside the cluster gets the node's address.
    pub masquerade: bool,
    /// Where cluster DNS listens on this node: added to the loopback link.
    pub dns_addresses: Vec<IpAddr>,
    /// Pinned namespaces (`netns/`) and address records (`pods/`); must survive the agent.
    pub state_dir: PathBuf,
}

/// The pod network of this node.
pub struct Network {
    config: Config,
    netlink: Netlink,
    /// One change of pods at a time: they share the address blocks, and take milliseconds.
    pods: Mutex<Pods>,
    /// Addresses of services that the node's own programs are kept away from; `None` before it was seen to.
    guarded: Mutex<Option<BTreeSet<IpAddr>>>,
}

impl Network {
    /// Sets the node up, or adopts what an earlier run set up. `unreachable` routes come first.
    ///
    /// # Errors
    /// Names the step that the kernel refused; running it again goes on from there.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let netlink = Netlink::open()?;
        for range in config.service_cidrs.iter().chain(&config.cluster_cidrs) {
            netlink.replace_unreachable(*range).await?;
        }
        point("network: ranges unreachable");
        sysctl::enable_forwarding(config.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()))?;
        let uplink = netlink.uplink(config.uplink.as_deref(), config.node_ip).await?;
        let pod_mtu = match config.mode {
            Mode::Vxlan { vni, port } => {
                let overhead = if config.node_ip.is_ipv4() { TUNNEL_OVERHEAD_V4 } else { TUNNEL_OVERHEAD_V6 };
                let mtu = uplink.mtu - overhead;
                nodes::ensure_tunnel(&netlink, &config, uplink.index, vni, port, mtu).await?;
                mtu
            }
            Mode::Routes => uplink.mtu,
        };
        point("network: tunnel up");
        let masqueraded = if config.masquerade { config.pod_cidrs.as_slice() } else { &[] };
        masquerade::install(masqueraded, &config.cluster_cidrs).await?;
        point("network: masquerading");
        let loopback = netlink.link("lo").await?.index;
        for address in &config.dns_addresses {
            netlink.replace_host_address(loopback, *address).await?;
        }
        let pods = Pods::load(&config.state_dir, &config.pod_cidrs, config.node_ip, pod_mtu)?;
        Ok(Self { config, netlink, pods: Mutex::new(pods), guarded: Mutex::default() })
    }

    /// Looks at the link to the other nodes: the configured one, or the one with the node's address.
    ///
    /// # Errors
    /// Where there is no such link, or the kernel refuses to show it.
    pub async fn uplink(&self) -> Result<Uplink, Error> {
        let link = self.netlink.uplink(self.config.uplink.as_deref(), self.config.node_ip).await?;
        let found = self.netlink.addresses(link.index).await?;
        let own = found.into_iter().filter(|(address, message, is_lent)| {
            !is_lent && !is_link_local(*address) && netlink::stays(*address, message)
        });
        let addresses = own.map(|(address, ..)| address).collect();
        Ok(Uplink { name: link.name, addresses })
    }

    /// Makes tunnels and routes lead to exactly these nodes (the node itself left out).
    ///
    /// # Errors
    /// The first that the kernel refused; the others were tried.
    pub async fn set_nodes(&self, nodes: &[NodeRoute]) -> Result<(), Error> {
        nodes::replace(&self.netlink, &self.config, nodes).await
    }

    /// Makes this node answer, on its uplink, for exactly these addresses of services, for
    /// [`ANNOUNCEMENT_LIFETIME`]: to be called again before that is over.
    ///
    /// # Errors
    /// The first that the kernel refused; the others were tried.
    pub async fn announce(&self, addresses: &BTreeSet<IpAddr>) -> Result<Announced, Error> {
        let mut guarded = self.guarded.lock().await;
        announce::replace(&self.netlink, &self.config, addresses, &mut guarded).await
    }

    /// Gives a pod its namespace, link and addresses; a pod that has them keeps them. `netns`, where it is pinned
    /// already, is a namespace to take in the place of a new one: one that belongs to users of the pod's own.
    ///
    /// # Errors
    /// [`Error::Exhausted`] where the node's block has no address left.
    pub async fn attach_pod(&self, pod: &PodId, netns: Option<&Path>) -> Result<PodInterface, Error> {
        self.pods.lock().await.attach(&self.netlink, pod, netns).await
    }

    /// Removes all that a pod has; unknown pods are fine.
    ///
    /// # Errors
    /// What the kernel refused; the address is not given to another pod before this succeeds.
    pub async fn detach_pod(&self, uid: &str) -> Result<(), Error> {
        self.pods.lock().await.detach(&self.netlink, uid).await
    }

    /// Removes what pods other than `live` have left behind; returns their uids.
    ///
    /// # Errors
    /// The first that could not be removed; the others were tried.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<Vec<String>, Error> {
        let mut pods = self.pods.lock().await;
        let gone: Vec<String> = pods.uids().filter(|uid| !live.contains(*uid)).map(str::to_owned).collect();
        let mut outcome = Ok(());
        for uid in &gone {
            let removed = pods.detach(&self.netlink, uid).await;
            outcome = outcome.and(removed);
        }
        outcome.map(|()| gone)
    }

    /// The pods that have addresses, by uid.
    pub async fn list(&self) -> BTreeMap<String, Vec<IpAddr>> {
        self.pods.lock().await.addresses()
    }

    /// Removes the node's part of the network from this namespace: pods, tunnel, rules; then the
    /// `unreachable` routes.
    ///
    /// # Errors
    /// The first that could not be removed; the others were tried.
    pub async fn remove_all(self) -> Result<(), Error> {
        let mut outcome = self.reconcile(&HashSet::new()).await.map(|_| ());
        outcome = outcome.and(self.set_nodes(&[]).await);
        outcome = outcome.and(self.announce(&BTreeSet::new()).await.map(drop));
        outcome = outcome.and(self.netlink.delete_link(TUNNEL).await);
        for address in &self.config.dns_addresses {
            outcome = outcome.and(self.netlink.delete_address(*address).await);
        }
        outcome = outcome.and(masquerade::remove().await);
        for range in self.config.service_cidrs.iter().chain(&self.config.cluster_cidrs) {
            outcome = outcome.and(self.netlink.delete_unreachable(*range).await);
        }
        outcome
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
