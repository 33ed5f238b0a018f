//! The table of kinds: what the API serves, as data.
//!
//! One row per built-in kind. Everything generic reads it: routing, discovery, OpenAPI, the registry's keys, the
//! watch caches. What a kind *does* beyond that (defaults, validation, printing) are hooks of the API server,
//! found by group and plural. A row stands here only when its storage and verbs work; what upstream serves
//! and this table leaves out is listed, with the reason, in the tests.

mod table;

pub use table::KINDS;

use crate::resource::GroupVersionResource;

/// One kind: a row of the table.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    /// Preferred first.
    pub versions: &'static [Version],
    pub kind: &'static str,
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    /// `all` makes `kubectl get all` show it.
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    /// In the order of their names.
    pub subresources: &'static [Subresource],
    /// `None` for kinds that answer and are gone (reviews, bindings).
    pub storage: Option<Storage>,
    /// Whether `metadata.generation` counts changes of what is desired.
    pub has_generation: bool,
}

/// A version under which a kind is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    pub name: &'static str,
    /// Objects are stored in this version; true for exactly one.
    pub storage: bool,
    pub served: bool,
}

/// Where objects of a kind live. Two rows with the same place share their objects (`events` of both groups).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
}

/// A part of an object, or an action on it, with a path of its own.
#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    /// The kind of what is sent and returned.
    pub kind: &'static str,
    /// Group and version of that kind where they are not the parent's.
    pub group_version: Option<(&'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

impl Kind {
    /// The row that serves `plural` of `group` in `version`.
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.plural == plural && kind.group == group && kind.serves(version))
    }

    /// The row of a resource, as paths and messages name it.
    pub fn of(resource: &GroupVersionResource) -> Option<&'static Kind> {
        Self::find(&resource.group, &resource.version, &resource.resource)
    }

    /// The row of an object's `apiVersion` and `kind`.
    pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|row| row.kind == kind && row.group == group && row.serves(version))
    }

    /// The row of `plural` in `group`, whatever the version.
    pub fn by_plural(group: &str, plural: &str) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.plural == plural && kind.group == group)
    }

    pub fn serves(&self, version: &str) -> bool {
        self.versions.iter().any(|known| known.served && known.name == version)
    }

    /// True where the rows' objects are the same ones, seen as another kind.
    pub fn is_view(&self) -> bool {
        self.storage.is_some_and(|storage| storage.group != self.group || storage.plural != self.plural)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether `status` is written apart from the rest.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// The resource under one of its versions.
    pub fn resource(&self, version: &'static str) -> GroupVersionResource {
        GroupVersionResource::fixed(self.group, version, self.plural)
    }

    /// `v1`, or `apps/v1`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `pods`, or `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The groups served, core first, then in upstream's order of discovery; each with its versions, preferred first.
pub fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for kind in KINDS {
        let position = groups.iter().position(|group| group.name == kind.group).unwrap_or_else(|| {
            groups.push(Group { name: kind.group, versions: Vec::new() });
            groups.len() - 1
        });
        for version in kind.versions.iter().filter(|version| version.served) {
            if !groups[position].versions.contains(&version.name) {
                groups[position].versions.push(version.name);
            }
        }
    }
    groups
}

/// A group and the versions served in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    pub name: &'static str,
    /// Preferred first.
    pub versions: Vec<&'static str>,
}

#[cfg(test)]
mod tests;
