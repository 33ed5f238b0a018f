//! From an expression's text to a tree that can be evaluated, with every name resolved.

use std::collections::BTreeMap;

use cel::{
    common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators},
    parser::Parser,
};

use super::{
    MOST_PATTERN_BYTES,
    functions::Function,
    pattern::{Pattern, Search},
    value::Value,
};

/// Deeper expressions are refused: evaluation goes down by recursion.
const DEEPEST: usize = 150;
/// Nested parentheses and calls that are parsed, as upstream.
const DEEPEST_TEXT: u16 = 96;
/// The parser and what it makes are as deep as the text is long, in the worst case.
const STACK: usize = 256 << 20;

/// What the variable `device` has.
const DEVICE_FIELDS: [&str; 4] = ["driver", "attributes", "capacity", "allowMultipleAllocations"];

/// What stands before functions that have a name in two parts: `sets.contains(x, y)`.
const OWNERS: [&str; 2] = ["optional", "sets"];

/// Types that have a name.
const TYPES: [&str; 9] = ["bool", "int", "uint", "double", "string", "list", "map", "null_type", "type"];

#[derive(Debug)]
pub(super) enum Node {
    Literal(Value<'static>),
    Device,
    /// By its place among those that are alive.
    Variable(usize),
    Select {
        of: Box<Node>,
        field: String,
        /// Whether it is asked if the field is there.
        test: bool,
        optional: bool,
    },
    Index {
        of: Box<Node>,
        key: Box<Node>,
        optional: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Conditional(Box<Node>, Box<Node>, Box<Node>),
    NotStrictlyFalse(Box<Node>),
    /// The target of a method comes first.
    Call(Function, Vec<Node>),
    /// With a pattern that is a text of the expression itself, so that it is compiled once.
    Search {
        how: Search,
        pattern: Pattern,
        text: Box<Node>,
        most: Option<Box<Node>>,
    },
    Comprehension(Box<Comprehension>),
    /// `cel.bind(name, value, body)`: the value is in the next variable.
    Bind(Box<Node>, Box<Node>),
}

/// The loop behind the macros. Its variables are the next three: element, its value where both are named, and result.
#[derive(Debug)]
pub(super) struct Comprehension {
    pub(super) over: Node,
    pub(super) start: Node,
    pub(super) goes_on: Node,
    pub(super) step: Node,
    pub(super) result: Node,
    /// Element and value are named apart.
    pub(super) pairs: bool,
    pub(super) first: usize,
}

#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) root: Node,
    /// Variables that are alive at the same time, at most.
    pub(super) variables: usize,
    /// What the patterns take, in bytes.
    pub(super) pattern_bytes: usize,
    /// What the tree takes without them, about.
    pub(super) tree_bytes: usize,
}

pub(super) fn compile(expression: &str) -> Result<Compiled, String> {
    let text = expression.to_owned();
    // On a stack of its own, of which a long chain of operators takes much.
    let worker = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK).spawn(move || {
        let parser = Parser::new().max_recursion_depth(DEEPEST_TEXT).enable_optional_syntax(true);
        let parsed = parser.parse(&text).map_err(|errors| format!("compilation failed: {errors}"))?;
        let mut compiler = Compiler::default();
        let root = compiler.node(&parsed, 0)?;
        let Compiler { most: variables, pattern_bytes, tree_bytes, .. } = compiler;
        Ok(Compiled { root, variables, pattern_bytes, tree_bytes })
    });
    let worker = worker.map_err(|error| format!("unexpected compilation error: {error}"))?;
    worker.join().unwrap_or_else(|_| Err("unexpected compilation error: the parser failed".to_owned()))
}

#[derive(Default)]
struct Compiler {
    /// The places of the names that are known, the innermost last.
    names: BTreeMap<String, Vec<usize>>,
    alive: usize,
    most: usize,
    pattern_bytes: usize,
    tree_bytes: usize,
}

impl Compiler {
    fn node(&mut self, ided: &IdedExpr, depth: usize) -> Result<Node, String> {
        if depth > DEEPEST {
            return Err(format!("compilation failed: more than {DEEPEST} levels deep"));
        }
        let depth = depth + 1;
        self.tree_bytes += size_of::<Node>();
        Ok(match &ided.expr {
            Expr::Literal(literal) => Node::Literal(value(literal)?),
            Expr::Ident(name) => self.name(name)?,
            Expr::Select(select) => self.select(&select.operand, &select.field, select.test, false, depth)?,
            Expr::List(list) if list.optional_indices.is_empty() => {
                Node::List(self.nodes(&list.elements, depth)?)
            }
            Expr::Map(map) => {
                let mut entries = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { return Err(unsupported("a struct")) };
                    if entry.optional {
                        return Err(unsupported("an optional entry"));
                    }
                    entries.push((self.node(&entry.key, depth)?, self.node(&entry.value, depth)?));
                }
                Node::Map(entries)
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth)?,
            Expr::Call(call) => self.call(call, depth)?,
            Expr::List(_) => return Err(unsupported("an optional element")),
            Expr::Struct(_) => return Err(unsupported("a struct")),
            Expr::Unspecified => return Err(unsupported("an empty expression")),
        })
    }

    fn boxed(&mut self, ided: &IdedExpr, depth: usize) -> Result<Box<Node>, String> {
        Ok(Box::new(self.node(ided, depth)?))
    }

    fn nodes(&mut self, all: &[IdedExpr], depth: usize) -> Result<Vec<Node>, String> {
        all.iter().map(|one| self.node(one, depth)).collect()
    }

    fn name(&self, name: &str) -> Result<Node, String> {
        if let Some(place) = self.names.get(name).and_then(|places| places.last()) {
            return Ok(Node::Variable(*place));
        }
        match name {
            "device" => Ok(Node::Device),
            _ => match TYPES.iter().find(|known| **known == name) {
                Some(known) => Ok(Node::Literal(Value::Type(known))),
                None => Err(undeclared(name)),
            },
        }
    }

    fn select(
        &mut self,
        of: &IdedExpr,
        field: &str,
        test: bool,
        optional: bool,
        depth: usize,
    ) -> Result<Node, String> {
        let of = self.boxed(of, depth)?;
        if matches!(*of, Node::Device) && !DEVICE_FIELDS.contains(&field) {
            return Err(format!("compilation failed: undefined field '{field}'"));
        }
        Ok(Node::Select { of, field: field.to_owned(), test, optional })
    }

    fn enter(&mut self, name: &str) -> usize {
        let place = self.alive;
        self.names.entry(name.to_owned()).or_default().push(place);
        self.alive += 1;
        self.most = self.most.max(self.alive);
        place
    }

    fn leave(&mut self, name: &str) {
        if let Some(places) = self.names.get_mut(name) {
            places.pop();
        }
        self.alive -= 1;
    }

    fn comprehension(&mut self, made: &ComprehensionExpr, depth: usize) -> Result<Node, String> {
        let over = self.node(&made.iter_range, depth)?;
        let start = self.node(&made.accu_init, depth)?;
        let second = made.iter_var2.as_deref();
        let first = self.enter(&made.iter_var);
        // The name of the second is in no text where there is none.
        self.enter(second.unwrap_or("@none"));
        self.enter(&made.accu_var);
        let goes_on = self.node(&made.loop_cond, depth);
        let step = self.node(&made.loop_step, depth);
        let result = self.node(&made.result, depth);
        self.leave(&made.accu_var);
        self.leave(second.unwrap_or("@none"));
        self.leave(&made.iter_var);
        let pairs = second.is_some();
        let (goes_on, step, result) = (goes_on?, step?, result?);
        let comprehension = Comprehension { over, start, goes_on, step, result, pairs, first };
        Ok(Node::Comprehension(Box::new(comprehension)))
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Result<Node, String> {
        if let (Some(target), "bind", [name, bound, body]) =
            (&call.target, call.func_name.as_str(), call.args.as_slice())
            && let (Expr::Ident(owner), Expr::Ident(name)) = (&target.expr, &name.expr)
            && owner == "cel"
        {
            let bound = self.boxed(bound, depth)?;
            self.enter(name);
            let body = self.boxed(body, depth);
            self.leave(name);
            return Ok(Node::Bind(bound, body?));
        }
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [one, other]) => {
                return Ok(Node::And(self.boxed(one, depth)?, self.boxed(other, depth)?));
            }
            (operators::LOGICAL_OR, [one, other]) => {
                return Ok(Node::Or(self.boxed(one, depth)?, self.boxed(other, depth)?));
            }
            (operators::CONDITIONAL, [condition, one, other]) => {
                return Ok(Node::Conditional(
                    self.boxed(condition, depth)?,
                    self.boxed(one, depth)?,
                    self.boxed(other, depth)?,
                ));
            }
            (operators::NOT_STRICTLY_FALSE, [one]) => {
                return Ok(Node::NotStrictlyFalse(self.boxed(one, depth)?));
            }
            (operators::INDEX | operators::OPT_INDEX, [of, key]) => {
                return Ok(Node::Index {
                    of: self.boxed(of, depth)?,
                    key: self.boxed(key, depth)?,
                    optional: call.func_name == operators::OPT_INDEX,
                });
            }
            (operators::OPT_SELECT, [of, field]) => {
                let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                    return Err(unsupported("a field that is no name"));
                };
                return self.select(of, field.inner(), false, true, depth);
            }
            _ => (),
        }
        let mut arguments = Vec::with_capacity(call.args.len() + 1);
        let name = match &call.target {
            None => call.func_name.clone(),
            Some(target) => match &target.expr {
                Expr::Ident(owner) if OWNERS.contains(&owner.as_str()) => {
                    format!("{owner}.{}", call.func_name)
                }
                _ => {
                    arguments.push(self.node(target, depth)?);
                    call.func_name.clone()
                }
            },
        };
        let method = !arguments.is_empty();
        arguments.extend(self.nodes(&call.args, depth)?);
        let function = Function::find(&name, method, arguments.len()).ok_or_else(|| undeclared(&name))?;
        match function {
            Function::Search(how) => self.search(how, arguments),
            _ => Ok(Node::Call(function, arguments)),
        }
    }

    fn search(&mut self, how: Search, mut arguments: Vec<Node>) -> Result<Node, String> {
        let Some(Node::Literal(Value::Text(pattern))) = arguments.get(1) else {
            return Ok(Node::Call(Function::Search(how), arguments));
        };
        let pattern = Pattern::new(pattern.as_str(), MOST_PATTERN_BYTES - self.pattern_bytes);
        let pattern = pattern.map_err(|error| format!("compilation failed: {error}"))?;
        self.pattern_bytes = (self.pattern_bytes + pattern.size).min(MOST_PATTERN_BYTES);
        let most = if arguments.len() > 2 { arguments.pop().map(Box::new) } else { None };
        Ok(Node::Search { how, pattern, text: Box::new(arguments.swap_remove(0)), most })
    }
}

fn value(literal: &LiteralValue) -> Result<Value<'static>, String> {
    Ok(match literal {
        LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
        LiteralValue::Int(value) => Value::Int(*value.inner()),
        LiteralValue::UInt(value) => Value::Uint(*value.inner()),
        LiteralValue::Double(value) => Value::Double(*value.inner()),
        LiteralValue::String(value) => Value::owned(value.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::Bytes(_) => return Err(unsupported("a literal of bytes")),
    })
}

fn undeclared(name: &str) -> String {
    format!("compilation failed: undeclared reference to '{name}' (in container '')")
}

fn unsupported(what: &str) -> String {
    format!("compilation failed: {what} is not supported")
}
