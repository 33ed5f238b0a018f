//! The simple authorizer: administrators everything, components everything, everybody discovery and questions about
//! themselves.
//!
//! Nodes are [`super::node`]'s. RBAC takes this one's place as one more link of the [`super::Union`].

use super::{AUTHENTICATED, Attributes, Authorizer, COMPONENTS, Decision, SYSTEM_MASTERS, User};

pub struct SimpleAuthorizer;

/// Paths that anybody may read, known or not (upstream's `system:public-info-viewer`).
const PUBLIC: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// Paths that authenticated users may read (upstream's `system:discovery`), by prefix.
const DISCOVERY: [&str; 5] = ["/api", "/apis", "/openapi", "/openid", "/.well-known"];

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Authorizer for SimpleAuthorizer {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        let allow = |why: &str| Decision::Allow(why.to_owned());
        if user.is_in(SYSTEM_MASTERS) {
            return allow("system:masters");
        }
        if COMPONENTS.contains(&user.name.as_str()) {
            return allow("a component of the control plane");
        }
        if !attributes.is_resource() {
            let path = attributes.path.as_str();
            let get = matches!(&*attributes.verb, "get" | "head");
            if get && (PUBLIC.contains(&path) || is_below(path, "/livez") || is_below(path, "/readyz")) {
                return allow("public");
            }
            if get && user.is_in(AUTHENTICATED) && DISCOVERY.iter().any(|prefix| is_below(path, prefix)) {
                return allow("discovery");
            }
            return Decision::NoOpinion(String::new());
        }
        let about_oneself = matches!(
            (attributes.group.as_str(), attributes.resource.as_str()),
            ("authentication.k8s.io", "selfsubjectreviews")
                | ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
        );
        if about_oneself && attributes.verb == "create" && user.is_in(AUTHENTICATED) {
            return allow("a question about oneself");
        }
        Decision::NoOpinion(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::SCHEDULER;

    fn pods(verb: &'static str) -> Attributes {
        Attributes { verb: verb.into(), resource: "pods".to_owned(), ..Attributes::default() }
    }

    #[track_caller]
    fn check(user: &User, attributes: &Attributes, allowed: bool) {
        let decision = SimpleAuthorizer.authorize(user, attributes);
        assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{} {attributes:?}", user.name);
    }

    #[test]
    fn everybody_but_administrators_and_components_gets_discovery_only() {
        let admin = User::named("admin", &[SYSTEM_MASTERS]);
        let somebody = User::named("system:serviceaccount:a:b", &[]);
        let nobody = User::anonymous();
        check(&admin, &pods("delete"), true);
        check(&User::named(SCHEDULER, &[]), &pods("list"), true);
        check(&somebody, &pods("get"), false);
        check(&nobody, &pods("get"), false);
        check(&nobody, &Attributes::path("get", "/readyz"), true);
        check(&nobody, &Attributes::path("get", "/readyz/store"), true);
        check(&nobody, &Attributes::path("get", "/metrics"), false);
        check(&nobody, &Attributes::path("get", "/apis"), false);
        check(&somebody, &Attributes::path("get", "/apis/apps/v1"), true);
        check(&somebody, &Attributes::path("get", "/apiserver"), false);
        check(&somebody, &Attributes::path("post", "/apis"), false);
    }
}
