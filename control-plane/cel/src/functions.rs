//! The functions and operators that expressions may call: those of CEL, and Kubernetes' for quantities and versions.

use std::{cmp::Ordering, sync::Arc};

use hawser_api::quantity::Quantity;
use semver::Version;

use super::{
    evaluate::{Failure, Meter, compare, equal},
    excerpt, lists,
    pattern::{Pattern, Search},
    texts,
    value::{Text, Value},
};

/// Texts that become longer are refused, whatever they cost.
pub(super) const LONGEST_TEXT: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Not,
    Negate,
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equals,
    Differs,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Size,
    Same,
    ToInt,
    ToUint,
    ToDouble,
    ToText,
    Contains,
    StartsWith,
    EndsWith,
    Lower,
    Upper,
    Trim,
    Split,
    Replace,
    Substring,
    IndexOf,
    LastIndexOf,
    CharAt,
    Join,
    Search(Search),
    IsSorted,
    Min,
    Max,
    Sum,
    SetContains,
    SetEquivalent,
    SetIntersects,
    TypeOf,
    Quantity,
    IsQuantity,
    Semver,
    IsSemver,
    IsLess,
    IsGreater,
    CompareTo,
    Sign,
    IsInteger,
    AsInteger,
    AsFloat,
    AddTo,
    SubtractFrom,
    Major,
    Minor,
    Patch,
    OptionalOf,
    OptionalNone,
    HasValue,
    ValueOf,
    OrValue,
    Or,
}

impl Function {
    /// `arguments` counts the target of a method.
    pub(super) fn find(name: &str, method: bool, arguments: usize) -> Option<Self> {
        Some(match (name, method, arguments) {
            ("!_", false, 1) => Self::Not,
            ("-_", false, 1) => Self::Negate,
            ("_+_", false, 2) => Self::Add,
            ("_-_", false, 2) => Self::Subtract,
            ("_*_", false, 2) => Self::Multiply,
            ("_/_", false, 2) => Self::Divide,
            ("_%_", false, 2) => Self::Modulo,
            ("_==_", false, 2) => Self::Equals,
            ("_!=_", false, 2) => Self::Differs,
            ("_<_", false, 2) => Self::Less,
            ("_<=_", false, 2) => Self::LessOrEqual,
            ("_>_", false, 2) => Self::Greater,
            ("_>=_", false, 2) => Self::GreaterOrEqual,
            ("@in", false, 2) => Self::In,
            ("size", _, 1) => Self::Size,
            ("dyn", false, 1) => Self::Same,
            ("int", false, 1) => Self::ToInt,
            ("uint", false, 1) => Self::ToUint,
            ("double", false, 1) => Self::ToDouble,
            ("string", false, 1) => Self::ToText,
            ("contains", true, 2) => Self::Contains,
            ("startsWith", true, 2) => Self::StartsWith,
            ("endsWith", true, 2) => Self::EndsWith,
            ("lowerAscii", true, 1) => Self::Lower,
            ("upperAscii", true, 1) => Self::Upper,
            ("trim", true, 1) => Self::Trim,
            ("split", true, 2 | 3) => Self::Split,
            ("replace", true, 3 | 4) => Self::Replace,
            ("substring", true, 2 | 3) => Self::Substring,
            ("indexOf", true, 2 | 3) => Self::IndexOf,
            ("lastIndexOf", true, 2 | 3) => Self::LastIndexOf,
            ("charAt", true, 2) => Self::CharAt,
            ("join", true, 1 | 2) => Self::Join,
            ("matches", _, 2) => Self::Search(Search::Matches),
            ("find", true, 2) => Self::Search(Search::Find),
            ("findAll", true, 2 | 3) => Self::Search(Search::FindAll),
            ("isSorted", true, 1) => Self::IsSorted,
            ("min", true, 1) => Self::Min,
            ("max", true, 1) => Self::Max,
            ("sum", true, 1) => Self::Sum,
            ("sets.contains", _, 2) => Self::SetContains,
            ("sets.equivalent", _, 2) => Self::SetEquivalent,
            ("sets.intersects", _, 2) => Self::SetIntersects,
            ("type", false, 1) => Self::TypeOf,
            ("quantity", false, 1) => Self::Quantity,
            ("isQuantity", false, 1) => Self::IsQuantity,
            ("semver", false, 1 | 2) => Self::Semver,
            ("isSemver", false, 1 | 2) => Self::IsSemver,
            ("isLessThan", true, 2) => Self::IsLess,
            ("isGreaterThan", true, 2) => Self::IsGreater,
            ("compareTo", true, 2) => Self::CompareTo,
            ("sign", true, 1) => Self::Sign,
            ("isInteger", true, 1) => Self::IsInteger,
            ("asInteger", true, 1) => Self::AsInteger,
            ("asApproximateFloat", true, 1) => Self::AsFloat,
            ("add", true, 2) => Self::AddTo,
            ("sub", true, 2) => Self::SubtractFrom,
            ("major", true, 1) => Self::Major,
            ("minor", true, 1) => Self::Minor,
            ("patch", true, 1) => Self::Patch,
            ("optional.of", _, 1) => Self::OptionalOf,
            ("optional.none", _, 0) => Self::OptionalNone,
            ("hasValue", true, 1) => Self::HasValue,
            ("value", true, 1) => Self::ValueOf,
            ("orValue", true, 2) => Self::OrValue,
            ("or", true, 2) => Self::Or,
            _ => return None,
        })
    }

    pub(super) fn call<'a>(
        self,
        arguments: &[Value<'a>],
        meter: &mut Meter<'_>,
    ) -> Result<Value<'a>, Failure> {
        match arguments {
            [] if self == Self::OptionalNone => Ok(Value::Optional(None)),
            [one] => self.of_one(one, meter),
            [one, other] => self.of_two(one, other, meter),
            [text, from, to] => self.of_three(text, from, to, meter),
            [text, from, to, Value::Int(most)] => self.of_four(text, from, to, *most, meter),
            _ => Err(no_overload()),
        }
    }

    fn of_one<'a>(self, one: &Value<'a>, meter: &mut Meter<'_>) -> Result<Value<'a>, Failure> {
        use Value::{Bool, Double, Int, Optional, Uint};
        if self == Self::TypeOf {
            return Ok(Value::Type(one.type_name()));
        }
        if let Value::Text(text) = one {
            return self.of_text(one, text, meter);
        }
        Ok(match (self, one) {
            (Self::Not, Bool(value)) => Bool(!value),
            (Self::Negate, Int(value)) => Int(value.checked_neg().ok_or_else(overflow)?),
            (Self::Negate, Double(value)) => Double(-value),
            (Self::Same, _) => one.clone(),
            (Self::Size, Value::List(list)) => length(list.len()),
            (Self::Size, Value::Map(map)) => length(map.len()),
            (Self::IsSorted, Value::List(list)) => Bool(lists::is_sorted(list, meter)?),
            (Self::Min, Value::List(list)) => lists::extreme(list, Ordering::Less, "min", meter)?,
            (Self::Max, Value::List(list)) => lists::extreme(list, Ordering::Greater, "max", meter)?,
            (Self::Sum, Value::List(list)) => lists::sum(list, meter)?,
            (Self::Join, Value::List(list)) => lists::join(list, "", meter)?,
            (Self::ToInt, Int(_)) | (Self::ToUint, Uint(_)) | (Self::ToDouble, Double(_)) => one.clone(),
            (Self::ToInt, Uint(value)) => Int(i64::try_from(*value).map_err(|_| overflow())?),
            (Self::ToInt, Double(value)) => Int(whole(*value)?),
            (Self::ToUint, Int(value)) => Uint(u64::try_from(*value).map_err(|_| overflow())?),
            (Self::ToUint, Double(value)) => Uint(u64::try_from(whole(*value)?).map_err(|_| overflow())?),
            (Self::ToDouble, Int(value)) => Double(*value as f64),
            (Self::ToDouble, Uint(value)) => Double(*value as f64),
            (Self::ToText, Bool(value)) => Value::owned(value.to_string()),
            (Self::ToText, Int(value)) => Value::owned(value.to_string()),
            (Self::ToText, Uint(value)) => Value::owned(value.to_string()),
            (Self::ToText, Double(value)) => Value::owned(value.to_string()),
            (Self::Sign, Value::Quantity(value)) => Int(i64::from(value.sign())),
            (Self::IsInteger, Value::Quantity(value)) => Bool(is_whole(*value)),
            (Self::AsInteger, Value::Quantity(value)) if is_whole(*value) => Int(value.value()),
            (Self::AsInteger, Value::Quantity(_)) => {
                return Err(Failure::new("cannot convert value to integer"));
            }
            (Self::AsFloat, Value::Quantity(value)) => Double(approximate(*value)),
            (Self::Major, Value::Semver(version)) => number(version.major)?,
            (Self::Minor, Value::Semver(version)) => number(version.minor)?,
            (Self::Patch, Value::Semver(version)) => number(version.patch)?,
            (Self::OptionalOf, _) => Value::some(one.clone()),
            (Self::HasValue, Optional(value)) => Bool(value.is_some()),
            (Self::ValueOf, Optional(Some(value))) => (**value).clone(),
            (Self::ValueOf, Optional(None)) => return Err(Failure::new("optional.none() dereference")),
            _ => return Err(no_overload()),
        })
    }

    fn of_text<'a>(
        self,
        value: &Value<'a>,
        text: &Text<'a>,
        meter: &mut Meter<'_>,
    ) -> Result<Value<'a>, Failure> {
        let text = text.as_str();
        meter.spend_on(text.len())?;
        let unreadable = |what: &str| Failure::new(format!("cannot convert {:?} to {what}", excerpt(text)));
        Ok(match self {
            Self::Same | Self::ToText => value.clone(),
            Self::Size => length(text.chars().count()),
            Self::ToInt => Value::Int(text.parse().map_err(|_| unreadable("int"))?),
            Self::ToUint => Value::Uint(text.parse().map_err(|_| unreadable("uint"))?),
            Self::ToDouble => Value::Double(text.parse().map_err(|_| unreadable("double"))?),
            Self::Lower => Value::owned(text.to_ascii_lowercase()),
            Self::Upper => Value::owned(text.to_ascii_uppercase()),
            Self::Trim => Value::owned(text.trim()),
            Self::Quantity => {
                Value::Quantity(text.parse().map_err(|error| Failure::new(format!("{error}")))?)
            }
            Self::IsQuantity => Value::Bool(text.parse::<Quantity>().is_ok()),
            Self::Semver => Value::Semver(version(text, false)?),
            Self::IsSemver => Value::Bool(version(text, false).is_ok()),
            Self::OptionalOf => Value::some(value.clone()),
            _ => return Err(no_overload()),
        })
    }

    fn of_two<'a>(
        self,
        one: &Value<'a>,
        other: &Value<'a>,
        meter: &mut Meter<'_>,
    ) -> Result<Value<'a>, Failure> {
        use Value::{Bool, Int, Optional, Text as Words};
        let ordering = |meter: &mut Meter<'_>| compare(one, other, meter)?.ok_or_else(no_overload);
        Ok(match (self, one, other) {
            (Self::Equals, ..) => Bool(equal(one, other, meter)?),
            (Self::Differs, ..) => Bool(!equal(one, other, meter)?),
            (Self::Less, ..) => Bool(ordering(meter)? == Ordering::Less),
            (Self::LessOrEqual, ..) => Bool(ordering(meter)? != Ordering::Greater),
            (Self::Greater, ..) => Bool(ordering(meter)? == Ordering::Greater),
            (Self::GreaterOrEqual, ..) => Bool(ordering(meter)? != Ordering::Less),
            (Self::IsLess, ..) => Bool(of_kubernetes(one, other)? == Ordering::Less),
            (Self::IsGreater, ..) => Bool(of_kubernetes(one, other)? == Ordering::Greater),
            (Self::CompareTo, ..) => Int(of_kubernetes(one, other)? as i64),
            (Self::AddTo, Value::Quantity(one), _) => Value::Quantity(*one + amount(other)?),
            (Self::SubtractFrom, Value::Quantity(one), _) => Value::Quantity(*one - amount(other)?),
            (Self::In, _, Value::List(list)) => Bool(lists::has(list, one, meter)?),
            (Self::IndexOf, Value::List(list), _) => lists::index_of(list.iter().enumerate(), other, meter)?,
            (Self::LastIndexOf, Value::List(list), _) => {
                lists::index_of(list.iter().enumerate().rev(), other, meter)?
            }
            (Self::Join, Value::List(list), Words(between)) => lists::join(list, between.as_str(), meter)?,
            (Self::SetContains, Value::List(one), Value::List(other)) => {
                Bool(lists::has_all(one, other, meter)?)
            }
            (Self::SetEquivalent, Value::List(one), Value::List(other)) => {
                Bool(lists::has_all(one, other, meter)? && lists::has_all(other, one, meter)?)
            }
            (Self::SetIntersects, Value::List(one), Value::List(other)) => {
                Bool(lists::has_any(one, other, meter)?)
            }
            (Self::In, _, Value::Map(map)) => {
                for (key, _) in map.iter() {
                    if equal(one, key, meter)? {
                        return Ok(Bool(true));
                    }
                }
                Bool(false)
            }
            (Self::Add, Value::List(one), Value::List(other)) => {
                meter.spend(one.len() + other.len())?;
                Value::list(one.iter().chain(other.iter()).cloned().collect())
            }
            (Self::Semver, Words(text), Bool(lenient)) => Value::Semver(version(text.as_str(), *lenient)?),
            (Self::IsSemver, Words(text), Bool(lenient)) => Bool(version(text.as_str(), *lenient).is_ok()),
            (Self::OrValue, Optional(value), _) => {
                value.as_ref().map_or_else(|| other.clone(), |value| (**value).clone())
            }
            (Self::Or, Optional(value), Optional(_)) if value.is_some() => one.clone(),
            (Self::Or, Optional(_), Optional(_)) => other.clone(),
            (Self::CharAt, Words(text), Int(at)) => texts::char_at(text.as_str(), *at, meter)?,
            (Self::Search(how), Words(text), Words(pattern)) => {
                Pattern::computed(pattern.as_str(), meter)?.search(how, text.as_str(), None, meter)?
            }
            (_, Words(one), Words(other)) => self.of_texts(one.as_str(), other.as_str(), meter)?,
            (Self::Substring, Words(text), Int(from)) => {
                let end = i64::try_from(text.as_str().chars().count()).unwrap_or(i64::MAX);
                texts::substring(text.as_str(), *from, end, meter)?
            }
            _ => self.arithmetic(one, other)?,
        })
    }

    fn of_texts(self, one: &str, other: &str, meter: &mut Meter<'_>) -> Result<Value<'static>, Failure> {
        meter.spend_on(one.len() + other.len())?;
        Ok(match self {
            Self::Add => {
                if one.len() + other.len() > LONGEST_TEXT {
                    return Err(Failure::Cost);
                }
                Value::owned([one, other].concat())
            }
            Self::Contains => Value::Bool(one.contains(other)),
            Self::StartsWith => Value::Bool(one.starts_with(other)),
            Self::EndsWith => Value::Bool(one.ends_with(other)),
            Self::IndexOf => match one.find(other) {
                Some(at) => length(one[..at].chars().count()),
                None => Value::Int(-1),
            },
            Self::LastIndexOf => match one.rfind(other) {
                Some(at) => length(one[..at].chars().count()),
                None => Value::Int(-1),
            },
            Self::Split => texts::split(one, other, -1, meter)?,
            _ => return Err(no_overload()),
        })
    }

    fn of_three<'a>(
        self,
        text: &Value<'a>,
        from: &Value<'a>,
        to: &Value<'a>,
        meter: &mut Meter<'_>,
    ) -> Result<Value<'a>, Failure> {
        match (self, text, from, to) {
            (Self::Substring, Value::Text(text), Value::Int(from), Value::Int(to)) => {
                texts::substring(text.as_str(), *from, *to, meter)
            }
            (Self::Replace, Value::Text(_), Value::Text(_), Value::Text(_)) => {
                self.of_four(text, from, to, -1, meter)
            }
            (Self::Split, Value::Text(text), Value::Text(separator), Value::Int(most)) => {
                texts::split(text.as_str(), separator.as_str(), *most, meter)
            }
            (Self::IndexOf, Value::Text(text), Value::Text(other), Value::Int(from)) => {
                texts::index_of(text.as_str(), other.as_str(), *from, meter)
            }
            (Self::LastIndexOf, Value::Text(text), Value::Text(other), Value::Int(from)) => {
                texts::last_index_of(text.as_str(), other.as_str(), *from, meter)
            }
            (Self::Search(how), Value::Text(text), Value::Text(pattern), Value::Int(most)) => {
                Pattern::computed(pattern.as_str(), meter)?.search(how, text.as_str(), Some(*most), meter)
            }
            _ => Err(no_overload()),
        }
    }

    fn of_four<'a>(
        self,
        text: &Value<'a>,
        from: &Value<'a>,
        to: &Value<'a>,
        most: i64,
        meter: &mut Meter<'_>,
    ) -> Result<Value<'a>, Failure> {
        match (self, text, from, to) {
            (Self::Replace, Value::Text(text), Value::Text(from), Value::Text(to)) => {
                texts::replace(text.as_str(), from.as_str(), to.as_str(), most, meter)
            }
            _ => Err(no_overload()),
        }
    }

    pub(super) fn arithmetic<'a>(self, one: &Value<'a>, other: &Value<'a>) -> Result<Value<'a>, Failure> {
        let zero = |what: &str| Failure::new(format!("{what} by zero"));
        match (one, other) {
            (Value::Int(one), Value::Int(other)) => {
                let result = match self {
                    Self::Add => one.checked_add(*other),
                    Self::Subtract => one.checked_sub(*other),
                    Self::Multiply => one.checked_mul(*other),
                    Self::Divide if *other == 0 => return Err(zero("division")),
                    Self::Modulo if *other == 0 => return Err(zero("modulus")),
                    Self::Divide => one.checked_div(*other),
                    Self::Modulo => one.checked_rem(*other),
                    _ => return Err(no_overload()),
                };
                result.map(Value::Int).ok_or_else(overflow)
            }
            (Value::Uint(one), Value::Uint(other)) => {
                let result = match self {
                    Self::Add => one.checked_add(*other),
                    Self::Subtract => one.checked_sub(*other),
                    Self::Multiply => one.checked_mul(*other),
                    Self::Divide => Some(one.checked_div(*other).ok_or_else(|| zero("division"))?),
                    Self::Modulo => Some(one.checked_rem(*other).ok_or_else(|| zero("modulus"))?),
                    _ => return Err(no_overload()),
                };
                result.map(Value::Uint).ok_or_else(overflow)
            }
            (Value::Double(one), Value::Double(other)) => Ok(Value::Double(match self {
                Self::Add => one + other,
                Self::Subtract => one - other,
                Self::Multiply => one * other,
                Self::Divide => one / other,
                _ => return Err(no_overload()),
            })),
            _ => Err(no_overload()),
        }
    }
}

/// Orders quantities, and versions, by their precedence.
fn of_kubernetes(one: &Value<'_>, other: &Value<'_>) -> Result<Ordering, Failure> {
    match (one, other) {
        (Value::Quantity(one), Value::Quantity(other)) => Ok(one.cmp(other)),
        (Value::Semver(one), Value::Semver(other)) => Ok(one.cmp_precedence(other)),
        _ => Err(no_overload()),
    }
}

fn amount(value: &Value<'_>) -> Result<Quantity, Failure> {
    match value {
        Value::Quantity(quantity) => Ok(*quantity),
        Value::Int(units) => Ok(Quantity::from_units(*units, hawser_api::quantity::Format::DecimalSi)),
        _ => Err(no_overload()),
    }
}

fn is_whole(quantity: Quantity) -> bool {
    let rounded = quantity.value();
    Quantity::from_units(rounded, quantity.format()) == quantity
}

fn approximate(quantity: Quantity) -> f64 {
    if is_whole(quantity) { quantity.value() as f64 } else { quantity.milli_value() as f64 / 1000.0 }
}

/// A version, exact or with a leading `v`, leading zeros and missing parts, as upstream's second argument allows.
pub(super) fn version(text: &str, lenient: bool) -> Result<Arc<Version>, Failure> {
    let parsed = if lenient { Version::parse(&normalized(text)) } else { Version::parse(text) };
    parsed.map(Arc::new).map_err(|error| Failure::new(format!("parse semantic version: {error}")))
}

fn normalized(text: &str) -> String {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut parts: Vec<&str> = numbers.splitn(3, '.').collect();
    parts.resize(3, "0");
    let plain = |part: &&str| {
        let trimmed = part.trim_start_matches('0');
        if trimmed.is_empty() && !part.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
    };
    parts.iter().map(plain).collect::<Vec<_>>().join(".") + rest
}

pub(super) fn length(count: usize) -> Value<'static> {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

fn number(part: u64) -> Result<Value<'static>, Failure> {
    i64::try_from(part).map(Value::Int).map_err(|_| overflow())
}

fn whole(value: f64) -> Result<i64, Failure> {
    // Both ends are exact in a double; the upper one is the first that does not fit.
    if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&value) {
        return Ok(value as i64);
    }
    Err(overflow())
}

pub(super) fn no_overload() -> Failure {
    Failure::new("no such overload")
}

fn overflow() -> Failure {
    Failure::new("integer overflow")
}
