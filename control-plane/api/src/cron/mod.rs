//! When a cron schedule is due: the five fields, `@daily` and the like, and `@every 1h30m`.
//!
//! Both ends read it here: the API server refuses what the controller could not follow, with the words of upstream's
//! library (robfig/cron), and the controller follows it. [`zone`] finds time zones; all else is pure.
//!
//! Fields are minute, hour, day of month, month, day of week (0 to 6), with lists, ranges, steps and English names. Where
//! both days are restricted, either may match. A time that a clock change leaves out is not made up for, one that comes
//! twice is due twice, as with upstream's library.

pub mod zone;

use std::{num::IntErrorKind, time::Duration};

use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::time;

/// How far ahead is looked, in years: a schedule that is never due then is never due.
const HORIZON: i16 = 5;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

#[derive(Clone, Debug)]
pub enum Schedule {
    Every(Duration),
    Fields(Box<Fields>),
}

/// One bit for each value that matches.
#[derive(Clone, Debug)]
pub struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// Days of both kinds are restricted.
    either_day: bool,
    zone: TimeZone,
}

impl Schedule {
    /// Fails with what is wrong. A zone that the text names itself (`TZ=Asia/Tokyo 0 4 * * *`) goes before `zone`.
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        let (text, zone) = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            None => (text, zone),
            Some(named) => {
                let (name, rest) = named.split_once(' ').unwrap_or((named, ""));
                let zone =
                    zone::find(Some(name)).map_err(|why| format!("provided bad location {name}: {why}"))?;
                (rest, zone)
            }
        };
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            return Ok(Self::Every(parse_duration(every.trim())?));
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
            _ => text,
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let is_open = |field: &str| field.split(',').any(|part| matches!(part, "*" | "?" | "*/1" | "?/1"));
        Ok(Self::Fields(Box::new(Fields {
            minute: parse_field(minute, 0, 59, &[])?,
            hour: parse_field(hour, 0, 23, &[])?,
            day: parse_field(day, 1, 31, &[])?,
            month: parse_field(month, 1, 12, &MONTHS)?,
            weekday: parse_field(weekday, 0, 6, &DAYS)?,
            either_day: !is_open(day) && !is_open(weekday),
            zone,
        })))
    }

    /// The first time after `after`; `None` where there is none in the years to come.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(delay) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*delay).ok()
            }
            Self::Fields(fields) => fields.next(after),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60) + 1;
        let mut at = Timestamp::from_second(minute * 60).ok()?;
        let last_year = self.zone.to_datetime(at).year().saturating_add(HORIZON);
        loop {
            let local = self.zone.to_datetime(at);
            if local.year() > last_year {
                return None;
            }
            let has = |bits: u64, value: i8| bits & (1 << value) != 0;
            let jump = if !has(self.month, local.month()) {
                self.start_of(local.date().last_of_month().tomorrow().ok()?)
            } else if !self.has_day(local.date()) {
                self.start_of(local.date().tomorrow().ok()?)
            } else if !has(self.hour, local.hour()) {
                at.checked_add(Duration::from_secs(60 * u64::try_from(60 - local.minute()).ok()?)).ok()
            } else if !has(self.minute, local.minute()) {
                at.checked_add(Duration::from_secs(60)).ok()
            } else {
                return Some(at);
            };
            // Where clocks go back at midnight, a day may begin before it has ended.
            at = match jump? {
                later if later > at => later,
                _ => at.checked_add(Duration::from_secs(3600)).ok()?,
            };
        }
    }

    fn has_day(&self, date: Date) -> bool {
        let by_day = self.day & (1 << date.day()) != 0;
        let by_weekday = self.weekday & (1 << date.weekday().to_sunday_zero_offset()) != 0;
        if self.either_day { by_day || by_weekday } else { by_day && by_weekday }
    }

    fn start_of(&self, date: Date) -> Option<Timestamp> {
        date.to_zoned(self.zone.clone()).ok().map(|zoned| zoned.timestamp())
    }
}

fn parse_field(field: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    field.split(',').try_fold(0, |bits, part| Ok(bits | parse_part(part, low, high, names)?))
}

/// `*`, `a`, `a-b`, each with `/step`; `a/step` goes on to the end.
fn parse_part(part: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let value = |text: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|place| u32::try_from(place).ok()).map(|place| place + low);
        named.map_or_else(|| number(text), Ok)
    };
    let (range, step) = match part.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {part}")),
        Some((range, step)) => (range, Some(number(step)?)),
        None => (part, None),
    };
    if range.matches('-').count() > 1 {
        return Err(format!("too many hyphens: {part}"));
    }
    let (first, last) = match range.split_once('-') {
        _ if matches!(range, "*" | "?") => (low, high),
        Some((first, last)) => (value(first)?, value(last)?),
        None if step.is_some() => (value(range)?, high),
        None => (value(range)?, value(range)?),
    };
    let problem = if first < low {
        format!("beginning of range ({first}) below minimum ({low}): {part}")
    } else if last > high {
        format!("end of range ({last}) above maximum ({high}): {part}")
    } else if first > last {
        format!("beginning of range ({first}) beyond end of range ({last}): {part}")
    } else if step == Some(0) {
        format!("step of range should be a positive number: {part}")
    } else {
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        let values = (first..=last).step_by(step);
        return Ok(values.fold(0, |bits, value| bits | (1 << value)));
    };
    Err(problem)
}

fn number(text: &str) -> Result<u32, String> {
    let failed =
        |why: &str| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}");
    match text.parse::<i64>() {
        Ok(negative @ ..0) => Err(format!("negative number ({negative}) not allowed: {text}")),
        Ok(value) => Ok(u32::try_from(value).unwrap_or(u32::MAX)),
        Err(error) => match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => Err(failed("value out of range")),
            _ => Err(failed("invalid syntax")),
        },
    }
}

/// A duration as Go writes it: `1h30m`, `1.5h`. In whole seconds, at least one.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanos = time::parse_duration(text)
        .ok_or_else(|| format!("failed to parse duration @every {text}: time: {}", no_duration(text)))?;
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or_default();
    Ok(Duration::from_secs(seconds.max(1)))
}

/// Why a text is no duration, as Go says it.
fn no_duration(text: &str) -> String {
    let is_number = |letter: char| letter.is_ascii_digit() || letter == '.';
    let units = text.split(is_number).filter(|unit| !unit.is_empty());
    let unknown = |unit: &&str| !["ns", "us", "\u{b5}s", "\u{3bc}s", "ms", "s", "m", "h"].contains(unit);
    if !text.starts_with(is_number) {
        format!("invalid duration {text:?}")
    } else if let Some(unit) = units.clone().find(unknown) {
        format!("unknown unit {unit:?} in duration {text:?}")
    } else if text.ends_with(is_number) {
        format!("missing unit in duration {text:?}")
    } else {
        format!("invalid duration {text:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, after: &str, expected: &[&str]) {
        let schedule = Schedule::parse(text, TimeZone::UTC).unwrap();
        let mut at: Timestamp = format!("{after}:00Z").parse().unwrap();
        for next in expected {
            at = schedule.next(at).unwrap();
            assert_eq!(at.strftime("%Y-%m-%dT%H:%M").to_string(), *next, "{text}");
        }
    }

    #[test]
    fn fields_name_the_times() {
        let noon = "2026-02-27T12:00";
        check("* * * * *", noon, &["2026-02-27T12:01", "2026-02-27T12:02"]);
        check("*/20 8-9 * * *", noon, &["2026-02-28T08:00", "2026-02-28T08:20", "2026-02-28T08:40"]);
        check("5/25 12 * * *", noon, &["2026-02-27T12:05", "2026-02-27T12:30", "2026-02-27T12:55"]);
        check("0 0 29 2 *", noon, &["2028-02-29T00:00"]);
        check("0 0 1 JAN,jul ?", noon, &["2026-07-01T00:00", "2027-01-01T00:00"]);
        check("30 9 * * mon-fri", noon, &["2026-03-02T09:30", "2026-03-03T09:30"]);
        check(
            "0 0 13 * 5",
            "2026-03-01T00:00",
            &["2026-03-06T00:00", "2026-03-13T00:00", "2026-03-20T00:00"],
        );
        check("0 0 */10 * 0", "2026-03-01T00:00", &["2026-03-08T00:00", "2026-03-11T00:00"]);
        check("@hourly", noon, &["2026-02-27T13:00"]);
        check("@weekly", noon, &["2026-03-01T00:00"]);
        check("@every 1h30m", noon, &["2026-02-27T13:30", "2026-02-27T15:00"]);
        check("@every 1.5h", noon, &["2026-02-27T13:30", "2026-02-27T15:00"]);
        check("CRON_TZ=UTC 0 4 * * *", noon, &["2026-02-28T04:00"]);
    }

    #[test]
    fn a_day_that_never_comes_is_never_due() {
        let schedule = Schedule::parse("59 23 31 2 *", TimeZone::UTC).unwrap();
        assert_eq!(schedule.next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn clock_changes_leave_times_out_and_repeat_them() {
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let schedule = Schedule::parse("30 2 * * *", berlin).unwrap();
        let times = |after: &str| {
            let first = schedule.next(after.parse().unwrap()).unwrap();
            (first.to_string(), schedule.next(first).unwrap().to_string())
        };
        let expect = |first: &str, second: &str| (first.to_owned(), second.to_owned());
        // Half past two does not exist on 29 March, and comes twice on 25 October.
        assert_eq!(times("2026-03-28T00:00:00Z"), expect("2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"));
        assert_eq!(times("2026-10-24T12:00:00Z"), expect("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"));
    }

    #[test]
    fn bad_schedules_are_told_what_is_wrong() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
            (
                "99999999999999999999 * * * *",
                "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value \
                 out of range",
            ),
            ("", "empty spec string"),
            ("TZ=Mars/Crater * * * * *", "provided bad location Mars/Crater: unknown time zone Mars/Crater"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5d", "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\""),
            ("@every h", "failed to parse duration @every h: time: invalid duration \"h\""),
        ] {
            assert_eq!(Schedule::parse(text, TimeZone::UTC).unwrap_err(), why, "{text}");
        }
    }
}
