//! rtnetlink in the words of this crate: each call makes one thing so, whatever was there.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo},
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};
use tokio::sync::Mutex;

use crate::Error;

/// Marks our routes (`ip route show proto 72`): those without a node any more are found by it.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(PROTOCOL_NUMBER);
/// Marks addresses that the node answers for on behalf of services (`ip address show proto 72`; since Linux 5.18).
const ADDRESS_PROTOCOL: AddressProtocol = AddressProtocol::Other(PROTOCOL_NUMBER);
const PROTOCOL_NUMBER: u8 = 72;

/// A link as far as it matters here.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// Six bytes for Ethernet; empty for links without.
    pub(crate) mac: Vec<u8>,
}

/// A way to a block or address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) link: u32,
    /// Next hop; `None` where `to` is on the link itself.
    pub(crate) via: Option<IpAddr>,
    /// Address that the node's own packets get.
    pub(crate) source: Option<IpAddr>,
}

/// A socket into the namespace in which it was opened. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Netlink {
    handle: Handle,
    /// Held while a list is read: a socket has one under way at a time, and the kernel refuses another (EBUSY).
    listing: Arc<Mutex<()>>,
}

impl Netlink {
    /// Must be called inside a tokio runtime, which then carries the socket.
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        // Ends when the last handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle, listing: Arc::default() })
    }

    /// `None` where there is no such link.
    pub(crate) async fn find_link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut links = Box::pin(self.handle.link().get().match_name(name.to_owned()).execute());
        match links.try_next().await {
            Ok(found) => Ok(found.map(|message| link_of(&message))),
            Err(error) if is(&error, libc_code::ENODEV) => Ok(None),
            Err(source) => Err(Error::Netlink { action: format!("look up link {name}"), source }),
        }
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Link, Error> {
        self.find_link(name).await?.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// The link of that name, or the one that carries `address`.
    pub(crate) async fn uplink(&self, name: Option<&str>, address: IpAddr) -> Result<Link, Error> {
        if let Some(name) = name {
            return self.link(name).await;
        }
        let failed = |source| Error::Netlink { action: "list addresses".into(), source };
        let addresses: Vec<_> = {
            let _alone = self.listing.lock().await;
            self.handle.address().get().execute().try_collect().await.map_err(failed)?
        };
        let carries =
            |message: &&AddressMessage| message.attributes.contains(&AddressAttribute::Address(address));
        match addresses.iter().find(carries) {
            Some(message) => self.link_by_index(message.header.index).await,
            None => Err(Error::NoUplink(address)),
        }
    }

    async fn link_by_index(&self, index: u32) -> Result<Link, Error> {
        let mut links = Box::pin(self.handle.link().get().match_index(index).execute());
        let found = links.try_next().await.map_err(|source| {
            let action = format!("look up link {index}");
            Error::Netlink { action, source }
        })?;
        found.map(|message| link_of(&message)).ok_or_else(|| Error::NoLink(index.to_string()))
    }

    pub(crate) async fn add_link(&self, name: &str, message: LinkMessage) -> Result<Link, Error> {
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|source| Error::Netlink { action: format!("add link {name}"), source })?;
        self.link(name).await
    }

    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.find_link(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if !is(&error, libc_code::ENODEV) => {
                Err(Error::Netlink { action: format!("delete link {name}"), source: error })
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn set_up(&self, link: u32) -> Result<(), Error> {
        self.change_link(link, LinkUnspec::new_with_index(link).up(), "set up").await
    }

    pub(crate) async fn set_mac(&self, link: u32, mac: &[u8; 6]) -> Result<(), Error> {
        self.change_link(link, LinkUnspec::new_with_index(link).address(mac.to_vec()), "set the address of")
            .await
    }

    pub(crate) async fn set_mtu(&self, link: u32, mtu: u32) -> Result<(), Error> {
        self.change_link(link, LinkUnspec::new_with_index(link).mtu(mtu), "set the MTU of").await
    }

    async fn change_link(
        &self,
        link: u32,
        change: LinkMessageBuilder<LinkUnspec>,
        what: &str,
    ) -> Result<(), Error> {
        let changed = self.handle.link().set(change.build()).execute().await;
        changed.map_err(|source| Error::Netlink { action: format!("{what} link {link}"), source })
    }

    pub(crate) async fn replace_address(&self, link: u32, address: IpNet) -> Result<(), Error> {
        let request = self.handle.address().add(link, address.addr(), address.prefix_len()).replace();
        let action = || format!("add address {address} to link {link}");
        request.execute().await.map_err(|source| Error::Netlink { action: action(), source })
    }

    /// An address for this node's own use: never a source for other destinations.
    pub(crate) async fn replace_host_address(&self, link: u32, address: IpAddr) -> Result<(), Error> {
        let whole = IpNet::from(address);
        let mut request = self.handle.address().add(link, address, whole.prefix_len()).replace();
        request.message_mut().header.scope = AddressScope::Host;
        let action = || format!("add address {address} to link {link}");
        request.execute().await.map_err(|source| Error::Netlink { action: action(), source })
    }

    /// An address that the node answers for and never uses as a source, until `lifetime` is over.
    pub(crate) async fn replace_lent_address(
        &self,
        link: u32,
        address: IpAddr,
        lifetime: Duration,
    ) -> Result<(), Error> {
        let whole = IpNet::from(address);
        let mut request = self.handle.address().add(link, address, whole.prefix_len()).replace();
        let message = request.message_mut();
        let mut life = CacheInfo::default();
        // Preferred for no time at all: IPv6 does not choose a deprecated address.
        life.ifa_valid = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(life));
        message.attributes.push(AddressAttribute::Protocol(ADDRESS_PROTOCOL));
        if address.is_ipv4() {
            // What IPv4 does not choose is an address of a narrower scope.
            message.header.scope = AddressScope::Host;
        } else {
            // Whoever had it before may still answer: waiting for that to end would be a gap.
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        }
        let action = || format!("add address {address} to link {link}");
        request.execute().await.map_err(|source| Error::Netlink { action: action(), source })
    }

    /// The addresses of a link, each with its message and whether it was lent to it.
    pub(crate) async fn addresses(&self, link: u32) -> Result<Vec<(IpAddr, AddressMessage, bool)>, Error> {
        let failed = |source| Error::Netlink { action: "list addresses".into(), source };
        let mut found = Vec::new();
        let _alone = self.listing.lock().await;
        let mut addresses = Box::pin(self.handle.address().get().set_link_index_filter(link).execute());
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let is_lent = message.attributes.contains(&AddressAttribute::Protocol(ADDRESS_PROTOCOL));
            if let Some(address) = address {
                found.push((address, message, is_lent));
            }
        }
        Ok(found)
    }

    /// Removes an address that [`Netlink::addresses`] found; one that is gone meanwhile is no error.
    pub(crate) async fn delete_found_address(&self, message: AddressMessage) -> Result<(), Error> {
        match self.handle.address().del(message).execute().await {
            Err(error) if !is(&error, libc_code::EADDRNOTAVAIL) => {
                Err(Error::Netlink { action: "delete an address".into(), source: error })
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn delete_address(&self, address: IpAddr) -> Result<(), Error> {
        let failed = |source| Error::Netlink { action: format!("delete address {address}"), source };
        let found: Vec<_> = {
            let _alone = self.listing.lock().await;
            let request = self.handle.address().get().set_address_filter(address);
            request.execute().try_collect().await.map_err(failed)?
        };
        for message in found {
            self.handle.address().del(message).execute().await.map_err(failed)?;
        }
        Ok(())
    }

    /// A neighbour that is known for good: no question is asked on the wire.
    pub(crate) async fn replace_neighbour(
        &self,
        link: u32,
        address: IpAddr,
        mac: &[u8],
    ) -> Result<(), Error> {
        let request = self.handle.neighbours().add(link, address).link_layer_address(mac).replace();
        let action = || format!("add neighbour {address} on link {link}");
        request.execute().await.map_err(|source| Error::Netlink { action: action(), source })
    }

    /// Tells a VXLAN device at which node a link-layer address is.
    pub(crate) async fn replace_forwarding(&self, link: u32, mac: &[u8], node: IpAddr) -> Result<(), Error> {
        let mut request = self.handle.neighbours().add_bridge(link, mac).destination(node).replace();
        // NTF_SELF: the entry is the device's own, not a bridge's above it.
        request.message_mut().header.flags = rtnetlink::packet_route::neighbour::NeighbourFlags::Own;
        let action = || format!("add forwarding entry for {node} on link {link}");
        request.execute().await.map_err(|source| Error::Netlink { action: action(), source })
    }

    /// The permanent neighbours and forwarding entries of a link.
    pub(crate) async fn neighbours(&self, link: u32) -> Result<Vec<NeighbourMessage>, Error> {
        let mut found = Vec::new();
        let _alone = self.listing.lock().await;
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut request = self.handle.neighbours().get();
            request.message_mut().header.family = family;
            let mut entries = Box::pin(request.execute());
            let failed = |source| Error::Netlink { action: "list neighbours".into(), source };
            while let Some(entry) = entries.try_next().await.map_err(failed)? {
                if entry.header.ifindex == link && entry.header.state == NeighbourState::Permanent {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    pub(crate) async fn delete_neighbour(&self, entry: NeighbourMessage) -> Result<(), Error> {
        match self.handle.neighbours().del(entry).execute().await {
            Err(error) if !is(&error, libc_code::ENOENT) => {
                Err(Error::Netlink { action: "delete a neighbour".into(), source: error })
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let action = || format!("add route to {}", route.to);
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.to.addr(), route.to.prefix_len())
            .map_err(|_| Error::NoLink(action()))?
            .output_interface(route.link)
            .protocol(PROTOCOL);
        builder = match route.via {
            // The next hop need not be on a network of the link's: tunnels and pod links have none.
            Some(via) => builder.gateway(via).map_err(|_| Error::NoLink(action()))?.onlink(),
            None => builder.scope(RouteScope::Link),
        };
        if let Some(source) = route.source {
            builder = builder.pref_source(source).map_err(|_| Error::NoLink(action()))?;
        }
        let added = self.handle.route().add(builder.build()).replace().execute().await;
        added.map_err(|source| Error::Netlink { action: action(), source })
    }

    pub(crate) async fn replace_unreachable(&self, range: IpNet) -> Result<(), Error> {
        let added = self.handle.route().add(unreachable(range)).replace().execute().await;
        added.map_err(|source| Error::Netlink { action: format!("add unreachable route to {range}"), source })
    }

    pub(crate) async fn delete_unreachable(&self, range: IpNet) -> Result<(), Error> {
        match self.handle.route().del(unreachable(range)).execute().await {
            Err(error) if !is(&error, libc_code::ESRCH) => {
                Err(Error::Netlink { action: format!("delete unreachable route to {range}"), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Our routes over one link.
    pub(crate) async fn routes(&self, link: u32) -> Result<Vec<(IpNet, RouteMessage)>, Error> {
        let mut found = Vec::new();
        let _alone = self.listing.lock().await;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let mut routes = Box::pin(self.handle.route().get(request).execute());
            let failed = |source| Error::Netlink { action: "list routes".into(), source };
            while let Some(route) = routes.try_next().await.map_err(failed)? {
                let is_ours = route.header.protocol == PROTOCOL
                    && route.attributes.contains(&RouteAttribute::Oif(link));
                if let (true, Some(to)) = (is_ours, destination(&route)) {
                    found.push((to, route));
                }
            }
        }
        Ok(found)
    }

    pub(crate) async fn delete_route(&self, route: RouteMessage) -> Result<(), Error> {
        match self.handle.route().del(route).execute().await {
            Err(error) if !is(&error, libc_code::ESRCH) => {
                Err(Error::Netlink { action: "delete a route".into(), source: error })
            }
            _ => Ok(()),
        }
    }
}

/// The link-layer address of a neighbour, and where a VXLAN device sends it.
pub(crate) fn neighbour_parts(entry: &NeighbourMessage) -> (Option<IpAddr>, Vec<u8>) {
    use rtnetlink::packet_route::neighbour::NeighbourAddress;
    let (mut address, mut mac) = (None, Vec::new());
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac.clone_from(bytes),
            _ => {}
        }
    }
    (address, mac)
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link { name: String::new(), index: message.header.index, mtu: 1500, mac: Vec::new() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            _ => {}
        }
    }
    link
}

/// Tells whether an address is the link's for good: IPv6 has some that change by themselves (RFC 8981).
pub(crate) fn stays(address: IpAddr, message: &AddressMessage) -> bool {
    let passing = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed;
    let is_passing = |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.intersects(passing));
    address.is_ipv4() || !message.attributes.iter().any(is_passing)
}

fn unreachable(range: IpNet) -> RouteMessage {
    match range {
        IpNet::V4(range) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .kind(RouteType::Unreachable)
            .protocol(PROTOCOL)
            .build(),
        IpNet::V6(range) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(range.network(), range.prefix_len())
            .kind(RouteType::Unreachable)
            .protocol(PROTOCOL)
            .build(),
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let length = route.header.destination_prefix_length;
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => IpNet::new((*v4).into(), length).ok(),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => IpNet::new((*v6).into(), length).ok(),
        _ => None,
    })
}

fn is(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -code)
}

/// Error numbers as netlink answers carry them (asm-generic/errno.h).
mod libc_code {
    use nix::libc;

    pub(super) const EADDRNOTAVAIL: i32 = libc::EADDRNOTAVAIL;
    pub(super) const ENODEV: i32 = libc::ENODEV;
    pub(super) const ENOENT: i32 = libc::ENOENT;
    pub(super) const ESRCH: i32 = libc::ESRCH;
}
