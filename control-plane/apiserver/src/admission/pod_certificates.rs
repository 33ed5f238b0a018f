//! PodCertificateRequests: who answers, and when. Which of them a node may make is [`super::node_restriction`]'s matter.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Operation, Plugin, Request,
    certificates::{GROUP, conditions_of, date_transitions, may, signer},
    elements,
};
use crate::{
    auth::Authorizer,
    kinds::pod_certificate::{ANSWERS, check_time},
};

/// Any answer needs the verb `sign` for the signer, a refusal too: the node takes it for the signer's last word. Upstream
/// asks for it with a certificate alone, and in the registry, where the user and the time are known.
pub(super) struct PodCertificateSigning {
    authorizer: Arc<dyn Authorizer>,
}

impl PodCertificateSigning {
    pub(super) fn new(authorizer: &Arc<dyn Authorizer>) -> Self {
        Self { authorizer: authorizer.clone() }
    }
}

fn is_answer(request: &Request<'_>) -> bool {
    request.operation == Operation::Update
        && request.is(GROUP, "podcertificaterequests")
        && request.subresource == "status"
}

#[async_trait]
impl Plugin for PodCertificateSigning {
    fn name(&self) -> &'static str {
        "PodCertificateSigning"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if let Some(old) = request.old.filter(|_| is_answer(request)) {
            keep_answers(request.object, old);
            date_transitions(request.object, old, Timestamp::now());
        }
        Ok(())
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let Some(old) = request.old.filter(|_| is_answer(request)) else { return Ok(()) };
        let said = |object: &Value| object["status"].as_object().filter(|it| !it.is_empty()).cloned();
        if said(old) == said(request.object) {
            return Ok(());
        }
        let signer = signer(request);
        if !may(&*self.authorizer, request.user, "sign", signer) {
            let why = format!("user not permitted to sign requests with signerName {signer:?}");
            return Err(request.forbidden(&why));
        }
        let row = request.resource.row;
        match check_time(request.object, old, Timestamp::now()) {
            Some(error) => Err(Error::invalid(row.group, row.kind, request.name, &[error])),
            None => Ok(()),
        }
    }
}

/// An answer stands as it was given: who writes another of its kind has written nothing.
fn keep_answers(object: &mut Value, old: &Value) {
    let given = elements(&old["status"]["conditions"]);
    for condition in conditions_of(object) {
        let same = given.iter().find(|one| one["type"] == condition["type"]);
        if let Some(same) = same.filter(|one| ANSWERS.iter().any(|answer| one["type"] == *answer)) {
            *condition = same.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_kept_and_a_new_one_is_dated() {
        let given = json!({ "type": "Denied", "status": "True", "reason": "First",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let old = json!({ "status": { "conditions": [given] } });
        let now = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let mut new = json!({ "status": { "conditions": [
            { "type": "Denied", "status": "False", "reason": "Second" },
            { "type": "Failed", "status": "True", "reason": "Third" },
        ] } });
        keep_answers(&mut new, &old);
        date_transitions(&mut new, &old, now);
        assert_eq!(new["status"]["conditions"][0], given);
        assert_eq!(new["status"]["conditions"][1]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
