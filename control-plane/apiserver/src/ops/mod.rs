//! What can be done to resources, whoever asks: HTTP, gRPC and the components in this process all call this.
//!
//! Each call is one request: [`ApiServer::enter`] takes it through the chain, and the operation gets the pass. Here verbs
//! meet subresources; what an object is like afterwards is the registry's matter.

mod access;
mod connect;
mod eviction;
pub mod options;
mod proxy;
mod reviews;
mod subresources;
mod usage;

pub use connect::{Kubelet, KubeletEndpoint, StreamKind, is_true};
pub use proxy::{PodPort, ProxyTarget};

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::{
    Error, FieldError, apply, resource::Target, schema::FieldValidation, selector::FieldSelector,
};
use serde_json::{Value, json};

use crate::{
    ApiServer,
    admission::{self, warnings},
    auth::{Attributes, NODE_PREFIX, User},
    cache::{CachedObject, Encoded, Selected, Selection, Watcher},
    chain::{Entry, Pass},
    codec::{self, Decoded},
    kinds,
    local::expected_type,
    registry::{
        Change, CreateOptions, DeleteRequest, Deleted, DeletedCollection, ListRequest, Listed, Part,
        UpdateOptions, VersionMatch, WatchStart, version,
    },
    resources::{Resource, method_not_allowed},
};

/// A request that may come in, and what it is about; its body is still to be read.
pub struct Admitted {
    pub(crate) entry: Entry,
    resource: Arc<Resource>,
    target: Target,
}

/// A request that passed the chain, and what it is about.
pub struct Call {
    pub pass: Pass,
    pub resource: Arc<Resource>,
    pub target: Target,
}

impl Call {
    fn subresource(&self) -> &str {
        self.target.subresource.as_deref().unwrap_or_default()
    }

    /// Namespace and name of the object.
    fn place(&self) -> Result<(&str, &str), Error> {
        let name = self.target.name.as_deref().ok_or_else(method_not_allowed)?;
        Ok((self.namespace(), name))
    }

    fn namespace(&self) -> &str {
        self.target.namespace.as_deref().unwrap_or_default()
    }

    /// What is said with the answer to a read.
    pub fn read_warnings(&self) -> Vec<String> {
        deprecation(&self.resource).into_iter().collect()
    }

    /// The one that was authorized: never another of the request.
    fn field_selector(&self) -> &str {
        &self.pass.attributes().field_selector
    }
}

/// An applied configuration as a request carries it.
#[derive(Clone, Debug)]
pub struct Apply {
    /// YAML, or JSON, which is some.
    pub body: Bytes,
    /// Fields are taken from their managers.
    pub force: bool,
    pub validation: FieldValidation,
}

/// What an operation returns.
pub enum Reply {
    /// An object of the resource, in any encoding.
    Object(Arc<CachedObject>),
    /// Something that is not stored: a Status, a Scale, a review.
    Value(Value),
}

/// The answer to a write.
pub struct Written {
    pub reply: Reply,
    pub created: bool,
    pub warnings: Vec<String>,
}

impl Written {
    /// Puts what was to be said before the write in front of its own warnings.
    fn after(mut self, mut warnings: Vec<String>) -> Self {
        warnings.append(&mut self.warnings);
        Self { warnings, ..self }
    }
}

impl From<Reply> for Written {
    fn from(reply: Reply) -> Self {
        Self { reply, created: false, warnings: Vec::new() }
    }
}

/// Options of creates, updates and patches.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    /// As the request names it; may be empty but for an apply.
    pub field_manager: String,
    /// The program that asks, as it names itself; empty inside the server's own process.
    pub user_agent: String,
    /// Only an object with this uid is changed.
    pub uid: Option<String>,
}

impl WriteOptions {
    fn for_create(&self, call: &Call) -> Result<CreateOptions, Error> {
        let field_manager = self.manager(call)?;
        Ok(CreateOptions { dry_run: self.dry_run, field_manager })
    }

    fn for_update(&self, call: &Call) -> Result<UpdateOptions, Error> {
        let field_manager = self.manager(call)?;
        let (dry_run, uid) = (self.dry_run, self.uid.clone());
        Ok(UpdateOptions { dry_run, field_manager, uid })
    }

    /// Who owns what is written: as the request says, or the program that asks.
    fn manager(&self, call: &Call) -> Result<String, Error> {
        let (user, verb) = (call.pass.user(), &call.pass.attributes().verb);
        if !self.field_manager.is_empty() {
            apply::validate_manager(&self.field_manager)
                .map_err(|error| invalid_options(options::kind(verb), error))?;
            return Ok(self.field_manager.clone());
        }
        let named = apply::manager_of_user_agent(&self.user_agent);
        if !named.is_empty() {
            return Ok(named);
        }
        Ok(match user.name.strip_prefix("system:") {
            Some(name) if user.name.starts_with(NODE_PREFIX) && !name.is_empty() => "node-agent".to_owned(),
            Some(name) => apply::manager_of_user_agent(name.rsplit(':').next().unwrap_or(name)),
            None => "unknown".to_owned(),
        })
    }
}

fn invalid_options(options: &str, error: FieldError) -> Error {
    Error::invalid("meta.k8s.io", options, "", &[error])
}

/// Parameters of a watch.
#[derive(Clone, Debug, Default)]
pub struct WatchRequest {
    pub label_selector: String,
    pub resource_version: String,
    /// `None` leaves it to the resource version: unset and 0 begin with what exists.
    pub send_initial_events: Option<bool>,
    pub version_match: VersionMatch,
    /// What only a list may say.
    pub continue_token: String,
}

/// A watch that was opened.
pub struct Watched {
    /// What exists, and as of which revision.
    pub existing: Option<(Selected, u64)>,
    pub watcher: Watcher,
    /// The end of what exists is to be marked by a bookmark (KEP-3157).
    pub mark_initial_end: bool,
}

impl ApiServer {
    /// Takes a request that is all there through the chain.
    pub fn enter(
        &self,
        user: &Arc<User>,
        verb: &'static str,
        target: Target,
        field_selector: &str,
    ) -> Result<Call, Error> {
        self.begin(self.admit(user, verb, target, field_selector)?)
    }

    /// Takes a request up to its body, which is to be read next; [`ApiServer::begin`] is to follow.
    pub fn admit(
        &self,
        user: &Arc<User>,
        verb: &'static str,
        target: Target,
        field_selector: &str,
    ) -> Result<Admitted, Error> {
        // What is not served is 404 only for those who may ask: so the chain comes first.
        let entry = self.chain().admit(user, attributes_of(verb, &target, field_selector))?;
        let resource = self.registry().resources().of(&target.resource)?.clone();
        // A namespace in the path of what is in none would let its RoleBindings decide about the whole cluster.
        if !resource.row.namespaced && target.namespace.is_some()
            || resource.row.namespaced && target.name.is_some() && target.namespace.is_none()
        {
            return Err(Error::new(
                hawser_api::error::Reason::NotFound,
                "the server could not find the requested resource",
            ));
        }
        check_verb(&resource, &target, verb)?;
        Ok(Admitted { entry, resource, target })
    }

    /// Takes the rest of the way through the chain: from here on the request has its place.
    pub fn begin(&self, admitted: Admitted) -> Result<Call, Error> {
        let Admitted { entry, resource, target } = admitted;
        Ok(Call { pass: self.chain().place(entry)?, resource, target })
    }

    pub async fn get(&self, call: &Call, resource_version: &str) -> Result<Reply, Error> {
        let place = call.place()?;
        if is_component_status(&call.resource) {
            return Err(call.resource.not_found(place.1));
        }
        if usage::is_usage(&call.resource) {
            return self.get_usage(call).await;
        }
        let object = self.registry().get(&call.pass, &call.resource, place, resource_version).await?;
        match call.subresource() {
            "" | "status" | "approval" | "ephemeralcontainers" | "resize" => Ok(Reply::Object(object)),
            "scale" => scale_of(&call.resource, &object),
            _ => Err(method_not_allowed()),
        }
    }

    /// Whether a user may read this object, for streams that send many.
    pub(crate) fn may_get(&self, user: &User, target: &Target) -> bool {
        self.chain().authorize(user, &attributes_of("get", target, "")).is_ok()
    }

    pub async fn list(&self, call: &Call, request: &ListRequest) -> Result<Listed, Error> {
        options::check_list(request)?;
        if is_component_status(&call.resource) {
            return Ok(Listed::of(Vec::new(), self.registry().cache().consistent().await?));
        }
        if usage::is_usage(&call.resource) {
            return self.list_usage(call, &narrowed(call, request)).await;
        }
        self.registry().list(&call.pass, &call.resource, &narrowed(call, request)).await
    }

    pub async fn watch(&self, call: &Call, request: &WatchRequest) -> Result<Watched, Error> {
        options::check_watch(request)?;
        let cache = call.resource.cache()?;
        let namespace = Some(call.namespace()).filter(|namespace| !namespace.is_empty());
        let mut selection =
            Selection::parse(cache, namespace, &request.label_selector, call.field_selector())?;
        if let Some(name) = &call.target.name {
            let fields = FieldSelector::parse(call.field_selector())?;
            if !fields.is_everything() && fields.exact("metadata.name") != Some(name.as_str()) {
                return Err(Error::bad_request("fieldSelector metadata.name doesn't match requested name"));
            }
            selection.narrow_name(name);
        }
        let asked = version(&request.resource_version)?;
        let existing = match request.send_initial_events {
            Some(send) => send,
            None => matches!(asked, None | Some(0)),
        };
        if let (true, Some(asked)) = (existing, asked) {
            // What exists is not shown as of before what the client has seen.
            self.registry().cache().wait_for(asked).await?;
        }
        let start = match (existing, asked) {
            (true, _) => WatchStart::Existing,
            (false, Some(revision)) if revision > 0 => WatchStart::After(revision),
            (false, _) => WatchStart::After(self.registry().cache().consistent().await?),
        };
        let (existing, watcher) = self.registry().watch(&call.pass, &call.resource, selection, start).await?;
        Ok(Watched { existing, watcher, mark_initial_end: request.send_initial_events == Some(true) })
    }

    /// Creates an object, or hands it to a subresource or a kind that only answers.
    pub async fn create(&self, call: &Call, object: Value, options: &WriteOptions) -> Result<Written, Error> {
        if let Some(answer) = self.review(call, &object)? {
            return Ok(Written { reply: Reply::Value(answer), created: true, warnings: Vec::new() });
        }
        if !call.subresource().is_empty() || call.resource.storage().is_none() {
            return Box::pin(self.create_subresource(call, object, options)).await;
        }
        let create = options.for_create(call)?;
        let work = self.registry().create(&call.pass, &call.resource, call.namespace(), object, &create);
        let (object, warnings) = warnings::collect(Box::pin(work)).await;
        self.created(call, object?, warnings).await
    }

    pub async fn update(&self, call: &Call, object: Value, options: &WriteOptions) -> Result<Written, Error> {
        self.change(call, Change::Replace(object), options).await
    }

    pub async fn patch(
        &self,
        call: &Call,
        patch: codec::Patch,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.change(call, Change::Patch(patch), options).await
    }

    /// Server-side apply: changes the object, or creates it where there is none.
    pub async fn apply(&self, call: &Call, apply: Apply, options: &WriteOptions) -> Result<Written, Error> {
        if options.field_manager.is_empty() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(invalid_options("PatchOptions", error));
        }
        let (api_version, kind) = expected_type(&call.resource, &call.target);
        let expected = (api_version.as_str(), kind.as_str());
        let Decoded { object: mut config, warnings } =
            codec::decode_applied(&apply.body, expected, apply.validation)?;
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Error::bad_request("metadata.managedFields must be nil"));
        }
        name_config(&mut config, call.place()?.1);
        let apply = codec::Apply { config, force: apply.force };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let missing = match self.change(call, Change::Apply(apply.clone()), options).await {
                Err(error) if error.is_not_found() && call.subresource().is_empty() => error,
                written => return written.map(|written| written.after(warnings)),
            };
            match self.create_applied(call, &apply, options, missing).await {
                // Somebody else was faster.
                Err(error) if error.is_already_exists() && attempt < APPLY_ATTEMPTS => {}
                created => return created.map(|written| written.after(warnings)),
            }
        }
    }

    /// Whoever applies what is not there must be allowed to create it.
    async fn create_applied(
        &self,
        call: &Call,
        apply: &codec::Apply,
        options: &WriteOptions,
        missing: Error,
    ) -> Result<Written, Error> {
        if !call.resource.row.has_verb("create") {
            return Err(missing);
        }
        self.chain().authorize(call.pass.user(), &attributes_of("create", &call.target, ""))?;
        if let Some(uid) = apply.config["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Error::conflict(&call.resource.gvr, call.place()?.1, &why));
        }
        let create = options.for_create(call)?;
        let (pass, resource) = (&call.pass, &call.resource);
        let work = self.registry().create_applied(pass, resource, call.namespace(), apply, &create);
        let (object, warnings) = warnings::collect(Box::pin(work)).await;
        self.created(call, object?, warnings).await
    }

    async fn created(
        &self,
        call: &Call,
        object: Arc<CachedObject>,
        mut warnings: Vec<String>,
    ) -> Result<Written, Error> {
        self.settle(&call.resource, &object).await?;
        warnings.extend(about_kind(&call.resource));
        Ok(Written { reply: Reply::Object(object), created: true, warnings })
    }

    async fn change(&self, call: &Call, change: Change, options: &WriteOptions) -> Result<Written, Error> {
        let part = match call.subresource() {
            "" => Part::Main,
            "status" => Part::Status,
            "scale" => Part::Scale,
            "finalize" => Part::Finalize,
            "approval" => Part::Approval,
            "ephemeralcontainers" => Part::EphemeralContainers,
            "resize" => Part::Resize,
            _ => return Err(method_not_allowed()),
        };
        let options = options.for_update(call)?;
        let (pass, resource, place) = (&call.pass, &call.resource, call.place()?);
        let creates = kinds::hooks(resource.stored.group, resource.stored.plural).create_on_update;
        let work = async {
            let updated = self.registry().update(pass, resource, place, part, &change, &options).await;
            match (updated, &change) {
                (Err(missing), Change::Replace(object))
                    if missing.is_not_found() && creates && part == Part::Main =>
                {
                    let create = attributes_of("create", &call.target, "");
                    let may_create = || self.chain().authorize(pass.user(), &create);
                    let created = self
                        .registry()
                        .create_replaced(pass, resource, place, object, &options, missing, may_create);
                    Box::pin(created).await
                }
                (updated, _) => updated,
            }
        };
        let (updated, warnings) = warnings::collect(Box::pin(work)).await;
        let mut updated = updated?;
        updated.warnings.extend(warnings);
        self.settle(&call.resource, &updated.object).await?;
        let reply = match part {
            Part::Scale => scale_of(&call.resource, &updated.object)?,
            _ => Reply::Object(updated.object),
        };
        let mut warnings = updated.warnings;
        warnings.extend(about_kind(&call.resource));
        Ok(Written { reply, created: updated.created, warnings })
    }

    pub async fn delete(&self, call: &Call, request: &DeleteRequest) -> Result<Written, Error> {
        // Whoever may DELETE through an object's proxy may not delete the object.
        if !call.subresource().is_empty() {
            return Err(method_not_allowed());
        }
        let deleted = self.registry().delete(&call.pass, &call.resource, call.place()?, request).await?;
        if !request.dry_run {
            self.settle(&call.resource, deleted.object()).await?;
        }
        let reply = match deleted {
            Deleted::Going(object) => Reply::Object(object),
            Deleted::Gone(object) if returns_deleted(&call.resource) => Reply::Object(object),
            Deleted::Gone(object) => Reply::Value(success(&call.resource, &object)),
        };
        Ok(Written { reply, created: false, warnings: deletion_warnings(&call.resource, request) })
    }

    /// Admission and RBAC read some kinds from the cache: who was told that a namespace is going must not see it filled
    /// after, who was told of a limit finds it heeded, and who was given a right may use it.
    async fn settle(&self, resource: &Resource, written: &CachedObject) -> Result<(), Error> {
        if admission::is_read(resource) {
            self.registry().cache().wait_for(written.revision()).await?;
        }
        Ok(())
    }

    pub async fn delete_collection(
        &self,
        call: &Call,
        list: &ListRequest,
        request: &DeleteRequest,
    ) -> Result<(DeletedCollection, Vec<String>), Error> {
        options::check_list(list)?;
        let list = narrowed(call, list);
        let deleted = self.registry().delete_collection(&call.pass, &call.resource, &list, request).await?;
        if admission::is_read(&call.resource) {
            self.registry().cache().consistent().await?;
        }
        Ok((deleted, deletion_warnings(&call.resource, request)))
    }
}

/// How often an apply is tried on what is there and on what is not.
const APPLY_ATTEMPTS: usize = 4;

/// Gives a configuration the name of its place where it says none.
fn name_config(config: &mut Value, name: &str) {
    if config["metadata"]["name"].as_str().unwrap_or_default().is_empty()
        && let Some(members) = config.as_object_mut()
        && let Value::Object(metadata) = members.entry("metadata").or_insert_with(|| json!({}))
    {
        metadata.insert("name".to_owned(), name.into());
    }
}

/// ComponentStatuses are not stored, and none is made: the components are one process here, or look after themselves.
fn is_component_status(resource: &Resource) -> bool {
    resource.row.group.is_empty() && resource.row.plural == "componentstatuses"
}

/// A request as authorization sees it.
fn attributes_of(verb: &'static str, target: &Target, field_selector: &str) -> Attributes {
    let mut name = target.name.clone().unwrap_or_default();
    if name.is_empty() && matches!(verb, "list" | "watch") {
        // A collection of one is about that object, as upstream sees it: how kubelets follow a Secret.
        let selector = FieldSelector::parse(field_selector).unwrap_or_default();
        name = selector.exact("metadata.name").unwrap_or_default().to_owned();
    }
    // A namespace itself is ruled by the RoleBindings in it, as upstream has it.
    let is_namespace = target.resource.group.is_empty() && target.resource.resource == "namespaces";
    let namespace = target.namespace.as_ref().or(target.name.as_ref().filter(|_| is_namespace));
    Attributes {
        verb: verb.into(),
        resource: target.resource.resource.to_string(),
        group: target.resource.group.to_string(),
        version: target.resource.version.to_string(),
        subresource: target.subresource.as_deref().unwrap_or_default().to_owned(),
        namespace: namespace.cloned().unwrap_or_default(),
        name,
        field_selector: field_selector.to_owned(),
        path: String::new(),
    }
}

/// The list that was authorized, whatever the request says: its namespace, name and field selector are the call's.
fn narrowed(call: &Call, request: &ListRequest) -> ListRequest {
    ListRequest {
        namespace: call.namespace().to_owned(),
        name: call.target.name.clone(),
        field_selector: call.field_selector().to_owned(),
        ..request.clone()
    }
}

/// 405 for what the table of kinds does not list.
fn check_verb(resource: &Resource, target: &Target, verb: &str) -> Result<(), Error> {
    let served = match target.subresource.as_deref() {
        // A name in the path would be authorized, and that in the body created.
        None | Some("") => resource.row.has_verb(verb) && (verb != "create" || target.name.is_none()),
        Some(subresource) => {
            let found = resource.row.subresource(subresource).ok_or_else(|| {
                Error::new(
                    hawser_api::error::Reason::NotFound,
                    "the server could not find the requested resource",
                )
            })?;
            // OPTIONS, which has no verb, passes a proxy as every other method.
            found.verbs.contains(&verb) || (subresource == "proxy" && verb.is_empty())
        }
    };
    if served { Ok(()) } else { Err(method_not_allowed()) }
}

/// What is said of a deletion. Whoever deletes a Job without a word on its pods is told what becomes of them, in upstream's
/// words.
fn deletion_warnings(resource: &Resource, request: &DeleteRequest) -> Vec<String> {
    let is_job = resource.row.group == "batch" && resource.row.plural == "jobs";
    let orphans = (is_job && request.propagation.is_none()).then(|| {
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
         set propagationPolicy=Orphan to suppress this warning"
            .to_owned()
    });
    deprecation(resource).into_iter().chain(orphans).collect()
}

/// What is said with every write of such objects: that the kind is old, or that nothing acts on it, where that is so.
fn about_kind(resource: &Resource) -> impl Iterator<Item = String> {
    let unheeded = kinds::hooks(resource.row.group, resource.row.plural).warning;
    deprecation(resource).into_iter().chain(unheeded.map(str::to_owned))
}

fn deprecation(resource: &Resource) -> Option<String> {
    kinds::hooks(resource.row.group, resource.row.plural).deprecation.map(str::to_owned)
}

fn scale_of(resource: &Resource, object: &CachedObject) -> Result<Reply, Error> {
    kinds::scale_of(resource.stored, &object.value()).map(Reply::Value).ok_or_else(method_not_allowed)
}

/// Kinds whose deletion answers with the object; the others with a Status, as upstream.
fn returns_deleted(resource: &Resource) -> bool {
    match resource.row.group {
        "" => matches!(
            resource.row.plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
                | "podtemplates"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => resource.row.plural != "csistoragecapacities",
        _ => false,
    }
}

fn success(resource: &Resource, object: &CachedObject) -> Value {
    let mut details = json!({ "name": object.name(), "kind": resource.row.plural });
    if !resource.row.group.is_empty() {
        details["group"] = json!(resource.row.group);
    }
    if let Some(uid) = object.value()["metadata"]["uid"].as_str() {
        details["uid"] = json!(uid);
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

impl Resource {
    /// The bytes of an object under this resource: the stored ones, or those of the view.
    pub fn encoded<'a>(&self, object: &'a CachedObject) -> Result<&'a Encoded, Error> {
        if !self.is_view() {
            return Ok(object.encoded());
        }
        let convert = |mut value: Value| {
            self.from_storage(&mut value);
            codec::canonical_json(&value).ok()
        };
        object.view(convert).ok_or_else(|| Error::internal("the object cannot be converted"))
    }

    /// The object as a tree under this resource.
    pub fn value(&self, object: &CachedObject) -> Result<Value, Error> {
        serde_json::from_slice(self.encoded(object)?.json()).map_err(Error::internal)
    }
}
