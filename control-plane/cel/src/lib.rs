//! Selectors of devices: expressions in CEL that say of a device whether it will do (KEP-4381).
//!
//! The crate `cel` parses; what it makes of an expression is checked and turned into a tree of our own ([`compile`]), because
//! evaluation has to be bounded ([`evaluate`]): anybody who may create a claim may send an expression, and the scheduler has
//! better things to do than to finish it. Each step costs a unit, texts and lists cost by their length, and who
//! has none left is told so. Programs are kept for as many expressions as a cluster has classes and workloads; more
//! are compiled again.

#![forbid(unsafe_code)]

mod compile;
mod evaluate;
mod functions;
#[cfg(test)]
mod tests;
mod value;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use k8s_openapi::api::resource::v1::Device;

pub use evaluate::Failure;

/// Upstream's limit, in bytes.
const LONGEST: usize = 10 * 1024;
/// Upstream's limit for one device, in units of about one step (`CELSelectorExpressionMaxCost`).
const MOST_COST: u64 = 1_000_000;
/// Programs that are kept.
const MOST_PROGRAMS: usize = 4096;

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    /// No other program ever has it.
    pub id: u64,
    root: compile::Node,
    /// Variables that are alive at the same time, at most.
    variables: usize,
}

/// Compiled expressions, and those that cannot be.
#[derive(Debug, Default)]
pub struct Programs(HashMap<String, Result<Arc<Program>, Arc<str>>>);

impl Programs {
    /// The error is upstream's text of what is wrong with the expression.
    pub fn get(&mut self, expression: &str) -> Result<Arc<Program>, Arc<str>> {
        if let Some(known) = self.0.get(expression) {
            return known.clone();
        }
        if self.0.len() >= MOST_PROGRAMS {
            self.0.clear();
        }
        let program = Program::new(expression).map(Arc::new).map_err(Arc::from);
        // A text that is too long is not worth its place.
        if expression.len() <= LONGEST {
            self.0.insert(expression.to_owned(), program.clone());
        }
        program
    }
}

impl Program {
    fn new(expression: &str) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        if expression.len() > LONGEST {
            return Err(format!("must be no longer than {LONGEST} bytes"));
        }
        let (root, variables) = compile::compile(expression)?;
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), root, variables })
    }

    /// Whether the device of the driver will do. `budget` is what may be spent, and is reduced by what was.
    pub fn matches(&self, driver: &str, device: &Device, budget: &mut u64) -> Result<bool, Failure> {
        let mut left = MOST_COST.min(*budget);
        let before = left;
        let outcome = evaluate::evaluate(&self.root, self.variables, driver, device, &mut left);
        *budget -= before - left;
        match outcome {
            // All that was left in common is gone: it is not this expression's fault alone.
            Err(Failure::Cost) if *budget == 0 => Err(Failure::Budget),
            other => other,
        }
    }
}
