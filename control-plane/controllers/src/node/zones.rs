//! How fast nodes that do not work are given up, zone by zone. Pure.
//!
//! A rack that loses power, or a broken switch, must not make the cluster move all its pods at once: in each zone one node
//! after the other gets the taint that makes pods go. Where most of a zone is lost the fault is more likely between it
//! and this side, so that it goes slower, and not at all in a small zone; where every zone is lost nobody is given up.
//! The rates and the order of states are those of upstream's node lifecycle controller.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use crate::{Config, meta::MetaExt};

/// How soon to ask again where nobody is given up.
const HELD: Duration = Duration::from_secs(10);
/// So few lost nodes are no disruption of a zone, whatever their share.
const FEW: usize = 2;

/// Nodes that did not say where they are form a zone too.
pub(super) fn zone_of(node: &Node) -> String {
    let label = |name: &str| node.labels().get(name).map_or("", String::as_str);
    format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Normal,
    /// Most nodes are lost.
    Partial,
    /// All are.
    Full,
}

#[derive(Default)]
struct Zone {
    state: State,
    nodes: usize,
    lost: usize,
    /// When nodes were last given up: the last time, and the time before.
    given_up: Option<Instant>,
    before: Option<Instant>,
}

/// Bounded by the zones that nodes are in.
#[derive(Default)]
pub(super) struct Zones {
    zones: HashMap<String, Zone>,
}

impl Zones {
    /// Takes note of all nodes: the zone of each, and whether it works.
    pub(super) fn look(&mut self, nodes: impl Iterator<Item = (String, bool)>, config: &Config) {
        for zone in self.zones.values_mut() {
            (zone.nodes, zone.lost) = (0, 0);
        }
        for (name, works) in nodes {
            let zone = self.zones.entry(name).or_default();
            zone.nodes += 1;
            zone.lost += usize::from(!works);
        }
        self.zones.retain(|_, zone| zone.nodes > 0);
        for zone in self.zones.values_mut() {
            let share = zone.lost as f64 / zone.nodes as f64;
            zone.state = match zone.lost {
                lost if lost == zone.nodes => State::Full,
                lost if lost > FEW && share >= config.unhealthy_zone_threshold => State::Partial,
                _ => State::Normal,
            };
        }
    }

    /// No node works anywhere: more likely this side is cut off.
    pub(super) fn are_lost(&self) -> bool {
        !self.zones.is_empty() && self.zones.values().all(|zone| zone.state == State::Full)
    }

    /// Gives up a node of the zone; fails, with when to ask again, where it is not its turn.
    pub(super) fn give_up(&mut self, zone: &str, config: &Config, now: Instant) -> Result<(), Duration> {
        if self.are_lost() {
            return Err(HELD);
        }
        let zone = self.zones.entry(zone.to_owned()).or_default();
        let rate = match zone.state {
            State::Normal | State::Full => config.node_eviction_rate,
            State::Partial if zone.nodes > config.large_cluster_size_threshold => {
                config.secondary_node_eviction_rate
            }
            State::Partial => 0.0,
        };
        if rate <= 0.0 {
            return Err(HELD);
        }
        let between = Duration::from_secs_f64((1.0 / rate).min(86_400.0));
        let wait = zone.given_up.map(|last| (last + between).saturating_duration_since(now));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        zone.before = zone.given_up.replace(now);
        Ok(())
    }

    /// The node was not given up after all, so that the next may be.
    pub(super) fn take_back(&mut self, zone: &str) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.given_up = zone.before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zones as (nodes, lost ones).
    fn zones(sizes: &[(usize, usize)]) -> Zones {
        let nodes = sizes
            .iter()
            .enumerate()
            .flat_map(|(zone, (nodes, lost))| (0..*nodes).map(move |node| (zone.to_string(), node >= *lost)));
        let mut zones = Zones::default();
        zones.look(nodes, &Config::default());
        zones
    }

    /// How many nodes of the first zone are given up in an hour.
    #[track_caller]
    fn check(name: &str, sizes: &[(usize, usize)], expected: usize) {
        let (mut zones, config, start) = (zones(sizes), Config::default(), Instant::now());
        let given_up = (0..3600)
            .filter(|second| zones.give_up("0", &config, start + Duration::from_secs(*second)).is_ok())
            .count();
        assert_eq!(given_up, expected, "{name}");
    }

    #[tokio::test(start_paused = true)]
    async fn zones_lose_their_nodes_one_after_the_other() {
        check("one of many", &[(10, 1)], 360);
        check("most of a small zone", &[(10, 6), (10, 0)], 0);
        check("most of a large zone", &[(100, 60), (10, 0)], 36);
        check("two are no disruption", &[(3, 2), (10, 0)], 360);
        check("one zone is lost and another is not", &[(10, 10), (10, 0)], 360);
        check("all is lost", &[(10, 10), (3, 3)], 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_back_is_the_next_ones_turn() {
        let (mut zones, config, now) = (zones(&[(10, 1)]), Config::default(), Instant::now());
        assert_eq!(zones.give_up("0", &config, now), Ok(()));
        assert_eq!(zones.give_up("0", &config, now), Err(Duration::from_secs(10)));
        zones.take_back("0");
        assert_eq!(zones.give_up("0", &config, now), Ok(()));
    }
}
