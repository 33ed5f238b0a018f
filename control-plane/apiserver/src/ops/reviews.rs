//! Kinds that are questions: who am I, may I, whose token is this.

use std::collections::BTreeMap;

use hawser_api::Error;
use serde_json::{Value, json};

use super::{Call, access};
use crate::{
    ApiServer,
    auth::{Decision, User, tokens::unix_now},
};

/// Empty where there is none.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A list of texts; empty where there is none.
pub(super) fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

impl ApiServer {
    /// Answers a review; `None` for every other kind.
    pub(super) fn review(&self, call: &Call, object: &Value) -> Result<Option<Value>, Error> {
        let row = call.resource.row;
        let user = call.pass.user();
        let status = match (row.group, row.plural) {
            ("authentication.k8s.io", "selfsubjectreviews") => json!({ "userInfo": user.to_json() }),
            ("authentication.k8s.io", "tokenreviews") => self.review_token(&object["spec"]),
            ("authorization.k8s.io", "selfsubjectrulesreviews") => {
                let namespace = access::rules_namespace(&object["spec"])?;
                access::rules_status(&self.chain().authorizer().rules(user, &namespace))
            }
            ("authorization.k8s.io", plural) => {
                let mut checked = object.clone();
                if plural == "localsubjectaccessreviews" {
                    settle_namespace(&mut checked, call.namespace())?;
                }
                let errors = access::validate(row.kind, &checked);
                if !errors.is_empty() {
                    return Err(Error::invalid(row.group, row.kind, "", &errors));
                }
                match plural {
                    "selfsubjectaccessreviews" => self.review_access(user, &object["spec"]),
                    _ => self.review_access(&subject(&object["spec"]), &object["spec"]),
                }
            }
            _ => return Ok(None),
        };
        let mut answer = object.clone();
        answer["kind"] = json!(row.kind);
        answer["apiVersion"] = json!(call.resource.api_version);
        if answer["metadata"].is_null() {
            answer["metadata"] = json!({});
        }
        answer["status"] = status;
        Ok(Some(answer))
    }

    fn review_token(&self, spec: &Value) -> Value {
        let audiences = texts(&spec["audiences"]);
        let token = spec["token"].as_str().unwrap_or_default();
        match self.authenticator().tokens().authenticate(token, &audiences, unix_now()) {
            Some((user, audiences)) => {
                json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
            }
            None => json!({ "user": {}, "error": "invalid bearer token" }),
        }
    }

    fn review_access(&self, user: &User, spec: &Value) -> Value {
        let attributes = access::attributes(spec);
        match self.chain().authorizer().authorize(user, &attributes) {
            Decision::Allow(grounds) => match grounds.describe(user) {
                reason if reason.is_empty() => json!({ "allowed": true }),
                reason => json!({ "allowed": true, "reason": reason }),
            },
            Decision::Deny(reason) => json!({ "allowed": false, "denied": true, "reason": reason }),
            Decision::NoOpinion(reason) if reason.is_empty() => json!({ "allowed": false }),
            Decision::NoOpinion(reason) => json!({ "allowed": false, "reason": reason }),
        }
    }
}

/// The object gets the namespace of its request.
fn settle_namespace(object: &mut Value, namespace: &str) -> Result<(), Error> {
    let known = &mut object["metadata"]["namespace"];
    match known.as_str() {
        Some(other) if !other.is_empty() && other != namespace => Err(Error::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        _ => {
            *known = json!(namespace);
            Ok(())
        }
    }
}

fn subject(spec: &Value) -> User {
    User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: texts(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect::<BTreeMap<_, _>>(),
    }
}
