//! The recent changes, in memory, shared by all watches.
//!
//! Bounded by events and bytes. A watch that is further behind than the ring reaches reads history from disk, so
//! the bound costs a slow watch some time and never a change.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::read::event_bytes;
use crate::{Event, Revision};

/// Changes of one commit.
pub(super) struct Group {
    pub(super) events: Vec<Event>,
    /// Revision of the last of them.
    last: Revision,
    bytes: usize,
}

pub(super) struct Ring {
    max_events: usize,
    max_bytes: usize,
    recent: Mutex<Recent>,
}

struct Recent {
    groups: VecDeque<Arc<Group>>,
    /// All changes from this revision on are in `groups`.
    start: Revision,
    events: usize,
    bytes: usize,
}

impl Ring {
    /// An empty ring of a store at `revision`.
    pub(super) fn new(revision: Revision, max_events: usize, max_bytes: usize) -> Self {
        let recent = Recent { groups: VecDeque::new(), start: revision + 1, events: 0, bytes: 0 };
        Self { max_events, max_bytes, recent: Mutex::new(recent) }
    }

    /// Adds the changes of the newest commit, and lets go of the oldest beyond the bounds.
    pub(super) fn push(&self, events: Vec<Event>) {
        let Some(last) = events.last().map(|event| event.kv.mod_revision) else { return };
        let bytes = events.iter().map(event_bytes).sum();
        let mut recent = self.recent.lock();
        recent.events += events.len();
        recent.bytes += bytes;
        recent.groups.push_back(Arc::new(Group { events, last, bytes }));
        while recent.events > self.max_events || recent.bytes > self.max_bytes {
            let Some(oldest) = recent.groups.pop_front() else { break };
            recent.events -= oldest.events.len();
            recent.bytes -= oldest.bytes;
            recent.start = oldest.last + 1;
        }
    }

    /// Groups with changes from `next` on (the first may hold older ones too), about `max_events` of them, and the
    /// revision up to which they are complete; `None` when the ring does not reach back that far.
    pub(super) fn since(&self, next: Revision, max_events: usize) -> Option<(Vec<Arc<Group>>, Revision)> {
        let recent = self.recent.lock();
        if next < recent.start {
            return None;
        }
        let first = recent.groups.partition_point(|group| group.last < next);
        let mut groups = Vec::new();
        let (mut events, mut through) = (0, next - 1);
        for group in recent.groups.range(first..) {
            if events >= max_events {
                break;
            }
            events += group.events.len();
            through = group.last;
            groups.push(group.clone());
        }
        Some((groups, through))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, KeyValue};

    fn event(revision: Revision) -> Event {
        let kv = KeyValue {
            key: "/k".into(),
            value: vec![0; 100].into(),
            create_revision: 2,
            mod_revision: revision,
        };
        Event { kind: EventKind::Put, kv, previous: None }
    }

    fn revisions(ring: &Ring, next: Revision, max_events: usize) -> Option<(Vec<Revision>, Revision)> {
        let (groups, through) = ring.since(next, max_events)?;
        Some((
            groups.iter().flat_map(|group| group.events.iter().map(|e| e.kv.mod_revision)).collect(),
            through,
        ))
    }

    #[test]
    fn ring_hands_out_whole_groups_and_says_how_far_they_reach() {
        let ring = Ring::new(1, 100, usize::MAX);
        assert_eq!(revisions(&ring, 2, 10), Some((vec![], 1)));
        assert_eq!(revisions(&ring, 1, 10), None, "before it was opened");
        ring.push(vec![event(2), event(3)]);
        ring.push(vec![]);
        ring.push(vec![event(4)]);
        assert_eq!(revisions(&ring, 2, 10), Some((vec![2, 3, 4], 4)));
        assert_eq!(revisions(&ring, 3, 10), Some((vec![2, 3, 4], 4)));
        assert_eq!(revisions(&ring, 2, 1), Some((vec![2, 3], 3)));
        assert_eq!(revisions(&ring, 5, 10), Some((vec![], 4)));
    }

    #[test]
    fn ring_forgets_the_oldest_beyond_its_bounds() {
        let by_events = Ring::new(1, 2, usize::MAX);
        let by_bytes = Ring::new(1, usize::MAX, 2 * event_bytes(&event(2)));
        for ring in [by_events, by_bytes] {
            (2..=5).for_each(|revision| ring.push(vec![event(revision)]));
            assert_eq!(revisions(&ring, 3, 10), None);
            assert_eq!(revisions(&ring, 4, 10), Some((vec![4, 5], 5)));
        }
    }

    #[test]
    fn commit_larger_than_the_ring_is_read_from_disk() {
        let ring = Ring::new(1, 2, usize::MAX);
        ring.push((2..=5).map(event).collect());
        assert_eq!(revisions(&ring, 2, 10), None);
        assert_eq!(revisions(&ring, 6, 10), Some((vec![], 5)));
    }
}
