//! What a pod says about nodes: selectors, affinity, tolerations; and whether a node satisfies it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration as TolerationObject,
};

use crate::pod::Labels;

/// The field of nodes that terms may ask for.
const NAME: &str = "metadata.name";

/// `nodeSelector` and `nodeAffinity` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct NodeAffinity {
    /// All of them.
    selector: Vec<(String, String)>,
    /// One of them, where there are any.
    required: Option<Vec<Term>>,
    preferred: Vec<(i32, Term)>,
    /// The only nodes that the required terms allow, where each of them names some.
    named: Option<BTreeSet<String>>,
}

/// All requirements must hold. A term without any holds nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Term {
    labels: Vec<Requirement>,
    /// On `metadata.name`.
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl NodeAffinity {
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let selector =
            spec.node_selector.iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required: Option<Vec<Term>> = affinity
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|required| required.node_selector_terms.iter().map(Term::of).collect());
        let preferred = affinity
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
            .map(|preferred| (preferred.weight, Term::of(&preferred.preference)))
            .collect();
        let named = required.as_ref().and_then(|terms| named(terms));
        Self { selector, required, preferred, named }
    }

    /// Nodes that the selector of a volume allows.
    pub(crate) fn selecting(nodes: &NodeSelector) -> Self {
        let required = nodes.node_selector_terms.iter().map(Term::of).collect();
        Self { required: Some(required), ..Self::default() }
    }

    /// Whether the node is one of those that the required terms name, or they name none.
    pub(crate) fn names(&self, node: &str) -> bool {
        self.named.as_ref().is_none_or(|named| named.contains(node))
    }

    /// The node that the required terms name, where they name no other.
    pub(crate) fn only_name(&self) -> Option<&str> {
        let named = self.named.as_ref().filter(|named| named.len() == 1)?;
        named.first().map(String::as_str)
    }

    /// Whether a pod may run on the node.
    pub(crate) fn allows(&self, name: &str, labels: &Labels) -> bool {
        self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(name, labels)))
    }

    /// Values of which an allowed node must have one; `None` where a required term is not told by any.
    pub(crate) fn anchors(&self) -> Option<Vec<(Anchor, String)>> {
        let mut anchors = Vec::new();
        for term in self.required.as_ref()? {
            let listed = |requirement: &&Requirement| requirement.operator == "In";
            let by_label = term.labels.iter().find(listed).map(|one| (Anchor::Label(one.key.clone()), one));
            let named = |field: &&Requirement| listed(field) && field.key == NAME;
            let by_name = || term.fields.iter().find(named).map(|one| (Anchor::Name, one));
            let (anchor, requirement) = by_label.or_else(by_name)?;
            anchors.extend(requirement.values.iter().map(|value| (anchor.clone(), value.clone())));
        }
        Some(anchors)
    }

    /// Whether any node may be refused.
    pub(crate) fn is_required(&self) -> bool {
        !self.selector.is_empty() || self.required.is_some()
    }

    /// Without the preferences.
    pub(crate) fn required_alone(&self) -> Self {
        Self { preferred: Vec::new(), ..self.clone() }
    }

    /// The weights of the preferences that the node satisfies.
    pub(crate) fn preference(&self, name: &str, labels: &Labels) -> i64 {
        let met = self.preferred.iter().filter(|(_, term)| term.holds(name, labels));
        met.map(|(weight, _)| i64::from(*weight)).sum()
    }
}

/// Nodes that the terms name; `None` where one of them names none, and so allows others.
fn named(terms: &[Term]) -> Option<BTreeSet<String>> {
    let of_term = |term: &Term| {
        let named = term.fields.iter().filter(|field| field.key == NAME && field.operator == "In");
        named
            .map(|field| field.values.iter().cloned().collect::<BTreeSet<_>>())
            .reduce(|one, other| &one & &other)
    };
    let all: Vec<BTreeSet<String>> = terms.iter().map(of_term).collect::<Option<_>>()?;
    all.into_iter().reduce(|one, other| &one | &other)
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Self {
        let read = |list: &Option<Vec<NodeSelectorRequirement>>| {
            list.iter()
                .flatten()
                .map(|requirement| Requirement {
                    key: requirement.key.clone(),
                    operator: requirement.operator.clone(),
                    values: requirement.values.clone().unwrap_or_default(),
                })
                .collect()
        };
        Self { labels: read(&term.match_expressions), fields: read(&term.match_fields) }
    }

    fn holds(&self, name: &str, labels: &Labels) -> bool {
        let empty = self.labels.is_empty() && self.fields.is_empty();
        !empty
            && self
                .labels
                .iter()
                .all(|requirement| requirement.holds(labels.get(&requirement.key).map(String::as_str)))
            && self
                .fields
                .iter()
                .all(|requirement| requirement.holds((requirement.key == NAME).then_some(name)))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|known| known == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = || self.values.first().and_then(|text| number(text));
        match self.operator.as_str() {
            "In" => value.is_some_and(listed),
            "NotIn" => !value.is_some_and(listed),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value > bound),
            "Lt" => value.and_then(number).zip(bound()).is_some_and(|(value, bound)| value < bound),
            _ => false,
        }
    }
}

/// What of a node tells whether a selector may allow it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Anchor {
    Name,
    Label(String),
}

impl Anchor {
    pub(crate) fn of<'a>(&self, name: &'a String, labels: &'a Labels) -> Option<&'a String> {
        match self {
            Self::Name => Some(name),
            Self::Label(key) => labels.get(key),
        }
    }
}

/// What a pod puts up with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Toleration {
    key: String,
    exists: bool,
    value: String,
    /// Empty is every effect.
    effect: String,
}

impl Toleration {
    pub(crate) fn of(toleration: &TolerationObject) -> Self {
        Self {
            key: toleration.key.clone().unwrap_or_default(),
            exists: toleration.operator.as_deref() == Some("Exists"),
            value: toleration.value.clone().unwrap_or_default(),
            effect: toleration.effect.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_empty() || self.effect == taint.effect;
        // Without a key, `Exists` tolerates every key.
        let key = self.key == taint.key || (self.key.is_empty() && self.exists);
        effect && key && (self.exists || self.value == taint.value.as_deref().unwrap_or_default())
    }
}

/// Whether the taint keeps pods away, rather than making the node less liked.
pub(crate) fn keeps_away(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
}

/// The first taint that keeps away a pod with these tolerations.
pub(crate) fn untolerated<'a>(tolerations: &[Toleration], taints: &'a [Taint]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| keeps_away(taint))
        .find(|taint| !tolerations.iter().any(|toleration| toleration.tolerates(taint)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(name: &str, spec: Value, allowed: bool) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let labels: Labels =
            [("zone", "a"), ("cores", "8")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        assert_eq!(NodeAffinity::of(&spec).allows("n1", &labels), allowed, "{name}");
    }

    fn required(terms: Value) -> Value {
        json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
    }

    fn expression(key: &str, operator: &str, values: Value) -> Value {
        required(json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]))
    }

    #[test]
    fn node_affinity() {
        check("no wish", json!({}), true);
        check("selector matches", json!({ "nodeSelector": { "zone": "a" } }), true);
        check("selector differs", json!({ "nodeSelector": { "zone": "b" } }), false);
        check("In", expression("zone", "In", json!(["a", "b"])), true);
        check("In, absent", expression("rack", "In", json!(["a"])), false);
        check("NotIn, absent", expression("rack", "NotIn", json!(["a"])), true);
        check("Exists", expression("zone", "Exists", json!([])), true);
        check("DoesNotExist", expression("zone", "DoesNotExist", json!([])), false);
        check("Gt", expression("cores", "Gt", json!(["4"])), true);
        check("Gt, equal", expression("cores", "Gt", json!(["8"])), false);
        check("Lt, no number", expression("zone", "Lt", json!(["4"])), false);
        check("no terms hold nowhere", required(json!([])), false);
        check("empty term holds nowhere", required(json!([{}])), false);
        check(
            "one of two terms",
            required(
                json!([{}, { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n1"] }] }]),
            ),
            true,
        );
    }

    #[test]
    fn tolerations() {
        let rows = [
            ("no toleration", json!([]), false),
            ("equal", json!([{ "key": "gpu", "value": "a100", "effect": "NoSchedule" }]), true),
            ("other value", json!([{ "key": "gpu", "value": "h100", "effect": "NoSchedule" }]), false),
            ("other effect", json!([{ "key": "gpu", "value": "a100", "effect": "NoExecute" }]), false),
            ("every effect", json!([{ "key": "gpu", "value": "a100" }]), true),
            ("exists", json!([{ "key": "gpu", "operator": "Exists" }]), true),
            ("everything", json!([{ "operator": "Exists" }]), true),
        ];
        let taint: Taint =
            serde_json::from_value(json!({ "key": "gpu", "value": "a100", "effect": "NoSchedule" })).unwrap();
        for (name, tolerations, expected) in rows {
            let all: Vec<TolerationObject> = serde_json::from_value(tolerations).unwrap();
            assert_eq!(all.iter().map(Toleration::of).any(|own| own.tolerates(&taint)), expected, "{name}");
        }
    }
}
