//! How many replicas a metric asks for. Pure.
//!
//! The ratio of what the pods use to what they should is taken over the pods that work. Pods that say nothing, or not yet,
//! hold a change back and never push it: where the target would grow they count as idle, where it would shrink as busy, and
//! where that would turn the direction nothing changes. Follows upstream's `replica_calculator.go`.

use std::{collections::BTreeMap, time::Duration};

use hawser_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity as Amount,
};

use crate::meta::{MetaExt, pod_condition, pod_phase};

/// `--horizontal-pod-autoscaler-cpu-initialization-period`: a pod that starts may use more than it will.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// `--horizontal-pod-autoscaler-initial-readiness-delay`: one that was never ready until then has not started.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What one pod used, in thousandths.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) window: Duration,
    pub(super) value: i64,
}

/// By the pod's name.
pub(super) type Samples = BTreeMap<String, Sample>;

/// How far from its target a ratio may be without a change, downwards and upwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What the metric is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target {
    /// Percent of what the pods request.
    Utilization(i32),
    /// Thousandths for each pod.
    Value(i64),
}

/// The resource that is measured: of the whole pod, or of one of its containers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured<'a> {
    pub(super) resource: &'a str,
    pub(super) container: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent, where the target is that.
    pub(super) utilization: Option<i32>,
    /// Thousandths, for each pod.
    pub(super) average: i64,
}

/// Fails where nothing can be said, with why.
pub(super) fn replicas(
    current: i32,
    target: Target,
    measured: Measured<'_>,
    pods: &[&Pod],
    mut samples: Samples,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = Groups::of(pods, &samples, measured.resource, now);
    for name in groups.ignored.iter().chain(&groups.unready) {
        samples.remove(*name);
    }
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match target {
        Target::Utilization(_) => requests(pods, measured)?,
        Target::Value(_) => BTreeMap::new(),
    };
    let usage = usage(target, &samples, &requests)?;
    let proposal = |replicas| Proposal { replicas, utilization: usage.utilization, average: usage.average };
    let grows_with_unready = usage.ratio > 1.0 && !groups.unready.is_empty();
    if !grows_with_unready && groups.missing.is_empty() {
        let settled = tolerance.covers(usage.ratio);
        return Ok(proposal(if settled { current } else { times(usage.ratio, groups.ready) }));
    }
    let at = Sample { at: now, window: Duration::ZERO, value: 0 };
    for name in &groups.missing {
        if usage.ratio == 1.0 {
            break;
        }
        let busy = match target {
            Target::Utilization(percent) => {
                let request = requests.get(*name).copied().unwrap_or_default();
                request.saturating_mul(i64::from(percent.max(100))) / 100
            }
            Target::Value(value) => value,
        };
        let value = if usage.ratio < 1.0 { busy } else { 0 };
        samples.insert((*name).to_owned(), Sample { value, ..at.clone() });
    }
    if grows_with_unready {
        samples.extend(groups.unready.iter().map(|name| ((*name).to_owned(), at.clone())));
    }
    let ratio = self::usage(target, &samples, &requests)?.ratio;
    let turns = (usage.ratio < 1.0 && ratio > 1.0) || (usage.ratio > 1.0 && ratio < 1.0);
    if tolerance.covers(ratio) || turns {
        return Ok(proposal(current));
    }
    let wanted = times(ratio, samples.len());
    let turns = (ratio < 1.0 && wanted > current) || (ratio > 1.0 && wanted < current);
    Ok(proposal(if turns { current } else { wanted }))
}

fn times(ratio: f64, pods: usize) -> i32 {
    // Saturates where it does not fit.
    (ratio * pods as f64).ceil() as i32
}

struct Usage {
    ratio: f64,
    utilization: Option<i32>,
    average: i64,
}

fn usage(target: Target, samples: &Samples, requests: &BTreeMap<&str, i64>) -> Result<Usage, String> {
    let average = |total: i128, count: usize| {
        i64::try_from(total / i128::try_from(count.max(1)).unwrap_or(1)).unwrap_or(i64::MAX)
    };
    match target {
        Target::Value(wanted) => {
            let total: i128 = samples.values().map(|sample| i128::from(sample.value)).sum();
            let average = average(total, samples.len());
            Ok(Usage { ratio: average as f64 / wanted.max(1) as f64, utilization: None, average })
        }
        Target::Utilization(wanted) => {
            let known: Vec<(i64, i64)> = samples
                .iter()
                .filter_map(|(name, sample)| Some((sample.value, *requests.get(name.as_str())?)))
                .collect();
            let used: i128 = known.iter().map(|(used, _)| i128::from(*used)).sum();
            let requested: i128 = known.iter().map(|(_, requested)| i128::from(*requested)).sum();
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            let ratio = f64::from(utilization) / f64::from(wanted.max(1));
            Ok(Usage { ratio, utilization: Some(utilization), average: average(used, known.len()) })
        }
    }
}

/// What the pods request, in thousandths.
fn requests<'a>(pods: &[&'a Pod], measured: Measured<'_>) -> Result<BTreeMap<&'a str, i64>, String> {
    pods.iter().map(|pod| Ok((pod.name(), request(pod, measured)?))).collect()
}

fn request(pod: &Pod, measured: Measured<'_>) -> Result<i64, String> {
    let Measured { resource, container } = measured;
    let Some(spec) = &pod.spec else { return Ok(0) };
    let of_pod = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(requested) = of_pod.filter(|_| container.is_none()).and_then(|list| list.get(resource)) {
        return Ok(milli(requested));
    }
    let is_sidecar = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let wanted = spec.containers.iter().chain(sidecars);
    let wanted = wanted.filter(|it| container.is_none_or(|container| it.name == container));
    wanted
        .map(|it| {
            let requests = it.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            requests.and_then(|list| list.get(resource)).map(milli).ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {}", it.name, pod.name())
            })
        })
        .sum()
}

/// What cannot be read counts as nothing; the API refuses it.
pub(super) fn milli(amount: &Amount) -> i64 {
    amount.0.parse::<Quantity>().unwrap_or(Quantity::ZERO).milli_value()
}

/// The pods by what their samples are worth.
#[derive(Default)]
struct Groups<'a> {
    ready: usize,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
    /// Those that go, and those that failed.
    ignored: Vec<&'a str>,
}

impl<'a> Groups<'a> {
    fn of(pods: &[&'a Pod], samples: &Samples, resource: &str, now: Timestamp) -> Self {
        let mut groups = Self::default();
        for pod in pods {
            if pod.is_deleting() || pod_phase(pod) == "Failed" {
                groups.ignored.push(pod.name());
            } else if matches!(pod_phase(pod), "" | "Pending") {
                groups.unready.push(pod.name());
            } else if let Some(sample) = samples.get(pod.name()) {
                if resource == "cpu" && is_unready(pod, sample, now) {
                    groups.unready.push(pod.name());
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.push(pod.name());
            }
        }
        groups
    }
}

/// The sample says nothing of what the pod will use when it works.
fn is_unready(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(started)) = (pod_condition(pod, "Ready"), started) else { return true };
    let is_false = ready.status == "False";
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let later = |at: Timestamp, by: Duration| at.checked_add(by).unwrap_or(Timestamp::MAX);
    if later(started, CPU_INITIALIZATION) > now {
        is_false || sample.at < later(since, sample.window)
    } else {
        is_false && later(started, INITIAL_READINESS) > since
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    /// A pod that requests one CPU, as a word says: `ready`, `starting`, `pending`, `failed`, `going`.
    fn pod(number: usize, state: &str) -> Pod {
        let (phase, ready) = match state {
            "pending" => ("Pending", "False"),
            "failed" => ("Failed", "False"),
            "starting" => ("Running", "False"),
            _ => ("Running", "True"),
        };
        let started = if state == "starting" { "2026-01-01T00:59:00Z" } else { "2026-01-01T00:00:00Z" };
        let mut pod = json!({
            "metadata": { "name": number.to_string() },
            "spec": { "containers": [
                { "name": "c", "resources": { "requests": { "cpu": "600m" } } },
                { "name": "d", "resources": { "requests": { "cpu": "400m" } } },
            ] },
            "status": { "phase": phase, "startTime": started, "conditions": [
                { "type": "Ready", "status": ready, "lastTransitionTime": started },
            ] },
        });
        if state == "going" {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    /// Pods with what each uses, in thousandths of a CPU; nothing for those that say nothing.
    #[track_caller]
    fn check(name: &str, target: Target, pods: &[(&str, Option<i64>)], expected: Result<i32, &str>) {
        let objects: Vec<Pod> =
            pods.iter().enumerate().map(|(number, (state, _))| pod(number, state)).collect();
        let sample = |value| Sample { at: now(), window: Duration::from_secs(15), value };
        let samples = pods.iter().enumerate();
        let samples: Samples =
            samples.filter_map(|(number, (_, used))| Some((number.to_string(), sample((*used)?)))).collect();
        let objects: Vec<&Pod> = objects.iter().collect();
        let current = i32::try_from(objects.len()).unwrap();
        let measured = Measured { resource: "cpu", container: None };
        let tolerance = Tolerance { down: 0.1, up: 0.1 };
        let found = replicas(current, target, measured, &objects, samples, tolerance, now());
        assert_eq!(found.as_ref().map(|it| it.replicas).map_err(String::as_str), expected, "{name}");
    }

    #[test]
    fn replicas_follow_the_ratio() {
        let half = Target::Utilization(50);
        let ready = |used| ("ready", Some(used));
        check("as it should be", half, &[ready(500), ready(500)], Ok(2));
        check("within tolerance", half, &[ready(540), ready(540)], Ok(2));
        check("twice as much", half, &[ready(1000), ready(1000)], Ok(4));
        check("rounded up", half, &[ready(700), ready(600)], Ok(3));
        check("idle", half, &[ready(0), ready(0), ready(0)], Ok(0));
        check("by value", Target::Value(250), &[ready(500), ready(500)], Ok(4));
        check(
            "nobody says anything",
            half,
            &[("ready", None)],
            Err("did not receive metrics for targeted pods (pods might be unready)"),
        );
        check("nobody", half, &[], Err("no pods returned by selector while calculating replica count"));
    }

    #[test]
    fn pods_that_say_nothing_hold_a_change_back() {
        let half = Target::Utilization(50);
        let ready = |used| ("ready", Some(used));
        let silent = ("ready", None);
        check("idle where it would grow", half, &[ready(1000), ready(1000), silent], Ok(4));
        check("growth is taken back by them", half, &[ready(700), silent], Ok(2));
        check("busy where it would shrink", half, &[ready(100), ready(100), silent], Ok(3));
        check("pending ones are idle", half, &[ready(1000), ("pending", None)], Ok(2));
        check("starting ones are not believed", half, &[ready(500), ("starting", Some(9000))], Ok(2));
        check("failed ones do not count", half, &[ready(1000), ("failed", Some(1000))], Ok(2));
        check("nor those that go", half, &[ready(1000), ("going", Some(0))], Ok(2));
    }

    #[test]
    fn a_share_needs_requests() {
        let mut object = pod(0, "ready");
        object.spec.as_mut().unwrap().containers[1].resources = None;
        let of = |container| request(&object, Measured { resource: "cpu", container });
        assert_eq!(of(Some("c")), Ok(600));
        assert_eq!(of(None), Err("missing request for cpu in container d of Pod 0".to_owned()));
    }
}
