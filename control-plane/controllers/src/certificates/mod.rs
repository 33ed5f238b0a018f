//! CertificateSigningRequests: approves those of kubelets, issues what is approved, and deletes what is over.
//!
//! The certificate itself is made by a [`Signer`], which has the cluster's key and knows the rules of the signers of
//! `kubernetes.io`; requests to other signers are other programs' matter. A request that breaks its signer's rules gets
//! the condition `Failed`, for good.

mod approval;
#[cfg(test)]
mod fake_signer;
mod pod_requests;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{
        CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    Context, Starts,
    meta::{MetaExt, elapsed, now, only_this},
    queue::Queue,
    worker::{Next, Reconciler},
};

/// Signs for the signers of `kubernetes.io`.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Whether it signs for this `spec.signerName`.
    fn serves(&self, signer_name: &str) -> bool;

    /// The user that a node would be, where the request is for a kubelet's client certificate and by the rules.
    fn node_client(&self, request: &CertificateSigningRequestSpec) -> Option<String>;

    /// The certificate in PEM; an error says which rule the request breaks.
    fn sign(&self, request: &CertificateSigningRequestSpec) -> Result<String, String>;
}

/// What was decided is kept for so long.
const DECIDED: Duration = Duration::from_secs(3600);
/// And what nobody decides or issues.
const PENDING: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn register(starts: &mut Starts<'_>) {
    let context = starts.context.clone();
    let queue = || {
        let queue = Queue::new();
        let changed = queue.clone();
        context.caches.signing_requests.on_change(move |change| changed.add(change.key.clone()));
        queue
    };
    let workers = context.config.workers;
    if let Some(signer) = context.config.signer.clone().filter(|_| starts.wants("csrapproving")) {
        starts.add(approval::Approver { context: context.clone(), signer }, queue(), workers);
    }
    if let Some(signer) = context.config.signer.clone().filter(|_| starts.wants("csrsigning")) {
        starts.add(Issuer { context: context.clone(), signer }, queue(), workers);
    }
    if starts.wants("csrcleaner") {
        starts.add(Cleaner { context: context.clone() }, queue(), 1);
    }
    pod_requests::register(starts);
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

struct Issuer {
    context: Arc<Context>,
    signer: Arc<dyn Signer>,
}

#[async_trait]
impl Reconciler for Issuer {
    type Key = ObjectKey;

    const NAME: &'static str = "csrsigning";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.context.caches.signing_requests.get(key) else { return Ok(Next::Done) };
        let is_wanted = condition(&request, "Approved").is_some()
            && condition(&request, "Denied").is_none()
            && condition(&request, "Failed").is_none();
        if !is_wanted || is_issued(&request) || !self.signer.serves(&request.spec.signer_name) {
            return Ok(Next::Done);
        }
        let mut changed = (*request).clone();
        let status = changed.status.get_or_insert_default();
        match self.signer.sign(&request.spec) {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(why) => status.conditions.get_or_insert_default().push(failed(why, now())),
        }
        let requests: Api<CertificateSigningRequest> = Api::all(self.context.client.clone());
        match requests.update_status(&changed).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(Next::Done),
        }
    }
}

fn failed(why: String, now: Timestamp) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: "Failed".to_owned(),
        status: "True".to_owned(),
        reason: Some("SignerValidationFailure".to_owned()),
        message: Some(why),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

struct Cleaner {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Cleaner {
    type Key = ObjectKey;

    const NAME: &'static str = "csrcleaner";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, Error> {
        let Some(request) = self.context.caches.signing_requests.get(key) else { return Ok(Next::Done) };
        let left = time_left(&request, now());
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let requests: Api<CertificateSigningRequest> = Api::all(self.context.client.clone());
        match requests.delete(request.name(), &only_this(&*request)).await {
            // Gone, or another one has the name.
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(Next::Done),
        }
    }
}

/// How long the request is still kept.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let decided = ["Denied", "Failed"].iter().find_map(|kind| condition(request, kind));
    let decided = decided.or_else(|| condition(request, "Approved").filter(|_| is_issued(request)));
    let (since, kept) = match decided.and_then(|condition| condition.last_update_time.as_ref()) {
        Some(Time(since)) => (Some(*since), DECIDED),
        None => (request.metadata.creation_timestamp.as_ref().map(|time| time.0), PENDING),
    };
    kept.saturating_sub(elapsed(since.unwrap_or(now), now))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{fake_signer::FakeSigner, *};
    use crate::{
        Config,
        testing::{FakeApi, Running},
    };

    fn request(name: &str, signer: &str, usage: &str, conditions: &[&str]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|kind| json!({ "type": kind, "status": "True", "lastUpdateTime": now() }))
            .collect();
        json!({
            "metadata": { "name": name },
            "spec": { "request": "", "signerName": signer, "usages": [usage] },
            "status": { "conditions": conditions },
        })
    }

    fn certificate(api: &FakeApi, name: &str) -> Option<Vec<u8>> {
        let status = api.read::<CertificateSigningRequest>("", name)?.status?;
        status.certificate.map(|bytes| bytes.0)
    }

    #[tokio::test(start_paused = true)]
    async fn approved_requests_get_a_certificate_or_learn_why_not() {
        let api = FakeApi::new();
        let config = Config {
            controllers: vec!["csrsigning".to_owned()],
            signer: Some(Arc::new(FakeSigner)),
            ..Config::default()
        };
        let _running = Running::start_with(&api, config);
        let ours = "kubernetes.io/kube-apiserver-client";
        for object in [
            request("elsewhere", "example.com/signer", "client auth", &["Approved"]),
            request("pending", ours, "client auth", &[]),
            request("denied", ours, "client auth", &["Approved", "Denied"]),
            request("wrong", ours, "server auth", &["Approved"]),
            request("good", ours, "client auth", &["Approved"]),
        ] {
            api.put::<CertificateSigningRequest>(object);
        }
        api.until("the good one is issued", |api| {
            certificate(api, "good").as_deref() == Some(b"PEM".as_slice())
        })
        .await;
        api.until("the wrong one failed", |api| {
            let found = api.read::<CertificateSigningRequest>("", "wrong").expect("it is there");
            condition(&found, "Failed").is_some_and(|failed| {
                failed.reason.as_deref() == Some("SignerValidationFailure")
                    && failed.message.as_deref() == Some("not [\"server auth\"]")
            })
        })
        .await;
        for name in ["elsewhere", "pending", "denied", "wrong"] {
            assert_eq!(certificate(&api, name), None, "{name}");
        }
    }

    #[test]
    fn what_is_decided_goes_after_an_hour_and_the_rest_after_a_day() {
        let since = now();
        let left = |conditions: &[&str], issued: bool| {
            let mut object = request("some", "example.com/signer", "client auth", conditions);
            object["metadata"]["creationTimestamp"] = json!(since);
            for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
                condition["lastUpdateTime"] = json!(since);
            }
            let mut request: CertificateSigningRequest = serde_json::from_value(object).expect("a request");
            if issued {
                request.status.get_or_insert_default().certificate = Some(ByteString(b"PEM".to_vec()));
            }
            time_left(&request, since + Duration::from_secs(600)).as_secs()
        };
        assert_eq!(left(&[], false), 23 * 3600 + 3000);
        assert_eq!(left(&["Approved"], false), 23 * 3600 + 3000, "nobody has signed it yet");
        assert_eq!(left(&["Approved"], true), 3000);
        assert_eq!(left(&["Denied"], false), 3000);
        assert_eq!(left(&["Approved", "Failed"], false), 3000);
    }
}
