//! One podCertificate source: what it shows, what was asked for, and when something is to be done. Knows no API.
//!
//! A request is looked at ever more seldom. A new certificate is asked for when the signer says so, and shown when it has
//! come; until then the old one is. Who is denied, or whose signer failed, asks no more, as upstream.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::key::Bundle;

/// Between looks at a request: as long as it is old, within these.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(120);
/// After errors: doubling.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// A request that is not found is one that a cache has not heard of for so long, then one that was deleted.
const UNSEEN: Duration = Duration::from_secs(10);
/// A new certificate is overdue so long after it was to be asked for.
const OVERDUE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Issued {
    bundle: Arc<Bundle>,
    refresh_at: Instant,
    expires_at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) name: String,
    pub(super) uid: String,
    /// The key that it is for, in PEM.
    pub(super) key: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a key, and ask for a certificate of it.
    Ask,
    /// Look at what came of the request.
    Look(Request),
    Rest,
}

/// The signer's last word.
#[derive(Debug)]
struct Refusal {
    state: &'static str,
    message: String,
}

#[derive(Debug)]
pub(super) struct Record {
    issued: Option<Issued>,
    asked: Option<(Request, Instant)>,
    refused: Option<Refusal>,
    failures: u32,
    error: Option<String>,
    /// Nothing is done before.
    try_at: Instant,
    told_overdue: bool,
    told_expired: bool,
}

impl Record {
    /// `found` is what the volume has from an earlier agent, which is shown until there is a new one, when that is to be asked
    /// for, and when what was found expires.
    pub(super) fn new(found: Option<(Bundle, Instant, Instant)>, now: Instant) -> Self {
        let issued =
            |(bundle, refresh_at, expires_at)| Issued { bundle: Arc::new(bundle), refresh_at, expires_at };
        Self {
            issued: found.map(issued),
            asked: None,
            refused: None,
            failures: 0,
            error: None,
            try_at: now,
            told_overdue: false,
            told_expired: false,
        }
    }

    pub(super) fn step(&self, now: Instant) -> Step {
        if self.refused.is_some() || now < self.try_at {
            return Step::Rest;
        }
        match (&self.asked, &self.issued) {
            (Some((request, _)), _) => Step::Look(request.clone()),
            (None, Some(issued)) if now < issued.refresh_at => Step::Rest,
            (None, _) => Step::Ask,
        }
    }

    pub(super) fn asked(&mut self, request: Request, now: Instant) {
        self.asked = Some((request, now));
        self.succeeded(now + FIRST_LOOK);
    }

    /// The signer has not answered yet.
    pub(super) fn pending(&mut self, now: Instant) {
        if let Some((_, since)) = &self.asked {
            let age = now.duration_since(*since);
            self.succeeded(now + age.clamp(FIRST_LOOK, LAST_LOOK));
        }
    }

    pub(super) fn missing(&mut self, now: Instant) {
        match &self.asked {
            Some((_, since)) if now.duration_since(*since) < UNSEEN => self.pending(now),
            _ => {
                self.asked = None;
                self.succeeded(now);
            }
        }
    }

    pub(super) fn issued(&mut self, bundle: Bundle, refresh_at: Instant, expires_at: Instant, now: Instant) {
        *self = Self::new(Some((bundle, refresh_at, expires_at)), now);
    }

    /// `state` as the metric names it.
    pub(super) fn refused(&mut self, state: &'static str, message: String) {
        self.asked = None;
        self.refused = Some(Refusal { state, message });
    }

    pub(super) fn failed(&mut self, error: String, now: Instant) {
        self.try_at = now + (FIRST_RETRY * 2_u32.pow(self.failures.min(16))).min(LAST_RETRY);
        self.failures += 1;
        self.error = Some(error);
    }

    fn succeeded(&mut self, try_at: Instant) {
        self.try_at = try_at;
        self.failures = 0;
        self.error = None;
    }

    pub(super) fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// What the volume shows; an error says why it lacks something.
    pub(super) fn shown(&self) -> Result<Arc<Bundle>, String> {
        match (&self.refused, &self.issued, &self.error, &self.asked) {
            (Some(refusal), ..) => Err(refusal.message.clone()),
            (None, Some(issued), ..) => Ok(issued.bundle.clone()),
            (None, None, Some(error), _) => Err(error.clone()),
            (None, None, None, Some((request, _))) => {
                Err(format!("PodCertificateRequest {:?} is not issued yet", request.name))
            }
            (None, None, None, None) => Err("the API does not answer yet".to_owned()),
        }
    }

    /// When there is something to do; `None` where nothing ever is.
    pub(super) fn due_at(&self) -> Option<Instant> {
        match (&self.refused, &self.asked, &self.issued) {
            (Some(_), ..) => None,
            (None, None, Some(issued)) => Some(issued.refresh_at.max(self.try_at)),
            _ => Some(self.try_at),
        }
    }

    /// When to look again, where the first certificate was asked for and has not come.
    pub(super) fn awaited_at(&self) -> Option<Instant> {
        let awaited = self.is_asking() && self.issued.is_none() && self.refused.is_none();
        awaited.then_some(self.try_at)
    }

    /// As upstream's metric names it.
    pub(super) fn state(&self, now: Instant) -> &'static str {
        match (&self.refused, &self.issued) {
            (Some(refusal), _) => refusal.state,
            (None, None) => "not_yet_issued",
            (None, Some(issued)) if now > issued.expires_at => "expired",
            (None, Some(issued)) if now > issued.refresh_at + OVERDUE => "overdue_for_refresh",
            (None, Some(_)) => "fresh",
        }
    }

    /// What the pod's user is to know, once: the event's reason, and what has happened.
    pub(super) fn warning(&mut self, now: Instant) -> Option<(&'static str, &'static str)> {
        match self.state(now) {
            "expired" if !self.told_expired => {
                self.told_expired = true;
                Some(("CertificateExpired", "the certificate has expired"))
            }
            "overdue_for_refresh" if !self.told_overdue => {
                self.told_overdue = true;
                Some(("CertificateOverdueForRefresh", "the certificate was to be renewed ten minutes ago"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn bundle(key: &str) -> Bundle {
        Bundle { key: key.to_owned(), chain: "chain".to_owned() }
    }

    fn request(name: &str) -> Request {
        Request { name: name.to_owned(), uid: "1".to_owned(), key: "key".to_owned() }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_certificate_is_asked_for_looked_for_and_renewed() {
        let now = Instant::now();
        let mut record = Record::new(None, now);
        assert_eq!(record.step(now), Step::Ask);
        record.asked(request("a"), now);
        assert_eq!(record.step(now), Step::Rest, "a signer takes a moment");
        assert_eq!(record.step(now + FIRST_LOOK), Step::Look(request("a")));
        assert!(record.shown().unwrap_err().contains("\"a\" is not issued yet"));
        record.issued(bundle("one"), now + HOUR, now + 2 * HOUR, now);
        assert_eq!(record.shown().expect("issued").key, "one");
        assert_eq!((record.step(now), record.due_at()), (Step::Rest, Some(now + HOUR)));
        let later = now + HOUR;
        assert_eq!(record.step(later), Step::Ask);
        record.asked(request("b"), later);
        assert_eq!(record.shown().expect("the old one").key, "one");
        assert_eq!(record.awaited_at(), None, "nobody waits for it");
        record.issued(bundle("two"), later + HOUR, later + 2 * HOUR, later);
        assert_eq!(record.shown().expect("the new one").key, "two");
        assert!(!record.is_asking());
    }

    #[test]
    fn an_answer_is_looked_for_ever_more_seldom() {
        let mut now = Instant::now();
        let mut record = Record::new(None, now);
        record.asked(request("a"), now);
        let mut looks = 0;
        for _ in 0..900 {
            now += seconds(1);
            if let Step::Look(_) = record.step(now) {
                record.pending(now);
                looks += 1;
            }
        }
        assert!((10..20).contains(&looks), "{looks} within a quarter of an hour");
    }

    #[test]
    fn a_request_that_was_deleted_is_made_again() {
        let now = Instant::now();
        let mut record = Record::new(None, now);
        record.asked(request("a"), now);
        record.missing(now + seconds(1));
        assert!(record.is_asking(), "the cache may be behind");
        record.missing(now + UNSEEN);
        assert_eq!(record.step(now + UNSEEN), Step::Ask);
    }

    #[test]
    fn errors_wait_longer_and_longer_and_take_nothing_away() {
        let now = Instant::now();
        let mut record = Record::new(Some((bundle("found"), now, now + HOUR)), now);
        for delay in [1, 2, 4] {
            record.failed("down".to_owned(), now);
            assert_eq!(record.due_at(), Some(now + seconds(delay)));
            assert_eq!(record.step(now), Step::Rest);
        }
        (0..40).for_each(|_| record.failed("down".to_owned(), now));
        assert_eq!(record.due_at(), Some(now + LAST_RETRY));
        assert_eq!(record.shown().expect("what was found").key, "found");
        record.asked(request("a"), now);
        record.failed("down".to_owned(), now);
        assert_eq!(record.due_at(), Some(now + FIRST_RETRY), "it has worked meanwhile");
        let mut bare = Record::new(None, now);
        bare.failed("down".to_owned(), now);
        assert_eq!(bare.shown().unwrap_err(), "down");
    }

    #[test]
    fn a_refusal_is_the_last_word() {
        let now = Instant::now();
        let mut record = Record::new(Some((bundle("found"), now, now + HOUR)), now);
        record.asked(request("a"), now);
        record.refused("denied", "no".to_owned());
        assert_eq!(record.shown().unwrap_err(), "no");
        assert_eq!((record.step(now + HOUR), record.due_at()), (Step::Rest, None));
        assert_eq!(record.state(now + 2 * HOUR), "denied");
    }

    #[test]
    fn states_are_told_as_upstream_names_them_and_warnings_once() {
        let now = Instant::now();
        let mut record = Record::new(None, now);
        assert_eq!(record.state(now), "not_yet_issued");
        record.issued(bundle("one"), now + HOUR, now + 2 * HOUR, now);
        for (at, state, reason) in [
            (now, "fresh", None),
            (now + HOUR + OVERDUE, "fresh", None),
            (now + HOUR + OVERDUE + seconds(1), "overdue_for_refresh", Some("CertificateOverdueForRefresh")),
            (now + HOUR + OVERDUE + seconds(2), "overdue_for_refresh", None),
            (now + 2 * HOUR + seconds(1), "expired", Some("CertificateExpired")),
            (now + 3 * HOUR, "expired", None),
        ] {
            assert_eq!(record.state(at), state);
            assert_eq!(record.warning(at).map(|(reason, _)| reason), reason);
        }
    }
}
