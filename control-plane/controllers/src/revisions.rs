//! ControllerRevisions: the templates that DaemonSets and StatefulSets had, to go back to.
//!
//! A revision's data is a patch that puts its template back (`kubectl rollout undo` applies it). The revision of the
//! current template is found by the template, made where there is none, and always has the highest number; going back
//! raises the number of an old one. Old ones are kept up to a limit, those that pods still have beyond it.

use std::sync::Arc;

use hawser_api::{Api, Error, informer::Change, resource::ObjectKey, typed::Kind};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        runtime::RawExtension,
    },
};
use serde_json::{Value, json};

use crate::{
    Context,
    caches::orphans_of,
    meta::{MetaExt, controller_key, controller_reference, only_this},
    ownership,
    queue::Queue,
    selector, template,
};

/// The label of pods that names their revision: by its hash (DaemonSets), or by its name (StatefulSets).
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// Collisions of names in a row that are stepped over.
const MOST_COLLISIONS: usize = 16;

/// What is kept in revisions: the template of an owner.
pub(crate) struct Revised<'a, O> {
    pub(crate) owner: &'a O,
    pub(crate) selector: &'a LabelSelector,
    pub(crate) template: &'a PodTemplateSpec,
    /// The label of revisions with the hash that their name ends with.
    pub(crate) hash_label: &'static str,
    pub(crate) collisions: Option<i32>,
}

/// The revisions of one owner.
pub(crate) struct History {
    pub(crate) current: Arc<ControllerRevision>,
    /// By number, the oldest first.
    pub(crate) old: Vec<Arc<ControllerRevision>>,
    pub(crate) collisions: Option<i32>,
}

/// Wakes the owners, of one kind, of the revisions that change.
pub(crate) fn wake<O: Kind>(context: &Context, queue: &Queue<ObjectKey>) {
    let queue = queue.clone();
    context.caches.revisions.on_change(move |change: &Change<'_, ControllerRevision>| {
        for revision in change.old.into_iter().chain(change.new) {
            if let Some(key) = controller_key(&**revision, O::KIND) {
                queue.add(key);
            }
        }
    });
}

impl<O: Kind> Revised<'_, O> {
    /// Finds the owner's revisions, makes that of its template where there is none, and adopts and releases.
    pub(crate) async fn history(&self, context: &Context) -> Result<History, Error> {
        let revisions: Api<ControllerRevision> =
            Api::namespaced(context.client.clone(), self.owner.namespace());
        let mut old = self.claim(context, &revisions).await?;
        old.sort_by(|a, b| {
            let key = |it: &ControllerRevision| (it.revision, it.created());
            key(a).cmp(&key(b)).then_with(|| a.name().cmp(b.name()))
        });
        let wanted = template::comparable(self.template);
        let found = old.iter().rposition(|it| is_of(it, &wanted)).map(|index| old.remove(index));
        let next = old.last().map_or(0, |last| last.revision) + 1;
        let Some(found) = found else {
            let (current, collisions) = self.create(&revisions, &wanted, next).await?;
            return Ok(History { current: Arc::new(current), old, collisions });
        };
        let mut current = found;
        if current.revision < next {
            let raised = ControllerRevision { revision: next, ..(*current).clone() };
            current = Arc::new(revisions.update(&raised).await?);
        }
        Ok(History { current, old, collisions: self.collisions })
    }

    async fn claim(
        &self,
        context: &Context,
        revisions: &Api<ControllerRevision>,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let by_controller = &context.caches.revisions_by_controller;
        let mut candidates = by_controller.get(self.owner.uid());
        candidates.extend(by_controller.get(&orphans_of(self.owner.namespace())));
        let owners: Api<O> = Api::namespaced(context.client.clone(), self.owner.namespace());
        ownership::claim(&owners, revisions, self.owner, candidates, |revision| {
            !selector::is_empty(self.selector) && selector::matches(self.selector, revision.labels())
        })
        .await
    }

    /// Makes the revision under the first name that no other template has.
    async fn create(
        &self,
        revisions: &Api<ControllerRevision>,
        wanted: &Value,
        number: i64,
    ) -> Result<(ControllerRevision, Option<i32>), Error> {
        let mut collisions = self.collisions;
        let mut outcome = Err(Error::unavailable("no name is free for the revision"));
        for _ in 0..MOST_COLLISIONS {
            let revision = self.revision(&template::hash(wanted, collisions), number);
            outcome = revisions.create(&revision).await;
            match &outcome {
                Err(error) if error.is_already_exists() => {}
                _ => break,
            }
            let existing = revisions.get(revision.name()).await?;
            // Ours, made before the cache showed it; or without an owner, to be adopted.
            let is_free = existing.controller().is_none_or(|owner| owner.uid == self.owner.uid());
            if is_free && is_of(&existing, wanted) {
                return Ok((existing, collisions));
            }
            collisions = Some(collisions.unwrap_or_default().saturating_add(1));
        }
        Ok((outcome?, collisions))
    }

    fn revision(&self, hash: &str, number: i64) -> ControllerRevision {
        let from = self.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut labels = from.unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.to_owned());
        let mut data = json!({ "spec": { "template": self.template } });
        data["spec"]["template"]["$patch"] = json!("replace");
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.owner.name())),
                namespace: self.owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: self.owner.meta().annotations.clone(),
                owner_references: Some(vec![controller_reference(self.owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data)),
            revision: number,
        }
    }
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(data.clone()).ok()
}

fn is_of(revision: &ControllerRevision, wanted: &Value) -> bool {
    template_of(revision).is_some_and(|kept| template::comparable(&kept) == *wanted)
}

/// Deletes the oldest of `revisions`, until only as many are left as `limit` says; those in use stay.
pub(crate) async fn expire(
    context: &Context,
    revisions: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Error> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or_default();
    let surplus = revisions.len().saturating_sub(limit);
    for revision in revisions.iter().filter(|revision| !in_use(revision)).take(surplus) {
        let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), revision.namespace());
        match api.delete(revision.name(), &only_this(&**revision)).await {
            // Another revision has the name now.
            Err(error) if error.is_conflict() => {}
            outcome => outcome?,
        }
    }
    Ok(())
}
