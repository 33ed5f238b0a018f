//! How much memory each NUMA node of the machine has, and what of it is kept for the system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::ledger::{Allocatable, Amounts};
use crate::quantity::binary_si;

/// Reads `/sys/devices/system/node`, or a directory like it. What is in huge pages is no plain memory.
pub fn read(dir: &Path) -> Allocatable {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let nodes = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, node(&entry.path())?))
    });
    nodes.collect()
}

fn node(dir: &Path) -> Option<Amounts> {
    let text = fs::read_to_string(dir.join("meminfo")).ok()?;
    let total = text.lines().find(|line| line.contains("MemTotal:"))?;
    let kib: u64 = total.split_whitespace().rev().nth(1)?.parse().ok()?;
    let mut amounts = Amounts::new();
    let pages = fs::read_dir(dir.join("hugepages")).into_iter().flatten().flatten();
    for entry in pages {
        let name = entry.file_name();
        let size =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count = count.and_then(|count| count.trim().parse::<u64>().ok());
        if let (Some(size), Some(count)) = (size, count) {
            let size: u64 = size;
            amounts.insert(format!("hugepages-{}", binary_si(size * 1024)), size * 1024 * count);
        }
    }
    let in_pages: u64 = amounts.values().sum();
    amounts.insert("memory".to_owned(), (kib * 1024).saturating_sub(in_pages));
    Some(amounts)
}

/// What is left of `machine` without what is `reserved` on each node. Of memory, `withheld` has to be reserved in all:
/// what the node's allocatable memory is without.
///
/// # Errors
/// A node that there is not, or another sum.
pub fn allocatable(
    machine: Allocatable,
    reserved: &Allocatable,
    withheld: u64,
) -> Result<Allocatable, String> {
    let mut left = machine;
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, amounts) in reserved {
        let has = left.get_mut(node).ok_or_else(|| format!("there is no NUMA node {node}"))?;
        for (resource, amount) in amounts {
            let known = has.get_mut(resource);
            let known = known.ok_or_else(|| format!("NUMA node {node} has no {resource}"))?;
            *known = known.checked_sub(*amount).ok_or_else(|| {
                format!("NUMA node {node} has {known} bytes of {resource}, less than is reserved")
            })?;
            *sums.entry(resource).or_default() += amount;
        }
    }
    let sum = sums.get("memory").copied().unwrap_or(0);
    match sum == withheld {
        true => Ok(left),
        false => Err(format!(
            "the total amount {sum:?} of type \"memory\" is not equal to the value {withheld:?} determined by Node \
             Allocatable feature"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_read_with_their_huge_pages() {
        let dir = tempfile::tempdir().expect("a directory");
        let pages = dir.path().join("node1/hugepages/hugepages-2048kB");
        fs::create_dir_all(&pages).expect("made");
        fs::create_dir_all(dir.path().join("node0")).expect("made");
        fs::create_dir_all(dir.path().join("power")).expect("made");
        for node in ["node0", "node1"] {
            let text = "Node 0 MemTotal:       4096000 kB\nNode 0 MemFree:        1 kB\n";
            fs::write(dir.path().join(node).join("meminfo"), text).expect("written");
        }
        fs::write(pages.join("nr_hugepages"), "100\n").expect("written");
        let found = read(dir.path());
        let memory = |node: u32| found[&node]["memory"];
        assert_eq!(memory(0), 4_096_000 << 10);
        assert_eq!(memory(1), (4_096_000 << 10) - (200 << 20));
        assert_eq!(found[&1]["hugepages-2Mi"], 200 << 20);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn reserved_memory_is_what_the_node_withholds_from_pods() {
        let amounts = |bytes| Amounts::from([("memory".to_owned(), bytes)]);
        let machine = Allocatable::from([(0, amounts(1000)), (1, amounts(1000))]);
        let reserved = Allocatable::from([(0, amounts(100)), (1, amounts(50))]);
        let left = allocatable(machine.clone(), &reserved, 150).expect("as withheld");
        assert_eq!((left[&0]["memory"], left[&1]["memory"]), (900, 950));
        let error =
            |reserved, withheld| allocatable(machine.clone(), &reserved, withheld).expect_err("refused");
        assert!(error(reserved, 151).contains("the total amount 150"));
        assert!(error(Allocatable::from([(2, amounts(1))]), 1).contains("no NUMA node 2"));
        assert!(error(Allocatable::from([(0, amounts(1001))]), 1001).contains("less than is reserved"));
    }
}
