//! Reading an object from JSON or YAML into canonical form.
//!
//! One visitor, driven by the table, reads from any serde source: bytes of JSON, YAML, or a value that a
//! patch made. It sees unknown and duplicate fields as they pass, drops the unknown ones, and applies Go's
//! rules of zero values and `omitempty`, so the result does not depend on how the client wrote it.
//! Nesting is bounded by the parsers (128), the number of objects by [`MAX_OBJECTS`]. Messages are worded
//! as upstream's.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

use super::{
    Elem, Field, Shape, Special, Type, fill, is_zero,
    special::{Misfit, Scalar, canonical_scalar, go_type},
    zero,
};
use crate::{
    Error,
    scan::{Members, skip_space},
};

/// Objects within one body. Each grows by the fields Go always prints, so an attacker's `{}` is not free.
const MAX_OBJECTS: u32 = 100_000;
/// Findings that are kept, as upstream does; the rest would only repeat them.
const MAX_FINDINGS: usize = 100;

/// What becomes of unknown and duplicate fields: the parameter `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// The request is refused.
    Strict,
    /// They are dropped, and the client is warned.
    #[default]
    Warn,
    /// They are dropped.
    Ignore,
}

impl FieldValidation {
    /// Reads the parameter's value; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            "Ignore" => Some(Self::Ignore),
            _ => None,
        }
    }
}

/// The encodings of text bodies; protobuf is [`super::protobuf`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// An object in canonical form, and what the client should be told.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub object: Value,
    /// For `Warning` headers; empty unless asked for by [`FieldValidation::Warn`].
    pub warnings: Vec<String>,
}

/// `apiVersion` and `kind` of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

impl TypeMeta {
    /// The built-in type that it names.
    pub fn schema(&self) -> Option<&'static Type> {
        super::type_of_object(&self.api_version, &self.kind)
    }
}

/// Reads only `apiVersion` and `kind` of a body.
pub fn peek_type_meta(body: &[u8], format: Format) -> Result<TypeMeta, Error> {
    match format {
        Format::Json => serde_json::from_slice(body).map_err(|error| unreadable("", Some(format), &error)),
        Format::Yaml => serde_yaml_ng::from_slice(body).map_err(|error| unreadable("", Some(format), &error)),
    }
}

/// `apiVersion` and `kind` of a JSON body that begins with them, as most do, so that most are read once; `None` leaves it
/// to [`peek_type_meta`].
///
/// What follows need not be JSON: whoever reads the body finds out.
pub fn leading_type_meta(body: &[u8]) -> Option<TypeMeta> {
    let mut members = Members::new(body, skip_space(body, 0))?;
    let mut meta = TypeMeta::default();
    for _ in 0..2 {
        let (key, value) = members.next()?;
        let text = body[value].strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let is_plain = text.iter().all(|byte| (b' '..=b'~').contains(byte) && *byte != b'\\');
        let text = std::str::from_utf8(text).ok().filter(|text| is_plain && !text.is_empty())?;
        match &body[key] {
            b"kind" if meta.kind.is_empty() => text.clone_into(&mut meta.kind),
            b"apiVersion" if meta.api_version.is_empty() => text.clone_into(&mut meta.api_version),
            _ => return None,
        }
    }
    Some(meta)
}

/// Reads a body of type `ty`. `kind` and `apiVersion` are added when missing; others than the type's are refused.
///
/// Every error is a BadRequest (400).
pub fn decode(
    ty: &'static Type,
    body: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Decoded, Error> {
    let mut context = Context::new(validation);
    let result = context.read(ty, body, format);
    context.conclude(ty, Some(format), result)
}

/// Reads an applied configuration: what it sets, in canonical form, and nothing else.
///
/// Zero values and nulls stay, because they are owned; nothing is added but `kind` and `apiVersion`. A field that the
/// type does not have is refused, however unknown fields are otherwise treated.
pub fn decode_applied(
    ty: &'static Type,
    body: &[u8],
    format: Format,
    validation: FieldValidation,
) -> Result<Decoded, Error> {
    let mut context = Context { partial: true, ..Context::new(validation) };
    let result = context.read(ty, body, format);
    let undeclared = context.undeclared.take();
    let decoded = context.conclude(ty, Some(format), result)?;
    match undeclared {
        Some(path) => Err(Error::bad_request(format!(
            "failed to create typed patch object ({}): .{path}: field not declared in schema",
            describe(ty, &decoded.object)
        ))),
        None => Ok(decoded),
    }
}

/// `namespace/name; apps/v1, Kind=Deployment`
fn describe(ty: &Type, object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let (api_version, kind) = (ty.api_version().unwrap_or_default(), ty.kind());
    format!("{}/{}; {api_version}, Kind={kind}", text("namespace"), text("name"))
}

/// Brings an object that a patch or a conversion made into canonical form.
pub fn canonicalize(
    ty: &'static Type,
    object: &Value,
    validation: FieldValidation,
) -> Result<Decoded, Error> {
    let mut context = Context::new(validation);
    let result = context.root(ty).deserialize(object).map_err(|error| error.to_string());
    context.conclude(ty, None, result)
}

/// The body is broken before its fields matter.
fn unreadable(kind: &str, format: Option<Format>, error: &dyn fmt::Display) -> Error {
    let expected = if kind.is_empty() { String::new() } else { format!(" (must be of type {kind})") };
    let parse = match format {
        Some(Format::Json) => "json parse error: ",
        Some(Format::Yaml) => "yaml parse error: ",
        None => "",
    };
    Error::bad_request(format!(
        "the object provided is unrecognized{expected}: couldn't get version/kind; {parse}{error}"
    ))
}

/// One step of the path to the value being read.
enum Step {
    Field(&'static str),
    Key(String),
    Index(usize),
}

/// What is known while a body is read.
struct Context {
    validation: FieldValidation,
    path: Vec<Step>,
    findings: Vec<String>,
    objects_left: u32,
    /// The first thing that cannot be read, in upstream's words; the parser's own words are for broken syntax.
    misfit: Option<String>,
    /// What is read is a part of an object: nothing is filled in, and nothing dropped.
    partial: bool,
    /// The path of the first unknown field of a part.
    undeclared: Option<String>,
}

impl Context {
    fn new(validation: FieldValidation) -> Self {
        Self {
            validation,
            path: Vec::new(),
            findings: Vec::new(),
            objects_left: MAX_OBJECTS,
            misfit: None,
            partial: false,
            undeclared: None,
        }
    }

    /// Reads text as a `ty`.
    fn read(&mut self, ty: &'static Type, body: &[u8], format: Format) -> Result<Option<Value>, String> {
        match format {
            Format::Json => {
                let mut source = serde_json::Deserializer::from_slice(body);
                let result = self.root(ty).deserialize(&mut source);
                result.and_then(|object| source.end().map(|()| object)).map_err(|error| error.to_string())
            }
            Format::Yaml => {
                let source = serde_yaml_ng::Deserializer::from_slice(body);
                self.root(ty).deserialize(source).map_err(|error| error.to_string())
            }
        }
    }

    fn root(&mut self, ty: &'static Type) -> Node<'_> {
        Node { context: self, owner: ty, place: Place::Root(ty) }
    }

    /// Turns what was read and what was found on the way into the answer.
    fn conclude(
        self,
        ty: &'static Type,
        format: Option<Format>,
        result: Result<Option<Value>, String>,
    ) -> Result<Decoded, Error> {
        let kind = ty.kind();
        let refuse = |what: &str| {
            let version = ty.group_version.map_or("", |(_, version)| version);
            Error::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {what}"))
        };
        if let Some(misfit) = &self.misfit {
            return Err(refuse(misfit));
        }
        let object = result.map_err(|error| unreadable(kind, format, &error))?;
        let Some(Value::Object(mut object)) = object else {
            return Err(refuse("the body is empty"));
        };
        check_type_meta(ty, &mut object)?;
        if self.validation == FieldValidation::Strict && !self.findings.is_empty() {
            return Err(refuse(&format!("strict decoding error: {}", self.findings.join(", "))));
        }
        Ok(Decoded { object: Value::Object(object), warnings: self.findings })
    }

    /// `spec.containers[0].image`
    fn path_to(&self, last: &str) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) => push_name(&mut text, name),
                Step::Key(name) => push_name(&mut text, name),
                Step::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        push_name(&mut text, last);
        text
    }

    fn find(&mut self, what: &str, name: &str) {
        if self.validation != FieldValidation::Ignore && self.findings.len() < MAX_FINDINGS {
            let finding = format!("{what} {:?}", self.path_to(name));
            self.findings.push(finding);
        }
    }

    /// Notes that a value has the wrong type, as Go's decoder words it.
    fn cannot_unmarshal(&mut self, found: &str, owner: &Type, shape: Shape, elem: Elem) {
        let names: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(*name),
                Step::Key(name) => Some(name.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        let target = go_type(shape, elem);
        self.misfit.get_or_insert_with(|| {
            if names.is_empty() {
                return format!("json: cannot unmarshal {found} into Go value of type {target}");
            }
            let (kind, path) = (owner.kind(), names.join("."));
            format!("json: cannot unmarshal {found} into Go struct field {kind}.{path} of type {target}")
        });
    }
}

fn push_name(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('.');
    }
    text.push_str(name);
}

/// The names of the type are right, or absent and then added.
fn check_type_meta(ty: &Type, object: &mut Map<String, Value>) -> Result<(), Error> {
    let Some(api_version) = ty.api_version() else { return Ok(()) };
    // The option types belong to every group, so what the client wrote stays.
    let everywhere = ty.package() == "k8s.io.apimachinery.pkg.apis.meta.v1";
    for (name, expected) in [("apiVersion", api_version.as_str()), ("kind", ty.kind())] {
        match object.get(name).and_then(Value::as_str) {
            None | Some("") if everywhere => {}
            None | Some("") => {
                object.insert(name.to_owned(), Value::from(expected));
            }
            Some(found) if found == expected || everywhere => {}
            Some(found) if name == "apiVersion" => {
                return Err(Error::bad_request(format!(
                    "the API version in the data ({found}) does not match the expected API version ({expected})"
                )));
            }
            Some(found) => {
                let version = ty.group_version.map_or("", |(_, version)| version);
                return Err(Error::bad_request(format!(
                    "{found} in version {version:?} cannot be handled as a {expected}"
                )));
            }
        }
    }
    Ok(())
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Place {
    Root(&'static Type),
    /// The whole of a field.
    Field(&'static Field),
    /// One item of a list or map of this type.
    Item(Elem),
    /// A member that is read for its text only: `kind`, `apiVersion`.
    Text,
}

/// Reads one value; `None` stands for null.
struct Node<'c> {
    context: &'c mut Context,
    /// The struct around it, for messages.
    owner: &'static Type,
    place: Place,
}

impl<'c> Node<'c> {
    fn shape(&self) -> Shape {
        match self.place {
            Place::Field(field) => field.shape,
            _ => Shape::One,
        }
    }

    fn elem(&self) -> Elem {
        match self.place {
            Place::Field(field) => field.elem,
            Place::Item(elem) => elem,
            Place::Text | Place::Root(_) => Elem::String,
        }
    }

    /// The type of an object in this place.
    fn object_type(&self) -> Option<&'static Type> {
        match self.place {
            Place::Root(ty) => Some(ty),
            _ => self.elem().message(),
        }
    }

    fn refuse<E: serde::de::Error>(self, found: &str) -> E {
        let (shape, elem) = (self.shape(), self.elem());
        self.context.cannot_unmarshal(found, self.owner, shape, elem);
        E::custom("type mismatch")
    }

    fn scalar<E: serde::de::Error>(self, scalar: Scalar<'_>) -> Result<Option<Value>, E> {
        if self.shape() != Shape::One || matches!(self.place, Place::Root(_)) {
            return Err(self.refuse(scalar.kind()));
        }
        match canonical_scalar(scalar, self.elem()) {
            Ok(Value::Null) => Ok(None),
            Ok(value) => Ok(Some(value)),
            Err(Misfit::Type) => Err(self.refuse(scalar.kind())),
            Err(Misfit::Value(found)) if found.starts_with("number ") => Err(self.refuse(&found)),
            Err(Misfit::Value(what)) => {
                self.context.misfit.get_or_insert(what);
                Err(E::custom("unreadable value"))
            }
        }
    }

    fn child<'n>(context: &'n mut Context, owner: &'static Type, place: Place) -> Node<'n> {
        Node { context, owner, place }
    }

    /// Counts one more object, or refuses the body as too large.
    fn count<E: serde::de::Error>(context: &mut Context) -> Result<(), E> {
        match context.objects_left.checked_sub(1) {
            Some(left) => {
                context.objects_left = left;
                Ok(())
            }
            None => {
                context.misfit.get_or_insert_with(|| format!("the object has more than {MAX_OBJECTS} parts"));
                Err(E::custom("too many objects"))
            }
        }
    }

    fn read_struct<'de, A: MapAccess<'de>>(
        self,
        ty: &'static Type,
        mut access: A,
    ) -> Result<Option<Value>, A::Error> {
        let context = self.context;
        Self::count(context)?;
        let mut object = Map::new();
        // Names whose value was dropped as zero or null are not in the object, but count as seen.
        let mut dropped: Vec<String> = Vec::new();
        while let Some(Name(name)) = access.next_key()? {
            if object.contains_key(&name) || dropped.contains(&name) {
                context.find("duplicate field", &name);
                object.remove(&name);
            }
            let field = ty.field(&name);
            let place = match field {
                Some(field) => Place::Field(field),
                None if ty.has_type_meta && matches!(name.as_str(), "kind" | "apiVersion") => Place::Text,
                None => {
                    if context.partial {
                        let path = context.path_to(&name);
                        context.undeclared.get_or_insert(path);
                    } else {
                        context.find("unknown field", &name);
                    }
                    access.next_value::<serde::de::IgnoredAny>()?;
                    continue;
                }
            };
            let step = match (field, name.as_str()) {
                (Some(field), _) => field.json,
                (None, "kind") => "kind",
                (None, _) => "apiVersion",
            };
            context.path.push(Step::Field(step));
            let value = access.next_value_seed(Self::child(context, ty, place))?;
            context.path.pop();
            match value {
                value if context.partial => drop(object.insert(name, value.unwrap_or_default())),
                Some(value) if !field.is_some_and(|field| is_dropped(field, &value)) => {
                    object.insert(name, value);
                }
                _ => dropped.push(name),
            }
        }
        if !context.partial {
            fill(ty, &mut object);
        }
        Ok(Some(Value::Object(object)))
    }

    fn read_map<'de, A: MapAccess<'de>>(self, elem: Elem, mut access: A) -> Result<Option<Value>, A::Error> {
        let context = self.context;
        let mut map = Map::new();
        while let Some(Name(key)) = access.next_key()? {
            Self::count(context)?;
            if map.contains_key(&key) {
                context.find("duplicate field", &key);
            }
            let nested = elem.message().is_some_and(|ty| ty.special == Special::Struct);
            if nested {
                context.path.push(Step::Key(key.clone()));
            }
            let value = access.next_value_seed(Self::child(context, self.owner, Place::Item(elem)))?;
            if nested {
                context.path.pop();
            }
            map.insert(key, value.unwrap_or_else(|| zero(elem)));
        }
        Ok(Some(Value::Object(map)))
    }

    fn read_list<'de, A: SeqAccess<'de>>(self, elem: Elem, mut access: A) -> Result<Option<Value>, A::Error> {
        let context = self.context;
        let mut items = Vec::new();
        loop {
            context.path.push(Step::Index(items.len()));
            let item = access.next_element_seed(Self::child(context, self.owner, Place::Item(elem)))?;
            context.path.pop();
            let Some(item) = item else { return Ok(Some(Value::Array(items))) };
            Self::count(context)?;
            items.push(item.unwrap_or_else(|| zero(elem)));
        }
    }
}

/// Go's `omitempty`, and the zero of the few types that JSON cannot tell from unset.
pub(super) fn is_dropped(field: &Field, value: &Value) -> bool {
    if !field.omits_zero() {
        return false;
    }
    match field.elem.message().filter(|_| field.shape == Shape::One).map(|ty| ty.special) {
        // Structs are printed even when they are empty.
        Some(Special::Struct | Special::Quantity | Special::Duration) => false,
        // Unset is the number 0.
        Some(Special::IntOrString) => value == &Value::from(0),
        Some(Special::RawJson) => value.is_null(),
        _ => is_zero(value, field.elem),
    }
}

/// A member's name. YAML also has numbers and booleans there, which are read as text.
struct Name(String);

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_str<E>(self, text: &str) -> Result<Name, E> {
                Ok(Name(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Name, E> {
                Ok(Name(text))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Name, E> {
                Ok(Name(number.to_string()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Name, E> {
                Ok(Name(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Name, E> {
                Ok(Name(number.to_string()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Name, E> {
                Ok(Name(value.to_string()))
            }
        }

        source.deserialize_any(NameVisitor)
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Option<Value>, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&go_type(self.shape(), self.elem()))
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Int(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Option<Value>, E> {
        self.scalar(i64::try_from(value).map_or(Scalar::Big(value), Scalar::Int))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Option<Value>, E> {
        self.scalar(Scalar::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<Option<Value>, A::Error> {
        if self.shape() == Shape::List {
            let elem = self.elem();
            return self.read_list(elem, access);
        }
        match (self.shape(), self.object_type().map(|ty| (ty, ty.special))) {
            (Shape::One, Some((_, Special::StringList))) => self.read_list(Elem::String, access),
            (Shape::One, Some((_, Special::SchemaOrStrings))) => self.read_list(Elem::String, access),
            (Shape::One, Some((ty, Special::SchemaOrArray))) => self.read_list(ty.fields[0].elem, access),
            (Shape::One, Some((_, Special::RawJson))) => raw_list(access).map(Some),
            _ => Err(self.refuse("array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Option<Value>, A::Error> {
        if self.shape() == Shape::Map {
            let elem = self.elem();
            return self.read_map(elem, access);
        }
        let ty = self.object_type().filter(|_| self.shape() == Shape::One);
        match ty.map(|ty| (ty, ty.special)) {
            Some((ty, Special::Struct)) => self.read_struct(ty, access),
            Some((_, Special::RawJson)) => raw_object(access).map(Some),
            Some((ty, Special::SchemaOrBool | Special::SchemaOrArray | Special::SchemaOrStrings)) => {
                let schema = ty.fields.iter().find_map(|field| field.elem.message());
                let schema = schema.ok_or_else(|| A::Error::custom("the type holds no schema"))?;
                self.read_struct(schema, access)
            }
            _ => Err(self.refuse("object")),
        }
    }
}

/// Any JSON; its shape is nobody's business here, and nesting is bounded by the parser.
fn raw_list<'de, A: SeqAccess<'de>>(mut access: A) -> Result<Value, A::Error> {
    let mut items = Vec::new();
    while let Some(item) = access.next_element::<Value>()? {
        items.push(item);
    }
    Ok(Value::Array(items))
}

fn raw_object<'de, A: MapAccess<'de>>(mut access: A) -> Result<Value, A::Error> {
    let mut object = Map::new();
    while let Some((Name(name), value)) = access.next_entry::<Name, Value>()? {
        object.insert(name, value);
    }
    Ok(Value::Object(object))
}
