//! Actions on objects: binding a pod, issuing a token.

use hawser_api::{Error, FieldError, GroupVersionResource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Call, Reply, WriteOptions, Written};
use crate::{
    ApiServer,
    admission::{self, Operation},
    auth::tokens::{TokenRequest, unix_now},
    registry::{Change, Part},
    resources::method_not_allowed,
};

const MIN_TOKEN_SECONDS: i64 = 600;
const MAX_TOKEN_SECONDS: i64 = 1 << 32;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

impl ApiServer {
    pub(super) async fn create_subresource(
        &self,
        call: &Call,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let row = call.resource.row;
        match (row.group, row.plural, call.subresource()) {
            ("", "pods", "binding") => self.bind_by_object(call, &object, options).await,
            ("", "bindings", "") => self.bind_through_collection(call, &object, options).await,
            ("", "pods", "eviction") => self.evict(call, &object, options).await,
            ("", "serviceaccounts", "token") => self.issue_token(call, object).await,
            _ => Err(method_not_allowed()),
        }
    }

    async fn bind_by_object(
        &self,
        call: &Call,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let target = &binding["target"];
        let node = target["name"].as_str().unwrap_or_default();
        if !matches!(target["kind"].as_str(), None | Some("" | "Node")) || node.is_empty() {
            let error = FieldError::required("target.name", "a binding needs a node");
            return Err(Error::invalid("", "Binding", call.place()?.1, &[error]));
        }
        let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
        let annotations = binding["metadata"]["annotations"].clone();
        self.bind(call, node, uid, annotations, options).await?;
        Ok(Written {
            reply: Reply::Value(
                json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
            ),
            created: true,
            warnings: Vec::new(),
        })
    }

    /// `POST bindings`: the older way, where the pod's name is the binding's.
    async fn bind_through_collection(
        &self,
        call: &Call,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let target = hawser_api::resource::Target {
            resource: GroupVersionResource::fixed("", "v1", "pods"),
            namespace: call.target.namespace.clone(),
            name: Some(name),
            subresource: Some("binding".into()),
        };
        let pods = self.enter(call.pass.user(), "create", target, "")?;
        self.bind_by_object(&pods, binding, options).await
    }

    /// Assigns a pod to a node. `uid` is empty where any pod of that name will do.
    pub async fn bind(
        &self,
        call: &Call,
        node: &str,
        uid: &str,
        annotations: Value,
        options: &WriteOptions,
    ) -> Result<(), Error> {
        let change = Change::Bind { node: node.to_owned(), uid: uid.to_owned(), annotations };
        let place = call.place()?;
        self.registry()
            .update(&call.pass, &call.resource, place, Part::Binding, &change, &options.for_update(call)?)
            .await?;
        Ok(())
    }

    async fn issue_token(&self, call: &Call, mut request: Value) -> Result<Written, Error> {
        let (namespace, name) = call.place()?;
        let account = self.registry().get(&call.pass, &call.resource, (namespace, name), "").await?.value();
        let admitted = admission::Request {
            user: call.pass.user(),
            operation: Operation::Create,
            resource: &call.resource,
            subresource: call.subresource(),
            namespace,
            name,
            dry_run: false,
            object: &mut request,
            old: None,
        };
        self.registry().admit_connect(&admitted).await?;
        let uid = account["metadata"]["uid"].as_str().unwrap_or_default();
        let spec = &request["spec"];
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_TOKEN_SECONDS);
        let invalid = |error| Err(Error::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
        if seconds < MIN_TOKEN_SECONDS {
            return invalid(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration less than 10 minutes",
            ));
        }
        if seconds > MAX_TOKEN_SECONDS {
            return invalid(FieldError::invalid(
                "spec.expirationSeconds",
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
        let audiences =
            spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let audiences: Vec<String> = audiences.collect();
        let bound = spec["boundObjectRef"].clone();
        let (bound, node) = self.bound_object(call, namespace, name, &bound).await?;
        let wanted = TokenRequest {
            namespace,
            account: name,
            account_uid: uid,
            audiences: audiences.clone(),
            seconds,
            bound,
            node,
        };
        let tokens = self.authenticator().tokens();
        let (token, expires) = tokens.issue(wanted, unix_now());
        let expires = Timestamp::from_second(expires).map_err(Error::internal)?;
        request["kind"] = json!("TokenRequest");
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["metadata"] = json!({ "name": name, "namespace": namespace });
        request["spec"]["expirationSeconds"] = json!(seconds);
        request["spec"]["audiences"] =
            if audiences.is_empty() { json!([tokens.issuer()]) } else { json!(audiences) };
        request["status"] = json!({ "token": token, "expirationTimestamp": expires.to_string() });
        Ok(Written { reply: Reply::Value(request), created: true, warnings: Vec::new() })
    }

    /// Checks the object that a token is to be bound to: kind, name and uid, and the node of a pod.
    async fn bound_object(
        &self,
        call: &Call,
        namespace: &str,
        account: &str,
        reference: &Value,
    ) -> Result<(Option<(String, String, String)>, Option<(String, String)>), Error> {
        let Some(kind) = reference["kind"].as_str().filter(|kind| !kind.is_empty()) else {
            return Ok((None, None));
        };
        let name = reference["name"].as_str().unwrap_or_default();
        let (plural, namespace) = match kind {
            "Pod" => ("pods", namespace),
            "Secret" => ("secrets", namespace),
            "Node" => ("nodes", ""),
            _ => {
                return Err(Error::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to object kind {kind:?}"
                )));
            }
        };
        let resource = self.registry().resources().builtin("", "v1", plural);
        self.registry().cache().consistent().await?;
        let object = resource.cache()?.get(namespace, name).ok_or_else(|| resource.not_found(name))?.value();
        let found = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if reference["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid != found) {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                reference["uid"].as_str().unwrap_or_default()
            );
            return Err(Error::conflict(&resource.gvr, name, &why));
        }
        let mut node = None;
        if kind == "Pod" {
            if object["spec"]["serviceAccountName"] != account {
                return Err(Error::forbidden(
                    &call.resource.gvr,
                    account,
                    &format!(
                        "cannot bind token for serviceaccount {account:?} to pod {name:?} running with different serviceaccount name."
                    ),
                ));
            }
            if let Some(on) = object["spec"]["nodeName"].as_str().filter(|on| !on.is_empty()) {
                let nodes = self.registry().resources().builtin("", "v1", "nodes").cache()?;
                let uid = nodes.get("", on).map(|node| node.value()["metadata"]["uid"].clone());
                let uid = uid.and_then(|uid| uid.as_str().map(str::to_owned)).unwrap_or_default();
                node = Some((on.to_owned(), uid));
            }
        }
        Ok((Some((kind.to_owned(), name.to_owned(), found)), node))
    }
}
