//! Kinds that are questions: who am I, may I, whose token is this.

use std::collections::BTreeMap;

use hawser_api::Error;
use serde_json::{Value, json};

use super::Call;
use crate::{
    ApiServer,
    auth::{Attributes, Decision, User, tokens::unix_now},
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
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
            ("authorization.k8s.io", "selfsubjectaccessreviews") => {
                self.review_access(user, &object["spec"])?
            }
            ("authorization.k8s.io", "subjectaccessreviews") => {
                self.review_access(&subject(&object["spec"])?, &object["spec"])?
            }
            ("authorization.k8s.io", "localsubjectaccessreviews") => {
                if object["spec"]["resourceAttributes"]["namespace"] != call.namespace() {
                    return Err(Error::bad_request(
                        "spec.resourceAttributes.namespace must match the request's namespace",
                    ));
                }
                self.review_access(&subject(&object["spec"])?, &object["spec"])?
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews") => json!({
                "resourceRules": [], "nonResourceRules": [], "incomplete": true,
                "evaluationError": "the authorizer does not support user rule resolution",
            }),
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

    fn review_access(&self, user: &User, spec: &Value) -> Result<Value, Error> {
        let attributes = attributes(spec)?;
        Ok(match self.chain().authorizer().authorize(user, &attributes) {
            Decision::Allow(reason) => json!({ "allowed": true, "reason": reason }),
            Decision::Deny(reason) => json!({ "allowed": false, "denied": true, "reason": reason }),
            Decision::NoOpinion(reason) if reason.is_empty() => json!({ "allowed": false }),
            Decision::NoOpinion(reason) => json!({ "allowed": false, "reason": reason }),
        })
    }
}

fn attributes(spec: &Value) -> Result<Attributes, Error> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), path.is_object()) {
        (true, false) => Ok(Attributes {
            verb: text(&resource["verb"]).into(),
            resource: text(&resource["resource"]),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            ..Attributes::default()
        }),
        (false, true) => Ok(Attributes {
            verb: text(&path["verb"]).into(),
            path: text(&path["path"]),
            ..Attributes::default()
        }),
        _ => Err(Error::bad_request(
            "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
    }
}

fn subject(spec: &Value) -> Result<User, Error> {
    let user = User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: texts(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), texts(values)))
            .collect::<BTreeMap<_, _>>(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Error::bad_request("spec: at least one of user or group must be specified"));
    }
    Ok(user)
}
