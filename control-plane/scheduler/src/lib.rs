//! The scheduler: gives every waiting pod the best node that can run it.
//!
//! A pure core decides ([`scheduler`], with the [`snapshot`] of columns, [`filters`], [`scores`], [`evaluation`] and the
//! [`queue`]), and a thin shell acts ([`run`]): it follows nodes and pods, writes bindings in batches, and tells
//! users why a pod waits. Plugins carry upstream's names, meaning, order, messages and default weights.
//!
//! Not here yet: inter-pod affinity, a pod's own topology spread constraints, volumes, preemption, image locality. A
//! pod that asks for one of the first two is placed without, and an event tells so.
//!
//! Knows [`hawser_api`] only. A pod that is bound or assumed takes its room once, whatever is written, lost or
//! repeated meanwhile: no node is promised beyond what it has.

#![forbid(unsafe_code)]

mod affinity;
mod config;
mod evaluation;
mod events;
mod filters;
mod pod;
mod queue;
mod report;
mod resources;
mod run;
mod scheduler;
mod scores;
mod snapshot;
#[cfg(test)]
mod testing;

pub use config::Config;
pub use run::run;
