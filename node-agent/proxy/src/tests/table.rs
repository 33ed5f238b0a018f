use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use hawser_ebpf_abi::{
    Addr, Backend, Frontend, FrontendKey, IPPROTO_TCP, IPPROTO_UDP, MemberKey, service::*, v4_mapped,
};

use super::Random;
use crate::{
    desired::{DesiredFrontend, Kind, ServicePort, ServicePortName, Set, Skipped},
    table::{Changes, KernelState, Table},
};

/// The maps, as the kernel would hold them.
#[derive(Clone, Default)]
struct Maps {
    frontends: HashMap<FrontendKey, Frontend>,
    slots: HashMap<u32, Backend>,
    members: HashSet<MemberKey>,
}

impl Maps {
    /// Applies changes one write at a time, and calls `between` after each.
    fn write(&mut self, changes: &Changes, mut between: impl FnMut(&Self)) {
        for (slot, backend) in &changes.slots {
            self.slots.insert(*slot, *backend);
            between(self);
        }
        for member in &changes.new_members {
            self.members.insert(*member);
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
            assert!(self.members.remove(member), "removed what was not there");
            between(self);
        }
    }

    fn backends(&self, key: &FrontendKey, set: impl Fn(&Frontend) -> (u32, u32)) -> Option<Vec<Backend>> {
        let (base, count) = set(self.frontends.get(key)?);
        Some((base..base + count).map(|slot| self.slots[&slot]).collect())
    }

    fn kernel_state(&self) -> KernelState {
        KernelState {
            frontends: self.frontends.clone(),
            slots: self.slots.clone(),
            members: self.members.clone(),
        }
    }
}

fn inside(frontend: &Frontend) -> (u32, u32) {
    (frontend.base, frontend.count)
}

fn wire(frontend: &Frontend) -> (u32, u32) {
    (frontend.wire_base, frontend.wire_count)
}

fn name(number: u64, protocol: u8) -> ServicePortName {
    ServicePortName {
        namespace: "default".to_owned(),
        name: format!("s{number}"),
        port: String::new(),
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
    let cluster: Vec<Backend> = backends.iter().map(|number| backend(*number)).collect();
    let local = cluster.iter().copied().filter(|backend| backend.flags & BACKEND_LOCAL != 0).collect();
    ServicePort { frontends: BTreeMap::from([(key(number, 80, protocol), frontend)]), cluster, local }
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
    let changes = table.apply(wanted.into_iter().collect(), &dead, now, &mut skipped);
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
        let mut table = Table::new(maps.kernel_state(), 400, 1000);
        let mut wanted: BTreeMap<ServicePortName, ServicePort> = BTreeMap::new();
        for _ in 0..60 {
            let mut step = BTreeMap::new();
            for _ in 0..1 + random.below(4) {
                let number = 1 + random.below(8);
                let protocol = if random.below(2) == 0 { IPPROTO_TCP } else { IPPROTO_UDP };
                let backends: BTreeSet<u64> = (0..random.below(6)).map(|_| 1 + random.below(30)).collect();
                let backends: Vec<u64> = backends.into_iter().collect();
                let port = (random.below(4) > 0).then(|| port(number, protocol, &backends));
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
            });
            check(&maps, &wanted);
            now += Duration::from_millis(random.below(2500));

            if random.below(5) == 0 {
                table = Table::new(maps.kernel_state(), 400, 1000);
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
    let mut members = 0;
    for (name, port) in wanted {
        for key in port.frontends.keys() {
            assert_eq!(maps.backends(key, inside).as_ref(), Some(&port.cluster));
            assert_eq!(maps.backends(key, wire).as_ref(), Some(&port.local));
            if name.protocol == IPPROTO_UDP {
                members += port.cluster.len();
                let service_id = maps.frontends[key].service_id;
                for Backend { addr, port_be, .. } in &port.cluster {
                    let member = MemberKey { service_id, addr: *addr, port_be: *port_be, pad: 0 };
                    assert!(maps.members.contains(&member));
                }
            }
        }
    }
    assert_eq!(maps.members.len(), members);
    let served = wanted.values().map(|port| port.frontends.len()).sum::<usize>();
    let departed = maps.frontends.values().filter(|frontend| frontend.flags & FRONTEND_DEPARTED != 0).count();
    assert_eq!(maps.frontends.len(), served + departed);
}

#[test]
fn restart_repairs_a_kernel_that_differs() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = Table::new(maps.kernel_state(), 100, 100);
    let all = [
        (name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[1, 2]))),
        (name(2, IPPROTO_UDP), Some(port(2, IPPROTO_UDP, &[3]))),
    ];
    maps.write(&apply(&mut table, all, now).0, |_| ());
    let service_id = maps.frontends[&key(1, 80, IPPROTO_TCP)].service_id;
    let generation = maps.frontends[&key(1, 80, IPPROTO_TCP)].generation;

    // While no agent ran, one backend of s1 changed, s2 went, and s3 came.
    let mut table = Table::new(maps.kernel_state(), 100, 100);
    let all = [
        (name(1, IPPROTO_TCP), Some(port(1, IPPROTO_TCP, &[1, 4]))),
        (name(3, IPPROTO_UDP), Some(port(3, IPPROTO_UDP, &[5]))),
    ];
    maps.write(&apply(&mut table, all.clone(), now).0, |_| ());
    check(&maps, &all.into_iter().map(|(name, port)| (name, port.unwrap())).collect());
    let repaired = maps.frontends[&key(1, 80, IPPROTO_TCP)];
    assert_eq!(repaired.service_id, service_id, "flows and sockets know the service by its id");
    assert_eq!(repaired.generation, generation + 1, "sockets have to look again");
    assert_ne!(maps.frontends[&key(3, 80, IPPROTO_UDP)].service_id, service_id);
}

#[test]
fn address_moves_between_services_within_one_step() {
    let now = Instant::now();
    let mut maps = Maps::default();
    let mut table = Table::new(maps.kernel_state(), 100, 100);
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

#[test]
fn second_service_with_an_address_is_reported_and_the_first_keeps_it() {
    let now = Instant::now();
    let mut table = Table::new(KernelState::default(), 100, 100);
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
    let mut table = Table::new(KernelState::default(), 4, 1);
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
    let mut table = Table::new(KernelState::default(), 4, 100);
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
    let mut table = Table::new(KernelState::default(), 100, 100);
    let service = |backends: &[u64]| [(name(1, IPPROTO_UDP), Some(port(1, IPPROTO_UDP, backends)))];
    maps.write(&apply(&mut table, service(&[1, 2]), start).0, |_| ());
    maps.write(&apply(&mut table, service(&[2]), start).0, |_| ());
    let gone =
        FrontendKey { addr: backend(1).addr, port_be: backend(1).port_be, protocol: IPPROTO_UDP, pad: 0 };
    assert_eq!(maps.frontends[&gone].flags, FRONTEND_DEPARTED);
    assert_eq!(maps.backends(&gone, inside), Some(vec![backend(2)]));

    // It survives a restart, follows the service, and goes when something answers at the address.
    let mut table = Table::new(maps.kernel_state(), 100, 100);
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
