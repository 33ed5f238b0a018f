//! Pods that wait for a place: active, backing off, unschedulable, or gated.
//!
//! Active pods come out by priority, then by how long they wait since they were tried. A pod that did not fit rests among the
//! unschedulable, with those that are placed by the same rules, until something happens that helps them. It is then
//! tried again when its back-off is over (1 s, doubled to 10 s), or as soon as nothing else waits. Whoever is forgotten by all
//! events comes back after five minutes. A pod is in one place at a time: heaps may hold stale tickets, which are
//! skipped, and thrown out when they are more than the others. Bounded by the number of pods in the cluster. Knows no
//! clock: times are spans since the scheduler's start.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hawser_api::resource::ObjectKey;

use crate::{
    config::Config,
    metrics::Cause,
    pod::{PodInfo, Wishes},
    profile::PluginSet,
};

/// Tickets that a heap may hold however few pods wait.
const TICKETS_KEPT: usize = 64;

type Uid = Arc<str>;
/// Pods of one sort are helped by the same.
type Sort = (Wishes, i32, Option<ObjectKey>);
type Timers = BinaryHeap<Reverse<(Duration, u64, Uid)>>;

pub(crate) struct Queue {
    backoff_first: Duration,
    backoff_last: Duration,
    retry_unschedulable: Duration,
    entries: HashMap<Uid, Entry>,
    active: BinaryHeap<Ranked>,
    /// When pods that back off, or that nothing helped, are due.
    timers: Timers,
    /// Those that back off although something helped them.
    helped: Timers,
    unschedulable: HashMap<Sort, Group>,
    /// Sorts by what refused them: most of what happens helps only those that one of a few plugins refused.
    by_plugins: HashMap<PluginSet, HashSet<Sort>>,
    /// Pods of each pod group, but for those that are gated.
    pod_groups: HashMap<ObjectKey, BTreeSet<Uid>>,
    counts: [usize; 4],
    /// Pods that came into each place, by what brought them.
    incoming: [[u64; Cause::ALL.len()]; 4],
    tickets: u64,
}

/// A pod with what the queue knows of it.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) pod: Arc<PodInfo>,
    /// Attempts that failed so far.
    pub(crate) attempts: u32,
    /// When it was first ready to be tried.
    pub(crate) entered: Duration,
    since: Duration,
    failed_at: Duration,
    /// Something helped it since it failed.
    helped: bool,
}

/// Unschedulable pods of one sort.
struct Group {
    one: Arc<PodInfo>,
    refused_by: PluginSet,
    uids: HashSet<Uid>,
}

struct Entry {
    waiting: Waiting,
    place: Place,
    /// The ticket that counts; others in the heaps are stale.
    ticket: u64,
}

/// Where a pod waits. The order is that of [`Place::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Active,
    BackingOff,
    Unschedulable,
    Gated,
}

impl Place {
    pub(crate) const ALL: [Self; 4] = [Self::Active, Self::BackingOff, Self::Unschedulable, Self::Gated];
}

#[derive(PartialEq, Eq)]
struct Ranked {
    priority: i32,
    since: Duration,
    ticket: u64,
    uid: Uid,
}

impl Waiting {
    fn new(pod: Arc<PodInfo>, now: Duration) -> Self {
        Self { pod, attempts: 0, entered: now, since: now, failed_at: now, helped: false }
    }

    /// The order in which pods of one group are tried.
    pub(crate) fn rank(&self) -> (Reverse<i32>, Duration, Uid) {
        (Reverse(self.pod.priority), self.since, self.pod.uid.clone())
    }

    fn failed(self, now: Duration) -> Self {
        Self { attempts: self.attempts + 1, since: now, failed_at: now, helped: false, ..self }
    }
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
            helped: BinaryHeap::new(),
            unschedulable: HashMap::new(),
            by_plugins: HashMap::new(),
            pod_groups: HashMap::new(),
            counts: [0; 4],
            incoming: [[0; Cause::ALL.len()]; 4],
            tickets: 0,
        }
    }

    /// Adds the pod, or takes over what changed. One whose needs changed is tried again.
    pub(crate) fn add(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let Some(mut entry) = self.take(&pod.uid) else {
            self.put(Waiting::new(pod, now), Place::Active, Some(Cause::UnschedulablePodAdd), now);
            return;
        };
        let known = std::mem::replace(&mut entry.waiting.pod, pod);
        let pod = &entry.waiting.pod;
        let changed = known.wishes() != pod.wishes() || known.priority != pod.priority;
        match entry.place {
            Place::Unschedulable if changed => {
                entry.waiting.helped = true;
                self.put(entry.waiting, Place::BackingOff, Some(Cause::UnschedulablePodUpdate), now);
            }
            Place::Gated => {
                (entry.waiting.since, entry.waiting.entered) = (now, now);
                self.put(entry.waiting, Place::Active, Some(Cause::UnschedulablePodUpdate), now);
            }
            Place::Unschedulable => self.rest(entry.waiting, entry.refused_by, None, now),
            place => self.put(entry.waiting, place, None, now),
        }
    }

    /// Keeps a pod that may not be placed yet.
    pub(crate) fn add_gated(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let cause = if self.take(&pod.uid).is_some() { None } else { Some(Cause::UnschedulablePodAdd) };
        self.put(Waiting::new(pod, now), Place::Gated, cause, now);
    }

    /// The pod, where it waits.
    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|entry| &entry.waiting.pod)
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// The next pod to place; the caller gives it back or binds it.
    pub(crate) fn pop(&mut self, now: Duration) -> Option<Waiting> {
        self.wake(now);
        while let Some(ranked) = self.active.pop() {
            if self.is_current(&ranked.uid, ranked.ticket) {
                return self.take(&ranked.uid).map(|taken| taken.waiting);
            }
        }
        while let Some(Reverse((_, ticket, uid))) = self.helped.pop() {
            if self.is_current(&uid, ticket) {
                return self.take(&uid).map(|taken| taken.waiting);
            }
        }
        None
    }

    /// All pods of a pod group that could be placed now, the most important first, wherever they wait.
    pub(crate) fn take_group(&mut self, key: &ObjectKey) -> Vec<Waiting> {
        let uids: Vec<Uid> = self.pod_groups.get(key).into_iter().flatten().cloned().collect();
        let mut all: Vec<Waiting> =
            uids.iter().filter_map(|uid| self.take(uid)).map(|taken| taken.waiting).collect();
        all.sort_by_key(Waiting::rank);
        all
    }

    /// No node can run the pod: it rests until something helps.
    pub(crate) fn give_back_unschedulable(&mut self, waiting: Waiting, refused_by: PluginSet, now: Duration) {
        self.rest(waiting.failed(now), refused_by, Some(Cause::ScheduleAttemptFailure), now);
    }

    /// The pod was not tried: it rests until it is woken by name.
    pub(crate) fn put_back(&mut self, waiting: Waiting, now: Duration) {
        self.rest(waiting, PluginSet::default(), None, now);
    }

    /// The pod is not to be tried before something helps, as if the plugins had refused it; it has no back-off for that.
    pub(crate) fn give_back_early(&mut self, waiting: Waiting, refused_by: PluginSet, now: Duration) {
        let waiting = Waiting { failed_at: now, helped: false, ..waiting };
        self.rest(waiting, refused_by, None, now);
    }

    /// The pod could not be tried yet: its turn comes again at once.
    pub(crate) fn give_back_untried(&mut self, waiting: Waiting, now: Duration) {
        self.put(waiting, Place::Active, None, now);
    }

    /// The pod's binding failed: it is tried again after its back-off.
    pub(crate) fn give_back_failed(&mut self, waiting: Waiting, now: Duration) {
        self.put(waiting.failed(now), Place::BackingOff, Some(Cause::ScheduleAttemptFailure), now);
    }

    /// Wakes the unschedulable pods of which `helped` says that they are, among those that plugins refused of which `may_help`
    /// says that it could be.
    pub(crate) fn activate(
        &mut self,
        cause: Cause,
        now: Duration,
        may_help: impl Fn(PluginSet) -> bool,
        helped: impl Fn(&PodInfo, PluginSet) -> bool,
    ) {
        let groups = self.groups(may_help).filter(|group| helped(&group.one, group.refused_by));
        let uids: Vec<Uid> = groups.flat_map(|group| group.uids.iter().cloned()).collect();
        uids.iter().for_each(|uid| self.help(uid, cause, now));
    }

    /// Wakes one pod, if it is unschedulable.
    pub(crate) fn activate_one(&mut self, uid: &str, now: Duration) {
        if self.entries.get(uid).is_some_and(|entry| entry.place == Place::Unschedulable) {
            self.help(uid, Cause::ForceActivate, now);
        }
    }

    /// One pod of each sort that is unschedulable, of those that some plugins refused.
    pub(crate) fn unschedulable(
        &self,
        refused_by: impl Fn(PluginSet) -> bool,
    ) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.groups(refused_by).map(|group| &group.one)
    }

    fn groups(&self, refused_by: impl Fn(PluginSet) -> bool) -> impl Iterator<Item = &Group> {
        let sets = self.by_plugins.iter().filter(move |(set, _)| refused_by(**set));
        sets.flat_map(|(_, sorts)| sorts).filter_map(|sort| self.unschedulable.get(sort))
    }

    /// When to look again, at the latest; `None` where nothing waits for time alone.
    pub(crate) fn next_wakeup(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, ..))| *at)
    }

    /// Unschedulable pods with what refuses them.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&Arc<PodInfo>, PluginSet, usize)> {
        self.unschedulable.values().map(|group| (&group.one, group.refused_by, group.uids.len()))
    }

    /// Pods that ever came into a place for a reason.
    pub(crate) fn came(&self, place: Place, cause: Cause) -> u64 {
        self.incoming[place as usize][cause as usize]
    }

    /// Pods in a place.
    pub(crate) fn count(&self, place: Place) -> usize {
        self.counts[place as usize]
    }

    #[cfg(test)]
    pub(crate) fn place_of(&self, uid: &str) -> Option<Place> {
        self.entries.get(uid).map(|entry| entry.place)
    }

    /// Moves pods whose time has come to the active ones.
    fn wake(&mut self, now: Duration) {
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
        {
            let Some(Reverse((_, ticket, uid))) = self.timers.pop() else {
                break;
            };
            if self.is_current(&uid, ticket)
                && let Some(taken) = self.take(&uid)
            {
                let cause = match taken.place {
                    Place::Unschedulable => Cause::UnschedulableTimeout,
                    _ => Cause::BackoffComplete,
                };
                self.put(taken.waiting, Place::Active, Some(cause), now);
            }
        }
    }

    fn is_current(&self, uid: &str, ticket: u64) -> bool {
        self.entries.get(uid).is_some_and(|entry| entry.ticket == ticket)
    }

    fn help(&mut self, uid: &str, cause: Cause, now: Duration) {
        if let Some(mut taken) = self.take(uid) {
            taken.waiting.helped = true;
            self.put(taken.waiting, Place::BackingOff, Some(cause), now);
        }
    }

    fn rest(&mut self, waiting: Waiting, refused_by: PluginSet, cause: Option<Cause>, now: Duration) {
        let pod = waiting.pod.clone();
        let sort = sort(&pod);
        let known = self.unschedulable.get(&sort).map(|group| group.refused_by);
        let refused_by = known.unwrap_or_default().union(refused_by);
        if known != Some(refused_by) {
            known.into_iter().for_each(|known| self.unlist(&sort, known));
            self.by_plugins.entry(refused_by).or_default().insert(sort.clone());
        }
        let group = self.unschedulable.entry(sort).or_insert_with(|| Group {
            one: pod.clone(),
            refused_by,
            uids: HashSet::new(),
        });
        group.refused_by = refused_by;
        group.uids.insert(pod.uid.clone());
        self.put(waiting, Place::Unschedulable, cause, now);
    }

    fn unlist(&mut self, sort: &Sort, refused_by: PluginSet) {
        if let Some(sorts) = self.by_plugins.get_mut(&refused_by) {
            sorts.remove(sort);
            if sorts.is_empty() {
                self.by_plugins.remove(&refused_by);
            }
        }
    }

    /// `cause` is unset where the pod only changed in its place.
    fn put(&mut self, waiting: Waiting, place: Place, cause: Option<Cause>, now: Duration) {
        self.tickets += 1;
        let (ticket, uid) = (self.tickets, waiting.pod.uid.clone());
        let until = self.backoff_until(&waiting);
        let place = if place == Place::BackingOff && until <= now { Place::Active } else { place };
        match place {
            Place::Active => {
                let (priority, since) = (waiting.pod.priority, waiting.since);
                self.active.push(Ranked { priority, since, ticket, uid: uid.clone() });
            }
            Place::BackingOff => {
                self.timers.push(Reverse((until, ticket, uid.clone())));
                if waiting.helped {
                    self.helped.push(Reverse((until, ticket, uid.clone())));
                }
            }
            Place::Unschedulable => {
                let forgotten = waiting.failed_at + self.retry_unschedulable;
                self.timers.push(Reverse((forgotten, ticket, uid.clone())));
            }
            Place::Gated => (),
        }
        self.counts[place as usize] += 1;
        if let Some(group) = waiting.pod.group.as_ref().filter(|_| place != Place::Gated) {
            self.pod_groups.entry(group.key.clone()).or_default().insert(uid.clone());
        }
        if let Some(cause) = cause {
            self.incoming[place as usize][cause as usize] += 1;
        }
        self.entries.insert(uid, Entry { waiting, place, ticket });
        self.tidy();
    }

    /// Throws out stale tickets, once there have been as many as pods: it costs each of them a fixed amount.
    fn tidy(&mut self) {
        let Self { entries, active, timers, helped, .. } = self;
        let is_current =
            |uid: &str, ticket: u64| entries.get(uid).is_some_and(|entry| entry.ticket == ticket);
        let most = 2 * entries.len() + TICKETS_KEPT;
        if active.len() > most {
            active.retain(|ranked| is_current(&ranked.uid, ranked.ticket));
        }
        for timers in [timers, helped] {
            if timers.len() > most {
                timers.retain(|Reverse((_, ticket, uid))| is_current(uid, *ticket));
            }
        }
    }

    fn take(&mut self, uid: &str) -> Option<Taken> {
        let Entry { waiting, place, .. } = self.entries.remove(uid)?;
        self.counts[place as usize] -= 1;
        if let Some(group) = &waiting.pod.group
            && let Some(uids) = self.pod_groups.get_mut(&group.key)
        {
            uids.remove(uid);
            if uids.is_empty() {
                self.pod_groups.remove(&group.key);
            }
        }
        let mut refused_by = PluginSet::default();
        if place == Place::Unschedulable {
            let sort = sort(&waiting.pod);
            if let Some(group) = self.unschedulable.get_mut(&sort) {
                refused_by = group.refused_by;
                group.uids.remove(uid);
                if group.uids.is_empty() {
                    self.unschedulable.remove(&sort);
                    self.unlist(&sort, refused_by);
                }
            }
        }
        Some(Taken { waiting, place, refused_by })
    }

    fn backoff_until(&self, waiting: &Waiting) -> Duration {
        if waiting.attempts == 0 {
            return waiting.failed_at;
        }
        let doublings = (waiting.attempts - 1).min(16);
        waiting.failed_at + (self.backoff_first * 2_u32.pow(doublings)).min(self.backoff_last)
    }
}

/// What is placed by the same rules, with the same priority, and by the same pod group.
fn sort(pod: &PodInfo) -> Sort {
    (pod.wishes(), pod.priority, pod.group.as_ref().map(|group| group.key.clone()))
}

/// A pod that left its place.
struct Taken {
    waiting: Waiting,
    place: Place,
    /// What refused it, where it was unschedulable.
    refused_by: PluginSet,
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use serde_json::json;

    use super::*;
    use crate::{
        profile::Plugin,
        testing::{info as read, pod},
    };

    fn info(name: &str, priority: i32) -> Arc<PodInfo> {
        read(&pod(name, json!({ "containers": [], "priority": priority })))
    }

    fn counts(queue: &Queue) -> (usize, usize, usize) {
        let [active, backing_off, unschedulable, _] = queue.counts;
        (active, backing_off, unschedulable)
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
        queue.give_back_unschedulable(waiting, PluginSet::ALL, START);
        assert_eq!(counts(&queue), (0, 0, 1));
        queue.activate(Cause::NodeUpdate, START, |_| true, |_, _| false);
        assert_eq!(pop(&mut queue, 100), None);
        // Help that comes early waits for the back-off, but not when nothing else waits.
        queue.activate(Cause::NodeUpdate, START, |_| true, |_, _| true);
        assert_eq!(counts(&queue), (0, 1, 0));
        queue.add(info("b", -1), START);
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("b"));
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("a"));
        assert_eq!(pop(&mut queue, 100), None);
    }

    #[test]
    fn pods_that_keep_failing_do_not_starve_others() {
        let mut queue = queue();
        let names: Vec<String> = (0..100).map(|index| format!("failing{index}")).collect();
        names.iter().for_each(|name| queue.add(info(name, 0), START));
        for _ in 0..100 {
            let waiting = queue.pop(START).unwrap();
            queue.give_back_unschedulable(waiting, PluginSet::ALL, Duration::from_secs(2));
        }
        queue.add(info("new", 0), Duration::from_secs(1));
        queue.activate(Cause::NodeUpdate, Duration::from_secs(20), |_| true, |_, _| true);
        assert_eq!(pop(&mut queue, 20).as_deref(), Some("new"));
    }

    #[test]
    fn gated_pods_wait_until_their_gates_are_gone() {
        let mut queue = queue();
        queue.add_gated(info("a", 0), START);
        queue.activate(Cause::NodeUpdate, START, |_| true, |_, _| true);
        assert_eq!(pop(&mut queue, 1000), None);
        assert_eq!(queue.count(Place::Gated), 1);
        queue.add(info("a", 0), Duration::from_secs(1000));
        assert_eq!(pop(&mut queue, 1000).as_deref(), Some("a"));
    }

    #[test]
    fn forgotten_pods_come_back() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        let waiting = queue.pop(START).unwrap();
        queue.give_back_unschedulable(waiting, PluginSet::ALL, START);
        assert_eq!(queue.next_wakeup(), Some(Duration::from_secs(300)));
        assert_eq!(pop(&mut queue, 299), None);
        assert_eq!(pop(&mut queue, 300).as_deref(), Some("a"));
    }

    #[test]
    fn pods_that_were_not_to_be_tried_have_no_back_off_and_come_back_once() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        for seconds in [0, 300] {
            let now = Duration::from_secs(seconds);
            let waiting = queue.pop(now).unwrap();
            queue.give_back_early(waiting, PluginSet::ALL, now);
            assert_eq!(pop(&mut queue, seconds), None);
        }
        queue.activate(Cause::ResourceClaimUpdate, Duration::from_secs(301), |_| true, |_, _| true);
        assert_eq!(counts(&queue), (1, 0, 0));
    }

    #[test]
    fn pods_that_change_often_leave_no_heap_of_tickets() {
        let mut queue = queue();
        let resting = info("resting", 0);
        queue.add(resting.clone(), START);
        let waiting = queue.pop(START).unwrap();
        queue.give_back_unschedulable(waiting, PluginSet::ALL, START);
        for _ in 0..1000 {
            queue.add(info("active", 0), START);
            queue.add(resting.clone(), START);
        }
        assert!(queue.active.len().max(queue.timers.len()) < 100);
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("active"));
        assert_eq!(pop(&mut queue, 299), None);
        assert_eq!(pop(&mut queue, 300).as_deref(), Some("resting"));
    }

    #[test]
    fn only_those_are_asked_about_that_may_be_helped() {
        let mut queue = queue();
        let (fit, spread) = (Plugin::NodeResourcesFit, Plugin::PodTopologySpread);
        for (name, priority, plugins) in
            [("fit", 1, vec![fit]), ("spread", 2, vec![spread]), ("both", 3, vec![fit, spread])]
        {
            // A sort of its own each, by what it asks for.
            let spec = json!({ "containers": [{ "name": name, "image": name }], "priority": priority });
            queue.add(read(&pod(name, spec)), START);
            let waiting = queue.pop(START).unwrap();
            queue.give_back_unschedulable(waiting, PluginSet::of(&plugins), START);
        }
        let asked = RefCell::new(Vec::new());
        let refused_by = |plugin: Plugin| move |set: PluginSet| set.contains(plugin);
        queue.activate(Cause::NodeUpdate, START, refused_by(spread), |pod, _| {
            asked.borrow_mut().push(pod.key.name.clone());
            pod.key.name == "both"
        });
        asked.borrow_mut().sort();
        assert_eq!(*asked.borrow(), ["both", "spread"]);
        assert_eq!(queue.unschedulable(refused_by(fit)).count(), 1);
        queue.remove("fit");
        queue.remove("spread");
        assert!(queue.by_plugins.is_empty() && queue.unschedulable.is_empty());
    }

    #[test]
    fn a_pod_is_in_one_place() {
        let mut queue = queue();
        queue.add(info("a", 0), START);
        queue.add(info("a", 0), START);
        queue.add(info("a", 9), START);
        assert_eq!(counts(&queue), (1, 0, 0));
        assert_eq!(pop(&mut queue, 0).as_deref(), Some("a"));
        assert_eq!(pop(&mut queue, 0), None);
        queue.add(info("b", 0), START);
        queue.remove("b");
        assert_eq!(pop(&mut queue, 0), None);
    }
}
