//! When a cron schedule is due: the five fields, `@daily` and the like, and `@every 1h30m`. Pure.
//!
//! Fields are minute, hour, day of month, month, day of week (0 to 6), with lists, ranges, steps and English names. Where
//! both days are restricted, either may match. A time that a clock change leaves out is not made up for, one that comes
//! twice is due twice, as with upstream's library.

use std::time::Duration;

use jiff::{Timestamp, civil::Date, tz::TimeZone};

/// How far ahead is looked, in years: a schedule that is never due then is never due.
const HORIZON: i16 = 5;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

#[derive(Clone, Debug)]
pub(super) enum Schedule {
    Every(Duration),
    Fields(Box<Fields>),
}

/// One bit for each value that matches.
#[derive(Clone, Debug)]
pub(super) struct Fields {
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
    /// Fails with what is wrong.
    pub(super) fn parse(text: &str, zone: TimeZone) -> Result<Self, String> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            return Ok(Self::Every(parse_duration(every)?));
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
    pub(super) fn next(&self, after: Timestamp) -> Option<Timestamp> {
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

fn parse_field(field: &str, low: u8, high: u8, names: &[&str]) -> Result<u64, String> {
    field.split(',').try_fold(0, |bits, part| Ok(bits | parse_part(part, low, high, names)?))
}

/// `*`, `a`, `a-b`, each with `/step`; `a/step` goes on to the end.
fn parse_part(part: &str, low: u8, high: u8, names: &[&str]) -> Result<u64, String> {
    let value = |text: &str| {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|place| u8::try_from(place).ok()).map(|place| place + low);
        named
            .or_else(|| text.parse().ok())
            .ok_or_else(|| format!("failed to parse int from {text}: invalid syntax"))
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(value(step)?)),
        None => (part, None),
    };
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
        let values = (first..=last).step_by(usize::from(step.unwrap_or(1)));
        return Ok(values.fold(0, |bits, value| bits | (1 << value)));
    };
    Err(problem)
}

/// Hours, minutes and seconds, as `1h30m`; at least a second.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("failed to parse duration @every {text}");
    let (mut total, mut digits) = (0_u64, String::new());
    for letter in text.trim().chars() {
        let unit = match letter {
            '0'..='9' => {
                digits.push(letter);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(problem()),
        };
        let count: u64 = digits.parse().map_err(|_| problem())?;
        total = count.checked_mul(unit).and_then(|more| total.checked_add(more)).ok_or_else(problem)?;
        digits.clear();
    }
    if !digits.is_empty() || text.trim().is_empty() {
        return Err(problem());
    }
    Ok(Duration::from_secs(total.max(1)))
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
            ("x * * * *", "failed to parse int from x: invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every 5", "failed to parse duration @every 5"),
        ] {
            assert_eq!(Schedule::parse(text, TimeZone::UTC).unwrap_err(), why, "{text}");
        }
    }
}
