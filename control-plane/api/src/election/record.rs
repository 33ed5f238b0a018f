//! What a candidate makes of the Lease that it finds: the rules of client-go's `leaderelection`. Pure.
//!
//! Clocks of different machines are not compared: a record is alive for its own duration from when this candidate saw it
//! first, by this candidate's clock.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};

use super::Election;

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Move {
    Create(Box<Lease>),
    /// Takes it or renews it; fails where it has changed since.
    Update(Box<Lease>),
    /// Another one has it.
    Wait {
        holder: String,
    },
}

/// The record that was found last, and when it was found to be new.
#[derive(Debug, Default)]
pub(super) struct Observed(Option<(LeaseSpec, Duration)>);

impl Observed {
    /// `now` is a span by this candidate's steady clock, `time` what is written.
    pub(super) fn decide(
        &mut self,
        election: &Election,
        found: Option<&Lease>,
        now: Duration,
        time: Timestamp,
    ) -> Move {
        let Some(found) = found else {
            self.0 = None;
            let metadata = ObjectMeta {
                name: Some(election.name.clone()),
                namespace: Some(election.namespace.clone()),
                ..ObjectMeta::default()
            };
            let spec = held(election, LeaseSpec::default(), time, time, 0);
            return Move::Create(Box::new(Lease { metadata, spec: Some(spec) }));
        };
        let spec = found.spec.clone().unwrap_or_default();
        let since = match &self.0 {
            Some((known, since)) if *known == spec => *since,
            _ => now,
        };
        self.0 = Some((spec.clone(), since));
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let is_own = holder == election.identity;
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let alive_until = since + seconds.map_or(election.lease_duration, Duration::from_secs);
        if !holder.is_empty() && !is_own && now < alive_until {
            return Move::Wait { holder };
        }
        let transitions = spec.lease_transitions.unwrap_or_default();
        let (acquired, transitions) = match &spec.acquire_time {
            Some(acquired) if is_own => (acquired.0, transitions),
            _ => (time, transitions.saturating_add(i32::from(!is_own))),
        };
        let spec = held(election, spec, acquired, time, transitions);
        Move::Update(Box::new(Lease { metadata: found.metadata.clone(), spec: Some(spec) }))
    }
}

fn held(
    election: &Election,
    spec: LeaseSpec,
    acquired: Timestamp,
    renewed: Timestamp,
    transitions: i32,
) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(election.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: Some(MicroTime(acquired)),
        renew_time: Some(MicroTime(renewed)),
        lease_transitions: Some(transitions),
        ..spec
    }
}

/// The Lease given back, so that the next candidate need not wait; `None` where another one has it.
pub(super) fn released(election: &Election, found: &Lease, time: Timestamp) -> Option<Lease> {
    let spec = found.spec.clone()?;
    if spec.holder_identity.as_deref() != Some(&election.identity) {
        return None;
    }
    let spec = LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(time)),
        acquire_time: Some(MicroTime(time)),
        ..spec
    };
    Some(Lease { metadata: found.metadata.clone(), spec: Some(spec) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: i64, transitions: i32) -> Lease {
        let time = |second| Some(MicroTime(Timestamp::from_second(second).unwrap()));
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            acquire_time: time(100),
            renew_time: time(renewed),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        Lease { metadata: ObjectMeta::default(), spec: Some(spec) }
    }

    /// What is done about each lease found at a second, as a line.
    #[track_caller]
    fn check(name: &str, found: &[(u64, Option<Lease>)], expected: &[&str]) {
        let mut observed = Observed::default();
        let election = Election::new("kube-scheduler", "me");
        let moves: Vec<String> = found
            .iter()
            .map(|(second, lease)| {
                let time = Timestamp::from_second(1000 + i64::try_from(*second).unwrap()).unwrap();
                let shown = |lease: &Lease| {
                    let spec = lease.spec.clone().unwrap();
                    let second = |time: Option<MicroTime>| time.unwrap().0.as_second();
                    let (acquired, renewed) = (second(spec.acquire_time), second(spec.renew_time));
                    format!(
                        "{} {acquired} {renewed} {}",
                        spec.holder_identity.unwrap(),
                        spec.lease_transitions.unwrap()
                    )
                };
                match observed.decide(&election, lease.as_ref(), Duration::from_secs(*second), time) {
                    Move::Create(lease) => format!("create {}", shown(&lease)),
                    Move::Update(lease) => format!("update {}", shown(&lease)),
                    Move::Wait { holder } => format!("wait for {holder}"),
                }
            })
            .collect();
        assert_eq!(moves, expected, "{name}");
    }

    #[test]
    fn leases_are_taken_renewed_and_waited_for() {
        let other = |renewed| Some(lease("other", renewed, 3));
        check("no lease", &[(0, None)], &["create me 1000 1000 0"]);
        check("own lease", &[(7, Some(lease("me", 900, 3)))], &["update me 100 1007 3"]);
        check("released", &[(7, Some(lease("", 900, 3)))], &["update me 1007 1007 4"]);
        check(
            "another's, renewed",
            &[(0, other(900)), (14, other(910)), (28, other(920))],
            &["wait for other", "wait for other", "wait for other"],
        );
        check(
            "another's, not renewed any more",
            &[(0, other(900)), (14, other(900)), (15, other(900))],
            &["wait for other", "wait for other", "update me 1015 1015 4"],
        );
        // What its clock says does not matter, only that it goes on.
        check("another's, by a clock that is behind", &[(0, other(1))], &["wait for other"]);
    }

    #[test]
    fn a_lease_is_given_back_by_its_holder_alone() {
        let election = Election::new("kube-scheduler", "me");
        let time = Timestamp::from_second(1000).unwrap();
        assert_eq!(released(&election, &lease("other", 900, 3), time), None);
        let spec = released(&election, &lease("me", 900, 3), time).unwrap().spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some(""), Some(1)));
        assert_eq!(spec.lease_transitions, Some(3));
    }
}
