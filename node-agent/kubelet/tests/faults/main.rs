//! Faults of all that a node leans on, and what the kubelet makes of them.
//!
//! `storms`: containerd that is slow, answers errors, loses answers, breaks connections, dies and comes back, by seeded
//! plans. `kills`: the agent killed at every step of a pod's start and stop. `bad_neighbours`: pods that do harm, a full
//! disk, a registry that hangs. `away`: the API gone, clocks that jump, many pods at once, on a runtime in memory.

#[path = "../common/mod.rs"]
mod common;

mod away;
mod bad_neighbours;
mod kills;
mod proxy;
mod storms;
