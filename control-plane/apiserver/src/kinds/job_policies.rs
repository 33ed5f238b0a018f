//! Rules about what a Job does with pods that ended: limits, failure and success policies, indexes.
//!
//! Texts and limits are upstream's; the limits keep the indexes in a Job's status to a length that can be stored.

use std::collections::BTreeSet;

use hawser_api::{FieldError, error::FieldErrorKind};
use serde_json::Value;

use super::{
    names::{dns_label, qualified_name},
    rules::{no_longer, prefixed_path},
    value::{Fields, Path},
};

const MOST_PARALLEL_INDEXED: i64 = 100_000;
const MOST_FAILED_INDEXES: i64 = 100_000;
/// Beyond so many indexes, each with a limit of its own, fewer may run and fail at a time.
const MANY_COMPLETIONS: i64 = 100_000;
const MOST_OF_MANY: i64 = 10_000;
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PATTERNS: usize = 20;
const LONGEST_MANAGER: usize = 63;
const LONGEST_INDEXES: usize = 64 * 1024;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

/// A condition matches while it is true, unless the rule says otherwise.
pub(super) fn default(spec: &mut Value) {
    for rule in spec.list_mut("podFailurePolicy.rules") {
        for pattern in rule.list_mut("onPodConditions") {
            pattern.set_default("status", "True");
        }
    }
}

pub(super) fn validate(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        not_negative(errors, path, spec, field);
    }
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        let detail = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(path.field("backoffLimitPerIndex"), detail));
    }
    managed_by(errors, &path.field("managedBy"), spec.at("managedBy"));
    let is_indexed = match spec.text("completionMode") {
        "Indexed" => true,
        "NonIndexed" | "" => false,
        other => {
            let known = ["NonIndexed", "Indexed"];
            errors.push(FieldError::not_supported(path.field("completionMode"), other, &known));
            false
        }
    };
    if is_indexed {
        indexed(errors, path, spec);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"].into_iter().filter(|field| spec.has(field))
        {
            let detail = "requires indexed completion mode";
            errors.push(FieldError::invalid(path.field(field), spec.at(field).clone(), detail));
        }
    }
    failure_policy(errors, &path.field("podFailurePolicy"), spec);
    if spec.has("successPolicy") && !is_indexed {
        let policy = spec.at("successPolicy").clone();
        errors.push(FieldError::invalid(
            path.field("successPolicy"),
            policy,
            "requires indexed completion mode",
        ));
    } else if spec.has("successPolicy") {
        success_policy(errors, &path.field("successPolicy"), spec);
    }
    let (policy, path) = (spec.text("podReplacementPolicy"), path.field("podReplacementPolicy"));
    match policy {
        "" | "Failed" => {}
        other if spec.has("podFailurePolicy") => {
            errors.push(FieldError::not_supported(path, other, &["Failed"]));
        }
        "TerminatingOrFailed" => {}
        other => errors.push(FieldError::not_supported(path, other, &["Failed", "TerminatingOrFailed"])),
    }
}

/// Pods of an indexed Job are named by their index, the last one with the longest name.
pub(super) fn hostname(errors: &mut Vec<FieldError>, job: &Value) {
    let completions = job.int("spec.completions").unwrap_or_default();
    if job.text("spec.completionMode") != "Indexed" || completions < 1 {
        return;
    }
    let name = job.text("metadata.name");
    let last = format!("{name}-{}", completions - 1);
    if !dns_label(&last).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {last}");
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
}

/// An indexed Job gets other completions only together with as much parallelism.
pub(super) fn resized(errors: &mut Vec<FieldError>, spec: &Value) {
    let (completions, parallelism) = (spec.int("completions"), spec.int("parallelism"));
    if let Some(completions) = completions.filter(|_| completions != parallelism) {
        let detail = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid("spec.completions", completions, detail));
    }
}

fn not_negative(errors: &mut Vec<FieldError>, path: &Path<'_>, object: &Value, field: &str) {
    if let Some(number) = object.int(field).filter(|number| *number < 0) {
        errors.push(FieldError::invalid(path.field(field), number, "must be greater than or equal to 0"));
    }
}

fn managed_by(errors: &mut Vec<FieldError>, path: &Path<'_>, manager: &Value) {
    let Some(manager) = manager.as_str() else { return };
    prefixed_path(errors, path, manager);
    no_longer(errors, path, manager, LONGEST_MANAGER);
}

fn indexed(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let at_most = |errors: &mut Vec<FieldError>, field: &str, most: i64, detail: String| {
        if let Some(number) = spec.int(field).filter(|number| *number > most) {
            errors.push(FieldError::invalid(path.field(field), number, detail));
        }
    };
    let completions = spec.int("completions");
    if completions.is_none() {
        let detail = "when completion mode is Indexed";
        errors.push(FieldError::required(path.field("completions"), detail));
    }
    let most =
        format!("must be less than or equal to {MOST_PARALLEL_INDEXED} when completion mode is Indexed");
    at_most(errors, "parallelism", MOST_PARALLEL_INDEXED, most);
    if let Some(completions) = completions {
        let most = "must be less than or equal to completions".to_owned();
        at_most(errors, "maxFailedIndexes", completions, most);
    }
    let most = format!("must be less than or equal to {MOST_FAILED_INDEXES}");
    at_most(errors, "maxFailedIndexes", MOST_FAILED_INDEXES, most);
    if completions.is_none_or(|count| count <= MANY_COMPLETIONS) || !spec.has("backoffLimitPerIndex") {
        return;
    }
    if !spec.has("maxFailedIndexes") {
        let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.push(FieldError::required(path.field("maxFailedIndexes"), detail));
    }
    for field in ["parallelism", "maxFailedIndexes"] {
        let most = format!(
            "must be less than or equal to {MOST_OF_MANY} when completions are above {MANY_COMPLETIONS} and used with \
             backoff limit per index"
        );
        at_most(errors, field, MOST_OF_MANY, most);
    }
}

fn too_many(errors: &mut Vec<FieldError>, path: &Path<'_>, count: usize, most: usize) {
    if count > most {
        let detail = format!("must have at most {most} items");
        errors.push(FieldError::new(FieldErrorKind::TooMany, path, Some(count.into()), detail));
    }
}

fn failure_policy(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let rules_path = path.field("rules");
    let rules = spec.list("podFailurePolicy.rules");
    too_many(errors, &rules_path, rules.len(), MOST_RULES);
    let containers = ["template.spec.containers", "template.spec.initContainers"];
    let names: BTreeSet<&str> =
        containers.iter().flat_map(|list| spec.list(list)).map(|container| container.text("name")).collect();
    for (index, rule) in rules.iter().enumerate() {
        let path = rules_path.index(index);
        action(errors, &path.field("action"), rule.text("action"), spec.has("backoffLimitPerIndex"));
        if rule.has("onExitCodes") {
            exit_codes(errors, &path.field("onExitCodes"), rule.at("onExitCodes"), &names);
        }
        let patterns = rule.list("onPodConditions");
        pod_conditions(errors, &path.field("onPodConditions"), patterns);
        let wrong = match (rule.has("onExitCodes"), patterns.is_empty()) {
            (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.push(FieldError::new(FieldErrorKind::Invalid, path, None, wrong));
    }
}

/// A list of words as Go prints it.
fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn word(errors: &mut Vec<FieldError>, path: &Path<'_>, word: &str, known: &[&str]) {
    if word.is_empty() {
        errors.push(FieldError::required(path, quoted(known)));
    } else if !known.contains(&word) {
        errors.push(FieldError::not_supported(path, word, known));
    }
}

fn action(errors: &mut Vec<FieldError>, path: &Path<'_>, action: &str, has_limit_per_index: bool) {
    if action == "FailIndex" && !has_limit_per_index {
        errors.push(FieldError::invalid(path, action, "requires the backoffLimitPerIndex to be set"));
    } else {
        word(errors, path, action, &ACTIONS);
    }
}

fn exit_codes(errors: &mut Vec<FieldError>, path: &Path<'_>, wanted: &Value, containers: &BTreeSet<&str>) {
    let operator = wanted.text("operator");
    word(errors, &path.field("operator"), operator, &["In", "NotIn"]);
    if let Some(name) = wanted.at("containerName").as_str().filter(|name| !containers.contains(name)) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(path.field("containerName"), name, detail));
    }
    let values_path = path.field("values");
    let values: Vec<i64> = wanted.list("values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        let none = wanted.at("values").clone();
        errors.push(FieldError::invalid(values_path, none, "at least one value is required"));
    }
    too_many(errors, &values_path, values.len(), MOST_EXIT_CODES);
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        let path = values_path.index(index);
        if operator == "In" && *value == 0 {
            errors.push(FieldError::invalid(path, 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(*value) {
            errors.push(FieldError::duplicate(path, *value));
        }
    }
    if !values.is_sorted() {
        errors.push(FieldError::invalid(values_path, values, "must be ordered"));
    }
}

fn pod_conditions(errors: &mut Vec<FieldError>, path: &Path<'_>, patterns: &[Value]) {
    too_many(errors, path, patterns.len(), MOST_PATTERNS);
    for (index, pattern) in patterns.iter().enumerate() {
        let path = path.index(index);
        for wrong in qualified_name(pattern.text("type")) {
            errors.push(FieldError::invalid(path.field("type"), pattern.text("type"), wrong));
        }
        word(errors, &path.field("status"), pattern.text("status"), &["False", "True", "Unknown"]);
    }
}

fn success_policy(errors: &mut Vec<FieldError>, path: &Path<'_>, spec: &Value) {
    let completions = spec.int("completions").unwrap_or_default();
    let (rules, rules_path) = (spec.list("successPolicy.rules"), path.field("rules"));
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(rules_path, detail));
    }
    too_many(errors, &rules_path, rules.len(), MOST_RULES);
    for (index, rule) in rules.iter().enumerate() {
        success_rule(errors, &rules_path.index(index), rule, completions);
    }
}

fn success_rule(errors: &mut Vec<FieldError>, path: &Path<'_>, rule: &Value, completions: i64) {
    let (count, indexes) = (rule.int("succeededCount"), rule.at("succeededIndexes").as_str());
    if count.is_none() && indexes.is_none() {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path, detail));
    }
    let mut total = 0;
    if let Some(indexes) = indexes {
        let path = path.field("succeededIndexes");
        if indexes.len() > LONGEST_INDEXES {
            let detail = format!("may not be more than {LONGEST_INDEXES} bytes");
            errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
        }
        match count_indexes(indexes, completions) {
            Ok(counted) => total = counted,
            Err(why) => {
                let detail = format!("error parsing succeededIndexes: {why}");
                errors.push(FieldError::invalid(path, indexes, detail));
            }
        }
    }
    let Some(count) = count else { return };
    not_negative(errors, path, rule, "succeededCount");
    let path = path.field("succeededCount");
    if count > completions {
        let detail =
            format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(FieldError::invalid(path, count, detail));
    }
    if indexes.is_some() && count > total {
        let detail = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(FieldError::invalid(path, count, detail));
    }
}

/// How many indexes a text like `0,3-7` names; fails with what is wrong with it.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let index = |text: &str| -> Result<i64, String> {
        let parsed: Result<i64, _> = text.parse();
        match parsed {
            Err(_) => Err(format!("cannot convert string to integer for index: {text:?}")),
            Ok(index) if index >= completions => Err(format!("too large index: {text:?}")),
            Ok(index) => Ok(index),
        }
    };
    let order =
        |before: i64, after: i64| format!("non-increasing order, previous: {before}, current: {after}");
    let (mut total, mut last) = (0, None::<i64>);
    if text.is_empty() {
        return Ok(total);
    }
    for part in text.split(',') {
        let ends: Vec<&str> = part.split('-').collect();
        let (first, end) = match ends[..] {
            [only] => (index(only)?, index(only)?),
            [first, end] => (index(first)?, index(end)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts \
                     separated by '-'"
                ));
            }
        };
        if ends.len() == 2 && first >= end {
            return Err(order(first, end));
        }
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(order(last, first));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::{
        tests::{created, kind, with},
        validate_create, validate_update,
    };

    use super::*;

    fn job() -> Value {
        let object = json!({
            "kind": "Job", "apiVersion": "batch/v1",
            "metadata": { "name": "work", "namespace": "a", "uid": "u" },
            "spec": { "completionMode": "Indexed", "completions": 10, "template": { "spec": {
                "restartPolicy": "Never", "containers": [{ "name": "c", "image": "i" }],
            } } },
        });
        created("batch/jobs", object)
    }

    fn with_all(changes: &[(&str, Value)]) -> Value {
        let set = |job, (field, value): &(&str, Value)| with(job, &format!("/spec/{field}"), value.clone());
        changes.iter().fold(job(), set)
    }

    #[track_caller]
    fn check(changes: &[(&str, Value)], expected: &[&str]) {
        let errors = validate_create(kind("batch/jobs"), &with_all(changes));
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{changes:?}");
    }

    #[test]
    fn limits_are_for_jobs_that_have_indexes() {
        check(&[("backoffLimitPerIndex", json!(1)), ("maxFailedIndexes", json!(10))], &[]);
        check(
            &[("maxFailedIndexes", json!(11))],
            &[
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
                "spec.maxFailedIndexes: Invalid value: 11: must be less than or equal to completions",
            ],
        );
        check(
            &[("completionMode", json!("NonIndexed")), ("backoffLimitPerIndex", json!(1))],
            &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
        );
        check(
            &[("completionMode", json!("Sorted"))],
            &[
                "spec.completionMode: Unsupported value: \"Sorted\": supported values: \"NonIndexed\", \"Indexed\"",
            ],
        );
        check(
            &[
                ("completions", json!(100_001)),
                ("backoffLimitPerIndex", json!(1)),
                ("parallelism", json!(10_001)),
            ],
            &[
                "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
                "spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above \
                 100000 and used with backoff limit per index",
            ],
        );
        check(&[("managedBy", json!("acme.io/foo"))], &[]);
        check(
            &[("managedBy", json!("acme"))],
            &[
                "spec.managedBy: Invalid value: \"acme\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ],
        );
    }

    #[test]
    fn failure_policies_name_what_they_match() {
        let policy = |rule: Value| {
            let mut changes = vec![("podFailurePolicy", json!({ "rules": [rule] }))];
            changes.push(("podReplacementPolicy", json!("Failed")));
            changes
        };
        let codes = |operator: &str, values: Value| json!({ "action": "FailJob", "onExitCodes": { "operator": operator, "values": values } });
        check(&policy(codes("In", json!([1, 2]))), &[]);
        let at = "spec.podFailurePolicy.rules[0]";
        check(
            &policy(codes("In", json!([2, 0, 2]))),
            &[
                &format!("{at}.onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"),
                &format!("{at}.onExitCodes.values[2]: Duplicate value: 2"),
                &format!("{at}.onExitCodes.values: Invalid value: [2,0,2]: must be ordered"),
            ],
        );
        check(
            &policy(
                json!({ "action": "FailIndex", "onPodConditions": [{ "type": "Ready", "status": "Maybe" }] }),
            ),
            &[
                &format!(
                    "{at}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
                ),
                &format!(
                    "{at}.onPodConditions[0].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \
                     \"Unknown\""
                ),
            ],
        );
        check(
            &policy(json!({ "action": "Ignore" })),
            &[&format!("{at}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required")],
        );
        let mut changes = policy(codes("In", json!([1])));
        changes[1].1 = json!("TerminatingOrFailed");
        check(
            &changes,
            &[
                "spec.podReplacementPolicy: Unsupported value: \"TerminatingOrFailed\": supported values: \"Failed\"",
            ],
        );
    }

    #[test]
    fn success_policies_name_indexes_that_are_there() {
        let policy = |rule: Value| [("successPolicy", json!({ "rules": [rule] }))];
        let at = "spec.successPolicy.rules[0]";
        check(&policy(json!({ "succeededIndexes": "0,2-4", "succeededCount": 3 })), &[]);
        check(
            &policy(json!({ "succeededIndexes": "0,2-10" })),
            &[&format!(
                "{at}.succeededIndexes: Invalid value: \"0,2-10\": error parsing succeededIndexes: too large index: \"10\""
            )],
        );
        check(
            &policy(json!({ "succeededIndexes": "3,1", "succeededCount": 1 })),
            &[
                &format!(
                    "{at}.succeededIndexes: Invalid value: \"3,1\": error parsing succeededIndexes: non-increasing \
                     order, previous: 3, current: 1"
                ),
                &format!(
                    "{at}.succeededCount: Invalid value: 1: must be less than or equal to 0 (the number of indexes in \
                     the specified succeededIndexes field)"
                ),
            ],
        );
        check(
            &policy(json!({})),
            &[&format!(
                "{at}: Required value: at least one of succeededCount or succeededIndexes must be specified"
            )],
        );
    }

    #[test]
    fn an_indexed_job_grows_in_tandem() {
        let update = |completions: i64, parallelism: i64| {
            let new = with_all(&[("completions", json!(completions)), ("parallelism", json!(parallelism))]);
            let errors = validate_update(kind("batch/jobs"), &new, &job());
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(update(12, 12), [""; 0]);
        assert_eq!(
            update(12, 3),
            ["spec.completions: Invalid value: 12: can only be modified in tandem with spec.parallelism"]
        );
    }
}
