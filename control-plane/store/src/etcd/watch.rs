//! A watch of the etcd engine: one gRPC stream at a time, opened again where the last one broke.
//!
//! The next revision to deliver is all the state there is, so a new stream, to any member, goes on without gap or
//! repeat. Streams are opened without fragments: a revision's events come in one message.

use std::{sync::Arc, time::Duration};

use etcd_client::{WatchOptions, WatchResponse, WatchStream as EtcdWatchStream};
use futures::stream;
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{
    Shared,
    call::{Backoff, Class, attempt},
    convert::{event, revision, wire_revision},
    range_bounds,
};
use crate::{Error, Revision, WatchBatch, WatchProgress, WatchStream, model::prefix_end};

/// How long events may take before progress is asked for, and between two requests for it.
const PROGRESS_PATIENCE: Duration = Duration::from_millis(5);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

struct Watcher {
    shared: Arc<Shared>,
    prefix: String,
    /// First revision that has not been delivered.
    next: Revision,
    /// Whether the consumer knows that the watch is on.
    announced: bool,
    stream: Option<EtcdWatchStream>,
    /// Reset by every message; a fresh one is an unbroken watch.
    backoff: Backoff,
    is_broken: bool,
    /// Newest revision that anyone has learned of.
    wanted: watch::Receiver<Revision>,
    closed: watch::Receiver<bool>,
    progress_asked: Option<Instant>,
}

/// What a message from etcd amounts to.
enum Step {
    Batch(WatchBatch),
    /// Nothing to deliver.
    Nothing,
    /// The stream is of no more use.
    Broken(String),
}

pub(super) fn watch(shared: Arc<Shared>, prefix: &str, from: Revision) -> WatchStream {
    let watcher = Watcher {
        prefix: prefix.to_owned(),
        next: from,
        announced: false,
        stream: None,
        backoff: Backoff::default(),
        is_broken: false,
        wanted: shared.newest.subscribe(),
        closed: shared.closed.subscribe(),
        progress_asked: None,
        shared,
    };
    WatchStream::new(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        let mut closed = watcher.closed.clone();
        let outcome = tokio::select! {
            _ = closed.wait_for(|closed| *closed) => Err(Error::Closed),
            outcome = watcher.next_batch() => outcome,
        };
        match outcome {
            Ok(batch) => Some((Ok(batch), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

impl Watcher {
    async fn next_batch(&mut self) -> Result<WatchBatch, Error> {
        loop {
            if self.stream.is_none() {
                self.open().await?;
            }
            let step = match self.receive().await {
                Ok(Some(response)) => self.step(&response)?,
                Ok(None) => Step::Broken("the server ended it".into()),
                Err(error) => Step::Broken(error.to_string()),
            };
            match step {
                Step::Batch(batch) => {
                    self.recovered();
                    self.next = batch.revision + 1;
                    return Ok(batch);
                }
                Step::Nothing => self.recovered(),
                Step::Broken(reason) => self.broke(&reason).await,
            }
        }
    }

    /// Opens a stream; goes on trying until there is one, unless trying is pointless.
    async fn open(&mut self) -> Result<(), Error> {
        loop {
            let (key, end) = range_bounds(&self.prefix, &prefix_end(&self.prefix));
            let options = WatchOptions::new()
                .with_range(end)
                .with_start_revision(wire_revision(self.next))
                .with_prev_key();
            let mut client = self.shared.watch.clone();
            match attempt(self.shared.options.attempt_timeout, client.watch(key, Some(options))).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return Ok(());
                }
                Err(error) if error.class == Class::Rejected => return Err(error.into_error("watching etcd")),
                Err(error) => self.broke(&error.source.to_string()).await,
            }
        }
    }

    /// Waits for a message, and asks for progress when others know of newer revisions. Cancel-safe.
    async fn receive(&mut self) -> Result<Option<WatchResponse>, etcd_client::Error> {
        let stream = self.stream.as_mut().expect("a stream is opened before it is read");
        loop {
            let progress_due = async {
                if self.shared.watch_progress() == WatchProgress::EventsOnly {
                    return std::future::pending().await;
                }
                let next = self.next;
                // The sender lives in `shared`.
                let _ = self.wanted.wait_for(|wanted| *wanted >= next).await;
                let patience = match self.progress_asked {
                    Some(asked) => asked + PROGRESS_INTERVAL,
                    None => Instant::now() + PROGRESS_PATIENCE,
                };
                tokio::time::sleep_until(patience).await;
            };
            tokio::select! {
                message = stream.message() => return message,
                () = progress_due => {
                    self.progress_asked = Some(Instant::now());
                    stream.request_progress().await?;
                }
            }
        }
    }

    fn step(&mut self, response: &WatchResponse) -> Result<Step, Error> {
        if response.compact_revision() != 0 {
            let compacted = revision(response.compact_revision());
            return Err(Error::Compacted { requested: self.next, compacted });
        }
        if response.canceled() {
            return Ok(Step::Broken(response.cancel_reason().to_owned()));
        }
        if response.created() {
            let is_first = !std::mem::replace(&mut self.announced, true);
            let batch = WatchBatch { events: Vec::new(), revision: self.next - 1 };
            return Ok(if is_first { Step::Batch(batch) } else { Step::Nothing });
        }
        let Some(last) = response.events().last() else {
            return Ok(self.progress(response));
        };
        let last = last.kv().map_or(0, |kv| revision(kv.mod_revision()));
        let mut events = Vec::with_capacity(response.events().len());
        for change in response.events() {
            let change = event(change)?;
            // etcd starts where it is told to. Should it ever repeat itself, the consumer does not hear of it.
            if change.kv.mod_revision >= self.next {
                events.push(change);
            }
        }
        if last < self.next {
            return Ok(Step::Nothing);
        }
        Ok(Step::Batch(WatchBatch { events, revision: last }))
    }

    fn progress(&mut self, response: &WatchResponse) -> Step {
        self.progress_asked = None;
        let announced = response.header().map_or(0, |header| revision(header.revision()));
        if self.shared.watch_progress() == WatchProgress::EventsOnly || announced < self.next {
            return Step::Nothing;
        }
        Step::Batch(WatchBatch { events: Vec::new(), revision: announced })
    }

    fn recovered(&mut self) {
        self.backoff = Backoff::default();
        if std::mem::take(&mut self.is_broken) {
            tracing::info!(prefix = self.prefix, next = self.next, "watch of etcd goes on");
        }
    }

    async fn broke(&mut self, reason: &str) {
        self.stream = None;
        self.progress_asked = None;
        if !std::mem::replace(&mut self.is_broken, true) {
            warn!(prefix = self.prefix, next = self.next, reason, "watch of etcd broke, opening it again");
        }
        self.backoff.wait().await;
    }
}
