//! Arguments of plugins.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{self, PodSpec, TopologySpreadConstraint};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::extenders::duration;
use crate::{
    affinity::NodeAffinity,
    profile::{Profile, Strategy, StrategyKind},
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PluginConfig {
    name: String,
    args: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DefaultPreemptionArgs {
    min_candidate_nodes_percentage: Option<usize>,
    min_candidate_nodes_absolute: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InterPodAffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeAffinityArgs {
    added_affinity: Option<v1::NodeAffinity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodTopologySpreadArgs {
    #[serde(default)]
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BalancedAllocationArgs {
    resources: Option<Vec<Resource>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    #[serde(rename = "type")]
    kind: Option<String>,
    resources: Option<Vec<Resource>>,
    requested_to_capacity_ratio: Option<RequestedToCapacityRatio>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RequestedToCapacityRatio {
    shape: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Point {
    utilization: i64,
    /// 0 to 10.
    score: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resource {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeBindingArgs {
    bind_timeout_seconds: Option<u64>,
    /// For scores by capacity, which are not here.
    #[serde(rename = "shape")]
    _shape: Option<Vec<Point>>,
}

/// Durations as Go writes them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DynamicResourcesArgs {
    binding_timeout: Option<String>,
    /// Steps are bounded here, not time.
    #[serde(rename = "filterTimeout")]
    _filter_timeout: Option<String>,
}

impl PluginConfig {
    pub(super) fn apply(self, profile: &mut Profile) -> anyhow::Result<()> {
        let mut args = self.args.unwrap_or_default();
        let kind = args.remove("kind");
        args.remove("apiVersion");
        let expected = format!("{}Args", self.name);
        ensure!(kind.is_none_or(|kind| kind == expected), "args.kind: must be {expected}");
        match self.name.as_str() {
            "DefaultPreemption" => default_preemption(read(args)?, profile),
            "InterPodAffinity" => inter_pod_affinity(read(args)?, profile),
            "NodeAffinity" => {
                let NodeAffinityArgs { added_affinity } = read(args)?;
                let affinity = v1::Affinity { node_affinity: added_affinity, ..v1::Affinity::default() };
                let spec = PodSpec { affinity: Some(affinity), ..PodSpec::default() };
                profile.added_affinity = Some(NodeAffinity::of(&spec));
                Ok(())
            }
            "PodTopologySpread" => pod_topology_spread(read(args)?, profile),
            "NodeResourcesBalancedAllocation" => {
                let BalancedAllocationArgs { resources } = read(args)?;
                if let Some(resources) = resources {
                    profile.balanced = weighted(resources)
                        .context("args.resources")?
                        .into_iter()
                        .map(|(name, _)| name)
                        .collect();
                }
                Ok(())
            }
            "NodeResourcesFit" => node_resources_fit(read(args)?, profile),
            "DynamicResources" => {
                let DynamicResourcesArgs { binding_timeout, .. } = read(args)?;
                if let Some(text) = binding_timeout {
                    let path = "args.bindingTimeout";
                    let timeout = duration(&text).context(path)?;
                    ensure!(timeout >= Duration::from_secs(1), "{path}: must be at least 1 second");
                    profile.device_bind_timeout = timeout;
                }
                Ok(())
            }
            "VolumeBinding" => {
                let VolumeBindingArgs { bind_timeout_seconds, .. } = read(args)?;
                let seconds = bind_timeout_seconds.map(Duration::from_secs);
                profile.volume_bind_timeout = seconds.unwrap_or(profile.volume_bind_timeout);
                Ok(())
            }
            name => bail!("name: no plugin with arguments is named {name:?}"),
        }
    }
}

fn read<T: DeserializeOwned>(args: Map<String, Value>) -> anyhow::Result<T> {
    serde_json::from_value(Value::Object(args)).context("args")
}

fn default_preemption(args: DefaultPreemptionArgs, profile: &mut Profile) -> anyhow::Result<()> {
    let candidates = &mut profile.candidates;
    candidates.percentage = args.min_candidate_nodes_percentage.unwrap_or(candidates.percentage);
    candidates.absolute = args.min_candidate_nodes_absolute.unwrap_or(candidates.absolute);
    ensure!(candidates.percentage <= 100, "args.minCandidateNodesPercentage: not in valid range [0, 100]");
    ensure!(
        candidates.percentage + candidates.absolute > 0,
        "args.minCandidateNodesAbsolute: one of it and minCandidateNodesPercentage must be above 0"
    );
    Ok(())
}

fn inter_pod_affinity(args: InterPodAffinityArgs, profile: &mut Profile) -> anyhow::Result<()> {
    let weight = args.hard_pod_affinity_weight.unwrap_or(profile.hard_pod_affinity_weight);
    ensure!((0..=100).contains(&weight), "args.hardPodAffinityWeight: not in valid range [0, 100]");
    profile.hard_pod_affinity_weight = weight;
    profile.ignore_preferred_terms_of_existing_pods =
        args.ignore_preferred_terms_of_existing_pods.unwrap_or_default();
    Ok(())
}

fn pod_topology_spread(args: PodTopologySpreadArgs, profile: &mut Profile) -> anyhow::Result<()> {
    let listed = match args.defaulting_type.as_deref() {
        None | Some("System") => false,
        Some("List") => true,
        Some(other) => bail!("args.defaultingType: {other:?} is neither System nor List"),
    };
    ensure!(
        listed || args.default_constraints.is_empty(),
        "args.defaultConstraints: only with the defaultingType List"
    );
    for (index, constraint) in args.default_constraints.iter().enumerate() {
        let path = format!("args.defaultConstraints[{index}]");
        ensure!(constraint.max_skew > 0, "{path}.maxSkew: must be greater than 0");
        ensure!(!constraint.topology_key.is_empty(), "{path}.topologyKey: is empty");
        let action = constraint.when_unsatisfiable.as_str();
        ensure!(
            matches!(action, "DoNotSchedule" | "ScheduleAnyway"),
            "{path}.whenUnsatisfiable: {action:?} is unknown"
        );
        ensure!(constraint.label_selector.is_none(), "{path}.labelSelector: a default has none");
    }
    profile.system_default_constraints = !listed;
    profile.default_constraints = args.default_constraints;
    Ok(())
}

fn node_resources_fit(args: FitArgs, profile: &mut Profile) -> anyhow::Result<()> {
    profile.ignored_resources = args.ignored_resources;
    profile.ignored_resource_groups = args.ignored_resource_groups;
    let Some(strategy) = args.scoring_strategy else {
        return Ok(());
    };
    let path = "args.scoringStrategy";
    let kind = match strategy.kind.as_deref() {
        None | Some("LeastAllocated") => StrategyKind::LeastAllocated,
        Some("MostAllocated") => StrategyKind::MostAllocated,
        Some("RequestedToCapacityRatio") => {
            let ratio = strategy.requested_to_capacity_ratio;
            let points = ratio.with_context(|| format!("{path}.requestedToCapacityRatio: is missing"))?.shape;
            StrategyKind::RequestedToCapacityRatio(
                shape(points).with_context(|| format!("{path}.requestedToCapacityRatio.shape"))?,
            )
        }
        Some(other) => bail!("{path}.type: {other:?} is unknown"),
    };
    let resources = match strategy.resources {
        Some(resources) => weighted(resources).with_context(|| format!("{path}.resources"))?,
        None => profile.fit.resources.clone(),
    };
    profile.fit = Strategy { kind, resources };
    Ok(())
}

/// Points on the scale of 0 to 100.
fn shape(points: Vec<Point>) -> anyhow::Result<Vec<(i64, i64)>> {
    ensure!(!points.is_empty(), "at least one point must be specified");
    for (index, point) in points.iter().enumerate() {
        ensure!((0..=100).contains(&point.utilization), "[{index}].utilization: not in valid range [0, 100]");
        ensure!((0..=10).contains(&point.score), "[{index}].score: not in valid range [0, 10]");
    }
    let ascends = points.windows(2).all(|pair| pair[0].utilization < pair[1].utilization);
    ensure!(ascends, "utilization values must be sorted in increasing order");
    Ok(points.into_iter().map(|point| (point.utilization, 10 * point.score)).collect())
}

fn weighted(resources: Vec<Resource>) -> anyhow::Result<Vec<(String, i64)>> {
    let mut all = Vec::new();
    for (index, resource) in resources.into_iter().enumerate() {
        ensure!(!resource.name.is_empty(), "[{index}].name: is empty");
        // No weight is a weight of 1.
        let weight = if resource.weight == 0 { 1 } else { resource.weight };
        ensure!((1..=100).contains(&weight), "[{index}].weight: not in valid range [1, 100]");
        all.push((resource.name, weight));
    }
    Ok(all)
}
