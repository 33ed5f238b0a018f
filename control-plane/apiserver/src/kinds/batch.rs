//! Jobs and CronJobs.

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::{age, count, not_negative},
    column, human,
    pod::{container_cells, default_template, or_none, validate_template},
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
        not_negative(
            &mut errors,
            job.at("spec"),
            &[
                "parallelism",
                "completions",
                "backoffLimit",
                "activeDeadlineSeconds",
                "ttlSecondsAfterFinished",
            ],
        );
        errors
    },
    validate_update: |new, old| {
        let mut errors = Vec::new();
        let suspended = old.flag("spec.suspend");
        for field in [
            "completions",
            "selector",
            "template",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
        ] {
            let changed = new.at("spec").at(field) != old.at("spec").at(field);
            let elastic =
                field == "completions" && new.int("spec.completions") == new.int("spec.parallelism");
            if changed && !(suspended && field == "template") && !elastic {
                let value = new.at("spec").at(field).clone();
                errors.push(FieldError::invalid(SPEC.field(field), value, "field is immutable"));
            }
        }
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

pub(crate) static CRON_JOB: Hooks = Hooks {
    default: |cron| {
        let spec = cron.ensure("spec");
        spec.set_default("concurrencyPolicy", "Allow");
        spec.set_default("suspend", false);
        spec.set_default("successfulJobsHistoryLimit", 3);
        spec.set_default("failedJobsHistoryLimit", 1);
        default_template(spec.ensure("jobTemplate.spec.template"));
    },
    validate_create: |cron| {
        let mut errors = Vec::new();
        let spec = cron.at("spec");
        if spec.text("schedule").is_empty() {
            errors.push(FieldError::required(SPEC.field("schedule"), ""));
        }
        let policy = spec.text("concurrencyPolicy");
        if !matches!(policy, "Allow" | "Forbid" | "Replace") {
            let known = ["Allow", "Forbid", "Replace"];
            errors.push(FieldError::not_supported(SPEC.field("concurrencyPolicy"), policy, &known));
        }
        not_negative(
            &mut errors,
            spec,
            &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
        );
        // Room for the time that a job's name ends with.
        if cron.text("metadata.name").len() > 52 {
            let detail = "must be no more than 52 characters";
            errors.push(FieldError::invalid("metadata.name", cron.text("metadata.name"), detail));
        }
        validate_job(&mut errors, &SPEC.field("jobTemplate.spec"), spec.at("jobTemplate.spec"));
        errors
    },
    columns: &[
        NAME,
        text("Schedule"),
        text("Timezone"),
        column("Suspend", "boolean"),
        column("Active", "integer"),
        text("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |cron, now| {
        let spec = cron.at("spec");
        let (names, images) = container_cells(spec.at("jobTemplate.spec.template.spec"));
        let last = match cron.at("status.lastScheduleTime") {
            Value::Null => "<none>".to_owned(),
            time => human::age(time, now),
        };
        vec![
            cron.at("metadata.name").clone(),
            spec.text("schedule").into(),
            or_none(spec.text("timeZone").to_owned()).into(),
            if spec.flag("suspend") { "True" } else { "False" }.into(),
            cron.list("status.active").len().into(),
            last.into(),
            age(cron, now),
            names.into(),
            images.into(),
            or_none(selector::to_text(spec.at("jobTemplate.spec.selector"))).into(),
        ]
    },
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

fn validate_job(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let template = path.field("template");
    validate_template(errors, &template, spec.at("template"));
    let policy = spec.text("template.spec.restartPolicy");
    if policy == "Always" {
        let known = ["OnFailure", "Never"];
        let path = template.field("spec.restartPolicy");
        errors.push(FieldError::new(
            hawser_api::error::FieldErrorKind::Required,
            path,
            None,
            format!("valid values: {:?}, {:?}", known[0], known[1]),
        ));
    }
    if spec.text("completionMode") == "Indexed" && !spec.has("completions") {
        let detail = "when completion mode is Indexed";
        errors.push(FieldError::required(path.field("completions"), detail));
    }
}

fn job_cells(job: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = container_cells(job.at("spec.template.spec"));
    let has = |kind: &str| {
        job.list("status.conditions")
            .iter()
            .any(|condition| condition.text("type") == kind && condition.text("status") == "True")
    };
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
