//! CronJobs.

use hawser_api::{
    FieldError,
    cron::{Schedule, zone},
};
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::{age, not_negative},
    batch::validate_job,
    column, human, job_policies,
    pod::{container_cells, default_template, or_none},
    selector, text,
    value::{Fields, Path},
    wide,
};

const SPEC: Path<'static> = Path::Root("spec");
const USE_TIME_ZONE: &str = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
/// The longest part of a time zone's name.
const LONGEST_PART: usize = 14;

pub(crate) static CRON_JOB: Hooks = Hooks {
    default: |cron| {
        let spec = cron.ensure("spec");
        spec.set_default("concurrencyPolicy", "Allow");
        spec.set_default("suspend", false);
        spec.set_default("successfulJobsHistoryLimit", 3);
        spec.set_default("failedJobsHistoryLimit", 1);
        job_policies::default(spec.ensure("jobTemplate.spec"));
        default_template(spec.ensure("jobTemplate.spec.template"));
    },
    validate_create: |cron| {
        let mut errors = Vec::new();
        let spec = cron.at("spec");
        schedule(&mut errors, spec.text("schedule"));
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
        job_template(&mut errors, spec);
        errors
    },
    validate_new: |cron| {
        let (mut errors, spec) = (Vec::new(), cron.at("spec"));
        if spec.text("schedule").contains("TZ") {
            errors.push(FieldError::invalid(SPEC.field("schedule"), spec.text("schedule"), USE_TIME_ZONE));
        }
        time_zone(&mut errors, spec.at("timeZone"));
        // Room for the time that a job's name ends with.
        if cron.text("metadata.name").len() > 52 {
            let detail = "must be no more than 52 characters";
            errors.push(FieldError::invalid("metadata.name", cron.text("metadata.name"), detail));
        }
        errors
    },
    validate_update: |new, old| {
        let (mut errors, spec) = (Vec::new(), new.at("spec"));
        let text = spec.text("schedule");
        // One that named a zone before this was refused may keep it.
        let wrong = match old.text("spec.schedule").contains("TZ") {
            true if spec.has("timeZone") => {
                Some("cannot use both timeZone field and TZ or CRON_TZ in schedule")
            }
            true => None,
            false => Some(USE_TIME_ZONE),
        };
        if let Some(wrong) = wrong.filter(|_| text.contains("TZ")) {
            errors.push(FieldError::invalid(SPEC.field("schedule"), text, wrong));
        }
        if spec.at("timeZone") != old.at("spec.timeZone") {
            time_zone(&mut errors, spec.at("timeZone"));
        }
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

fn schedule(errors: &mut Vec<FieldError>, text: &str) {
    let path = SPEC.field("schedule");
    if text.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if let Err(why) = Schedule::parse(text, TimeZone::UTC) {
        errors.push(FieldError::invalid(path, text, why));
    }
}

/// The rules of IANA's names, and that the machine's database has the zone, where the machine has one.
fn time_zone(errors: &mut Vec<FieldError>, name: &Value) {
    let Some(name) = name.as_str() else { return };
    let mut wrong = |detail: String| errors.push(FieldError::invalid(SPEC.field("timeZone"), name, detail));
    if name.is_empty() {
        return wrong("timeZone must be nil or non-empty string".to_owned());
    }
    let is_fine = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
        let is_path = part == "." || part == ".." || part.starts_with('-');
        !is_path && !part.is_empty() && part.len() <= LONGEST_PART && part.bytes().all(allowed)
    };
    if !name.split('/').all(is_fine) {
        return wrong(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        return wrong(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned(),
        );
    }
    if let Err(why) = zone::find(Some(name))
        && zone::is_known()
    {
        wrong(why);
    }
}

/// A Job's rules, and that its selector is left to the API.
fn job_template(errors: &mut Vec<FieldError>, spec: &Value) {
    let (path, job) = (SPEC.field("jobTemplate.spec"), spec.at("jobTemplate.spec"));
    validate_job(errors, &path, job);
    if job.has("selector") {
        let detail = "`selector` will be auto-generated";
        errors.push(FieldError::invalid(path.field("selector"), job.at("selector").clone(), detail));
    }
    if job.flag("manualSelector") {
        errors.push(FieldError::not_supported(path.field("manualSelector"), true, &["nil", "false"]));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::{
        tests::{created, kind, with},
        validate_create, validate_update,
    };

    use super::*;

    fn cron_job() -> Value {
        let object = json!({
            "kind": "CronJob", "apiVersion": "batch/v1", "metadata": { "name": "tidy", "namespace": "a" },
            "spec": { "schedule": "*/5 * * * *", "jobTemplate": { "spec": { "template": { "spec": {
                "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }],
            } } } } },
        });
        created("batch/cronjobs", object)
    }

    fn texts(errors: Vec<FieldError>) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn check(changes: &[(&str, Value)], expected: &[&str]) {
        let object =
            changes.iter().fold(cron_job(), |object, (path, value)| with(object, path, value.clone()));
        assert_eq!(texts(validate_create(kind("batch/cronjobs"), &object)), expected, "{changes:?}");
    }

    #[test]
    fn schedules_and_time_zones_are_checked_in_upstreams_words() {
        let schedule = |text: &str| ("/spec/schedule", json!(text));
        let zone = |name: &str| ("/spec/timeZone", json!(name));
        check(&[], &[]);
        check(&[schedule("@every 90s"), zone("Etc/UTC")], &[]);
        check(&[schedule("")], &["spec.schedule: Required value"]);
        check(
            &[schedule("61 * * * *")],
            &["spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61"],
        );
        check(
            &[schedule("error")],
            &["spec.schedule: Invalid value: \"error\": expected exactly 5 fields, found 1: [error]"],
        );
        check(
            &[schedule("CRON_TZ=UTC * * * * *")],
            &[&format!("spec.schedule: Invalid value: \"CRON_TZ=UTC * * * * *\": {USE_TIME_ZONE}")],
        );
        check(&[zone("")], &["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"]);
        check(
            &[zone("Local")],
            &[
                "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in \
                 https://www.iana.org/time-zones",
            ],
        );
        for name in [" Europe/Rome", "../etc", "-a", "a//b", "Europe/averyverylongname"] {
            let error = format!("spec.timeZone: Invalid value: {name:?}: unknown time zone {name}");
            check(&[zone(name)], &[&error]);
        }
        if zone::is_known() {
            let error = "spec.timeZone: Invalid value: \"Europe/Pariss\": unknown time zone Europe/Pariss";
            check(&[zone("Europe/Pariss")], &[error]);
        }
        check(
            &[("/spec/jobTemplate/spec/manualSelector", json!(true))],
            &[
                "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
            ],
        );
    }

    #[test]
    fn what_named_a_zone_in_its_schedule_may_go_on() {
        let named = with(cron_job(), "/spec/schedule", json!("TZ=UTC 0 * * * *"));
        let update = |new: &Value, old: &Value| texts(validate_update(kind("batch/cronjobs"), new, old));
        assert_eq!(update(&named, &named), [""; 0]);
        assert_eq!(
            update(&with(named.clone(), "/spec/timeZone", json!("UTC")), &named),
            [
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule"
            ],
        );
        assert_eq!(
            update(&named, &cron_job()),
            [format!("spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": {USE_TIME_ZONE}")],
        );
    }
}
