//! Tests of a running cluster with three nodes, each in a namespace of its own.

mod network;
mod pods;
mod services;
mod streams;
mod walk;
mod workloads;
