//! Label and field selectors: reading, printing, matching.
//!
//! The text form is that of `?labelSelector=` (`app=web,tier in (a,b),!canary`), the structured form that of
//! `metav1.LabelSelector`. Messages are worded as upstream's. Requirements are open to callers, so that
//! indexes can answer the ones they know. Follows `k8s.io/apimachinery/pkg/labels` and `pkg/fields`.

mod field;
mod parse;

pub use field::{FieldRequirement, FieldSelector};

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

use crate::{Error, validation};

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repeats; empty for the operators that look at the key alone.
    pub values: Vec<String>,
}

/// A conjunction of requirements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// A selector that is absent matches nothing, an empty one everything.
    nothing: bool,
}

/// Labels, in any of the forms that the code holds them in.
pub trait Labels {
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for Map<String, Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl<L: Labels> Labels for Option<&L> {
    fn label(&self, key: &str) -> Option<&str> {
        self.and_then(|labels| labels.label(key))
    }
}

impl Requirement {
    /// Checks the key, the values and that they fit the operator.
    pub fn new(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = String>,
    ) -> Result<Self, Error> {
        let mut values: Vec<String> = values.into_iter().collect();
        values.sort();
        values.dedup();
        check_key(key)?;
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return Err(bad(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
                ));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return Err(bad(
                    "values: Invalid value: values set must be empty for exists and does not exist",
                ));
            }
            Operator::GreaterThan | Operator::LessThan => match values.as_slice() {
                [one] if one.parse::<i64>().is_ok() => {}
                [one] => {
                    let message = "for 'Gt', 'Lt' operators, the value must be an integer";
                    return Err(bad(format!("values[0]: Invalid value: {one:?}: {message}")));
                }
                _ => {
                    return Err(bad(
                        "values: Invalid value: for 'Gt', 'Lt' operators, exactly one value is required",
                    ));
                }
            },
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            let errors = validation::label_value(value);
            if !errors.is_empty() {
                return Err(bad(format!(
                    "values[{index}][{key}]: Invalid value: {value:?}: {}",
                    errors.join("; ")
                )));
            }
        }
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether the labels fulfil it. A label that is absent is "not in" any set.
    pub fn matches(&self, labels: &impl Labels) -> bool {
        let value = labels.label(&self.key);
        let is_listed = |value: &str| self.values.iter().any(|listed| listed == value);
        match self.operator {
            Operator::In => value.is_some_and(is_listed),
            Operator::NotIn => !value.is_some_and(is_listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => self.compare(value, |found, bound| found > bound),
            Operator::LessThan => self.compare(value, |found, bound| found < bound),
        }
    }

    fn compare(&self, value: Option<&str>, holds: fn(i64, i64) -> bool) -> bool {
        let found = value.and_then(|value| value.parse().ok());
        let bound = self.values.first().and_then(|value| value.parse().ok());
        found.zip(bound).is_some_and(|(found, bound)| holds(found, bound))
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    let errors = validation::qualified_name(key);
    if errors.is_empty() {
        return Ok(());
    }
    Err(bad(format!("<nil>: Invalid value: {key:?}: {}", errors.join("; "))))
}

fn bad(message: impl Into<String>) -> Error {
    Error::bad_request(message)
}

impl LabelSelector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads the text form; empty matches everything. Errors are BadRequest (400).
    pub fn parse(text: &str) -> Result<Self, Error> {
        parse::requirements(text).map(Self::from_requirements)
    }

    /// Sorted by key, as upstream keeps them.
    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// The structured form of typed objects; an absent one matches nothing.
    pub fn from_typed(selector: Option<&meta::LabelSelector>) -> Result<Self, Error> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::In, [value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.iter().flatten().cloned();
            requirements.push(Requirement::new(&expression.key, operator(&expression.operator)?, values)?);
        }
        Ok(Self::from_requirements(requirements))
    }

    /// The structured form as JSON; null or absent matches nothing.
    pub fn from_value(selector: Option<&Value>) -> Result<Self, Error> {
        match selector {
            None | Some(Value::Null) => Ok(Self::nothing()),
            Some(value) => {
                let typed = serde::Deserialize::deserialize(value)
                    .map_err(|error| bad(format!("selector: {error}")))?;
                Self::from_typed(Some(&typed))
            }
        }
    }

    /// The plain map of a Service or a ReplicationController, all of whose entries must match; an empty one
    /// matches everything.
    pub fn from_map(labels: &BTreeMap<String, String>) -> Self {
        let equals = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        };
        Self::from_requirements(labels.iter().map(equals).collect())
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Every object matches, so nothing need be looked at.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn matches(&self, labels: &impl Labels) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether an object's `metadata.labels` match.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels =
            object.get("metadata").and_then(|metadata| metadata.get("labels")).and_then(Value::as_object);
        self.matches(&labels)
    }
}

fn operator(name: &str) -> Result<Operator, Error> {
    match name {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        _ => Err(bad(format!("{name:?} is not a valid label selector operator"))),
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.operator, self.values.as_slice()) {
            (Operator::In, [one]) => write!(f, "{key}={one}"),
            (Operator::In, many) => write!(f, "{key} in ({})", many.join(",")),
            (Operator::NotIn, [one]) => write!(f, "{key}!={one}"),
            (Operator::NotIn, many) => write!(f, "{key} notin ({})", many.join(",")),
            (Operator::Exists, _) => f.write_str(key),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::GreaterThan, many) => write!(f, "{key}>{}", many.join(",")),
            (Operator::LessThan, many) => write!(f, "{key}<{}", many.join(",")),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
