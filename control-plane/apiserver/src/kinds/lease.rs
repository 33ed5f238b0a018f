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
        if lease.has("spec.holderIdentity") && lease.text("spec.holderIdentity").is_empty() {
            errors.push(FieldError::invalid("spec.holderIdentity", "", "must not be empty"));
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
