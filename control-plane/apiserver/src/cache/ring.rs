//! The recent events of one kind: a bounded log that one task appends to and any number of watchers read.
//!
//! Events have consecutive sequence numbers. A watcher holds a number, not the events: what falls off the ring is
//! freed even if a watcher has not come that far, and the watcher is told 410 at its next look. So a slow watcher costs
//! nobody anything, and the ring is the only bound there is. Appending publishes a new [`Ring`] value that shares all
//! segments with the one before; slots of the last segment are set once, before the length that covers them is published.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use hawser_store::Revision;

use super::object::CachedObject;

/// Slots of a segment: what is freed at a time.
const SEGMENT: u64 = 256;

/// Events a ring keeps: what a watcher may be behind. At 64 segments a kind that changes 1,000 times a second
/// gives a disconnected watcher 16 s to come back without a relist.
const MAX_EVENTS: u64 = 64 * SEGMENT;

/// Bytes of objects that a ring may hold on to; kinds with large objects keep fewer events.
const MAX_BYTES: usize = 64 << 20;

/// A change of one object.
pub struct Event {
    pub revision: Revision,
    /// The object after the change; for a deletion its last state under the deletion's revision.
    pub object: Arc<CachedObject>,
    pub previous: Option<Arc<CachedObject>>,
    pub deleted: bool,
    /// An event before this one has the same revision: one write changed several objects of the kind.
    continues: bool,
    /// `previous` under this event's revision, for watchers whose selector the object left.
    left: OnceLock<Arc<CachedObject>>,
}

impl Event {
    pub fn new(
        revision: Revision,
        object: Arc<CachedObject>,
        previous: Option<Arc<CachedObject>>,
        deleted: bool,
    ) -> Self {
        Self { revision, object, previous, deleted, continues: false, left: OnceLock::new() }
    }

    /// What a watcher is shown when the object left its selector: the last state that matched.
    pub fn left(&self) -> Option<Arc<CachedObject>> {
        let previous = self.previous.as_ref()?;
        Some(self.left.get_or_init(|| Arc::new(previous.at_revision(self.revision))).clone())
    }
}

struct Segment {
    slots: Box<[OnceLock<Arc<Event>>]>,
}

impl Segment {
    fn new() -> Arc<Self> {
        Arc::new(Self { slots: (0..SEGMENT).map(|_| OnceLock::new()).collect() })
    }

    fn bytes(&self) -> usize {
        self.slots.iter().filter_map(OnceLock::get).map(|event| event.object.json().len()).sum()
    }
}

/// A published state of the log.
#[derive(Clone)]
pub struct Ring {
    /// Sequence number of the first slot of the first segment.
    first: u64,
    /// Sequence number of the next event.
    next: u64,
    /// A reader who was told an event of this revision finds all that followed it in the ring.
    floor: Revision,
    segments: Arc<VecDeque<Arc<Segment>>>,
    bytes: usize,
}

impl Ring {
    /// An empty log that is complete after `floor`.
    pub fn new(floor: Revision) -> Self {
        Self { first: 0, next: 0, floor, segments: Arc::default(), bytes: 0 }
    }

    /// An empty log whose numbers begin at `first`, so that readers of an earlier one do not find theirs in it.
    pub fn starting_at(first: u64, floor: Revision) -> Self {
        Self { first, next: first, ..Self::new(floor) }
    }

    /// Appends an event; only the one task that feeds the cache calls this, on the newest ring.
    pub fn push(&mut self, mut event: Event) {
        let last = self.next.checked_sub(1).and_then(|last| self.get(last));
        event.continues = last.is_some_and(|last| last.revision == event.revision);
        self.bytes += event.object.json().len();
        if self.next == self.first + self.segments.len() as u64 * SEGMENT {
            let segments = Arc::make_mut(&mut self.segments);
            segments.push_back(Segment::new());
        }
        let at = self.next - self.first;
        let segment = &self.segments[(at / SEGMENT) as usize];
        let fresh = segment.slots[(at % SEGMENT) as usize].set(Arc::new(event)).is_ok();
        debug_assert!(fresh, "a slot is set once");
        self.next += 1;
        while self.segments.len() > 1 && (self.next - self.first > MAX_EVENTS || self.bytes > MAX_BYTES) {
            self.drop_segment();
        }
    }

    fn drop_segment(&mut self) {
        let Some(segment) = Arc::make_mut(&mut self.segments).pop_front() else { return };
        self.bytes = self.bytes.saturating_sub(segment.bytes());
        self.first += SEGMENT;
        if let Some(last) = segment.slots.last().and_then(OnceLock::get) {
            // Nobody knows how much of it a reader at that revision was told, unless it was all.
            self.floor = last.revision + u64::from(last.continues);
        }
    }

    pub fn get(&self, sequence: u64) -> Option<&Arc<Event>> {
        if sequence < self.first || sequence >= self.next {
            return None;
        }
        let at = sequence - self.first;
        self.segments[(at / SEGMENT) as usize].slots[(at % SEGMENT) as usize].get()
    }

    /// Sequence number of the next event.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The oldest sequence number that is still here.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The oldest revision from which a watch misses nothing.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// Sequence number from which a reader goes on that was told an event of `revision`; `None` where events are gone.
    ///
    /// Where one write changed several objects, the reader may have been told of the first alone: it is told of the others
    /// once more, since a change that is repeated harms nobody and one that is missing is never made good.
    pub fn after(&self, revision: Revision) -> Option<u64> {
        if revision < self.floor {
            return None;
        }
        let (mut low, mut high) = (self.first, self.next);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle) {
                Some(event) if event.revision < revision => low = middle + 1,
                _ => high = middle,
            }
        }
        let is_told = self.get(low).is_some_and(|event| event.revision == revision && !event.continues);
        Some(low + u64::from(is_told))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn push(ring: &mut Ring, revision: Revision) {
        let json = Bytes::from(r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"b"}}"#);
        let object = CachedObject::parse("/registry/pods/b/a".into(), &json, revision).expect("a pod");
        ring.push(Event::new(revision, Arc::new(object), None, false));
    }

    #[test]
    fn a_reader_resumes_after_the_revision_it_saw() {
        let mut ring = Ring::new(10);
        for revision in [12, 15, 15, 15, 20] {
            push(&mut ring, revision);
        }
        assert_eq!(ring.after(9), None);
        assert_eq!(ring.after(10), Some(0));
        assert_eq!(ring.after(12), Some(1));
        assert_eq!(ring.after(14), Some(1));
        assert_eq!(ring.after(15), Some(2), "it may have seen the first of three alone");
        assert_eq!(ring.after(16), Some(4));
        assert_eq!(ring.after(20), Some(5));
        assert_eq!(ring.after(99), Some(5));
    }

    #[test]
    fn a_reader_of_half_a_revision_is_told_when_the_other_half_is_gone() {
        // The first segment that falls off ends with the first, or with the second, of two events of one revision.
        for (beginning, resumes) in [(SEGMENT - 1, true), (SEGMENT - 2, false)] {
            let mut ring = Ring::new(0);
            for revision in 1..=beginning {
                push(&mut ring, revision);
            }
            push(&mut ring, beginning + 1);
            push(&mut ring, beginning + 1);
            for revision in beginning + 2..MAX_EVENTS + 2 {
                push(&mut ring, revision);
            }
            assert_eq!(ring.first(), SEGMENT);
            assert_eq!(ring.after(beginning + 1), resumes.then_some(SEGMENT), "{beginning}");
            assert_eq!(ring.after(beginning + 2), Some(SEGMENT + 1 + u64::from(resumes)));
        }
    }

    #[test]
    fn old_events_fall_off_and_move_the_floor() {
        let mut ring = Ring::new(0);
        for revision in 1..=MAX_EVENTS + 1 {
            push(&mut ring, revision);
        }
        assert_eq!(ring.first(), SEGMENT);
        assert_eq!(ring.floor(), SEGMENT);
        assert_eq!(ring.after(SEGMENT - 1), None);
        assert_eq!(ring.after(SEGMENT), Some(SEGMENT));
        assert!(ring.get(SEGMENT - 1).is_none() && ring.get(SEGMENT).is_some());
    }

    #[test]
    fn a_published_ring_does_not_see_later_events() {
        let mut ring = Ring::new(0);
        push(&mut ring, 1);
        let published = ring.clone();
        push(&mut ring, 2);
        assert!(published.get(1).is_none() && ring.get(1).is_some());
    }
}
