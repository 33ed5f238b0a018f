//! What is served: the rows of the table of kinds, each with its cache.
//!
//! A row is found by group, version and plural. Rows that show the objects of another kind (events of
//! `events.k8s.io`) share that kind's cache and convert on the way in and out.

use std::{collections::HashMap, sync::Arc};

use hawser_api::{
    Error, GroupVersionResource,
    apply::ManagedFields,
    error::Reason,
    kinds::{KINDS, Kind, Storage},
};
use serde_json::Value;

use crate::{
    cache::{Cache, KindCache, KindSpec},
    codec, kinds,
};

/// One kind in one version, as requests name it.
pub struct Resource {
    pub row: &'static Kind,
    pub version: &'static str,
    pub gvr: GroupVersionResource,
    /// `v1`, `apps/v1`.
    pub api_version: String,
    /// The row whose objects these are; `row` itself unless it is a view.
    pub stored: &'static Kind,
    /// `None` for kinds that are answered and gone.
    cache: Option<Arc<KindCache>>,
}

impl Resource {
    /// The cache of a kind that is stored; 405 for those that are not.
    pub fn cache(&self) -> Result<&Arc<KindCache>, Error> {
        self.cache.as_ref().ok_or_else(method_not_allowed)
    }

    /// True where objects are stored as another kind, or in another version.
    pub fn is_view(&self) -> bool {
        self.row.is_view() || self.row.storage.is_some_and(|storage| storage.version != self.version)
    }

    fn view(&self) -> Option<kinds::View> {
        if self.is_view() { kinds::hooks(self.row.group, self.row.plural).view } else { None }
    }

    /// `v1/Pod` of the storage version.
    pub fn storage(&self) -> Option<Storage> {
        self.row.storage
    }

    /// Turns a client's object into one of the storage kind and version.
    pub fn to_storage(&self, object: &mut Value) {
        if let Some((to_storage, _)) = self.view() {
            to_storage(object);
        }
    }

    /// Turns a stored object into one of this kind and version.
    pub fn from_storage(&self, object: &mut Value) {
        if let Some((_, from_storage)) = self.view() {
            from_storage(object);
        }
    }

    /// The error for an object that is not there, in this resource's words.
    pub fn not_found(&self, name: &str) -> Error {
        Error::not_found(&self.gvr, name)
    }
}

pub fn method_not_allowed() -> Error {
    Error::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

/// All that is served.
pub struct Resources {
    /// By plural, which few share.
    by_plural: HashMap<&'static str, Vec<Arc<Resource>>>,
}

/// `pods`, `apps/deployments`: where a kind lives in the store.
fn path(storage: &Storage) -> String {
    if storage.group.is_empty() {
        storage.plural.to_owned()
    } else {
        format!("{}/{}", storage.group, storage.plural)
    }
}

/// The kinds that have a place in the store.
pub fn kind_specs() -> impl Iterator<Item = KindSpec> {
    KINDS.iter().filter(|kind| !kind.is_view()).filter_map(|kind| {
        let storage = kind.storage?;
        let fields = kinds::hooks(kind.group, kind.plural).selectable;
        Some(KindSpec { path: path(&storage), namespaced: kind.namespaced, fields, sink: None })
    })
}

impl Resources {
    pub fn new(cache: &Cache) -> Self {
        let mut by_plural: HashMap<&'static str, Vec<Arc<Resource>>> = HashMap::new();
        for row in KINDS {
            for version in row.versions.iter().filter(|version| version.served) {
                let stored = row
                    .storage
                    .and_then(|storage| Kind::by_plural(storage.group, storage.plural))
                    .unwrap_or(row);
                let resource = Resource {
                    row,
                    version: version.name,
                    gvr: row.resource(version.name),
                    api_version: row.api_version(version.name),
                    stored,
                    cache: row.storage.and_then(|storage| cache.kind(&path(&storage)).cloned()),
                };
                by_plural.entry(row.plural).or_default().push(Arc::new(resource));
            }
        }
        Self { by_plural }
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let same = |resource: &&Arc<Resource>| resource.row.group == group && resource.version == version;
        self.by_plural.get(plural)?.iter().find(same)
    }

    pub fn of(&self, gvr: &GroupVersionResource) -> Result<&Arc<Resource>, Error> {
        self.find(&gvr.group, &gvr.version, &gvr.resource)
            .ok_or_else(|| Error::new(Reason::NotFound, "the server could not find the requested resource"))
    }

    /// Turns an object of `resource` into one of another version of the same objects; `None` where that is not served.
    pub fn convert(&self, resource: &Resource, object: &Value, api_version: &str) -> Option<Value> {
        let same = |other: &&Arc<Resource>| {
            std::ptr::eq(other.stored, resource.stored) && other.api_version == api_version
        };
        let target = self.iter().find(same)?;
        let mut object = object.clone();
        resource.to_storage(&mut object);
        target.from_storage(&mut object);
        Some(object)
    }

    /// A kind that is always there.
    pub fn builtin(&self, group: &str, version: &str, plural: &str) -> &Arc<Resource> {
        self.find(group, version, plural)
            .unwrap_or_else(|| panic!("{group}/{version}/{plural} is in the table of kinds"))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_plural.values().flatten()
    }

    /// True where the API server serves anything in this group and version.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.iter().any(|resource| resource.row.group == group && resource.version == version)
    }
}

impl Resource {
    /// Checks that a body is of this kind, and gives it the kind's type where it says none.
    pub fn check_type(&self, object: &mut Value, kind: &str, api_version: &str) -> Result<(), Error> {
        let Some(fields) = object.as_object_mut() else {
            return Err(Error::bad_request("the object provided is not a JSON object"));
        };
        let found_kind = fields.get("kind").and_then(Value::as_str).unwrap_or(kind);
        let found_version = fields.get("apiVersion").and_then(Value::as_str).unwrap_or(api_version);
        if found_kind != kind || found_version != api_version {
            return Err(Error::bad_request(format!(
                "{found_kind} in version {found_version:?} cannot be handled as a {kind}: \
                 the API version in the data ({found_version}) does not match the expected API version ({api_version})"
            )));
        }
        fields.insert("kind".to_owned(), kind.into());
        fields.insert("apiVersion".to_owned(), api_version.into());
        Ok(())
    }

    /// The stored form of an object's JSON: canonical, kind and version first, no resource version.
    ///
    /// `managed` are the owners of its fields, which its tree is without.
    pub fn stored_json(&self, object: &Value, managed: &ManagedFields) -> Result<Vec<u8>, Error> {
        codec::managed_json(object, managed)
    }
}
