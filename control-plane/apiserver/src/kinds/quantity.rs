//! Amounts of resources, as far as hooks compare them.

use hawser_api::FieldError;
use serde_json::Value;

use super::value::Path;

/// In billionths, rounded up; `None` for what is no quantity.
pub(crate) fn nanos(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse(text),
        Value::Number(number) => parse(&number.to_string()),
        _ => None,
    }
}

fn parse(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 28 {
        return None;
    }
    let (base, exponent): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let shift = exponent.checked_add(9)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scaled = mantissa.checked_mul(base)?;
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    let nanos = if shift >= 0 {
        scaled.checked_mul(power?)?
    } else {
        power.map_or(i128::from(scaled > 0), |power| scaled / power + i128::from(scaled % power > 0))
    };
    Some(if negative { -nanos } else { nanos })
}

/// Whether the quantity is there and more than nothing.
pub(crate) fn is_positive(value: &Value) -> bool {
    nanos(value).is_some_and(|nanos| nanos > 0)
}

/// Refuses negative amounts.
pub(crate) fn not_negative(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value) {
    match nanos(value) {
        Some(nanos) if nanos < 0 => {
            errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_compare_by_value() {
        let same = [("1", "1000m"), ("0.5", "500m"), ("1Gi", "1024Mi"), ("1e3", "1k"), ("1.5Gi", "1536Mi"), ("2E", "2e18")];
        for (a, b) in same {
            assert_eq!(nanos(&json!(a)), nanos(&json!(b)), "{a} {b}");
            assert!(nanos(&json!(a)).is_some());
        }
        assert!(nanos(&json!("100m")) < nanos(&json!("0.2")));
        assert_eq!(nanos(&json!("-1")), Some(-1_000_000_000));
        for bad in ["", "abc", "1x", "1.2.3", "--1", "e3"] {
            assert_eq!(nanos(&json!(bad)), None, "{bad:?}");
        }
        assert!(is_positive(&json!(1)) && !is_positive(&json!("0")) && !is_positive(&Value::Null));
    }
}
