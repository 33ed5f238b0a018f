//! How long pods take to start, with and without what the pod itself asks to wait for.
//!
//! The indicator of Kubernetes' service level (pod startup latency) leaves out pulls of images and init containers, and pods
//! whose volumes are made or attached for them.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodSpec;
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};

use crate::pod::{ContainerKind, DesiredPod, PodState};

/// Upstream's, in seconds.
const START_BUCKETS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const PULL_BUCKETS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0,
    2700.0, 3600.0,
];
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Sizes of images from so many bytes on, in upstream's words.
const SIZES: [(u64, &str); 12] = [
    (100 * GIB, "GT100GB"),
    (60 * GIB, "60GB-100GB"),
    (40 * GIB, "40GB-60GB"),
    (30 * GIB, "30GB-40GB"),
    (20 * GIB, "20GB-30GB"),
    (10 * GIB, "10GB-20GB"),
    (5 * GIB, "5GB-10GB"),
    (GIB, "1GB-5GB"),
    (500 * MIB, "500MB-1GB"),
    (100 * MIB, "100MB-500MB"),
    (10 * MIB, "10MB-100MB"),
    (0, "0-10MB"),
];

/// From the first beginning to the last end.
type Span = (Timestamp, Timestamp);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Starts {
    /// Since the kubelet has seen the pod.
    seen: Histogram,
    /// Since the pod was made.
    total: Histogram,
    indicator: Histogram,
    pull: HistogramVec,
    /// When images were pulled for pods that have not started yet, by uid; bounded by the pods that the node works on.
    pulls: Arc<Mutex<HashMap<String, Span>>>,
}

impl Starts {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str| {
            let histogram =
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(START_BUCKETS.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            prometheus::Result::Ok(histogram)
        };
        let help = "Duration in seconds to pull an image.";
        let options =
            HistogramOpts::new("kubelet_image_pull_duration_seconds", help).buckets(PULL_BUCKETS.to_vec());
        let pull = HistogramVec::new(options, &["image_size_in_bytes"])?;
        registry.register(Box::new(pull.clone()))?;
        Ok(Self {
            seen: histogram(
                "kubelet_pod_start_duration_seconds",
                "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
            )?,
            total: histogram(
                "kubelet_pod_start_total_duration_seconds",
                "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
            )?,
            indicator: histogram(
                "kubelet_pod_start_sli_duration_seconds",
                "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch",
            )?,
            pull,
            pulls: Arc::default(),
        })
    }

    pub(super) fn pulled(&self, pod_uid: &str, size_bytes: u64, (began, ended): Span) {
        let label = SIZES.iter().find(|(from, _)| size_bytes >= *from).map_or("", |(_, label)| *label);
        self.pull.with_label_values(&[label]).observe(seconds((began, ended)));
        let mut pulls = self.pulls.lock();
        let span = pulls.entry(pod_uid.to_owned()).or_insert((began, ended));
        *span = (span.0.min(began), span.1.max(ended));
    }

    /// The pod has started, `since_seen` seconds after the kubelet saw it.
    pub(super) fn started(&self, pod: &DesiredPod, state: &PodState, since_seen: f64, now: Timestamp) {
        let pulled = self.pulls.lock().remove(pod.uid());
        self.seen.observe(since_seen.max(0.0));
        let Some(created) = pod.object.metadata.creation_timestamp.as_ref().map(|time| time.0) else {
            return;
        };
        let total = seconds((created, now));
        self.total.observe(total);
        if is_stateless(pod.spec()) {
            self.indicator.observe((total - without_overlap(pulled, initialized(pod, state))).max(0.0));
        }
    }

    /// The pod is gone, and perhaps never started.
    pub(super) fn forget(&self, pod_uid: &str) {
        self.pulls.lock().remove(pod_uid);
    }
}

/// Told by two clocks where one end is the API's: not less than nothing.
fn seconds((began, ended): Span) -> f64 {
    ended.duration_since(began).as_secs_f64().max(0.0)
}

/// When the pod's init containers ran.
fn initialized(pod: &DesiredPod, state: &PodState) -> Option<Span> {
    let instances = pod
        .of_kind(ContainerKind::Init)
        .filter_map(|container| state.track(container.name())?.current.as_ref());
    let spans = instances.filter_map(|instance| {
        let status = &instance.status;
        Some((status.started_at?, status.exit.as_ref()?.finished_at))
    });
    spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
}

/// Seconds that lie in one of the two, or in both.
fn without_overlap(one: Option<Span>, other: Option<Span>) -> f64 {
    let (Some(a), Some(b)) = (one, other) else { return one.or(other).map_or(0.0, seconds) };
    seconds(a) + seconds(b) - seconds((a.0.max(b.0), a.1.min(b.1)))
}

/// Nothing is made or attached for it that outlives it.
fn is_stateless(spec: &PodSpec) -> bool {
    let mut volumes = spec.volumes.iter().flatten();
    !volumes.any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::{at, container, pod_object, record, spec};
    use hawser_runtime::ContainerState;
    use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Volume};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn span(began: u64, ended: u64) -> Span {
        (at(began).wall, at(ended).wall)
    }

    #[test]
    fn what_overlaps_is_left_out_once() {
        let check = |one, other, expected| {
            assert_eq!(without_overlap(one, other), expected);
            assert_eq!(without_overlap(other, one), expected);
        };
        check(None, None, 0.0);
        check(Some(span(1, 4)), None, 3.0);
        check(Some(span(1, 4)), Some(span(6, 7)), 4.0);
        check(Some(span(1, 4)), Some(span(3, 7)), 6.0);
        check(Some(span(1, 9)), Some(span(3, 7)), 8.0);
    }

    #[test]
    fn indicator_leaves_out_pulls_init_containers_and_pods_with_claims() {
        let starts = Starts::new(&Registry::new()).expect("different names");
        let pod = |claim: Option<PersistentVolumeClaimVolumeSource>| {
            let volume =
                claim.map(|claim| Volume { persistent_volume_claim: Some(claim), ..Volume::default() });
            let spec = PodSpec {
                volumes: Some(volume.into_iter().collect()),
                ..spec("Always", vec![container("init")], vec![container("web")])
            };
            let mut object = pod_object(spec);
            object.metadata.creation_timestamp = Some(Time(at(0).wall));
            DesiredPod::new(Arc::new(object))
        };
        let plain = pod(None);
        let mut init = record("init", 0, ContainerState::Exited, Some(0));
        init.started_at = Some(at(3).wall);
        init.exit.as_mut().expect("ended").finished_at = at(7).wall;
        let state = PodState::adopt(&plain, vec![init], at(10));
        starts.pulled(plain.uid(), 20 * MIB, span(1, 4));
        starts.started(&plain, &state, 9.0, at(10).wall);
        let sums = || [&starts.seen, &starts.total, &starts.indicator].map(Histogram::get_sample_sum);
        assert_eq!(sums(), [9.0, 10.0, 4.0]);
        let pull = starts.pull.with_label_values(&["10MB-100MB"]);
        assert_eq!((pull.get_sample_count(), pull.get_sample_sum()), (1, 3.0));
        assert!(starts.pulls.lock().is_empty());
        let with_claim = pod(Some(PersistentVolumeClaimVolumeSource::default()));
        starts.started(&with_claim, &PodState::default(), 1.0, at(2).wall);
        assert_eq!(sums(), [10.0, 12.0, 4.0]);
    }
}
