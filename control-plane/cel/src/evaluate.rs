//! Evaluates an expression for one device, at a cost that is bounded.

use std::{cmp::Ordering, sync::Arc};

use hawser_api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

use super::{
    compile::{Comprehension, Node},
    excerpt,
    functions::{no_overload, version},
    value::{Fields, Text, Value},
};

/// Bytes of text that cost as much as a step.
const BYTES: usize = 10;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The expression's own mistake, in upstream's words. Logical operators may get over it.
    Runtime(Arc<str>),
    /// The expression costs more than one may.
    Cost,
    /// What may be spent on one pod is spent.
    Budget,
}

impl Failure {
    pub(super) fn new(message: impl AsRef<str>) -> Self {
        Self::Runtime(excerpt(message.as_ref()).into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runtime(message) => to.write_str(message),
            Self::Cost | Self::Budget => to.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

/// What may be spent.
pub(super) struct Meter<'m>(&'m mut u64);

impl Meter<'_> {
    pub(super) fn spend(&mut self, units: usize) -> Result<(), Failure> {
        match self.0.checked_sub(u64::try_from(units).unwrap_or(u64::MAX)) {
            Some(left) => {
                *self.0 = left;
                Ok(())
            }
            None => {
                *self.0 = 0;
                Err(Failure::Cost)
            }
        }
    }

    /// For work on text.
    pub(super) fn spend_on(&mut self, bytes: usize) -> Result<(), Failure> {
        self.spend(bytes / BYTES)
    }
}

pub(super) fn evaluate(
    root: &Node,
    variables: usize,
    driver: &str,
    device: &Device,
    budget: &mut u64,
) -> Result<bool, Failure> {
    let variables = vec![Ok(Value::Null); variables];
    let mut evaluator = Evaluator { driver, device, variables, alive: 0, meter: Meter(budget) };
    match evaluator.value(root)? {
        Value::Bool(answer) => Ok(answer),
        other => Err(Failure::new(format!(
            "CEL result of type {} could not be converted to bool",
            other.type_name()
        ))),
    }
}

struct Evaluator<'a, 'm> {
    driver: &'a str,
    device: &'a Device,
    /// A variable may hold a failure: it is one only where it is read.
    variables: Vec<Result<Value<'a>, Failure>>,
    alive: usize,
    meter: Meter<'m>,
}

impl<'a> Evaluator<'a, '_> {
    fn value(&mut self, node: &'a Node) -> Result<Value<'a>, Failure> {
        self.meter.spend(1)?;
        match node {
            Node::Literal(value) => Ok(value.clone()),
            Node::Device => Ok(Value::Device),
            Node::Variable(place) => self.variables[*place].clone(),
            Node::Select { of, field, test, optional } => {
                let of = self.value(of)?;
                self.select(of, field, *test, *optional)
            }
            Node::Index { of, key, optional } => {
                let of = self.value(of)?;
                let key = self.value(key)?;
                self.index(of, &key, *optional)
            }
            Node::List(nodes) => {
                let values: Result<Vec<_>, _> = nodes.iter().map(|node| self.value(node)).collect();
                Ok(Value::list(values?))
            }
            Node::Map(entries) => {
                let mut map = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    map.push((self.value(key)?, self.value(value)?));
                }
                Ok(Value::Map(map.into()))
            }
            Node::And(one, other) => self.logical(one, other, false),
            Node::Or(one, other) => self.logical(one, other, true),
            Node::Conditional(condition, one, other) => match self.value(condition)? {
                Value::Bool(true) => self.value(one),
                Value::Bool(false) => self.value(other),
                _ => Err(no_overload()),
            },
            Node::NotStrictlyFalse(node) => match self.value(node) {
                Err(failure) if is_fatal(&failure) => Err(failure),
                Ok(Value::Bool(false)) => Ok(Value::Bool(false)),
                _ => Ok(Value::Bool(true)),
            },
            Node::Call(function, nodes) => {
                // In place of a list: most have one or two.
                let mut values = Vec::with_capacity(nodes.len());
                for node in nodes {
                    values.push(self.plain(node)?);
                }
                function.call(&values, &mut self.meter)
            }
            Node::Search { how, pattern, text, most } => {
                let text = self.value(text)?;
                let most = most.as_ref().map(|most| self.value(most)).transpose()?;
                match (&text, most) {
                    (Value::Text(text), None) => pattern.search(*how, text.as_str(), None, &mut self.meter),
                    (Value::Text(text), Some(Value::Int(most))) => {
                        pattern.search(*how, text.as_str(), Some(most), &mut self.meter)
                    }
                    _ => Err(no_overload()),
                }
            }
            Node::Comprehension(comprehension) => self.comprehension(comprehension),
            Node::Bind(bound, body) => {
                let bound = self.value(bound)?;
                let place = self.alive;
                self.variables[place] = Ok(bound);
                self.alive += 1;
                let value = self.value(body);
                self.alive -= 1;
                value
            }
        }
    }

    /// The value; fields of the device, where a function is to work on them, as a map.
    fn plain(&mut self, node: &'a Node) -> Result<Value<'a>, Failure> {
        let value = self.value(node)?;
        match &value {
            Value::Domains(_) | Value::Domain(..) => {
                let entries: Vec<_> = self.entries(&value)?;
                Ok(Value::Map(entries.into()))
            }
            _ => Ok(value),
        }
    }

    /// The first side that decides wins, whichever it is; a failure stands only where neither does.
    fn logical(&mut self, one: &'a Node, other: &'a Node, decides: bool) -> Result<Value<'a>, Failure> {
        let first = match self.value(one) {
            Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
            Err(failure) if is_fatal(&failure) => return Err(failure),
            Ok(Value::Bool(_)) => None,
            Ok(_) => Some(no_overload()),
            Err(failure) => Some(failure),
        };
        match (self.value(other), first) {
            (Ok(Value::Bool(value)), _) if value == decides => Ok(Value::Bool(decides)),
            (Err(failure), _) if is_fatal(&failure) => Err(failure),
            (_, Some(failure)) => Err(failure),
            (Ok(Value::Bool(value)), None) => Ok(Value::Bool(value)),
            (Ok(_), None) => Err(no_overload()),
            (Err(failure), None) => Err(failure),
        }
    }

    fn comprehension(&mut self, made: &'a Comprehension) -> Result<Value<'a>, Failure> {
        let over = self.value(&made.over)?;
        let elements: Vec<(Value<'a>, Value<'a>)> = match &over {
            Value::List(list) => {
                self.meter.spend(list.len())?;
                let numbered = (0_i64..).zip(list.iter());
                numbered.map(|(index, value)| (Value::Int(index), value.clone())).collect()
            }
            Value::Map(_) | Value::Domains(_) | Value::Domain(..) => self.entries(&over)?,
            _ => return Err(no_overload()),
        };
        let is_list = matches!(over, Value::List(_));
        let (element, second, result) = (made.first, made.first + 1, made.first + 2);
        let start = self.value(&made.start)?;
        let before = self.alive;
        self.alive = result + 1;
        self.variables[result] = Ok(start);
        let mut outcome = Ok(());
        for (key, value) in elements {
            // One name stands for the element of a list, and for the key of a map.
            self.variables[element] = Ok(if made.pairs || !is_list { key } else { value.clone() });
            self.variables[second] = Ok(value);
            match self.value(&made.goes_on) {
                Ok(Value::Bool(true)) => (),
                Ok(Value::Bool(false)) => break,
                Ok(_) => outcome = Err(no_overload()),
                Err(failure) => outcome = Err(failure),
            }
            if outcome.is_err() {
                break;
            }
            let step = self.value(&made.step);
            if let Err(failure) = &step
                && is_fatal(failure)
            {
                outcome = Err(failure.clone());
                break;
            }
            self.variables[result] = step;
        }
        let value = outcome.and_then(|()| self.value(&made.result));
        self.alive = before;
        value
    }

    fn select(
        &self,
        of: Value<'a>,
        field: &'a str,
        test: bool,
        optional: bool,
    ) -> Result<Value<'a>, Failure> {
        if let Value::Optional(inner) = &of {
            // Fields of an optional value are optional themselves.
            return match inner {
                Some(value) if test => self.select((**value).clone(), field, true, false),
                Some(value) => self.select((**value).clone(), field, false, true),
                None if test => Ok(Value::Bool(false)),
                None => Ok(Value::Optional(None)),
            };
        }
        let found = self.field(&of, field)?;
        match found {
            _ if test => Ok(Value::Bool(found.is_some())),
            Some(value) if optional => Ok(Value::some(value)),
            None if optional => Ok(Value::Optional(None)),
            Some(value) => Ok(value),
            None => Err(Failure::new(format!("no such key: {field}"))),
        }
    }

    fn field(&self, of: &Value<'a>, field: &'a str) -> Result<Option<Value<'a>>, Failure> {
        match of {
            Value::Device => Ok(Some(match field {
                "driver" => Value::borrowed(self.driver),
                "attributes" => Value::Domains(Fields::Attributes),
                "capacity" => Value::Domains(Fields::Capacity),
                "allowMultipleAllocations" => {
                    Value::Bool(self.device.allow_multiple_allocations.unwrap_or_default())
                }
                _ => return Err(Failure::new(format!("no such key: {field}"))),
            })),
            Value::Domains(fields) => Ok(Some(Value::Domain(*fields, Text::Borrowed(field)))),
            Value::Domain(fields, domain) => self.of_domain(*fields, domain.as_str(), field),
            Value::Map(map) => {
                let is_it = |key: &Value<'a>| matches!(key, Value::Text(text) if text.as_str() == field);
                Ok(map.iter().find(|(key, _)| is_it(key)).map(|(_, value)| value.clone()))
            }
            _ => Err(no_overload()),
        }
    }

    fn index(&mut self, of: Value<'a>, key: &Value<'a>, optional: bool) -> Result<Value<'a>, Failure> {
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(inner)) => ((*inner).clone(), true),
            of => (of, optional),
        };
        let found = match (&of, key) {
            (Value::List(list), Value::Int(index)) => {
                usize::try_from(*index).ok().and_then(|index| list.get(index)).cloned()
            }
            (Value::Map(map), _) => {
                let mut found = None;
                for (known, value) in map.iter() {
                    if equal(known, key, &mut self.meter)? {
                        found = Some(value.clone());
                    }
                }
                found
            }
            (Value::Domains(fields), Value::Text(domain)) => Some(Value::Domain(*fields, domain.clone())),
            (Value::Domain(fields, domain), Value::Text(name)) => {
                self.of_domain(*fields, domain.as_str(), name.as_str())?
            }
            _ => return Err(no_overload()),
        };
        match (found, key) {
            (Some(value), _) if optional => Ok(Value::some(value)),
            (None, _) if optional => Ok(Value::Optional(None)),
            (Some(value), _) => Ok(value),
            (None, Value::Int(index)) if matches!(of, Value::List(_)) => {
                Err(Failure::new(format!("index out of bounds: {index}")))
            }
            (None, Value::Text(name)) => Err(Failure::new(format!("no such key: {}", name.as_str()))),
            (None, _) => Err(Failure::new("no such key")),
        }
    }

    /// A field of the device. Those without a domain are of the driver's.
    fn of_domain(&self, fields: Fields, domain: &str, name: &str) -> Result<Option<Value<'a>>, Failure> {
        let is_own = domain == self.driver;
        match fields {
            Fields::Attributes => {
                let Some(all) = &self.device.attributes else { return Ok(None) };
                let found = if is_own { all.get(name) } else { None };
                let found = found.or_else(|| all.get(&format!("{domain}/{name}")));
                found.map(attribute).transpose()
            }
            Fields::Capacity => {
                let Some(all) = &self.device.capacity else { return Ok(None) };
                let found = if is_own { all.get(name) } else { None };
                let found = found.or_else(|| all.get(&format!("{domain}/{name}")));
                found.map(|capacity| quantity(&capacity.value.0)).transpose()
            }
        }
    }

    /// Keys and values of a map.
    fn entries(&mut self, map: &Value<'a>) -> Result<Vec<(Value<'a>, Value<'a>)>, Failure> {
        let device = self.device;
        let names = |fields: Fields| -> Vec<&'a str> {
            match fields {
                Fields::Attributes => {
                    device.attributes.iter().flatten().map(|(name, _)| name.as_str()).collect()
                }
                Fields::Capacity => device.capacity.iter().flatten().map(|(name, _)| name.as_str()).collect(),
            }
        };
        let entries: Vec<(Value<'a>, Value<'a>)> = match map {
            Value::Map(map) => map.to_vec(),
            Value::Domains(fields) => {
                let mut domains: Vec<&'a str> =
                    names(*fields).into_iter().map(|name| parts(name, self.driver).0).collect();
                domains.sort_unstable();
                domains.dedup();
                let entry =
                    |domain| (Value::borrowed(domain), Value::Domain(*fields, Text::Borrowed(domain)));
                domains.into_iter().map(entry).collect()
            }
            Value::Domain(fields, domain) => {
                let mut entries = Vec::new();
                for (of, name) in names(*fields).into_iter().map(|name| parts(name, self.driver)) {
                    if of == domain.as_str()
                        && let Some(value) = self.of_domain(*fields, of, name)?
                    {
                        entries.push((Value::borrowed(name), value));
                    }
                }
                entries
            }
            _ => return Err(no_overload()),
        };
        self.meter.spend(entries.len())?;
        Ok(entries)
    }
}

/// Domain and name.
fn parts<'a>(name: &'a str, driver: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

fn attribute(attribute: &DeviceAttribute) -> Result<Value<'_>, Failure> {
    Ok(match attribute {
        DeviceAttribute { int: Some(value), .. } => Value::Int(*value),
        DeviceAttribute { bool: Some(value), .. } => Value::Bool(*value),
        DeviceAttribute { string: Some(value), .. } => Value::borrowed(value),
        DeviceAttribute { version: Some(value), .. } => Value::Semver(version(value, false)?),
        _ => return Err(Failure::new("unsupported attribute value")),
    })
}

fn quantity(text: &str) -> Result<Value<'static>, Failure> {
    let parsed: Result<Quantity, _> = text.parse();
    parsed.map(Value::Quantity).map_err(|error| Failure::new(error.to_string()))
}

/// No operator gets over it.
fn is_fatal(failure: &Failure) -> bool {
    !matches!(failure, Failure::Runtime(_))
}

/// Values of different types differ, but numbers are compared as numbers.
pub(super) fn equal(one: &Value<'_>, other: &Value<'_>, meter: &mut Meter<'_>) -> Result<bool, Failure> {
    meter.spend(1)?;
    Ok(match (one, other) {
        (Value::Null, Value::Null) | (Value::Device, Value::Device) => true,
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::Type(one), Value::Type(other)) => one == other,
        (Value::Text(one), Value::Text(other)) => {
            meter.spend_on(one.as_str().len().min(other.as_str().len()))?;
            one.as_str() == other.as_str()
        }
        (Value::Quantity(one), Value::Quantity(other)) => one == other,
        (Value::Semver(one), Value::Semver(other)) => one.cmp_precedence(other) == Ordering::Equal,
        (Value::List(one), Value::List(other)) => {
            if one.len() != other.len() {
                return Ok(false);
            }
            for (one, other) in one.iter().zip(other.iter()) {
                if !equal(one, other, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(one), Value::Map(other)) => {
            if one.len() != other.len() {
                return Ok(false);
            }
            for (key, value) in one.iter() {
                let mut found = false;
                for (other_key, other_value) in other.iter() {
                    found |= equal(key, other_key, meter)? && equal(value, other_value, meter)?;
                }
                if !found {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Optional(one), Value::Optional(other)) => match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => equal(one, other, meter)?,
            _ => false,
        },
        _ => numbers(one, other) == Some(Ordering::Equal),
    })
}

/// `None` where the two have no order.
pub(super) fn compare(
    one: &Value<'_>,
    other: &Value<'_>,
    meter: &mut Meter<'_>,
) -> Result<Option<Ordering>, Failure> {
    Ok(match (one, other) {
        (Value::Bool(one), Value::Bool(other)) => Some(one.cmp(other)),
        (Value::Text(one), Value::Text(other)) => {
            meter.spend_on(one.as_str().len().min(other.as_str().len()))?;
            Some(one.as_str().cmp(other.as_str()))
        }
        _ => numbers(one, other),
    })
}

fn numbers(one: &Value<'_>, other: &Value<'_>) -> Option<Ordering> {
    use Value::{Double, Int, Uint};
    Some(match (one, other) {
        (Int(one), Int(other)) => one.cmp(other),
        (Uint(one), Uint(other)) => one.cmp(other),
        (Int(one), Uint(other)) => i128::from(*one).cmp(&i128::from(*other)),
        (Uint(one), Int(other)) => i128::from(*one).cmp(&i128::from(*other)),
        (Double(one), Double(other)) => return one.partial_cmp(other),
        (Double(one), Int(other)) => return one.partial_cmp(&(*other as f64)),
        (Double(one), Uint(other)) => return one.partial_cmp(&(*other as f64)),
        (Int(one), Double(other)) => return (*one as f64).partial_cmp(other),
        (Uint(one), Double(other)) => return (*one as f64).partial_cmp(other),
        _ => return None,
    })
}
