//! Pods that wait for a place: active, backing off, or unschedulable.
//!
//! Active pods come out by priority, then by how long they wait. A pod that did not fit rests among the
//! unschedulable, by shape, until something changes that its shape is helped by, and is then tried again, but not
//! before its back-off is over (1 s, doubled to 10 s). Whoever is forgotten by all events comes back after five
//! minutes. A pod is in one place at a time: heaps may hold stale tickets, which are skipped. Bounded by the
//! number of pods in the cluster. Knows no clock: times are spans since the scheduler's start.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    config::Config,
    pod::{PodInfo, Shape},
};

type Uid = Arc<str>;

pub(crate) struct Queue {
    backoff_first: Duration,
    backoff_last: Duration,
    retry_unschedulable: Duration,
    entries: HashMap<Uid, Entry>,
    active: BinaryHeap<Ranked>,
    /// When pods that back off, or that nothing helped, are due.
    timers: BinaryHeap<Reverse<(Duration, u64, Uid)>>,
    unschedulable: HashMap<Arc<Shape>, HashSet<Uid>>,
    tickets: u64,
}

/// A pod with what the queue knows of it.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) pod: Arc<PodInfo>,
    /// Attempts that failed so far.
    attempts: u32,
    since: Duration,
    failed_at: Duration,
}

struct Entry {
    waiting: Waiting,
    place: Place,
    /// The ticket that counts; others in the heaps are stale.
    ticket: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    BackingOff,
    Unschedulable,
}

#[derive(PartialEq, Eq)]
struct Ranked {
    priority: i32,
    since: Duration,
    ticket: u64,
    uid: Uid,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the highest priority, then the earliest.
        let earlier = (other.since, other.ticket).cmp(&(self.since, self.ticket));
        self.priority.cmp(&other.priority).then(earlier)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Queue {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            backoff_first: config.backoff_first,
            backoff_last: config.backoff_last,
            retry_unschedulable: config.retry_unschedulable,
            entries: HashMap::new(),
            active: BinaryHeap::new(),
            timers: BinaryHeap::new(),
            unschedulable: HashMap::new(),
            tickets: 0,
        }
    }

    /// Adds the pod, or takes over what changed. One whose needs changed is tried again.
    pub(crate) fn add(&mut self, pod: PodInfo, now: Duration) {
        let Some(mut entry) = self.take(&pod.uid) else {
            let waiting = Waiting { pod: Arc::new(pod), attempts: 0, since: now, failed_at: now };
            self.put(waiting, Place::Active, now);
            return;
        };
        let changed = entry.waiting.pod.shape != pod.shape || entry.waiting.pod.priority != pod.priority;
        entry.waiting.pod = Arc::new(pod);
        let place =
            if changed && entry.place == Place::Unschedulable { Place::BackingOff } else { entry.place };
        self.put(entry.waiting, place, now);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// The next pod to place; the caller gives it back or binds it.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Waiting> {
        self.wake(now);
        while let Some(ranked) = self.active.pop() {
            if self.entries.get(&ranked.uid).is_some_and(|entry| entry.ticket == ranked.ticket) {
                return self.take(&ranked.uid).map(|entry| entry.waiting);
            }
        }
        None
    }

    /// No node can run the pod: it rests until something helps.
    pub(crate) fn give_back_unschedulable(&mut self, mut waiting: Waiting, now: Duration) {
        waiting.attempts += 1;
        waiting.failed_at = now;
        self.put(waiting, Place::Unschedulable, now);
    }

    /// The pod's binding failed: it is tried again after its back-off.
    pub(crate) fn give_back_failed(&mut self, mut waiting: Waiting, now: Duration) {
        waiting.attempts += 1;
        waiting.failed_at = now;
        self.put(waiting, Place::BackingOff, now);
    }

    /// Wakes the unschedulable pods whose shape `helped` says a change helps.
    pub(crate) fn activate(&mut self, now: Duration, helped: impl Fn(&Shape) -> bool) {
        let shapes: Vec<Arc<Shape>> =
            self.unschedulable.keys().filter(|shape| helped(shape)).cloned().collect();
        for shape in shapes {
            for uid in self.unschedulable.get(&shape).cloned().unwrap_or_default() {
                self.move_to(&uid, Place::BackingOff, now);
            }
        }
    }

    /// When to look again, at the latest; `None` where nothing waits for time alone.
    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Pods that are active, backing off, unschedulable.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let of = |place| self.entries.values().filter(|entry| entry.place == place).count();
        (of(Place::Active), of(Place::BackingOff), of(Place::Unschedulable))
    }

    /// Moves pods whose time has come to the active ones.
    fn wake(&mut self, now: Duration) {
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
        {
            let Some(Reverse((_, ticket, uid))) = self.timers.pop() else {
                break;
            };
            if self.entries.get(&uid).is_some_and(|entry| entry.ticket == ticket) {
                self.move_to(&uid, Place::Active, now);
            }
        }
    }

    fn move_to(&mut self, uid: &str, place: Place, now: Duration) {
        if let Some(entry) = self.take(uid) {
            self.put(entry.waiting, place, now);
        }
    }

    fn put(&mut self, waiting: Waiting, place: Place, now: Duration) {
        self.tickets += 1;
        let (ticket, uid) = (self.tickets, waiting.pod.uid.clone());
        let until = self.backoff_until(&waiting);
        let place = if place == Place::BackingOff && until <= now { Place::Active } else { place };
        match place {
            Place::Active => {
                let (priority, since) = (waiting.pod.priority, waiting.since);
                self.active.push(Ranked { priority, since, ticket, uid: uid.clone() });
            }
            Place::BackingOff => self.timers.push(Reverse((until, ticket, uid.clone()))),
            Place::Unschedulable => {
                let forgotten = waiting.failed_at + self.retry_unschedulable;
                self.timers.push(Reverse((forgotten, ticket, uid.clone())));
                self.unschedulable.entry(waiting.pod.shape.clone()).or_default().insert(uid.clone());
            }
        }
        self.entries.insert(uid, Entry { waiting, place, ticket });
    }

    fn take(&mut self, uid: &str) -> Option<Entry> {
        let entry = self.entries.remove(uid)?;
        if entry.place == Place::Unschedulable
            && let Some(uids) = self.unschedulable.get_mut(&entry.waiting.pod.shape)
        {
            uids.remove(uid);
            if uids.is_empty() {
                self.unschedulable.remove(&entry.waiting.pod.shape);
            }
        }
        Some(entry)
    }

    fn backoff_until(&self, waiting: &Waiting) -> Duration {
        if waiting.attempts == 0 {
            return waiting.failed_at;
        }
        let doublings = (waiting.attempts - 1).min(16);
        waiting.failed_at + (self.backoff_first * 2_u32.pow(doublings)).min(self.backoff_last)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::pod;

    fn info(name: &str, priority: i32) -> PodInfo {
        PodInfo::of(&pod(name, json!({ "containers": [], "priority": priority })))
    }

    fn queue() -> Queue {
        Queue::new(&Config::default())
    }

    fn pop(queue: &mut Queue, seconds: u64) -> Option<String> {
        queue.pop(Duration::from_secs(seconds)).map(|waiting| waiting.pod.key.name.clone())
    }

    const START: Duration = Duration::ZERO;

    #[test]
    fn priority_first_then_who_waits_longest() {
        let mut queue = queue();
        queue.add(info("low", 1), START);
        queue.add(info("late", 5), Duration::from_secs(2));
        queue.add(info("early", 5), Duration::from_secs(1));
        assert_eq!(
            [pop(&mut queue, 3), pop(&mut queue, 3), pop(&mut queue, 3), pop(&mut queue, 3)]
                .map(Option::unwrap_or_default),
            ["early", "late", "low", ""]
        );
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        let mut now = START;
        for seconds in [1, 2, 4, 8, 10, 10] {
            let waiting = queue.pop(now).unwrap();
            queue.give_back_failed(waiting, now);
            let until = now + Duration::from_secs(seconds);
            assert_eq!(queue.next_wakeup(), Some(until));
            assert!(queue.pop(until - Duration::from_millis(1)).is_none());
            now = until;
        }
    }

    #[test]
    fn unschedulable_pods_wake_when_something_helps() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        let waiting = queue.pop(START).unwrap();
        queue.give_back_unschedulable(waiting, START);
        assert_eq!(queue.counts(), (0, 0, 1));
        queue.activate(START, |_| false);
        assert_eq!(pop(&mut queue, 100), None);
        // Help that comes early waits for the back-off; late help does not.
        queue.activate(START, |_| true);
        assert_eq!(queue.counts(), (0, 1, 0));
        assert_eq!(pop(&mut queue, 0), None);
        assert_eq!(pop(&mut queue, 1).as_deref(), Some("a"));
    }

    #[test]
    fn forgotten_pods_come_back() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        let waiting = queue.pop(START).unwrap();
        queue.give_back_unschedulable(waiting, START);
        assert_eq!(queue.next_wakeup(), Some(Duration::from_secs(300)));
        assert_eq!(pop(&mut queue, 299), None);
        assert_eq!(pop(&mut queue, 300).as_deref(), Some("a"));
    }

    #[test]
    fn a_pod_is_in_one_place() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        queue.add(info("a", 0), START);
        queue.add(info("a", 9), START);
        assert_eq!(queue.counts(), (1, 0, 0));
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("a"));
        assert_eq!(pop(&mut queue, 0), None);
        queue.add(info("b", 0), START);
        queue.remove("b");
        assert_eq!(pop(&mut queue, 0), None);
    }
}
