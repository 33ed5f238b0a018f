//! One question for many: readers that ask for the newest revision at the same time share an answer.
//!
//! An answer serves only those who came before its question was sent, so that each sees every write that was
//! acknowledged before it asked. One question is under way at a time; who comes meanwhile waits for the next.

use std::{mem, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Shared;
use crate::{Error, Revision};

/// Bounded by the readers: each waits for its answer.
#[derive(Default)]
pub(super) struct Readers(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    is_asking: bool,
    /// For the next question.
    readers: Vec<oneshot::Sender<Result<Revision, Error>>>,
}

/// The newest revision, at least as new as this call.
pub(super) async fn current(shared: &Arc<Shared>) -> Result<Revision, Error> {
    let (answer, answered) = oneshot::channel();
    let was_asking = {
        let mut waiting = shared.revision_readers.0.lock();
        waiting.readers.push(answer);
        mem::replace(&mut waiting.is_asking, true)
    };
    if !was_asking {
        // A task, because a reader that gives up takes nobody's answer with it.
        tokio::spawn(ask(shared.clone()));
    }
    answered.await.unwrap_or(Err(Error::Closed))
}

/// Asks until nobody waits.
async fn ask(shared: Arc<Shared>) {
    while let Some(readers) = next(&shared.revision_readers) {
        let answer = shared.current_revision().await;
        for reader in readers {
            // Whoever gave up hears nothing.
            let _ = reader.send(answer.clone());
        }
    }
}

fn next(readers: &Readers) -> Option<Vec<oneshot::Sender<Result<Revision, Error>>>> {
    let mut waiting = readers.0.lock();
    waiting.is_asking = !waiting.readers.is_empty();
    waiting.is_asking.then(|| mem::take(&mut waiting.readers))
}
