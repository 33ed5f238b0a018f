//! Small reads and writes over JSON objects, and paths of fields for errors.

use std::{fmt, sync::LazyLock};

use serde_json::{Map, Value};

static NULL: Value = Value::Null;
static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// Reads and writes that treat what is absent as empty. Paths have dots: `spec.replicas`.
pub(crate) trait Fields {
    /// Null where absent.
    fn at(&self, path: &str) -> &Value;
    /// Empty where absent.
    fn text(&self, path: &str) -> &str;
    fn int(&self, path: &str) -> Option<i64>;
    /// False where absent.
    fn flag(&self, path: &str) -> bool;
    /// Empty where absent.
    fn list(&self, path: &str) -> &[Value];
    /// Empty where absent.
    fn map(&self, path: &str) -> &Map<String, Value>;
    fn has(&self, path: &str) -> bool;
    /// The field's elements; empty where absent.
    fn list_mut(&mut self, path: &str) -> &mut [Value];
    /// The object at `path` where there is one.
    fn part_mut(&mut self, path: &str) -> Option<&mut Value>;
    /// The object at `path`, made where absent.
    fn ensure(&mut self, path: &str) -> &mut Value;
    /// Sets a field of this object where it is absent or an empty string.
    fn set_default(&mut self, field: &str, value: impl Into<Value>);
    /// Sets a field of this object.
    fn set(&mut self, field: &str, value: impl Into<Value>);
    /// Removes a field of this object.
    fn drop_field(&mut self, field: &str) -> Option<Value>;
    /// Makes `field` what it is in `other`, absent included.
    fn copy_field(&mut self, field: &str, other: &Value);
}

impl Fields for Value {
    fn at(&self, path: &str) -> &Value {
        let mut value = self;
        for name in names(path) {
            match value.get(name) {
                Some(next) => value = next,
                None => return &NULL,
            }
        }
        value
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or_default()
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn map(&self, path: &str) -> &Map<String, Value> {
        self.at(path).as_object().unwrap_or(&EMPTY)
    }

    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }

    fn list_mut(&mut self, path: &str) -> &mut [Value] {
        self.part_mut(path).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
    }

    fn part_mut(&mut self, path: &str) -> Option<&mut Value> {
        let mut value = self;
        for name in names(path) {
            value = value.get_mut(name)?;
        }
        (!value.is_null()).then_some(value)
    }

    fn ensure(&mut self, path: &str) -> &mut Value {
        let mut value = self;
        for name in names(path) {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            value = &mut value[name];
        }
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        value
    }

    fn set_default(&mut self, field: &str, value: impl Into<Value>) {
        let absent = match &self[field] {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        if absent {
            self.set(field, value);
        }
    }

    fn set(&mut self, field: &str, value: impl Into<Value>) {
        if let Value::Object(fields) = self {
            fields.insert(field.to_owned(), value.into());
        }
    }

    fn drop_field(&mut self, field: &str) -> Option<Value> {
        self.as_object_mut()?.remove(field)
    }

    fn copy_field(&mut self, field: &str, other: &Value) {
        match other.get(field) {
            Some(value) => self.set(field, value.clone()),
            None => drop(self.drop_field(field)),
        }
    }
}

/// The names of a path. They are short, and this is most of what validation does: a search made for long text is slower.
fn names(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let text = rest?;
        let dot = text.bytes().position(|byte| byte == b'.');
        rest = dot.map(|dot| &text[dot + 1..]);
        Some(&text[..dot.unwrap_or(text.len())])
    })
}

/// The path of a field, written out only when an error names it.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    Key(&'a Path<'a>, &'a str),
}

impl<'a> Path<'a> {
    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(name) => f.write_str(name),
            Path::Field(Path::Root(""), name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> Self {
        path.to_string()
    }
}

impl From<Path<'_>> for String {
    fn from(path: Path<'_>) -> Self {
        path.to_string()
    }
}
