//! What is asked of containerd until it is known what came of it.
//!
//! An answer that does not come says nothing: the call may have taken effect, or take it later, beside what is made instead
//! by whoever took it for failed. All that makes or starts something goes through [`until_known`]. Where even that does
//! not learn what came of it, the thing is asked for again by the same name, or taken back as one that is there.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::{Error, Result};

/// How long something is asked for whose answer does not come, and how often.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How long a call may go on in containerd after its connection broke: a shim that is in the way of what failed has five
/// seconds there to go.
const AFTERMATH: Duration = Duration::from_secs(10);

/// What came of earlier asks for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// There were none, or all were answered.
    Nothing,
    Unanswered,
}

impl Before {
    pub(super) fn unanswered_if(is_unanswered: bool) -> Self {
        if is_unanswered { Self::Unanswered } else { Self::Nothing }
    }
}

/// Asks, and looks after each error whether it is done (`Some`), until one of them says what came of it.
///
/// `before` says whether it was asked for earlier, and no answer came: by an agent that has died, perhaps. `look` is told
/// whether an ask has gone without an answer: what has ended since was done. An error is the answer only where no earlier
/// ask can be under way any more. Where nothing is known within [`PATIENCE`], the error is a silence
/// ([`Error::is_silence`]).
pub(super) async fn until_known<T, A, L>(
    attempted: &'static str,
    before: Before,
    mut ask: impl FnMut() -> A,
    mut look: impl FnMut(bool) -> L,
) -> Result<T>
where
    A: Future<Output = Result<T>>,
    L: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut unanswered = (before == Before::Unanswered).then(Instant::now);
    loop {
        let error = match ask().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if error.is_silence() {
            unanswered = Some(Instant::now());
        }
        let is_under_way = || unanswered.is_some_and(|at| at.elapsed() < AFTERMATH);
        match look(unanswered.is_some()).await {
            Ok(Some(done)) => return Ok(done),
            Ok(None) if !is_under_way() => return Err(error),
            _ if Instant::now() < deadline => tokio::time::sleep(ASK_AGAIN).await,
            _ if error.is_silence() => return Err(error),
            _ => return Err(Error::Unavailable { attempted, message: error.to_string() }),
        }
    }
}

/// For what is done when the call says so.
pub(super) async fn unseen<T>(_unanswered: bool) -> Result<Option<T>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// How an ask ends, and what is seen after it; the last one again and again.
    #[derive(Clone, Copy)]
    enum Step {
        Lost(Option<&'static str>),
        Refused(Option<&'static str>),
        /// Nothing is seen.
        Silence,
        Done,
    }
    use Step::{Done, Lost, Refused, Silence};

    /// What came of it, after how many asks.
    async fn ask(steps: &[Step]) -> (Result<&'static str>, usize) {
        ask_after(Before::Nothing, steps).await
    }

    async fn ask_after(before: Before, steps: &[Step]) -> (Result<&'static str>, usize) {
        let asked = RefCell::new(0);
        let now = || steps[(*asked.borrow() - 1).min(steps.len() - 1)];
        let lost = || Error::Unavailable { attempted: "make", message: "lost".into() };
        let asking = || {
            *asked.borrow_mut() += 1;
            let answer = match now() {
                Lost(_) | Silence => Err(lost()),
                Refused(_) => Err(Error::Containerd { attempted: "make", message: "refused".into() }),
                Done => Ok("made"),
            };
            std::future::ready(answer)
        };
        let looking = |_| {
            std::future::ready(match now() {
                Lost(seen) | Refused(seen) => Ok(seen),
                Silence | Done => Err(lost()),
            })
        };
        let outcome = until_known("make", before, asking, looking).await;
        (outcome, asked.take())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_is_asked_for_again() {
        let seen = Some("seen");
        for (name, steps, outcome, asked) in [
            ("at once", &[Done] as &[Step], "made", 1),
            ("lost, and done", &[Lost(seen)], "seen", 1),
            ("lost, and not done yet", &[Lost(None), Done], "made", 2),
            ("nothing is heard for a while", &[Silence, Silence, Done], "made", 3),
            ("an error, but it is there", &[Refused(seen)], "seen", 1),
            ("in the way of an earlier ask", &[Lost(None), Refused(None), Refused(seen)], "seen", 3),
        ] {
            let (found, times) = ask(steps).await;
            assert_eq!((found.ok(), times), (Some(outcome), asked), "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_an_answer_when_nothing_is_under_way_any_more() {
        let (found, asked) = ask(&[Refused(None)]).await;
        assert!(found.is_err_and(|error| !error.is_silence()) && asked == 1);
        let began = Instant::now();
        let (found, asked) = ask(&[Lost(None), Refused(None)]).await;
        assert!(found.is_err_and(|error| !error.is_silence()) && asked > 2);
        assert!((AFTERMATH..PATIENCE).contains(&began.elapsed()), "{:?}", began.elapsed());
        let (found, asked) = ask_after(Before::Unanswered, &[Refused(None), Refused(Some("seen"))]).await;
        assert!(found.is_ok() && asked == 2, "an earlier agent's ask was in the way");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_for_ever() {
        for steps in [&[Lost(None)] as &[Step], &[Silence], &[Lost(None), Refused(None), Silence]] {
            let began = Instant::now();
            let (found, _) = ask(steps).await;
            assert!(found.is_err_and(|error| error.is_silence()), "it may have been done");
            assert!(began.elapsed() < PATIENCE + AFTERMATH, "{:?}", began.elapsed());
        }
    }
}
