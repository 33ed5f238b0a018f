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
    Printer { out, indent: None, managed: None }.message(ty, object);
}

/// Compact JSON of an object whose `managedFields` are kept apart.
pub fn to_vec_managed(ty: &Type, object: &Value, managed: &ManagedFields) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    let managed = Some(managed).filter(|managed| !managed.is_empty());
    Printer { out: &mut out, indent: None, managed }.message(ty, object);
    out
}

/// JSON with an indent of two spaces, as `?pretty=true` asks for.
pub fn to_vec_pretty(ty: &Type, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    Printer { out: &mut out, indent: Some(0), managed: None }.message(ty, object);
    out
}

struct Printer<'a> {
    out: &'a mut Vec<u8>,
    /// The current depth, when lines are broken.
    indent: Option<usize>,
    /// The owners of the object's fields, until they are printed: in the first metadata, which is the object's own.
    managed: Option<&'a ManagedFields>,
}

impl Printer<'_> {
    fn message(&mut self, ty: &Type, value: &Value) {
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

    fn object(&mut self, ty: &Type, object: &Map<String, Value>) {
        self.open(b'{');
        let (mut count, mut printed_apart) = (0, 0);
        if ty.has_type_meta {
            for name in ["kind", "apiVersion"] {
                if let Some(value) = object.get(name) {
                    self.name(name, &mut count);
                    self.plain(value);
                }
            }
        }
        for field in ty.json_fields() {
            let Some(value) = object.get(field.json) else {
                if field.json == "managedFields"
                    && let Some(managed) = self.managed.take()
                {
                    self.name(field.json, &mut count);
                    managed.write(self.out);
                    printed_apart = 1;
                }
                continue;
            };
            self.name(field.json, &mut count);
            match (field.shape, value) {
                (Shape::List, Value::Array(items)) => {
                    self.array(items, |printer, item| printer.elem(field.elem, item))
                }
                (Shape::Map, Value::Object(map)) => self.map(field.elem, map),
                _ => self.elem(field.elem, value),
            }
        }
        if count < object.len() + printed_apart {
            self.unknown(ty, object, &mut count);
        }
        self.close(b'}', count);
    }

    #[cold]
    fn unknown(&mut self, ty: &Type, object: &Map<String, Value>, count: &mut usize) {
        for (name, value) in object {
            let meta = ty.has_type_meta && matches!(name.as_str(), "kind" | "apiVersion");
            if !meta && ty.field(name).is_none() {
                self.name(name, count);
                self.plain(value);
            }
        }
    }

    fn elem(&mut self, elem: Elem, value: &Value) {
        match elem {
            Elem::Message(id) => self.message(id.get(), value),
            _ => self.plain(value),
        }
    }

    fn map(&mut self, elem: Elem, map: &Map<String, Value>) {
        self.open(b'{');
        let mut count = 0;
        for (key, value) in map {
            self.name(key, &mut count);
            self.elem(elem, value);
        }
        self.close(b'}', count);
    }

    fn array(&mut self, items: &[Value], mut print: impl FnMut(&mut Self, &Value)) {
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
    fn plain(&mut self, value: &Value) {
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
        if *count > 0 {
            self.out.push(b',');
        }
        *count += 1;
        self.line();
        name.serialize(&mut serde_json::Serializer::new(&mut *self.out))
            .expect("writing a string to memory does not fail");
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
