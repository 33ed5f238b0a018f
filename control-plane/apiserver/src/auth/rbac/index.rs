//! Roles and bindings as decisions look for them: by subject, then by namespace.
//!
//! The watch cache's feed is the only writer: it tells of every change, in order, and publishes a new [`Policy`] with
//! each batch, before the cache's progress moves past it. So whoever has waited for a revision decides by the bindings
//! of that revision. A policy is immutable and shares what did not change with the one before; readers take no lock. A
//! binding finds its role by name at each decision, so that roles and bindings may come and go in any order.
//!
//! It is as large as the objects in the store are: one entry for each subject of each binding.

use std::{collections::HashMap, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::error;

use super::{GROUP, MissingRole, PolicyRule, Rule, grants::Grants, shards::Shards};
use crate::{
    auth::User,
    cache::{CachedObject, ObjectSink},
};

/// The role that a binding grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    /// A ClusterRole; else a Role of the binding's namespace.
    pub cluster: bool,
    /// `name` of a ClusterRole, `namespace/name` of a Role.
    pub(super) key: String,
}

impl RoleRef {
    /// The role that a binding of `namespace` (empty: of the cluster) names; `None` for a kind that is no role.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Option<Self> {
        match kind {
            "ClusterRole" => Some(Self { cluster: true, key: name.to_owned() }),
            "Role" => Some(Self { cluster: false, key: format!("{namespace}/{name}") }),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        if self.cluster { &self.key } else { self.key.split_once('/').map_or("", |(_, name)| name) }
    }

    pub(super) fn missing(&self) -> MissingRole {
        let kind = if self.cluster { "clusterrole" } else { "role" };
        MissingRole { kind, name: self.name().to_owned() }
    }
}

/// Whom a binding grants its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A user, by name.
    User(String),
    /// Everybody in a group.
    Group(String),
    /// A service account; the namespace is the binding's where the subject names none.
    ServiceAccount {
        /// `system:serviceaccount:<namespace>:<name>`.
        user: String,
        /// Where the name begins in `user`.
        name_at: usize,
    },
}

impl Subject {
    fn service_account(namespace: &str, name: &str) -> Self {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Self::ServiceAccount { name_at: user.len() - name.len(), user }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) | Self::ServiceAccount { user: name, .. } => *name == user.name,
            Self::Group(name) => user.is_in(name),
        }
    }
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
pub struct Binding {
    pub(super) name: String,
    /// Empty for a ClusterRoleBinding.
    pub(super) namespace: String,
    pub(super) role: RoleRef,
    pub(super) subjects: Vec<Subject>,
}

impl Binding {
    /// The words of an answer: `RBAC: allowed by ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    pub(in crate::auth) fn describe(&self, user: &User) -> String {
        let slashed = |name: &str, namespace: &str| format!("{name}/{namespace}");
        let role = if self.role.cluster { "ClusterRole" } else { "Role" };
        let binding = if self.namespace.is_empty() {
            format!("ClusterRoleBinding {:?}", self.name)
        } else {
            format!("RoleBinding {:?}", slashed(&self.name, &self.namespace))
        };
        let mut text = format!("RBAC: allowed by {binding} of {role} {:?}", self.role.name());
        match self.subjects.iter().find(|subject| subject.is(user)) {
            Some(Subject::User(name)) => text += &format!(" to User {name:?}"),
            Some(Subject::Group(name)) => text += &format!(" to Group {name:?}"),
            Some(Subject::ServiceAccount { user, name_at }) => {
                let namespace = &user["system:serviceaccount:".len()..name_at - 1];
                text += &format!(" to ServiceAccount {:?}", slashed(&user[*name_at..], namespace));
            }
            None => {}
        }
        text
    }
}

/// All roles and bindings at one moment.
#[derive(Clone, Default)]
pub(super) struct Policy {
    cluster_roles: Shards<Arc<[Rule]>>,
    /// By `namespace/name`.
    roles: Shards<Arc<[Rule]>>,
    /// Service accounts are users too.
    users: Shards<Grants>,
    groups: Shards<Grants>,
}

impl Policy {
    /// The rules of a role; `None` where it is not there.
    pub(super) fn rules(&self, role: &RoleRef) -> Option<&Arc<[Rule]>> {
        if role.cluster { self.cluster_roles.get(&role.key) } else { self.roles.get(&role.key) }
    }

    /// Shows `visit` the roles that the user has in `namespace`, each by one of its bindings, until it returns
    /// something. A role that the user has by name and by groups is shown for each of them.
    pub(super) fn visit<R>(
        &self,
        user: &User,
        namespace: &str,
        visit: &mut impl FnMut(&Arc<Binding>) -> Option<R>,
    ) -> Option<R> {
        let of_user = self.users.get(&user.name).into_iter();
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        of_user.chain(of_groups).find_map(|grants| grants.visit(namespace, visit))
    }

    fn change(&mut self, binding: &Binding, change: impl Fn(&mut Grants)) {
        for subject in &binding.subjects {
            let (map, name) = match subject {
                Subject::User(name) | Subject::ServiceAccount { user: name, .. } => (&mut self.users, name),
                Subject::Group(name) => (&mut self.groups, name),
            };
            let mut grants = map.get(name).cloned().unwrap_or_default();
            change(&mut grants);
            if grants.is_empty() {
                map.remove(name);
            } else {
                map.insert(name.as_str().into(), grants);
            }
        }
    }
}

/// What the feed works on.
#[derive(Default)]
struct Writer {
    policy: Policy,
    /// By key in the store: what to take out when a binding changes.
    bindings: HashMap<Box<str>, Arc<Binding>>,
}

impl Writer {
    fn put_binding(&mut self, key: &str, binding: Option<Binding>) {
        if let Some(old) = self.bindings.remove(key) {
            self.policy.change(&old, |grants| grants.remove(&old));
        }
        if let Some(binding) = binding.map(Arc::new) {
            self.policy.change(&binding, |grants| grants.put(&binding));
            self.bindings.insert(key.into(), binding);
        }
    }

    fn put_role(&mut self, cluster: bool, key: &str, rules: Option<Arc<[Rule]>>) {
        let roles = if cluster { &mut self.policy.cluster_roles } else { &mut self.policy.roles };
        match rules {
            Some(rules) => roles.insert(key.into(), rules),
            None => roles.remove(key),
        }
    }
}

/// The index. See the module's documentation.
#[derive(Default)]
pub struct Index {
    policy: ArcSwap<Policy>,
    /// Held by the feed alone.
    writer: Mutex<Writer>,
}

impl Index {
    pub(super) fn policy(&self) -> Guard<Arc<Policy>> {
        self.policy.load()
    }
}

/// The four kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Role,
    ClusterRole,
    RoleBinding,
    ClusterRoleBinding,
}

/// Hears of the objects of one of the kinds.
pub(super) struct Sink {
    index: Arc<Index>,
    kind: Kind,
    /// What all keys of the kind begin with.
    prefix: String,
}

/// A role or binding, as much as decisions need. What is absent is empty.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Parsed {
    rules: Option<Vec<PolicyRule>>,
    role_ref: ParsedRef,
    subjects: Option<Vec<ParsedSubject>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ParsedRef {
    kind: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ParsedSubject {
    kind: String,
    name: String,
    namespace: Option<String>,
}

impl Sink {
    /// The sink of the kind that lives at `path`; `None` for all others.
    pub(super) fn for_path(index: &Arc<Index>, path: &str) -> Option<Self> {
        let kind = match path.strip_prefix(GROUP)?.strip_prefix('/')? {
            "roles" => Kind::Role,
            "clusterroles" => Kind::ClusterRole,
            "rolebindings" => Kind::RoleBinding,
            "clusterrolebindings" => Kind::ClusterRoleBinding,
            _ => return None,
        };
        Some(Self { index: index.clone(), kind, prefix: format!("{}{path}/", crate::cache::ROOT) })
    }

    /// `name`, or `namespace/name`.
    fn short<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.prefix.as_str()).unwrap_or(key)
    }

    fn binding(&self, short: &str, parsed: Parsed) -> Option<Binding> {
        let (namespace, name) = match self.kind {
            Kind::RoleBinding => short.split_once('/')?,
            _ => ("", short),
        };
        // No other kind passes validation; one that is stored nevertheless grants nothing.
        let role = RoleRef::new(&parsed.role_ref.kind, namespace, &parsed.role_ref.name)?;
        if namespace.is_empty() && !role.cluster {
            return None;
        }
        let subjects = parsed.subjects.unwrap_or_default();
        let subjects = subjects.into_iter().filter_map(|subject| match subject.kind.as_str() {
            "User" => Some(Subject::User(subject.name)),
            "Group" => Some(Subject::Group(subject.name)),
            "ServiceAccount" => {
                let own = subject.namespace.filter(|namespace| !namespace.is_empty());
                let namespace = own.as_deref().unwrap_or(namespace);
                (!namespace.is_empty()).then(|| Subject::service_account(namespace, &subject.name))
            }
            _ => None,
        });
        let subjects = subjects.collect();
        Some(Binding { name: name.to_owned(), namespace: namespace.to_owned(), role, subjects })
    }
}

impl ObjectSink for Sink {
    fn put(&self, object: &CachedObject) {
        // An object that cannot be read grants nothing, and what it granted before is gone.
        let parsed: Option<Parsed> = serde_json::from_slice(object.json())
            .inspect_err(|error| error!(key = %object.key(), %error, "grants nothing: it cannot be read"))
            .ok();
        let key = object.key();
        let mut writer = self.index.writer.lock();
        match self.kind {
            Kind::Role | Kind::ClusterRole => {
                let rules = parsed.map(|role| role.rules.into_iter().flatten().map(Rule::new).collect());
                writer.put_role(self.kind == Kind::ClusterRole, self.short(key), rules);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                writer.put_binding(key, parsed.and_then(|parsed| self.binding(self.short(key), parsed)));
            }
        }
    }

    fn delete(&self, key: &str) {
        let mut writer = self.index.writer.lock();
        match self.kind {
            Kind::Role | Kind::ClusterRole => {
                writer.put_role(self.kind == Kind::ClusterRole, self.short(key), None);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => writer.put_binding(key, None),
        }
    }

    fn reset(&self) {
        let mut writer = self.index.writer.lock();
        match self.kind {
            Kind::Role => writer.policy.roles = Shards::default(),
            Kind::ClusterRole => writer.policy.cluster_roles = Shards::default(),
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let own = |key: &str| key.starts_with(&self.prefix);
                let keys: Vec<Box<str>> = writer.bindings.keys().filter(|key| own(key)).cloned().collect();
                for key in keys {
                    writer.put_binding(&key, None);
                }
            }
        }
    }

    fn publish(&self) {
        self.index.policy.store(Arc::new(self.index.writer.lock().policy.clone()));
    }
}
