//! What a workload does, step by step: upstream's operations under upstream's names, so that the two can be compared.
//!
//! Templates are names that [`crate::objects::object`] knows. An operation ends when what it does has happened, except where
//! it says that it goes on meanwhile.

use serde::Serialize;

pub(crate) struct Workload {
    /// `SchedulingBasic/5000Nodes_10000Pods`: upstream's test case, and its size.
    pub(crate) name: &'static str,
    /// The highest of upstream's thresholds (pods/s) for these operations; 0 where it has none.
    pub(crate) floor: u32,
    pub(crate) ops: Vec<Op>,
}

#[derive(Serialize)]
#[serde(tag = "opcode", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Op {
    CreateNodes(Nodes),
    /// `<prefix>-0` and so on.
    CreateNamespaces {
        prefix: &'static str,
        count: usize,
        /// None: without labels.
        namespace_template: Option<&'static str>,
    },
    CreatePods(Pods),
    /// The same pods in each of so many namespaces of one prefix.
    CreatePodSets {
        count: usize,
        namespace_prefix: &'static str,
        create_pods_op: Pods,
    },
    /// Goes on until the end: objects come, or come and go.
    Churn {
        mode: Churn,
        /// How many of each there are at a time; 0 where they only come.
        number: usize,
        templates: &'static [&'static str],
        interval_milliseconds: u64,
    },
    CreateAny {
        template: &'static str,
        namespace: Option<&'static str>,
        /// None: one.
        count: Option<usize>,
    },
    /// What was made as the `index`th of its operation gets what the template says; `null` takes a field away.
    UpdateAny {
        template: &'static str,
        namespace: Option<&'static str>,
        count: usize,
        update_per_second: u32,
        subresources: &'static [&'static str],
    },
    /// Goes on meanwhile: deletes the pods that there are now.
    DeletePods {
        namespace: &'static str,
        /// Value of the label `type`; None: all.
        label_selector: Option<&'static str>,
        delete_pods_per_second: u32,
    },
    /// Waits for all pods that were made.
    Barrier {
        stage_requirement: Stage,
        /// As of `DeletePods`.
        label_selector: Option<&'static str>,
    },
    /// Counts the pods that get a node from now on.
    StartCollectingMetrics {
        namespaces: &'static [&'static str],
        /// As of `DeletePods`.
        label_selector: Option<&'static str>,
    },
    StopCollectingMetrics,
    /// A ResourceSlice with so many devices for each node of [`crate::objects::DRA_NODE`].
    CreateResourceDriver {
        max_claims_per_node: usize,
    },
    /// Gives the claims of a namespace their devices.
    AllocResourceClaims {
        namespace: &'static str,
    },
    /// Not upstream's. Measured is the memory that so many nodes, and pods on them, take; for a scheduler alone.
    Memory {
        nodes: usize,
        pods: usize,
    },
    /// Not upstream's. Pods that come evenly; measured is how long each takes. Nothing for a scheduler alone, which has no
    /// wire.
    Arrive {
        template: &'static str,
        count: usize,
        per_second: u32,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Nodes {
    pub(crate) count: usize,
    pub(crate) node_template: &'static str,
    /// In turn; empty: nodes are in no zone.
    pub(crate) zones: &'static [&'static str],
    /// Volumes that a node takes by its CSINode; None: there is no CSINode.
    pub(crate) volume_limit: Option<u32>,
    /// The CSINode says that volumes in the tree have moved to its driver.
    pub(crate) migrated: bool,
    /// Features that each node declares (KEP-5328).
    pub(crate) declared_features: usize,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pods {
    pub(crate) count: usize,
    pub(crate) pod_template: &'static str,
    /// None: `namespace-<number of the operation>`.
    pub(crate) namespace: Option<&'static str>,
    /// Each pod gets a volume and a claim, bound to one another.
    pub(crate) persistent_volume_template: Option<&'static str>,
    pub(crate) persistent_volume_claim_template: Option<&'static str>,
    pub(crate) collect_metrics: bool,
    pub(crate) skip_wait_to_completion: bool,
    /// Seconds in which each pod that gets a node is deleted and another one made, so that there are always `count`.
    pub(crate) steady_state: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Churn {
    Create,
    Recreate,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Stage {
    /// The scheduler has looked at the pod, or told that it is gated.
    Attempted,
    Scheduled,
}

impl Nodes {
    pub(crate) fn zoned(mut self, zones: &'static [&'static str]) -> Self {
        self.zones = zones;
        self
    }

    pub(crate) fn limited(mut self, volumes: u32) -> Self {
        self.volume_limit = Some(volumes);
        self
    }

    pub(crate) fn migrated(mut self) -> Self {
        self.migrated = true;
        self
    }

    pub(crate) fn declaring(mut self, features: usize) -> Self {
        self.declared_features = features;
        self
    }
}

impl Pods {
    pub(crate) fn within(mut self, namespace: &'static str) -> Self {
        self.namespace = Some(namespace);
        self
    }

    pub(crate) fn measured(mut self) -> Self {
        self.collect_metrics = true;
        self
    }

    /// The next operation does not wait until they have a node.
    pub(crate) fn unwaited(mut self) -> Self {
        self.skip_wait_to_completion = true;
        self
    }

    pub(crate) fn with_volumes(mut self, volume: &'static str, claim: &'static str) -> Self {
        self.persistent_volume_template = Some(volume);
        self.persistent_volume_claim_template = Some(claim);
        self
    }

    pub(crate) fn steady(mut self, seconds: u64) -> Self {
        self.steady_state = Some(seconds);
        self
    }
}

impl From<Nodes> for Op {
    fn from(nodes: Nodes) -> Self {
        Self::CreateNodes(nodes)
    }
}

impl From<Pods> for Op {
    fn from(pods: Pods) -> Self {
        Self::CreatePods(pods)
    }
}

/// Nodes of four cores and 32 GiB.
pub(crate) fn nodes(count: usize) -> Nodes {
    nodes_of("node-default", count)
}

pub(crate) fn nodes_of(node_template: &'static str, count: usize) -> Nodes {
    Nodes { count, node_template, zones: &[], volume_limit: None, migrated: false, declared_features: 0 }
}

pub(crate) fn pods(pod_template: &'static str, count: usize) -> Pods {
    Pods {
        count,
        pod_template,
        namespace: None,
        persistent_volume_template: None,
        persistent_volume_claim_template: None,
        collect_metrics: false,
        skip_wait_to_completion: false,
        steady_state: None,
    }
}
