//! Leases.

use hawser_api::FieldError;

use super::{AGE, Hooks, NAME, PLAIN, apps::age, text, value::Fields};

pub(crate) static LEASE: Hooks = Hooks {
    validate_create: |lease| {
        let mut errors = Vec::new();
        if let Some(seconds) = lease.int("spec.leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        if let Some(count) = lease.int("spec.leaseTransitions").filter(|count| *count < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid("spec.leaseTransitions", count, detail));
        }
        let (preferred, strategy) = (lease.text("spec.preferredHolder"), lease.text("spec.strategy"));
        if !preferred.is_empty() && strategy.is_empty() {
            let detail = "may only be specified if `strategy` is defined";
            errors.push(FieldError::forbidden("spec.preferredHolder", detail));
        }
        errors
    },
    columns: &[NAME, text("Holder"), AGE],
    cells: |lease, now| {
        vec![lease.at("metadata.name").clone(), lease.text("spec.holderIdentity").into(), age(lease, now)]
    },
    create_on_update: true,
    ..PLAIN
};
