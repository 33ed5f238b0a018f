//! Creating objects.

use std::sync::Arc;

use hawser_api::{Error, apply::ManagedFields};
use hawser_store::{Key, Write};
use serde_json::Value;

use super::{
    Part, Registry, check_pass, metadata,
    ownership::{self, Writer},
    store_error,
};
use crate::{
    admission::{Demand, Operation, Request},
    cache::CachedObject,
    chain::Pass,
    codec, kinds,
    resources::Resource,
};

/// Attempts to find a free name for `generateName`, as upstream.
const NAME_ATTEMPTS: usize = 8;

/// Attempts to find free addresses and ports that another server has not taken meanwhile.
const ALLOCATION_ATTEMPTS: usize = 16;

/// Attempts to charge quotas that others write at the same time. Each failure means that somebody else succeeded.
pub(super) const CHARGE_ATTEMPTS: usize = 64;

#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    pub dry_run: bool,
    /// Who owns what the object says.
    pub field_manager: String,
}

/// Owners of a new object's fields.
#[derive(Clone)]
enum Owners {
    /// The one who creates it, and those that the object itself names.
    Creator { sent: Option<Value> },
    /// Known from applying it.
    Applied(ManagedFields),
}

impl Registry {
    /// Creates an object of a client; `object` is decoded, in the resource's version.
    pub async fn create(
        &self,
        pass: &Pass,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        options: &CreateOptions,
    ) -> Result<Arc<CachedObject>, Error> {
        check_pass(pass, resource)?;
        resource.check_type(&mut object, resource.row.kind, &resource.api_version)?;
        resource.to_storage(&mut object);
        let owners = Owners::Creator { sent: ownership::take_sent(&mut object)? };
        self.create_owned(pass, resource, namespace, object, owners, options).await
    }

    /// Creates the object that an applied configuration describes.
    pub async fn create_applied(
        &self,
        pass: &Pass,
        resource: &Resource,
        namespace: &str,
        apply: &codec::Apply,
        options: &CreateOptions,
    ) -> Result<Arc<CachedObject>, Error> {
        check_pass(pass, resource)?;
        let writer = Writer { resource, part: Part::Main, manager: &options.field_manager };
        let applied = self.apply(writer, None, apply, ManagedFields::default())?;
        let owners = Owners::Applied(applied.managed);
        self.create_owned(pass, resource, namespace, applied.object, owners, options).await
    }

    async fn create_owned(
        &self,
        pass: &Pass,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        owners: Owners,
        options: &CreateOptions,
    ) -> Result<Arc<CachedObject>, Error> {
        metadata::settle_namespace(resource, &mut object, namespace)?;
        let base = metadata::text(&object, "generateName").to_owned();
        if !metadata::text(&object, "name").is_empty() || base.is_empty() {
            return self.create_named(pass, resource, namespace, object, owners, options).await;
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut named = object.clone();
            metadata::of(&mut named)?.insert("name".to_owned(), metadata::generate_name(&base).into());
            match self.create_named(pass, resource, namespace, named, owners.clone(), options).await {
                Err(error) if error.is_already_exists() && attempt < NAME_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
    }

    async fn create_named(
        &self,
        pass: &Pass,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        owners: Owners,
        options: &CreateOptions,
    ) -> Result<Arc<CachedObject>, Error> {
        metadata::begin(&mut object)?;
        kinds::default(resource.stored, &mut object);
        let managed = match owners {
            Owners::Applied(managed) => managed,
            Owners::Creator { sent } => {
                let managed = ownership::begin_with(sent, ManagedFields::default(), Part::Main);
                let writer = Writer { resource, part: Part::Main, manager: &options.field_manager };
                self.own_created(writer, &object, managed)
            }
        };
        kinds::prepare_create(resource.stored, &mut object);
        let name = metadata::text(&object, "name").to_owned();
        let mut request = Request {
            user: pass.user(),
            operation: Operation::Create,
            resource,
            subresource: "",
            namespace,
            name: &name,
            dry_run: options.dry_run,
            object: &mut object,
            old: None,
        };
        self.admission.mutate(&mut request).await?;
        // What admission put in gets its defaults too.
        kinds::default(resource.stored, request.object);
        let errors = kinds::validate_create(resource.stored, request.object);
        if !errors.is_empty() {
            return Err(Error::invalid(resource.row.group, resource.row.kind, &name, &errors));
        }
        self.admission.validate(&request).await?;
        let demand = self.admission.demand(&request);
        let place = (namespace, name.as_str());
        self.store_new(resource, place, (object, managed), demand.as_ref(), options.dry_run).await
    }

    async fn store_new(
        &self,
        resource: &Resource,
        (namespace, name): (&str, &str),
        (mut object, managed): (Value, ManagedFields),
        demand: Option<&Demand>,
        dry_run: bool,
    ) -> Result<Arc<CachedObject>, Error> {
        let key: Key = resource.cache()?.key(namespace, name).into();
        // Without what allocation puts in, for another attempt.
        let bare = super::Allocators::concern(resource).then(|| object.clone());
        let mut attempt = 0;
        loop {
            attempt += 1;
            if let Some(bare) = bare.as_ref().filter(|_| attempt > 1) {
                object = bare.clone();
            }
            let charge = self.admission.charge(demand).await?;
            let allocations = self.allocators.allocate(resource, &mut object, None)?;
            let json = resource.stored_json(&object, &managed)?;
            if dry_run {
                if self.store.get(&key).await.map_err(store_error)?.is_some() {
                    return Err(Error::already_exists(&resource.gvr, name));
                }
                return CachedObject::parse(key, &json.into(), 0).map(Arc::new).map_err(Error::internal);
            }
            let json: bytes::Bytes = json.into();
            let write = Write::create(key.clone(), json.clone());
            let announced = self.cache.announce(key.clone(), json, &object);
            match self.commit(write, &allocations, charge.writes()).await {
                Ok(revision) => {
                    charge.made(revision);
                    return announced.written(revision).map_err(Error::internal);
                }
                Err(hawser_store::Error::Conflict { key: taken, .. }) if taken == key => {
                    return Err(Error::already_exists(&resource.gvr, name));
                }
                // Another server took from the quota, or its controller counted: what is left decides.
                Err(hawser_store::Error::Conflict { key: taken, .. })
                    if charge.writes_to(&taken) && attempt < CHARGE_ATTEMPTS =>
                {
                    self.cache.consistent().await?;
                }
                // Somebody else was faster with an address or port: others are tried, or it is said which is taken.
                Err(hawser_store::Error::Conflict { key: taken, .. }) if attempt < ALLOCATION_ATTEMPTS => {
                    allocations.lost(resource, &object, &taken)?;
                }
                Err(error) => return Err(store_error(error)),
            }
        }
    }
}
