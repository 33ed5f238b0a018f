//! The proxy itself: what is attached where, and the way from objects to map entries.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::IpAddr,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use hawser_ebpf_abi::{
    Addr, Frontend, FrontendKey, LAYOUT_VERSION, SETTINGS_SHORT_WAYS, SNAT_PORT_FIRST, Settings,
    affinity::is_fresh,
    flow::{LEAST_FLOW_SLOTS, MOST_FLOW_SLOTS},
};
use hawser_services::{EndpointSlice, Service};
use tracing::{debug, info, warn};

use crate::{
    attach::links_dir,
    desired::{HostPort, LoadBalancerMode, Node, Skipped, addr},
    error::Error,
    growth::Growth,
    kernel::{
        loader::{self, Build, Loaded, Maps, Programs},
        mount, ports, sys,
    },
    pods::{self, ShortWays},
    services::{ServiceObjects, Services, Wanted},
    sizes::{self, Sizes},
    table::{Bounds, Changes, KernelState, Table},
    view::{self, Counter, ExhaustedSource, FrontendView},
    xdp::{self, Xdp},
};

/// What the proxy needs to know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory for pins, the node's own. A bpffs is mounted on it when it is not inside of one.
    pub bpffs_dir: PathBuf,
    /// The node's cgroup2 directory: processes in it and below are served at their sockets.
    pub cgroup_dir: PathBuf,
    /// Interfaces by which packets from outside, and replies of other nodes, arrive: the uplink, and the tunnel
    /// device where one carries the replies.
    pub uplinks: Vec<String>,
    /// Addresses of the node. Node ports and host ports are served on each; the first of a family is the source of
    /// packets that the node sends on to backends of other nodes.
    pub node_addresses: Vec<IpAddr>,
    /// Node addresses at which node ports are served, as ranges and their lengths in bits; all where there are none.
    /// `127.0.0.0/8` stands for node ports on loopback.
    pub nodeport_addresses: Vec<(IpAddr, u8)>,
    pub node_name: String,
    /// The node's zone (its label `topology.kubernetes.io/zone`), for endpoints with hints. [`Proxy::set_zone`]
    /// changes it later.
    pub zone: Option<String>,
    /// How packet programs are attached.
    pub packet_attachment: PacketAttachment,
    /// How packets from outside reach backends of other nodes.
    pub load_balancer_mode: LoadBalancerMode,
    /// Whether packets to backends of other nodes, and back, are sent on at XDP.
    pub xdp: Xdp,
    /// Whether programs move packets to and from pods themselves, past the host's routes and rules.
    pub short_ways: ShortWays,
    /// Ranges of the cluster's pods: packets between them need no rule of the host. At most 4 are looked at.
    pub pod_ranges: Vec<(IpAddr, u8)>,
    /// With which maps are made; those of an earlier agent are taken as they are.
    pub sizes: Sizes,
    /// To which they grow. What finds no room then is reported, and the rest is served as it was.
    pub max_sizes: Sizes,
    /// Room for flows of the packet path, rounded up to a power of two between 65,536 and 4,194,304; 192 bytes each. A
    /// table of an earlier agent is taken as it is. One that is full refuses new flows, after it has given up those that
    /// nobody answered.
    pub max_flows: u32,
    /// Entries of a Maglev table for each backend of a service port that is served to the outside, at least. 0 for no
    /// tables: clients outside are spread by a plain hash.
    /// A service port whose table finds no room is reported, and spread by a plain hash.
    pub maglev_entries_per_backend: u32,
}

impl Config {
    /// A configuration with the defaults.
    pub fn new(bpffs_dir: PathBuf, cgroup_dir: PathBuf, node_name: String) -> Self {
        Self {
            bpffs_dir,
            cgroup_dir,
            uplinks: Vec::new(),
            node_addresses: Vec::new(),
            nodeport_addresses: Vec::new(),
            node_name,
            zone: None,
            packet_attachment: PacketAttachment::default(),
            load_balancer_mode: LoadBalancerMode::default(),
            xdp: Xdp::default(),
            short_ways: ShortWays::default(),
            pod_ranges: Vec::new(),
            sizes: Sizes::FIRST,
            max_sizes: Sizes::MOST,
            max_flows: sizes::flows_for_this_machine(),
            maglev_entries_per_backend: 200,
        }
    }
}

/// How packet programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PacketAttachment {
    /// tcx where the kernel has it (6.6), else `clsact`.
    #[default]
    Probe,
    /// `clsact`, which every kernel has.
    Classic,
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Frontends in the kernel after the sync.
    pub frontends: usize,
    pub frontends_written: usize,
    pub frontends_removed: usize,
    pub backends_written: usize,
    /// What the API asks for and the node does not do, in full, not only what is new.
    pub skipped: Vec<Skipped>,
}

/// The service proxy of a node. Dropping it leaves the datapath at work.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) config: Config,
    pub(crate) maps: Maps,
    pub(crate) programs: Programs,
    pub(crate) build: Build,
    pub(crate) growth: Growth,
    services: Services,
    /// `None` after a failed write: the next sync reads the maps again and repairs the difference.
    table: Option<Table>,
}

impl Proxy {
    /// Loads the programs and attaches them, or takes over what an earlier agent left, and replaces its programs in
    /// place where they are of another build. Call it in the node's network namespace.
    ///
    /// Services keep being served as they were until the first [`Proxy::sync`], which repairs what changed meanwhile.
    pub fn start(config: Config) -> Result<Self, Error> {
        mount::ensure_bpffs(&config.bpffs_dir)?;
        for dir in [maps_dir(&config.bpffs_dir), links_dir(&config.bpffs_dir)] {
            fs::create_dir_all(&dir).map_err(|source| Error::Prepare { path: dir, source })?;
        }
        ports::reserve_from(SNAT_PORT_FIRST).map_err(|source| Error::Kernel {
            what: "reserve the ports that the node sends on from",
            source,
        })?;
        let Loaded { maps, programs, adopted, kept, build } = loader::load(
            &maps_dir(&config.bpffs_dir),
            config.sizes,
            flow_slots(config.max_flows),
            xdp::is_wanted(&config),
        )?;
        let node = Node {
            name: config.node_name.clone(),
            zone: config.zone.clone(),
            addresses: config.node_addresses.clone(),
            node_port_ranges: config.nodeport_addresses.clone(),
            load_balancer_mode: config.load_balancer_mode,
        };
        let proxy = Self {
            config,
            maps,
            programs,
            build,
            services: Services::new(node),
            table: None,
            growth: Growth::default(),
        };
        pods::remove_stale(&proxy.maps.pods).map_err(|source| Error::Map { name: "PODS", source })?;
        proxy.write_settings()?;
        proxy.attach_all()?;
        info!(
            adopted,
            kept,
            refusal = if proxy.build.has_set_retval { "ECONNREFUSED" } else { "EPERM" },
            uplinks = ?proxy.config.uplinks,
            short_ways = ?proxy.config.short_ways,
            "service datapath is attached"
        );
        Ok(proxy)
    }

    /// Brings the kernel to what the objects say. Takes all objects, and removes what is of none of them; the first
    /// sync has to be this one. Returns an error when the kernel refused a write: the next call starts from what it
    /// holds.
    pub fn sync(
        &mut self,
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
        host_ports: &[HostPort],
    ) -> Result<SyncReport, Error> {
        let wanted = self.services.replace(services, slices, host_ports);
        let report = self.apply_and_report(wanted);
        // All of a cluster's services at once leave behind as much memory as they are kept in.
        sys::give_back_memory();
        report
    }

    /// Brings the kernel to what some services' objects say. Costs by what changed, not by what there is. Errors as
    /// those of [`Proxy::sync`]: what was passed is known then, and the next call writes it.
    pub fn sync_services(
        &mut self,
        changed: Vec<ServiceObjects>,
        host_ports: &[HostPort],
    ) -> Result<SyncReport, Error> {
        let wanted = self.services.replace_some(changed, host_ports);
        self.apply_and_report(wanted)
    }

    fn apply_and_report(&mut self, wanted: Wanted) -> Result<SyncReport, Error> {
        let mut report = self.apply(wanted)?;
        // What goes is removed last: there may be room now.
        let mut has_made_room = report.frontends_removed > 0;
        while let Some(lacking) = self.table.as_ref().map(Table::lacking)
            && lacking != Sizes::default()
            && (self.grow(lacking)? || std::mem::take(&mut has_made_room))
        {
            if let Some(table) = &mut self.table {
                table.grow(self.maps.sizes());
            }
            let more = self.apply(Wanted::new())?;
            report = SyncReport {
                frontends_written: report.frontends_written + more.frontends_written,
                frontends_removed: report.frontends_removed + more.frontends_removed,
                backends_written: report.backends_written + more.backends_written,
                ..more
            };
        }
        report.skipped.extend(self.services.skipped().cloned());
        report.skipped.sort();
        report.skipped.dedup();
        debug!(?report, "services are in the kernel");
        Ok(report)
    }

    /// Makes readiness of one of this node's pods take effect before the API hears of it.
    ///
    /// Holds until an EndpointSlice says the same. `None` where no service is concerned; before the first sync none
    /// is, and that sync takes the news into account.
    pub fn local_endpoint_changed(
        &mut self,
        pod_ip: IpAddr,
        ready: bool,
    ) -> Result<Option<SyncReport>, Error> {
        let wanted = self.services.set_local_readiness(pod_ip, ready);
        self.apply_if_any(wanted)
    }

    /// Takes the node's zone: services whose endpoints have hints for zones are computed again. `None` where there
    /// are no such services.
    pub fn set_zone(&mut self, zone: Option<String>) -> Result<Option<SyncReport>, Error> {
        let wanted = self.services.set_zone(zone);
        self.apply_if_any(wanted)
    }

    fn apply_if_any(&mut self, wanted: Wanted) -> Result<Option<SyncReport>, Error> {
        if wanted.is_empty() {
            return Ok(None);
        }
        self.apply_and_report(wanted).map(Some)
    }

    /// Takes all network namespaces, by cookie, whose sockets are left alone: their service addresses are translated
    /// at the packet, as those of a sandboxed runtime are. Sockets that are connected already stay as they are.
    ///
    /// The set outlives the agent. At most 4,096; more are an error.
    pub fn set_opted_out(&self, netns_cookies: &HashSet<u64>) -> Result<(), Error> {
        let failed = |source| Error::Map { name: "OPTED_OUT", source };
        let known: HashSet<u64> = self.maps.opted_out.keys().map_err(failed)?.into_iter().collect();
        for cookie in netns_cookies.difference(&known) {
            self.maps.opted_out.set(cookie, &1).map_err(failed)?;
        }
        for cookie in known.difference(netns_cookies) {
            self.maps.opted_out.remove(cookie).map_err(failed)?;
        }
        self.write_settings()
    }

    /// Forgets clients whose affinity has ended; returns how many. To be called now and then, once a minute or so:
    /// an entry that has ended counts for nothing, and takes a place until then. The table grows where three quarters
    /// of it are taken all the same.
    pub fn sweep_affinity(&mut self) -> Result<usize, Error> {
        let failed = |source| Error::Map { name: "AFFINITY", source };
        let now_ns = sys::now_ns();
        let mut swept = 0;
        let entries = self.maps.affinity.entries().map_err(failed)?;
        let known = entries.len();
        for (key, entry) in entries {
            // A client that comes back between the look and the removal is chosen for anew once more: its time was
            // over anyway.
            if !is_fresh(&entry, entry.timeout_seconds, now_ns) {
                self.maps.affinity.remove(&key).map_err(failed)?;
                swept += 1;
            }
        }
        if (known - swept) as u64 * 4 > u64::from(self.maps.affinity.capacity()) * 3 {
            self.grow(Sizes { affinities: 1, ..Sizes::default() })?;
        }
        Ok(swept)
    }

    /// Returns what the kernel's maps say, for people.
    pub fn dump_services(&self) -> Result<Vec<FrontendView>, Error> {
        view::frontends(&self.maps)
    }

    /// Returns all counters, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<Counter>, Error> {
        view::counters(&self.maps)
    }

    /// Returns the backends towards which source ports of the node have run out lately.
    pub fn exhausted_sources(&self) -> Result<Vec<ExhaustedSource>, Error> {
        view::exhausted(&self.maps, sys::boot_time_ns())
    }

    /// Runs a packet program over a packet, for tests and benchmarks. No interface sees the packet.
    pub fn test_run(&self, program: &'static str, packet: &[u8], repeat: u32) -> Result<sys::TestRun, Error> {
        let program = self.programs.get(program)?;
        sys::test_run(program, packet, repeat, None)
            .map_err(|source| Error::Kernel { what: "run a program", source })
    }

    /// The same for the program at XDP, and a packet that arrives at the interface `ifindex`, which runs it.
    pub fn test_run_xdp(&self, ifindex: u32, packet: &[u8]) -> Result<sys::TestRun, Error> {
        let program = self.programs.get(loader::XDP_PROGRAM)?;
        sys::test_run(program, packet, 1, Some(ifindex))
            .map_err(|source| Error::Kernel { what: "run a program", source })
    }

    /// A loaded program, for benchmarks that run it in ways of their own.
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        self.programs.get(name)
    }

    /// Writes what `wanted` changes. The report's `skipped` has what the tables had no room for, and no more.
    fn apply(&mut self, wanted: Wanted) -> Result<SyncReport, Error> {
        self.finish_growth()?;
        // Taken out: an error below leaves `None`, and the next call reads the maps again.
        let (mut table, wanted) = match self.table.take() {
            Some(table) => (table, wanted),
            None => {
                let kernel = read_kernel(&self.maps)?;
                let sizes = self.maps.sizes();
                let bounds = Bounds { sizes, maglev_entries: self.config.maglev_entries_per_backend };
                (Table::new(kernel, bounds), self.services.everything())
            }
        };
        let mut skipped: Vec<Skipped> = Vec::new();
        let services = &self.services;
        let live = std::cell::OnceCell::<HashSet<Addr>>::new();
        let is_live = |address: &Addr| live.get_or_init(|| services.live_addresses()).contains(address);
        let changes = table.apply(wanted, &is_live, Instant::now(), &mut skipped);
        self.write(&changes)?;
        let report = SyncReport {
            frontends: table.frontends(),
            frontends_written: changes.frontends.len(),
            frontends_removed: changes.old_frontends.len(),
            backends_written: changes.slots.len(),
            skipped,
        };
        self.table = Some(table);
        Ok(report)
    }

    fn write(&self, changes: &Changes) -> Result<(), Error> {
        let failed = |name| move |source| Error::Map { name, source };
        let new_ranges: Vec<_> = changes.new_ranges.iter().map(|range| (*range, 1)).collect();
        self.maps.source_ranges.set_all(&new_ranges).map_err(failed("SOURCE_RANGES"))?;
        self.maps.maglev.set_all(&changes.maglev).map_err(failed("MAGLEV"))?;
        self.maps.backends.set_all(&changes.slots).map_err(failed("BACKENDS"))?;
        self.maps.members.set_all(&changes.new_members).map_err(failed("MEMBERS"))?;
        // Before the frontends with their new generations: who sees one looks here once, and not again.
        for key in &changes.old_members {
            self.maps.members.remove(key).map_err(failed("MEMBERS"))?;
        }
        self.maps.frontends.set_all(&changes.frontends).map_err(failed("FRONTENDS"))?;
        for key in &changes.old_frontends {
            self.maps.frontends.remove(key).map_err(failed("FRONTENDS"))?;
        }
        for key in &changes.old_ranges {
            self.maps.source_ranges.remove(key).map_err(failed("SOURCE_RANGES"))?;
        }
        for id in &changes.old_services {
            self.maps.service_counters.remove(*id).map_err(failed("SERVICE_COUNTERS"))?;
        }
        Ok(())
    }

    fn write_settings(&self) -> Result<(), Error> {
        let node_netns_cookie = sys::netns_cookie()
            .map_err(|source| Error::Kernel { what: "read the network namespace's cookie", source })?;
        let first = |v6: bool| {
            self.config
                .node_addresses
                .iter()
                .find(|address| address.is_ipv6() == v6)
                .map(|address| addr(*address))
        };
        let opted_out = self.maps.opted_out.keys();
        let opted_out = opted_out.map_err(|source| Error::Map { name: "OPTED_OUT", source })?.len() as u32;
        let (pod_ranges, left_out) = pods::ranges(&self.config.pod_ranges);
        if left_out > 0 {
            warn!(left_out, "not all pod ranges fit: packets to some go by the host's routes");
        }
        let flags = if self.config.short_ways == ShortWays::Off { 0 } else { SETTINGS_SHORT_WAYS };
        let failed = |source| Error::Map { name: "SETTINGS", source };
        let known_seed = self.maps.settings.get(&0).map_err(failed)?.map_or(0, |known| known.flow_seed);
        let settings = Settings {
            layout_version: LAYOUT_VERSION,
            flags,
            opted_out,
            pad: 0,
            // Another one would hide all flows.
            flow_seed: if known_seed == 0 { random() } else { known_seed },
            node_netns_cookie,
            snat_v4: first(false).unwrap_or_default(),
            snat_v6: first(true).unwrap_or_default(),
            pod_ranges,
        };
        self.maps.settings.set(&0, &settings).map_err(failed)
    }
}

/// Returns the cookie of the network namespace that is pinned at `path`, for [`Proxy::set_opted_out`].
pub fn netns_cookie(path: &Path) -> Result<u64, Error> {
    sys::netns_cookie_of(path).map_err(|source| Error::Prepare { path: path.to_owned(), source })
}

fn flow_slots(max_flows: u32) -> u32 {
    max_flows.clamp(LEAST_FLOW_SLOTS, MOST_FLOW_SLOTS).next_power_of_two()
}

pub(crate) fn maps_dir(bpffs_dir: &Path) -> PathBuf {
    bpffs_dir.join("maps")
}

fn read_kernel(maps: &Maps) -> Result<KernelState, Error> {
    let failed = |name| move |source| Error::Map { name, source };
    let frontends: HashMap<FrontendKey, Frontend> =
        maps.frontends.entries().map_err(failed("FRONTENDS"))?.into_iter().collect();
    let members = maps.members.entries().map_err(failed("MEMBERS"))?.into_iter().collect();
    let ranges = maps.source_ranges.keys().map_err(failed("SOURCE_RANGES"))?;
    let mut slots = HashMap::new();
    for frontend in frontends.values() {
        for (base, count) in [(frontend.base, frontend.count), (frontend.wire_base, frontend.wire_count)] {
            for slot in base..base.saturating_add(count) {
                if let std::collections::hash_map::Entry::Vacant(entry) = slots.entry(slot)
                    && let Some(backend) = maps.backends.get(&slot).map_err(failed("BACKENDS"))?
                {
                    entry.insert(backend);
                }
            }
        }
    }
    let counted = maps.service_counters.keys().map_err(failed("SERVICE_COUNTERS"))?;
    Ok(KernelState { frontends, slots, members, ranges, counted })
}

/// Returns a number that nobody outside of this process can guess; never 0.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}
