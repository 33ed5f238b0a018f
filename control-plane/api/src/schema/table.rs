//! The table of types: what every generic part of the API knows about a built-in type.
//!
//! It is read once, when first asked for, from `schema.txt`, which `cargo xtask gen-schema` writes from
//! facts about the API (field numbers, JSON names, list types, patch strategies, defaults). The text keeps
//! compile times and the binary small, and is parsed in a few milliseconds. Nothing here changes later, so
//! every reference is `'static`.

use std::{collections::HashMap, sync::LazyLock};

/// What a type looks like in JSON, where that is not simply an object with its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// An object with the fields of the table.
    Struct,
    /// `resource.Quantity`: a string in canonical form.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`: RFC 3339, whole seconds, UTC.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six digits of fraction, UTC.
    MicroTime,
    /// `metav1.Duration`: `1h2m3s`.
    Duration,
    /// Any JSON, carried as bytes in protobuf: `RawExtension`, `FieldsV1`, `apiextensions.JSON`.
    RawJson,
    /// A schema, or true or false.
    SchemaOrBool,
    /// A schema, or a list of them.
    SchemaOrArray,
    /// A schema, or a list of strings.
    SchemaOrStrings,
    /// A list of strings that protobuf wraps in a message: `ExtraValue`, `Verbs`.
    StringList,
}

/// One type of the API, such as `k8s.io.api.core.v1.Pod`.
#[derive(Debug)]
pub struct Type {
    /// The name of its protobuf message.
    pub name: &'static str,
    /// Group and version, for types that are kinds of their own.
    pub group_version: Option<(&'static str, &'static str)>,
    /// Its JSON carries `kind` and `apiVersion`, its protobuf body does not.
    pub has_type_meta: bool,
    pub special: Special,
    /// Replaced as a whole by server-side apply (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// As protobuf sees them, in the order of the Go struct; inlined messages are one field.
    pub fields: Vec<Field>,
    /// As JSON sees them: `(holder, index)` of each, inlined ones in place, in the order Go prints them.
    flat: Vec<(TypeId, usize)>,
    /// Places in `flat`. Asked for each member of each object.
    by_json: HashMap<&'static str, usize, foldhash::fast::FixedState>,
    /// Fields that Go prints although nobody set them: structs, and what has no `omitempty`.
    unconditional: Vec<(TypeId, usize)>,
    /// Indexes of `fields` by ascending number, which is the order on the wire.
    pub(crate) wire_order: Vec<usize>,
}

/// One field of a [`Type`].
#[derive(Debug)]
pub struct Field {
    pub json: &'static str,
    /// The protobuf field number.
    pub number: u32,
    pub shape: Shape,
    pub elem: Elem,
    /// Go holds a pointer: absent and zero differ.
    pub pointer: bool,
    /// Printed even when it is zero (no `omitempty`).
    pub always: bool,
    /// Left out when it is zero, although it is a struct (`omitzero`).
    pub omit_zero: bool,
    /// A message whose fields stand in the outer JSON object.
    pub inline: bool,
    /// Listed as required by the published OpenAPI.
    pub required: bool,
    pub list_type: Option<ListType>,
    /// The keys of a list of type map.
    pub list_keys: Vec<&'static str>,
    /// How server-side apply sees a map or struct here, where that is not the type's own way.
    pub map_type: Option<MapType>,
    pub patch: PatchStrategy,
    /// A default that the published OpenAPI names, as JSON.
    pub default: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    One,
    List,
    /// Keys are strings.
    Map,
}

/// The type of a field, or of each item of a list or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    /// Base64 in JSON.
    Bytes,
    Message(TypeId),
}

/// A reference to a type of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(u16);

/// How server-side apply and the published schema see a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// How server-side apply sees a map or a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// Replaced as a whole.
    Atomic,
    /// Owned field by field.
    Granular,
}

impl MapType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::Granular => "granular",
        }
    }
}

impl ListType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Atomic => "atomic",
            Self::Set => "set",
            Self::Map => "map",
        }
    }
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged item by item (`merge`) rather than replaced.
    pub merge: bool,
    /// Only the keys named in the patch are kept (`retainKeys`).
    pub retain_keys: bool,
    /// An object is replaced as a whole rather than merged (`replace`).
    pub replace: bool,
    /// The field that tells items apart; `None` for lists of scalars.
    pub merge_key: Option<&'static str>,
}

impl PatchStrategy {
    /// As `x-kubernetes-patch-strategy` says it; `None` where nothing is said.
    pub fn as_str(self) -> Option<&'static str> {
        match (self.merge, self.retain_keys) {
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => self.replace.then_some("replace"),
        }
    }
}

impl TypeId {
    pub fn get(self) -> &'static Type {
        &TABLE.types[usize::from(self.0)]
    }
}

impl Elem {
    /// The message type, where it is one.
    pub fn message(self) -> Option<&'static Type> {
        match self {
            Self::Message(id) => Some(id.get()),
            _ => None,
        }
    }
}

impl Field {
    /// Whether this value, which is zero, is left out when printed.
    pub(crate) fn omits_zero(&self) -> bool {
        !self.pointer && !self.always
    }

    fn elem_index(&self) -> Option<usize> {
        match self.elem {
            Elem::Message(id) => Some(usize::from(id.0)),
            _ => None,
        }
    }
}

impl Type {
    /// The last part of the name: `Pod`.
    pub fn kind(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, kind)| kind)
    }

    /// The package: `k8s.io.api.core.v1`.
    pub fn package(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(package, _)| package)
    }

    /// `v1`, `apps/v1`; `None` for types that are not kinds.
    pub fn api_version(&self) -> Option<String> {
        let (group, version) = self.group_version?;
        Some(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") })
    }

    /// The fields as JSON has them, in the order in which upstream prints them.
    pub fn json_fields(&self) -> impl Iterator<Item = &'static Field> + '_ {
        self.flat.iter().map(|(holder, index)| &holder.get().fields[*index])
    }

    /// Where the field of that JSON name stands in [`Type::json_fields`].
    pub(crate) fn place(&self, json: &str) -> Option<usize> {
        self.by_json.get(json).copied()
    }

    /// The field at such a place.
    pub(crate) fn field_at(&self, place: usize) -> &'static Field {
        let (holder, index) = self.flat[place];
        &holder.get().fields[index]
    }

    /// The field of that JSON name; inlined ones too.
    pub fn field(&self, json: &str) -> Option<&'static Field> {
        self.place(json).map(|place| self.field_at(place))
    }

    /// The fields that are printed although they were never set.
    pub(crate) fn unconditional_fields(&self) -> impl Iterator<Item = &'static Field> + '_ {
        self.unconditional.iter().map(|(holder, index)| &holder.get().fields[*index])
    }

    /// The field of that protobuf number.
    pub fn field_by_number(&self, number: u32) -> Option<&Field> {
        // Numbers mostly follow the order, so the first guess is nearly always right.
        let guess = self.fields.get(number.wrapping_sub(1) as usize);
        guess
            .filter(|field| field.number == number)
            .or_else(|| self.fields.iter().find(|f| f.number == number))
    }
}

/// The type behind a kind; `None` for kinds that are not built in.
///
/// The option types, `Status` and `WatchEvent` belong to every group and version.
pub fn type_of(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    let table = &*TABLE;
    let versions = table.kinds.get(kind)?;
    let exact = versions.iter().find(|id| id.get().group_version == Some((group, version)));
    exact
        .or_else(|| versions.iter().find(|id| id.get().package() == META && kind_is_everywhere(kind)))
        .map(|id| id.get())
}

/// The type behind an `apiVersion` and `kind`, as objects carry them.
pub fn type_of_object(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    type_of(group, version, kind)
}

/// The type of that protobuf message name.
pub fn type_named(name: &str) -> Option<&'static Type> {
    TABLE.names.get(name).map(|id| id.get())
}

/// Every type of the table.
pub fn types() -> impl Iterator<Item = &'static Type> {
    TABLE.types.iter()
}

const META: &str = "k8s.io.apimachinery.pkg.apis.meta.v1";

fn kind_is_everywhere(kind: &str) -> bool {
    matches!(
        kind,
        "CreateOptions"
            | "DeleteOptions"
            | "GetOptions"
            | "ListOptions"
            | "PatchOptions"
            | "UpdateOptions"
            | "Status"
            | "WatchEvent"
    )
}

struct Table {
    types: Vec<Type>,
    names: HashMap<&'static str, TypeId>,
    /// By kind alone; the versions of one kind are few.
    kinds: HashMap<&'static str, Vec<TypeId>>,
}

/// What upstream's own API has, and what is published apart from it.
static TEXT: &str = concat!(include_str!("schema.txt"), include_str!("metrics.txt"));
static TABLE: LazyLock<Table> = LazyLock::new(|| parse(TEXT));

/// Reads the generated text. It is part of the binary, so what is malformed is a bug of the generator.
fn parse(text: &'static str) -> Table {
    let names = number_types(text);
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    let mut package = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('@') {
            package = name;
        } else if let Some(field) = line.strip_prefix(' ') {
            let owner = types.last_mut().expect("a field follows its type");
            owner.fields.push(parse_field(field, package, &names));
        } else {
            types.push(parse_type(line, package, &names));
        }
    }
    flatten(&mut types);
    let mut kinds: HashMap<&'static str, Vec<TypeId>> = HashMap::new();
    for (index, ty) in types.iter().enumerate().filter(|(_, ty)| ty.has_type_meta || is_watch_event(ty)) {
        kinds.entry(ty.kind()).or_default().push(type_id(index));
    }
    Table { types, names, kinds }
}

/// A kind in its envelope, though its JSON does not say so.
fn is_watch_event(ty: &Type) -> bool {
    ty.package() == META && ty.kind() == "WatchEvent"
}

fn type_id(index: usize) -> TypeId {
    TypeId(u16::try_from(index).expect("the table has fewer than 65,536 types"))
}

/// Gives every type its place, before any field refers to it.
fn number_types(text: &'static str) -> HashMap<&'static str, TypeId> {
    let mut names = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '@', ' '])) {
        let name = line.split(' ').next().expect("a line has a first word");
        names.insert(name, type_id(names.len()));
    }
    names
}

/// `k8s.io.api.apps.v1.Deployment + G=apps/v1`
fn parse_type(line: &'static str, package: &'static str, names: &HashMap<&'static str, TypeId>) -> Type {
    let mut words = line.split(' ');
    let name = words.next().expect("a line has a first word");
    debug_assert!(name.starts_with(package) && names.contains_key(name), "{name} stands under its package");
    let mut ty = Type {
        name,
        group_version: None,
        has_type_meta: false,
        special: special(name),
        atomic: false,
        fields: Vec::new(),
        flat: Vec::new(),
        by_json: HashMap::default(),
        unconditional: Vec::new(),
        wire_order: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("G", gv)) => ty.group_version = Some(gv.rsplit_once('/').unwrap_or(("", gv))),
            _ if word == "+" => ty.has_type_meta = true,
            _ if word == "A" => ty.atomic = true,
            _ => panic!("unknown mark {word:?} of {name}"),
        }
    }
    ty
}

/// `20*!:name []Container R L=map K=name S=merge M=name T=atomic D="x"`
fn parse_field(line: &'static str, package: &str, names: &HashMap<&'static str, TypeId>) -> Field {
    let (head, rest) = line.split_once(':').expect("a field has a number and a name");
    let marks_at = head.find(|c: char| !c.is_ascii_digit()).unwrap_or(head.len());
    let (number, marks) = head.split_at(marks_at);
    let mut words = rest.split(' ');
    let json = words.next().expect("a field has a name");
    let word = words.next().expect("a field has a type");
    let (shape, word) = match (word.strip_prefix("[]"), word.strip_prefix("{}")) {
        (Some(item), _) => (Shape::List, item),
        (_, Some(item)) => (Shape::Map, item),
        _ => (Shape::One, word),
    };
    let mut field = Field {
        json,
        number: number.parse().expect("a field number is a number"),
        shape,
        elem: parse_elem(word, package, names),
        pointer: marks.contains('*'),
        always: marks.contains('!'),
        omit_zero: marks.contains('z'),
        inline: marks.contains('~'),
        required: false,
        list_type: None,
        list_keys: Vec::new(),
        map_type: None,
        patch: PatchStrategy::default(),
        default: None,
    };
    for word in words {
        match word.split_once('=') {
            Some(("L", "atomic")) => field.list_type = Some(ListType::Atomic),
            Some(("L", "set")) => field.list_type = Some(ListType::Set),
            Some(("L", "map")) => field.list_type = Some(ListType::Map),
            Some(("T", "atomic")) => field.map_type = Some(MapType::Atomic),
            Some(("T", "granular")) => field.map_type = Some(MapType::Granular),
            Some(("K", keys)) => field.list_keys = keys.split(',').collect(),
            Some(("S", how)) => {
                field.patch.merge = how.contains("merge");
                field.patch.retain_keys = how.contains("retainKeys");
                field.patch.replace = how == "replace";
            }
            Some(("M", key)) => field.patch.merge_key = Some(key),
            Some(("D", value)) => field.default = Some(value),
            _ if word == "R" => field.required = true,
            _ => panic!("unknown mark {word:?} of {json}"),
        }
    }
    field
}

fn parse_elem(word: &'static str, package: &str, names: &HashMap<&'static str, TypeId>) -> Elem {
    match word {
        "bool" => Elem::Bool,
        "int32" => Elem::Int32,
        "int64" => Elem::Int64,
        "double" => Elem::Double,
        "string" => Elem::String,
        "bytes" => Elem::Bytes,
        _ => {
            let local = format!("{package}.{word}");
            let id = names.get(word).or_else(|| names.get(local.as_str()));
            Elem::Message(*id.unwrap_or_else(|| panic!("{word} is not in the table")))
        }
    }
}

fn special(name: &str) -> Special {
    match name.strip_prefix("k8s.io.").unwrap_or(name) {
        "apimachinery.pkg.api.resource.Quantity" => Special::Quantity,
        "apimachinery.pkg.util.intstr.IntOrString" => Special::IntOrString,
        "apimachinery.pkg.apis.meta.v1.Time" => Special::Time,
        "apimachinery.pkg.apis.meta.v1.MicroTime" => Special::MicroTime,
        "apimachinery.pkg.apis.meta.v1.Duration" => Special::Duration,
        "apimachinery.pkg.runtime.RawExtension" | "apimachinery.pkg.apis.meta.v1.FieldsV1" => {
            Special::RawJson
        }
        "apimachinery.pkg.apis.meta.v1.Verbs" => Special::StringList,
        rest if rest.ends_with(".ExtraValue") => Special::StringList,
        rest if rest.starts_with("apiextensions_apiserver.") => match rest.rsplit('.').next() {
            Some("JSON") => Special::RawJson,
            Some("JSONSchemaPropsOrBool") => Special::SchemaOrBool,
            Some("JSONSchemaPropsOrArray") => Special::SchemaOrArray,
            Some("JSONSchemaPropsOrStringArray") => Special::SchemaOrStrings,
            _ => Special::Struct,
        },
        _ => Special::Struct,
    }
}

/// Lays the fields of inlined messages out where JSON has them.
fn flatten(types: &mut [Type]) {
    for index in 0..types.len() {
        let mut flat = Vec::new();
        collect(types, index, &mut flat);
        let by_json = flat.iter().enumerate();
        let by_json =
            by_json.map(|(place, &(holder, at))| (types[usize::from(holder.0)].fields[at].json, place));
        let by_json = by_json.collect();
        let unconditional = flat.iter().copied().filter(|&(holder, at)| {
            let field = &types[usize::from(holder.0)].fields[at];
            let special = field.elem_index().map(|inner| types[inner].special);
            is_unconditional(field, special)
        });
        types[index].unconditional = unconditional.collect();
        let mut wire_order: Vec<usize> = (0..types[index].fields.len()).collect();
        wire_order.sort_by_key(|at| types[index].fields[*at].number);
        types[index].wire_order = wire_order;
        types[index].flat = flat;
        types[index].by_json = by_json;
    }
}

/// What Go prints without being asked: structs held by value, and scalars without `omitempty`.
///
/// It prints `null` for times, raw JSON, bytes, lists and maps; here those are left out.
fn is_unconditional(field: &Field, special: Option<Special>) -> bool {
    if field.pointer || field.shape != Shape::One {
        return false;
    }
    match special {
        Some(Special::Struct | Special::Quantity) => !field.omit_zero,
        Some(_) => false,
        None => field.always && field.elem != Elem::Bytes,
    }
}

fn collect(types: &[Type], index: usize, flat: &mut Vec<(TypeId, usize)>) {
    for (at, field) in types[index].fields.iter().enumerate() {
        match field.elem {
            Elem::Message(inner) if field.inline => collect(types, usize::from(inner.0), flat),
            _ => flat.push((type_id(index), at)),
        }
    }
}
