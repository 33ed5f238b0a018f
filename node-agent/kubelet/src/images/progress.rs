//! What becomes of a long pull, told in events: at first after half a minute, then each time after twice as long, so that
//! the longest pull says little.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use hawser_runtime::{ProgressSender, PullProgress};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::quantity::binary_si;

const FIRST: Duration = Duration::from_secs(30);
/// Messages that wait to be looked at; the runtime drops what there is no room for.
const QUEUE: usize = 64;

/// Runs a pull to its end, and tells on the way how far it is. Cancel-safe as far as the pull is.
pub(super) async fn watched<T, F: Future<Output = T>>(
    image: &str,
    tell: impl Fn(String),
    pull: impl FnOnce(ProgressSender) -> F,
) -> T {
    let (sender, mut reports) = mpsc::channel(QUEUE);
    let pulling = pull(sender);
    tokio::pin!(pulling);
    let mut known = Known::default();
    let (mut wait, mut next) = (FIRST, Instant::now() + FIRST);
    loop {
        tokio::select! {
            done = &mut pulling => return done,
            Some(report) = reports.recv() => known.note(report),
            () = tokio::time::sleep_until(next) => {
                tell(format!("Pulling image {image:?}: {}", known.shown()));
                wait *= 2;
                next += wait;
            }
        }
    }
}

#[derive(Default)]
struct Known {
    total_bytes: Option<u64>,
    /// By the layer's digest.
    fetched: BTreeMap<String, u64>,
    is_unpacking: bool,
}

impl Known {
    fn note(&mut self, report: PullProgress) {
        match report {
            PullProgress::Resolved { total_bytes, .. } => self.total_bytes = Some(total_bytes),
            PullProgress::Layer { digest, fetched_bytes, .. } => {
                self.fetched.insert(digest, fetched_bytes);
            }
            PullProgress::Unpacking { .. } => self.is_unpacking = true,
        }
    }

    fn shown(&self) -> String {
        let Some(total) = self.total_bytes else { return "the registry has not answered yet".into() };
        let fetched = self.fetched.values().sum::<u64>().min(total);
        let unpacking = if self.is_unpacking { ", unpacking" } else { "" };
        format!("{} of {} fetched{unpacking}", in_mib(fetched), in_mib(total))
    }
}

fn in_mib(bytes: u64) -> String {
    let mib = bytes >> 20 << 20;
    if mib == 0 { format!("{bytes} bytes") } else { binary_si(mib) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[tokio::test(start_paused = true)]
    async fn a_long_pull_says_less_and_less_often_how_far_it_is() {
        let (told, begin) = (Mutex::new(Vec::new()), Instant::now());
        let tell = |message: String| told.lock().push((begin.elapsed().as_secs(), message));
        let pull = async |sender: ProgressSender| {
            tokio::time::sleep(Duration::from_secs(40)).await;
            let layer = |digest: &str, fetched_bytes| PullProgress::Layer {
                digest: digest.into(),
                fetched_bytes,
                total_bytes: 100 << 20,
            };
            let resolved = PullProgress::Resolved { digest: "d".into(), total_bytes: 200 << 20 };
            for report in [resolved, layer("a", 10 << 20), layer("b", 5 << 20), layer("a", 20 << 20)] {
                sender.send(report).await.expect("heard");
            }
            tokio::time::sleep(Duration::from_secs(200)).await;
            7
        };
        assert_eq!(watched("app", tell, pull).await, 7);
        let expected = [
            (30, "Pulling image \"app\": the registry has not answered yet".to_owned()),
            (90, "Pulling image \"app\": 25Mi of 200Mi fetched".to_owned()),
            (210, "Pulling image \"app\": 25Mi of 200Mi fetched".to_owned()),
        ];
        assert_eq!(*told.lock(), expected);
    }
}
