//! The change of an object as each version of its kind sees it.
//!
//! Entries name fields in the version of the request that made them. Nearly all kinds have one version; events have
//! two that name their fields differently.

use serde_json::Value;

use super::{
    compare::{Comparison, compare},
    reach::Reach,
};
use crate::schema::{self, Type};

/// Turns an object of the request's version into one of another; `None` for versions that are not served.
pub type Convert<'a> = &'a (dyn Fn(&Value, &str) -> Option<Value> + Sync);

/// The type of an object, by the names that it carries.
pub(super) fn type_of(object: &Value) -> Option<&'static Type> {
    schema::type_of_object(object["apiVersion"].as_str()?, object["kind"].as_str()?)
}

/// Comparisons of two versions of an object, each made when it is first asked for.
pub(super) struct Comparisons<'a> {
    live: &'a Value,
    new: &'a Value,
    reach: Reach<'a>,
    convert: Convert<'a>,
    /// The version of the request, and others that entries have.
    made: Vec<(String, Option<Comparison>)>,
}

impl<'a> Comparisons<'a> {
    /// `None` for a kind without a type.
    pub(super) fn new(
        (live, new): (&'a Value, &'a Value),
        api_version: &str,
        reach: Reach<'a>,
        convert: Convert<'a>,
    ) -> Option<Self> {
        let first = compared(live, new, reach)?;
        Some(Self { live, new, reach, convert, made: vec![(api_version.to_owned(), Some(first))] })
    }

    /// In the version of the request.
    pub(super) fn first(&self) -> &Comparison {
        self.made[0].1.as_ref().expect("it was made at the beginning")
    }

    /// In any version; `None` where the object does not exist in it.
    pub(super) fn at(&mut self, api_version: &str) -> Option<&Comparison> {
        let found = self.made.iter().position(|(version, _)| version == api_version);
        let at = found.unwrap_or_else(|| {
            let convert = |object| (self.convert)(object, api_version);
            let converted = convert(self.live).zip(convert(self.new));
            let comparison = converted.and_then(|(live, new)| compared(&live, &new, self.reach));
            self.made.push((api_version.to_owned(), comparison));
            self.made.len() - 1
        });
        self.made[at].1.as_ref()
    }
}

fn compared(live: &Value, new: &Value, reach: Reach<'_>) -> Option<Comparison> {
    let mut comparison = compare(type_of(new)?, live, new);
    comparison.restrict(reach);
    Some(comparison)
}
