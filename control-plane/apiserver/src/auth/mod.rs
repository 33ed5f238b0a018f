//! Who asks, what for, and whether they may.

pub mod authn;
pub mod authz;
mod bootstrap;
pub mod impersonation;
pub mod jwt;
pub mod keys;
pub mod node;
mod private_keys;
pub mod rbac;
pub mod tokens;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use rbac::{Binding, PolicyRule};
use serde_json::{Value, json};

pub const SYSTEM_MASTERS: &str = "system:masters";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
pub const SCHEDULER: &str = "system:kube-scheduler";
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
/// The server itself, when it writes what every cluster has at birth.
pub const APISERVER: &str = "system:apiserver";

/// The components of the control plane. Only its own certificates and this process have these names.
pub const COMPONENTS: [&str; 3] = [APISERVER, SCHEDULER, CONTROLLER_MANAGER];

/// `authentication.k8s.io/v1` UserInfo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A component of the control plane, or an administrator.
    pub fn named(name: &str, groups: &[&str]) -> Arc<Self> {
        let groups = groups.iter().copied().chain([AUTHENTICATED]).map(str::to_owned).collect();
        Arc::new(Self { name: name.to_owned(), groups, ..Self::default() })
    }

    pub fn anonymous() -> Arc<Self> {
        Arc::new(Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        })
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }

    /// The node that this user is, if it is one.
    pub fn node(&self) -> Option<&str> {
        if self.is_in(NODES) { self.name.strip_prefix(NODE_PREFIX) } else { None }
    }

    pub fn to_json(&self) -> Value {
        let mut info = json!({ "username": self.name });
        if !self.uid.is_empty() {
            info["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            info["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// What a request does, as authorization and admission see it.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for paths the HTTP method
    /// in lower case.
    pub verb: Cow<'static, str>,
    /// Empty for paths that are no resources.
    pub resource: String,
    pub group: String,
    pub version: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    /// For requests that are not about resources.
    pub path: String,
}

impl Attributes {
    pub fn path(verb: &'static str, path: &str) -> Self {
        Self { verb: verb.into(), path: path.to_owned(), ..Self::default() }
    }

    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    pub fn is_read(&self) -> bool {
        matches!(&*self.verb, "get" | "list" | "watch")
    }

    /// `pods/log`.
    pub fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Why a request is allowed. Nearly nobody reads it, so it is put into words only where somebody does.
#[derive(Clone, Debug)]
pub enum Grounds {
    /// There is nothing to say.
    Unsaid,
    Text(&'static str),
    /// A binding of a role.
    Binding(Arc<Binding>),
}

impl Grounds {
    /// In words; empty where there is nothing to say. `user` is who asked.
    pub fn describe(&self, user: &User) -> String {
        match self {
            Self::Unsaid => String::new(),
            Self::Text(text) => (*text).to_owned(),
            Self::Binding(binding) => binding.describe(user),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Decision {
    Allow(Grounds),
    Deny(String),
    /// This authorizer has nothing to say; the next one is asked. Nobody saying Allow means no.
    NoOpinion(String),
}

/// What a user may do in a namespace, as far as it can be listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub rules: Vec<PolicyRule>,
    /// There may be more: an authorizer decides by what is no list.
    pub incomplete: bool,
    /// Why the list may not be whole, one by authorizer.
    pub errors: Vec<String>,
}

/// Decides from what is in memory: called for every request, so it must not wait.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision;

    /// What `user` may do in `namespace`, for those who ask about themselves.
    fn rules(&self, user: &User, namespace: &str) -> Rules;
}

/// Asks each in turn; the first who allows or denies decides.
pub struct Union(pub Vec<Arc<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(user, attributes) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join(", "))
    }

    fn rules(&self, user: &User, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for rules in self.0.iter().map(|authorizer| authorizer.rules(user, namespace)) {
            all.rules.extend(rules.rules);
            all.incomplete |= rules.incomplete;
            all.errors.extend(rules.errors);
        }
        all
    }
}

/// How upstream words a refusal: what `kubectl` prints after `Error from server (Forbidden):`.
pub fn refusal(user: &User, attributes: &Attributes, reason: &str) -> String {
    let mut text = format!("User {:?} cannot {} ", user.name, attributes.verb);
    if attributes.is_resource() {
        text += &format!("resource {:?} in API group {:?}", attributes.resource_path(), attributes.group);
        if attributes.namespace.is_empty() {
            text += " at the cluster scope";
        } else {
            text += &format!(" in the namespace {:?}", attributes.namespace);
        }
    } else {
        text += &format!("path {:?}", attributes.path);
    }
    if !reason.is_empty() {
        text += ": ";
        text += reason;
    }
    text
}
