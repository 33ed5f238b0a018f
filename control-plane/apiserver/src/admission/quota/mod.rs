//! ResourceQuota: what a write takes from the quotas of its namespace is there, and is taken together with the write.
//!
//! The charge is a put of the quota's status in the very transaction that writes the object, on the revision that was
//! looked at. So a quota is never exceeded, whoever writes at the same time through whatever server; a write that fails
//! has taken nothing; and a controller that counts objects after it read the quota misses none that was charged. Writes
//! of one server to one namespace take turns, so that they do not fail on each other. What is given back (deletions,
//! pods that end) is the controller's to count.
//!
//! Runs after all plugins, as upstream's does. A namespace without a quota costs one look at an index. That a quota must be
//! there (upstream's `limitedResources`) takes a configuration file; the default one asks for none.

mod plan;

use std::{collections::HashMap, sync::Arc};

use hawser_api::{Error, GroupVersionResource, apply::ManagedFields, usage::quota::Counted};
use hawser_store::{Expect, Key, Revision, Write};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use super::{Operation, Request};
use crate::{
    cache::{Cache, CachedObject, KindCache, Selection},
    resources::{Resource, Resources},
};

/// Quotas that one write may be charged to: they have to fit its transaction, with addresses and ports beside them.
const MAX_QUOTAS: usize = 64;

/// The revision that the cache must have reached before the next writer looks at the namespace's quotas.
type Turn = Arc<tokio::sync::Mutex<Revision>>;

/// The quotas of all namespaces.
pub(super) struct Quotas {
    cache: Arc<Cache>,
    resource: Arc<Resource>,
    quotas: Arc<KindCache>,
    /// Of namespaces that were charged lately.
    turns: Mutex<HashMap<String, Turn>>,
}

/// What a write counts, before it is charged.
pub(crate) struct Demand {
    gvr: GroupVersionResource,
    kind: Counted<'static>,
    namespace: String,
    name: String,
    object: Value,
    /// The object as it was.
    old: Option<Value>,
}

/// Writes that charge quotas, to be made together with the object. Holds the namespace's turn until it is dropped.
#[derive(Default)]
pub(crate) struct Charge {
    writes: Vec<Write>,
    turn: Option<OwnedMutexGuard<Revision>>,
}

impl Charge {
    pub(crate) fn writes(&self) -> Vec<Write> {
        self.writes.clone()
    }

    /// Whether the charge writes this key.
    pub(crate) fn writes_to(&self, key: &Key) -> bool {
        self.writes.iter().any(|write| write.key == *key)
    }

    /// The writes were made, at this revision: who comes next looks at their outcome.
    pub(crate) fn made(mut self, revision: Revision) {
        if let Some(turn) = &mut self.turn {
            **turn = revision;
        }
    }
}

impl Quotas {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let resource = resources.builtin("", "v1", "resourcequotas").clone();
        let quotas = resource.cache().expect("a kind that is stored").clone();
        Self { cache: cache.clone(), resource, quotas, turns: Mutex::default() }
    }

    /// What the write would take; `None` where nothing counts it.
    pub(super) fn demand(&self, request: &Request<'_>) -> Option<Demand> {
        let row = request.resource.row;
        let kind = Counted { group: row.group, resource: row.plural };
        let is_resize = request.is("", "pods") && request.subresource == "resize";
        let counts = match request.operation {
            Operation::Create => true,
            Operation::Update => is_resize || kind.changes_with_updates(),
            Operation::Delete | Operation::Connect => false,
        };
        // Events come as they come, and go by themselves.
        let is_counted = row.namespaced && row.storage.is_some() && row.plural != "events";
        if !counts || !is_counted || !(request.subresource.is_empty() || is_resize) {
            return None;
        }
        self.of(request.namespace).next()?;
        Some(Demand {
            gvr: request.resource.gvr.clone(),
            kind,
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            object: request.object.clone(),
            old: request.old.cloned(),
        })
    }

    /// Takes the namespace's turn and what is demanded; an error where a quota has no room.
    ///
    /// Where the writes fail because another server was faster, the charge is dropped and asked for again, once the cache
    /// is [consistent](Cache::consistent).
    pub(super) async fn charge(&self, demand: &Demand) -> Result<Charge, Error> {
        let turn = self.turn(&demand.namespace).lock_owned().await;
        self.cache.wait_for(*turn).await?;
        let quotas: Vec<Arc<CachedObject>> = self.of(&demand.namespace).collect();
        let (values, owners): (Vec<Value>, Vec<ManagedFields>) =
            quotas.iter().map(|quota| quota.parts()).unzip();
        let (object, old) = (&demand.object, demand.old.as_ref());
        let charged =
            plan::plan(&values, demand.kind, object, old, Timestamp::now()).and_then(|charged| match charged
                .len()
            {
                0..=MAX_QUOTAS => Ok(charged),
                many => Err(format!("{many} quotas apply, at most {MAX_QUOTAS} can")),
            });
        let charged = charged.map_err(|why| Error::forbidden(&demand.gvr, &demand.name, &why))?;
        let mut writes = Vec::with_capacity(charged.len());
        for (index, used) in charged {
            let mut quota = values[index].clone();
            if let Some(meta) = quota["metadata"].as_object_mut() {
                meta.remove("resourceVersion");
            }
            quota["status"]["used"] = json!(used);
            let json = self.resource.stored_json(&quota, &owners[index])?;
            writes.push(Write::put(
                quotas[index].key().clone(),
                json,
                Expect::Revision(quotas[index].revision()),
            ));
        }
        let turn = Some(turn).filter(|_| !writes.is_empty());
        Ok(Charge { writes, turn })
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = Arc<CachedObject>> {
        let state = self.quotas.snapshot().state;
        Selection::within(Some(namespace)).select(&self.quotas, &state, "")
    }

    fn turn(&self, namespace: &str) -> Turn {
        let mut turns = self.turns.lock();
        if let Some(turn) = turns.get(namespace) {
            return turn.clone();
        }
        // What the cache has passed, and nobody waits for, is not worth remembering.
        let progress = self.cache.progress();
        turns.retain(|_, turn| turn.try_lock().map_or(true, |seen| *seen > progress));
        turns.entry(namespace.to_owned()).or_default().clone()
    }
}
