//! Events, in the words of the core group and of `events.k8s.io`; both are the same stored objects.

use hawser_api::FieldError;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Hooks, PLAIN, Selectable, column, human, text, value::Fields, wide};

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
    validate_create: |event| {
        let mut core = event.clone();
        to_core(&mut core);
        validate_create(&core)
    },
    cells: |event, now| {
        let mut core = event.clone();
        to_core(&mut core);
        cells(&core, now)
    },
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

fn validate_create(event: &Value) -> Vec<FieldError> {
    let own = event.text("metadata.namespace");
    let about = event.text("involvedObject.namespace");
    let fits = if about.is_empty() { own == "default" || own == "kube-system" } else { own == about };
    if fits {
        return Vec::new();
    }
    vec![FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace")]
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
}
