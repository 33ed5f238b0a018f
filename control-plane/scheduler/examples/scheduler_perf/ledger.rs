//! How many pods were made, tried and bound, by namespace and by what their label `type` says; and the bindings that are
//! measured.

use std::time::Instant;

use crate::workloads::Stage;

#[derive(Default)]
pub(crate) struct Ledger {
    /// As many as namespaces and types: few.
    groups: Vec<Group>,
    collector: Option<Collector>,
}

/// Pods of one namespace and one type.
struct Group {
    namespace: String,
    kind: Option<String>,
    /// Those that workloads wait for.
    made: usize,
    attempted: usize,
    bound: usize,
}

struct Collector {
    namespaces: Vec<String>,
    kind: Option<String>,
    start: Instant,
    bound: Vec<(String, Instant)>,
}

/// Bindings of the pods that were meant, in order: the pods' names, and when they were seen.
pub(crate) struct Collected {
    pub(crate) start: Instant,
    pub(crate) bound: Vec<(String, Instant)>,
}

impl Ledger {
    /// From now on, pods of these namespaces are measured; None: of any type.
    pub(crate) fn collect(&mut self, namespaces: &[&str], kind: Option<&str>) {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let kind = kind.map(str::to_owned);
        self.collector = Some(Collector { namespaces, kind, start: Instant::now(), bound: Vec::new() });
    }

    pub(crate) fn collected(&mut self) -> Option<Collected> {
        let Collector { start, bound, .. } = self.collector.take()?;
        Some(Collected { start, bound })
    }

    pub(crate) fn made(&mut self, namespace: &str, kind: Option<&str>, count: usize) {
        self.group(namespace, kind).made += count;
    }

    /// A pod was tried for the first time, whether it has a node now or not.
    pub(crate) fn attempted(&mut self, namespace: &str, kind: Option<&str>) {
        self.group(namespace, kind).attempted += 1;
    }

    /// A pod has a node.
    pub(crate) fn bound(&mut self, namespace: &str, kind: Option<&str>, name: &str) {
        self.group(namespace, kind).bound += 1;
        let collector = self.collector.as_mut().filter(|collector| collector.wants(namespace, kind));
        if let Some(collector) = collector {
            collector.bound.push((name.to_owned(), Instant::now()));
        }
    }

    /// Whether all pods that were made have come so far; None: of any namespace, and of any type.
    pub(crate) fn is_past(&self, stage: Stage, namespace: Option<&str>, kind: Option<&str>) -> bool {
        let groups = self.groups.iter();
        let meant = groups
            .filter(|group| namespace.is_none_or(|namespace| group.namespace == namespace))
            .filter(|group| kind.is_none() || group.kind.as_deref() == kind);
        let mut counts = meant.map(|group| match stage {
            Stage::Attempted => (group.attempted, group.made),
            Stage::Scheduled => (group.bound, group.made),
        });
        counts.all(|(come, made)| come >= made)
    }

    /// Namespace, type, and how many were made, tried and bound: of those that are not all bound.
    pub(crate) fn missing(&self) -> String {
        let missing = self.groups.iter().filter(|group| group.bound < group.made).map(|group| {
            let kind = group.kind.as_deref().unwrap_or("any");
            let Group { namespace, made, attempted, bound, .. } = group;
            format!("{namespace} ({kind}): {made} made, {attempted} tried, {bound} bound")
        });
        missing.collect::<Vec<_>>().join("; ")
    }

    fn group(&mut self, namespace: &str, kind: Option<&str>) -> &mut Group {
        let is_it = |group: &Group| group.namespace == namespace && group.kind.as_deref() == kind;
        let found = self.groups.iter().position(is_it).unwrap_or_else(|| {
            let (namespace, kind) = (namespace.to_owned(), kind.map(str::to_owned));
            self.groups.push(Group { namespace, kind, made: 0, attempted: 0, bound: 0 });
            self.groups.len() - 1
        });
        &mut self.groups[found]
    }
}

impl Collector {
    fn wants(&self, namespace: &str, kind: Option<&str>) -> bool {
        self.namespaces.iter().any(|one| one == namespace)
            && (self.kind.is_none() || self.kind.as_deref() == kind)
    }
}
