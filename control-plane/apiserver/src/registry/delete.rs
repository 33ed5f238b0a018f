//! Deleting objects: at once, after a grace period, or when their finalizers are done.
//!
//! The rules are those of upstream's `BeforeDelete` and of its finalizer handling: an object with finalizers or grace
//! left is marked and stays; the update that takes the last of them away removes it. A second deletion may cut grace short,
//! counted from when the first began.

use std::{pin::pin, sync::Arc};

use futures::{StreamExt, TryStreamExt};
use hawser_api::{Error, apply::ManagedFields, client::Propagation, kinds::Kind};
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

impl DeletedCollection {
    /// The answer that does not show them.
    pub fn to_status(&self, resource: &Resource) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "message": format!("{} objects were deleted", self.count),
            "details": { "kind": resource.row.plural },
        })
    }
}

/// What a deletion comes to, for one version of the object.
#[derive(Debug, PartialEq)]
enum Step {
    /// Take it away; its last state.
    Remove(Value),
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
            let planned = step(resource.stored, &old, request, Timestamp::now());
            if request.dry_run {
                return dry_run(resource, base, planned, &managed);
            }
            let outcome = match planned {
                Step::Nothing => return Ok(Deleted::Going(base)),
                Step::Remove(last) => {
                    self.remove(resource, &base, (&without_version(last)?, &managed)).await.map(Deleted::Gone)
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

/// What the deletion would have come to.
fn dry_run(
    resource: &Resource,
    base: Arc<CachedObject>,
    planned: Step,
    managed: &ManagedFields,
) -> Result<Deleted, Error> {
    let shown = |object| {
        let json = resource.stored_json(&without_version(object)?, managed)?.into();
        let object = CachedObject::parse(base.key().clone(), &json, base.revision());
        object.map(Arc::new).map_err(Error::internal)
    };
    match planned {
        Step::Nothing => Ok(Deleted::Going(base)),
        Step::Remove(last) => shown(last).map(Deleted::Gone),
        Step::Mark(object) => shown(object).map(Deleted::Going),
    }
}

/// Decides from the object, the request and the time alone.
fn step(kind: &Kind, old: &Value, request: &DeleteRequest, now: Timestamp) -> Step {
    let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let asked = request.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let shortened = asked.filter(|asked| *asked < left);
    if metadata::is_deleting(old) && left != 0 && shortened.is_none() {
        // Grace that runs can be cut short, and nothing else about a deletion that has begun be changed.
        return Step::Nothing;
    }
    let mut object = old.clone();
    let says_itself = || metadata::finalizers(old).any(|finalizer| [ORPHAN, FOREGROUND].contains(&finalizer));
    let by_default = || (kinds::orphans_by_default(kind) && !says_itself()).then_some(Propagation::Orphan);
    set_propagation_finalizers(&mut object, request.propagation.or_else(by_default));
    let held = kinds::is_held_back(kind, &object) || metadata::finalizers(&object).next().is_some();
    let begun = old["metadata"]["deletionTimestamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    match (begun, shortened) {
        (Some(ends), Some(grace)) => {
            let began = ends.saturating_sub(SignedDuration::from_secs(left)).unwrap_or(ends);
            set_deletion(&mut object, began, grace);
            if grace == 0 && !held { Step::Remove(object) } else { Step::Mark(object) }
        }
        (Some(_), None) if !held => Step::Remove(object),
        (Some(ends), None) => {
            set_deletion(&mut object, ends.min(now), 0);
            if object == *old { Step::Nothing } else { Step::Mark(object) }
        }
        (None, _) => {
            let is_graceful = kinds::hooks(kind.group, kind.plural).deletion_grace.is_some();
            let grace = kinds::deletion_grace_seconds(kind, old, asked).clamp(0, MAX_GRACE_SECONDS);
            let is_removed = grace == 0 && !held;
            if is_removed && !is_graceful {
                return Step::Remove(object);
            }
            set_deletion(&mut object, now, grace);
            // Whoever watches the generation learns that something is wanted.
            if let Some(generation) =
                object["metadata"]["generation"].as_i64().filter(|generation| *generation > 0)
            {
                object["metadata"]["generation"] = json!(generation + 1);
            }
            if is_removed {
                return Step::Remove(object);
            }
            kinds::on_deletion(kind, &mut object);
            Step::Mark(object)
        }
    }
}

/// Notes a deletion that began then, and leaves so many seconds.
fn set_deletion(object: &mut Value, began: Timestamp, grace: i64) {
    let at = began.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(began);
    object["metadata"]["deletionTimestamp"] = json!(metadata::time(at));
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn kind(plural: &str) -> &'static Kind {
        hawser_api::kinds::KINDS.iter().find(|kind| kind.plural == plural).expect("a kind")
    }

    fn decide(plural: &str, old: &Value, request: &DeleteRequest) -> Step {
        step(kind(plural), old, request, NOW.parse().expect("a time"))
    }

    fn pod(metadata: Value) -> Value {
        let mut pod = json!({
            "kind": "Pod", "metadata": { "name": "a", "generation": 3 },
            "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 },
        });
        for (field, value) in metadata.as_object().into_iter().flatten() {
            pod["metadata"][field] = value.clone();
        }
        pod
    }

    /// What is left in the metadata: when it ends, the grace, the generation, the finalizers.
    fn marks(object: &Value) -> (Value, Value, Value, Value) {
        let field = |name: &str| object["metadata"][name].clone();
        (
            field("deletionTimestamp"),
            field("deletionGracePeriodSeconds"),
            field("generation"),
            field("finalizers"),
        )
    }

    #[test]
    fn the_first_deletion_begins_grace() {
        let request = DeleteRequest::default();
        let Step::Mark(going) = decide("pods", &pod(json!({})), &request) else { panic!("it stays") };
        assert_eq!(marks(&going), (json!("2026-01-01T00:01:30Z"), json!(30), json!(4), Value::Null));
        let now = DeleteRequest { grace_period_seconds: Some(0), ..request.clone() };
        let Step::Remove(last) = decide("pods", &pod(json!({})), &now) else { panic!("it goes") };
        assert_eq!(marks(&last), (json!(NOW), json!(0), json!(4), Value::Null));
        let negative = DeleteRequest { grace_period_seconds: Some(-5), ..request.clone() };
        let Step::Mark(going) = decide("pods", &pod(json!({})), &negative) else { panic!("it stays") };
        assert_eq!(marks(&going).1, json!(1));
        let map = json!({ "kind": "ConfigMap", "metadata": { "name": "a" } });
        assert_eq!(decide("configmaps", &map, &request), Step::Remove(map.clone()));
    }

    #[test]
    fn a_later_deletion_cuts_grace_short_from_when_it_began() {
        let going =
            pod(json!({ "deletionTimestamp": "2026-01-01T00:01:20Z", "deletionGracePeriodSeconds": 30 }));
        let ask = |seconds: Option<i64>, propagation| {
            let request =
                DeleteRequest { grace_period_seconds: seconds, propagation, ..DeleteRequest::default() };
            decide("pods", &going, &request)
        };
        for (seconds, propagation) in
            [(None, None), (Some(30), None), (Some(60), None), (None, Some(Propagation::Orphan))]
        {
            assert_eq!(ask(seconds, propagation), Step::Nothing, "{seconds:?}");
        }
        let Step::Mark(shorter) = ask(Some(10), None) else { panic!("it stays") };
        assert_eq!(marks(&shorter), (json!("2026-01-01T00:01:00Z"), json!(10), json!(3), Value::Null));
        let Step::Remove(last) = ask(Some(0), None) else { panic!("it goes") };
        assert_eq!(marks(&last).0, json!("2026-01-01T00:00:50Z"));
    }

    #[test]
    fn finalizers_keep_what_has_no_grace_left() {
        let kept = json!({
            "kind": "ConfigMap", "metadata": { "name": "a", "generation": 1, "finalizers": ["a/b"] },
        });
        let Step::Mark(going) = decide("configmaps", &kept, &DeleteRequest::default()) else {
            panic!("kept")
        };
        assert_eq!(marks(&going), (json!(NOW), json!(0), json!(2), json!(["a/b"])));
        assert_eq!(decide("configmaps", &going, &DeleteRequest::default()), Step::Nothing);
        let foreground =
            DeleteRequest { propagation: Some(Propagation::Foreground), ..DeleteRequest::default() };
        let Step::Mark(both) = decide("configmaps", &going, &foreground) else { panic!("kept") };
        assert_eq!(marks(&both), (json!(NOW), json!(0), json!(2), json!(["a/b", FOREGROUND])));
    }
}
