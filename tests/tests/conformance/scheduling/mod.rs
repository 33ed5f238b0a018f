//! Where pods are put, with nodes that tests add; priorities and limits.

pub(crate) mod limit_ranges;
pub(crate) mod predicates;
pub(crate) mod priority_classes;
