//! CertificateSigningRequests: who asks, and who may decide and sign.
//!
//! [`SigningRequester`] ties a request to its author, which upstream does in the registry: a plugin knows the user and
//! the time, the kind's hooks know neither. The others are upstream's plugins of the same names.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Operation, Plugin, Request, elements};
use crate::{
    auth::{Attributes, Authorizer, Decision, SYSTEM_MASTERS, User},
    kinds::certificates::organizations,
};

pub(super) const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Whether this writes that part of a CertificateSigningRequest.
fn is_about(request: &Request<'_>, operation: Operation, subresource: &str) -> bool {
    request.operation == operation
        && request.is(GROUP, "certificatesigningrequests")
        && request.subresource == subresource
}

/// Whether the user may do `verb` for a signer, named itself or by its domain (`example.com/*`).
pub(super) fn may(authorizer: &dyn Authorizer, user: &User, verb: &'static str, signer: &str) -> bool {
    let allows = |name: String| {
        let attributes = Attributes {
            verb: verb.into(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        matches!(authorizer.authorize(user, &attributes), Decision::Allow(_))
    };
    let domain = signer.split('/').next().unwrap_or_default();
    allows(signer.to_owned()) || allows(format!("{domain}/*"))
}

/// The signer of what is stored, not of what was sent.
pub(super) fn signer<'a>(request: &'a Request<'_>) -> &'a str {
    request.old.and_then(|old| old["spec"]["signerName"].as_str()).unwrap_or_default()
}

/// Writes the user into new requests, and the time into new conditions.
pub(super) struct SigningRequester;

#[async_trait]
impl Plugin for SigningRequester {
    fn name(&self) -> &'static str {
        "SigningRequester"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if is_about(request, Operation::Create, "") {
            let user = request.user.to_json();
            for field in ["username", "uid", "groups", "extra"] {
                if let Some(value) = user.get(field) {
                    request.object["spec"][field] = value.clone();
                }
            }
        } else if is_about(request, Operation::Update, "approval")
            || is_about(request, Operation::Update, "status")
        {
            let old = request.old.cloned().unwrap_or_default();
            date_conditions(request.object, &old, Timestamp::now());
        }
        Ok(())
    }
}

/// Gives conditions the times that their author left out.
fn date_conditions(object: &mut Value, old: &Value, now: Timestamp) {
    for condition in conditions_of(object) {
        if !condition["lastUpdateTime"].is_string() {
            condition["lastUpdateTime"] = json!(in_seconds(now));
        }
    }
    date_transitions(object, old, now);
}

/// Gives conditions the times of their transition that their author left out.
pub(super) fn date_transitions(object: &mut Value, old: &Value, now: Timestamp) {
    let before = elements(&old["status"]["conditions"]);
    for condition in conditions_of(object) {
        if !condition["lastTransitionTime"].is_string() {
            let same = before.iter().find(|one| {
                one["type"] == condition["type"]
                    && one["status"] == condition["status"]
                    && one["lastTransitionTime"].is_string()
            });
            condition["lastTransitionTime"] =
                same.map_or_else(|| json!(in_seconds(now)), |one| one["lastTransitionTime"].clone());
        }
    }
}

pub(super) fn conditions_of(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    conditions.into_iter().flatten().filter(|condition| condition.is_object())
}

/// As objects have it.
fn in_seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Deciding needs the verb `approve` for the signer.
pub(super) struct CertificateApproval {
    authorizer: Arc<dyn Authorizer>,
}

impl CertificateApproval {
    pub(super) fn new(authorizer: &Arc<dyn Authorizer>) -> Self {
        Self { authorizer: authorizer.clone() }
    }
}

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !is_about(request, Operation::Update, "approval") {
            return Ok(());
        }
        let signer = signer(request);
        if may(&*self.authorizer, request.user, "approve", signer) {
            return Ok(());
        }
        Err(request.forbidden(&format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}

/// Issuing, or saying why not, needs the verb `sign` for the signer.
pub(super) struct CertificateSigning {
    authorizer: Arc<dyn Authorizer>,
}

impl CertificateSigning {
    pub(super) fn new(authorizer: &Arc<dyn Authorizer>) -> Self {
        Self { authorizer: authorizer.clone() }
    }
}

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !is_about(request, Operation::Update, "status") {
            return Ok(());
        }
        let same = |field: &str| {
            request.old.is_some_and(|old| old["status"][field] == request.object["status"][field])
        };
        let signer = signer(request);
        if same("certificate") && same("conditions") || may(&*self.authorizer, request.user, "sign", signer) {
            return Ok(());
        }
        Err(request.forbidden(&format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}

/// Nobody becomes an administrator for good by a client certificate.
pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !is_about(request, Operation::Create, "") || request.object["spec"]["signerName"] != CLIENT_SIGNER
        {
            return Ok(());
        }
        let groups = organizations(request.object)
            .map_err(|error| request.forbidden(&format!("failed to parse CSR: {error}")))?;
        if groups.iter().any(|group| group == SYSTEM_MASTERS) {
            return Err(request.forbidden(&format!(
                "use of {CLIENT_SIGNER} signer with {SYSTEM_MASTERS} group is not allowed"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Grounds, Rules};

    struct Signers(&'static [(&'static str, &'static str)]);

    impl Authorizer for Signers {
        fn authorize(&self, _: &User, attributes: &Attributes) -> Decision {
            let asked = (&*attributes.verb, attributes.name.as_str());
            if attributes.resource == "signers" && self.0.contains(&asked) {
                return Decision::Allow(Grounds::Unsaid);
            }
            Decision::NoOpinion(String::new())
        }

        fn rules(&self, _: &User, _: &str) -> Rules {
            Rules::default()
        }
    }

    #[test]
    fn a_signer_is_allowed_by_its_name_or_its_domain() {
        let user = User::anonymous();
        for (name, allowed, expected) in [
            ("itself", &[("approve", "example.com/web")][..], true),
            ("its domain", &[("approve", "example.com/*")], true),
            ("another verb", &[("sign", "example.com/web")], false),
            ("another domain", &[("approve", "example.org/*")], false),
            ("all names", &[("approve", "*")], false),
        ] {
            assert_eq!(may(&Signers(allowed), &user, "approve", "example.com/web"), expected, "{name}");
        }
    }

    #[test]
    fn conditions_keep_the_time_of_their_last_change() {
        let now = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let old = json!({ "status": { "conditions": [
            { "type": "Approved", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z" },
        ] } });
        let mut new = json!({ "status": { "conditions": [
            { "type": "Approved", "status": "True" },
            { "type": "Failed", "status": "True", "lastUpdateTime": "2026-01-01T00:00:00Z" },
        ] } });
        date_conditions(&mut new, &old, now);
        let conditions = &new["status"]["conditions"];
        assert_eq!(conditions[0]["lastTransitionTime"], "2025-01-01T00:00:00Z");
        assert_eq!(conditions[0]["lastUpdateTime"], "2026-01-02T03:04:05Z");
        assert_eq!(conditions[1]["lastUpdateTime"], "2026-01-01T00:00:00Z");
        assert_eq!(conditions[1]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
