//! Which objects of a kind a request is about, and how to find them without looking at all.
//!
//! A name is one lookup; a node or a label equality reads an index; a namespace is a range of keys. What remains is
//! filtered object by object, on metadata that was parsed when the object entered the cache.

use std::sync::Arc;

use hawser_api::{
    Error,
    selector::{FieldSelector, LabelSelector, Operator},
};
use hawser_store::Key;

use super::{CachedObject, CowMap, KindCache, State, cow_map::Iter};

/// One condition on a selectable field.
#[derive(Clone, Debug)]
pub struct FieldRequirement {
    /// Position in the kind's list of selectable fields.
    field: usize,
    value: String,
    equal: bool,
}

/// What a list, a watch or a deletion of a collection selects.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `None` for all namespaces and for cluster-wide kinds.
    pub namespace: Option<String>,
    /// From `metadata.name=`, or a watch of one object.
    pub name: Option<String>,
    labels: LabelSelector,
    fields: Vec<FieldRequirement>,
    /// From `spec.nodeName=` of pods.
    pub node: Option<String>,
    /// Names and namespaces that are excluded: `metadata.name!=a`.
    excluded: Vec<(bool, String)>,
    /// A contradiction (`metadata.name=a,metadata.name=b`): nothing matches.
    nothing: bool,
}

impl Selection {
    /// Reads selectors as requests carry them; `namespace` comes from the path.
    pub fn parse(
        kind: &KindCache,
        namespace: Option<&str>,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self, Error> {
        let labels = LabelSelector::parse(label_selector)?;
        let fields = FieldSelector::parse(field_selector)?;
        let mut selection = Self { namespace: namespace.map(str::to_owned), labels, ..Self::default() };
        for requirement in fields.requirements() {
            selection.require_field(kind, &requirement.field, &requirement.value, !requirement.negated)?;
        }
        Ok(selection)
    }

    fn require_field(
        &mut self,
        kind: &KindCache,
        field: &str,
        value: &str,
        equal: bool,
    ) -> Result<(), Error> {
        match field {
            "metadata.name" if equal => self.narrow_name(value),
            "metadata.namespace" if equal && kind.namespaced() => {
                self.nothing |= self.namespace.as_deref().is_some_and(|known| known != value);
                self.namespace = Some(value.to_owned());
            }
            "metadata.name" => self.excluded.push((true, value.to_owned())),
            "metadata.namespace" if kind.namespaced() => self.excluded.push((false, value.to_owned())),
            _ => {
                let position = kind
                    .selectable()
                    .iter()
                    .position(|(name, _)| *name == field)
                    .ok_or_else(|| Error::bad_request(format!("field label not supported: {field}")))?;
                if equal && field == "spec.nodeName" && !value.is_empty() {
                    self.nothing |= self.node.as_deref().is_some_and(|known| known != value);
                    self.node = Some(value.to_owned());
                }
                self.fields.push(FieldRequirement { field: position, value: value.to_owned(), equal });
            }
        }
        Ok(())
    }

    /// Everything of a namespace, or of all.
    pub fn within(namespace: Option<&str>) -> Self {
        Self { namespace: namespace.map(str::to_owned), ..Self::default() }
    }

    /// The pods of a node, of one namespace or of all.
    pub fn on_node(node: &str, namespace: Option<&str>) -> Self {
        Self { node: Some(node.to_owned()), ..Self::within(namespace) }
    }

    /// Restricts to one object.
    pub fn narrow_name(&mut self, name: &str) {
        self.nothing |= self.name.as_deref().is_some_and(|known| known != name);
        self.name = Some(name.to_owned());
    }

    /// True where every object of the namespace (or of all) is selected.
    pub fn is_everything(&self) -> bool {
        self.name.is_none()
            && self.labels.is_everything()
            && self.fields.is_empty()
            && self.excluded.is_empty()
            && !self.nothing
    }

    pub fn matches(&self, kind: &KindCache, object: &CachedObject) -> bool {
        if self.nothing {
            return false;
        }
        if self.namespace.as_deref().is_some_and(|namespace| object.namespace() != namespace) {
            return false;
        }
        if self.name.as_deref().is_some_and(|name| object.name() != name) {
            return false;
        }
        if self.node.as_deref().is_some_and(|node| object.node() != node) {
            return false;
        }
        let excluded = |(is_name, text): &(bool, String)| {
            text == if *is_name { object.name() } else { object.namespace() }
        };
        if self.excluded.iter().any(excluded) {
            return false;
        }
        if !self.labels.matches(object) {
            return false;
        }
        self.fields.is_empty() || {
            let values = kind.fields_of(object);
            self.fields.iter().all(|required| (values[required.field] == required.value) == required.equal)
        }
    }

    /// The range of keys that the namespace leaves: start, end.
    pub fn key_range(&self, kind: &KindCache) -> (String, String) {
        let prefix = match self.namespace.as_deref().filter(|_| kind.namespaced()) {
            Some(namespace) => format!("{}{namespace}/", kind.prefix()),
            None => kind.prefix().to_owned(),
        };
        // `0` follows `/`.
        let end = format!("{}0", &prefix[..prefix.len() - 1]);
        (prefix, end)
    }

    /// The objects selected, in key order, from `start` on (a key; empty for the beginning).
    pub fn select(&self, kind: &Arc<KindCache>, state: &Arc<State>, start: &str) -> Selected {
        let (first, end) = self.key_range(kind);
        let start = if start > first.as_str() { start.to_owned() } else { first };
        let source = match (&self.name, &self.namespace) {
            _ if self.nothing => Source::Nothing,
            (Some(name), namespace) if namespace.is_some() || !kind.namespaced() => {
                let key = kind.key(namespace.as_deref().unwrap_or_default(), name);
                let object = (key >= start).then(|| state.objects.get(&key).cloned()).flatten();
                Source::One(object)
            }
            _ => match self.smallest_index(state) {
                Indexed::Keys(keys) => Source::Keys(keys.iter_from(&start)),
                Indexed::Nothing => Source::Nothing,
                Indexed::Not => Source::Range(state.objects.iter_from(&start)),
            },
        };
        Selected { kind: kind.clone(), state: state.clone(), selection: self.clone(), source, end }
    }

    fn smallest_index(&self, state: &State) -> Indexed {
        let mut smallest: Option<&CowMap<()>> = None;
        let nodes = self.node.iter().map(|node| state.by_node.get(node));
        let labels = self.labels.requirements().iter().filter_map(|requirement| {
            match (requirement.operator, requirement.values.as_slice()) {
                (Operator::In, [value]) => Some(state.by_label.get(&format!("{}={value}", requirement.key))),
                _ => None,
            }
        });
        for keys in nodes.chain(labels) {
            let Some(keys) = keys else { return Indexed::Nothing };
            if smallest.is_none_or(|known| keys.len() < known.len()) {
                smallest = Some(keys);
            }
        }
        smallest.map_or(Indexed::Not, |keys| Indexed::Keys(keys.clone()))
    }
}

enum Indexed {
    Keys(CowMap<()>),
    Nothing,
    Not,
}

enum Source {
    Nothing,
    One(Option<Arc<CachedObject>>),
    Keys(Iter<()>),
    Range(Iter<Arc<CachedObject>>),
}

/// Selected objects of a snapshot, one by one; owns the snapshot.
pub struct Selected {
    kind: Arc<KindCache>,
    state: Arc<State>,
    selection: Selection,
    source: Source,
    end: String,
}

impl Selected {
    fn candidate(&mut self) -> Option<(Key, Arc<CachedObject>)> {
        match &mut self.source {
            Source::Nothing => None,
            Source::One(object) => object.take().map(|object| (object.key().clone(), object)),
            Source::Keys(keys) => loop {
                let (key, ()) = keys.next()?;
                if let Some(object) = self.state.objects.get(&key) {
                    return Some((key, object.clone()));
                }
            },
            Source::Range(objects) => objects.next(),
        }
    }
}

impl Iterator for Selected {
    type Item = Arc<CachedObject>;

    fn next(&mut self) -> Option<Arc<CachedObject>> {
        loop {
            let (key, object) = self.candidate()?;
            if &*key >= self.end.as_str() {
                self.source = Source::Nothing;
                return None;
            }
            if self.selection.is_everything() || self.selection.matches(&self.kind, &object) {
                return Some(object);
            }
        }
    }
}
