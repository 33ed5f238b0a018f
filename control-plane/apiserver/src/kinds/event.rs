//! Events, in the words of the core group and of `events.k8s.io`; both are the same stored objects.

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    Hooks, PLAIN, Selectable, column, human,
    meta::invalid_all,
    names::qualified_name,
    rules::immutable,
    text,
    value::{Fields, Path},
    wide,
};

/// The most characters of what an event says in a word, and in words.
const MAX_WORD: usize = 128;
const MAX_NOTE: usize = 1024;

/// What stands in an event of `events.k8s.io`: its field, and the name that errors give it.
const FIXED: [(&str, &str); 13] = [
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingComponent", "reportingController"),
    ("reportingInstance", "reportingInstance"),
];

pub(crate) static CORE: Hooks = Hooks {
    validate_create,
    columns: &[
        text("Last Seen"),
        text("Type"),
        text("Reason"),
        text("Object"),
        wide("Subobject"),
        wide("Source"),
        text("Message"),
        wide("First Seen"),
        super::Column { priority: 1, ..column("Count", "integer") },
        super::Column { format: "name", ..wide("Name") },
    ],
    cells,
    selectable: SELECTABLE,
    create_on_update: true,
    ..PLAIN
};

pub(crate) static EVENTS: Hooks = Hooks {
    validate_create: |event| validate_create(&as_core(event)),
    validate_new: |event| newer(&as_core(event), None),
    validate_update: |new, old| newer(&as_core(new), Some(&as_core(old))),
    cells: |event, now| cells(&as_core(event), now),
    view: Some((to_core, from_core)),
    ..CORE
};

const SELECTABLE: &[Selectable] = &[
    ("involvedObject.kind", |event| subject(event).text("kind").to_owned()),
    ("involvedObject.namespace", |event| subject(event).text("namespace").to_owned()),
    ("involvedObject.name", |event| subject(event).text("name").to_owned()),
    ("involvedObject.uid", |event| subject(event).text("uid").to_owned()),
    ("involvedObject.apiVersion", |event| subject(event).text("apiVersion").to_owned()),
    ("involvedObject.resourceVersion", |event| subject(event).text("resourceVersion").to_owned()),
    ("involvedObject.fieldPath", |event| subject(event).text("fieldPath").to_owned()),
    ("regarding.kind", |event| subject(event).text("kind").to_owned()),
    ("regarding.namespace", |event| subject(event).text("namespace").to_owned()),
    ("regarding.name", |event| subject(event).text("name").to_owned()),
    ("regarding.uid", |event| subject(event).text("uid").to_owned()),
    ("reason", |event| event.text("reason").to_owned()),
    ("reportingComponent", |event| reporter(event).to_owned()),
    ("reportingController", |event| reporter(event).to_owned()),
    ("source", |event| match event.text("source.component") {
        "" => reporter(event).to_owned(),
        component => component.to_owned(),
    }),
    ("type", |event| event.text("type").to_owned()),
];

fn subject(event: &Value) -> &Value {
    if event.has("involvedObject") { event.at("involvedObject") } else { event.at("regarding") }
}

fn reporter(event: &Value) -> &str {
    match event.text("reportingComponent") {
        "" => event.text("reportingController"),
        component => component,
    }
}

/// `events.k8s.io` name, core name.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn as_core(event: &Value) -> Value {
    let mut core = event.clone();
    to_core(&mut core);
    core
}

fn to_core(event: &mut Value) {
    rename(event, RENAMED.iter().copied());
    event.set("apiVersion", "v1");
    // Always there in the core group's form.
    for field in ["involvedObject", "source"] {
        event.ensure(field);
    }
    for field in ["reportingComponent", "reportingInstance"] {
        event.set_default(field, "");
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if !event.has(field) {
            event.set(field, Value::Null);
        }
    }
}

fn from_core(event: &mut Value) {
    rename(event, RENAMED.iter().map(|(view, core)| (*core, *view)));
    event.set("apiVersion", "events.k8s.io/v1");
}

fn rename(event: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Value::Object(fields) = event else {
        return;
    };
    let mut moved = Map::new();
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            moved.insert(to.to_owned(), value);
        }
    }
    fields.extend(moved);
}

/// Rules of an event in either version, in the core group's form. One with a time of its own says who reports what.
fn validate_create(event: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let own = event.text("metadata.namespace");
    let about = event.text("involvedObject.namespace");
    let is_new = event.has("eventTime");
    let fits = match about {
        "" => own.is_empty() || own == "default" || is_new && own == "kube-system",
        about => is_new || own == about,
    };
    if !fits {
        let detail = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", about, detail));
    }
    if !is_new {
        return errors;
    }
    let reporter = event.text("reportingComponent");
    if reporter.is_empty() {
        errors.push(FieldError::required("reportingController", ""));
    }
    invalid_all(&mut errors, &Path::Root("reportingController"), reporter, qualified_name(reporter));
    for (field, limit) in
        [("reportingInstance", MAX_WORD), ("action", MAX_WORD), ("reason", MAX_WORD), ("message", MAX_NOTE)]
    {
        let text = event.text(field);
        if text.is_empty() && field != "message" {
            errors.push(FieldError::required(field, ""));
        }
        if text.len() > limit {
            errors.push(FieldError::invalid(field, "", format!("can have at most {limit} characters")));
        }
    }
    errors
}

/// Further rules of events that are written as `events.k8s.io` has them, in the core group's form: what the older version
/// has is left out, and nothing but the series changes.
pub(crate) fn newer(event: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let series = event.at("series");
    if !series.is_null() && old.is_none_or(|old| old.at("series") != series) {
        if series.int("count").unwrap_or_default() < 2 {
            errors.push(FieldError::invalid("series.count", "", "should be at least 2"));
        }
        if !series.has("lastObservedTime") {
            errors.push(FieldError::required("series.lastObservedTime", ""));
        }
    }
    if let Some(old) = old {
        for (field, shown) in FIXED {
            immutable(&mut errors, &Path::Root(shown), event.at(field), old.at(field));
        }
        return errors;
    }
    if !event.has("eventTime") {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", format!("has invalid value: {kind}")));
    }
    let source = ["component", "host"].iter().any(|field| !event.at("source").text(field).is_empty());
    for (field, is_set) in [
        ("firstTimestamp", event.has("firstTimestamp")),
        ("lastTimestamp", event.has("lastTimestamp")),
        ("count", event.int("count").unwrap_or_default() != 0),
        ("source", source),
    ] {
        if is_set {
            errors.push(FieldError::invalid(field, "", "needs to be unset"));
        }
    }
    errors
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let ago = |time: &Value| human::age(time, now);
    let first = if event.has("firstTimestamp") { event.at("firstTimestamp") } else { event.at("eventTime") };
    let (last, count) = if event.has("series") {
        (event.at("series.lastObservedTime"), event.int("series.count").unwrap_or_default())
    } else {
        let last = if event.has("lastTimestamp") { event.at("lastTimestamp") } else { first };
        (last, event.int("count").unwrap_or(1).max(1))
    };
    let object = event.at("involvedObject");
    let target = match object.text("name") {
        "" => object.text("kind").to_lowercase(),
        name => format!("{}/{name}", object.text("kind").to_lowercase()),
    };
    // Newer events name a reporter in place of a source.
    let (component, host) = match event.text("source.component") {
        "" => (reporter(event), event.text("reportingInstance")),
        component => (component, event.text("source.host")),
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        ago(last).into(),
        event.at("type").clone(),
        event.at("reason").clone(),
        target.into(),
        object.text("fieldPath").into(),
        source.into(),
        event.text("message").trim().into(),
        ago(first).into(),
        count.into(),
        event.at("metadata.name").clone(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{tests, validate_create, validate_update};

    #[test]
    fn views_translate_forth_and_back() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e", "namespace": "a" },
            "involvedObject": { "kind": "Pod", "name": "web", "namespace": "a" }, "message": "hello", "reason": "Started",
            "count": 3, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z",
            "source": { "component": "kubelet", "host": "n1" }, "reportingComponent": "kubelet",
            "reportingInstance": "n1", "type": "Normal",
        });
        let mut event = core.clone();
        from_core(&mut event);
        assert_eq!(event["note"], "hello");
        assert_eq!(event["regarding"]["name"], "web");
        assert_eq!(event["deprecatedCount"], 3);
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert!(event.get("message").is_none());
        to_core(&mut event);
        assert_eq!(event, core);
    }

    fn event(kind: &str) -> Value {
        let mut event = json!({
            "kind": "Event", "metadata": { "name": "e", "namespace": "a" }, "reason": "Started", "type": "Normal",
            "action": "Starting", "reportingInstance": "n1", "eventTime": "2026-01-01T00:00:00.000000Z",
            "involvedObject": { "kind": "Pod", "name": "web", "namespace": "a" }, "reportingComponent": "example.com/c",
        });
        if kind != "events" {
            from_core(&mut event);
        }
        event
    }

    #[track_caller]
    fn check(kind: &str, field: &str, value: Value, expected: &[&str]) {
        let object = tests::with(event(kind), &format!("/{field}"), value);
        let errors = validate_create(tests::kind(kind), &object);
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, expected, "{field}");
    }

    #[test]
    fn events_say_who_reports_what() {
        for kind in ["events", "events.k8s.io/events"] {
            check(kind, "action", json!("Starting"), &[]);
            check(kind, "action", json!(""), &["action"]);
            check(kind, "reason", json!("a".repeat(129)), &["reason"]);
            check(kind, "reportingInstance", json!(""), &["reportingInstance"]);
        }
        check("events", "reportingComponent", json!("a b"), &["reportingController"]);
        check("events", "message", json!("a".repeat(1025)), &["message"]);
        check("events", "type", json!("Odd"), &[]);
        // An old one says less, and is about what is in its namespace.
        let old = |about: &str, own: &str| {
            let mut event = event("events");
            event.drop_field("eventTime");
            event.drop_field("action");
            event["involvedObject"]["namespace"] = about.into();
            event["metadata"]["namespace"] = own.into();
            validate_create(tests::kind("events"), &event).len()
        };
        assert_eq!([old("a", "a"), old("", "default"), old("", "kube-system"), old("b", "a")], [0, 0, 1, 1]);
    }

    #[test]
    fn newer_events_change_their_series_alone() {
        const KIND: &str = "events.k8s.io/events";
        check(KIND, "type", json!("Odd"), &["type"]);
        check(KIND, "eventTime", Value::Null, &["eventTime"]);
        check(KIND, "deprecatedCount", json!(3), &["count"]);
        check(KIND, "deprecatedSource", json!({ "component": "c" }), &["source"]);
        check(KIND, "series", json!({ "count": 1 }), &["series.count", "series.lastObservedTime"]);
        let changed = |field: &str, value: Value| -> Vec<String> {
            let (old, new) = (event(KIND), tests::with(event(KIND), &format!("/{field}"), value));
            validate_update(tests::kind(KIND), &new, &old).into_iter().map(|error| error.field).collect()
        };
        let time = "2026-01-01T00:01:00.000000Z";
        assert!(changed("series", json!({ "count": 2, "lastObservedTime": time })).is_empty());
        for (field, shown) in [
            ("note", "message"),
            ("regarding/name", "involvedObject"),
            ("reason", "reason"),
            ("action", "action"),
        ] {
            assert_eq!(changed(field, json!("Other")), [shown]);
        }
    }
}
