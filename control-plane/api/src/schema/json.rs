//! Printing an object in upstream's order: `kind`, `apiVersion`, then the fields of the Go struct.
//!
//! The server's values are sorted by name; clients and stored bytes see this order. Maps are sorted, as
//! Go's are. What the table does not know is printed last, so nothing is lost.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Elem, Shape, Special, Type};
use crate::apply::ManagedFields;

/// Compact JSON.
pub fn to_vec(ty: &Type, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(ty, object, &mut out);
    out
}

/// Appends compact JSON to `out`.
pub fn write(ty: &Type, object: &Value, out: &mut Vec<u8>) {
    Printer::new(out, None, None).message(ty, object);
}

/// Compact JSON of an object whose `managedFields` are kept apart.
pub fn to_vec_managed(ty: &Type, object: &Value, managed: &ManagedFields) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    let managed = Some(managed).filter(|managed| !managed.is_empty());
    Printer::new(&mut out, None, managed).message(ty, object);
    out
}

/// JSON with an indent of two spaces, as `?pretty=true` asks for.
pub fn to_vec_pretty(ty: &Type, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    Printer::new(&mut out, Some(0), None).message(ty, object);
    out
}

struct Printer<'a> {
    out: &'a mut Vec<u8>,
    /// The current depth, when lines are broken.
    indent: Option<usize>,
    /// The owners of the object's fields, until they are printed: in the first metadata, which is the object's own.
    managed: Option<&'a ManagedFields>,
    /// The members of the objects that are being printed, outer ones first, each with its place.
    members: Vec<(usize, &'a str, &'a Value)>,
}

/// Places of the members that no field of the table is.
const KIND: usize = 0;
const API_VERSION: usize = 1;
/// The place of the table's first field.
const FIELDS: usize = 2;
const UNKNOWN: usize = usize::MAX;

impl<'a> Printer<'a> {
    fn new(out: &'a mut Vec<u8>, indent: Option<usize>, managed: Option<&'a ManagedFields>) -> Self {
        Self { out, indent, managed, members: Vec::with_capacity(64) }
    }

    fn message(&mut self, ty: &Type, value: &'a Value) {
        match (ty.special, value) {
            (Special::Struct, Value::Object(object)) => self.object(ty, object),
            (
                Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings,
                Value::Object(object),
            ) => match schema_of(ty) {
                Some(schema) => self.object(schema, object),
                None => self.plain(value),
            },
            (Special::SchemaOrArray, Value::Array(items)) => match schema_of(ty) {
                Some(schema) => self.array(items, |printer, item| printer.message(schema, item)),
                None => self.plain(value),
            },
            _ => self.plain(value),
        }
    }

    /// Objects have few of their type's fields, so it is the members that are looked up and put in order.
    fn object(&mut self, ty: &Type, object: &'a Map<String, Value>) {
        let first = self.members.len();
        let place = |name: &str| match name {
            "kind" if ty.has_type_meta => KIND,
            "apiVersion" if ty.has_type_meta => API_VERSION,
            _ => ty.place(name).map_or(UNKNOWN, |place| FIELDS + place),
        };
        self.members.extend(object.iter().map(|(name, value)| (place(name), name.as_str(), value)));
        // Stable: members that are not known stay in the order of their names.
        self.members[first..].sort_by_key(|(place, ..)| *place);
        self.open(b'{');
        let mut count = 0;
        let mut owners_at = self.managed.and_then(|_| ty.place("managedFields")).map(|place| FIELDS + place);
        for at in first..first + object.len() {
            let (place, name, value) = self.members[at];
            if owners_at.is_some_and(|owners| owners < place) {
                owners_at = None;
                self.owners(&mut count);
            }
            match place {
                KIND | API_VERSION => {
                    self.field_name(name, &mut count);
                    self.plain(value);
                }
                UNKNOWN => {
                    self.name(name, &mut count);
                    self.plain(value);
                }
                place => {
                    let field = ty.field_at(place - FIELDS);
                    self.field_name(field.json, &mut count);
                    match (field.shape, value) {
                        (Shape::List, Value::Array(items)) => {
                            self.array(items, |printer, item| printer.elem(field.elem, item))
                        }
                        (Shape::Map, Value::Object(map)) => self.map(field.elem, map),
                        _ => self.elem(field.elem, value),
                    }
                }
            }
        }
        if owners_at.is_some() {
            self.owners(&mut count);
        }
        self.members.truncate(first);
        self.close(b'}', count);
    }

    fn owners(&mut self, count: &mut usize) {
        if let Some(managed) = self.managed.take() {
            self.field_name("managedFields", count);
            managed.write(self.out);
        }
    }

    fn elem(&mut self, elem: Elem, value: &'a Value) {
        match elem {
            Elem::Message(id) => self.message(id.get(), value),
            _ => self.plain(value),
        }
    }

    fn map(&mut self, elem: Elem, map: &'a Map<String, Value>) {
        self.open(b'{');
        let mut count = 0;
        for (key, value) in map {
            self.name(key, &mut count);
            self.elem(elem, value);
        }
        self.close(b'}', count);
    }

    fn array(&mut self, items: &'a [Value], mut print: impl FnMut(&mut Self, &'a Value)) {
        self.open(b'[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.line();
            print(self, item);
        }
        self.close(b']', items.len());
    }

    /// A value without a schema of its own.
    fn plain(&mut self, value: &'a Value) {
        match (value, self.indent) {
            (Value::Object(object), Some(_)) => {
                self.open(b'{');
                let mut count = 0;
                for (name, value) in object {
                    self.name(name, &mut count);
                    self.plain(value);
                }
                self.close(b'}', count);
            }
            (Value::Array(items), Some(_)) => self.array(items, |printer, item| printer.plain(item)),
            _ => value
                .serialize(&mut serde_json::Serializer::new(&mut *self.out))
                .expect("writing a value to memory does not fail"),
        }
    }

    fn name(&mut self, name: &str, count: &mut usize) {
        self.part(count);
        name.serialize(&mut serde_json::Serializer::new(&mut *self.out))
            .expect("writing a string to memory does not fail");
        self.colon();
    }

    /// A name of the table, which has nothing to escape.
    fn field_name(&mut self, name: &str, count: &mut usize) {
        self.part(count);
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'"');
        self.colon();
    }

    /// Parts a member from the one before.
    fn part(&mut self, count: &mut usize) {
        if *count > 0 {
            self.out.push(b',');
        }
        *count += 1;
        self.line();
    }

    fn colon(&mut self) {
        self.out.push(b':');
        if self.indent.is_some() {
            self.out.push(b' ');
        }
    }

    fn open(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.indent = self.indent.map(|depth| depth + 1);
    }

    fn close(&mut self, bracket: u8, count: usize) {
        self.indent = self.indent.map(|depth| depth - 1);
        if count > 0 {
            self.line();
        }
        self.out.push(bracket);
    }

    fn line(&mut self) {
        if let Some(depth) = self.indent {
            self.out.push(b'\n');
            self.out.extend(std::iter::repeat_n(b' ', depth * 2));
        }
    }
}

fn schema_of(ty: &Type) -> Option<&'static Type> {
    ty.fields.iter().find_map(|field| field.elem.message())
}
