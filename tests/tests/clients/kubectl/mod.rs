//! kubectl's verbs, and what it prints.

mod apply;
mod certificates;
mod changes;
mod create;
mod delete;
mod errors;
mod read;
mod rollout;
mod server;
