//! ReplicationControllers: what ReplicaSets came from. Their selector is a plain map.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    Hooks, NAME, PLAIN, ScalePaths,
    apps::{REPLICAS_COLUMNS, count, not_negative, replicas_cells},
    pod::{default_template, or_none, validate_template},
    selector, text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");

pub(crate) static REPLICATION_CONTROLLER: Hooks = Hooks {
    default: |object| {
        let labels = object.at("spec.template.metadata.labels").clone();
        let spec = object.ensure("spec");
        spec.set_default("replicas", 1);
        if spec.map("selector").is_empty() && labels.is_object() {
            spec.set("selector", labels.clone());
        }
        if spec.has("template") {
            default_template(spec.ensure("template"));
        }
        if object.map("metadata.labels").is_empty() && labels.is_object() {
            object.ensure("metadata").set("labels", labels);
        }
    },
    validate_create: validate,
    columns: REPLICAS_COLUMNS,
    cells: |object, now| {
        let selector = or_none(selector::map_to_text(object.at("spec.selector")));
        replicas_cells(object, now, selector.into())
    },
    selectable: &[("status.replicas", |object| count(object, "status.replicas").to_string())],
    scale: Some(ScalePaths {
        spec_replicas: "spec.replicas",
        status_replicas: "status.replicas",
        selector: |object| selector::map_to_text(object.at("spec.selector")),
    }),
    ..PLAIN
};

/// ComponentStatuses: deprecated, and about components that are one process here; the list is always empty.
pub(crate) static COMPONENT_STATUS: Hooks = Hooks {
    columns: &[NAME, text("Status"), text("Message"), text("Error")],
    cells: |object, _| {
        let healthy = object.list("conditions").iter().find(|condition| condition.text("type") == "Healthy");
        let status = match healthy.map(|condition| condition.text("status")) {
            None => "Unknown",
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
        };
        let said = |field: &str| Value::from(healthy.map_or("", |condition| condition.text(field)));
        vec![object.at("metadata.name").clone(), status.into(), said("message"), said("error")]
    },
    deprecation: Some("v1 ComponentStatus is deprecated in v1.19+"),
    ..PLAIN
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = object.at("spec");
    not_negative(&mut errors, spec, &["minReadySeconds"]);
    let own = spec.map("selector");
    if own.is_empty() {
        errors.push(FieldError::required(SPEC.field("selector"), ""));
    }
    not_negative(&mut errors, spec, &["replicas"]);
    let path = SPEC.field("template");
    if !spec.has("template") {
        errors.push(FieldError::required(path, ""));
        return errors;
    }
    let labels = spec.map("template.metadata.labels");
    if own.iter().any(|(key, value)| labels.get(key) != Some(value)) {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(path.field("metadata.labels"), labels.clone(), detail));
    }
    validate_template(&mut errors, &path, spec.at("template"));
    let policy = spec.text("template.spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(path.field("spec.restartPolicy"), policy, &["Always"]));
    }
    if spec.has("template.spec.activeDeadlineSeconds") {
        let detail = "activeDeadlineSeconds in ReplicationController is not Supported";
        errors.push(FieldError::forbidden(path.field("spec.activeDeadlineSeconds"), detail));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{
        scale_of,
        tests::{created, kind, refused, with},
    };

    const NAME: &str = "replicationcontrollers";

    fn controller() -> Value {
        json!({
            "kind": "ReplicationController", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "a" },
            "spec": { "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web" }] },
            } },
        })
    }

    #[test]
    fn selector_and_labels_follow_the_template() {
        let made = created(NAME, controller());
        assert_eq!(made["spec"]["selector"], json!({ "app": "web" }));
        assert_eq!(made["metadata"]["labels"], json!({ "app": "web" }));
        assert_eq!((&made["spec"]["replicas"], &made["metadata"]["generation"]), (&json!(1), &json!(1)));
        assert_eq!(scale_of(kind(NAME), &made).unwrap()["status"]["selector"], "app=web");
        refused(NAME, controller(), &[]);
    }

    #[test]
    fn bad_controllers_are_told_where() {
        refused(
            NAME,
            with(controller(), "/spec/selector", json!({ "app": "db" })),
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ],
        );
        refused(
            NAME,
            with(controller(), "/spec", json!({ "replicas": -1 })),
            &[
                "spec.selector: Required value",
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template: Required value",
            ],
        );
        refused(
            NAME,
            with(controller(), "/spec/template/spec/restartPolicy", json!("Never")),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
    }
}
