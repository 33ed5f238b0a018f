//! What is watched for shortage, and at which levels: `memory.available<100Mi`, as upstream spells it.

use std::str::FromStr;
use std::time::Duration;

use crate::quantity::scaled;
use crate::stats::NodeStats;
use crate::stats::disk::FsStats;

/// What can run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    // In the order in which shortages are relieved.
    MemoryAvailable,
    /// Of what all pods together may have.
    AllocatableMemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    const ALL: [Self; 7] = [
        Self::MemoryAvailable,
        Self::AllocatableMemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// What pods are told that the node was low on.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Images and dead containers can be removed for it.
    pub fn is_disk(self) -> bool {
        !self.is_memory() && self != Self::PidAvailable
    }

    pub fn is_memory(self) -> bool {
        matches!(self, Self::MemoryAvailable | Self::AllocatableMemoryAvailable)
    }
}

/// An amount, or a share of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Absolute(u64),
    Percent(f64),
}

impl Amount {
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither a quantity nor a share such as 10%");
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| wrong())?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent)).ok_or_else(wrong);
        }
        let amount = scaled(text, 1).and_then(|n| u64::try_from(n).ok());
        amount.map(Self::Absolute).ok_or_else(wrong)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    /// It is met when less than this is left.
    pub value: Amount,
    /// How long it has to be met before a pod goes; zero for a hard threshold, which also leaves pods no time.
    pub grace: Duration,
    /// Once met, it stays so until this much more than `value` is left.
    pub minimum_reclaim: Amount,
}

impl Threshold {
    pub const fn hard(signal: Signal, value: Amount) -> Self {
        Self { signal, value, grace: Duration::ZERO, minimum_reclaim: Amount::Absolute(0) }
    }

    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// `after`: it was met before.
    pub fn is_met(&self, level: Level, after: bool) -> bool {
        let more = if after { self.minimum_reclaim.of(level.capacity) } else { 0 };
        level.available < self.value.of(level.capacity) + more
    }
}

impl FromStr for Threshold {
    type Err = String;

    /// A hard threshold, `<signal><<amount>`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (signal, value) =
            text.split_once('<').ok_or_else(|| format!("{text:?}: <signal><<amount> is expected"))?;
        let signal = Signal::from_str(signal)?;
        Ok(Self::hard(signal, value.parse()?))
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|signal| signal.as_str() == text);
        named.ok_or_else(|| format!("{text:?} is no eviction signal"))
    }
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub available: u64,
    pub capacity: u64,
}

/// What is left of everything that is watched; `None` for what cannot be told, which is no shortage.
pub fn level(node: &NodeStats, signal: Signal) -> Option<Level> {
    let bytes = |fs: FsStats| Level { available: fs.available_bytes, capacity: fs.capacity_bytes };
    // Some file systems make inodes as they go, and have no number of them.
    let inodes =
        |fs: FsStats| (fs.inodes > 0).then_some(Level { available: fs.inodes_free, capacity: fs.inodes });
    match signal {
        Signal::MemoryAvailable => {
            Some(Level { available: node.memory_available_bytes, capacity: node.memory_total_bytes })
                .filter(|level| level.capacity > 0)
        }
        Signal::AllocatableMemoryAvailable => node.pods_memory.map(|memory| Level {
            available: memory.limit_bytes.saturating_sub(memory.working_set_bytes),
            capacity: memory.limit_bytes,
        }),
        Signal::NodefsAvailable => node.fs.map(bytes),
        Signal::NodefsInodesFree => node.fs.and_then(inodes),
        Signal::ImagefsAvailable => node.image_fs.map(bytes),
        Signal::ImagefsInodesFree => node.image_fs.and_then(inodes),
        Signal::PidAvailable => {
            Some(Level { available: node.pids_max.saturating_sub(node.pids), capacity: node.pids_max })
                .filter(|level| level.capacity > 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_upstream_spells_them() {
        let check = |text: &str, signal, value| assert_eq!(text.parse(), Ok(Threshold::hard(signal, value)));
        check("memory.available<100Mi", Signal::MemoryAvailable, Amount::Absolute(100 << 20));
        check("nodefs.inodesFree<5%", Signal::NodefsInodesFree, Amount::Percent(5.0));
        check("imagefs.available<12.5%", Signal::ImagefsAvailable, Amount::Percent(12.5));
        for wrong in ["memory.available", "cpu.available<1", "pid.available<101%", "memory.available<lots"] {
            assert!(wrong.parse::<Threshold>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn threshold_once_met_asks_for_more() {
        let threshold = Threshold {
            minimum_reclaim: Amount::Absolute(50),
            ..Threshold::hard(Signal::MemoryAvailable, Amount::Percent(10.0))
        };
        let left = |available| Level { available, capacity: 1000 };
        assert!(threshold.is_met(left(99), false) && !threshold.is_met(left(100), false));
        assert!(threshold.is_met(left(149), true) && !threshold.is_met(left(150), true));
    }
}
