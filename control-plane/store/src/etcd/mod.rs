//! The etcd engine: for clusters of several control planes. etcd 3.4 and later.
//!
//! [`call`] knows deadlines and what failures mean; [`write`] sees to it that no write is lost or doubled when a
//! member dies in the middle; [`watch`] goes on over broken connections; [`connect`] knows TLS and versions;
//! [`mod@revision`] answers many readers with one question. Keys and values are stored as they are, so etcd's own tools can read them.

mod call;
mod connect;
mod convert;
mod revision;
mod watch;
mod write;

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Client, GetOptions, GetResponse, KvClient, WatchClient};
use parking_lot::Mutex;
use tokio::{sync::watch as latest, time::Instant};

pub use self::connect::{EtcdOptions, EtcdTls};
use self::{
    call::{CallError, Class, attempt_until},
    convert::{into_key_value, revision, wire_revision},
    revision::Readers,
};
use crate::{
    Error, Key, KeyValue, RangeRequest, RangeResponse, Revision, Select, Status, Store, WatchProgress,
    WatchStream, Write, Written, model,
};

/// Largest page that is taken; pages that are larger are asked for again in smaller pieces.
const MAX_PAGE_BYTES: usize = 256 * 1024 * 1024;

/// Largest message of a watch: a transaction's 128 events with the values before and after.
const MAX_WATCH_MESSAGE_BYTES: usize = 512 * 1024 * 1024;

/// A store in an etcd cluster.
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    options: EtcdOptions,
    /// Balanced over the members that answer.
    kv: KvClient,
    watch: WatchClient,
    /// One client per member, for status.
    members: Vec<Client>,
    watch_progress: Mutex<WatchProgress>,
    /// Newest revision that was learned of by asking; makes watches ask for progress.
    newest: latest::Sender<Revision>,
    revision_readers: Readers,
    closed: latest::Sender<bool>,
}

impl EtcdStore {
    /// Connects, and checks that the cluster serves.
    ///
    /// Fails with [`Error::Configuration`] or [`Error::Unavailable`]; the latter may be tried again.
    pub async fn connect(options: EtcdOptions) -> Result<Self, Error> {
        if options.endpoints.is_empty() || options.page_size == 0 {
            return Err(Error::Configuration {
                reason: "etcd needs endpoints and a page size above 0".into(),
            });
        }
        let client = connect::client(&options, &options.endpoints).await?;
        let mut members = Vec::with_capacity(options.endpoints.len());
        for endpoint in &options.endpoints {
            members.push(connect::client(&options, std::slice::from_ref(endpoint)).await?);
        }
        let probe = connect::probe(&options, &members).await?;
        let shared = Shared {
            kv: client.kv_client().max_decoding_message_size(MAX_PAGE_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_WATCH_MESSAGE_BYTES),
            members,
            watch_progress: Mutex::new(probe.watch_progress),
            newest: latest::Sender::new(0),
            revision_readers: Readers::default(),
            closed: latest::Sender::new(false),
            options,
        };
        let store = Self { shared: Arc::new(shared) };
        // Members can answer for themselves without a leader; this needs one.
        store.current_revision().await?;
        Ok(store)
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), Error> {
        if *self.closed.borrow() { Err(Error::Closed) } else { Ok(()) }
    }

    fn watch_progress(&self) -> WatchProgress {
        *self.watch_progress.lock()
    }

    /// One read of etcd, again until it is answered or the deadline has passed.
    async fn read(&self, key: &[u8], options: &GetOptions) -> Result<GetResponse, CallError> {
        let deadline = Instant::now() + self.options.deadline;
        attempt_until(deadline, self.options.attempt_timeout, || {
            let (mut client, key, options) = (self.kv.clone(), key.to_vec(), options.clone());
            async move { client.get(key, Some(options)).await }
        })
        .await
    }

    async fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let mut answer: Option<RangeResponse> = None;
        let mut page_size = self.options.page_size;
        let mut rest = request.clone();
        loop {
            let have = answer.as_ref().map_or(0, |answer| answer.kvs.len());
            let wanted = if request.limit == 0 { page_size } else { page_size.min(request.limit - have) };
            let page = match self.page(&rest, wanted).await {
                Err(error) if error.class == Class::AnswerTooLarge && page_size > 1 => {
                    page_size = (page_size / 8).max(1);
                    continue;
                }
                Err(error) => return Err(self.read_error(error, rest.revision).await),
                Ok(page) => page?,
            };
            // All pages show what the first one did, its count of all keys included.
            let whole = match &mut answer {
                None => answer.insert(page),
                Some(whole) => {
                    whole.kvs.extend(page.kvs);
                    whole.more = page.more;
                    whole
                }
            };
            let is_full = request.limit != 0 && whole.kvs.len() >= request.limit;
            match whole.kvs.last() {
                Some(last) if whole.more && !is_full => {
                    rest = request.clone().after(&last.key).at(whole.revision)
                }
                _ => return Ok(answer.expect("at least one page was read")),
            }
        }
    }

    async fn page(
        &self,
        request: &RangeRequest,
        limit: usize,
    ) -> Result<Result<RangeResponse, Error>, CallError> {
        let (key, end) = range_bounds(&request.start, &request.end);
        let mut options = GetOptions::new().with_range(end);
        options = match request.select {
            Select::Values => options.with_limit(limit as i64),
            Select::Keys => options.with_limit(limit as i64).with_keys_only(),
            Select::Count => options.with_count_only(),
        };
        if let Some(at) = request.revision {
            options = options.with_revision(wire_revision(at));
        }
        let mut response = self.read(&key, &options).await?;
        let newest = response.header().map_or(0, |header| revision(header.revision()));
        let (more, count) = (response.more(), revision(response.count()));
        let kvs: Result<Vec<_>, Error> = response.take_kvs().into_iter().map(into_key_value).collect();
        let shown = request.revision.unwrap_or(newest);
        Ok(kvs.map(|kvs| RangeResponse { kvs, revision: shown, more, count }))
    }

    async fn read_error(&self, error: CallError, requested: Option<Revision>) -> Error {
        let requested = requested.unwrap_or(0);
        match error.class {
            // etcd does not say which revision it was compacted at.
            Class::Compacted => Error::Compacted { requested, compacted: 0 },
            Class::FutureRevision => match self.current_revision().await {
                Ok(current) => Error::FutureRevision { requested, current },
                Err(error) => error,
            },
            _ => error.into_error("reading from etcd"),
        }
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        // Linearizable, and cheap: the smallest key cannot exist, and nothing but the header is needed.
        let response = self
            .read(b"\0", &GetOptions::new().with_count_only())
            .await
            .map_err(|error| error.into_error("asking etcd for its revision"))?;
        let current = response.header().map_or(0, |header| revision(header.revision()));
        self.newest.send_if_modified(|newest| {
            let is_newer = current > *newest;
            *newest = current.max(*newest);
            is_newer
        });
        Ok(current)
    }
}

/// etcd's form of a range: NUL stands for the first key, and for no end.
fn range_bounds(start: &str, end: &str) -> (Vec<u8>, Vec<u8>) {
    let or_nul = |text: &str| if text.is_empty() { vec![0] } else { text.as_bytes().to_vec() };
    (or_nul(start), or_nul(end))
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.shared.check_open()?;
        let key: Key = key.into();
        model::check_key(&key)?;
        let mut response = match self.shared.read(key.as_bytes(), &GetOptions::new()).await {
            Ok(response) => response,
            Err(error) => return Err(error.into_error("reading from etcd")),
        };
        response.take_kvs().pop().map(into_key_value).transpose()
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.shared.check_open()?;
        self.shared.range(&request).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        self.shared.check_open()?;
        let writes = [write];
        model::check_writes(&writes)?;
        write::write(&self.shared, &writes).await
    }

    async fn transaction(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        self.shared.check_open()?;
        model::check_writes(&writes)?;
        if writes.is_empty() {
            return self.shared.current_revision().await;
        }
        Ok(write::write(&self.shared, &writes).await?.revision)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        self.shared.check_open()?;
        let current = self.shared.current_revision().await?;
        let from = if from == 0 { current + 1 } else { from };
        if from > current + 1 {
            return Err(Error::FutureRevision { requested: from, current });
        }
        Ok(watch::watch(self.shared.clone(), prefix, from))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.shared.check_open()?;
        revision::current(&self.shared).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.check_open()?;
        let deadline = Instant::now() + self.shared.options.deadline;
        let outcome = attempt_until(deadline, self.shared.options.attempt_timeout, || {
            let mut client = self.shared.kv.clone();
            async move { client.compact(wire_revision(revision), None).await }
        })
        .await;
        match outcome {
            Ok(_) => Ok(()),
            Err(error) if error.class == Class::Compacted => Ok(()),
            Err(error) => Err(self.shared.read_error(error, Some(revision)).await),
        }
    }

    async fn status(&self) -> Result<Status, Error> {
        self.shared.check_open()?;
        let probe = connect::probe(&self.shared.options, &self.shared.members).await?;
        // Members can be replaced by others of another version while we run.
        *self.shared.watch_progress.lock() = probe.watch_progress;
        Ok(Status {
            engine: "etcd",
            version: probe.version,
            revision: probe.revision,
            compacted_revision: None,
            size_bytes: probe.size_bytes,
            max_size_bytes: None,
            watch_progress: probe.watch_progress,
        })
    }

    async fn close(&self) -> Result<(), Error> {
        self.shared.closed.send_replace(true);
        Ok(())
    }
}
