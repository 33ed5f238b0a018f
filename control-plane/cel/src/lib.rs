//! Selectors of devices: expressions in CEL that say of a device whether it will do (KEP-4381).
//!
//! The crate `cel` parses; what it makes of an expression is checked and turned into a tree of our own ([`compile`]), because
//! evaluation has to be bounded ([`evaluate`]): anybody who may create a claim may send an expression, and the scheduler has
//! better things to do than to finish it. Each step costs a unit, texts and lists cost by their length, and who
//! has none left is told so. What an expression takes is bounded too, patterns above all. Programs are kept for as many
//! expressions as a cluster has classes and workloads; more are compiled again.

#![forbid(unsafe_code)]

mod compile;
mod evaluate;
mod functions;
mod lists;
mod pattern;
#[cfg(test)]
mod tests;
mod texts;
mod value;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use k8s_openapi::api::resource::v1::Device;
use parking_lot::Mutex;

use compile::Compiled;

pub use evaluate::Failure;

/// Upstream's limit, in bytes.
const LONGEST: usize = 10 * 1024;
/// Upstream's limit for one device, in units of about one step (`CELSelectorExpressionMaxCost`).
const MOST_COST: u64 = 1_000_000;
/// What the patterns of one expression may take, compiled, in bytes. Those of `device.driver.matches('^gpu[.]')` take about 1,000.
const MOST_PATTERN_BYTES: usize = 128 << 10;
/// The same of all expressions of a claim, or of a class.
const MOST_PATTERN_BYTES_IN_ALL: usize = 512 << 10;
/// What programs that are kept take, about, in bytes; more make it start anew.
const MOST_KEPT_BYTES: usize = 16 << 20;
/// What it takes to keep the least program, or a message.
const LEAST_KEPT_BYTES: usize = 512;

/// Messages quote what others wrote, and are kept for each node: this is their longest, in bytes.
const LONGEST_MESSAGE: usize = 256;

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    /// No other program ever has it.
    pub id: u64,
    compiled: Compiled,
}

/// What is left of what the patterns of a claim, or of a class, may take.
#[derive(Debug)]
pub struct PatternRoom(usize);

impl Default for PatternRoom {
    fn default() -> Self {
        Self(MOST_PATTERN_BYTES_IN_ALL)
    }
}

impl PatternRoom {
    /// Counts another expression's patterns.
    pub fn take(&mut self, program: &Program) -> Result<(), Arc<str>> {
        let left = self.0.checked_sub(program.compiled.pattern_bytes);
        self.0 = left.ok_or_else(|| {
            Arc::<str>::from(format!(
                "compilation failed: the patterns of all selectors take more than {MOST_PATTERN_BYTES_IN_ALL} bytes"
            ))
        })?;
        Ok(())
    }
}

/// Compiled expressions, and those that cannot be, for whoever needs them.
#[derive(Debug, Default)]
pub struct Programs(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    by_text: HashMap<String, Result<Arc<Program>, Arc<str>>>,
    bytes: usize,
}

impl Programs {
    /// The error is upstream's text of what is wrong with the expression. While one is compiled, others are found.
    pub fn get(&self, expression: &str) -> Result<Arc<Program>, Arc<str>> {
        if let Some(known) = self.0.lock().by_text.get(expression) {
            return known.clone();
        }
        let program = Program::new(expression).map(Arc::new);
        // A text that is too long is not worth its place.
        if expression.len() > LONGEST {
            return program;
        }
        let mut kept = self.0.lock();
        let bytes =
            LEAST_KEPT_BYTES + expression.len() + program.as_ref().map_or(0, |program| program.bytes());
        if kept.bytes + bytes > MOST_KEPT_BYTES {
            *kept = Kept::default();
        }
        // Where another was faster, its program stands.
        if let Some(known) = kept.by_text.get(expression) {
            return known.clone();
        }
        kept.by_text.insert(expression.to_owned(), program.clone());
        kept.bytes += bytes;
        program
    }
}

impl Program {
    /// The error is upstream's text of what is wrong with the expression.
    pub fn new(expression: &str) -> Result<Self, Arc<str>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if expression.len() > LONGEST {
            return Err(format!("must be no longer than {LONGEST} bytes").into());
        }
        let compiled = compile::compile(expression).map_err(|error| Arc::<str>::from(excerpt(&error)))?;
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), compiled })
    }

    fn bytes(&self) -> usize {
        self.compiled.tree_bytes + self.compiled.pattern_bytes
    }

    /// Whether the device of the driver will do. `budget` is what may be spent, and is reduced by what was.
    pub fn matches(&self, driver: &str, device: &Device, budget: &mut u64) -> Result<bool, Failure> {
        let mut left = MOST_COST.min(*budget);
        let before = left;
        let outcome =
            evaluate::evaluate(&self.compiled.root, self.compiled.variables, driver, device, &mut left);
        *budget -= before - left;
        match outcome {
            // All that was left in common is gone: it is not this expression's fault alone.
            Err(Failure::Cost) if *budget == 0 => Err(Failure::Budget),
            other => other,
        }
    }
}

fn excerpt(message: &str) -> &str {
    &message[..message.floor_char_boundary(LONGEST_MESSAGE)]
}
