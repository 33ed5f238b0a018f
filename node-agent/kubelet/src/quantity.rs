//! Resource quantities as whole numbers, rounded up as upstream's `Value` and `MilliValue` do.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// In units (bytes, pieces); 0 when it does not parse, which the API server has ruled out.
pub fn value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1).unwrap_or(0)
}

/// In thousandths; 0 when it does not parse.
pub fn milli_value(quantity: &Quantity) -> i64 {
    scaled(&quantity.0, 1000).unwrap_or(0)
}

/// `text` times `scale`, rounded away from zero, capped at the bounds of `i64`.
pub fn scaled(text: &str, scale: i128) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 || whole.len() > 20 {
        return None;
    }
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let (multiplier, divisor) = multiplier(suffix)?;
    let numerator = mantissa.checked_mul(multiplier)?.checked_mul(scale)?;
    let denominator = divisor.checked_mul(10i128.checked_pow(fraction.len() as u32)?)?;
    let rounded = numerator.div_euclid(denominator) + i128::from(numerator.rem_euclid(denominator) != 0);
    let capped = i64::try_from(rounded).unwrap_or(i64::MAX);
    Some(if negative { -capped } else { capped })
}

/// Bytes as upstream prints them: with the largest binary suffix that leaves a whole number.
pub fn binary_si(bytes: u64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let fits = (0..suffixes.len()).rev().find(|power| bytes.is_multiple_of(1 << (10 * power)));
    let power = fits.filter(|_| bytes > 0).unwrap_or(0);
    format!("{}{}", bytes >> (10 * power), suffixes[power])
}

fn multiplier(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_whole_numbers() {
        let check = |text: &str, units: i64, millis: i64| {
            let quantity = Quantity(text.to_owned());
            assert_eq!((value(&quantity), milli_value(&quantity)), (units, millis), "{text}");
        };
        check("1", 1, 1000);
        check("100m", 1, 100);
        check("1.5", 2, 1500);
        check("0.1", 1, 100);
        check("128Mi", 128 << 20, (128 << 20) * 1000);
        check("1e3", 1000, 1_000_000);
        check("2k", 2000, 2_000_000);
        check("0", 0, 0);
        check("-1", -1, -1000);
        check("12E", i64::MAX, i64::MAX);
        check("nonsense", 0, 0);
    }

    #[test]
    fn bytes_are_printed_with_the_largest_suffix() {
        let check = |bytes, text: &str| assert_eq!(binary_si(bytes), text);
        check(0, "0");
        check(1000, "1000");
        check(2 << 20, "2Mi");
        check((1 << 30) + (1 << 20), "1025Mi");
        check(u64::MAX, "18446744073709551615");
    }
}
