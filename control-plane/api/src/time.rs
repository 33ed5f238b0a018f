//! Times as the API prints them: RFC 3339 in UTC, whole seconds (`metav1.Time`) or six digits
//! (`metav1.MicroTime`), and Go's durations.

use jiff::Timestamp;

/// The most seconds that a four-digit year can express, and the least.
const MAX_SECONDS: i64 = 253_402_300_799;
const MIN_SECONDS: i64 = -62_135_596_800;

/// `metav1.Time`'s text for these seconds since 1970; `None` outside the years 1 to 9999.
pub fn format_seconds(seconds: i64) -> Option<String> {
    let (year, month, day, rest) = civil(seconds)?;
    Some(format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60))
}

/// `metav1.MicroTime`'s text; what is finer than a microsecond is cut off.
pub fn format_micros(seconds: i64, nanos: i32) -> Option<String> {
    let mut text = format_seconds(seconds)?;
    text.pop();
    let micros = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)? / 1000;
    Some(format!("{text}.{micros:06}Z"))
}

/// Reads RFC 3339 with any offset and fraction, as Go does.
///
/// Returns seconds since 1970 and the nanoseconds above them.
pub fn parse_rfc3339(text: &str) -> Option<(i64, i32)> {
    let bytes = text.as_bytes();
    // jiff is lenient about separators; the API is not.
    let separators =
        bytes.len() >= 20 && bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b'T' && bytes[13] == b':';
    if !separators || !text.is_ascii() || text.contains('[') {
        return None;
    }
    let time: Timestamp = text.parse().ok()?;
    // jiff counts nanoseconds towards zero; Go and protobuf count them upwards.
    let (mut seconds, mut nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        seconds -= 1;
        nanos += 1_000_000_000;
    }
    (MIN_SECONDS..=MAX_SECONDS).contains(&seconds).then_some((seconds, nanos))
}

/// The canonical text of a `metav1.Time`; `None` when it is no time.
pub fn canonical_time(text: &str) -> Option<String> {
    let (seconds, _) = parse_rfc3339(text)?;
    format_seconds(seconds)
}

/// The canonical text of a `metav1.MicroTime`; `None` when it is no time.
pub fn canonical_micro_time(text: &str) -> Option<String> {
    let (seconds, nanos) = parse_rfc3339(text)?;
    format_micros(seconds, nanos)
}

/// Now, as `metav1.Time`.
pub fn now() -> String {
    format_seconds(Timestamp::now().as_second()).expect("the clock is between the years 1 and 9999")
}

/// Now, as `metav1.MicroTime`.
pub fn now_micro() -> String {
    let now = Timestamp::now();
    format_micros(now.as_second(), now.subsec_nanosecond())
        .expect("the clock is between the years 1970 and 9999")
}

/// Year, month, day and second of the day.
fn civil(seconds: i64) -> Option<(i64, i64, i64, i64)> {
    if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return None;
    }
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's `civil_from_days`: eras of 400 years that begin in March, so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Some((year, month, day, rest))
}

/// Reads Go's duration text (`1h2m3.5s`) as nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let unit_ns: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || whole.len() > 18 {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total += whole * unit_ns;
        let digits = &fraction[..fraction.len().min(15)];
        if !digits.is_empty() {
            let value: i128 = digits.parse().ok()?;
            total += value * unit_ns / 10_i128.pow(u32::try_from(digits.len()).ok()?);
        }
        if total > i128::from(i64::MAX) {
            return None;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Go's text for a duration in nanoseconds.
pub fn format_duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let total = ns.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let whole = value / unit;
        let width = unit.ilog10() as usize;
        let rest = format!("{:0width$}", value % unit);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { whole.to_string() } else { format!("{whole}.{rest}") }
    };
    match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(total, 1_000_000)),
        _ => {
            let (minutes, rest) = (total / 60_000_000_000, total % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc_with_whole_seconds() {
        for (text, expected) in [
            ("2024-02-29T12:30:45Z", Some("2024-02-29T12:30:45Z")),
            ("2024-02-29T12:30:45.999Z", Some("2024-02-29T12:30:45Z")),
            ("2024-03-01T00:30:00+02:00", Some("2024-02-29T22:30:00Z")),
            ("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z")),
            ("9999-12-30T00:00:00Z", Some("9999-12-30T00:00:00Z")),
            ("2024-02-30T00:00:00Z", None),
            ("2024-02-28 00:00:00Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(canonical_time(text).as_deref(), expected, "{text}");
        }
        assert_eq!(
            canonical_micro_time("2024-02-29T12:30:45Z").as_deref(),
            Some("2024-02-29T12:30:45.000000Z")
        );
        assert_eq!(
            canonical_micro_time("1960-01-01T00:00:00.5Z").as_deref(),
            Some("1960-01-01T00:00:00.500000Z")
        );
    }

    #[test]
    fn every_day_agrees_with_the_time_library() {
        for day in (-719_162..2_932_896_i64).step_by(37) {
            let seconds = day * 86_400 + 3_661;
            let expected = Timestamp::from_second(seconds).unwrap().to_string();
            assert_eq!(format_seconds(seconds).unwrap(), expected);
        }
    }

    #[test]
    fn durations_read_and_print_as_go_does() {
        for (text, printed) in [
            ("1h2m3s", "1h2m3s"),
            ("90s", "1m30s"),
            ("1.5h", "1h30m0s"),
            ("100ms", "100ms"),
            ("1500us", "1.5ms"),
            ("-2s", "-2s"),
            ("0", "0s"),
        ] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), printed, "{text}");
        }
        for text in ["", "1", "s", "1x", "1h-", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
