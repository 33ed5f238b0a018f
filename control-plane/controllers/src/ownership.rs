//! Who controls a dependent object: adoption of orphans, release of what no longer matches.
//!
//! A dependent has at most one controller, named by an owner reference. Both changes are guarded by the
//! dependent's resource version, so that of two controllers that want the same orphan one wins. Before the
//! first adoption the owner is read from the API, not the cache: an owner that was deleted and made anew
//! must not adopt under its old identity.

use std::sync::Arc;

use hawser_api::{Api, Error, typed::Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tracing::debug;

use crate::meta::{MetaExt, controller_reference};

/// What an owner does about a possible dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

/// Decides from both sides' metadata and whether the owner's selector matches.
pub(crate) fn decide(owner: &ObjectMeta, dependent: &impl MetaExt, matches: bool) -> Claim {
    let owner_deleting = owner.deletion_timestamp.is_some();
    match dependent.controller() {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !owner_deleting && !dependent.is_deleting() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// Returns the `candidates` that `owner` controls, after adopting and releasing.
///
/// A dependent that moved on or is gone is left out; its next change brings the owner here again.
pub(crate) async fn claim<O: Kind, D: Kind>(
    owners: &Api<O>,
    dependents: &Api<D>,
    owner: &O,
    candidates: Vec<Arc<D>>,
    matches: impl Fn(&D) -> bool,
) -> Result<Vec<Arc<D>>, Error> {
    let mut kept = Vec::with_capacity(candidates.len());
    let mut may_adopt: Option<bool> = None;
    for dependent in candidates {
        match decide(owner.metadata(), &*dependent, matches(&dependent)) {
            Claim::Keep => kept.push(dependent),
            Claim::Ignore => {}
            Claim::Adopt => {
                let allowed = match may_adopt {
                    Some(known) => known,
                    None => *may_adopt.insert(still_there(owners, owner).await?),
                };
                if allowed {
                    kept.extend(settle(adopt(dependents, owner, &dependent).await)?);
                }
            }
            Claim::Release => {
                settle(release(dependents, owner, &dependent).await)?;
            }
        }
    }
    Ok(kept)
}

async fn still_there<O: Kind>(owners: &Api<O>, owner: &O) -> Result<bool, Error> {
    let fresh = owners.find(owner.name()).await?;
    Ok(fresh.is_some_and(|fresh| fresh.uid() == owner.uid() && !fresh.is_deleting()))
}

/// Gone and moved on are no errors here.
fn settle<D>(outcome: Result<D, Error>) -> Result<Option<Arc<D>>, Error> {
    match outcome {
        Ok(changed) => Ok(Some(Arc::new(changed))),
        Err(error) if error.is_not_found() || error.is_conflict() => {
            debug!(%error, "dependent changed while it was claimed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn adopt<O: Kind, D: Kind>(dependents: &Api<D>, owner: &O, dependent: &D) -> Result<D, Error> {
    let mut references = dependent.meta().owner_references.clone().unwrap_or_default();
    references.retain(|reference| reference.uid != owner.uid());
    references.push(controller_reference(owner));
    write(dependents, dependent, &json!(references)).await
}

async fn release<O: Kind, D: Kind>(dependents: &Api<D>, owner: &O, dependent: &D) -> Result<D, Error> {
    let mut references = dependent.meta().owner_references.clone().unwrap_or_default();
    references.retain(|reference| reference.uid != owner.uid());
    write(dependents, dependent, &json!(references)).await
}

async fn write<D: Kind>(
    dependents: &Api<D>,
    dependent: &D,
    references: &serde_json::Value,
) -> Result<D, Error> {
    let patch = json!({ "metadata": {
        "uid": dependent.uid(),
        "resourceVersion": dependent.resource_version(),
        "ownerReferences": references,
    }});
    dependents.merge_patch(dependent.name(), &patch).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::Pod,
        apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    };

    use super::*;

    #[track_caller]
    fn check(name: &str, controller: Option<&str>, matches: bool, deleting: (bool, bool), expected: Claim) {
        let stamp = |set: bool| set.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        let (owner_deleting, pod_deleting) = deleting;
        let owner = ObjectMeta {
            uid: Some("me".into()),
            deletion_timestamp: stamp(owner_deleting),
            ..ObjectMeta::default()
        };
        let mut pod = Pod::default();
        pod.metadata.deletion_timestamp = stamp(pod_deleting);
        pod.metadata.owner_references = controller.map(|uid| {
            vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
        });
        assert_eq!(decide(&owner, &pod, matches), expected, "{name}");
    }

    #[test]
    fn claims_follow_controller_and_selector() {
        check("mine and matching", Some("me"), true, (false, false), Claim::Keep);
        check("mine, no longer matching", Some("me"), false, (false, false), Claim::Release);
        check("mine, both going", Some("me"), false, (true, false), Claim::Ignore);
        check("another's", Some("other"), true, (false, false), Claim::Ignore);
        check("matching orphan", None, true, (false, false), Claim::Adopt);
        check("matching orphan that ends", None, true, (false, true), Claim::Ignore);
        check("orphan, owner ends", None, true, (true, false), Claim::Ignore);
        check("other orphan", None, false, (false, false), Claim::Ignore);
    }
}
