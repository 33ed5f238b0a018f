//! Functions of texts: those of CEL's extension. Positions count characters.

use super::{
    evaluate::{Failure, Meter},
    functions::{LONGEST_TEXT, length},
    value::Value,
};

/// The character at the position; the text's end has none.
pub(super) fn char_at(text: &str, at: i64, meter: &mut Meter<'_>) -> Result<Value<'static>, Failure> {
    meter.spend_on(text.len())?;
    let start = start_of(text, at)?;
    Ok(Value::owned(text[start..].chars().next().map(String::from).unwrap_or_default()))
}

/// Where the other text is first, from the position on; -1 is nowhere.
pub(super) fn index_of(
    text: &str,
    other: &str,
    from: i64,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    meter.spend_on(text.len() + other.len())?;
    let start = start_of(text, from)?;
    Ok(position(text, text[start..].find(other).map(|found| start + found)))
}

/// Where the other text is last, not after the position; -1 is nowhere.
pub(super) fn last_index_of(
    text: &str,
    other: &str,
    from: i64,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    meter.spend_on(text.len().saturating_mul(other.len().max(1)))?;
    let start = start_of(text, from)?;
    let is_there = |at: &usize| text.as_bytes()[*at..].starts_with(other.as_bytes());
    Ok(position(text, (0..=start).rev().find(is_there)))
}

/// The parts between the separators, at most so many; a negative number is all.
pub(super) fn split(
    text: &str,
    separator: &str,
    most: i64,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    meter.spend_on(text.len() + separator.len())?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match separator {
        "" => characters(text, most),
        _ => text.splitn(most, separator).collect(),
    };
    meter.spend(parts.len())?;
    Ok(Value::list(parts.into_iter().map(Value::owned).collect()))
}

/// Replaces a text by another, at most so often; a negative number is always.
pub(super) fn replace(
    text: &str,
    from: &str,
    to: &str,
    most: i64,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    // An empty text is found everywhere.
    let longest = text.len().saturating_add(1).saturating_mul(to.len().max(1)).saturating_add(text.len());
    if longest > LONGEST_TEXT {
        return Err(Failure::Cost);
    }
    meter.spend_on(text.len() + longest)?;
    Ok(Value::owned(text.replacen(from, to, usize::try_from(most).unwrap_or(usize::MAX))))
}

pub(super) fn substring(
    text: &str,
    from: i64,
    to: i64,
    meter: &mut Meter<'_>,
) -> Result<Value<'static>, Failure> {
    meter.spend_on(text.len())?;
    let size = text.chars().count();
    let bounds = usize::try_from(from).ok().zip(usize::try_from(to).ok());
    let Some((from, to)) = bounds.filter(|(from, to)| from <= to && *to <= size) else {
        return Err(Failure::new(format!("invalid substring range. start: {from}, end: {to}")));
    };
    Ok(Value::owned(text.chars().skip(from).take(to - from).collect::<String>()))
}

/// The characters; what is beyond so many stays with the last.
fn characters(text: &str, most: usize) -> Vec<&str> {
    let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).take(most).collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| &text[*start..end]).collect()
}

/// Where the character at the position begins, in bytes; the text's end counts as one.
fn start_of(text: &str, at: i64) -> Result<usize, Failure> {
    let mut starts = text.char_indices().map(|(start, _)| start).chain([text.len()]);
    let start = usize::try_from(at).ok().and_then(|at| starts.nth(at));
    start.ok_or_else(|| Failure::new(format!("index out of range: {at}")))
}

fn position(text: &str, found: Option<usize>) -> Value<'static> {
    found.map_or(Value::Int(-1), |at| length(text[..at].chars().count()))
}
