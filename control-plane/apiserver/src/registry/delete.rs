//! Deleting objects: at once, after a grace period, or when their finalizers are done.
//!
//! The rules are those of upstream's `BeforeDelete` and of its finalizer handling: an object with finalizers or grace
//! left is marked and stays; the update that takes the last of them away removes it.

use std::{pin::pin, sync::Arc};

use futures::{StreamExt, TryStreamExt};
use hawser_api::{Error, client::Propagation};
use hawser_store::{Key, Revision};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{ListRequest, Registry, check_pass, metadata, update::Failure};
use crate::{
    admission::{Operation, Request},
    cache::CachedObject,
    chain::Pass,
    kinds,
    resources::Resource,
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// How often a deletion is tried again on a newer version of the object.
const ATTEMPTS: usize = 64;

/// 68 years: as good as for ever, and a time that can be written down.
const MAX_GRACE_SECONDS: i64 = i32::MAX as i64;

/// Objects of a collection that are deleted at a time.
const WORKERS: usize = 16;

/// Deleted objects that an answer shows; of a larger collection it says how many there were.
const MAX_SHOWN_BYTES: usize = 16 << 20;

#[derive(Clone, Debug, Default)]
pub struct DeleteRequest {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

/// What became of the object.
pub enum Deleted {
    /// It is gone; its last state.
    Gone(Arc<CachedObject>),
    /// It stays until its grace is over and its finalizers are done.
    Going(Arc<CachedObject>),
}

impl Deleted {
    pub fn object(&self) -> &Arc<CachedObject> {
        match self {
            Self::Gone(object) | Self::Going(object) => object,
        }
    }
}

/// What became of a collection.
pub struct DeletedCollection {
    pub count: usize,
    /// As they were, or as they are until their grace is over and their finalizers are done; `None` where that is too much to
    /// show.
    pub objects: Option<Vec<Arc<CachedObject>>>,
    /// The version at which the collection was looked at.
    pub revision: Revision,
}

/// What a deletion comes to, for one version of the object.
enum Step {
    Remove,
    /// Put this instead.
    Mark(Value),
    /// It is marked already.
    Nothing,
}

impl Registry {
    pub async fn delete(
        &self,
        pass: &Pass,
        resource: &Resource,
        (namespace, name): (&str, &str),
        request: &DeleteRequest,
    ) -> Result<Deleted, Error> {
        check_pass(pass, resource)?;
        // Deletions are rare beside updates and must not act on an old version: the store is read.
        let mut base = self.newest(resource, namespace, name).await?;
        for _ in 0..ATTEMPTS {
            let (old, managed) = base.parts();
            self.check_preconditions(resource, &base, &old, request)?;
            let mut shown = old.clone();
            let mut admitted = Request {
                user: pass.user(),
                operation: Operation::Delete,
                resource,
                subresource: "",
                namespace,
                name,
                dry_run: request.dry_run,
                object: &mut shown,
                old: Some(&old),
            };
            self.admission.mutate(&mut admitted).await?;
            self.admission.validate(&admitted).await?;
            let outcome = match step(resource, &old, request) {
                Step::Nothing => return Ok(Deleted::Going(base)),
                Step::Remove if request.dry_run => return Ok(Deleted::Gone(base)),
                Step::Mark(_) if request.dry_run => return Ok(Deleted::Going(base)),
                Step::Remove => {
                    self.remove(resource, &base, (&without_version(old)?, &managed)).await.map(Deleted::Gone)
                }
                Step::Mark(object) => {
                    let object = without_version(object)?;
                    self.put_as_is(resource, &base, (&object, &managed)).await.map(Deleted::Going)
                }
            };
            match outcome {
                Ok(deleted) => return Ok(deleted),
                Err(Failure::Moved(Some(current))) => base = current,
                Err(Failure::Moved(None)) => return Err(resource.not_found(name)),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        Err(Error::conflict(&resource.gvr, name, "the object keeps changing"))
    }

    fn check_preconditions(
        &self,
        resource: &Resource,
        base: &CachedObject,
        old: &Value,
        request: &DeleteRequest,
    ) -> Result<(), Error> {
        let conflict = |what: &str, wanted: &str, found: &str| {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            Err(Error::conflict(&resource.gvr, base.name(), &why))
        };
        if let Some(uid) = &request.uid {
            let found = metadata::text(old, "uid");
            if uid != found {
                return conflict("UID", uid, found);
            }
        }
        if let Some(version) = &request.resource_version {
            let found = base.revision().to_string();
            if *version != found {
                return conflict("ResourceVersion", version, &found);
            }
        }
        Ok(())
    }

    /// Deletes every object that `list` selects. One that is gone meanwhile is no error.
    ///
    /// Only keys are held meanwhile, and of what was deleted as much as the answer shows.
    pub async fn delete_collection(
        &self,
        pass: &Pass,
        resource: &Resource,
        list: &ListRequest,
        request: &DeleteRequest,
    ) -> Result<DeletedCollection, Error> {
        check_pass(pass, resource)?;
        let cache = resource.cache()?;
        let listed = self.list(pass, resource, list).await?;
        let revision = listed.revision;
        let selected: Vec<Key> = listed.objects().map(|object| object.key().clone()).collect();
        let deletions = futures::stream::iter(selected).map(|key| async move {
            let place =
                cache.place(&key).ok_or_else(|| Error::internal(format!("{key} is no object's key")))?;
            match self.delete(pass, resource, place, request).await {
                Ok(deleted) => Ok(Some(deleted.object().clone())),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let mut deletions = pin!(deletions.buffered(WORKERS));
        let (mut objects, mut bytes, mut count) = (Vec::new(), 0, 0);
        while let Some(deleted) = deletions.try_next().await? {
            let Some(object) = deleted else { continue };
            count += 1;
            bytes += object.json().len();
            if bytes > MAX_SHOWN_BYTES {
                objects = Vec::new();
            } else {
                objects.push(object);
            }
        }
        Ok(DeletedCollection { count, objects: (bytes <= MAX_SHOWN_BYTES).then_some(objects), revision })
    }
}

fn without_version(mut object: Value) -> Result<Value, Error> {
    metadata::of(&mut object)?.remove("resourceVersion");
    Ok(object)
}

/// Decides from the object and the request alone.
fn step(resource: &Resource, old: &Value, request: &DeleteRequest) -> Step {
    let mut object = old.clone();
    let says_itself = || metadata::finalizers(old).any(|finalizer| [ORPHAN, FOREGROUND].contains(&finalizer));
    let by_default =
        || (kinds::orphans_by_default(resource.stored) && !says_itself()).then_some(Propagation::Orphan);
    set_propagation_finalizers(&mut object, request.propagation.or_else(by_default));
    let held =
        kinds::is_held_back(resource.stored, &object) || metadata::finalizers(&object).next().is_some();
    let grace = kinds::deletion_grace_seconds(resource.stored, old, request.grace_period_seconds)
        .clamp(0, MAX_GRACE_SECONDS);
    if metadata::is_deleting(old) {
        let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        let shorter = grace < left && (request.grace_period_seconds.is_some());
        if shorter {
            mark_deleted(&mut object, grace);
        }
        return match (shorter && grace == 0 || left == 0, held) {
            (true, false) => Step::Remove,
            _ if object != *old => Step::Mark(object),
            _ => Step::Nothing,
        };
    }
    if !held && grace == 0 {
        return Step::Remove;
    }
    mark_deleted(&mut object, grace);
    kinds::on_deletion(resource.stored, &mut object);
    Step::Mark(object)
}

fn mark_deleted(object: &mut Value, grace: i64) {
    let at = Timestamp::now() + SignedDuration::from_secs(grace);
    let generation = object["metadata"]["generation"].as_i64();
    object["metadata"]["deletionTimestamp"] = json!(metadata::time(at));
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    // Whoever watches the generation learns that something is wanted.
    if let Some(generation) = generation.filter(|generation| *generation > 0) {
        object["metadata"]["generation"] = json!(generation + 1);
    }
}

/// The garbage collector finds what to do with dependents in the finalizers.
fn set_propagation_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let mut finalizers: Vec<String> = metadata::finalizers(object)
        .filter(|finalizer| ![ORPHAN, FOREGROUND].contains(finalizer))
        .map(str::to_owned)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
        Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
    }
    let Some(meta) = object["metadata"].as_object_mut() else { return };
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".to_owned(), json!(finalizers));
    }
}
