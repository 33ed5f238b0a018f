//! RBAC: who may do what, as Roles and their bindings say it (`rbac.authorization.k8s.io/v1`).
//!
//! [`rule`] is one rule and what it allows; [`index`] holds the roles and bindings as decisions look for them and follows
//! the watch cache; [`grants`] are one subject's bindings; [`cover`] compares sets of rules. [`Rbac`] is the authorizer over the index: rules only ever allow,
//! so it never denies, and it answers from memory without waiting. What a cluster has at birth is
//! [`crate::bootstrap`]'s, and who may grant what is admission's.

pub mod cover;
mod grants;
mod index;
mod rule;
mod shards;
#[cfg(test)]
mod tests;

pub use index::{Binding, Index, RoleRef, Subject};
pub use rule::{Asked, PolicyRule, Rule, quoted};

use std::{collections::HashSet, sync::Arc};

use super::{Attributes, Authorizer, Decision, Grounds, Rules, User};
use crate::cache::KindSpec;

/// The API group of the four kinds.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The authorizer. Clones share one index.
#[derive(Clone, Default)]
pub struct Rbac {
    index: Arc<Index>,
}

/// A role that a binding names and nobody has made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingRole {
    /// `clusterrole` or `role`: the word of upstream's message.
    pub kind: &'static str,
    /// Its name, without the namespace.
    pub name: String,
}

impl std::fmt::Display for MissingRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{GROUP} {:?} not found", self.kind, self.name)
    }
}

impl Rbac {
    /// Has the index told of the kind's objects, where it is one of the four.
    pub fn follow(&self, spec: KindSpec) -> KindSpec {
        match index::Sink::for_path(&self.index, &spec.path) {
            Some(sink) => KindSpec { sink: Some(Arc::new(sink)), ..spec },
            None => spec,
        }
    }

    /// The rules of `user` in `namespace` (empty: those that hold everywhere), and the roles that could not be found.
    pub fn rules_of(&self, user: &User, namespace: &str) -> (Vec<PolicyRule>, Vec<MissingRole>) {
        let (mut rules, mut missing, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let policy = self.index.policy();
        policy.visit(user, namespace, &mut |binding| -> Option<()> {
            match policy.rules(&binding.role) {
                // A role that is granted in several ways is listed once.
                Some(found) if !seen.insert(Arc::as_ptr(found)) => {}
                Some(found) => rules.extend(found.iter().map(|rule| rule.policy().clone())),
                None => missing.push(binding.role.missing()),
            }
            None
        });
        missing.sort_unstable();
        missing.dedup();
        (rules, missing)
    }

    /// The rules of a role.
    ///
    /// # Errors
    /// The role, where there is none of that name.
    pub fn rules_in(&self, role: &RoleRef) -> Result<Vec<PolicyRule>, MissingRole> {
        let policy = self.index.policy();
        let rules = policy.rules(role).ok_or_else(|| role.missing())?;
        Ok(rules.iter().map(|rule| rule.policy().clone()).collect())
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        let policy = self.index.policy();
        let (mut missing, asked) = (Vec::new(), Asked::new(attributes));
        let allowed = policy.visit(user, &attributes.namespace, &mut |binding| {
            let Some(rules) = policy.rules(&binding.role) else {
                missing.push(binding.role.missing());
                return None;
            };
            rules.iter().any(|rule| rule.allows(&asked)).then(|| binding.clone())
        });
        match allowed {
            Some(binding) => Decision::Allow(Grounds::Binding(binding)),
            None if missing.is_empty() => Decision::NoOpinion(String::new()),
            None => Decision::NoOpinion(format!("RBAC: {}", aggregate(missing))),
        }
    }

    fn rules(&self, user: &User, namespace: &str) -> Rules {
        let (rules, missing) = self.rules_of(user, namespace);
        let errors = if missing.is_empty() { Vec::new() } else { vec![aggregate(missing)] };
        Rules { rules, incomplete: false, errors }
    }
}

/// Several errors as one text, each said once: `a`, or `[a, b]`.
fn aggregate(mut missing: Vec<MissingRole>) -> String {
    missing.sort_unstable();
    missing.dedup();
    let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}
