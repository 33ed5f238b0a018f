use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{
    Addr, Backend, Endpoint, Frontend, FrontendKey, IPPROTO_TCP, IPPROTO_UDP, MaglevBlock, MemberKey,
    RangeKey, maglev, service::*, v4_mapped,
};

use super::Random;
use crate::{
    desired::{DesiredFrontend, Kind, Name, ServicePort, ServicePortName, Set, Skipped},
    ranges::{Ranges, SourceRange},
    sizes::Sizes,
    table::{Bounds, Changes, KernelState, Table},
};

/// The maps, as the kernel would hold them.
#[derive(Clone, Default)]
pub(super) struct Maps {
    pub(super) frontends: HashMap<FrontendKey, Frontend>,
    slots: HashMap<u32, Backend>,
    members: HashMap<MemberKey, u32>,
    maglev: HashMap<u32, MaglevBlock>,
    ranges: HashSet<RangeKey>,
}

impl Maps {
    /// Applies changes one write at a time, and calls `between` after each.
    pub(super) fn write(&mut self, changes: &Changes, mut between: impl FnMut(&Self)) {
        for range in &changes.new_ranges {
            assert!(self.ranges.insert(*range), "wrote what was there");
            between(self);
        }
        for (block, content) in &changes.maglev {
            self.maglev.insert(*block, *content);
            between(self);
        }
        for (slot, backend) in &changes.slots {
            self.slots.insert(*slot, *backend);
            between(self);
        }
        for (member, sets) in &changes.new_members {
            self.members.insert(*member, *sets);
            between(self);
        }
        for (key, frontend) in &changes.frontends {
            self.frontends.insert(*key, *frontend);
            between(self);
        }
        for key in &changes.old_frontends {
            assert!(self.frontends.remove(key).is_some(), "removed what was not there");
            between(self);
        }
        for member in &changes.old_members {
            assert!(self.members.remove(member).is_some(), "removed what was not there");
            between(self);
        }
        for range in &changes.old_ranges {
            assert!(self.ranges.remove(range), "removed what was not there");
            between(self);
        }
    }

    pub(super) fn backends(
        &self,
        key: &FrontendKey,
        set: impl Fn(&Frontend) -> (u32, u32),
    ) -> Option<Vec<Backend>> {
        let (base, count) = set(self.frontends.get(key)?);
        Some((base..base + count).map(|slot| self.slots[&slot]).collect())
    }

    /// Returns the backends that the entries of a frontend's Maglev table lead to, in their order.
    pub(super) fn table(&self, key: &FrontendKey) -> Option<Vec<Backend>> {
        let frontend = self.frontends.get(key)?;
        let entries = (0..frontend.maglev_len).map(|hash| {
            let (block, entry) = maglev::entry_of(frontend, hash);
            let place = u32::from(self.maglev[&block].places[entry as usize]);
            assert!(place < frontend.wire_count, "a place behind the backends");
            self.slots[&(frontend.wire_base + place)]
        });
        Some(entries.collect())
    }

    /// Returns the source ranges of a frontend.
    pub(super) fn source_ranges(&self, key: &FrontendKey) -> Option<Ranges> {
        let list = self.frontends.get(key)?.source_ranges;
        let ranges = self.ranges.iter().filter(|range| range.subject.list == list);
        Some(ranges.map(|range| SourceRange::new(range.subject.addr, range.prefix_len - 32)).collect())
    }

    pub(super) fn kernel_state(&self) -> KernelState {
        KernelState {
            frontends: self.frontends.clone(),
            slots: self.slots.clone(),
            members: self.members.clone(),
            ranges: self.ranges.iter().copied().collect(),
            counted: Vec::new(),
        }
    }
}

pub(super) fn inside(frontend: &Frontend) -> (u32, u32) {
    (frontend.base, frontend.count)
}

pub(super) fn wire(frontend: &Frontend) -> (u32, u32) {
    (frontend.wire_base, frontend.wire_count)
}

fn name(number: u64, protocol: u8) -> ServicePortName {
    ServicePortName {
        namespace: "default".into(),
        name: format!("s{number}").into(),
        port: "".into(),
        protocol,
        is_v6: false,
        kind: Kind::Service,
    }
}

fn key(number: u64, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey { addr: v4_mapped([10, 96, 0, number as u8]), port_be: port.to_be(), protocol, pad: 0 }
}

fn backend(number: u64) -> Backend {
    Backend {
        addr: v4_mapped([10, 0, 0, number as u8]),
        port_be: 80u16.to_be(),
        flags: (number % 2) as u8,
        pad: 0,
    }
}

fn port(number: u64, protocol: u8, backends: &[u64]) -> ServicePort {
    let frontend = DesiredFrontend { inside: Set::Cluster, wire: Set::Local, flags: FRONTEND_WIRE };
    let cluster: Box<[Backend]> = backends.iter().map(|number| backend(*number)).collect();
    let local = cluster.iter().copied().filter(|backend| backend.flags & BACKEND_LOCAL != 0).collect();
    let frontends = [(key(number, 80, protocol), frontend)].into_iter().collect();
    ServicePort { frontends, cluster, local, ..ServicePort::default() }
}

pub(super) const ROOMY: Sizes = Sizes {
    frontends: 100,
    backends: 100,
    members: 1000,
    maglev_blocks: 100_000,
    affinities: 1,
    source_ranges: 100,
};

/// Bounds with the tables of Maglev that most tests have.
pub(super) const fn bounds(sizes: Sizes) -> Bounds {
    Bounds { sizes, maglev_entries: 20 }
}

fn new_table(kernel: KernelState, slots: u32, frontends: u32) -> Table {
    Table::new(kernel, bounds(Sizes { backends: slots, frontends, ..ROOMY }))
}

/// A port with some of what a service may have besides backends.
fn port_with(random: &mut Random, number: u64, protocol: u8, backends: &[u64]) -> ServicePort {
    let mut port = port(number, protocol, backends);
    if random.below(3) == 0 {
        port.affinity_seconds = 10;
    }
    // Few different lists: ports share them.
    let ranges = (0..random.below(3)).map(|n| SourceRange::new(v4_mapped([10, n as u8, 0, 0]), 112));
    port.source_ranges = ranges.collect();
    for frontend in port.frontends.values_mut() {
        if !port.source_ranges.is_empty() {
            frontend.flags |= FRONTEND_SOURCE_RANGES;
        }
        if random.below(4) == 0 {
            frontend.wire = Set::Cluster;
        }
    }
    port
}

fn dead(_: &Addr) -> bool {
    false
}

fn apply(
    table: &mut Table,
    wanted: impl IntoIterator<Item = (ServicePortName, Option<ServicePort>)>,
    now: Instant,
) -> (Changes, Vec<Skipped>) {
    let mut skipped = Vec::new();
    let wanted = wanted.into_iter().map(|(name, port)| (Name::new(name), port)).collect();
    let changes = table.apply(wanted, &dead, now, &mut skipped);
    (changes, skipped)
}

/// Whatever history of services there is: the maps say what is wanted, at every moment each frontend leads to its old
/// or its new backends and never to a mixture, and a restart writes nothing.
#[test]
fn maps_follow_any_history_and_a_restart_changes_nothing() {
    for seed in 1..40 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut now = Instant::now();
        let mut maps = Maps::default();
        let mut table = new_table(maps.kernel_state(), 400, 1000);
        let mut wanted: BTreeMap<ServicePortName, ServicePort> = BTreeMap::new();
        for _ in 0..60 {
            let mut step = BTreeMap::new();
            for _ in 0..1 + random.below(4) {
                let number = 1 + random.below(8);
                let protocol = if random.below(2) == 0 { IPPROTO_TCP } else { IPPROTO_UDP };
                let backends: BTreeSet<u64> = (0..random.below(6)).map(|_| 1 + random.below(30)).collect();
                let backends: Vec<u64> = backends.into_iter().collect();
                let is_there = random.below(4) > 0;
                let port = is_there.then(|| port_with(&mut random, number, protocol, &backends));
                step.insert(name(number, protocol), port);
            }
            for (name, port) in &step {
                match port {
                    Some(port) => wanted.insert(name.clone(), port.clone()),
                    None => wanted.remove(name),
                };
            }
            let (changes, skipped) = apply(&mut table, step, now);
            assert!(skipped.is_empty(), "{skipped:?}");
            let before = maps.clone();
            let mut after = maps.clone();
            after.write(&changes, |_| ());
            maps.write(&changes, |between| {
                for set in [inside, wire] {
                    for key in between.frontends.keys() {
                        let now = between.backends(key, set);
                        assert!(now == before.backends(key, set) || now == after.backends(key, set));
                    }
                }
                for key in between.frontends.keys() {
                    let (table, ranges) = (between.table(key), between.source_ranges(key));
                    assert!(table == before.table(key) || table == after.table(key));
                    assert!(ranges == before.source_ranges(key) || ranges == after.source_ranges(key));
                }
            });
            check(&maps, &wanted);
            now += Duration::from_millis(random.below(2500));

            if random.below(5) == 0 {
                table = new_table(maps.kernel_state(), 400, 1000);
                let all: Vec<_> =
                    wanted.iter().map(|(name, port)| (name.clone(), Some(port.clone()))).collect();
                let (changes, _) = apply(&mut table, all.clone(), now);
                assert!(changes.is_empty(), "seed {seed}: a restart wrote {changes:?}");
                let (changes, _) = apply(&mut table, all, now);
                assert!(changes.is_empty(), "seed {seed}: a second pass wrote {changes:?}");
            }
        }
    }
}

fn check(maps: &Maps, wanted: &BTreeMap<ServicePortName, ServicePort>) {
    let mut members = HashMap::new();
    let mut lists = HashSet::new();
    for (name, port) in wanted {
        for (key, frontend) in &port.frontends {
            let wire_set = if frontend.wire == Set::Local { &port.local } else { &port.cluster };
            assert_eq!(maps.backends(key, inside).as_deref(), Some(&*port.cluster));
            assert_eq!(maps.backends(key, wire).as_deref(), Some(&**wire_set));
            let shares: BTreeSet<Endpoint> = maps.table(key).unwrap().iter().map(Backend::endpoint).collect();
            let expected = if wire_set.len() > 1 { &**wire_set } else { &[] };
            let expected: BTreeSet<Endpoint> = expected.iter().map(Backend::endpoint).collect();
            assert_eq!(shares, expected, "the Maglev table has all of the set");
            assert_eq!(maps.source_ranges(key).as_ref(), Some(&port.source_ranges));
            lists.insert(&port.source_ranges);
            let found = &maps.frontends[key];
            assert_eq!(found.affinity_seconds, port.affinity_seconds);
            if name.protocol == IPPROTO_UDP || port.affinity_seconds > 0 {
                for (backends, set) in [(&port.cluster, MEMBER_CLUSTER), (&port.local, MEMBER_LOCAL)] {
                    for Backend { addr, port_be, .. } in backends {
                        let service_id = found.service_id;
                        let member = MemberKey { service_id, addr: *addr, port_be: *port_be, pad: 0 };
                        *members.entry(member).or_insert(0) |= set;
                    }
                }
            }
        }
    }
    assert_eq!(maps.members, members);
    assert_eq!(maps.ranges.len(), lists.iter().map(|ranges| ranges.len()).sum::<usize>(), "each list once");
    let served = wanted.values().map(|port| port.frontends.len()).sum::<usize>();
    let departed = maps.frontends.values().filter(|frontend| frontend.flags & FRONTEND_DEPARTED != 0).count();
    assert_eq!(maps.frontends.len(), served + departed);
}

#[test]
fn restart_repairs_a_kernel_that_differs() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(maps.kernel_state(), 100, 100);
    let all = [
        (name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[1, 2]))),
        (name(2, IPPROTO_UDP), Some(port(2, IPPROTO_UDP, &[3]))),
    ];
    maps.write(&apply(&mut table, all, now).0, |_| ());
    let service_id = maps.frontends[&key(1, 80, IPPROTO_TCP)].service_id;
    let generation = maps.frontends[&key(1, 80, IPPROTO_TCP)].generation;

    // While no agent ran, one backend of s1 changed, s2 went, and s3 came.
    let mut table = new_table(maps.kernel_state(), 100, 100);
    let all = [
        (name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[1, 4]))),
        (name(3, IPPROTO_UDP), Some(port(3, IPPROTO_UDP, &[5]))),
    ];
    maps.write(&apply(&mut table, all.clone(), now).0, |_| ());
    check(&maps, &all.into_iter().map(|(name, port)| (name, port.unwrap())).collect());
    let repaired = maps.frontends[&key(1, 80, IPPROTO_TCP)];
    assert_eq!(repaired.service_id, service_id, "flows and sockets know the service by its id");
    assert_ne!(repaired.generation, generation, "sockets have to look again");
    assert_ne!(maps.frontends[&key(3, 80, IPPROTO_UDP)].service_id, service_id);
}

#[test]
fn address_moves_between_services_within_one_step() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(maps.kernel_state(), 100, 100);
    maps.write(&apply(&mut table, [(name(2, IPPROTO_TCP), Some(port(7, IPPROTO_TCP, &[1])))], now).0, |_| ());
    // s1 sorts before s2, which lets the address go in the same step.
    let step = [
        (name(1, IPPROTO_TCP), Some(port(7, IPPROTO_TCP, &[2]))),
        (name(2, IPPROTO_TCP), Some(port(8, IPPROTO_TCP, &[1]))),
    ];
    let (changes, skipped) = apply(&mut table, step, now);
    assert!(skipped.is_empty() && changes.old_frontends.is_empty(), "{changes:?}");
    maps.write(&changes, |_| ());
    assert_eq!(maps.backends(&key(7, 80, IPPROTO_TCP), inside), Some(vec![backend(2)]));
    assert_eq!(maps.backends(&key(8, 80, IPPROTO_TCP), inside), Some(vec![backend(1)]));
}

/// An id that is given again would begin with another service port's counts.
#[test]
fn counters_go_with_their_service_port_and_no_new_one_gets_its_id() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(maps.kernel_state(), 100, 100);
    let both = [1, 2].map(|number| (name(number, IPPROTO_TCP), Some(port(number, IPPROTO_TCP, &[number]))));
    maps.write(&apply(&mut table, both, now).0, |_| ());
    let id = |maps: &Maps, number| maps.frontends[&key(number, 80, IPPROTO_TCP)].service_id;
    let (kept, gone) = (id(&maps, 1), id(&maps, 2));
    let (changes, _) = apply(&mut table, [(name(2, IPPROTO_TCP), None)], now);
    assert_eq!(changes.old_services, [gone]);
    maps.write(&changes, |_| ());

    // They are still there, as if the agent had been killed before it removed them.
    let kernel = KernelState { counted: vec![kept, gone], ..maps.kernel_state() };
    let mut table = new_table(kernel, 100, 100);
    let both = [1, 3].map(|number| (name(number, IPPROTO_TCP), Some(port(number, IPPROTO_TCP, &[number]))));
    let (changes, _) = apply(&mut table, both, now);
    assert_eq!(changes.old_services, [gone]);
    maps.write(&changes, |_| ());
    assert_eq!(id(&maps, 1), kept);
    assert!(id(&maps, 3) > gone);
}

#[test]
fn second_service_with_an_address_is_reported_and_the_first_keeps_it() {
    let now = Instant::now();
    let mut table = new_table(KernelState::default(), 100, 100);
    apply(&mut table, [(name(1, IPPROTO_TCP), Some(port(7, IPPROTO_TCP, &[1])))], now);
    let (changes, skipped) =
        apply(&mut table, [(name(2, IPPROTO_TCP), Some(port(7, IPPROTO_TCP, &[2])))], now);
    assert!(changes.frontends.is_empty());
    assert_eq!(skipped.len(), 1);
    assert_eq!(apply(&mut table, [], now).1, skipped, "as long as it lasts");
    // The first goes: nobody has to name the second again.
    let (changes, skipped) = apply(&mut table, [(name(1, IPPROTO_TCP), None)], now);
    assert!(skipped.is_empty() && changes.old_frontends.is_empty());
    assert_eq!(changes.frontends.len(), 1);
}

#[test]
fn full_tables_are_reported_and_what_is_served_stays() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(KernelState::default(), 4, 1);
    maps.write(
        &apply(&mut table, [(name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[2, 4])))], now).0,
        |_| (),
    );
    let (changes, skipped) =
        apply(&mut table, [(name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[2, 4, 6])))], now);
    assert!(changes.is_empty());
    assert!(skipped[0].reason.contains("backend slots"), "{skipped:?}");
    assert_eq!(maps.backends(&key(1, 80, IPPROTO_TCP), inside).unwrap().len(), 2);
    let (changes, skipped) =
        apply(&mut table, [(name(2, IPPROTO_TCP), Some(port(2, IPPROTO_TCP, &[2])))], now);
    assert!(changes.frontends.is_empty());
    assert!(skipped[0].reason.contains("backend slots"), "still: {skipped:?}");
    assert!(skipped[1].reason.contains("frontends"), "{skipped:?}");
    // Room comes of itself when others go: here the range of the second service, after its grace period.
    let (_, skipped) = apply(&mut table, [(name(2, IPPROTO_TCP), None)], now);
    assert_eq!(skipped.len(), 1);
}

#[test]
fn port_without_slots_gets_them_when_others_go() {
    let start = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(KernelState::default(), 4, 100);
    maps.write(
        &apply(&mut table, [(name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[2, 4, 6])))], start).0,
        |_| (),
    );
    let (changes, skipped) =
        apply(&mut table, [(name(2, IPPROTO_TCP), Some(port(2, IPPROTO_TCP, &[8, 10])))], start);
    maps.write(&changes, |_| ());
    assert_eq!(skipped.len(), 1);
    assert_eq!(maps.backends(&key(2, 80, IPPROTO_TCP), inside), Some(vec![]), "it refuses");
    maps.write(&apply(&mut table, [(name(1, IPPROTO_TCP), None)], start).0, |_| ());
    let (changes, skipped) = apply(&mut table, [], start + Duration::from_secs(2));
    assert!(skipped.is_empty(), "{skipped:?}");
    maps.write(&changes, |_| ());
    assert_eq!(maps.backends(&key(2, 80, IPPROTO_TCP), inside), Some(vec![backend(8), backend(10)]));
}

#[test]
fn departed_udp_backend_leads_to_the_living_ones_for_a_while() {
    let start = Instant::now();
    let mut maps = Maps::default();
    let mut table = new_table(KernelState::default(), 100, 100);
    let service = |backends: &[u64]| [(name(1, IPPROTO_UDP), Some(port(1, IPPROTO_UDP, backends)))];
    maps.write(&apply(&mut table, service(&[1, 2]), start).0, |_| ());
    maps.write(&apply(&mut table, service(&[2]), start).0, |_| ());
    let gone =
        FrontendKey { addr: backend(1).addr, port_be: backend(1).port_be, protocol: IPPROTO_UDP, pad: 0 };
    assert_eq!(maps.frontends[&gone].flags, FRONTEND_DEPARTED);
    assert_eq!(maps.backends(&gone, inside), Some(vec![backend(2)]));

    // It survives a restart, follows the service, and goes when something answers at the address.
    let mut table = new_table(maps.kernel_state(), 100, 100);
    assert!(apply(&mut table, service(&[2]), start).0.is_empty());
    maps.write(&apply(&mut table, service(&[3]), start).0, |_| ());
    assert_eq!(maps.backends(&gone, inside), Some(vec![backend(3)]));
    let live = |addr: &Addr| *addr == backend(1).addr;
    let changes = table.apply(BTreeMap::new(), &live, start, &mut Vec::new());
    assert_eq!(changes.old_frontends, [gone]);
    maps.write(&changes, |_| ());
    maps.write(&apply(&mut table, [], start).0, |_| ());
    assert!(maps.frontends.contains_key(&gone), "quiet again");
    maps.write(&apply(&mut table, [], start + Duration::from_secs(3600)).0, |_| ());
    assert_eq!(maps.frontends.len(), 1, "its time is over");
}

#[test]
fn ports_that_find_no_room_for_a_maglev_table_get_one_when_others_go() {
    let start = Instant::now();
    let mut maps = Maps::default();
    // Room for one table of 101 entries: two backends, 20 entries each at least, 5 backends in the smallest.
    let sizes = Sizes { maglev_blocks: 4, source_ranges: 0, ..ROOMY };
    let mut table = Table::new(KernelState::default(), bounds(sizes));
    let wanted = |number: u64| (name(number, IPPROTO_TCP), Some(port(number, IPPROTO_TCP, &[1, 3])));
    let (changes, skipped) = apply(&mut table, [wanted(1), wanted(2), wanted(3)], start);
    maps.write(&changes, |_| ());
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert!(skipped[0].what.ends_with("and 1 other service ports"), "{skipped:?}");
    let len = |maps: &Maps, number| maps.frontends[&key(number, 80, IPPROTO_TCP)].maglev_len;
    assert_eq!((len(&maps, 1), len(&maps, 2), len(&maps, 3)), (101, 0, 0));
    assert_eq!(apply(&mut table, [], start).1, skipped, "as long as it lasts");
    maps.write(&apply(&mut table, [(name(1, IPPROTO_TCP), None)], start).0, |_| ());
    let (changes, skipped) = apply(&mut table, [], start + Duration::from_secs(2));
    maps.write(&changes, |_| ());
    assert_eq!((len(&maps, 2), len(&maps, 3)), (101, 0));
    assert!(skipped[0].what.ends_with("and 0 other service ports"), "{skipped:?}");
    // A backend fewer: one that is alone needs no table.
    let (changes, skipped) = apply(
        &mut table,
        [(name(3, IPPROTO_TCP), Some(port(3, IPPROTO_TCP, &[1])))],
        start + Duration::from_secs(2),
    );
    maps.write(&changes, |_| ());
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn source_ranges_that_find_no_room_let_nobody_in() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let sizes = Sizes { maglev_blocks: 4, source_ranges: 1, ..ROOMY };
    let mut table = Table::new(KernelState::default(), Bounds { sizes, maglev_entries: 0 });
    let wanted = |number: u64, octet: u8| {
        let mut port = port(number, IPPROTO_TCP, &[1]);
        port.source_ranges = Ranges::from([SourceRange::new(v4_mapped([10, octet, 0, 0]), 112)]);
        port.frontends.values_mut().for_each(|frontend| frontend.flags |= FRONTEND_SOURCE_RANGES);
        (name(number, IPPROTO_TCP), Some(port))
    };
    let (changes, skipped) = apply(&mut table, [wanted(1, 1), wanted(2, 1), wanted(3, 2)], now);
    maps.write(&changes, |_| ());
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].reason.contains("nobody"), "{skipped:?}");
    let frontend = |maps: &Maps, number| maps.frontends[&key(number, 80, IPPROTO_TCP)];
    assert_eq!(frontend(&maps, 1).source_ranges, frontend(&maps, 2).source_ranges, "one list for both");
    assert_ne!(frontend(&maps, 3).flags & FRONTEND_SOURCE_RANGES, 0);
    assert!(maps.source_ranges(&key(3, 80, IPPROTO_TCP)).unwrap().is_empty());
    // The others go, and then there is room.
    maps.write(
        &apply(&mut table, [(name(1, IPPROTO_TCP), None), (name(2, IPPROTO_TCP), None)], now).0,
        |_| (),
    );
    let (changes, skipped) = apply(&mut table, [], now);
    maps.write(&changes, |_| ());
    assert!(skipped.is_empty(), "{skipped:?}");
    assert_eq!(maps.source_ranges(&key(3, 80, IPPROTO_TCP)).unwrap().len(), 1);
}

/// 64 are remembered of a port; who asks for the report hears of the others.
#[test]
fn departed_backends_that_find_no_room_are_reported() {
    let now = Instant::now();
    let mut table = new_table(KernelState::default(), 1000, 1000);
    let many: Vec<u64> = (1..=66).collect();
    apply(&mut table, [(name(1, IPPROTO_UDP), Some(port(1, IPPROTO_UDP, &many)))], now);
    let (changes, skipped) =
        apply(&mut table, [(name(1, IPPROTO_UDP), Some(port(1, IPPROTO_UDP, &many[65..])))], now);
    assert_eq!(changes.frontends.len(), 65, "its own, and 64 departed");
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].reason.contains("remembered"), "{skipped:?}");
}

#[test]
fn full_table_of_members_is_reported_and_what_is_served_stays() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = Table::new(KernelState::default(), bounds(Sizes { members: 3, ..ROOMY }));
    let wanted = |number: u64, backends: &[u64]| {
        (name(number, IPPROTO_UDP), Some(port(number, IPPROTO_UDP, backends)))
    };
    let (changes, skipped) = apply(&mut table, [wanted(1, &[2]), wanted(2, &[4, 6])], now);
    maps.write(&changes, |_| ());
    assert!(skipped.is_empty());
    let (changes, skipped) = apply(&mut table, [wanted(1, &[2, 8]), wanted(3, &[2])], now);
    maps.write(&changes, |_| ());
    assert_eq!(skipped.len(), 2);
    assert!(skipped[0].reason.contains("UDP"), "{skipped:?}");
    assert_eq!(maps.backends(&key(1, 80, IPPROTO_UDP), inside), Some(vec![backend(2)]));
    assert_eq!(maps.backends(&key(3, 80, IPPROTO_UDP), inside), Some(vec![]), "it refuses");
    // A port of TCP needs no such room.
    let tcp = (name(4, IPPROTO_TCP), Some(port(4, IPPROTO_TCP, &[2])));
    let (changes, skipped) = apply(&mut table, [(name(2, IPPROTO_UDP), None), tcp], now);
    maps.write(&changes, |_| ());
    assert_eq!(maps.backends(&key(4, 80, IPPROTO_TCP), inside), Some(vec![backend(2)]));
    assert!(skipped.len() <= 2);
    let (changes, skipped) = apply(&mut table, [], now);
    maps.write(&changes, |_| ());
    assert!(skipped.is_empty(), "others have gone: {skipped:?}");
    assert_eq!(maps.backends(&key(1, 80, IPPROTO_UDP), inside), Some(vec![backend(2), backend(8)]));
    assert_eq!(maps.backends(&key(3, 80, IPPROTO_UDP), inside), Some(vec![backend(2)]));
}

#[test]
fn ports_that_found_no_room_are_served_once_the_maps_have_grown() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let sizes =
        Sizes { frontends: 2, backends: 6, members: 1, maglev_blocks: 4, affinities: 1, source_ranges: 1 };
    let mut table = Table::new(KernelState::default(), bounds(sizes));
    let wanted = |number: u64, protocol: u8| {
        let mut port = port(number, protocol, &[1, 2, 3, number + 10]);
        port.source_ranges = Ranges::from([SourceRange::new(v4_mapped([10, number as u8, 0, 0]), 112)]);
        port.frontends.values_mut().for_each(|frontend| frontend.flags |= FRONTEND_SOURCE_RANGES);
        (name(number, protocol), Some(port))
    };
    let all =
        [wanted(1, IPPROTO_TCP), wanted(2, IPPROTO_TCP), wanted(3, IPPROTO_TCP), wanted(4, IPPROTO_UDP)];
    let (changes, skipped) = apply(&mut table, all.clone(), now);
    maps.write(&changes, |_| ());
    assert!(!skipped.is_empty());
    let lacking = table.lacking();
    assert_eq!((lacking.frontends, lacking.source_ranges, lacking.members), (2, 3, 4));
    assert!(lacking.backends >= 8, "{lacking:?}");

    let mut sizes = sizes;
    let mut left = skipped;
    for _ in 0..4 {
        let Some(grown) = sizes.grown(table.lacking(), Sizes::MOST) else { break };
        sizes = grown;
        table.grow(sizes);
        let (changes, skipped) = apply(&mut table, [], now);
        maps.write(&changes, |_| ());
        left = skipped;
    }
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(table.lacking(), Sizes::default());
    for (name, port) in all {
        let port = port.unwrap();
        let key = port.frontends.keys().next().unwrap();
        assert_eq!(maps.backends(key, inside), Some(port.cluster.to_vec()), "{name}");
    }
    assert_eq!(maps.ranges.len(), 4);
    assert!(maps.slots.keys().all(|slot| *slot < sizes.backends));
}
