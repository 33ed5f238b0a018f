//! The ways to other nodes' pods.
//!
//! The tunnel learns nothing from packets: a node's link-layer address on it follows from the node's address,
//! so that every node can compute every other's, and entries are written once, for good.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use hawser_fault::point;
use ipnet::IpNet;
use rtnetlink::LinkVxlan;
use tracing::debug;

use crate::{
    Config, Error, Mode, TUNNEL,
    netlink::{Netlink, Route, neighbour_parts},
    sysctl,
};

/// Another node, as the API describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    pub name: String,
    pub node_ip: IpAddr,
    pub pod_cidrs: Vec<IpNet>,
}

/// Makes the VXLAN device, with the first address of each of the node's blocks: what the node itself sends to
/// other nodes' pods comes from there, so that the answer takes the tunnel too.
pub(crate) async fn ensure_tunnel(
    netlink: &Netlink,
    config: &Config,
    uplink: u32,
    vni: u32,
    port: u16,
    mtu: u32,
) -> Result<(), Error> {
    let link = match netlink.find_link(TUNNEL).await? {
        Some(link) => link,
        None => {
            let builder = LinkVxlan::new(TUNNEL, vni).dev(uplink).port(port).learning(false);
            let builder = match config.node_ip {
                IpAddr::V4(local) => builder.local(local),
                IpAddr::V6(local) => builder.local6(local),
            };
            netlink
                .add_link(TUNNEL, builder.address(tunnel_mac(config.node_ip).to_vec()).mtu(mtu).build())
                .await?
        }
    };
    point("network: tunnel made");
    netlink.set_mtu(link.index, mtu).await?;
    for cidr in &config.pod_cidrs {
        netlink.replace_address(link.index, IpNet::from(cidr.network())).await?;
    }
    sysctl::prepare_tunnel(TUNNEL)?;
    netlink.set_up(link.index).await
}

/// Locally administered, unicast; the last four bytes of the node's address tell nodes of one network apart.
fn tunnel_mac(node: IpAddr) -> [u8; 6] {
    let last = match node {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => {
            let bytes = v6.octets();
            [bytes[12], bytes[13], bytes[14], bytes[15]]
        }
    };
    [0x0a, 0x48, last[0], last[1], last[2], last[3]]
}

/// Writes what leads to `nodes`, then removes what leads to any other.
pub(crate) async fn replace(netlink: &Netlink, config: &Config, nodes: &[NodeRoute]) -> Result<(), Error> {
    let (link, is_tunnel) = match config.mode {
        Mode::Vxlan { .. } => (netlink.link(TUNNEL).await?.index, true),
        Mode::Routes => (netlink.uplink(config.uplink.as_deref(), config.node_ip).await?.index, false),
    };
    let routes = plan_routes(config, link, is_tunnel, nodes);
    let mut outcome = Ok(());
    if is_tunnel {
        outcome = outcome.and(replace_tunnel_entries(netlink, link, nodes).await);
    }
    for route in &routes {
        outcome = outcome.and(netlink.replace_route(route).await);
    }
    let wanted: HashSet<IpNet> = routes.iter().map(|route| route.to).collect();
    for (to, message) in netlink.routes(link).await? {
        if !wanted.contains(&to) {
            debug!(%to, "route to a node that is gone");
            outcome = outcome.and(netlink.delete_route(message).await);
        }
    }
    outcome
}

/// One route a block. Over the tunnel the next hop is the first address of the block, where the other node's
/// device is.
fn plan_routes(config: &Config, link: u32, is_tunnel: bool, nodes: &[NodeRoute]) -> Vec<Route> {
    let blocks = nodes.iter().flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (node, cidr.trunc())));
    blocks
        .filter(|(node, to)| is_tunnel || node.node_ip.is_ipv4() == to.addr().is_ipv4())
        .map(|(node, to)| {
            let via = if is_tunnel { to.network() } else { node.node_ip };
            let same_family = |cidr: &&IpNet| cidr.addr().is_ipv4() == to.addr().is_ipv4();
            let own = config.pod_cidrs.iter().find(same_family).map(IpNet::network);
            let source = if is_tunnel { own } else { Some(config.node_ip) };
            Route { to, link, via: Some(via), source }
        })
        .collect()
}

async fn replace_tunnel_entries(netlink: &Netlink, link: u32, nodes: &[NodeRoute]) -> Result<(), Error> {
    let mut outcome = Ok(());
    let mut wanted: HashMap<Vec<u8>, HashSet<IpAddr>> = HashMap::new();
    for node in nodes {
        let mac = tunnel_mac(node.node_ip);
        outcome = outcome.and(netlink.replace_forwarding(link, &mac, node.node_ip).await);
        let addresses = wanted.entry(mac.to_vec()).or_default();
        addresses.insert(node.node_ip);
        for cidr in &node.pod_cidrs {
            outcome = outcome.and(netlink.replace_neighbour(link, cidr.network(), &mac).await);
            addresses.insert(cidr.network());
        }
    }
    for entry in netlink.neighbours(link).await? {
        let (address, mac) = neighbour_parts(&entry);
        let is_wanted =
            address.is_none_or(|address| wanted.get(&mac).is_some_and(|known| known.contains(&address)));
        if !is_wanted {
            outcome = outcome.and(netlink.delete_neighbour(entry).await);
        }
    }
    outcome
}
