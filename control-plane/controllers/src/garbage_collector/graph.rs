//! Who owns whom, over all kinds. Pure.
//!
//! Keyed by uid, because owner references are by uid: an object that is made anew under its name is another
//! one. Every change returns the uids to look at, so that the shell is a queue and nothing else. The graph may
//! be behind; what it says is checked at the API before anything is deleted.

use std::collections::{HashMap, HashSet};

use hawser_api::resource::GroupVersionResource;
use serde::Deserialize;

pub(super) const ORPHAN: &str = "orphan";
pub(super) const FOREGROUND: &str = "foregroundDeletion";

pub(super) type Uid = String;

/// As much of any object as the graph needs.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Partial {
    pub(super) metadata: Meta,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) resource_version: String,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) finalizers: Vec<String>,
    pub(super) owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Owner {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) block_owner_deletion: bool,
}

impl Meta {
    pub(super) fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// It ends, but its dependents are to stay.
    pub(super) fn orphans(&self) -> bool {
        self.is_deleting() && self.finalizers.iter().any(|it| it == ORPHAN)
    }

    /// It ends when its dependents have.
    pub(super) fn waits_for_dependents(&self) -> bool {
        self.is_deleting() && self.finalizers.iter().any(|it| it == FOREGROUND)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) resource: GroupVersionResource,
    pub(super) meta: Meta,
}

/// Bounded by the objects that exist: an entry costs its metadata.
#[derive(Default)]
pub(super) struct Graph {
    objects: HashMap<Uid, Object>,
    /// By the owner's uid, known or not.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// The objects that name `uid` as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Object> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.objects.get(uid)).cloned().collect()
    }

    /// Whether `waiter` ends only after `other`: over any number of dependents that block, each of which waits for its
    /// own.
    pub(super) fn awaits(&self, waiter: &str, other: &str) -> bool {
        let (mut seen, mut next) = (HashSet::from([waiter]), vec![waiter]);
        while let Some(owner) = next.pop() {
            if !self.get(owner).is_some_and(|object| object.meta.waits_for_dependents()) {
                continue;
            }
            let dependents = self.dependents.get(owner).into_iter().flatten();
            for dependent in dependents.filter(|dependent| self.blocks(dependent, owner)) {
                if dependent == other {
                    return true;
                }
                if seen.insert(dependent) {
                    next.push(dependent);
                }
            }
        }
        false
    }

    fn blocks(&self, dependent: &str, owner: &str) -> bool {
        let references = self.get(dependent).map(|object| object.meta.owner_references.as_slice());
        references.unwrap_or_default().iter().any(|it| it.uid == owner && it.block_owner_deletion)
    }

    /// Adds or replaces an object; returns what to look at.
    pub(super) fn put(&mut self, object: Object) -> Vec<Uid> {
        let uid = object.meta.uid.clone();
        let owners_before = self.detach(&uid);
        let meta = &object.meta;
        for owner in &meta.owner_references {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut look = Vec::new();
        // A reference that was dropped, or blocks no longer, may be what an owner waits for.
        if owners_before.as_ref().is_some_and(|before| *before != meta.owner_references) {
            look.extend(self.waiting(owners_before.as_deref().unwrap_or_default()));
        }
        let is_new = owners_before.as_ref() != Some(&meta.owner_references);
        let owner_may_be_gone = meta
            .owner_references
            .iter()
            .any(|owner| self.objects.get(&owner.uid).is_none_or(|owner| owner.meta.waits_for_dependents()));
        let owners_matter = !meta.owner_references.is_empty() && (is_new || owner_may_be_gone);
        if owners_matter || meta.orphans() || meta.waits_for_dependents() {
            look.push(uid.clone());
        }
        self.objects.insert(uid, object);
        look
    }

    /// Removes an object; returns what to look at: its dependents, and owners that waited for it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let owners = self.detach(uid).unwrap_or_default();
        self.objects.remove(uid);
        let mut look = self.waiting(&owners);
        look.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        look
    }

    /// Takes the object out of its owners' dependents; returns the owners it had.
    fn detach(&mut self, uid: &str) -> Option<Vec<Owner>> {
        let owners = self.objects.get(uid)?.meta.owner_references.clone();
        for owner in &owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(owners)
    }

    fn waiting(&self, owners: &[Owner]) -> Vec<Uid> {
        let waits = |owner: &&Owner| {
            self.objects.get(&owner.uid).is_some_and(|owner| owner.meta.waits_for_dependents())
        };
        owners.iter().filter(waits).map(|owner| owner.uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, owners: &[&str], finalizer: Option<&str>) -> Object {
        Object {
            resource: GroupVersionResource::fixed("", "v1", "configmaps"),
            meta: Meta {
                uid: uid.into(),
                deletion_timestamp: finalizer.map(|_| "now".into()),
                finalizers: finalizer.into_iter().map(str::to_owned).collect(),
                owner_references: owners
                    .iter()
                    .map(|uid| Owner { uid: uid.to_string(), ..Owner::default() })
                    .collect(),
                ..Meta::default()
            },
        }
    }

    #[test]
    fn circles_are_found_over_what_waits_and_blocks_alone() {
        let waiting = |uid: &str, owner: &str, blocks: bool| {
            let mut object = object(uid, &[owner], Some(FOREGROUND));
            object.meta.owner_references[0].block_owner_deletion = blocks;
            object
        };
        let mut graph = Graph::default();
        for (uid, owner) in [("a", "c"), ("b", "a"), ("c", "b")] {
            graph.put(waiting(uid, owner, true));
        }
        assert!(graph.awaits("b", "a") && graph.awaits("c", "b") && graph.awaits("a", "c"));
        assert!(!graph.awaits("a", "elsewhere"), "a circle ends the search");
        graph.put(waiting("a", "c", false));
        assert!(!graph.awaits("b", "a"), "a reference that does not block holds nobody up");
        assert!(graph.awaits("a", "c"));
        graph.put(object("b", &["a"], None));
        assert!(!graph.awaits("a", "c"), "what does not go waits for nobody");
    }

    #[test]
    fn changes_name_what_to_look_at() {
        let mut graph = Graph::default();
        assert!(graph.put(object("owner", &[], None)).is_empty(), "nothing owns it, it owns nothing");
        assert_eq!(graph.put(object("a", &["owner"], None)), ["a"], "a new dependent");
        assert!(graph.put(object("a", &["owner"], None)).is_empty(), "the same again");
        assert_eq!(graph.put(object("owner", &[], Some(FOREGROUND))), ["owner"], "the owner waits");
        assert_eq!(graph.remove("a"), ["owner"], "what it waited for is gone");
        graph.put(object("b", &["owner"], None));
        assert_eq!(graph.put(object("b", &[], None)), ["owner"], "or released");
        graph.put(object("c", &["owner"], None));
        assert_eq!(graph.remove("owner"), ["c"], "dependents of what is gone");
        assert_eq!(graph.put(object("d", &["never seen"], None)), ["d"]);
        assert_eq!(graph.put(object("d", &["never seen"], None)), ["d"], "as long as the owner is unknown");
    }
}
