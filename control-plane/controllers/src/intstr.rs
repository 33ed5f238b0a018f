//! Numbers that may be percentages: surge, unavailability, and what a disruption budget keeps. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

#[derive(Clone, Copy)]
pub(crate) enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `total`. What cannot be read counts as zero; the API refuses it.
pub(crate) fn resolve(value: &IntOrString, total: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
            percent.map_or(0, |percent: i32| share(percent, total, round))
        }
    }
}

pub(crate) fn share(percent: i32, total: i32, round: Round) -> i32 {
    let product = i64::from(percent.max(0)) * i64::from(total);
    let rounded = match round {
        Round::Up => (product + 99) / 100,
        Round::Down => product / 100,
    };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}
