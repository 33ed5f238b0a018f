//! The bindings of one subject, as a decision about it looks for them.
//!
//! Most subjects have a few bindings. Those stand in one block of memory, in the order in which decisions see them: what a
//! decision costs about somebody who was not seen lately is the number of places in memory that it has to wait for. The
//! few subjects with many bindings (groups that everybody is in) have trees, so that a change copies little.

use std::sync::Arc;

use super::index::Binding;
use crate::cache::CowMap;

/// Bindings that stand in one block. A change copies them.
const FEW: usize = 32;

/// A subject's bindings. Clones are snapshots.
#[derive(Clone)]
pub(super) enum Grants {
    /// In the order of [`Grant::key`].
    Few(Arc<[Grant]>),
    Many(Box<Trees>),
}

/// One binding.
#[derive(Clone)]
pub(super) struct Grant {
    /// Tells most namespaces apart without a look at the binding; see [`place`].
    place: u64,
    binding: Arc<Binding>,
}

/// Length and last letters of a namespace: of two that have the same, the binding tells. 0 for the whole cluster.
fn place(namespace: &str) -> u64 {
    let letters = namespace.bytes().rev().take(7).fold(0, |all, letter| all << 8 | u64::from(letter));
    letters << 8 | namespace.len() as u64
}

impl Grant {
    /// What tells it from the subject's others, and gives their order: those of the whole cluster first, those of one
    /// role side by side.
    fn key(&self) -> (&str, &str, &str) {
        key(&self.binding)
    }
}

fn key(binding: &Binding) -> (&str, &str, &str) {
    (&binding.namespace, &binding.role.key, &binding.name)
}

impl Default for Grants {
    fn default() -> Self {
        Self::Few(Arc::default())
    }
}

impl Grants {
    /// Shows `visit` one binding of each role that holds in `namespace`, until it returns something.
    pub(super) fn visit<R>(
        &self,
        namespace: &str,
        visit: &mut impl FnMut(&Arc<Binding>) -> Option<R>,
    ) -> Option<R> {
        match self {
            Self::Few(grants) => visit_few(grants, namespace, visit),
            Self::Many(trees) => trees.visit(namespace, visit),
        }
    }

    pub(super) fn put(&mut self, binding: &Arc<Binding>) {
        match self {
            Self::Few(grants) => {
                let found = grants.binary_search_by(|grant| grant.key().cmp(&key(binding)));
                let grant = Grant { place: place(&binding.namespace), binding: binding.clone() };
                let (at, after) = found.map_or_else(|at| (at, at), |at| (at, at + 1));
                let (before, after) = (&grants[..at], &grants[after..]);
                let all = before.iter().cloned().chain([grant]).chain(after.iter().cloned());
                if grants.len() < FEW {
                    *grants = all.collect();
                } else {
                    let mut trees = Trees::default();
                    all.for_each(|grant| trees.put(&grant.binding));
                    *self = Self::Many(Box::new(trees));
                }
            }
            Self::Many(trees) => trees.put(binding),
        }
    }

    pub(super) fn remove(&mut self, binding: &Binding) {
        match self {
            Self::Few(grants) => {
                let others = grants.iter().filter(|grant| grant.key() != key(binding));
                *grants = others.cloned().collect();
            }
            Self::Many(trees) => trees.remove(binding),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(grants) => grants.is_empty(),
            Self::Many(trees) => trees.is_empty(),
        }
    }
}

fn visit_few<R>(
    grants: &[Grant],
    namespace: &str,
    visit: &mut impl FnMut(&Arc<Binding>) -> Option<R>,
) -> Option<R> {
    let asked = place(namespace);
    let mut last: Option<&Binding> = None;
    for Grant { place, binding } in grants {
        if *place != 0 && (*place != asked || binding.namespace != namespace) {
            continue;
        }
        let is_known =
            last.is_some_and(|last| last.namespace == binding.namespace && last.role.key == binding.role.key);
        if is_known {
            continue;
        }
        last = Some(binding);
        if let Some(found) = visit(binding) {
            return Some(found);
        }
    }
    None
}

/// Bindings by role and name. Of several that grant one role, one is enough for a decision.
type ByRole = CowMap<CowMap<Arc<Binding>>>;

/// Shows `visit` one binding of each role, until it returns something.
fn visit_roles<R>(roles: &ByRole, visit: &mut impl FnMut(&Arc<Binding>) -> Option<R>) -> Option<R> {
    roles.find_map(&mut |bindings| bindings.find_map(&mut |binding| Some(visit(binding))).flatten())
}

fn put_binding(roles: &mut ByRole, binding: &Arc<Binding>) {
    let mut bindings = roles.get(&binding.role.key).cloned().unwrap_or_default();
    bindings.insert(binding.name.as_str().into(), binding.clone());
    roles.insert(binding.role.key.as_str().into(), bindings);
}

fn remove_binding(roles: &mut ByRole, binding: &Binding) {
    let Some(mut bindings) = roles.get(&binding.role.key).cloned() else { return };
    bindings.remove(&binding.name);
    if bindings.is_empty() {
        roles.remove(&binding.role.key);
    } else {
        roles.insert(binding.role.key.as_str().into(), bindings);
    }
}

/// Bindings by where they hold, by role and by name.
#[derive(Clone, Default)]
pub(super) struct Trees {
    cluster: ByRole,
    by_namespace: CowMap<ByRole>,
}

impl Trees {
    fn visit<R>(&self, namespace: &str, visit: &mut impl FnMut(&Arc<Binding>) -> Option<R>) -> Option<R> {
        if let Some(found) = visit_roles(&self.cluster, visit) {
            return Some(found);
        }
        if namespace.is_empty() {
            return None;
        }
        visit_roles(self.by_namespace.get(namespace)?, visit)
    }

    fn put(&mut self, binding: &Arc<Binding>) {
        if binding.namespace.is_empty() {
            return put_binding(&mut self.cluster, binding);
        }
        let mut roles = self.by_namespace.get(&binding.namespace).cloned().unwrap_or_default();
        put_binding(&mut roles, binding);
        self.by_namespace.insert(binding.namespace.as_str().into(), roles);
    }

    fn remove(&mut self, binding: &Binding) {
        if binding.namespace.is_empty() {
            return remove_binding(&mut self.cluster, binding);
        }
        let Some(mut roles) = self.by_namespace.get(&binding.namespace).cloned() else { return };
        remove_binding(&mut roles, binding);
        if roles.is_empty() {
            self.by_namespace.remove(&binding.namespace);
        } else {
            self.by_namespace.insert(binding.namespace.as_str().into(), roles);
        }
    }

    fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.by_namespace.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::RoleRef, *};

    #[test]
    fn few_and_many_bindings_are_shown_in_the_same_order() {
        for seed in 1..40_u64 {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut below = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            let (mut grants, mut twin) = (Grants::default(), BTreeMap::new());
            // Some never have more than a block holds, others grow beyond it and shrink again.
            let names = 2 + seed % 5;
            for step in 0..400 {
                let namespace = ["", "shop", "shop-a", "a-shop", "production-shop-a"][below(5) as usize];
                let role = RoleRef::new("ClusterRole", "", &format!("r{}", below(3))).expect("a role");
                let name = format!("b{}", below(names));
                let (namespace, subjects) = (namespace.to_owned(), Vec::new());
                let binding = Arc::new(Binding { name, namespace, role, subjects });
                let (ns, role, name) = key(&binding);
                let known = (ns.to_owned(), role.to_owned(), name.to_owned());
                if below(10) < if step < 250 { 7 } else { 2 } {
                    grants.put(&binding);
                    twin.insert(known, ());
                } else {
                    grants.remove(&binding);
                    twin.remove(&known);
                }
                assert_eq!(grants.is_empty(), twin.is_empty());
                for asked in ["", "shop", "a-shop", "other"] {
                    let mut shown = Vec::new();
                    let nothing = grants.visit(asked, &mut |binding| -> Option<()> {
                        let (ns, role, name) = key(binding);
                        shown.push((ns.to_owned(), role.to_owned(), name.to_owned()));
                        None
                    });
                    let held = twin.keys().filter(|(ns, ..)| ns.is_empty() || ns == asked);
                    let mut expected: Vec<_> = held.cloned().collect();
                    expected.dedup_by(|later, first| (&later.0, &later.1) == (&first.0, &first.1));
                    assert_eq!((shown, nothing), (expected, None), "seed {seed}, step {step}");
                }
            }
        }
    }
}
