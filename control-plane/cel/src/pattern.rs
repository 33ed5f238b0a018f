//! Patterns of texts: those of Go's `regexp`, within bounds.
//!
//! There is one engine, the simplest: a search takes at most the text's length times the compiled pattern's size, whatever the
//! pattern, so that its cost is known before it begins, and nothing is kept between searches.

use std::fmt::Display;

use regex_automata::{
    Input,
    nfa::thompson::{NFA, pikevm::PikeVM},
};
use regex_syntax::{
    ast::{
        Ast, ClassAscii, ClassAsciiKind, ClassBracketed, ClassPerl, ClassPerlKind, ClassSet, ClassSetItem,
        RepetitionKind, RepetitionRange, parse::Parser,
    },
    hir::translate::Translator,
};

use super::{
    evaluate::{Failure, Meter},
    value::Value,
};

/// How often a part may repeat, with what repeats it from outside, as in Go.
const MOST_REPETITIONS: u32 = 1000;
/// Classes of one pattern: each may be hundreds of ranges before it is known how large it is compiled.
const MOST_CLASSES: usize = 200;
/// Longer texts are not searched, in bytes.
const LONGEST_SEARCHED: usize = 64 << 10;
/// Bytes of a compiled pattern, about two states, that one byte of text costs a unit for.
const BYTES: usize = 64;

/// Of a pattern that is computed: its size, and the bytes that are compiled for a unit.
const LARGEST_COMPUTED: usize = 16 << 10;
const BYTES_COMPILED: usize = 8;
/// What a byte of its text costs: a class may be of many ranges.
const COST_OF_COMPUTED: usize = 300;

/// What is looked for: whether the pattern matches anywhere, what it matches first, or all that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Search {
    Matches,
    Find,
    FindAll,
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    engine: PikeVM,
    /// In bytes.
    pub(super) size: usize,
}

impl Pattern {
    /// `most` is how large it may become, in bytes.
    pub(super) fn new(text: &str, most: usize) -> Result<Self, String> {
        let wrong = |error: &dyn Display| format!("error parsing regexp: {error}");
        let mut parsed = Parser::new().parse(text).map_err(|error| wrong(&error))?;
        Reader::default().read(&mut parsed, 1)?;
        let tree = Translator::new().translate(text, &parsed).map_err(|error| wrong(&error))?;
        let compiler = NFA::config().nfa_size_limit(Some(most));
        let states = NFA::compiler().configure(compiler).build_from_hir(&tree);
        let states = states.map_err(|_| format!("error parsing regexp: larger than {most} bytes"))?;
        let size = states.memory_usage();
        let engine = PikeVM::new_from_nfa(states).map_err(|error| wrong(&error))?;
        Ok(Self { engine, size })
    }

    /// A pattern that is known only when it is needed: to compile it costs too.
    pub(super) fn computed(text: &str, meter: &mut Meter<'_>) -> Result<Self, Failure> {
        meter.spend(text.len().saturating_mul(COST_OF_COMPUTED))?;
        let compiled = Self::new(text, LARGEST_COMPUTED);
        let size = compiled.as_ref().map_or(LARGEST_COMPUTED, |pattern| pattern.size);
        meter.spend(size / BYTES_COMPILED)?;
        compiled.map_err(Failure::new)
    }

    /// `most` matches are found, where all are looked for; a negative number is all.
    pub(super) fn search(
        &self,
        how: Search,
        text: &str,
        most: Option<i64>,
        meter: &mut Meter<'_>,
    ) -> Result<Value<'static>, Failure> {
        self.spend(text.len(), meter)?;
        let mut cache = self.engine.create_cache();
        Ok(match how {
            Search::Matches => Value::Bool(self.engine.is_match(&mut cache, text)),
            Search::Find => {
                let found = self.engine.find(&mut cache, text);
                Value::owned(found.map_or("", |found| &text[found.range()]))
            }
            Search::FindAll => {
                let most = usize::try_from(most.unwrap_or(-1)).unwrap_or(usize::MAX);
                Value::list(self.find_all(text, most, meter)?)
            }
        })
    }

    fn find_all(
        &self,
        text: &str,
        most: usize,
        meter: &mut Meter<'_>,
    ) -> Result<Vec<Value<'static>>, Failure> {
        let mut cache = self.engine.create_cache();
        let (mut all, mut from, mut last_end) = (Vec::new(), 0, None);
        while all.len() < most && from <= text.len() {
            // Each search may look at all that is left.
            self.spend(text.len() - from, meter)?;
            let Some(found) = self.engine.find(&mut cache, Input::new(text).range(from..)) else { break };
            // Nothing, right after a match, is none.
            if !found.is_empty() || last_end != Some(found.end()) {
                all.push(Value::owned(&text[found.range()]));
            }
            last_end = Some(found.end());
            let next = text[found.end()..].chars().next().map_or(1, char::len_utf8);
            from = if found.is_empty() { found.end() + next } else { found.end() };
        }
        Ok(all)
    }

    fn spend(&self, bytes: usize, meter: &mut Meter<'_>) -> Result<(), Failure> {
        if bytes > LONGEST_SEARCHED {
            return Err(Failure::Cost);
        }
        // To prepare a search costs as much as a byte of text.
        meter.spend((bytes + 1).saturating_mul(self.size) / BYTES)
    }
}

/// Refuses what Go does not have, and makes classes what they are there: `\d`, `\s` and `\w` are about ASCII.
#[derive(Default)]
struct Reader {
    classes: usize,
}

impl Reader {
    /// `times` is how often what is around it repeats it. As deep as the parser allows.
    fn read(&mut self, part: &mut Ast, times: u32) -> Result<(), String> {
        match part {
            Ast::Empty(_) | Ast::Flags(_) | Ast::Literal(_) | Ast::Dot(_) | Ast::Assertion(_) => Ok(()),
            Ast::ClassUnicode(_) => self.count_class(),
            Ast::ClassPerl(class) => {
                let kind = ClassSet::Item(ClassSetItem::Ascii(in_ascii(class)));
                *part = Ast::class_bracketed(ClassBracketed { span: class.span, negated: false, kind });
                self.count_class()
            }
            Ast::ClassBracketed(class) => self.read_set(&mut class.kind),
            Ast::Repetition(repetition) => {
                let most = match &repetition.op.kind {
                    RepetitionKind::Range(
                        RepetitionRange::Exactly(most)
                        | RepetitionRange::AtLeast(most)
                        | RepetitionRange::Bounded(_, most),
                    ) => *most,
                    RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
                };
                let times = times.saturating_mul(most.max(1));
                if times > MOST_REPETITIONS {
                    return Err(format!("error parsing regexp: invalid repeat count: {times}"));
                }
                self.read(&mut repetition.ast, times)
            }
            Ast::Group(group) => self.read(&mut group.ast, times),
            Ast::Alternation(all) => all.asts.iter_mut().try_for_each(|one| self.read(one, times)),
            Ast::Concat(all) => all.asts.iter_mut().try_for_each(|one| self.read(one, times)),
        }
    }

    fn read_set(&mut self, set: &mut ClassSet) -> Result<(), String> {
        self.count_class()?;
        match set {
            ClassSet::Item(item) => self.read_item(item),
            ClassSet::BinaryOp(_) => {
                Err("error parsing regexp: sets of classes are not supported".to_owned())
            }
        }
    }

    fn read_item(&mut self, item: &mut ClassSetItem) -> Result<(), String> {
        match item {
            ClassSetItem::Perl(class) => *item = ClassSetItem::Ascii(in_ascii(class)),
            ClassSetItem::Bracketed(class) => return self.read_set(&mut class.kind),
            ClassSetItem::Union(all) => {
                return all.items.iter_mut().try_for_each(|item| self.read_item(item));
            }
            ClassSetItem::Unicode(_) => return self.count_class(),
            ClassSetItem::Empty(_)
            | ClassSetItem::Literal(_)
            | ClassSetItem::Range(_)
            | ClassSetItem::Ascii(_) => (),
        }
        Ok(())
    }

    fn count_class(&mut self) -> Result<(), String> {
        self.classes += 1;
        match self.classes <= MOST_CLASSES {
            true => Ok(()),
            false => Err(format!("error parsing regexp: more than {MOST_CLASSES} classes")),
        }
    }
}

fn in_ascii(class: &ClassPerl) -> ClassAscii {
    let kind = match class.kind {
        ClassPerlKind::Digit => ClassAsciiKind::Digit,
        ClassPerlKind::Space => ClassAsciiKind::Space,
        ClassPerlKind::Word => ClassAsciiKind::Word,
    };
    ClassAscii { span: class.span, kind, negated: class.negated }
}
