//! The conformance texts of Kubernetes v1.36 that an API server and light controllers can satisfy, as tests.
//!
//! Each test is named after its text's sentence and has the text's name as its documentation; what it does is ours.
//! All work against one server, which `cargo xtask test e2e` starts once (`HAWSER_TEST_SERVER` names its kubeconfig;
//! without, the tests of a process start one). So each keeps to a namespace of its own ([`support::Bed`]), and gives
//! what belongs to no namespace a unique name and label. Texts named "API operations" go through [`operations`].
//!
//! To add a module: `mod area;` below, a [`coverage::texts!`] table in it that names each text and its test, and
//! `area::TEXTS` in [`coverage::COVERED`]. What is not covered stands in [`excluded`], with its reason: containers
//! (no node joins the server), custom resources and calls of webhooks, evaluation of admission policies, aggregated
//! API servers. A test of this binary holds both lists against upstream's.

mod coverage;
mod excluded;
mod operations;
mod support;

mod admission_registration;
mod custom_resource_definitions;
mod discovery;
mod events;
mod field_validation;
mod flow_control;
mod garbage_collector;
mod identity;
mod kubectl;
mod lists;
mod namespaces;
mod resource_quota;
mod service_accounts;
mod watchers;
