//! Changing objects: replacing, patching, and the subresources that are views of a part.
//!
//! One loop for all: read, change, check, compare-and-put. A change that does not depend on the version that its author
//! saw (a patch, a replacement without resource version) is tried again on what is there now; one that does is refused.

use std::sync::Arc;

use hawser_api::{Error, FieldError, apply::ManagedFields};
use hawser_store::{Expect, Revision, Write};
use serde_json::{Value, json};

use super::{
    CreateOptions, Registry, check_pass,
    create::CHARGE_ATTEMPTS,
    metadata,
    ownership::{self, Writer},
    parse, store_error,
};
use crate::{
    admission::{Demand, Operation, Request},
    allocator::Allocations,
    cache::CachedObject,
    chain::Pass,
    codec, kinds,
    resources::Resource,
};

/// How often a change is tried again on a newer version. Each failure means that somebody else succeeded.
const ATTEMPTS: usize = 64;

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Which part of the object a change is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status, where that is apart.
    Main,
    Status,
    /// The object is sent and returned as `autoscaling/v1` Scale.
    Scale,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// The conditions of a CertificateSigningRequest, and its metadata.
    Approval,
    /// The containers for debugging of a pod.
    EphemeralContainers,
    /// The resources of a pod's containers.
    Resize,
    /// Where a pod runs; only [`Change::Bind`] has it.
    Binding,
}

impl Part {
    pub(super) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Binding => "binding",
        }
    }
}

/// What to do to the object.
pub enum Change {
    Replace(Value),
    Patch(codec::Patch),
    /// Server-side apply.
    Apply(codec::Apply),
    Bind {
        node: String,
        uid: String,
        annotations: Value,
    },
}

#[derive(Clone, Debug, Default)]
pub struct UpdateOptions {
    pub dry_run: bool,
    /// Who owns what the change sets.
    pub field_manager: String,
    /// Refused with Conflict where the object has another uid.
    pub uid: Option<String>,
}

/// What an update came to.
pub struct Updated {
    pub object: Arc<CachedObject>,
    /// A replacement made the object.
    pub created: bool,
    /// What the schema says about the patched object.
    pub warnings: Vec<String>,
}

impl Registry {
    /// Changes an object. Returns it as it is afterwards.
    pub async fn update(
        &self,
        pass: &Pass,
        resource: &Resource,
        (namespace, name): (&str, &str),
        part: Part,
        change: &Change,
        options: &UpdateOptions,
    ) -> Result<Updated, Error> {
        check_pass(pass, resource)?;
        let mut base = self.base(resource, namespace, name).await?;
        // Whether `base` was read from the store, not from the cache, which may be a moment behind.
        let mut fresh = false;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let planned = self.plan(pass, resource, &base, part, change, options).await;
            let unsure = match &planned {
                Ok(planned) => planned.is_nothing(),
                Err(error) => may_be_stale(error),
            };
            // A refusal, or that nothing changes, must be true of what is stored; a write finds out by itself.
            if unsure && !fresh {
                fresh = true;
                let newest = self.newest(resource, namespace, name).await?;
                if newest.revision() != base.revision() {
                    base = newest;
                    continue;
                }
            }
            let planned = planned?;
            if planned.is_nothing() {
                return Ok(Updated { object: base, created: false, warnings: planned.warnings });
            }
            let Planned { object, old, managed, demand, explicit_version, warnings, .. } = planned;
            if options.dry_run {
                drop(self.admission.charge(demand.as_ref()).await?);
                let json = resource.stored_json(&object, &managed)?.into();
                let object = CachedObject::parse(base.key().clone(), &json, base.revision())
                    .map_err(Error::internal)?;
                return Ok(Updated { object: Arc::new(object), created: false, warnings });
            }
            let written = if metadata::may_go(resource.stored, &object) {
                self.remove(resource, &base, (&object, &managed)).await
            } else {
                self.put(resource, &base, (object, &managed), &old, demand.as_ref()).await
            };
            match written {
                Ok(object) => return Ok(Updated { object, created: false, warnings }),
                Err(Failure::Moved(current)) if attempt < ATTEMPTS => {
                    let current = current.ok_or_else(|| resource.not_found(name))?;
                    if explicit_version {
                        return Err(Error::conflict(&resource.gvr, name, MODIFIED));
                    }
                    base = current;
                    fresh = true;
                }
                Err(Failure::Moved(_)) => return Err(Error::conflict(&resource.gvr, name, MODIFIED)),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    /// Creates the object that a replacement did not find; `missing` is what the replacement was told.
    ///
    /// `may_create` is asked only where the object is not there: whoever may update it learns from the refusal what not
    /// finding it would say as well.
    #[expect(clippy::too_many_arguments, reason = "everything of the update it stands in for")]
    pub async fn create_replaced(
        &self,
        pass: &Pass,
        resource: &Resource,
        (namespace, name): (&str, &str),
        object: &Value,
        options: &UpdateOptions,
        missing: Error,
        may_create: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Updated, Error> {
        check_pass(pass, resource)?;
        let version = metadata::text(object, "resourceVersion");
        let names_another =
            !version.is_empty() && version != "0" || !metadata::text(object, "uid").is_empty();
        if self.newest(resource, namespace, name).await.is_ok() {
            // Somebody else has created it meanwhile.
            let change = Change::Replace(object.clone());
            return self.update(pass, resource, (namespace, name), Part::Main, &change, options).await;
        }
        if names_another {
            return Err(missing);
        }
        check_name(object, name)?;
        may_create()?;
        let mut object = object.clone();
        metadata::of(&mut object)?.remove("resourceVersion");
        let create = CreateOptions { dry_run: options.dry_run, field_manager: options.field_manager.clone() };
        let object = self.create(pass, resource, namespace, object, &create).await?;
        Ok(Updated { object, created: true, warnings: Vec::new() })
    }

    /// What the object becomes: changed, defaulted, admitted and validated.
    async fn plan(
        &self,
        pass: &Pass,
        resource: &Resource,
        base: &CachedObject,
        part: Part,
        change: &Change,
        options: &UpdateOptions,
    ) -> Result<Planned, Error> {
        let name = base.name();
        let (mut old, live_managed) = base.parts();
        let writer = Writer { resource, part, manager: &options.field_manager };
        let Changed { mut object, applied, warnings } =
            self.changed(writer, (&old, &live_managed), change)?;
        let explicit_version = check_version(resource, base, change, &object)?;
        check_uid(resource, name, options.uid.as_deref(), &old)?;
        check_uid(resource, name, object["metadata"]["uid"].as_str(), &old)?;
        let sent = ownership::take_sent(&mut object)?;
        metadata::of(&mut object)?.remove("resourceVersion");
        metadata::of(&mut old)?.remove("resourceVersion");
        let stored = resource.stored;
        match part {
            Part::Main | Part::Scale | Part::EphemeralContainers | Part::Resize => {
                metadata::settle_namespace(
                    resource,
                    &mut object,
                    old["metadata"]["namespace"].as_str().unwrap_or(""),
                )?;
                kinds::default(stored, &mut object);
                match part {
                    Part::EphemeralContainers => kinds::prepare_ephemeral(&mut object, &old),
                    Part::Resize => kinds::prepare_resize(&mut object, &old),
                    _ => {}
                }
                kinds::prepare_update(stored, &mut object, &old);
            }
            Part::Status => {
                kinds::default(stored, &mut object);
                kinds::prepare_status(stored, &mut object, &old);
                metadata::of(&mut object)?.remove("resourceVersion");
            }
            Part::Finalize => {
                kinds::default(stored, &mut object);
                kinds::prepare_finalize(&mut object, &old);
            }
            Part::Approval => {
                kinds::default(stored, &mut object);
                kinds::prepare_approval(&mut object, &old);
            }
            Part::Binding => {}
        }
        let managed = applied.unwrap_or_else(|| {
            let managed = ownership::begin_with(sent, live_managed.clone(), part);
            self.own_updated(writer, (&old, &object), managed)
        });
        let mut request = Request {
            user: pass.user(),
            operation: Operation::Update,
            resource,
            subresource: part.subresource(),
            namespace: old["metadata"]["namespace"].as_str().unwrap_or_default(),
            name,
            dry_run: options.dry_run,
            object: &mut object,
            old: Some(&old),
        };
        self.admission.mutate(&mut request).await?;
        let errors = match part {
            Part::Main | Part::Scale | Part::Finalize => kinds::validate_update(stored, request.object, &old),
            Part::Status => kinds::validate_status(stored, request.object, &old),
            Part::Approval => kinds::validate_approval(stored, request.object, &old),
            Part::EphemeralContainers => {
                kinds::validate_change(stored, request.object, &old, kinds::validate_ephemeral)
            }
            Part::Resize => kinds::validate_change(stored, request.object, &old, kinds::validate_resize),
            Part::Binding => Vec::new(),
        };
        if !errors.is_empty() {
            return Err(Error::invalid(resource.row.group, resource.row.kind, name, &errors));
        }
        self.admission.validate(&request).await?;
        let demand = self.admission.demand(&request);
        Ok(Planned { object, old, managed, live_managed, demand, explicit_version, warnings })
    }

    async fn put(
        &self,
        resource: &Resource,
        base: &CachedObject,
        (mut object, managed): (Value, &ManagedFields),
        old: &Value,
        demand: Option<&Demand>,
    ) -> Result<Arc<CachedObject>, Failure> {
        let allocations =
            self.allocators.allocate(resource, &mut object, Some(old)).map_err(Failure::Other)?;
        let json: bytes::Bytes = resource.stored_json(&object, managed).map_err(Failure::Other)?.into();
        let announced = self.cache.announce(base.key().clone(), json.clone(), &object);
        match self.put_charged(base, &json, &allocations, demand).await? {
            Ok(revision) => {
                announced.written(revision).map_err(|error| Failure::Other(Error::internal(error)))
            }
            Err(hawser_store::Error::Conflict { key, .. }) if key != *base.key() => {
                allocations.lost(resource, &object, &key).map_err(Failure::Other)?;
                // Tried again from the start, with another address or port.
                let newest =
                    self.store.get(base.key()).await.map_err(|error| Failure::Other(store_error(error)))?;
                Err(moved(newest.as_ref()))
            }
            Err(error) => Err(failure(error)),
        }
    }

    /// Puts the object with what it claims, releases and takes from quotas; charges again where another server, or the
    /// quota's controller, was faster.
    async fn put_charged(
        &self,
        base: &CachedObject,
        json: &bytes::Bytes,
        allocations: &Allocations,
        demand: Option<&Demand>,
    ) -> Result<Result<Revision, hawser_store::Error>, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let charge = self.admission.charge(demand).await.map_err(Failure::Other)?;
            let write = Write::put(base.key().clone(), json.clone(), Expect::Revision(base.revision()));
            match self.commit(write, allocations, charge.writes()).await {
                Ok(revision) => {
                    charge.made(revision);
                    return Ok(Ok(revision));
                }
                Err(hawser_store::Error::Conflict { key, .. })
                    if charge.writes_to(&key) && attempt < CHARGE_ATTEMPTS =>
                {
                    self.cache.consistent().await.map_err(Failure::Other)?;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Puts an object whose allocations do not change.
    pub(super) async fn put_as_is(
        &self,
        resource: &Resource,
        base: &CachedObject,
        (object, managed): (&Value, &ManagedFields),
    ) -> Result<Arc<CachedObject>, Failure> {
        let json: bytes::Bytes = resource.stored_json(object, managed).map_err(Failure::Other)?.into();
        let write = Write::put(base.key().clone(), json.clone(), Expect::Revision(base.revision()));
        let announced = self.cache.announce(base.key().clone(), json, object);
        let written = self.store.write(write).await.map_err(failure)?;
        announced.written(written.revision).map_err(|error| Failure::Other(Error::internal(error)))
    }

    /// Removes an object that an update left free to go; returns its last state.
    pub(super) async fn remove(
        &self,
        resource: &Resource,
        base: &CachedObject,
        (last, managed): (&Value, &ManagedFields),
    ) -> Result<Arc<CachedObject>, Failure> {
        let write = Write::delete(base.key().clone(), Expect::Revision(base.revision()));
        let revision =
            self.commit(write, &self.allocators.release(resource, &base.value()), Vec::new()).await;
        let revision = revision.map_err(failure)?;
        let json = resource.stored_json(last, managed).map_err(Failure::Other)?.into();
        CachedObject::parse(base.key().clone(), &json, revision)
            .map(Arc::new)
            .map_err(|error| Failure::Other(Error::internal(error)))
    }
}

struct Planned {
    object: Value,
    /// Without resource version, as `object`.
    old: Value,
    /// The owners of the object's fields, and those of the old one's.
    managed: ManagedFields,
    live_managed: ManagedFields,
    /// What it takes from quotas.
    demand: Option<Demand>,
    /// The author named the version that the change is for.
    explicit_version: bool,
    warnings: Vec<String>,
}

impl Planned {
    /// Whether nothing is to be written. When owners did what they did is no change by itself.
    fn is_nothing(&self) -> bool {
        self.object == self.old && self.managed.same_but_times(&self.live_managed)
    }
}

/// An object after a change, in the storage version, with the resource version that the change asks for.
struct Changed {
    object: Value,
    /// The owners that an apply leaves.
    applied: Option<ManagedFields>,
    warnings: Vec<String>,
}

pub(super) enum Failure {
    /// The object changed meanwhile; `None` where it is gone.
    Moved(Option<Arc<CachedObject>>),
    Other(Error),
}

fn moved(current: Option<&hawser_store::KeyValue>) -> Failure {
    match current.map(parse).transpose() {
        Ok(current) => Failure::Moved(current),
        Err(error) => Failure::Other(error),
    }
}

fn failure(error: hawser_store::Error) -> Failure {
    match error {
        hawser_store::Error::Conflict { current, .. } => moved(current.as_deref()),
        error => Failure::Other(store_error(error)),
    }
}

/// Refusals that depend on the version of the object that was looked at.
fn may_be_stale(error: &Error) -> bool {
    error.is_conflict() || matches!(error.reason(), hawser_api::error::Reason::Invalid)
}

impl Registry {
    fn changed(
        &self,
        writer: Writer<'_>,
        (old, managed): (&Value, &ManagedFields),
        change: &Change,
    ) -> Result<Changed, Error> {
        let Writer { resource, part, .. } = writer;
        let name = metadata::text(old, "name");
        let (object, warnings) = match (change, part) {
            (Change::Apply(apply), _) => {
                check_name(&apply.config, name)?;
                let applied = self.apply(writer, Some(old), apply, managed.clone())?;
                let (object, applied) = (applied.object, Some(applied.managed));
                return Ok(Changed { object, applied, warnings: Vec::new() });
            }
            (Change::Replace(scale), Part::Scale) => {
                check_name(scale, name)?;
                let mut scale = scale.clone();
                resource.check_type(&mut scale, "Scale", "autoscaling/v1")?;
                (scaled(resource, old, &scale)?, Vec::new())
            }
            (Change::Patch(patch), Part::Scale) => {
                let scale =
                    kinds::scale_of(resource.stored, old).ok_or_else(crate::resources::method_not_allowed)?;
                let (scale, warnings) = patch.apply(&scale)?;
                (scaled(resource, old, &scale)?, warnings)
            }
            (Change::Replace(object), _) => {
                let mut object = object.clone();
                resource.check_type(&mut object, resource.row.kind, &resource.api_version)?;
                resource.to_storage(&mut object);
                check_name(&object, name)?;
                (object, Vec::new())
            }
            (Change::Patch(patch), _) => {
                let mut shown = old.clone();
                if patch.concerns_owners() && !managed.is_empty() {
                    metadata::of(&mut shown)?.insert("managedFields".to_owned(), managed.to_value());
                }
                resource.from_storage(&mut shown);
                let (mut object, warnings) = patch.apply(&shown)?;
                resource.check_type(&mut object, resource.row.kind, &resource.api_version)?;
                resource.to_storage(&mut object);
                check_name(&object, name)?;
                (object, warnings)
            }
            (Change::Bind { node, uid, annotations }, _) => {
                (bound(resource, old, node, uid, annotations)?, Vec::new())
            }
        };
        Ok(Changed { object, applied: None, warnings })
    }
}

fn scaled(resource: &Resource, old: &Value, scale: &Value) -> Result<Value, Error> {
    kinds::scaled(resource.stored, old, scale)
        .map_err(|errors| Error::invalid("autoscaling", "Scale", metadata::text(old, "name"), &errors))
}

/// The pod, bound to a node.
fn bound(
    resource: &Resource,
    old: &Value,
    node: &str,
    uid: &str,
    annotations: &Value,
) -> Result<Value, Error> {
    let name = metadata::text(old, "name");
    check_uid(resource, name, Some(uid).filter(|uid| !uid.is_empty()), old)?;
    let refuse = |why: String| Err(Error::conflict(&resource.gvr, name, &why));
    if metadata::is_deleting(old) {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(taken) = old["spec"]["nodeName"].as_str().filter(|taken| !taken.is_empty()) {
        return refuse(format!("pod {name} is already assigned to node {taken:?}"));
    }
    if old["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = json!(node);
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    if let Some(annotations) = annotations.as_object().filter(|annotations| !annotations.is_empty()) {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    let scheduled =
        json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": metadata::now() });
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let others = conditions.into_iter().filter(|condition| condition["type"] != "PodScheduled");
    pod["status"]["conditions"] = others.chain([scheduled]).collect();
    Ok(pod)
}

fn check_name(object: &Value, name: &str) -> Result<(), Error> {
    let found = metadata::text(object, "name");
    if found.is_empty() {
        return Err(Error::bad_request("name must be provided"));
    }
    if found != name {
        return Err(Error::bad_request(format!(
            "the name of the object ({found}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

/// Holds the change to the version that its author saw; true where there is one.
fn check_version(
    resource: &Resource,
    base: &CachedObject,
    change: &Change,
    object: &Value,
) -> Result<bool, Error> {
    let version = metadata::text(object, "resourceVersion");
    let seen = version.parse::<u64>().ok();
    let explicit = match change {
        Change::Replace(_) => !version.is_empty() && version != "0",
        // A patch that says nothing of the version leaves the base's own.
        Change::Patch(_) => {
            seen != Some(base.revision()) && !version.is_empty() || change_names_version(change)
        }
        Change::Apply(apply) => !metadata::text(&apply.config, "resourceVersion").is_empty(),
        Change::Bind { .. } => false,
    };
    if !explicit && matches!(change, Change::Replace(_)) && kinds::needs_version(resource.stored) {
        let why = "must be specified for an update";
        let error = FieldError::invalid("metadata.resourceVersion", version, why);
        return Err(Error::invalid(resource.row.group, resource.row.kind, base.name(), &[error]));
    }
    if !explicit {
        return Ok(false);
    }
    if seen.is_none() {
        return Err(Error::bad_request(format!(
            "resourceVersion: Invalid value: {version:?}: must be a number"
        )));
    }
    if seen != Some(base.revision()) {
        return Err(Error::conflict(&resource.gvr, base.name(), MODIFIED));
    }
    Ok(true)
}

fn change_names_version(change: &Change) -> bool {
    matches!(change, Change::Patch(patch) if patch.names_version())
}

fn check_uid(resource: &Resource, name: &str, uid: Option<&str>, old: &Value) -> Result<(), Error> {
    let found = metadata::text(old, "uid");
    match uid {
        Some(uid) if uid != found => Err(Error::conflict(
            &resource.gvr,
            name,
            &format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"),
        )),
        _ => Ok(()),
    }
}
