//! What the kernel holds, for people: the services and the counters, read from the pinned maps.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use hawser_ebpf_abi::{
    IPPROTO_UDP, reason,
    service::{
        BACKEND_LOCAL, FRONTEND_DEPARTED, FRONTEND_DSR, FRONTEND_NODE_IN_RANGES, FRONTEND_NODE_ONLY,
        FRONTEND_SOURCE_RANGES, FRONTEND_WIRE, FRONTEND_WIRE_LOCAL,
    },
};

use crate::{desired::ip, error::Error, kernel::loader::Maps};

/// One frontend and its backends, as the programs see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendView {
    pub address: SocketAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    pub service_id: u32,
    pub generation: u32,
    /// For clients inside the cluster.
    pub backends: Vec<SocketAddr>,
    /// For clients outside; empty when the frontend is not served to them.
    pub wire_backends: Vec<SocketAddr>,
    /// Those of both that run on this node.
    pub local_backends: Vec<SocketAddr>,
    /// Served to clients outside at all.
    pub served_to_wire: bool,
    /// Served to the node's own processes alone (loopback node ports).
    pub node_only: bool,
    /// The address of a UDP backend that is gone, kept for its connected clients.
    pub departed: bool,
    /// `externalTrafficPolicy: Local`.
    pub wire_local: bool,
    /// Timeout of `sessionAffinity: ClientIP`; 0 for none.
    pub affinity_seconds: u32,
    /// Entries of the Maglev table; 0 for none.
    pub maglev_entries: u32,
    /// `loadBalancerSourceRanges` are enforced.
    pub source_ranges: bool,
    /// The list of those.
    pub(crate) range_list: u32,
    /// One of the node's addresses is in them.
    pub(crate) node_in_ranges: bool,
    /// Packets for backends of other nodes are sent there as they are (direct server return).
    pub direct_server_return: bool,
    /// Clients of its service port that were given a backend: connections, flows, and UDP sockets each time that they
    /// choose.
    pub chosen: u64,
    /// Clients of its service port that were refused for want of a backend.
    pub refused: u64,
}

impl fmt::Display for FrontendView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} ->", self.address, self.protocol)?;
        for backend in &self.backends {
            write!(f, " {backend}")?;
        }
        if self.backends.is_empty() {
            f.write_str(" refused")?;
        }
        if self.departed {
            f.write_str(" (departed backend)")?;
        }
        Ok(())
    }
}

/// A counter and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: &'static str,
    pub value: u64,
}

/// A backend towards which all source ports of the node were in use when a flow needed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExhaustedSource {
    pub backend: SocketAddr,
    /// The node's address that has no port left.
    pub source: IpAddr,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Seconds since the last fruitless search, by the kernel's clock.
    pub seconds_ago: u64,
}

/// Returns all frontends below `bpffs_dir`, in the order of their addresses. Works without a running proxy.
pub fn dump_services(bpffs_dir: &Path) -> Result<Vec<FrontendView>, Error> {
    frontends(&crate::kernel::loader::open_maps(&crate::proxy::maps_dir(bpffs_dir))?)
}

pub(crate) fn exhausted(maps: &Maps, now_ns: u64) -> Result<Vec<ExhaustedSource>, Error> {
    let entries = maps.exhausted.entries().map_err(|source| Error::Map { name: "EXHAUSTED", source })?;
    let mut found: Vec<_> = entries
        .into_iter()
        .map(|(key, until_ns)| ExhaustedSource {
            backend: SocketAddr::new(ip(&key.source), u16::from_be(key.source_port_be)),
            source: ip(&key.destination),
            protocol: if key.protocol == IPPROTO_UDP { "UDP" } else { "TCP" },
            seconds_ago: now_ns.saturating_sub(until_ns) / 1_000_000_000,
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

pub(crate) fn frontends(maps: &Maps) -> Result<Vec<FrontendView>, Error> {
    let entries = maps.frontends.entries().map_err(|source| Error::Map { name: "FRONTENDS", source })?;
    let backends = |base: u32, count: u32| -> Result<Vec<(SocketAddr, bool)>, Error> {
        (base..base.saturating_add(count))
            .map(|slot| {
                let backend =
                    maps.backends.get(&slot).map_err(|source| Error::Map { name: "BACKENDS", source })?;
                let backend = backend.unwrap_or_default();
                let address = SocketAddr::new(ip(&backend.addr), u16::from_be(backend.port_be));
                Ok((address, backend.flags & BACKEND_LOCAL != 0))
            })
            .collect()
    };
    let addresses =
        |slots: &[(SocketAddr, bool)]| slots.iter().map(|(address, _)| *address).collect::<Vec<_>>();
    let mut views = Vec::with_capacity(entries.len());
    for (key, frontend) in entries {
        let counted = maps.service_counters.get(frontend.service_id);
        let counted = counted.map_err(|source| Error::Map { name: "SERVICE_COUNTERS", source })?;
        // In the order of `ServiceCounters`.
        let [chosen, refused] = counted.unwrap_or_default();
        let served_to_wire = frontend.flags & FRONTEND_WIRE != 0;
        let inside = backends(frontend.base, frontend.count)?;
        let wire =
            if served_to_wire { backends(frontend.wire_base, frontend.wire_count)? } else { Vec::new() };
        let local: BTreeSet<SocketAddr> = inside
            .iter()
            .chain(&wire)
            .filter(|(_, is_local)| *is_local)
            .map(|(address, _)| *address)
            .collect();
        views.push(FrontendView {
            address: SocketAddr::new(ip(&key.addr), u16::from_be(key.port_be)),
            protocol: if key.protocol == IPPROTO_UDP { "UDP" } else { "TCP" },
            service_id: frontend.service_id,
            generation: frontend.generation,
            backends: addresses(&inside),
            wire_backends: addresses(&wire),
            local_backends: local.into_iter().collect(),
            served_to_wire,
            node_only: frontend.flags & FRONTEND_NODE_ONLY != 0,
            departed: frontend.flags & FRONTEND_DEPARTED != 0,
            wire_local: frontend.flags & FRONTEND_WIRE_LOCAL != 0,
            affinity_seconds: frontend.affinity_seconds,
            maglev_entries: frontend.maglev_len,
            source_ranges: frontend.flags & FRONTEND_SOURCE_RANGES != 0,
            range_list: frontend.source_ranges,
            node_in_ranges: frontend.flags & FRONTEND_NODE_IN_RANGES != 0,
            direct_server_return: frontend.flags & FRONTEND_DSR != 0,
            chosen,
            refused,
        });
    }
    views.sort_by_key(|view| (view.address, view.protocol));
    Ok(views)
}

pub(crate) fn counters(maps: &Maps) -> Result<Vec<Counter>, Error> {
    (0u32..)
        .zip(reason::NAMES)
        .map(|(index, name)| {
            let value = maps.counters.get(index).map_err(|source| Error::Map { name: "COUNTERS", source })?;
            let [value] = value.unwrap_or_default();
            Ok(Counter { name, value })
        })
        .collect()
}
