//! One call to etcd: its deadline, what a failure means, and when to try again.
//!
//! What matters most about a failed write is whether it can still happen. Only failures that are known to come
//! before etcd proposes a request count as refused; all else is unknown.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use etcd_client::Error as EtcdError;
use tokio::time::{Instant, timeout};
use tonic::{Code, ConnectError, Status};

use crate::{Error, Source};

/// What a failed call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing has happened and nothing will: not sent, or refused before it was proposed. May be tried again.
    Refused,
    /// It may have happened, or may happen yet.
    Unknown,
    Compacted,
    FutureRevision,
    /// Larger than the server takes.
    TooLarge,
    TooManyOperations,
    /// The server's space quota is used up.
    Full,
    /// The answer is larger than we take.
    AnswerTooLarge,
    /// It will not work the next time either: credentials, arguments, version.
    Rejected,
}

#[derive(Clone, Debug)]
pub(super) struct CallError {
    pub(super) class: Class,
    pub(super) source: Source,
}

impl CallError {
    fn new(class: Class, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { class, source: Arc::new(source) }
    }

    /// For calls that change nothing, where unknown is as good as refused.
    pub(super) fn is_retryable(&self) -> bool {
        matches!(self.class, Class::Refused | Class::Unknown)
    }

    /// The error for the caller, where the class needs no more than that.
    pub(super) fn into_error(self, attempted: &'static str) -> Error {
        match self.class {
            Class::Full => Error::Full { what: "etcd's space quota is used up", source: self.source },
            Class::Rejected => Error::Configuration { reason: format!("{attempted}: {}", self.source) },
            _ => Error::Unavailable { attempted, source: self.source },
        }
    }
}

/// Makes one call, with a deadline.
pub(super) async fn attempt<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, EtcdError>>,
) -> Result<T, CallError> {
    match timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallError::new(classify(&error), error)),
        Err(elapsed) => Err(CallError::new(Class::Unknown, elapsed)),
    }
}

/// Makes a call that changes nothing, again until it is answered or `deadline` has passed.
pub(super) async fn attempt_until<T, F>(
    deadline: Instant,
    limit: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T, CallError>
where
    F: Future<Output = Result<T, EtcdError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match attempt(limit, call()).await {
            Err(error) if error.is_retryable() && backoff.wait_before(deadline).await => {}
            outcome => return outcome,
        }
    }
}

/// Waits between attempts: 50 ms, doubling up to 1 s, with up to as much again at random.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }

    /// Waits, unless that would go past the deadline; says whether there is time for another attempt.
    pub(super) async fn wait_before(&mut self, deadline: Instant) -> bool {
        let until = Instant::now() + self.next_delay();
        if until >= deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        true
    }

    fn next_delay(&mut self) -> Duration {
        let delay = Self::FIRST.saturating_mul(1 << self.attempts.min(16)).min(Self::LONGEST);
        self.attempts += 1;
        // Each `RandomState` hashes differently: random enough to spread clients, without a generator.
        let random = RandomState::new().hash_one(self.attempts) % 1000;
        delay + delay * u32::try_from(random).expect("below 1000") / 1000
    }
}

fn classify(error: &EtcdError) -> Class {
    match error {
        EtcdError::GRpcStatus(status) => classify_status(status),
        EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::InvalidMetadataValue(_) => {
            Class::Rejected
        }
        _ => Class::Unknown,
    }
}

/// The messages are etcd's (`api/v3rpc/rpctypes/error.go`, the same from 3.4 to 3.6): codes alone are ambiguous.
fn classify_status(status: &Status) -> Class {
    let says = |text: &str| status.message().contains(text);
    match status.code() {
        _ if was_not_connected(status) => Class::Refused,
        Code::OutOfRange if says("has been compacted") => Class::Compacted,
        Code::OutOfRange if says("future revision") => Class::FutureRevision,
        Code::OutOfRange if says("decoded message length too large") => Class::AnswerTooLarge,
        Code::InvalidArgument if says("request is too large") => Class::TooLarge,
        Code::InvalidArgument if says("too many operations") => Class::TooManyOperations,
        Code::ResourceExhausted if says("space exceeded") => Class::Full,
        Code::ResourceExhausted if says("larger than max") => Class::TooLarge,
        // Refused at the door, before anything is proposed.
        Code::ResourceExhausted if says("too many requests") => Class::Refused,
        Code::Unavailable if says("etcdserver: no leader") => Class::Refused,
        Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented => Class::Rejected,
        _ => Class::Unknown,
    }
}

/// Whether there was no connection to send the request on.
fn was_not_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: Code, message: &str, expected: Class) {
        assert_eq!(classify_status(&Status::new(code, message)), expected, "{code:?} {message}");
    }

    #[test]
    fn only_what_was_never_proposed_counts_as_refused() {
        check(Code::Unavailable, "etcdserver: no leader", Class::Refused);
        check(Code::ResourceExhausted, "etcdserver: too many requests", Class::Refused);
        check(Code::Unavailable, "etcdserver: leader changed", Class::Unknown);
        check(Code::Unavailable, "etcdserver: request timed out", Class::Unknown);
        check(Code::Unavailable, "etcdserver: server stopped", Class::Unknown);
        check(Code::Unavailable, "error reading a body from connection", Class::Unknown);
        check(Code::Cancelled, "", Class::Unknown);
        check(Code::DeadlineExceeded, "", Class::Unknown);
        check(Code::Unknown, "transport error", Class::Unknown);
    }

    #[test]
    fn etcd_errors_keep_their_meaning() {
        check(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", Class::Compacted);
        check(
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
            Class::FutureRevision,
        );
        check(Code::InvalidArgument, "etcdserver: request is too large", Class::TooLarge);
        check(
            Code::InvalidArgument,
            "etcdserver: too many operations in txn request",
            Class::TooManyOperations,
        );
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Class::Full);
        check(Code::PermissionDenied, "etcdserver: permission denied", Class::Rejected);
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_tried_again_until_the_deadline() {
        let started = Instant::now();
        let mut calls = 0;
        let outcome: Result<(), _> =
            attempt_until(started + Duration::from_secs(10), Duration::from_secs(1), || {
                calls += 1;
                std::future::pending()
            })
            .await;
        assert_eq!(outcome.unwrap_err().class, Class::Unknown);
        assert!((3..=10).contains(&calls), "{calls}");
        assert!(started.elapsed() <= Duration::from_secs(11));
    }
}
