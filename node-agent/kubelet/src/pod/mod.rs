//! A pod's life as pure logic: what is known in, actions and status out.
//!
//! [`DesiredPod`] is what the API asks for, [`PodState`] what this node knows, [`decide`] the step between
//! them and [`status`] what is reported. Nothing here does I/O or reads a clock, so histories can be generated
//! and checked. The worker around it ([`crate::worker`]) carries the actions out.

mod adopt;
pub mod back_off;
pub(crate) mod conditions;
pub mod decide;
pub mod desired;
#[cfg(test)]
mod histories;
pub mod qos;
pub mod resize;
pub mod restart;
#[cfg(test)]
mod scenarios;
pub mod state;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;

pub use decide::{Action, Decision, decide};
pub use desired::{ContainerKind, DesiredContainer, DesiredPod};
pub use state::{Clock, ContainerTrack, Instance, Outcome, PodState};
