//! The topology manager (KEP-693): whether what a container, or a pod, asks for is to come from the same NUMA nodes. Pure, but
//! that distances are read.
//!
//! Whoever gives something out says from which nodes it could come ([`hints`]); what suits all is chosen ([`choose`]), and
//! given from there. By the policy, a container for which nothing suits is taken all the same, or its pod is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::pod::ContainerKind;
use crate::pod::state::Verdict;

pub type Nodes = BTreeSet<u32>;
/// By container.
pub type Near = BTreeMap<String, Nodes>;

/// With more nodes there would be too many ways to put them together; upstream refuses these too.
pub const MAX_NODES: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Nothing is looked at.
    #[default]
    None,
    /// The best there is.
    BestEffort,
    /// As few nodes as the amounts allow, or the pod is refused.
    Restricted,
    /// One node, or the pod is refused.
    SingleNumaNode,
}

/// What is given from the same nodes (`topologyManagerScope`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each container by itself.
    #[default]
    Container,
    /// All containers of a pod together.
    Pod,
}

/// How far each node's memory is from each node's CPUs, as the firmware says it (10 is where both are the same node). By the
/// numbers of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distances(BTreeMap<(u32, u32), u32>);

impl Distances {
    /// Reads `node<N>/distance` below `dir` (`/sys/devices/system/node`).
    ///
    /// # Errors
    /// A node whose distances cannot be read, or a number of them that is not that of the nodes.
    pub fn read(dir: &Path) -> Result<Self, String> {
        let failed = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let mut nodes = Nodes::new();
        for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, &error))?.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("node"));
            nodes.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        let mut distances = BTreeMap::new();
        for from in &nodes {
            let file = dir.join(format!("node{from}/distance"));
            let text = std::fs::read_to_string(&file).map_err(|error| failed(&file, &error))?;
            let row: Result<Vec<u32>, _> = text.split_whitespace().map(str::parse).collect();
            let row = row.map_err(|error| failed(&file, &error))?;
            if row.len() != nodes.len() {
                return Err(failed(&file, &format!("{} distances to {} nodes", row.len(), nodes.len())));
            }
            distances.extend(nodes.iter().zip(row).map(|(to, distance)| ((*from, *to), distance)));
        }
        Ok(Self(distances))
    }

    /// The sum over all pairs of the nodes. For sets of one size it orders as the mean does.
    fn sum(&self, nodes: &Nodes) -> u64 {
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(|to| (*from, *to)));
        pairs.map(|pair| u64::from(self.0.get(&pair).copied().unwrap_or(u32::MAX))).sum()
    }
}

/// What a pod needs at the same time, of what its containers ask for in their order: init containers leave theirs to those
/// after them, all others keep it.
pub fn of_pod(containers: impl Iterator<Item = (ContainerKind, u64)>) -> u64 {
    let (mut kept, mut most) = (0u64, 0u64);
    for (kind, amount) in containers {
        let with_it = kept.saturating_add(amount);
        most = most.max(with_it);
        if kind != ContainerKind::Init {
            kept = with_it;
        }
    }
    most
}

/// Nodes that a part of what is asked for could come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    pub nodes: Nodes,
    /// With fewer nodes it could not be had, even if all were free.
    pub is_preferred: bool,
}

/// Ways to take `wanted` pieces, of which each node has so many in all, and so many free.
pub fn hints(
    all: &Nodes,
    wanted: usize,
    total: impl Fn(u32) -> usize,
    free: impl Fn(u32) -> usize,
) -> Vec<Hint> {
    let sum = |nodes: &Nodes, of: &dyn Fn(u32) -> usize| nodes.iter().map(|node| of(*node)).sum::<usize>();
    let subsets = subsets(all);
    let fewest = subsets.iter().filter(|nodes| sum(nodes, &total) >= wanted).map(BTreeSet::len).min();
    let possible = subsets.into_iter().filter(|nodes| sum(nodes, &free) >= wanted);
    possible.map(|nodes| Hint { is_preferred: Some(nodes.len()) == fewest, nodes }).collect()
}

fn subsets(all: &Nodes) -> Vec<Nodes> {
    let all: Vec<u32> = all.iter().copied().take(MAX_NODES).collect();
    let masks = 1..1u32 << all.len();
    let nodes =
        |mask: u32| all.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, n)| *n).collect();
    masks.map(nodes).collect()
}

/// The nodes that suit all of `parts`, each the hints of one thing that is asked for; `None` where none is better than
/// any other. Of sets of as many nodes those that are nearest to each other, where `distances` are given
/// (`prefer-closest-numa-nodes`).
///
/// # Errors
/// The pod is refused.
pub fn choose(
    policy: Policy,
    distances: Option<&Distances>,
    parts: &[Vec<Hint>],
) -> Result<Option<Nodes>, Verdict> {
    if policy == Policy::None || parts.is_empty() {
        return Ok(None);
    }
    // What is left after each part; nodes of which not all parts think the same are never preferred.
    let mut suitable: Option<BTreeSet<Hint>> = None;
    for part in parts {
        let part: Vec<&Hint> =
            part.iter().filter(|hint| policy != Policy::SingleNumaNode || hint.nodes.len() == 1).collect();
        suitable = Some(match suitable {
            None => part.into_iter().cloned().collect(),
            Some(known) => known.iter().flat_map(|known| part.iter().map(|hint| both(known, hint))).collect(),
        });
    }
    let suitable = suitable.into_iter().flatten().filter(|hint| !hint.nodes.is_empty());
    let apart = |nodes: &Nodes| distances.map_or(0, |distances| distances.sum(nodes));
    let best = suitable
        .min_by_key(|hint| (!hint.is_preferred, hint.nodes.len(), apart(&hint.nodes), hint.nodes.clone()));
    match (policy, best) {
        (Policy::BestEffort, best) => Ok(best.map(|hint| hint.nodes)),
        (_, Some(Hint { nodes, is_preferred: true })) => Ok(Some(nodes)),
        _ => {
            let message = "Resources cannot be allocated with Topology locality";
            Err(Verdict::refusal("TopologyAffinityError", message))
        }
    }
}

fn both(one: &Hint, other: &Hint) -> Hint {
    Hint {
        nodes: one.nodes.intersection(&other.nodes).copied().collect(),
        is_preferred: one.is_preferred && other.is_preferred && one.nodes == other.nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[u32]) -> Nodes {
        list.iter().copied().collect()
    }

    /// Hints on two nodes with four pieces each.
    fn part(wanted: usize, free: [usize; 2]) -> Vec<Hint> {
        hints(&nodes(&[0, 1]), wanted, |_| 4, |node| free[node as usize])
    }

    #[test]
    fn fewest_nodes_that_could_do_are_preferred() {
        let shown = |wanted, free| -> Vec<(Vec<u32>, bool)> {
            let found = part(wanted, free).into_iter();
            found.map(|hint| (hint.nodes.into_iter().collect(), hint.is_preferred)).collect()
        };
        assert_eq!(shown(2, [4, 4]), [(vec![0], true), (vec![1], true), (vec![0, 1], false)]);
        assert_eq!(shown(2, [1, 4]), [(vec![1], true), (vec![0, 1], false)]);
        assert_eq!(shown(2, [1, 1]), [(vec![0, 1], false)], "one node would do, were it free");
        assert_eq!(shown(6, [4, 4]), [(vec![0, 1], true)]);
        assert_eq!(shown(9, [4, 4]), []);
    }

    #[test]
    fn policies_choose_or_refuse() {
        use Policy::{BestEffort, Restricted, SingleNumaNode};
        let check = |name: &str, policy, parts: &[Vec<Hint>], expected: Result<Option<&[u32]>, ()>| {
            let chosen = choose(policy, None, parts).map_err(drop);
            assert_eq!(chosen, expected.map(|list| list.map(nodes)), "{name}");
        };
        let near = [part(2, [1, 4]), part(1, [4, 4])];
        let apart = [part(2, [1, 4]), part(1, [4, 0])];
        let spread = [part(2, [1, 1])];
        let large = [part(6, [4, 4])];
        check("nothing is asked for", Restricted, &[], Ok(None));
        check("no policy", Policy::None, &apart, Ok(None));
        for policy in [BestEffort, Restricted, SingleNumaNode] {
            check("where both are", policy, &near, Ok(Some(&[1])));
        }
        check("no node has both", BestEffort, &apart, Ok(Some(&[0])));
        check("no node has both", Restricted, &apart, Err(()));
        check("no node has both", SingleNumaNode, &apart, Err(()));
        check("on two nodes without need", BestEffort, &spread, Ok(Some(&[0, 1])));
        check("on two nodes without need", Restricted, &spread, Err(()));
        check("more than a node has", Restricted, &large, Ok(Some(&[0, 1])));
        check("more than a node has", SingleNumaNode, &large, Err(()));
        check("more than there is", BestEffort, &[part(9, [4, 4])], Ok(None));
        let refused = choose(SingleNumaNode, None, &large).expect_err("refused");
        assert_eq!(refused.reason, "TopologyAffinityError");
    }

    #[test]
    fn nearest_nodes_are_preferred_where_that_is_wanted() {
        let dir = tempfile::tempdir().expect("a directory");
        let table = ["10 21 31 21", "21 10 21 31", "31 21 10 11", "21 31 11 10"];
        for (node, row) in table.iter().enumerate() {
            let node = dir.path().join(format!("node{node}"));
            std::fs::create_dir(&node).expect("made");
            std::fs::write(node.join("distance"), format!("{row}\n")).expect("written");
        }
        std::fs::write(dir.path().join("online"), "0-3\n").expect("written");
        let distances = Distances::read(dir.path()).expect("a table");
        let part = hints(&nodes(&[0, 1, 2, 3]), 6, |_| 4, |_| 4);
        let chosen = |distances| choose(Policy::BestEffort, distances, std::slice::from_ref(&part));
        assert_eq!(chosen(None).ok(), Some(Some(nodes(&[0, 1]))));
        assert_eq!(chosen(Some(&distances)).ok(), Some(Some(nodes(&[2, 3]))));
        std::fs::write(dir.path().join("node1/distance"), "21 10\n").expect("written");
        let why = Distances::read(dir.path()).expect_err("too few");
        assert!(why.contains("node1/distance: 2 distances to 4 nodes"), "{why}");
    }

    #[test]
    fn pod_needs_what_it_has_at_the_same_time() {
        use ContainerKind::{Init, Main, Sidecar};
        let check = |containers: &[(ContainerKind, u64)], expected| {
            assert_eq!(of_pod(containers.iter().copied()), expected, "{containers:?}");
        };
        check(&[], 0);
        check(&[(Main, 2), (Main, 3)], 5);
        check(&[(Init, 4), (Init, 6), (Main, 2), (Main, 3)], 6);
        check(&[(Init, 4), (Main, 2), (Main, 3)], 5);
        check(&[(Sidecar, 1), (Init, 5), (Main, 2)], 6);
        check(&[(Init, 5), (Sidecar, 1), (Main, 2)], 5);
    }
}
