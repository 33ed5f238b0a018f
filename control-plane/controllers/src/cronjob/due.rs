//! Which run of a CronJob is due, and when the next one is. Pure.

use std::time::Duration;

use hawser_api::cron::Schedule;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec};

use crate::meta::MetaExt;

/// Beyond so many missed runs something is wrong with a clock, or with the schedule.
const MANY: i64 = 100;
/// The next look is a little late rather than too early.
const DELTA: Duration = Duration::from_millis(100);

/// What was missed since the last run.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Missed {
    /// The run that is due: the last one that was missed.
    pub(super) last: Option<Timestamp>,
    pub(super) are_many: bool,
}

/// The runs after the last one; none before the starting deadline. Fails where two runs would be at one time.
pub(super) fn missed(
    cron_job: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    now: Timestamp,
) -> Result<Missed, String> {
    let mut earliest = last_run(cron_job);
    if let Some(deadline) = spec.starting_deadline_seconds {
        let seconds = Duration::from_secs(u64::try_from(deadline).unwrap_or_default());
        earliest = now.checked_sub(seconds).map_or(earliest, |limit| earliest.max(limit));
    }
    let problem = || "time difference between two schedules is less than 1 second".to_owned();
    let first = schedule.next(earliest).ok_or_else(problem)?;
    if now < first {
        return Ok(Missed::default());
    }
    let second = schedule.next(first).ok_or_else(problem)?;
    if now < second {
        return Ok(Missed { last: Some(first), are_many: false });
    }
    let between = (second.as_second() - first.as_second()).max(1);
    let count = (now.as_second() - first.as_second()) / between + 1;
    // Not one by one from the first on, which may be years ago; from a little before the last, for irregular ones.
    let skipped = Duration::from_secs(u64::try_from((count - 2).max(0) * between).unwrap_or_default());
    let mut at = first.checked_add(skipped).map_err(|_| problem())?;
    let mut last = None;
    while let Some(next) = schedule.next(at).filter(|next| *next <= now) {
        last = Some(next);
        at = next;
    }
    Ok(Missed { last: last.or(Some(first)), are_many: count > MANY })
}

/// How long until the next run: after the one that is due, or the last one that was.
pub(super) fn until_next(
    cron_job: &CronJob,
    missed: &Missed,
    schedule: &Schedule,
    now: Timestamp,
) -> Option<Duration> {
    let next = schedule.next(missed.last.unwrap_or_else(|| last_run(cron_job)));
    let next = next.filter(|next| *next > now).or_else(|| schedule.next(now))?;
    Duration::try_from(next.duration_since(now)).ok().map(|wait| wait + DELTA)
}

fn last_run(cron_job: &CronJob) -> Timestamp {
    let last = cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    last.map_or_else(|| cron_job.created(), |last| last.0)
}

/// The run cannot start any more.
pub(super) fn is_too_late(spec: &CronJobSpec, run: Timestamp, now: Timestamp) -> bool {
    spec.starting_deadline_seconds.is_some_and(|deadline| {
        let seconds = Duration::from_secs(u64::try_from(deadline).unwrap_or_default());
        run.checked_add(seconds).is_ok_and(|limit| limit < now)
    })
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[track_caller]
    fn check(name: &str, text: &str, deadline: Option<i64>, now: &str, expected: (Option<&str>, bool)) {
        let at = |text: &str| -> Timestamp { format!("2026-01-01T{text}Z").parse().unwrap() };
        let mut cron_job = CronJob::default();
        cron_job.metadata.creation_timestamp = Some(Time(at("00:00:30")));
        let spec = CronJobSpec { starting_deadline_seconds: deadline, ..CronJobSpec::default() };
        let schedule = Schedule::parse(text, TimeZone::UTC).unwrap();
        let missed = missed(&cron_job, &spec, &schedule, at(now)).unwrap();
        assert_eq!((missed.last, missed.are_many), (expected.0.map(at), expected.1), "{name}");
    }

    #[test]
    fn the_last_missed_run_is_due() {
        check("not yet", "*/5 * * * *", None, "00:04:59", (None, false));
        check("one", "*/5 * * * *", None, "00:05:00", (Some("00:05:00"), false));
        check("the last of some", "*/5 * * * *", None, "01:03:00", (Some("01:00:00"), false));
        check("of many", "* * * * *", None, "05:00:20", (Some("05:00:00"), true));
        check(
            "many are few within the deadline",
            "* * * * *",
            Some(120),
            "05:00:20",
            (Some("05:00:00"), false),
        );
        check("irregular", "0,1,30 * * * *", None, "02:45:00", (Some("02:30:00"), false));
        check("every", "@every 7m", None, "00:30:00", (Some("00:28:30"), false));
    }

    #[test]
    fn a_run_has_until_its_deadline() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let spec = |deadline| CronJobSpec { starting_deadline_seconds: deadline, ..CronJobSpec::default() };
        assert!(!is_too_late(&spec(None), at(0), at(1_000_000)));
        assert!(!is_too_late(&spec(Some(10)), at(0), at(10)));
        assert!(is_too_late(&spec(Some(10)), at(0), at(11)));
    }
}
