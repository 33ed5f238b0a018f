//! Functions of lists, and of lists as sets: those of Kubernetes' and CEL's extensions.

use std::cmp::Ordering;

use super::{
    evaluate::{Failure, Meter, compare, equal},
    functions::{Function, LONGEST_TEXT, length, no_overload},
    value::Value,
};

type List<'l, 'a> = &'l [Value<'a>];

pub(super) fn is_sorted(list: List<'_, '_>, meter: &mut Meter<'_>) -> Result<bool, Failure> {
    for pair in list.windows(2) {
        if ordering(&pair[0], &pair[1], meter)? == Ordering::Greater {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first element that no other is `better` than: `Less` finds the least. `name` is the function's.
pub(super) fn extreme<'a>(
    list: List<'_, 'a>,
    better: Ordering,
    name: &str,
    meter: &mut Meter<'_>,
) -> Result<Value<'a>, Failure> {
    let (mut best, rest) =
        list.split_first().ok_or_else(|| Failure::new(format!("{name} called on empty list")))?;
    for element in rest {
        if ordering(element, best, meter)? == better {
            best = element;
        }
    }
    Ok(best.clone())
}

pub(super) fn sum<'a>(list: List<'_, 'a>, meter: &mut Meter<'_>) -> Result<Value<'a>, Failure> {
    meter.spend(list.len())?;
    let Some((first, rest)) = list.split_first() else { return Ok(Value::Int(0)) };
    if !matches!(first, Value::Int(_) | Value::Uint(_) | Value::Double(_)) {
        return Err(no_overload());
    }
    rest.iter().try_fold(first.clone(), |sum, element| Function::Add.arithmetic(&sum, element))
}

/// Where the element is, by the first of the numbered ones that is equal; -1 is nowhere.
pub(super) fn index_of<'l, 'a: 'l>(
    numbered: impl Iterator<Item = (usize, &'l Value<'a>)>,
    element: &Value<'_>,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    for (index, one) in numbered {
        if equal(one, element, meter)? {
            return Ok(length(index));
        }
    }
    Ok(Value::Int(-1))
}

pub(super) fn join(
    list: List<'_, '_>,
    between: &str,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    let mut joined = String::new();
    for (index, element) in list.iter().enumerate() {
        let Value::Text(text) = element else { return Err(no_overload()) };
        let between = if index == 0 { "" } else { between };
        meter.spend(1)?;
        meter.spend_on(between.len() + text.as_str().len())?;
        joined.push_str(between);
        joined.push_str(text.as_str());
        if joined.len() > LONGEST_TEXT {
            return Err(Failure::Cost);
        }
    }
    Ok(Value::owned(joined))
}

pub(super) fn has(list: List<'_, '_>, element: &Value<'_>, meter: &mut Meter<'_>) -> Result<bool, Failure> {
    for one in list {
        if equal(one, element, meter)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether all of the second are in the first.
pub(super) fn has_all(
    list: List<'_, '_>,
    elements: List<'_, '_>,
    meter: &mut Meter<'_>,
) -> Result<bool, Failure> {
    for element in elements {
        if !has(list, element, meter)? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn has_any(
    list: List<'_, '_>,
    elements: List<'_, '_>,
    meter: &mut Meter<'_>,
) -> Result<bool, Failure> {
    for element in elements {
        if has(list, element, meter)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ordering(one: &Value<'_>, other: &Value<'_>, meter: &mut Meter<'_>) -> Result<Ordering, Failure> {
    meter.spend(1)?;
    compare(one, other, meter)?.ok_or_else(no_overload)
}
