//! Resource quotas: counts what is there into `status.used`, and puts `spec.hard` into effect.
//!
//! Admission charges what is made; this controller gives back what has gone, and counts all when a quota is new or
//! changed. The order keeps it exact: it reads the quota, then lists what it counts, then writes on the version that it
//! read. Admission writes a charge and its object together, so an object that the list misses was charged after the read,
//! and the write fails and is tried again.
//!
//! What tells of changes are the caches of pods, services and claims, and one watch for each other kind that a quota
//! names; all quotas are counted again at a period, whatever was heard.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use hawser_api::{
    Api, Error,
    client::{ListOptions, WatchEvent, WatchOptions},
    kinds::{KINDS, Kind},
    resource::{ObjectKey, Target},
    typed::decode,
    usage::{
        self, Amounts, amounts,
        quota::{Counted, stuck_from},
    },
};
use k8s_openapi::{
    api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::api::resource::Quantity,
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    Context, Starts,
    meta::{MetaExt, now, pod_is_terminal},
    queue::Queue,
    worker::{Next, Reconciler},
};

/// Changes that come together are counted together.
const GATHER: Duration = Duration::from_millis(100);
/// How soon a watch that ended is opened again.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// How many times as long as it took a count rests before the next: large namespaces cost one processor a tenth.
const REST: u32 = 9;

type ResourceList = BTreeMap<String, Quantity>;

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("resourcequota") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let monitors =
        Arc::new(Monitors { context: context.clone(), queue: queue.clone(), tasks: Mutex::default() });
    let changed = queue.clone();
    context.caches.resource_quotas.on_change(move |change| {
        // Charges are admission's, and need no count.
        let is_same = |old: &ResourceQuota, new: &ResourceQuota| {
            let hard = |quota: &ResourceQuota| quota.status.as_ref().and_then(|status| status.hard.clone());
            old.spec == new.spec && hard(old) == hard(new) && hard(new).is_some()
        };
        if !matches!((change.old, change.new), (Some(old), Some(new)) if is_same(old, new)) {
            changed.add(change.key.clone());
        }
    });
    let wake = |changed: Queue<ObjectKey>| {
        // Weak: the caches, which own these handlers, are in the context.
        let weak = Arc::downgrade(&context);
        move |namespace: &str| {
            if let Some(context) = weak.upgrade() {
                recount(&context, &changed, namespace);
            }
        }
    };
    let changed = wake(queue.clone());
    context.caches.pods.on_change(move |change| {
        let ends = |old: &Pod, new: &Pod| {
            pod_is_terminal(new) != pod_is_terminal(old) || new.is_deleting() != old.is_deleting()
        };
        if change.old.is_some_and(|old| change.new.is_none_or(|new| ends(old, new))) {
            changed(&change.key.namespace);
        }
    });
    let changed = wake(queue.clone());
    context.caches.services.on_change(move |change| {
        if change.old.is_some_and(|old| change.new.is_none_or(|new| new.spec != old.spec)) {
            changed(&change.key.namespace);
        }
    });
    let changed = wake(queue.clone());
    context.caches.claims.on_change(move |change| {
        if change.old.is_some() {
            changed(&change.key.namespace);
        }
    });
    let (changed, loop_context) = (queue.clone(), context.clone());
    starts.add_loop(|shutdown| resync(loop_context, changed, shutdown));
    let workers = context.config.workers;
    starts.add(Controller { context, monitors, rests: Mutex::default() }, queue, workers);
}

async fn resync(context: Arc<Context>, queue: Queue<ObjectKey>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(context.config.resource_quota_sync_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                context.caches.resource_quotas.all().iter().for_each(|quota| queue.add(ObjectKey::of(&**quota)));
            }
            () = shutdown.cancelled() => return,
        }
    }
}

struct Controller {
    context: Arc<Context>,
    monitors: Arc<Monitors>,
    rests: Mutex<Rests>,
}

/// Until when quotas are not counted again. Bounded by the quotas.
#[derive(Default)]
struct Rests(HashMap<ObjectKey, Instant>);

impl Rests {
    fn left(&self, key: &ObjectKey) -> Option<Duration> {
        let left = self.0.get(key)?.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    fn counted(&mut self, key: &ObjectKey, spent: Duration) {
        self.0.insert(key.clone(), Instant::now() + spent * REST);
    }
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "resourcequota";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        if self.context.caches.resource_quotas.get(key).is_none() {
            self.rests.lock().0.remove(key);
            return Ok(Next::Done);
        }
        if let Some(left) = self.rests.lock().left(key) {
            return Ok(Next::After(left));
        }
        let began = Instant::now();
        let outcome = self.recount(key).await;
        self.rests.lock().counted(key, began.elapsed());
        outcome
    }
}

impl Controller {
    async fn recount(&self, key: &ObjectKey) -> Result<Next, Error> {
        let quotas: Api<ResourceQuota> = Api::namespaced(self.context.client.clone(), &key.namespace);
        // The cache may be behind: what is counted must be at least as new as the version that is written.
        let Some(mut quota) = quotas.find(&key.name).await? else { return Ok(Next::Done) };
        let spec = serde_json::to_value(&quota.spec).map_err(Error::internal)?;
        let hard = amounts(&spec["hard"]);
        let (used, again) = self.count(&key.namespace, &spec, &hard).await?;
        let before = quota.status.clone().unwrap_or_default();
        let is_same = |list: &Option<ResourceList>, amounts: &Amounts| {
            list.as_ref().is_some_and(|list| read(list) == *amounts)
        };
        if !is_same(&before.hard, &hard) || !is_same(&before.used, &used) {
            quota.status = Some(ResourceQuotaStatus { hard: Some(write(&hard)), used: Some(write(&used)) });
            quotas.update_status(&quota).await?;
        }
        Ok(again.map_or(Next::Done, Next::After))
    }

    /// What the namespace uses of the quota, and when a pod that does not end stops counting.
    async fn count(
        &self,
        namespace: &str,
        spec: &Value,
        hard: &Amounts,
    ) -> Result<(Amounts, Option<Duration>), Error> {
        let names: Vec<&str> = hard.keys().map(String::as_str).collect();
        let (mut used, mut again) = (Amounts::new(), None::<Duration>);
        let now = now();
        for kind in counted_kinds() {
            let counted = Counted { group: kind.group, resource: kind.plural };
            let own: Vec<&str> = names.iter().copied().filter(|name| counted.counts_as(name)).collect();
            if own.is_empty() {
                continue;
            }
            self.monitors.follow(kind);
            for name in &own {
                used.entry((*name).to_owned()).or_default();
            }
            let collection = Target::collection(kind.resource(kind.versions[0].name), Some(namespace));
            for item in self.context.client.list(&collection, &ListOptions::default()).await?.items {
                let object: Value = decode(&item)?;
                if !counted.is_matched(spec, &own, &object) {
                    continue;
                }
                let mut uses = counted.usage(&object, now);
                uses.retain(|name, _| own.contains(&name.as_str()));
                usage::add(&mut used, &uses);
                if let Some(left) =
                    stuck_from(&object).and_then(|at| Duration::try_from(at.duration_since(now)).ok())
                {
                    let left = left + GATHER;
                    again = Some(again.map_or(left, |known| known.min(left)));
                }
            }
        }
        Ok((used, again))
    }
}

fn read(list: &ResourceList) -> Amounts {
    list.iter().filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?))).collect()
}

fn write(amounts: &Amounts) -> ResourceList {
    amounts.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string()))).collect()
}

/// The kinds that quotas can count.
fn counted_kinds() -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| {
        kind.namespaced
            && kind.storage.is_some()
            && !kind.is_view()
            && kind.plural != "events"
            && kind.has_verb("list")
            && kind.has_verb("watch")
    })
}

/// Watches of the kinds that quotas count by number. Bounded by the table of kinds.
struct Monitors {
    context: Arc<Context>,
    queue: Queue<ObjectKey>,
    tasks: Mutex<HashMap<String, AbortOnDrop>>,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Monitors {
    /// Makes sure that somebody hears of deletions of the kind.
    fn follow(&self, kind: &'static Kind) {
        let is_cached =
            kind.group.is_empty() && matches!(kind.plural, "pods" | "services" | "persistentvolumeclaims");
        if is_cached {
            return;
        }
        let mut tasks = self.tasks.lock();
        tasks.entry(kind.qualified()).or_insert_with(|| {
            let (context, queue) = (self.context.clone(), self.queue.clone());
            let target = Target::collection(kind.resource(kind.versions[0].name), None);
            AbortOnDrop(tokio::spawn(watch_deletions(context, queue, target)))
        });
    }
}

/// Counts the quotas of a namespace again when an object is deleted there. What a break hid, the next period finds.
async fn watch_deletions(context: Arc<Context>, queue: Queue<ObjectKey>, target: Target) {
    loop {
        if let Err(error) = follow_deletions(&context, &queue, &target).await {
            debug!(resource = %target.resource, %error, "watch ended");
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

async fn follow_deletions(context: &Context, queue: &Queue<ObjectKey>, target: &Target) -> Result<(), Error> {
    let listed = context.client.list(target, &ListOptions::default()).await?;
    let options = WatchOptions { resource_version: listed.resource_version, ..WatchOptions::default() };
    let mut events = context.client.watch(target, &options).await?;
    while let Some(event) = events.next().await {
        if let WatchEvent::Deleted { object, .. } = event? {
            let object: Value = decode(&object)?;
            recount(context, queue, object["metadata"]["namespace"].as_str().unwrap_or_default());
        }
    }
    Ok(())
}

fn recount(context: &Context, queue: &Queue<ObjectKey>, namespace: &str) {
    for quota in context.caches.resource_quotas_by_namespace.get(namespace) {
        queue.add_after(ObjectKey::of(&*quota), GATHER);
    }
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, Running};

    fn quota(hard: Value) -> Value {
        json!({ "metadata": { "name": "q", "namespace": "default" }, "spec": { "hard": hard } })
    }

    fn status(api: &FakeApi) -> Value {
        let quota = api.read::<ResourceQuota>("default", "q").expect("the quota");
        serde_json::to_value(quota.status).expect("JSON")
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_counted_and_what_goes_is_given_back() {
        let api = FakeApi::new();
        let _running = Running::start(&api, &["resourcequota"]);
        let pod = |name: &str| {
            let resources = json!({ "requests": { "cpu": "500m" } });
            json!({ "metadata": { "name": name, "namespace": "default" },
                "spec": { "containers": [{ "name": "c", "resources": resources }] } })
        };
        for name in ["a", "b"] {
            api.put::<Pod>(pod(name));
            api.put::<ConfigMap>(json!({ "metadata": { "name": name, "namespace": "default" } }));
        }
        api.put::<ConfigMap>(json!({ "metadata": { "name": "c", "namespace": "other" } }));
        let hard =
            json!({ "pods": "4", "requests.cpu": "2", "count/configmaps": "5", "count/jobs.batch": "1" });
        api.put::<ResourceQuota>(quota(hard.clone()));
        let counted = |pods: &str, cpu: &str, maps: &str| {
            json!({ "hard": hard, "used": {
                "pods": pods, "requests.cpu": cpu, "count/configmaps": maps, "count/jobs.batch": "0",
            } })
        };
        api.until("all is counted", |api| status(api) == counted("2", "1", "2")).await;
        api.patch_status::<Pod>("default", "a", json!({ "status": { "phase": "Succeeded" } }));
        api.until("an ended pod is given back", |api| status(api) == counted("1", "500m", "2")).await;
        api.remove::<Pod>("default", "b", &DeleteOptions::default());
        api.remove::<ConfigMap>("default", "b", &DeleteOptions::default());
        api.until("what is gone is given back", |api| status(api) == counted("0", "0", "1")).await;
        api.patch::<ResourceQuota>("default", "q", json!({ "spec": { "hard": { "pods": "9" } } }));
        api.until("a new limit is in effect", |api| status(api)["hard"]["pods"] == "9").await;
    }

    #[tokio::test(start_paused = true)]
    async fn counts_rest_as_long_as_they_cost() {
        let (key, other) = (ObjectKey::new("default", "q"), ObjectKey::new("default", "other"));
        let mut rests = Rests::default();
        assert_eq!(rests.left(&key), None, "the first");
        rests.counted(&key, Duration::from_secs(1));
        assert_eq!((rests.left(&key), rests.left(&other)), (Some(Duration::from_secs(9)), None));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(rests.left(&key), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_that_was_overtaken_is_taken_again() {
        let api = FakeApi::new();
        api.put::<ResourceQuota>(quota(json!({ "pods": "4" })));
        // Another writer is faster once: it charges a pod between the count and its write.
        let charged = std::sync::atomic::AtomicBool::new(false);
        let weak = Arc::downgrade(&api);
        api.fault(move |verb, target| {
            let is_first = verb == "update"
                && target.resource.resource == "resourcequotas"
                && !charged.swap(true, std::sync::atomic::Ordering::Relaxed);
            if let Some(api) = weak.upgrade().filter(|_| is_first) {
                api.put::<Pod>(json!({ "metadata": { "name": "a", "namespace": "default" }, "spec": {} }));
                api.patch_status::<ResourceQuota>(
                    "default",
                    "q",
                    json!({ "status": { "used": { "pods": "1" } } }),
                );
            }
            crate::testing::Fault::None
        });
        let _running = Running::start(&api, &["resourcequota"]);
        api.until("the pod is in the count", |api| {
            status(api) == json!({ "hard": { "pods": "4" }, "used": { "pods": "1" } })
        })
        .await;
    }
}
