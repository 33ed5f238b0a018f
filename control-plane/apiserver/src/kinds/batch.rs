//! Jobs.

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::{age, count},
    human, job_policies,
    pod::{container_cells, default_template, keep_node_affinity, or_none, validate_template},
    selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");

pub(crate) static JOB: Hooks = Hooks {
    default: |job| default_job(job.ensure("spec")),
    prepare_create: own_pods,
    validate_create: |job| {
        let mut errors = Vec::new();
        validate_job(&mut errors, &SPEC, job.at("spec"));
        job_policies::hostname(&mut errors, job);
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        for field in [
            "completions",
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ] {
            let changed = new.at("spec").at(field) != old.at("spec").at(field);
            let elastic = field == "completions" && new.text("spec.completionMode") == "Indexed";
            if changed && elastic {
                job_policies::resized(&mut errors, new.at("spec"));
            } else if changed {
                let value = new.at("spec").at(field).clone();
                errors.push(FieldError::invalid(SPEC.field(field), value, "field is immutable"));
            }
        }
        update_template(&mut errors, new, old);
        errors
    },
    columns: &[
        NAME,
        text("Status"),
        text("Completions"),
        text("Duration"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: job_cells,
    selectable: &[("status.successful", |job| count(job, "status.succeeded").to_string())],
    ..PLAIN
};

fn default_job(spec: &mut Value) {
    if !spec.has("completions") && !spec.has("parallelism") {
        spec.set("completions", 1);
    }
    spec.set_default("parallelism", 1);
    spec.set_default("backoffLimit", if spec.has("backoffLimitPerIndex") { i32::MAX } else { 6 });
    spec.set_default("completionMode", "NonIndexed");
    spec.set_default("suspend", false);
    if !spec.has("podReplacementPolicy") {
        let policy = if spec.has("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        spec.set("podReplacementPolicy", policy);
    }
    job_policies::default(spec);
    default_template(spec.ensure("template"));
}

/// A job finds its pods by its own uid, unless told otherwise. Uid and name are known here.
fn own_pods(job: &mut Value) {
    if job.flag("spec.manualSelector") {
        return;
    }
    let (uid, name) = (job.text("metadata.uid").to_owned(), job.text("metadata.name").to_owned());
    let spec = job.ensure("spec");
    let labels = spec.ensure("template.metadata.labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.set_default(key, value.clone());
    }
    if !spec.has("selector") {
        spec.set("selector", json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } }));
    }
}

/// The template stands. Of a job at rest it may change where pods may run, and what they take (KEP-2926, KEP-5440).
fn update_template(errors: &mut Vec<FieldError>, new: &Value, old: &Value) {
    let before = old.at("spec.template");
    let mut allowed = new.at("spec.template").clone();
    if is_at_rest(old) {
        for field in ["annotations", "labels"] {
            allowed.ensure("metadata").copy_field(field, before.at("metadata"));
        }
        let (spec, before) = (allowed.ensure("spec"), before.at("spec"));
        for field in ["nodeSelector", "schedulingGates", "tolerations"] {
            spec.copy_field(field, before);
        }
        keep_node_affinity(spec, before);
        for list in ["containers", "initContainers"] {
            for (container, known) in spec.list_mut(list).iter_mut().zip(before.list(list)) {
                container.copy_field("resources", known);
            }
        }
    }
    if &allowed != before {
        let template = new.at("spec.template").clone();
        errors.push(FieldError::invalid(SPEC.field("template"), template, "field is immutable"));
    }
}

/// Suspended, without a pod, and either never started or said to be suspended by its controller.
fn is_at_rest(job: &Value) -> bool {
    job.flag("spec.suspend")
        && count(job, "status.active") == 0
        && (!job.has("status.startTime") || has_condition(job, "Suspended"))
}

fn has_condition(job: &Value, kind: &str) -> bool {
    let mut conditions = job.list("status.conditions").iter();
    conditions.any(|condition| condition.text("type") == kind && condition.text("status") == "True")
}

pub(super) fn validate_job(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let template = path.field("template");
    validate_template(errors, &template, spec.at("template"));
    let policy = spec.text("template.spec.restartPolicy");
    if policy == "Always" {
        errors.push(FieldError::required(
            template.field("spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    } else if spec.has("podFailurePolicy") && policy != "Never" {
        let detail = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(FieldError::invalid(template.field("spec.restartPolicy"), policy, detail));
    }
    job_policies::validate(errors, path, spec);
}

fn job_cells(job: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = container_cells(job.at("spec.template.spec"));
    let has = |kind: &str| has_condition(job, kind);
    let status = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if job.has("metadata.deletionTimestamp") => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let succeeded = count(job, "status.succeeded");
    let completions = match (job.int("spec.completions"), count(job, "spec.parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let start = job.at("status.startTime");
    let end = job.text("status.completionTime").parse::<Timestamp>().unwrap_or(now);
    let duration = if start.is_null() { String::new() } else { human::age(start, end) };
    vec![
        job.at("metadata.name").clone(),
        status.into(),
        completions.into(),
        duration.into(),
        age(job, now),
        names.into(),
        images.into(),
        or_none(selector::to_text(job.at("spec.selector"))).into(),
    ]
}

#[cfg(test)]
mod tests;
