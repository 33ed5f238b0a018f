//! The authorizer of those who need no rules: administrators and the components of the control plane.
//!
//! Everybody else's rights are [`super::node`]'s and [`super::rbac`]'s. Upstream has the members of `system:masters` in an
//! authorizer of their own too, so that a cluster whose roles were deleted can be repaired.
//!
//! The components have default roles (`system:kube-scheduler`, ...), which are those of upstream's. They are not held to
//! them: all controllers here share the identity `system:kube-controller-manager`, while upstream gives each a service
//! account and a role, and that role alone would not let them work.

use super::{
    Attributes, Authorizer, COMPONENTS, Decision, Grounds, Rules, SYSTEM_MASTERS, User, rbac::PolicyRule,
};

/// Allows everything to administrators and components, and has no opinion on others.
pub struct Superusers;

fn is_superuser(user: &User) -> bool {
    user.is_in(SYSTEM_MASTERS) || COMPONENTS.contains(&user.name.as_str())
}

impl Authorizer for Superusers {
    fn authorize(&self, user: &User, _: &Attributes) -> Decision {
        if is_superuser(user) { Decision::Allow(Grounds::Unsaid) } else { Decision::NoOpinion(String::new()) }
    }

    fn rules(&self, user: &User, _: &str) -> Rules {
        if is_superuser(user) {
            Rules { rules: everything().to_vec(), ..Rules::default() }
        } else {
            Rules::default()
        }
    }
}

/// All that there is to allow: every verb on every resource, and on every path.
pub fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    let resources = PolicyRule { api_groups: all(), resources: all(), verbs: all(), ..PolicyRule::default() };
    [resources, PolicyRule { non_resource_urls: all(), verbs: all(), ..PolicyRule::default() }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::SCHEDULER;

    #[test]
    fn administrators_and_components_may_do_everything_and_nobody_else_anything() {
        let pods = Attributes { verb: "delete".into(), resource: "pods".to_owned(), ..Attributes::default() };
        let check = |user: &User, allowed: bool| {
            for attributes in [&pods, &Attributes::path("get", "/metrics")] {
                let decision = Superusers.authorize(user, attributes);
                assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{} {attributes:?}", user.name);
            }
            assert_eq!(!Superusers.rules(user, "default").rules.is_empty(), allowed, "{}", user.name);
        };
        check(&User::named("admin", &[SYSTEM_MASTERS]), true);
        check(&User::named(SCHEDULER, &[]), true);
        check(&User::named("system:serviceaccount:a:b", &[]), false);
        check(&User::anonymous(), false);
    }
}
