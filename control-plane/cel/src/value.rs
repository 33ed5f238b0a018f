//! Values of expressions.

use std::sync::Arc;

use hawser_api::quantity::Quantity;
use semver::Version;

/// A value; what it borrows is the device's or the program's.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    List(Arc<Vec<Value<'a>>>),
    Map(Arc<Vec<(Value<'a>, Value<'a>)>>),
    Quantity(Quantity),
    Semver(Arc<Version>),
    Optional(Option<Arc<Value<'a>>>),
    /// The type of a value, by its name.
    Type(&'static str),
    /// The variable `device`.
    Device,
    /// `device.attributes` or `device.capacity`: by domain.
    Domains(Fields),
    /// What the device has of one domain.
    Domain(Fields, Text<'a>),
}

#[derive(Clone, Debug)]
pub(super) enum Text<'a> {
    Borrowed(&'a str),
    Owned(Arc<str>),
}

/// Which fields of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fields {
    Attributes,
    Capacity,
}

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

impl<'a> Value<'a> {
    pub(super) fn borrowed(text: &'a str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    pub(super) fn owned(text: impl Into<Arc<str>>) -> Self {
        Self::Text(Text::Owned(text.into()))
    }

    pub(super) fn list(values: Vec<Self>) -> Self {
        Self::List(Arc::new(values))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// As upstream's messages call it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Map(_) | Self::Domains(_) | Self::Domain(..) => "map",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Device => "kubernetes.DRADevice",
        }
    }
}
