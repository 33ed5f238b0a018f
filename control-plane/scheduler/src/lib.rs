//! The scheduler: gives every waiting pod the best node that can run it.
//!
//! A pure core decides, and a thin shell acts ([`run`]): it follows the cluster, writes bindings in batches, deletes the
//! victims of preemption, and tells users why a pod waits. In the core, [`scheduler`] holds the [`snapshot`] of the
//! cluster, the [`queue`] and who is promised what; [`placement`] asks [`filters`] and [`scores`] of single nodes (answers are
//! kept, [`evaluation`]) and what a pod's [`terms`], [`volumes`] and [`devices`] mean on them ([`outlook`], from the counters of
//! [`topology`]). Plugins carry upstream's names, meaning, order, messages and default weights.
//!
//! Knows [`hawser_api`], and how selectors of devices are read ([`hawser_cel`]). A pod that is bound or assumed takes its room
//! once, whatever is written, lost or repeated meanwhile: no node is promised beyond what it has.

#![forbid(unsafe_code)]

mod affinity;
mod alone;
mod budgets;
mod config;
mod configuration;
mod devices;
mod evaluation;
mod events;
mod evict;
mod explain;
mod explanation;
mod extender;
mod features;
mod filters;
mod group;
mod hints;
mod images;
mod intern;
mod metrics;
#[cfg(test)]
mod model;
mod nomination;
mod notice;
mod outlook;
mod placement;
mod pod;
mod pod_affinity;
mod preemption;
mod profile;
mod provision;
mod queue;
mod random;
mod ranking;
mod refusal;
mod report;
mod reserve;
mod resources;
mod run;
mod scheduler;
mod scores;
mod snapshot;
mod spread;
mod terms;
#[cfg(test)]
mod testing;
mod timings;
mod topology;
mod victims;
mod volumes;
mod workloads;

pub use alone::{Core, Decisions};
pub use config::Config;
pub use configuration::{Extenders, Profiles};
pub use explain::explain;
pub use explanation::{Explanation, NodeVerdict, Score, Verdict};
pub use metrics::Metrics;
pub use run::run;
