//! `metadata.managedFields`: who owns which fields, and since when.
//!
//! The write path keeps it apart from the object's tree, as field sets, and prints it back in place
//! ([`crate::schema::json`]). Entries are in upstream's order: applies before updates, older before newer.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{owned::OwnedFields, set::FieldSet};
use crate::scan::{Items, Members};

/// How many entries of updates an object has at most; the oldest above that become one.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Entries that a client may send; what is done with them takes time by their square.
const MAX_SENT_ENTRIES: usize = 1000;
/// The manager of the fields of updates that were merged.
const ANCIENT_CHANGES: &str = "ancient-changes";
/// The most bytes of a manager's name that is taken from a request.
const MAX_MANAGER_BYTES: usize = 128;

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Operation {
    /// By applying them: fields that it no longer applies are removed.
    Apply,
    /// By creating or changing them in any other way.
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(default)]
    pub manager: String,
    pub operation: Operation,
    /// The version in which `fields` name the object's fields.
    pub api_version: String,
    /// `metav1.Time`, of the manager's last change.
    #[serde(default)]
    pub time: Option<String>,
    fields_type: FieldsType,
    #[serde(default, rename = "fieldsV1")]
    pub(super) owned: OwnedFields,
    /// Empty for the object itself.
    #[serde(default)]
    pub subresource: String,
}

/// The only encoding of field sets that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum FieldsType {
    FieldsV1,
}

/// What cannot be read as `managedFields`.
#[derive(Debug, thiserror::Error)]
#[error("failed to decode managed fields: {0}")]
pub struct Undecodable(#[from] serde_json::Error);

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ManagedFields {
    entries: Vec<Entry>,
}

/// Who makes a change, and through what.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    pub name: &'a str,
    /// The version of the request.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// `metav1.Time`.
    pub now: &'a str,
}

impl Manager<'_> {
    pub(super) fn entry(&self, operation: Operation, fields: impl Into<OwnedFields>) -> Entry {
        Entry {
            manager: self.name.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            time: Some(self.now.to_owned()),
            fields_type: FieldsType::FieldsV1,
            owned: fields.into(),
            subresource: self.subresource.to_owned(),
        }
    }

    /// Whether the entry is this manager's, of that operation. An applier has one, whatever version it applies in.
    pub(super) fn owns(&self, entry: &Entry, operation: Operation) -> bool {
        entry.operation == operation
            && entry.manager == self.name
            && entry.subresource == self.subresource
            && (operation == Operation::Apply || entry.api_version == self.api_version)
    }
}

/// The program's name out of a User-Agent: what stands before the first slash, in printable characters.
pub fn manager_of_user_agent(agent: &str) -> String {
    let mut name = String::new();
    for letter in agent.split('/').next().unwrap_or_default().chars().filter(|letter| !letter.is_control()) {
        if name.len() + letter.len_utf8() > MAX_MANAGER_BYTES {
            break;
        }
        name.push(letter);
    }
    name
}

/// What is wrong with the name of a manager that a request gives.
pub fn validate_manager(name: &str) -> Result<(), crate::FieldError> {
    use crate::error::{FieldError, FieldErrorKind};
    let field = "fieldManager";
    if name.len() > MAX_MANAGER_BYTES {
        let detail = format!("may not be more than {MAX_MANAGER_BYTES} bytes");
        return Err(FieldError::new(FieldErrorKind::TooLong, field, None, detail));
    }
    match name.chars().position(char::is_control) {
        Some(_) => Err(FieldError::invalid(field, name, "should only contain printable characters")),
        None => Ok(()),
    }
}

impl ManagedFields {
    /// Reads the list as objects carry it.
    pub fn decode(list: &Value) -> Result<Self, Undecodable> {
        let mut managed = Self::deserialize(list)?;
        let refuse = |what: String| Err(Undecodable(serde::de::Error::custom(what)));
        if managed.entries.iter().any(|entry| entry.api_version.is_empty()) {
            return refuse("apiVersion must not be empty".to_owned());
        }
        if managed.entries.len() > MAX_SENT_ENTRIES {
            return refuse(format!("there are more than {MAX_SENT_ENTRIES} managers"));
        }
        managed.sort();
        Ok(managed)
    }

    /// Reads the list as the server stored it; fields stay text until they matter. `None` where it was not the server.
    pub fn stored(list: &Bytes) -> Option<Self> {
        let entries = Items::new(list, 0)?.map(|item| Entry::stored(&list.slice(item)));
        Some(Self { entries: entries.collect::<Option<_>>()? })
    }

    /// Whether a client asks for all owners to be forgotten: an empty list, or one empty entry.
    pub fn is_reset(list: &Value) -> bool {
        match list.as_array().map(Vec::as_slice) {
            Some([]) => true,
            // Typed clients send fields that are unset.
            Some([Value::Object(entry)]) => {
                entry.values().all(|value| value.is_null() || value.as_str() == Some(""))
            }
            _ => false,
        }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn entries_mut(&mut self) -> &mut Vec<Entry> {
        &mut self.entries
    }

    /// Equal in everything but times.
    pub fn same_but_times(&self, other: &Self) -> bool {
        if self.entries.len() != other.entries.len() {
            return false;
        }
        // The order depends on times.
        self.entries.iter().all(|entry| {
            let twin = other.entries.iter().find(|twin| {
                twin.manager == entry.manager
                    && twin.operation == entry.operation
                    && twin.subresource == entry.subresource
                    && twin.api_version == entry.api_version
            });
            twin.is_some_and(|twin| twin.owned == entry.owned)
        })
    }

    /// Puts the entries into upstream's order.
    pub(super) fn sort(&mut self) {
        self.entries.sort_by(|one, two| {
            (one.operation, &one.time, &one.manager, &one.api_version, &one.subresource).cmp(&(
                two.operation,
                &two.time,
                &two.manager,
                &two.api_version,
                &two.subresource,
            ))
        });
    }

    /// Merges the oldest entries of updates into one for each version, down to the bound.
    pub(super) fn cap(&mut self) {
        let is_update = |entry: &&Entry| entry.operation == Operation::Update;
        let mut surplus = self.entries.iter().filter(is_update).count().saturating_sub(MAX_UPDATE_MANAGERS);
        self.sort();
        let mut at = 0;
        // The place of the first entry of each version that was passed.
        let mut buckets: Vec<usize> = Vec::new();
        while surplus > 0 && at < self.entries.len() {
            if self.entries[at].operation != Operation::Update {
                at += 1;
                continue;
            }
            let version = &self.entries[at].api_version;
            match buckets.iter().copied().find(|first| self.entries[*first].api_version == *version) {
                None => {
                    buckets.push(at);
                    at += 1;
                }
                Some(first) => {
                    let merged = self.entries.remove(at);
                    let bucket = &mut self.entries[first];
                    ANCIENT_CHANGES.clone_into(&mut bucket.manager);
                    bucket.subresource.clear();
                    bucket.owned.set_mut().unite(merged.owned.set());
                    bucket.time = merged.time;
                    surplus -= 1;
                }
            }
        }
        self.sort();
    }

    /// Appends the list as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (at, entry) in self.entries.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            entry.write(out);
        }
        out.push(b']');
    }

    /// The list as a value, for patches that are about it.
    pub fn to_value(&self) -> Value {
        let mut text = Vec::new();
        self.write(&mut text);
        serde_json::from_slice(&text).expect("what is written here is JSON")
    }
}

impl Entry {
    /// The fields that the manager owns.
    pub fn fields(&self) -> &FieldSet {
        self.owned.set()
    }

    fn stored(entry: &Bytes) -> Option<Self> {
        let mut found = Self {
            manager: String::new(),
            operation: Operation::Update,
            api_version: String::new(),
            time: None,
            fields_type: FieldsType::FieldsV1,
            owned: OwnedFields::default(),
            subresource: String::new(),
        };
        for (key, value) in Members::new(entry, 0)? {
            let text = || serde_json::from_slice::<String>(&entry[value.clone()]).ok();
            match &entry[key] {
                b"manager" => found.manager = text()?,
                b"operation" => found.operation = serde_json::from_slice(&entry[value]).ok()?,
                b"apiVersion" => found.api_version = text()?,
                b"time" => found.time = Some(text()?),
                b"fieldsType" => found.fields_type = serde_json::from_slice(&entry[value]).ok()?,
                b"fieldsV1" => found.owned = OwnedFields::stored(entry.slice(value)),
                b"subresource" => found.subresource = text()?,
                _ => return None,
            }
        }
        Some(found)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut member = |name: &str, value: &str, first: bool| {
            out.extend_from_slice(if first { b"{\"" } else { b",\"" });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            value
                .serialize(&mut serde_json::Serializer::new(&mut *out))
                .expect("writing a string to memory does not fail");
        };
        member("manager", &self.manager, true);
        member("operation", self.operation.as_str(), false);
        member("apiVersion", &self.api_version, false);
        if let Some(time) = &self.time {
            member("time", time, false);
        }
        member("fieldsType", "FieldsV1", false);
        out.extend_from_slice(b",\"fieldsV1\":");
        self.owned.write(out);
        if !self.subresource.is_empty() {
            out.extend_from_slice(b",\"subresource\":");
            self.subresource
                .serialize(&mut serde_json::Serializer::new(&mut *out))
                .expect("writing a string to memory does not fail");
        }
        out.push(b'}');
    }
}
