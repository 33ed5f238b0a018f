//! Who owns which fields of an object, at every write.
//!
//! The one place where the registry keeps `managedFields`: [`hawser_api::apply`] decides, here it is told who writes
//! what, and in which version the owners name their fields. Trees in the write path are without `managedFields`; they
//! are printed back when the object is stored. Allocations, bindings, and what admission puts in, have no owner, as
//! upstream.

use std::borrow::Cow;

use hawser_api::{
    Error,
    apply::{Applied, ManagedFields, Manager, Reach, Write},
};
use serde_json::Value;

use super::{Part, Registry, metadata};
use crate::{codec, kinds, resources::Resource};

/// A write of one part of an object by a manager.
#[derive(Clone, Copy)]
pub(super) struct Writer<'a> {
    pub resource: &'a Resource,
    pub part: Part,
    pub manager: &'a str,
}

/// Takes what a client says of the owners out of an object.
pub(super) fn take_sent(object: &mut Value) -> Result<Option<Value>, Error> {
    Ok(metadata::of(object)?.remove("managedFields").filter(|list| !list.is_null()))
}

/// The owners that a write begins with: those that a client sends, where it may and they can be read, else the live ones.
pub(super) fn begin_with(sent: Option<Value>, live: ManagedFields, part: Part) -> ManagedFields {
    let Some(sent) = sent.filter(|_| part == Part::Main) else { return live };
    if ManagedFields::is_reset(&sent) {
        return ManagedFields::default();
    }
    ManagedFields::decode(&sent).unwrap_or(live)
}

impl Registry {
    /// The owners of a new object; `object` is defaulted, in the storage version.
    pub(super) fn own_created(
        &self,
        writer: Writer<'_>,
        object: &Value,
        managed: ManagedFields,
    ) -> ManagedFields {
        let object = shown(writer.resource, object);
        self.write(writer, |write| write.create(&object, managed))
    }

    /// The owners after a change of any sort but apply. Objects without owners stay so until they are applied.
    pub(super) fn own_updated(
        &self,
        writer: Writer<'_>,
        (old, new): (&Value, &Value),
        managed: ManagedFields,
    ) -> ManagedFields {
        // Upstream binds behind the owners' back.
        if managed.is_empty() || writer.part == Part::Binding {
            return managed;
        }
        let (old, new) = (shown(writer.resource, old), shown(writer.resource, new));
        self.write(writer, |write| write.update(&old, &new, managed))
    }

    /// Applies a configuration to an object, or to nothing. The outcome is in the storage version.
    pub(super) fn apply(
        &self,
        writer: Writer<'_>,
        live: Option<&Value>,
        apply: &codec::Apply,
        managed: ManagedFields,
    ) -> Result<Applied, Error> {
        let resource = writer.resource;
        let config = match writer.part {
            Part::Scale => Cow::Owned(of_scale(resource, &apply.config)?),
            _ => Cow::Borrowed(&apply.config),
        };
        let live = live.map(|live| shown(resource, live));
        let applied = self.write(writer, |write| write.apply(live.as_deref(), &config, managed, apply.force));
        let mut applied = applied?;
        resource.to_storage(&mut applied.object);
        Ok(applied)
    }

    fn write<R>(&self, writer: Writer<'_>, act: impl FnOnce(&Write<'_>) -> R) -> R {
        let Writer { resource, part, manager } = writer;
        let convert =
            |object: &Value, api_version: &str| self.resources.convert(resource, object, api_version);
        let by = Manager {
            name: manager,
            api_version: &resource.api_version,
            subresource: part.subresource(),
            now: &metadata::now(),
        };
        let reach = match part {
            Part::Status => kinds::reach_of_status(resource.stored),
            Part::Finalize => kinds::REACH_OF_FINALIZE,
            Part::Approval => kinds::REACH_OF_APPROVAL,
            Part::EphemeralContainers => Reach::Only(&[&["spec", "ephemeralContainers"]]),
            Part::Resize => kinds::REACH_OF_RESIZE,
            _ if resource.stored.has_status() => Reach::AllBut(&[&["status"]]),
            _ => Reach::AllBut(&[]),
        };
        act(&Write { by, reach, convert: &convert })
    }
}

/// A stored object as the resource shows it.
fn shown<'v>(resource: &Resource, object: &'v Value) -> Cow<'v, Value> {
    if !resource.is_view() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    resource.from_storage(&mut object);
    Cow::Owned(object)
}

/// What an applied Scale says of the object itself.
fn of_scale(resource: &Resource, scale: &Value) -> Result<Value, Error> {
    let mut config = serde_json::json!({
        "apiVersion": resource.api_version, "kind": resource.row.kind, "metadata": scale["metadata"],
    });
    if !scale["spec"]["replicas"].is_null() {
        config = kinds::scaled(resource.stored, &config, scale).map_err(|errors| {
            Error::invalid("autoscaling", "Scale", metadata::text(scale, "name"), &errors)
        })?;
    }
    Ok(config)
}
