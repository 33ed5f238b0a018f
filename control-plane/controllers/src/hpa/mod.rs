//! HorizontalPodAutoscalers: as many replicas as the pods' usage asks for.
//!
//! Every fifteen seconds the scale of the target is read, and the usage of its pods ([`metrics`]); each metric proposes a
//! size ([`calculate`]), the largest counts, and is steadied and limited ([`behavior`]). What was recommended lately is
//! remembered here alone: another leader begins with the size that there is. Reasons and messages are upstream's.

mod behavior;
mod calculate;
mod metrics;
mod target;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use hawser_api::{
    Api, Error,
    resource::ObjectKey,
    selector::{LabelSelector, Operator},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
            MetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use parking_lot::Mutex;

use crate::{
    Context, Starts,
    events::Recorder,
    meta::{MetaExt, now},
    queue::Queue,
    worker::{Next, Reconciler},
};
use behavior::{History, Sizes};
use metrics::{Look, Unknown};
use target::Scaled;

/// `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("horizontalpodautoscaling") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.autoscalers.on_change(move |change| {
        // Its status, which is written here, is no reason to look again before the period is over.
        if change.old.map(|old| &old.spec) != change.new.map(|new| &new.spec) {
            changed.add(change.key.clone());
        }
    });
    let recorder = context.recorder.of("horizontal-pod-autoscaler");
    let workers = context.config.workers;
    let (histories, selectors) = Default::default();
    starts.add(Controller { context, recorder, histories, selectors }, queue, workers);
}

/// By autoscaler; those that are deleted are forgotten.
type Histories = HashMap<ObjectKey, History>;

struct Controller {
    context: Arc<Context>,
    recorder: Recorder,
    histories: Mutex<Histories>,
    /// Whose pods each looked at last, by namespace and name. Bounded like the histories.
    selectors: Mutex<HashMap<String, BTreeMap<String, LabelSelector>>>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = ObjectKey;

    const NAME: &'static str = "horizontalpodautoscaling";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(autoscaler) = self.context.caches.autoscalers.get(key) else {
            self.forget(key);
            return Ok(Next::Done);
        };
        if autoscaler.is_deleting() {
            return Ok(Next::Done);
        }
        let mut pass = Pass {
            controller: self,
            autoscaler: &autoscaler,
            key,
            status: autoscaler.status.clone().unwrap_or_default(),
            now: now(),
        };
        pass.run().await;
        // A conflict too: the next look is made of what is there then.
        pass.write().await?;
        Ok(Next::After(PERIOD))
    }
}

impl Controller {
    fn forget(&self, key: &ObjectKey) {
        self.histories.lock().remove(key);
        let mut selectors = self.selectors.lock();
        let Some(known) = selectors.get_mut(&key.namespace) else { return };
        known.remove(&key.name);
        if known.is_empty() {
            selectors.remove(&key.namespace);
        }
    }

    /// Names of the autoscalers that would scale for one of the pods, if this one is not alone.
    fn rivals(&self, key: &ObjectKey, selector: &LabelSelector, pods: &[Arc<Pod>]) -> Option<Vec<String>> {
        let mut selectors = self.selectors.lock();
        let known = selectors.entry(key.namespace.clone()).or_default();
        known.insert(key.name.clone(), selector.clone());
        let matches = |known: &LabelSelector| pods.iter().any(|pod| known.matches(pod.labels()));
        let names = known.iter().filter(|(_, known)| matches(known)).map(|(name, _)| name.clone());
        Some(names.collect()).filter(|names: &Vec<String>| names.len() > 1)
    }
}

/// One look at one autoscaler.
struct Pass<'a> {
    controller: &'a Controller,
    autoscaler: &'a HorizontalPodAutoscaler,
    key: &'a ObjectKey,
    /// With what this look brings.
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

/// What the metrics say together.
struct Wanted {
    replicas: i32,
    /// The metric that asks for so many.
    metric: String,
    statuses: Vec<MetricStatus>,
}

impl Pass<'_> {
    async fn run(&mut self) {
        let spec = &self.autoscaler.spec;
        let client = &*self.controller.context.client;
        let scaled = match Scaled::read(client, &self.key.namespace, &spec.scale_target_ref).await {
            Ok(scaled) => scaled,
            Err(why) => {
                self.warn("FailedGetScale", why.clone());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                return self.set(ABLE, false, "FailedGetScale", message);
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.set(ABLE, true, "SucceededGetScale", message);
        let (current, least) = (scaled.replicas(), spec.min_replicas.unwrap_or(1));
        self.with_history(|history, now| history.begin(current, now));
        let sizes = Sizes { current, least, most: spec.max_replicas };
        self.status.current_replicas = Some(current);
        let (desired, why) = if current == 0 && least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set(ACTIVE, false, "ScalingDisabled", message);
            return self.status.desired_replicas = 0;
        } else if current > spec.max_replicas {
            (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let Some(wanted) = self.wanted(&scaled).await else { return };
            self.status.current_metrics = Some(wanted.statuses).filter(|statuses| !statuses.is_empty());
            let why = match wanted.replicas {
                replicas if replicas > current => format!("{} above target", wanted.metric),
                replicas if replicas < current => "All metrics below target".to_owned(),
                _ => String::new(),
            };
            (self.decide(sizes, wanted.replicas), why)
        };
        self.status.desired_replicas = desired;
        if desired != current {
            self.resize(&scaled, desired, &why).await;
        }
    }

    fn with_history<T>(&self, look: impl FnOnce(&mut History, Timestamp) -> T) -> T {
        let mut histories = self.controller.histories.lock();
        look(histories.entry(self.key.clone()).or_default(), self.now)
    }

    fn decide(&mut self, sizes: Sizes, recommended: i32) -> i32 {
        let behavior = self.autoscaler.spec.behavior.as_ref();
        let decision =
            self.with_history(|history, now| behavior::decide(behavior, history, sizes, recommended, now));
        let ((steadied, how), (limit, why)) = (decision.steadied, decision.limit);
        self.set(ABLE, true, steadied, how);
        self.set(LIMITED, decision.is_limited, limit, why);
        decision.replicas
    }

    /// `None` where nothing can be said, which the conditions then tell.
    async fn wanted(&mut self, scaled: &Scaled) -> Option<Wanted> {
        let spec = &self.autoscaler.spec;
        let pods = self.pods(scaled.selector())?;
        let tolerance = behavior::tolerance(spec.behavior.as_ref());
        let (controller, namespace) = (self.controller, &self.key.namespace);
        let at = (scaled.replicas(), tolerance, self.now);
        let mut look = Look::new(&controller.context, namespace, scaled.selector(), &pods, at);
        let mut wanted: Option<Wanted> = None;
        let (mut statuses, mut unknown) = (Vec::new(), Vec::new());
        for metric in spec.metrics.iter().flatten() {
            match look.compute(metric).await {
                Ok(computed) => {
                    statuses.push(computed.status);
                    if wanted.as_ref().is_none_or(|known| computed.replicas > known.replicas) {
                        let (replicas, metric) = (computed.replicas, computed.name);
                        wanted = Some(Wanted { replicas, metric, statuses: Vec::new() });
                    }
                }
                Err(why) => {
                    self.warn(why.reason, why.why.clone());
                    unknown.push(why);
                }
            }
        }
        // What some metrics do not say may be that more is needed: so with them it can only grow.
        let is_known = |wanted: &Wanted| unknown.is_empty() || wanted.replicas >= scaled.replicas();
        let Some(wanted) = wanted.filter(is_known) else {
            self.tell_unknown(&unknown, statuses.len());
            self.status.current_metrics = Some(statuses).filter(|statuses| !statuses.is_empty());
            return None;
        };
        let message =
            format!("the HPA was able to successfully calculate a replica count from {}", wanted.metric);
        self.set(ACTIVE, true, "ValidMetricFound", message);
        Some(Wanted { statuses, ..wanted })
    }

    fn tell_unknown(&mut self, unknown: &[Unknown], known: usize) {
        let Some(first) = unknown.first() else { return };
        let message = format!("the HPA was unable to compute the replica count: {}", first.why);
        self.set(ACTIVE, false, first.reason, message);
        let all = unknown.len() + known;
        let message = format!(
            "invalid metrics ({} invalid out of {all}), first error is: {}",
            unknown.len(),
            first.why
        );
        self.warn("FailedComputeMetricsReplicas", message);
    }

    /// The target's pods; `None` where its scale does not say which they are, or another autoscaler scales for them.
    fn pods(&mut self, selector: &str) -> Option<Vec<Arc<Pod>>> {
        if selector.is_empty() {
            self.warn("SelectorRequired", "selector is required".to_owned());
            self.set(ACTIVE, false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return None;
        }
        let selector = match LabelSelector::parse(selector) {
            Ok(selector) => selector,
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                self.warn("InvalidSelector", why.clone());
                self.set(ACTIVE, false, "InvalidSelector", why);
                return None;
            }
        };
        // The pairs are looked up in an index, what else it asks for is matched in what that finds.
        let pairs =
            selector.requirements().iter().filter(|it| it.operator == Operator::In && it.values.len() == 1);
        let pairs = pairs.map(|it| (it.key.clone(), it.values[0].clone())).collect();
        let mut pods = self.controller.context.caches.pods_with(&self.key.namespace, &pairs);
        pods.retain(|pod| selector.matches(pod.labels()));
        if let Some(rivals) = self.controller.rivals(self.key, &selector, &pods) {
            let rivals: Vec<String> =
                rivals.iter().map(|name| format!("{{{name} {}}}", self.key.namespace)).collect();
            let why = format!(
                "pods by selector {selector} are controlled by multiple HPAs: [{}]",
                rivals.join(" ")
            );
            self.warn("AmbiguousSelector", why.clone());
            self.set(ACTIVE, false, "AmbiguousSelector", why);
            return None;
        }
        Some(pods)
    }

    async fn resize(&mut self, scaled: &Scaled, desired: i32, why: &str) {
        let current = scaled.replicas();
        match scaled.resize(&*self.controller.context.client, desired).await {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {desired}");
                self.set(ABLE, true, "SucceededRescale", message);
                let message = format!("New size: {desired}; reason: {why}");
                self.controller.recorder.normal(self.autoscaler, "SuccessfulRescale", message);
                self.with_history(|history, now| history.scaled(current, desired, now));
                self.status.last_scale_time = Some(Time(self.now));
            }
            Err(error) => {
                self.warn("FailedRescale", format!("New size: {desired}; reason: {why}; error: {error}"));
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                self.set(ABLE, false, "FailedUpdateScale", message);
                self.status.desired_replicas = current;
            }
        }
    }

    fn warn(&self, reason: &'static str, message: String) {
        self.controller.recorder.warning(self.autoscaler, reason, message);
    }

    /// Its time moves with its status alone.
    fn set(&mut self, kind: &str, is_true: bool, reason: &str, message: impl Into<String>) {
        let status = if is_true { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let known = conditions.iter_mut().find(|condition| condition.type_ == kind);
        let since = known.as_ref().filter(|known| known.status == status);
        let since = since.and_then(|known| known.last_transition_time.clone());
        let condition = HorizontalPodAutoscalerCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.into()),
            last_transition_time: since.or(Some(Time(self.now))),
        };
        match known {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    }

    async fn write(&self) -> Result<(), Error> {
        if self.autoscaler.status.as_ref() == Some(&self.status) {
            return Ok(());
        }
        let changed =
            HorizontalPodAutoscaler { status: Some(self.status.clone()), ..self.autoscaler.clone() };
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(self.controller.context.client.clone(), &self.key.namespace);
        match api.update_status(&changed).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}
