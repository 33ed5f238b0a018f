//! Constraints among the devices of a claim: all with one value of an attribute, or each with another.

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

use super::objects::Entry;

/// A constraint with the devices that were picked so far.
#[derive(Debug)]
pub(super) struct Constraint {
    requests: Vec<String>,
    attribute: String,
    distinct: bool,
    picked: Vec<DeviceAttribute>,
}

impl Constraint {
    /// `None` where it is of a kind that is not known.
    pub(super) fn of(constraint: &DeviceConstraint) -> Option<Self> {
        let (attribute, distinct) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
            (Some(attribute), _) => (attribute, false),
            (None, Some(attribute)) => (attribute, true),
            (None, None) => return None,
        };
        Some(Self {
            requests: constraint.requests.clone().unwrap_or_default(),
            attribute: attribute.clone(),
            distinct,
            picked: Vec::new(),
        })
    }

    /// Picks the device, unless the constraint forbids it. One that lacks the attribute never satisfies.
    pub(super) fn pick(&mut self, request: &str, full_name: &str, driver: &str, device: &Entry) -> bool {
        if !self.is_about(request, full_name) {
            return true;
        }
        let Some(attribute) = attribute_of(device, driver, &self.attribute) else {
            return false;
        };
        let fits = match self.distinct {
            true => !self.picked.contains(attribute),
            // All that were picked are equal.
            false => self.picked.first().is_none_or(|first| first == attribute),
        };
        if fits {
            self.picked.push(attribute.clone());
        }
        fits
    }

    /// Takes back the last pick.
    pub(super) fn put_back(&mut self, request: &str, full_name: &str) {
        if self.is_about(request, full_name) {
            self.picked.pop();
        }
    }

    fn is_about(&self, request: &str, full_name: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|name| name == request || name == full_name)
    }
}

/// An attribute by its full name; those without a domain are of the driver's.
fn attribute_of<'a>(device: &'a Entry, driver: &str, name: &str) -> Option<&'a DeviceAttribute> {
    let all = device.object.attributes.as_ref()?;
    let found = all.get(name).or_else(|| {
        let (domain, name) = name.split_once('/')?;
        if domain == driver { all.get(name) } else { None }
    })?;
    let is_known =
        found.string.is_some() || found.int.is_some() || found.bool.is_some() || found.version.is_some();
    is_known.then_some(found)
}
