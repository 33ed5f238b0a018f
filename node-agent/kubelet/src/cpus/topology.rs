//! The machine's CPUs: which are threads of one core, and which cores share a socket.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::set::CpuSet;
use crate::locality::Nodes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub socket: u32,
    pub core: u32,
    /// Of memory (NUMA).
    pub node: u32,
}

/// By CPU, those that are online.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology(pub BTreeMap<u32, Place>);

impl Topology {
    /// Reads `/sys/devices/system/cpu`, or a directory like it. A CPU whose place is not told is a core of its own.
    pub fn read(dir: &Path) -> Self {
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let online: CpuSet = text(&dir.join("online")).parse().unwrap_or_default();
        let places = online.0.into_iter().map(|cpu| {
            let number =
                |file: &str| text(&dir.join(format!("cpu{cpu}/topology/{file}"))).trim().parse::<u32>();
            let place = Place {
                socket: number("physical_package_id").unwrap_or(0),
                core: number("core_id").unwrap_or(cpu),
                node: node_of(&dir.join(format!("cpu{cpu}"))).unwrap_or(0),
            };
            (cpu, place)
        });
        Self(places.collect())
    }

    /// The NUMA nodes that have CPUs.
    pub fn nodes(&self) -> Nodes {
        self.0.values().map(|place| place.node).collect()
    }

    /// Those of `cpus` that are on these nodes.
    pub fn on(&self, nodes: &Nodes, cpus: &CpuSet) -> CpuSet {
        let is_there = |cpu: &u32| self.0.get(cpu).is_some_and(|place| nodes.contains(&place.node));
        cpus.0.iter().copied().filter(is_there).collect()
    }

    pub fn all(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    /// Chooses `count` of the `free` CPUs, as close to each other as they can be: whole sockets first, then whole cores,
    /// then single threads, each from where least is left over. `None` when there are too few.
    pub fn take(&self, free: &CpuSet, count: usize) -> Option<CpuSet> {
        if free.len() < count {
            return None;
        }
        let mut left: Vec<u32> = free.0.iter().copied().filter(|cpu| self.0.contains_key(cpu)).collect();
        let mut taken = Vec::new();
        self.take_groups(&mut left, &mut taken, count, |place| (place.socket, 0));
        self.take_groups(&mut left, &mut taken, count, |place| (place.socket, place.core));
        // Single threads: of cores that are in use already, on sockets that are in use already.
        while taken.len() < count {
            let least = left.iter().copied().min_by_key(|cpu| {
                let place = self.0[cpu];
                let free_in = |same: fn(Place, Place) -> bool| {
                    left.iter().filter(|other| same(self.0[other], place)).count()
                };
                let is_near = taken.iter().any(|other: &u32| self.0[other].socket == place.socket);
                (!is_near, free_in(|a, b| a.socket == b.socket), free_in(|a, b| a == b), *cpu)
            })?;
            left.retain(|cpu| *cpu != least);
            taken.push(least);
        }
        Some(taken.into_iter().collect())
    }

    /// Takes groups that are free as a whole and no larger than what is still wanted.
    fn take_groups(
        &self,
        left: &mut Vec<u32>,
        taken: &mut Vec<u32>,
        count: usize,
        group_of: impl Fn(Place) -> (u32, u32),
    ) {
        let mut groups: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
        for (cpu, place) in &self.0 {
            groups.entry(group_of(*place)).or_default().push(*cpu);
        }
        let whole = |cpus: &Vec<u32>| cpus.iter().all(|cpu| left.contains(cpu));
        let mut free: Vec<Vec<u32>> = groups.into_values().filter(whole).collect();
        // Near to what is taken, and from the fullest socket, so that others stay whole.
        let left_on = |socket: u32| left.iter().filter(|cpu| self.0[cpu].socket == socket).count();
        free.sort_by_cached_key(|cpus| {
            let socket = self.0[&cpus[0]].socket;
            let is_near = taken.iter().any(|cpu| self.0[cpu].socket == socket);
            (!is_near, left_on(socket), cpus[0])
        });
        for cpus in free {
            if taken.len() + cpus.len() <= count {
                left.retain(|cpu| !cpus.contains(cpu));
                taken.extend(cpus);
            }
        }
    }
}

/// The directory of a CPU names the node that it is on: `node0`.
fn node_of(cpu: &Path) -> Option<u32> {
    let names =
        fs::read_dir(cpu).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().find_map(|name| name.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Sockets of `cores` cores with two threads each; the second threads are numbered after all first ones.
    pub(crate) fn machine(sockets: u32, cores: u32) -> Topology {
        let all = sockets * cores;
        let cpus = (0..2 * all).map(|cpu| {
            let core = cpu % all;
            (cpu, Place { socket: core / cores, core: core % cores, node: core / cores })
        });
        Topology(cpus.collect())
    }

    #[test]
    fn cpus_are_taken_close_together() {
        let check = |name: &str, machine: &Topology, free: &str, count: usize, expected: Option<&str>| {
            let free: CpuSet = if free == "all" { machine.all() } else { free.parse().expect("a set") };
            let taken = machine.take(&free, count).map(|set| set.to_string());
            assert_eq!(taken.as_deref(), expected, "{name}");
        };
        // CPUs 0-3 and 8-11 are socket 0, 4-7 and 12-15 socket 1; 0 and 8 are one core.
        let large = machine(2, 4);
        check("one core", &large, "all", 2, Some("0,8"));
        check("a core and a thread", &large, "all", 3, Some("0-1,8"));
        check("a socket", &large, "all", 8, Some("0-3,8-11"));
        check("a socket and a core", &large, "all", 10, Some("0-4,8-12"));
        check("the socket that is begun", &large, "1-15", 2, Some("1,9"));
        check("the thread that is alone", &large, "1-15", 1, Some("8"));
        check("no whole core left", &large, "0-7", 2, Some("0-1"));
        check("all", &large, "all", 16, Some("0-15"));
        check("nothing", &large, "all", 0, Some(""));
        check("too few", &large, "0-3", 5, None);
    }

    #[test]
    fn topology_is_read_from_the_kernels_files() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("online"), "0-1,3\n").expect("written");
        for (cpu, core) in [(0, 0), (1, 0)] {
            let place = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&place).expect("made");
            fs::write(place.join("core_id"), format!("{core}\n")).expect("written");
            fs::write(place.join("physical_package_id"), "1\n").expect("written");
            fs::create_dir(dir.path().join(format!("cpu{cpu}/node1"))).expect("made");
        }
        let read = Topology::read(dir.path());
        let place = |socket, core, node| Place { socket, core, node };
        assert_eq!(read.0, BTreeMap::from([(0, place(1, 0, 1)), (1, place(1, 0, 1)), (3, place(0, 3, 0))]));
        assert!(!Topology::read(Path::new("/sys/devices/system/cpu")).0.is_empty());
    }
}
