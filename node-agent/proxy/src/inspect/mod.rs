//! Looking at the datapath from outside: counters, how full the maps are, flows, and what would happen to a packet.
//!
//! Everything is read from the pinned maps, so it works while no agent runs, and beside one that does. Nothing is
//! written. A read is no snapshot: entries that change meanwhile may be seen as they were or as they are.

mod explain;
mod flows;

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use hawser_ebpf_abi::{
    AffinityKey, Flow, FlowBucket, LAYOUT_VERSION, RangeKey, RangeSubject, Settings,
    affinity::is_fresh,
    flow::{FLOW_WAYS, FlowRef},
    ranges::RANGE_LOOKUP_BITS,
};

pub use self::{
    explain::{Client, Explanation, Outcome, Query},
    flows::{FlowState, FlowView},
};
use explain::Known;

use crate::{
    desired,
    error::Error,
    kernel::{
        loader::{Maps, open_maps},
        map::Map,
        sys,
    },
    proxy::maps_dir,
    sizes::Sizes,
    view::{self, Counter, FrontendView},
};

/// The pinned datapath of a node.
#[derive(Debug)]
pub struct Datapath {
    maps: Maps,
    flows: Map<u32, Flow>,
    flow_index: Map<u32, FlowBucket>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapUsage {
    pub name: &'static str,
    pub entries: u64,
    pub capacity: u64,
    /// A larger one takes its place when it is full.
    pub grows: bool,
}

impl Datapath {
    /// Opens what is pinned below `bpffs_dir`.
    ///
    /// Fails where nothing is, and where another version of the agent made it.
    pub fn open(bpffs_dir: &Path) -> Result<Self, Error> {
        let dir = maps_dir(bpffs_dir);
        let maps = open_maps(&dir)?;
        let found = settings(&maps)?.layout_version;
        if found != LAYOUT_VERSION {
            return Err(Error::Layout { found, expected: LAYOUT_VERSION, path: dir });
        }
        let flows = Map::new(pinned(&dir, "FLOWS")?).map_err(failed("FLOWS"))?;
        let flow_index = Map::new(pinned(&dir, "FLOW_INDEX")?).map_err(failed("FLOW_INDEX"))?;
        Ok(Self { maps, flows, flow_index })
    }

    /// All counters, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<Counter>, Error> {
        view::counters(&self.maps)
    }

    /// All frontends, in the order of their addresses.
    pub fn services(&self) -> Result<Vec<FrontendView>, Error> {
        view::frontends(&self.maps)
    }

    /// Flows that have not expired, in the order of their clients.
    pub fn flows(&self) -> Result<Vec<FlowView>, Error> {
        let now_ns = sys::coarse_now_ns().map_err(failed("FLOWS"))?;
        let mut views: Vec<FlowView> = Vec::new();
        self.flows.visit(|_, flow| views.extend(flows::view(flow, now_ns))).map_err(failed("FLOWS"))?;
        views.sort();
        Ok(views)
    }

    /// Entries and capacities of the maps that can be full. Reads them all, and keeps no more than the frontends.
    pub fn usage(&self) -> Result<Vec<MapUsage>, Error> {
        let frontends = self.maps.frontends.entries().map_err(failed("FRONTENDS"))?;
        // Frontends of one service port share their ranges, so the highest end is a bound, and each is counted once.
        let ranges: std::collections::BTreeSet<(u32, u32)> = frontends
            .iter()
            .flat_map(|(_, it)| [(it.base, it.count), (it.wire_base, it.wire_count)])
            .filter(|(_, count)| *count > 0)
            .collect();
        let slots = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
        let members = self.maps.members.entries().map_err(failed("MEMBERS"))?.len();
        let now_ns = sys::coarse_now_ns().map_err(failed("FLOWS"))?;
        let (mut flows, mut index) = (0, 0);
        self.flows
            .visit(|_, flow| flows += u64::from(flows::view(flow, now_ns).is_some()))
            .map_err(failed("FLOWS"))?;
        self.flow_index
            .visit(|_, bucket| index += bucket.entries.iter().filter(|it| **it != FlowRef::FREE).count())
            .map_err(failed("FLOW_INDEX"))?;
        let ways = self.flow_index.capacity() * FLOW_WAYS as u32;
        let sizes = self.maps.sizes();
        let usage = |name, entries, capacity: u32, most: u32| MapUsage {
            name,
            entries,
            capacity: u64::from(capacity),
            grows: capacity < most,
        };
        Ok(vec![
            usage("frontends", frontends.len() as u64, sizes.frontends, Sizes::MOST.frontends),
            usage("backends", slots, sizes.backends, Sizes::MOST.backends),
            usage("udp_backends", members as u64, sizes.members, Sizes::MOST.members),
            usage("flows", flows, self.flows.capacity(), 0),
            usage("flow_index", index as u64, ways, 0),
        ])
    }

    /// Says what the programs would do with a connection or datagram, and why.
    pub fn explain(&self, query: &Query) -> Result<Explanation, Error> {
        let settings = settings(&self.maps)?;
        let found = self.services()?;
        let frontend = explain::frontend_of(query, &found);
        let known = frontend.map(|frontend| self.known(query.client, frontend, &settings)).transpose()?;
        explain::explain(query, &settings, &found, known.unwrap_or_default())
    }

    /// Looks a client up where the programs do.
    fn known(&self, client: Client, frontend: &FrontendView, settings: &Settings) -> Result<Known, Error> {
        let addr = match client {
            Client::Host => None,
            Client::Pod(address) | Client::Outside(address) => Some(desired::addr(address)),
        };
        let in_ranges = match addr {
            None => frontend.node_in_ranges,
            Some(addr) => {
                let subject = RangeSubject { list: frontend.range_list, addr };
                let key = RangeKey { prefix_len: RANGE_LOOKUP_BITS, subject };
                self.maps.source_ranges.get(&key).map_err(failed("SOURCE_RANGES"))?.is_some()
            }
        };
        let key = match (client, addr) {
            (Client::Outside(_), Some(addr)) => Some(AffinityKey::address(addr, frontend.service_id)),
            (Client::Host, _) => Some(AffinityKey::netns(settings.node_netns_cookie, frontend.service_id)),
            // A pod is its network namespace, which is not known here.
            _ => None,
        };
        let entry = match key {
            Some(key) => self.maps.affinity.get(&key).map_err(failed("AFFINITY"))?,
            None => None,
        };
        let entry = entry.filter(|entry| is_fresh(entry, frontend.affinity_seconds, sys::now_ns()));
        let kept = entry.map(|entry| {
            SocketAddr::new(desired::ip(&entry.backend.addr), u16::from_be(entry.backend.port_be))
        });
        Ok(Known { in_ranges, kept })
    }
}

fn settings(maps: &Maps) -> Result<Settings, Error> {
    Ok(maps.settings.get(&0).map_err(failed("SETTINGS"))?.unwrap_or_default())
}

fn pinned(dir: &Path, name: &'static str) -> Result<OwnedFd, Error> {
    let path: PathBuf = dir.join(name);
    let fd = sys::obj_get(&path).map_err(failed(name))?;
    fd.ok_or_else(|| failed(name)(io::ErrorKind::NotFound.into()))
}

fn failed(name: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Map { name, source }
}
