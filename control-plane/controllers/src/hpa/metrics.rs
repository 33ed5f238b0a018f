//! Metrics of an autoscaler: read from `metrics.k8s.io`, and what each asks for.
//!
//! Of custom and external metrics nothing is served here; an autoscaler that asks for them is told so.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hawser_api::{
    Error, GroupVersionResource, client::ListOptions, resource::Target as Place, time::parse_duration,
    typed::decode,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        autoscaling::v2::{
            ContainerResourceMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
            ResourceMetricStatus,
        },
        core::v1::Pod,
    },
    apimachinery::pkg::api::resource::Quantity as Amount,
};
use serde::Deserialize;

use super::calculate::{self, Measured, Proposal, Sample, Samples, Target, Tolerance, milli};
use crate::Context;

const POD_METRICS: GroupVersionResource = GroupVersionResource::fixed("metrics.k8s.io", "v1beta1", "pods");

/// As much of a PodMetrics as is read.
#[derive(Clone, Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Clone, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Clone, Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: HashMap<String, Amount>,
}

/// What is known of a target's pods at one look.
pub(super) struct Look<'a> {
    context: &'a Context,
    namespace: &'a str,
    selector: &'a str,
    pods: &'a [Arc<Pod>],
    current: i32,
    tolerance: Tolerance,
    now: Timestamp,
    /// Asked for once, however many metrics there are.
    used: Option<Result<Vec<PodMetrics>, String>>,
}

/// What one metric asks for.
pub(super) struct Computed {
    pub(super) replicas: i32,
    /// As events name it.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

/// Why a metric says nothing.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) reason: &'static str,
    pub(super) why: String,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        context: &'a Context,
        namespace: &'a str,
        selector: &'a str,
        pods: &'a [Arc<Pod>],
        (current, tolerance, now): (i32, Tolerance, Timestamp),
    ) -> Self {
        Self { context, namespace, selector, pods, current, tolerance, now, used: None }
    }

    pub(super) async fn compute(&mut self, metric: &MetricSpec) -> Result<Computed, Unknown> {
        match (metric.type_.as_str(), &metric.resource, &metric.container_resource) {
            ("Resource", Some(source), _) => {
                let measured = Measured { resource: &source.name, container: None };
                let failed = |why| Unknown { reason: "FailedGetResourceMetric", why };
                let (proposal, name) = self.of_resource(measured, &source.target).await.map_err(failed)?;
                let status = ResourceMetricStatus { name: source.name.clone(), current: current(&proposal) };
                let status = MetricStatus { resource: Some(status), ..status_of(metric) };
                Ok(Computed { replicas: proposal.replicas, name, status })
            }
            ("ContainerResource", _, Some(source)) => {
                let measured = Measured { resource: &source.name, container: Some(&source.container) };
                let failed = |why| Unknown { reason: "FailedGetContainerResourceMetric", why };
                let (proposal, name) = self.of_resource(measured, &source.target).await.map_err(failed)?;
                let status = ContainerResourceMetricStatus {
                    container: source.container.clone(),
                    name: source.name.clone(),
                    current: current(&proposal),
                };
                let status = MetricStatus { container_resource: Some(status), ..status_of(metric) };
                Ok(Computed { replicas: proposal.replicas, name, status })
            }
            _ => Err(unserved(metric)),
        }
    }

    async fn of_resource(
        &mut self,
        measured: Measured<'_>,
        target: &MetricTarget,
    ) -> Result<(Proposal, String), String> {
        let (resource, container) = (measured.resource, measured.container);
        let what = match container {
            Some(container) => format!("{resource} resource of container {container}"),
            None => format!("{resource} resource"),
        };
        let (target, word, name) = match (&target.average_value, target.average_utilization) {
            (Some(value), _) => (Target::Value(milli(value)), "usage", what),
            (None, Some(percent)) => {
                let name = format!("{what} utilization (percentage of request)");
                (Target::Utilization(percent), "utilization", name)
            }
            (None, None) => {
                let why = "invalid resource metric source: neither an average utilization target nor an average value \
                           (usage) target was set";
                return Err(why.to_owned());
            }
        };
        let failed = |why: String| format!("failed to get {resource} {word}: {why}");
        let samples = self
            .samples(measured)
            .await
            .map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let pods: Vec<&Pod> = self.pods.iter().map(|pod| &**pod).collect();
        let (current, tolerance) = (self.current, self.tolerance);
        let proposal = calculate::replicas(current, target, measured, &pods, samples, tolerance, self.now);
        Ok((proposal.map_err(failed)?, name))
    }

    async fn samples(&mut self, measured: Measured<'_>) -> Result<Samples, String> {
        if self.used.is_none() {
            let read = self.read().await;
            self.used = Some(
                read.map_err(|error| format!("unable to fetch metrics from resource metrics API: {error}")),
            );
        }
        let used = self.used.clone().unwrap_or_else(|| Ok(Vec::new()))?;
        if used.is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        let mut samples = Samples::new();
        for pod in used {
            let Some(value) = value(&pod, measured)? else { continue };
            let window = parse_duration(&pod.window).and_then(|nanos| u64::try_from(nanos).ok());
            let window = Duration::from_nanos(window.unwrap_or_default());
            samples.insert(pod.metadata.name, Sample { at: pod.timestamp, window, value });
        }
        Ok(samples)
    }

    async fn read(&self) -> Result<Vec<PodMetrics>, Error> {
        let collection = Place::collection(POD_METRICS, Some(self.namespace));
        let options = ListOptions { label_selector: self.selector.to_owned(), ..ListOptions::default() };
        let list = self.context.client.list(&collection, &options).await?;
        list.items.iter().map(decode).collect()
    }
}

/// Thousandths of the resource; `None` where not every container says.
fn value(pod: &PodMetrics, measured: Measured<'_>) -> Result<Option<i64>, String> {
    let of = |container: &ContainerMetrics| container.usage.get(measured.resource).map(milli);
    match measured.container {
        None => Ok(pod.containers.iter().map(of).sum()),
        Some(name) => {
            let found = pod.containers.iter().find(|container| container.name == name);
            let found = found.ok_or_else(|| {
                format!("container {name} not present in metrics for pod {}", pod.metadata.name)
            });
            Ok(of(found?))
        }
    }
}

fn status_of(metric: &MetricSpec) -> MetricStatus {
    MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() }
}

fn current(proposal: &Proposal) -> MetricValueStatus {
    let text = format!("{}m", proposal.average);
    let text = hawser_api::quantity::canonical(&text).unwrap_or(text);
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: Some(Amount(text)),
        value: None,
    }
}

fn unserved(metric: &MetricSpec) -> Unknown {
    let (reason, api) = match metric.type_.as_str() {
        "Pods" => ("FailedGetPodsMetric", "custom metrics API"),
        "Object" => ("FailedGetObjectMetric", "custom metrics API"),
        "External" => ("FailedGetExternalMetric", "external metrics API"),
        other => {
            let why = format!("unknown metric source type {other:?}");
            return Unknown { reason: "InvalidMetricSourceType", why };
        }
    };
    Unknown { reason, why: format!("unable to fetch metrics from {api}: it is not served") }
}
