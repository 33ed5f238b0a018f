//! The owners of a new object: who creates it owns what it says.
//!
//! That is what [`Write::update`] finds by comparing the object with one of which nothing is set. Where nobody owned
//! anything before, the set is only printed and never looked at; so it is printed straight from the object, in the order
//! of [`FieldSet::write`](super::FieldSet::write), and no set is made.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{
    applied::empty,
    compare::{absent, items, keyed, members, take_same},
    managed::{ManagedFields, Operation},
    owned::OwnedFields,
    path::write_field,
    place::Place,
    reach::Reach,
    update::Write,
    versions::type_of,
};
use crate::schema::Type;

/// Fields of the object, and of its metadata, that nobody owns.
const UNOWNED: &[&str] = &["apiVersion", "kind"];
const UNOWNED_METADATA: &[&str] = &[
    "creationTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

impl Write<'_> {
    /// The owners of `new`, which is created; `managed` are those that the request names.
    ///
    /// Kinds without a schema are not tracked.
    pub fn create(&self, new: &Value, mut managed: ManagedFields) -> ManagedFields {
        let Some(ty) = type_of(new) else { return managed };
        if !managed.is_empty() || !self.reach.is_of_whole_fields() {
            return self.update(&empty(ty), new, managed);
        }
        let text = fields_text(ty, new, self.reach);
        if text != b"{}" {
            let owned = OwnedFields::stored(text.into());
            managed.entries_mut().push(self.by.entry(Operation::Update, owned));
        }
        managed
    }
}

/// `FieldsV1` of what `object` says, as far as it is reached.
fn fields_text(ty: &'static Type, object: &Value, reach: Reach<'_>) -> Vec<u8> {
    let mut printer = Printer { out: Vec::with_capacity(2048) };
    let (place, nothing) = (Place::of_type(ty), empty(ty));
    printer.out.push(b'{');
    if let Place::Leaf = place {
        printer.out.push(b'}');
        return printer.out;
    }
    printer.members(place, (Some(&nothing), Some(object)), &mut false, |printer, name, place, pair| {
        if UNOWNED.contains(&name) || reach.skips(name) {
            return false;
        }
        if name == "metadata" { printer.metadata(place, pair) } else { printer.part(place, pair) }
    });
    printer.out.push(b'}');
    printer.out
}

/// A value before and after; one of the two is there.
type Pair<'v> = (Option<&'v Value>, Option<&'v Value>);

/// How a level was compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    AsWhole,
    ByPart,
}

/// Prints what [`compare`](super::compare) finds changed, level by level. See there for what counts as changed.
struct Printer {
    out: Vec<u8>,
}

impl Printer {
    /// Prints the level of a value; false, and nothing, where nothing of it changed.
    fn part(&mut self, place: Place, pair: Pair<'_>) -> bool {
        self.level(place, pair, |printer, _, place, pair| printer.part(place, pair))
    }

    /// The level of the object's metadata, which has no owner itself.
    fn metadata(&mut self, place: Place, (old, new): Pair<'_>) -> bool {
        static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        if members(new).is_none_or(Map::is_empty) {
            return false;
        }
        // It is never new as a whole, then.
        self.level(place, (old.or(Some(&EMPTY)), new), |printer, name, place, pair| {
            !UNOWNED_METADATA.contains(&name) && printer.part(place, pair)
        })
    }

    fn level(
        &mut self,
        place: Place,
        pair: Pair<'_>,
        print: impl Fn(&mut Self, &str, Place, Pair<'_>) -> bool,
    ) -> bool {
        let (start, is_new) = (self.out.len(), pair.0.is_none());
        self.out.push(b'{');
        let mut mark = is_new;
        let compared = match place {
            Place::Struct(_) | Place::Map(_) => self.members(place, pair, &mut mark, print),
            Place::List { .. } | Place::Set => self.items(place, pair, &mut mark),
            Place::Leaf => Compared::AsWhole,
        };
        let is_member = pair.1.is_some() && (is_new || compared == Compared::AsWhole);
        if !is_member && self.out.len() == start + 1 {
            self.out.truncate(start);
            return false;
        }
        self.out.push(b'}');
        true
    }

    fn members(
        &mut self,
        place: Place,
        (old, new): Pair<'_>,
        mark: &mut bool,
        print: impl Fn(&mut Self, &str, Place, Pair<'_>) -> bool,
    ) -> Compared {
        let (Some(olds), Some(news)) = (members(old), members(new)) else { return Compared::AsWhole };
        if olds.is_empty() && news.is_empty() {
            return Compared::AsWhole;
        }
        let mut one = |printer: &mut Self, name: &str, pair| {
            printer.entry(
                mark,
                |out| write_field(name, out),
                |printer| print(printer, name, place.member(name), pair),
            );
        };
        let mut olds = olds.iter().peekable();
        for (name, after) in news {
            while let Some((name, before)) = olds.next_if(|(before, _)| *before < name) {
                one(self, name, (Some(before), absent(place, new, name)));
            }
            match olds.next_if(|(before, _)| *before == name) {
                Some((_, before)) if before == after => {}
                Some((_, before)) => one(self, name, (Some(before), Some(after))),
                None => one(self, name, (absent(place, old, name), Some(after))),
            }
        }
        for (name, before) in olds {
            one(self, name, (Some(before), absent(place, new, name)));
        }
        Compared::ByPart
    }

    /// Of what is new: an object of which nothing is set has no items.
    fn items(&mut self, place: Place, (old, new): Pair<'_>, mark: &mut bool) -> Compared {
        let (Some([]), Some(news)) = (items(old), items(new)) else { return Compared::AsWhole };
        let Some(news) = keyed(place, news).filter(|news| !news.is_empty()) else { return Compared::AsWhole };
        let mut news = news.as_slice();
        while let Some((element, _)) = news.first() {
            let same = take_same(&mut news, element);
            let item = |printer: &mut Self| match same {
                [(_, item)] => printer.part(place.item(), (None, Some(*item))),
                // Several of one key are owned by the key.
                _ => {
                    printer.out.extend_from_slice(b"{}");
                    true
                }
            };
            self.entry(mark, |out| element.write(out), item);
        }
        Compared::ByPart
    }

    /// Prints one part of a level by its name and its own level, where that prints anything. `mark` says that the level
    /// itself is a member, which is written before the first of its parts.
    fn entry(
        &mut self,
        mark: &mut bool,
        name: impl FnOnce(&mut Vec<u8>),
        level: impl FnOnce(&mut Self) -> bool,
    ) {
        let start = self.out.len();
        if *mark {
            self.out.extend_from_slice(b"\".\":{},");
        } else if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        name(&mut self.out);
        self.out.push(b':');
        if level(self) {
            *mark = false;
        } else {
            self.out.truncate(start);
        }
    }
}
