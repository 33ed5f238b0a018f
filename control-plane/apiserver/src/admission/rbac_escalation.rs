//! Nobody grants what they do not have: the check on writes of roles and bindings.
//!
//! Who writes a role must have all of its rules already, in the role's namespace, or the verb `escalate` on it; who binds
//! a role must have all of its rules, or the verb `bind` on the role. An aggregation rule can gather anything, so it
//! takes everything. Members of `system:masters` pass. Upstream does this in the storage of the four kinds; the rules and
//! messages are its own.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Error, GroupVersionResource};
use serde_json::Value;

use super::{Operation, Plugin, Request};
use crate::{
    auth::{
        Attributes, Authorizer, Decision, SYSTEM_MASTERS, User,
        authz::everything,
        rbac::{GROUP, PolicyRule, Rbac, RoleRef, cover, quoted},
    },
    cache::Cache,
};

pub(super) struct RbacEscalation {
    cache: Arc<Cache>,
    rbac: Rbac,
    authorizer: Arc<dyn Authorizer>,
}

impl RbacEscalation {
    pub(super) fn new(cache: &Arc<Cache>, rbac: Rbac, authorizer: Arc<dyn Authorizer>) -> Self {
        Self { cache: cache.clone(), rbac, authorizer }
    }

    fn check(&self, request: &Request<'_>) -> Result<(), Error> {
        match request.resource.row.plural {
            "roles" | "clusterroles" => self.check_role(request),
            _ => self.check_binding(request),
        }
    }

    fn check_role(&self, request: &Request<'_>) -> Result<(), Error> {
        let plural = request.resource.row.plural;
        // A request to create has no name in its path, and is asked about as it stands there.
        let name = if request.operation == Operation::Create { "" } else { request.name };
        if self.may(request.user, "escalate", plural, request.namespace, name) {
            return Ok(());
        }
        self.confirm(request, &rules_of(request.object))?;
        if aggregates(request.object) || request.old.is_some_and(aggregates) {
            self.confirm(request, &everything()).map_err(|_| {
                request.forbidden("must have cluster-admin privileges to use the aggregationRule")
            })?;
        }
        Ok(())
    }

    fn check_binding(&self, request: &Request<'_>) -> Result<(), Error> {
        let reference = &request.object["roleRef"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (kind, name) = (text("kind"), text("name"));
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if self.may(request.user, "bind", plural, request.namespace, name) {
            return Ok(());
        }
        let role = RoleRef::new(kind, request.namespace, name)
            .ok_or_else(|| Error::bad_request(format!("unsupported role reference kind: {kind:?}")))?;
        let rules = self.rbac.rules_in(&role).map_err(|missing| {
            Error::not_found(&GroupVersionResource::fixed(GROUP, "v1", plural), &missing.name)
        })?;
        self.confirm(request, &rules)
    }

    fn may(&self, user: &User, verb: &'static str, plural: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.into(),
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        matches!(self.authorizer.authorize(user, &attributes), Decision::Allow(_))
    }

    /// Refuses rules that the user does not have in the request's namespace.
    fn confirm(&self, request: &Request<'_>, rules: &[PolicyRule]) -> Result<(), Error> {
        let (owned, unresolved) = self.rbac.rules_of(request.user, request.namespace);
        let missing = cover::missing(&owned, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let mut why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            request.user.name,
            quoted(&request.user.groups),
            cover::describe(missing)
        );
        if !unresolved.is_empty() {
            let errors: Vec<String> = unresolved.iter().map(ToString::to_string).collect();
            why += &format!("; resolution errors: [{}]", errors.join(", "));
        }
        Err(request.forbidden(&why))
    }
}

fn rules_of(role: &Value) -> Vec<PolicyRule> {
    let rules = role["rules"].as_array().into_iter().flatten();
    // The schema was checked before: what is there are rules.
    rules.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}

fn aggregates(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|selectors| !selectors.is_empty())
}

/// What the garbage collector changes when it lets an object go is nobody's grant.
fn changes_only_ownership(old: &Value, new: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("ownerReferences");
            meta.remove("finalizers");
            meta.remove("managedFields");
        }
        object
    };
    without(old) == without(new)
}

#[async_trait]
impl Plugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if request.resource.row.group != GROUP || !writes || request.user.is_in(SYSTEM_MASTERS) {
            return Ok(());
        }
        if request.old.is_some_and(|old| changes_only_ownership(old, request.object)) {
            return Ok(());
        }
        if self.check(request).is_ok() {
            return Ok(());
        }
        // A refusal must be true of what is stored: the role may have been made a moment ago.
        self.cache.consistent().await?;
        self.check(request)
    }
}
