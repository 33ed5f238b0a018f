//! Applying a configuration: the merged object, the owners after it, and what stands against it.
//!
//! The manager's last set of fields minus the new one is removed from the object, unless somebody else owns it.
//! Follows `structured-merge-diff/merge`.

use serde_json::Value;

use super::{
    conflict::{Conflict, refusal},
    fields::{fields_of, with_named_fields, without},
    managed::{ManagedFields, Operation},
    merge::merge,
    set::FieldSet,
    strip,
    update::Write,
    versions::{Comparisons, type_of},
};
use crate::{
    Error,
    schema::{self, FieldValidation, Type},
};

/// Owns the fields of objects that had no owners before they were first applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Members of every configuration: they say what it is of.
const NAMING: &[&str] = &["apiVersion", "kind", "metadata"];
/// What client-side apply remembers in the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager that goes on where client-side apply ended.
const KUBECTL: &str = "kubectl";
/// The most bytes of all annotations of an object.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;

/// The outcome of an apply.
#[derive(Debug)]
pub struct Applied {
    /// Merged, in canonical form.
    pub object: Value,
    pub managed: ManagedFields,
}

impl Write<'_> {
    /// Applies `config`, as [`schema::decode_applied`] read it, to `live`; to nothing where there is no object yet.
    ///
    /// Conflicts are refused (409) unless `force` is set.
    pub fn apply(
        &self,
        live: Option<&Value>,
        config: &Value,
        managed: ManagedFields,
        force: bool,
    ) -> Result<Applied, Error> {
        let ty = type_of(config).ok_or_else(|| Error::bad_request("the kind cannot be applied"))?;
        let empty = empty(ty);
        let managed = match live {
            Some(live) if managed.is_empty() => {
                let by = super::Manager { name: BEFORE_FIRST_APPLY, ..self.by };
                Write { by, ..*self }.update(&empty, live, managed)
            }
            _ => managed,
        };
        let live = live.unwrap_or(&empty);
        let mut config = config.clone();
        if let Some(members) = config.as_object_mut() {
            members.retain(|name, _| NAMING.contains(&name.as_str()) || !self.reach.skips(name));
        }
        let mut applied = match self.settle(ty, live, &config, managed.clone(), force) {
            Ok(applied) => applied,
            // Fields that client-side apply set are kubectl's own.
            Err(Refused::Conflicts(conflicts)) if self.by.name == KUBECTL => {
                let own = client_side_fields(ty, live);
                let mut others = conflicts;
                others.iter_mut().for_each(|conflict| conflict.fields.subtract(&own));
                others.retain(|conflict| !conflict.fields.is_empty());
                if !others.is_empty() {
                    return Err(refusal(&others));
                }
                self.settle(ty, live, &config, managed, true)?
            }
            Err(refused) => return Err(refused.into()),
        };
        if self.by.name == KUBECTL {
            remember(&mut applied.object, &config);
        }
        Ok(applied)
    }

    fn settle(
        &self,
        ty: &'static Type,
        live: &Value,
        config: &Value,
        mut managed: ManagedFields,
        force: bool,
    ) -> Result<Applied, Refused> {
        // What names the object is owned while it is merged, so that `metadata` stays.
        let fields = fields_of(ty, config);
        let entries = managed.entries_mut();
        let place = entries.iter().position(|entry| self.by.owns(entry, Operation::Apply));
        let last = place.map(|at| entries.remove(at));
        let merged = merge(ty, live, config);
        let object = match &last {
            // Fields of another version are named otherwise; they stay.
            Some(last) if last.api_version == self.by.api_version => {
                let others = entries.iter().filter(|entry| entry.api_version == self.by.api_version);
                let owned = others.fold(fields.clone(), |owned, entry| owned.union(entry.fields()));
                prune(ty, merged, last.fields(), owned)
            }
            _ => merged,
        };
        // Zero values that are applied are not in the object, so they are no changes either.
        let object = schema::canonicalize(ty, &object, FieldValidation::Ignore)?.object;
        let mut fields = fields;
        self.reach.restrict(&mut fields);
        strip(&mut fields);
        let comparisons = Comparisons::new((live, &object), self.by.api_version, self.reach, self.convert);
        let Some(mut comparisons) = comparisons else { return Ok(Applied { object, managed }) };
        let mut conflicts = Vec::new();
        entries.retain_mut(|entry| {
            let Some(comparison) = comparisons.at(&entry.api_version) else { return false };
            let taken = entry.fields().intersection(&comparison.changed);
            entry.owned.subtract([&taken, &comparison.removed]);
            if !taken.is_empty() {
                conflicts.push(Conflict::new(entry, taken));
            }
            !entry.owned.is_empty()
        });
        if !force && !conflicts.is_empty() {
            return Err(Refused::Conflicts(conflicts));
        }
        if !fields.is_empty() {
            let mut entry = self.by.entry(Operation::Apply, fields);
            // Applying once more what is there is no change.
            if let Some(last) =
                last.filter(|last| comparisons.first().is_empty() && last.owned == entry.owned)
            {
                entry.time = last.time;
            }
            entries.push(entry);
        }
        managed.sort();
        Ok(Applied { object, managed })
    }
}

/// Why an apply came to nothing.
enum Refused {
    Conflicts(Vec<Conflict>),
    Error(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflicts(conflicts) => refusal(&conflicts),
            Refused::Error(error) => error,
        }
    }
}

/// An object of which nothing is set, as a new one is compared with.
pub fn empty(ty: &'static Type) -> Value {
    schema::zero_struct(ty)
}

/// The merged object without what was applied last and has no owner any more.
fn prune(ty: &'static Type, merged: Value, last: &FieldSet, owned: FieldSet) -> Value {
    let last = with_named_fields(ty, last.clone());
    let there = with_named_fields(ty, fields_of(ty, &merged));
    // Removing a part removes all below it, so what somebody owns is added back.
    let pruned = fields_of(ty, &without(ty, &merged, &last));
    let kept = with_named_fields(ty, pruned).union(&with_named_fields(ty, owned));
    let pruned = without(ty, &merged, &there.clone().difference(&kept));
    // So is what nobody owns, but was never applied by this manager.
    let left = with_named_fields(ty, fields_of(ty, &pruned));
    without(ty, &merged, &there.difference(&left).intersection(&last))
}

/// The fields that client-side apply set, and that still are as it set them.
fn client_side_fields(ty: &'static Type, live: &Value) -> FieldSet {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    let read = schema::decode_applied(ty, text.as_bytes(), schema::Format::Json, FieldValidation::Ignore);
    let Ok(config) = read else {
        return FieldSet::default();
    };
    let comparison = super::compare(ty, live, &config.object);
    fields_of(ty, &config.object).difference(&comparison.changed).difference(&comparison.removed)
}

/// Keeps what client-side apply remembers up to date, so that one can go back to it.
fn remember(object: &mut Value, config: &Value) {
    let Some(remembered) =
        object.pointer_mut("/metadata/annotations").and_then(|all| all.get_mut(LAST_APPLIED))
    else {
        return;
    };
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{config}\n");
    *remembered = Value::from(if text.len() > MAX_ANNOTATION_BYTES { String::new() } else { text });
}
