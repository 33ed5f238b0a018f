//! APIServices: groups that other servers answer for, as data. Requests are not passed on yet.

use hawser_api::FieldError;
use serde_json::Value;

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    meta::invalid_all,
    names::{dns_label_1035, dns_subdomain},
    rules::{one_of, required, service_port},
    text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");

pub(crate) static API_SERVICE: Hooks = Hooks {
    default: |object| {
        if let Some(service) = object.part_mut("spec.service") {
            service.set_default("port", 443);
        }
    },
    validate_create: validate,
    validate_status: |new, _| {
        let mut errors = Vec::new();
        let list = Path::Root("status.conditions");
        for (index, condition) in new.list("status.conditions").iter().enumerate() {
            let path = list.index(index);
            one_of(
                &mut errors,
                &path.field("status"),
                condition.text("status"),
                &["True", "False", "Unknown"],
            );
        }
        errors
    },
    columns: &[NAME, text("Service"), text("Available"), AGE],
    cells: |object, now| {
        let service = object.at("spec.service");
        let shown = if service.is_object() {
            format!("{}/{}", service.text("namespace"), service.text("name"))
        } else {
            "Local".to_owned()
        };
        let available = object.list("status.conditions").iter().find(|one| one.text("type") == "Available");
        let available = match available.map(|condition| (condition.text("status"), condition.text("reason")))
        {
            None => "Unknown".to_owned(),
            Some((status @ "True", _)) => status.to_owned(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        vec![object.at("metadata.name").clone(), shown.into(), available.into(), age(object, now)]
    },
    name: NameRule::PathSegment,
    warning: Some("the APIService is stored, but no request is passed on to another API server here yet"),
    ..PLAIN
};

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = object.at("spec");
    let (name, group, version) = (object.text("metadata.name"), spec.text("group"), spec.text("version"));
    let wanted = format!("{version}.{group}");
    if name != wanted && NameRule::PathSegment.check(name).is_empty() {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    if !group.is_empty() {
        invalid_all(&mut errors, &SPEC.field("group"), group, dns_subdomain(group));
    } else if version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required(SPEC.field("group"), detail));
    }
    invalid_all(&mut errors, &SPEC.field("version"), version, dns_label_1035(version));
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1_000)] {
        let number = spec.int(field).unwrap_or_default();
        if !(1..=most).contains(&number) {
            let detail = format!("must be positive and less than {most}");
            errors.push(FieldError::invalid(SPEC.field(field), number, detail));
        }
    }
    let (bundle, insecure) = (spec.text("caBundle"), spec.flag("insecureSkipTLSVerify"));
    let skip = SPEC.field("insecureSkipTLSVerify");
    let (path, service) = (SPEC.field("service"), spec.at("service"));
    if !service.is_object() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            let detail = "local APIServices may not have a caBundle";
            errors.push(FieldError::invalid(SPEC.field("caBundle"), shown, detail));
        }
        if insecure {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid(skip, true, detail));
        }
        return errors;
    }
    for field in ["namespace", "name"] {
        required(&mut errors, &path.field(field), service.text(field));
    }
    service_port(&mut errors, &path, service);
    if insecure && !bundle.is_empty() {
        errors.push(FieldError::invalid(skip, true, "may not be true if caBundle is present"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{created, refused, with};

    const NAME: &str = "apiregistration.k8s.io/apiservices";

    fn service() -> Value {
        json!({
            "metadata": { "name": "v1.example.com" },
            "spec": {
                "group": "example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
                "service": { "namespace": "a", "name": "api" },
            },
        })
    }

    #[test]
    fn a_service_is_named_by_its_version_and_group() {
        refused(NAME, service(), &[]);
        assert_eq!(created(NAME, service())["spec"]["service"]["port"], 443);
        refused(
            NAME,
            with(service(), "/metadata/name", json!("v2.example.com")),
            &[
                "metadata.name: Invalid value: \"v2.example.com\": must be `spec.version+\".\"+spec.group`: \"v1.example.com\"",
            ],
        );
        refused(
            NAME,
            with(service(), "/spec/versionPriority", json!(1001)),
            &["spec.versionPriority: Invalid value: 1001: must be positive and less than 1000"],
        );
        let local =
            with(with(service(), "/spec/service", Value::Null), "/spec/insecureSkipTLSVerify", json!(true));
        refused(
            NAME,
            local,
            &[
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ],
        );
    }
}
