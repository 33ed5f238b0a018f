//! The kubelet: makes the pods that the API binds to this node run, and says how they are.

#![forbid(unsafe_code)]

pub mod pod;
pub mod quantity;
