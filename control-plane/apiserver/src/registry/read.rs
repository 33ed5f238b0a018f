//! Reading objects: get, list and watch, from the cache or, at an old version, from the store.
//!
//! `resourceVersion` means what upstream documents: unset is the newest (consistent with every write acknowledged
//! before), 0 is whatever the cache has, a number is at least that new, and with `resourceVersionMatch=Exact`, or with a
//! limit and no match, that very version. A continued list is read from the store at the version of its first page; where that is compacted away, the
//! error has a token that gives the rest as it is by then, from the cache.
//!
//! What the cache answers is shared. What is read from the store is the request's own until it is answered: it comes in
//! pages, a few at a time, and all of it together has a bound ([`OldLists`]).

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt, pin_mut};
use hawser_api::Error;
use hawser_store::{RangeRequest, Revision, pages};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Registry, check_pass, parse, store_error};
use crate::{
    cache::{CachedObject, KindCache, Selected, Selection, Watcher},
    chain::Pass,
    resources::Resource,
};

/// Objects read from the store at a time when the cache cannot answer.
const PAGE: usize = 100;

/// Such pages that are on their way at a time; further readers wait. At the size of pods they are 2 MiB together, at the
/// largest that an object can have 600.
const PAGES_AT_ONCE: usize = 4;

/// What an object costs beside its JSON.
const OBJECT_OVERHEAD_BYTES: usize = 512;

/// The version in a continue token that stands for the newest one.
const NEWEST: i64 = -1;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    NotOlderThan,
    Exact,
    /// Refused before it comes here.
    Unknown(String),
}

impl VersionMatch {
    pub fn parse(text: &str) -> Self {
        match text {
            "" => Self::Unset,
            "NotOlderThan" => Self::NotOlderThan,
            "Exact" => Self::Exact,
            other => Self::Unknown(other.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Unset => "",
            Self::NotOlderThan => "NotOlderThan",
            Self::Exact => "Exact",
            Self::Unknown(text) => text,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Empty for all namespaces, and for cluster-wide kinds.
    pub namespace: String,
    /// Only this object.
    pub name: Option<String>,
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub version_match: VersionMatch,
    /// What only a watch may say.
    pub send_initial_events: Option<bool>,
    /// 0 for no limit.
    pub limit: usize,
    pub continue_token: String,
}

/// A list at one version. Objects are produced as they are asked for.
pub struct Listed {
    objects: Source,
    pub revision: Revision,
    /// Set where there is more.
    pub continue_token: String,
    pub remaining: Option<usize>,
}

enum Source {
    Cached(Selected),
    Read {
        objects: std::vec::IntoIter<Arc<CachedObject>>,
        /// Given back with the last of them.
        _room: Option<OwnedSemaphorePermit>,
    },
}

impl Source {
    fn read(objects: Vec<Arc<CachedObject>>, room: Option<OwnedSemaphorePermit>) -> Self {
        Self::Read { objects: objects.into_iter(), _room: room }
    }
}

/// Bound of what lists of old versions hold: what is above it is told 429.
pub struct OldLists {
    bytes: usize,
    room: Arc<Semaphore>,
    pages: Semaphore,
}

impl OldLists {
    pub fn new(bytes: usize) -> Self {
        Self { bytes, room: Arc::new(Semaphore::new(bytes)), pages: Semaphore::new(PAGES_AT_ONCE) }
    }

    /// Room for some more objects of a list that has `held` so far.
    fn add(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Error> {
        let full = || {
            let why = format!(
                "lists of versions that are not the newest may hold {} bytes together: ask for this one in pages (limit), \
                 or later",
                self.bytes
            );
            Error::too_many_requests(why, 1)
        };
        let bytes = u32::try_from(bytes).map_err(|_| full())?;
        let more = self.room.clone().try_acquire_many_owned(bytes).map_err(|_| full())?;
        match held {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
        Ok(())
    }
}

impl Listed {
    /// A list of objects that are made for it.
    pub fn of(objects: Vec<Arc<CachedObject>>, revision: Revision) -> Self {
        Self {
            objects: Source::read(objects, None),
            revision,
            continue_token: String::new(),
            remaining: None,
        }
    }

    /// The objects, in key order.
    pub fn objects(self) -> impl Iterator<Item = Arc<CachedObject>> + Send {
        self.objects
    }
}

impl Iterator for Source {
    type Item = Arc<CachedObject>;

    fn next(&mut self) -> Option<Arc<CachedObject>> {
        match self {
            Self::Cached(selected) => selected.next(),
            Self::Read { objects, .. } => objects.next(),
        }
    }
}

/// Where a watch begins.
pub enum WatchStart {
    /// What exists, as ADDED, then what changes.
    Existing,
    /// What changes after this version.
    After(Revision),
}

impl Registry {
    pub async fn get(
        &self,
        pass: &Pass,
        resource: &Resource,
        (namespace, name): (&str, &str),
        resource_version: &str,
    ) -> Result<Arc<CachedObject>, Error> {
        check_pass(pass, resource)?;
        let cache = resource.cache()?;
        match version(resource_version)? {
            None => drop(self.cache.consistent().await?),
            Some(0) => self.cache.synced().await,
            Some(revision) => self.cache.wait_for(revision).await?,
        }
        cache.get(namespace, name).ok_or_else(|| resource.not_found(name))
    }

    pub async fn list(
        &self,
        pass: &Pass,
        resource: &Resource,
        request: &ListRequest,
    ) -> Result<Listed, Error> {
        check_pass(pass, resource)?;
        let cache = resource.cache()?;
        let namespace = Some(request.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let mut selection =
            Selection::parse(cache, namespace, &request.label_selector, &request.field_selector)?;
        if let Some(name) = &request.name {
            selection.narrow_name(name);
        }
        if !request.continue_token.is_empty() {
            if !request.resource_version.is_empty() && request.resource_version != "0" {
                return Err(Error::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, start) = read_token(cache, &request.continue_token)?;
            let Some(revision) = revision else {
                self.cache.consistent().await?;
                return Ok(list_cached(cache, selection, &start, request.limit));
            };
            let listed = self.list_stored(cache, &selection, Some(revision), &start, request.limit).await;
            return listed.map_err(|error| if error.is_expired() { no_longer(cache, &start) } else { error });
        }
        let asked = version(&request.resource_version)?;
        match (asked, &request.version_match) {
            (None, _) => drop(self.cache.consistent().await?),
            (Some(0), _) => self.cache.synced().await,
            (Some(revision), VersionMatch::Exact) => {
                return self.list_stored(cache, &selection, Some(revision), "", request.limit).await;
            }
            // As upstream has it from before there was a match to ask for.
            (Some(revision), VersionMatch::Unset) if request.limit > 0 => {
                return self.list_stored(cache, &selection, Some(revision), "", request.limit).await;
            }
            (Some(revision), _) => self.cache.wait_for(revision).await?,
        }
        Ok(list_cached(cache, selection, "", request.limit))
    }

    /// Reads from the store what the cache does not hold: the state at `revision`.
    async fn list_stored(
        &self,
        cache: &Arc<KindCache>,
        selection: &Selection,
        revision: Option<Revision>,
        start: &str,
        limit: usize,
    ) -> Result<Listed, Error> {
        let (first, end) = selection.key_range(cache);
        let start = if start > first.as_str() { start.to_owned() } else { first };
        let mut request = RangeRequest::between(start, end.clone());
        request.revision = revision;
        let page = if limit == 0 { PAGE } else { PAGE.min(limit.saturating_add(1)) };
        let pages = pages(&*self.store, request, page);
        pin_mut!(pages);
        let (mut objects, mut at, mut remaining, mut next) = (Vec::new(), revision.unwrap_or(0), None, None);
        let mut room = None;
        'pages: loop {
            let _turn = self.old_lists.pages.acquire().await.map_err(Error::internal)?;
            let Some(page) = pages.next().await else { break };
            let page = page.map_err(store_error)?;
            at = page.revision;
            let in_range = page.count as usize;
            for (position, kv) in page.kvs.iter().enumerate() {
                let object = parse(kv)?;
                if !selection.matches(cache, &object) {
                    continue;
                }
                if limit > 0 && objects.len() == limit {
                    // Only an unfiltered list knows how many are left without reading them.
                    remaining = selection.is_everything().then(|| in_range - position);
                    next = Some(object.key().to_string());
                    break 'pages;
                }
                self.old_lists.add(&mut room, kv.value.len() + OBJECT_OVERHEAD_BYTES)?;
                objects.push(object);
            }
        }
        let continue_token = next.map_or_else(String::new, |next| write_token(cache, Some(at), &next));
        Ok(Listed { objects: Source::read(objects, room), revision: at, continue_token, remaining })
    }

    /// Opens a watch. Returns it with the objects that come first ([`WatchStart::Existing`]) at their version.
    pub async fn watch(
        &self,
        pass: &Pass,
        resource: &Resource,
        selection: Selection,
        start: WatchStart,
    ) -> Result<(Option<(Selected, Revision)>, Watcher), Error> {
        check_pass(pass, resource)?;
        let cache = resource.cache()?;
        match start {
            WatchStart::Existing => {
                self.cache.consistent().await?;
                let snapshot = cache.snapshot();
                let existing = selection.select(cache, &snapshot.state, "");
                let watcher = Watcher::following(cache, selection, &snapshot);
                Ok((Some((existing, snapshot.revision)), watcher))
            }
            WatchStart::After(revision) => {
                self.cache.wait_for(revision).await?;
                Ok((None, Watcher::after(cache, selection, revision)?))
            }
        }
    }
}

/// What the cache holds now, from the key `start` on.
fn list_cached(cache: &Arc<KindCache>, selection: Selection, start: &str, limit: usize) -> Listed {
    let snapshot = cache.snapshot();
    let revision = snapshot.revision;
    let mut selected = selection.select(cache, &snapshot.state, start);
    if limit == 0 {
        return Listed {
            objects: Source::Cached(selected),
            revision,
            continue_token: String::new(),
            remaining: None,
        };
    }
    let page: Vec<_> = selected.by_ref().take(limit).collect();
    let (mut continue_token, mut remaining) = (String::new(), None);
    if let Some(next) = selected.next() {
        continue_token = write_token(cache, Some(revision), next.key());
        let (_, end) = selection.key_range(cache);
        remaining = selection.is_everything().then(|| snapshot.state.objects.count(next.key(), &end));
    }
    Listed { objects: Source::read(page, None), revision, continue_token, remaining }
}

/// Reads a resource version: `None` where it is unset.
pub fn version(text: &str) -> Result<Option<Revision>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::bad_request(format!("resourceVersion: Invalid value: {text:?}: invalid resource version"))
    })
}

/// A continue token in upstream's form; `next` is the first key of the next page, which is of the newest version where
/// `revision` is `None`.
fn write_token(cache: &KindCache, revision: Option<Revision>, next: &str) -> String {
    let start = next.strip_prefix(cache.prefix()).unwrap_or(next);
    let revision = revision.map_or_else(|| json!(NEWEST), |revision| json!(revision));
    URL_SAFE_NO_PAD.encode(json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": start }).to_string())
}

fn read_token(cache: &KindCache, token: &str) -> Result<(Option<Revision>, String), Error> {
    let invalid = || Error::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    let revision = match token["rv"].as_u64() {
        Some(revision) if revision > 0 => Some(revision),
        None if token["rv"] == NEWEST => None,
        _ => return Err(invalid()),
    };
    let start = token["start"]
        .as_str()
        .filter(|start| !start.is_empty() && !start.contains(".."))
        .ok_or_else(invalid)?;
    Ok((revision, format!("{}{start}", cache.prefix())))
}

/// The version of the first pages is compacted away; `start` is the first key of the next page.
fn no_longer(cache: &KindCache, start: &str) -> Error {
    Error::expired_continue(
        "the continue parameter is too old: the list's version is no longer known. List anew without it, or go on with the \
         token in this answer, which gives the rest as it is by then: what was written since the first page may show or be \
         missing",
        write_token(cache, None, start),
    )
}
