//! Work queue of the controllers: a key is held by at most one worker.
//!
//! A key added while it is being worked on is handed out again on `done`, so no change is lost.
//! Retries wait 5 ms, doubling up to 1,000 s (client-go's defaults). Delayed keys wait on the runtime's clock,
//! so that tests can pause it. Knows keys, not objects: a key is in the queue once, however often it is
//! added, so the queue is bounded by the number of objects that its controller watches.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_LAST: Duration = Duration::from_secs(1000);

/// What a queue can hold.
pub(crate) trait Key: Clone + Eq + Ord + Hash + Send + Sync + 'static {}

impl<T: Clone + Eq + Ord + Hash + Send + Sync + 'static> Key for T {}

/// Cheap to clone; all clones are one queue.
pub(crate) struct Queue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    /// Wakes one worker; a worker that leaves work behind passes it on.
    changed: Notify,
}

struct State<K> {
    /// Keys to hand out, in order. Each of them is in `dirty` and not in `held`.
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready`, and those that were added while held.
    dirty: HashSet<K>,
    /// Keys that workers have.
    held: HashSet<K>,
    /// Keys to add later. Entries that do not agree with `due` are stale.
    delayed: BinaryHeap<Reverse<(Instant, K)>>,
    /// When each delayed key is due: the earliest time asked for.
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    closed: bool,
}

impl<K: Key> Queue<K> {
    pub(crate) fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            held: HashSet::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            closed: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Marks `key` as needing work. Never blocks.
    pub(crate) fn add(&self, key: K) {
        self.shared.state.lock().add(key);
        self.shared.changed.notify_one();
    }

    /// Adds `key` after `delay`, or earlier where it already waits for an earlier time.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.shared.state.lock().delay(key, Instant::now() + delay);
        self.shared.changed.notify_one();
    }

    /// Adds `key` after a delay that doubles with each failure; returns the delay.
    pub(crate) fn retry(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.shared.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = RETRY_FIRST.saturating_mul(1 << (*failures).min(18)).min(RETRY_LAST);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
        delay
    }

    /// Forgets the failures of `key`: its next retry waits shortly again.
    pub(crate) fn forget(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// Waits for a key and holds it until [`Queue::done`]. `None` after [`Queue::close`].
    ///
    /// Cancel safe: a key is taken only by a call that returns it.
    pub(crate) async fn next(&self) -> Option<K> {
        loop {
            let wake_at = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    return None;
                }
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return Some(key);
                }
                state.next_due()
            };
            match wake_at {
                Some(at) => {
                    tokio::select! {
                        () = self.shared.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.shared.changed.notified().await,
            }
        }
    }

    /// Gives `key` back; if it was added meanwhile, it is handed out again.
    pub(crate) fn done(&self, key: &K) {
        let mut state = self.shared.state.lock();
        state.held.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    /// No key is handed out any more; workers finish what they hold.
    pub(crate) fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_waiters();
        // A worker between its look at the state and its wait would miss the line above.
        self.shared.changed.notify_one();
    }
}

impl<K: Key> State<K> {
    fn add(&mut self, key: K) {
        self.due.remove(&key);
        if self.dirty.insert(key.clone()) && !self.held.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        if self.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        self.due.insert(key.clone(), at);
        self.delayed.push(Reverse((at, key)));
    }

    fn promote(&mut self, now: Instant) {
        while self.next_due().is_some_and(|at| at <= now) {
            if let Some(Reverse((_, key))) = self.delayed.pop() {
                self.add(key);
            }
        }
    }

    /// When the next delayed key is due; drops stale entries on the way.
    fn next_due(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, key))) = self.delayed.peek() {
            if self.due.get(key) == Some(at) {
                return Some(*at);
            }
            self.delayed.pop();
        }
        None
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.held.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn key_added_twice_is_handed_out_once() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(queue.next().await, Some("b"));
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn key_added_while_held_comes_again_after_done() {
        let queue = Queue::new();
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn retries_double_and_forget_starts_over() {
        let queue = Queue::new();
        let delays: Vec<u128> = (0..4).map(|_| queue.retry("a").as_millis()).collect();
        assert_eq!(delays, [5, 10, 20, 40]);
        for _ in 0..40 {
            queue.retry("a");
        }
        assert_eq!(queue.retry("a"), RETRY_LAST);
        queue.forget(&"a");
        assert_eq!(queue.retry("a"), RETRY_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn earliest_delay_wins_and_a_plain_add_takes_its_place() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn every_waiting_worker_is_woken_for_its_share() {
        let queue = Queue::new();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        (0..4).for_each(|key| queue.add(key));
        let mut taken = Vec::new();
        for worker in workers {
            taken.push(worker.await.unwrap().unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn closed_queue_sends_all_workers_home() {
        let queue: Queue<u32> = Queue::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
}
