//! Amounts of resources, as far as hooks compare them.

use hawser_api::{FieldError, quantity::Quantity};
use serde_json::Value;

use super::value::Path;

/// `None` for what is no quantity.
pub(crate) fn parse(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Whether the quantity is there and more than nothing.
pub(crate) fn is_positive(value: &Value) -> bool {
    parse(value).is_some_and(|quantity| quantity.sign() > 0)
}

/// Refuses negative amounts.
pub(crate) fn not_negative(errors: &mut Vec<FieldError>, path: &Path<'_>, value: &Value) {
    if parse(value).is_some_and(|quantity| quantity.sign() < 0) {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_compare_by_value() {
        assert_eq!(parse(&json!("1")), parse(&json!("1000m")));
        assert!(parse(&json!("100m")) < parse(&json!(1)));
        assert!(parse(&json!("abc")).is_none() && parse(&Value::Null).is_none());
        assert!(is_positive(&json!(1)) && !is_positive(&json!("0")) && !is_positive(&Value::Null));
    }
}
