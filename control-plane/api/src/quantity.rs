//! `resource.Quantity`: amounts of resources, exact to a billionth.
//!
//! Follows the rules of `k8s.io/apimachinery/pkg/api/resource`: three families of suffixes that a value
//! keeps, a canonical text without fraction and with the largest suffix, values finer than a nano rounded
//! up. Held as a count of nanos in 128 bits, so sums of any real cluster are exact; beyond about 1.7e29 a
//! value is held at that bound.

use std::{
    cmp::Ordering,
    fmt,
    ops::{Add, Neg, Sub},
    str::FromStr,
};

const NANO: i128 = 1_000_000_000;

/// The family of suffixes that a quantity was written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `Ki`, `Mi`, ...
    BinarySi,
    /// `n`, `u`, `m`, none, `k`, `M`, ...
    #[default]
    DecimalSi,
    /// `e3`, `E6`, ...
    DecimalExponent,
}

/// An amount; equality and order look at the amount alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn from_units(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// A number of thousandths, as CPU is counted.
    pub fn from_milli(value: i64) -> Self {
        Self { nanos: i128::from(value) * (NANO / 1000), format: Format::DecimalSi }
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// Whole units, rounded up (away from zero), held within 64 bits.
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded up (away from zero), held within 64 bits.
    pub fn milli_value(self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(self, unit: i128) -> i64 {
        let whole = self.nanos / unit;
        let rest = self.nanos % unit;
        let rounded = whole + rest.signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(self) -> i32 {
        self.nanos.signum() as i32
    }
}

/// The sum. A zero takes the other's format, as upstream's does.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), ..self }
    }
}

/// The text that the API server prints for `text`.
///
/// Upstream keeps the client's own text where it takes it for canonical already, which lets `1.005` stay.
pub fn canonical(text: &str) -> Result<String, ParseError> {
    let parts = split(text)?;
    let quantity = parts.quantity()?;
    Ok(if parts.is_kept() { text.to_owned() } else { quantity.to_string() })
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        split(text)?.quantity()
    }
}

/// A quantity's text, taken apart.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point, without leading zeros; at least `0`.
    whole: &'a str,
    fraction: &'a str,
    format: Format,
    /// Of two for binary suffixes, else of ten.
    exponent: i32,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    let (negative, rest) = match text.as_bytes().first() {
        None => return Err(ParseError::Format),
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
    };
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(ParseError::Format);
    }
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let number = suffix[letters..].strip_prefix(['+', '-']).unwrap_or(&suffix[letters..]);
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError::Format);
    }
    let (format, exponent) = interpret(suffix).ok_or(ParseError::Suffix)?;
    let whole = whole.trim_start_matches('0');
    Ok(Parts { negative, whole: if whole.is_empty() { "0" } else { whole }, fraction, format, exponent })
}

fn interpret(suffix: &str) -> Option<(Format, i32)> {
    Some(match suffix {
        "" => (Format::DecimalSi, 0),
        "n" => (Format::DecimalSi, -9),
        "u" => (Format::DecimalSi, -6),
        "m" => (Format::DecimalSi, -3),
        "k" => (Format::DecimalSi, 3),
        "M" => (Format::DecimalSi, 6),
        "G" => (Format::DecimalSi, 9),
        "T" => (Format::DecimalSi, 12),
        "P" => (Format::DecimalSi, 15),
        "E" => (Format::DecimalSi, 18),
        "Ki" => (Format::BinarySi, 10),
        "Mi" => (Format::BinarySi, 20),
        "Gi" => (Format::BinarySi, 30),
        "Ti" => (Format::BinarySi, 40),
        "Pi" => (Format::BinarySi, 50),
        "Ei" => (Format::BinarySi, 60),
        _ => {
            let number = suffix.strip_prefix(['e', 'E'])?;
            (Format::DecimalExponent, number.parse().ok()?)
        }
    })
}

impl Parts<'_> {
    fn quantity(&self) -> Result<Quantity, ParseError> {
        let digits = [self.whole, self.fraction].concat();
        let trimmed = digits.trim_start_matches('0');
        let fraction_digits = i32::try_from(self.fraction.len()).map_err(|_| ParseError::Numeric)?;
        let nanos = if self.format == Format::BinarySi {
            let value = scale_by_ten(trimmed, 9 - fraction_digits, 1 << self.exponent);
            // Upstream caps only these.
            value.min(i128::from(i64::MAX) * NANO)
        } else {
            scale_by_ten(trimmed, self.exponent.saturating_add(9).saturating_sub(fraction_digits), 1)
        };
        // A part of a unit prints better as thousandths than as a fraction of 1024.
        let small = self.format == Format::BinarySi && !self.negative && nanos > 0 && nanos < NANO;
        let format =
            if small || digits == "0" && self.exponent == 0 { Format::DecimalSi } else { self.format };
        Ok(Quantity { nanos: if self.negative { -nanos } else { nanos }, format })
    }

    /// Whether upstream prints the text as the client wrote it.
    fn is_kept(&self) -> bool {
        let digits = [self.whole, self.fraction].concat();
        if digits.len() > 18 || digits.starts_with('0') {
            return false;
        }
        if self.format == Format::BinarySi {
            let value: i64 = digits.parse().unwrap_or(0);
            let precision = 14 - self.whole.len() as i32 - (self.exponent as f32 * 3.0 / 10.0) as i32;
            return self.fraction.is_empty() && precision >= 0 && value & 7 != 0;
        }
        let scale = self.exponent - self.fraction.len() as i32;
        (-9..=1000).contains(&scale) && scale % 3 == 0 && !digits.ends_with("000")
    }
}

/// `digits × factor × 10^power`, rounded up, held below the bound of 128 bits.
fn scale_by_ten(digits: &str, power: i32, factor: i128) -> i128 {
    // Digits far below a nano only matter for rounding up, digits above 2^127 saturate.
    let mut value: i128 = 0;
    let kept = digits.len().min(60);
    let mut dropped_nonzero = digits.as_bytes()[kept..].iter().any(|b| *b != b'0');
    let mut power = i64::from(power) + (digits.len() - kept) as i64;
    for digit in digits.bytes().take(kept) {
        match value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit - b'0'))) {
            Some(next) if next.checked_mul(factor).is_some() => value = next,
            // No room for this digit: it moves the point instead.
            _ => {
                dropped_nonzero |= digit != b'0';
                power += 1;
            }
        }
    }
    value *= factor;
    while power > 0 && value != 0 {
        let Some(next) = value.checked_mul(10) else { return i128::MAX };
        (value, power) = (next, power - 1);
    }
    while power < 0 && value != 0 {
        dropped_nonzero |= value % 10 != 0;
        (value, power) = (value / 10, power + 1);
    }
    value.saturating_add(i128::from(dropped_nonzero))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        let units = self.nanos / NANO;
        if self.format == Format::BinarySi && whole && !(-1023..=1023).contains(&units) {
            let (mut number, mut steps) = (units, 0);
            while number % 1024 == 0 && steps < 6 {
                (number, steps) = (number / 1024, steps + 1);
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][steps]);
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            (number, exponent) = (number / 1000, exponent + 3);
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{number}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
    }

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_text_has_no_fraction_and_the_largest_suffix() {
        check("1000m", "1");
        check("0.5", "500m");
        check("1.5", "1500m");
        check("100m", "100m");
        check("1", "1");
        check("0", "0");
        check("0m", "0");
        check("000", "0");
        check("1000", "1k");
        check("1024", "1024");
        check("1024Ki", "1Mi");
        check("1.5Gi", "1536Mi");
        check("0.5Ki", "512");
        check("0.5Mi", "512Ki");
        check("128Mi", "128Mi");
        check("1000000", "1M");
        check("12e3", "12e3");
        check("1e3", "1e3");
        check("1000e0", "1e3");
        check("0.1n", "1n");
        check("-5", "-5");
        check("-1500m", "-1500m");
        check("1.005", "1.005");
        check("100E", "100E");
        check("1Ei", "1Ei");
        check(".5", "500m");
        check("5.", "5.");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (text, expected) in [
            ("", ParseError::Format),
            ("-", ParseError::Format),
            ("a", ParseError::Format),
            ("1 Gi", ParseError::Format),
            ("1,5", ParseError::Format),
            ("1.2.3", ParseError::Format),
            ("1Kib", ParseError::Format),
            ("1KM", ParseError::Suffix),
            ("1i", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("1K", ParseError::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn values_are_rounded_up() {
        for (text, value, milli) in [
            ("1500m", 2, 1500),
            ("1n", 1, 1),
            ("-1500m", -2, -1500),
            ("1Gi", 1 << 30, 1000 << 30),
            ("9E", 9_000_000_000_000_000_000, i64::MAX),
            ("1e30", i64::MAX, i64::MAX),
        ] {
            assert_eq!((parse(text).value(), parse(text).milli_value()), (value, milli), "{text}");
        }
    }

    #[test]
    fn sums_are_exact_and_keep_the_first_format() {
        assert_eq!((parse("1Gi") + parse("512Mi")).to_string(), "1536Mi");
        assert_eq!(parse("0.1") + parse("0.2"), parse("0.3"));
        assert_eq!((Quantity::ZERO + parse("1Mi")).to_string(), "1Mi");
        assert_eq!((parse("1") - parse("1500m")).to_string(), "-500m");
    }

    /// A small generator of numbers, so that a failure can be repeated.
    fn numbers() -> impl Iterator<Item = u64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
    }

    const SUFFIXES: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "e3", "e-3", "E6"];

    /// The same text as a ratio of two big numbers, by the slow way.
    fn slow_nanos(digits: u64, places: u32, suffix: &str) -> i128 {
        let (factor, divisor): (i128, i128) = match suffix {
            "n" => (1, NANO),
            "u" => (1, 1_000_000),
            "m" | "e-3" => (1, 1000),
            "k" | "e3" => (1000, 1),
            "M" | "E6" => (1_000_000, 1),
            "G" => (NANO, 1),
            "T" => (1000 * NANO, 1),
            "P" => (1_000_000 * NANO, 1),
            "Ki" => (1 << 10, 1),
            "Mi" => (1 << 20, 1),
            "Gi" => (1 << 30, 1),
            "Ti" => (1 << 40, 1),
            _ => (1, 1),
        };
        let top = i128::from(digits) * factor * NANO;
        let bottom = divisor * 10_i128.pow(places);
        (top + bottom - 1) / bottom
    }

    #[test]
    fn reading_agrees_with_a_slow_twin_and_printing_reads_back() {
        let mut numbers = numbers();
        let mut next = move || numbers.next().unwrap();
        for _ in 0..20_000 {
            let digits = next() % 100_000;
            let places = u32::try_from(next() % 5).unwrap();
            let suffix = SUFFIXES[(next() % 16) as usize];
            let width = places as usize + 1;
            let padded = format!("{digits:0width$}");
            let (whole, fraction) = padded.split_at(padded.len() - places as usize);
            let text =
                if places == 0 { format!("{whole}{suffix}") } else { format!("{whole}.{fraction}{suffix}") };
            let quantity = parse(&text);
            assert_eq!(quantity.nanos, slow_nanos(digits, places, suffix), "{text}");
            assert_eq!(parse(&quantity.to_string()), quantity, "{text}");
            let printed = canonical(&text).unwrap();
            assert_eq!(canonical(&printed).as_deref(), Ok(printed.as_str()), "{text} is not stable");
        }
    }
}
