//! Approves the requests of kubelets for client certificates, where whoever asks may have them.
//!
//! A kubelet that renews its own asks in its own name (`selfnodeclient`), one that joins in the name of its bootstrap
//! token (`nodeclient`); roles say who may do either. All else waits for somebody who decides. Follows
//! `pkg/controller/certificates/approver` of v1.36.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Signer, condition, is_issued};
use crate::{
    Context,
    meta::{MetaExt, elapsed, now},
    worker::{Next, Reconciler},
};

/// What a kubelet may be allowed to be given: the subresource that stands for it, and what its approval says.
const RENEWAL: (&str, &str) =
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
const ANY_NODE: (&str, &str) =
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");

/// When a request that roles do not allow is looked at again, at the earliest and at the latest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(1000);

pub(super) struct Approver {
    pub(super) context: Arc<Context>,
    pub(super) signer: Arc<dyn Signer>,
}

#[async_trait]
impl Reconciler for Approver {
    type Key = ObjectKey;

    const NAME: &'static str = "csrapproving";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.context.caches.signing_requests.get(key) else { return Ok(Next::Done) };
        let is_decided = ["Approved", "Denied"].iter().any(|kind| condition(&request, kind).is_some());
        if is_decided || is_issued(&request) {
            return Ok(Next::Done);
        }
        let Some(node) = self.signer.node_client(&request.spec) else { return Ok(Next::Done) };
        let is_own = request.spec.username.as_deref() == Some(node.as_str());
        for (subresource, message) in is_own.then_some(RENEWAL).into_iter().chain([ANY_NODE]) {
            if self.is_allowed(&request.spec, subresource).await? {
                return self.approve(&request, message).await;
            }
        }
        // Roles are not watched. It is looked at after as long as it has waited already.
        Ok(Next::After(elapsed(request.created(), now()).clamp(AGAIN_FIRST, AGAIN_LAST)))
    }
}

impl Approver {
    async fn is_allowed(&self, by: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, Error> {
        let text = |value: &str| Some(value.to_owned());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: by.username.clone(),
                uid: by.uid.clone(),
                groups: by.groups.clone(),
                extra: by.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: text("certificates.k8s.io"),
                    resource: text("certificatesigningrequests"),
                    subresource: text(subresource),
                    verb: text("create"),
                    version: text("*"),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.context.client.clone());
        Ok(reviews.create(&review).await?.status.is_some_and(|status| status.allowed))
    }

    async fn approve(&self, request: &CertificateSigningRequest, message: &str) -> Result<Next, Error> {
        let now = now();
        let mut approved = request.clone();
        let status = approved.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
            last_update_time: Some(Time(now)),
        });
        let requests: Api<CertificateSigningRequest> = Api::all(self.context.client.clone());
        match requests.update_subresource(&approved, "approval").await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(Next::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        Config,
        certificates::fake_signer::FakeSigner,
        testing::{FakeApi, Running},
    };

    fn request(name: &str, username: &str, node: &str, conditions: Value) -> Value {
        json!({
            "metadata": { "name": name },
            "spec": {
                "request": ByteString(node.into()), "username": username,
                "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            },
            "status": { "conditions": conditions },
        })
    }

    fn approval(api: &FakeApi, name: &str) -> Option<String> {
        let found = api.read::<CertificateSigningRequest>("", name).expect("it is there");
        condition(&found, "Approved").and_then(|condition| condition.message.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn kubelets_get_what_roles_let_them_have() {
        let api = FakeApi::new();
        api.allow(|review| {
            let (user, asked) =
                (&review["spec"]["user"], &review["spec"]["resourceAttributes"]["subresource"]);
            user == "system:node:a" && asked == "selfnodeclient"
                || user == "system:bootstrap:token" && asked == "nodeclient"
        });
        let config = Config {
            controllers: vec!["csrapproving".to_owned()],
            signer: Some(Arc::new(FakeSigner)),
            ..Config::default()
        };
        let _running = Running::start_with(&api, config);
        let denied = json!([{ "type": "Denied", "status": "True" }]);
        for object in [
            request("other", "system:node:a", "somebody", json!([])),
            request("denied", "system:node:a", "system:node:a", denied),
            request("stranger", "jane", "system:node:a", json!([])),
            request("neighbour", "system:node:a", "system:node:b", json!([])),
            request("joins", "system:bootstrap:token", "system:node:c", json!([])),
            request("renews", "system:node:a", "system:node:a", json!([])),
        ] {
            api.put::<CertificateSigningRequest>(object);
        }
        for (name, message) in [("renews", RENEWAL.1), ("joins", ANY_NODE.1)] {
            api.until(name, |api| approval(api, name).as_deref() == Some(message)).await;
        }
        for name in ["other", "denied", "stranger", "neighbour"] {
            assert_eq!(approval(&api, name), None, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kubelet_gets_it_when_roles_let_it_later() {
        let api = FakeApi::new();
        let is_allowed = Arc::new(AtomicBool::new(false));
        let answer = is_allowed.clone();
        api.allow(move |_| answer.load(Relaxed));
        let config = Config {
            controllers: vec!["csrapproving".to_owned()],
            signer: Some(Arc::new(FakeSigner)),
            ..Config::default()
        };
        let _running = Running::start_with(&api, config);
        api.put::<CertificateSigningRequest>(request("a", "system:node:a", "system:node:a", json!([])));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(approval(&api, "a"), None);
        is_allowed.store(true, Relaxed);
        api.until("it is approved", |api| approval(api, "a").is_some()).await;
    }
}
