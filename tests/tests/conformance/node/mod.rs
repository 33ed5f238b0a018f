//! Pods and what they are made from, nodes, leases, runtime classes and devices, as far as no container has to run.

pub(crate) mod configuration;
pub(crate) mod devices;
pub(crate) mod generation;
pub(crate) mod leases;
pub(crate) mod pod_templates;
pub(crate) mod pods;
pub(crate) mod runtime_classes;
pub(crate) mod taints;
