//! The registry: the only thing that touches the store, and the same for every kind.
//!
//! Reads come from the watch cache; writes are compare-and-put on the revision that was read, so that no update is lost.
//! Every method asks for the [`Pass`] that only the chain gives out. An object is a JSON tree inside the write path and
//! bytes everywhere else. The order of a write: type check, defaults, preparation, owners of fields, mutating
//! admission, validation, validating admission, allocation, store.

mod commit;
mod create;
mod delete;
mod metadata;
mod ownership;
mod read;
mod update;

pub use create::CreateOptions;
pub use delete::{DeleteRequest, Deleted, DeletedCollection};
pub use metadata::random_suffix;
pub use read::{ListRequest, Listed, OldLists, VersionMatch, WatchStart, version};
pub use update::{Change, Part, UpdateOptions, Updated};

use std::sync::Arc;

use hawser_api::{Error, error::Reason};
use hawser_store::{KeyValue, Store};

use crate::{
    admission::{self, Admission},
    allocator::Allocators,
    cache::{Cache, CachedObject},
    chain::Pass,
    resources::{Resource, Resources},
};

pub struct Registry {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    resources: Arc<Resources>,
    admission: Admission,
    allocators: Arc<Allocators>,
    old_lists: OldLists,
}

impl Registry {
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        resources: Arc<Resources>,
        admission: Admission,
        allocators: Arc<Allocators>,
        old_lists: OldLists,
    ) -> Self {
        Self { store, cache, resources, admission, allocators, old_lists }
    }

    pub fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub fn allocators(&self) -> &Arc<Allocators> {
        &self.allocators
    }

    /// The store, for maintenance (compaction, expiry, repair): never for requests.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Asks admission about a stream or another action that writes nothing.
    pub(crate) async fn admit_connect(&self, request: &admission::Request<'_>) -> Result<(), Error> {
        self.admission.validate(request).await
    }

    /// The object as the cache has it, or else as the store has it: the base of a write. May be older than the newest
    /// only where the cache has one; the compare-and-put finds out.
    async fn base(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<CachedObject>, Error> {
        let cache = resource.cache()?;
        match cache.get(namespace, name) {
            Some(object) => Ok(object),
            None => self.newest(resource, namespace, name).await,
        }
    }

    /// The object as the store has it now.
    async fn newest(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<CachedObject>, Error> {
        let key = resource.cache()?.key(namespace, name);
        let found = self.store.get(&key).await.map_err(store_error)?;
        parse(&found.ok_or_else(|| resource.not_found(name))?)
    }
}

fn parse(kv: &KeyValue) -> Result<Arc<CachedObject>, Error> {
    CachedObject::parse(kv.key.clone(), &kv.value, kv.mod_revision).map(Arc::new).map_err(Error::internal)
}

/// Namespace of a request that must be for this resource; every call begins with this check of its pass.
fn check_pass(pass: &Pass, resource: &Resource) -> Result<(), Error> {
    let attributes = pass.attributes();
    if attributes.resource == resource.row.plural && attributes.group == resource.row.group {
        return Ok(());
    }
    Err(Error::internal(format!("pass for {} used for {}", attributes.resource, resource.gvr)))
}

/// How failures of the store look to clients. Conflicts are handled where they arise.
pub fn store_error(error: hawser_store::Error) -> Error {
    use hawser_store::Error as Store;
    match error {
        Store::Compacted { requested, compacted } => {
            Error::expired(format!("too old resource version: {requested} ({compacted})"))
        }
        Store::FutureRevision { requested, current } => Error::too_large_resource_version(requested, current),
        Store::TooLarge { size, limit, .. } => Error::new(
            Reason::RequestEntityTooLarge,
            format!("Request is too large: the object takes {size} bytes, more than {limit}"),
        ),
        Store::InvalidKey { key, reason } => {
            Error::bad_request(format!("{key:?} cannot be stored: {reason}"))
        }
        Store::Full { .. } | Store::Unavailable { .. } | Store::Closed => {
            Error::unavailable(format!("the store is not available: {error}"))
        }
        Store::Ambiguous { .. } => {
            Error::timeout(format!("the store did not say what became of the request: {error}"))
        }
        other => Error::internal(other),
    }
}
