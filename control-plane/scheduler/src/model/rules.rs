//! Configurations that the model is tried with, as users write them and as the twin reads them.

use serde_json::{Value, json};

use crate::config::Config;

/// What of a configuration the twin goes by.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) config: Config,
    /// Node affinity of every pod, beside its own.
    pub(super) added: Value,
    /// `LeastAllocated`, `MostAllocated`, or points of used percentage and score (0 to 10).
    pub(super) strategy: Value,
    /// Names with weights.
    pub(super) compared: Vec<(&'static str, i64)>,
    pub(super) balanced: Vec<&'static str>,
    /// Spread constraints of pods that have none; null is upstream's own.
    pub(super) constraints: Value,
    pub(super) hard_affinity_weight: i64,
    pub(super) ignores_preferred: bool,
    /// Weights of scores, in the order of the twin's.
    pub(super) weights: [i64; 7],
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            config: Config::default(),
            added: Value::Null,
            strategy: json!("LeastAllocated"),
            compared: vec![("cpu", 1), ("memory", 1)],
            balanced: vec!["cpu", "memory"],
            constraints: Value::Null,
            hard_affinity_weight: 1,
            ignores_preferred: false,
            weights: [1, 1, 3, 2, 2, 2, 1],
        }
    }
}

impl Rules {
    pub(super) const COUNT: u64 = 4;

    pub(super) fn any(seed: u64) -> Self {
        match seed % Self::COUNT {
            0 => Self::packing(),
            1 => Self::by_ratio(),
            2 => Self::spreading(),
            _ => Self::default(),
        }
    }

    /// Nodes fill up one after the other, and every pod has wishes of the profile's.
    fn packing() -> Self {
        let term = |zone: &str| json!({ "matchExpressions": [{ "key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": [zone] }] });
        Self {
            added: json!({
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term("c")] },
                "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 20, "preference": term("b") }],
            }),
            strategy: json!("MostAllocated"),
            compared: vec![("cpu", 3), ("example.com/gpu", 5)],
            balanced: vec!["cpu", "memory", "example.com/gpu"],
            hard_affinity_weight: 7,
            ..Self::default()
        }
        .written()
    }

    fn by_ratio() -> Self {
        Self {
            strategy: json!([[0, 0], [40, 10], [90, 3]]),
            compared: vec![("cpu", 1), ("memory", 2), ("ephemeral-storage", 1)],
            balanced: vec!["memory", "ephemeral-storage"],
            ignores_preferred: true,
            weights: [9, 2, 1, 5, 1, 3, 0],
            ..Self::default()
        }
        .written()
    }

    /// Pods without constraints have those of the cluster.
    fn spreading() -> Self {
        let constraint = |key: &str, skew: i64, action: &str| json!({ "topologyKey": key, "maxSkew": skew, "whenUnsatisfiable": action });
        Self {
            constraints: json!([
                constraint("topology.kubernetes.io/zone", 2, "DoNotSchedule"),
                constraint("kubernetes.io/hostname", 1, "ScheduleAnyway"),
                constraint("rack", 2, "ScheduleAnyway"),
            ]),
            hard_affinity_weight: 0,
            ..Self::default()
        }
        .written()
    }

    /// With the file that says so.
    fn written(self) -> Self {
        let names = [
            "NodeResourcesFit",
            "NodeResourcesBalancedAllocation",
            "TaintToleration",
            "NodeAffinity",
            "PodTopologySpread",
            "InterPodAffinity",
            "ImageLocality",
        ];
        let weighted = names.iter().zip(self.weights).filter(|(_, weight)| *weight != 0);
        let scores: Vec<Value> =
            weighted.map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
        let compared: Vec<Value> =
            self.compared.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
        let mut strategy = json!({ "type": self.strategy, "resources": compared });
        if let Some(points) = self.strategy.as_array() {
            let shape: Vec<Value> =
                points.iter().map(|point| json!({ "utilization": point[0], "score": point[1] })).collect();
            strategy["type"] = json!("RequestedToCapacityRatio");
            strategy["requestedToCapacityRatio"] = json!({ "shape": shape });
        }
        let balanced: Vec<Value> =
            self.balanced.iter().map(|name| json!({ "name": name, "weight": 1 })).collect();
        let spread = match &self.constraints {
            Value::Null => json!({ "defaultingType": "System" }),
            constraints => json!({ "defaultingType": "List", "defaultConstraints": constraints }),
        };
        let affinity = json!({
            "hardPodAffinityWeight": self.hard_affinity_weight,
            "ignorePreferredTermsOfExistingPods": self.ignores_preferred,
        });
        let args = |name: &str, args: Value| json!({ "name": name, "args": args });
        let mut settings = vec![
            args("NodeResourcesFit", json!({ "scoringStrategy": strategy })),
            args("NodeResourcesBalancedAllocation", json!({ "resources": balanced })),
            args("PodTopologySpread", spread),
            args("InterPodAffinity", affinity),
        ];
        if !self.added.is_null() {
            settings.push(args("NodeAffinity", json!({ "addedAffinity": self.added })));
        }
        let score = json!({ "disabled": [{ "name": "*" }], "enabled": scores });
        let file = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "profiles": [{ "plugins": { "score": score }, "pluginConfig": settings }],
        });
        let config = Config::default().with_file(&file.to_string()).unwrap();
        Self { config, ..self }
    }
}
