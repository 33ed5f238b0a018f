//! CustomResourceDefinitions, as data: their kinds are not served yet.
//!
//! Names, versions and conversion are checked as upstream does; schemas must be there, and are not looked into.

use hawser_api::FieldError;
use serde_json::{Value, json};

use super::{
    Hooks, PLAIN,
    meta::invalid_all,
    names::{dns_label_1035, dns_subdomain},
    rules::{immutable, one_of, required, webhook_client, words},
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
/// Groups of the project itself, whose definitions are reviewed.
const PROTECTED: [&str; 2] = ["k8s.io", "kubernetes.io"];
const APPROVED: &str = "api-approved.kubernetes.io";
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

pub(crate) static DEFINITION: Hooks = Hooks {
    default: |definition| {
        let spec = definition.ensure("spec");
        let names = spec.ensure("names");
        let kind = names.text("kind").to_owned();
        names.set_default("singular", kind.to_lowercase());
        if !kind.is_empty() {
            names.set_default("listKind", format!("{kind}List"));
        }
        let conversion = spec.ensure("conversion");
        conversion.set_default("strategy", "None");
        if let Some(service) = conversion.part_mut("webhook.clientConfig.service") {
            service.set_default("port", 443);
        }
        if definition.list("status.storedVersions").is_empty() {
            let stored = stored_versions(definition);
            definition.ensure("status").set("storedVersions", stored);
        }
    },
    prepare_create: |definition| {
        let stored = stored_versions(definition);
        definition.set("status", json!({ "storedVersions": stored }));
    },
    validate_create: validate,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        let established = old
            .list("status.conditions")
            .iter()
            .any(|condition| condition.text("type") == "Established" && condition.text("status") == "True");
        let last: &[&str] = if established { &["scope", "names.kind"] } else { &[] };
        for field in ["group", "names.plural"].iter().chain(last) {
            immutable(&mut errors, &SPEC.field(field), new.at("spec").at(field), old.at("spec").at(field));
        }
        errors
    },
    warning: Some("the CustomResourceDefinition is stored, but its resources are not served here yet"),
    ..PLAIN
};

/// The versions that objects are stored in by what the definition says now.
fn stored_versions(definition: &Value) -> Vec<Value> {
    let versions = definition.list("spec.versions").iter().filter(|version| version.flag("storage"));
    versions.map(|version| version.at("name").clone()).collect()
}

fn validate(definition: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = definition.at("spec");
    let group = spec.text("group");
    let name = definition.text("metadata.name");
    if name != format!("{}.{group}", spec.text("names.plural")) {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", name, detail));
    }
    let path = SPEC.field("group");
    let wrong = dns_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(path, group, "should be a domain with at least one dot"));
    }
    let is_protected = PROTECTED
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    if is_protected && !definition.map("metadata.annotations").contains_key(APPROVED) {
        let path = Path::Root("metadata.annotations");
        let detail = format!(
            "protected groups must have approval annotation {APPROVED:?}, see \
             https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.push(FieldError::required(path.key(APPROVED), detail));
    }
    match spec.text("scope") {
        "" => errors.push(FieldError::required(SPEC.field("scope"), "")),
        scope => one_of(&mut errors, &SPEC.field("scope"), scope, &["Cluster", "Namespaced"]),
    }
    versions(&mut errors, spec);
    names(&mut errors, spec.at("names"));
    if spec.flag("preserveUnknownFields") {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(SPEC.field("preserveUnknownFields"), true, detail));
    }
    conversion(&mut errors, &SPEC.field("conversion"), spec.at("conversion"));
    errors
}

fn versions(errors: &mut Vec<FieldError>, spec: &Value) {
    let (list, all) = (SPEC.field("versions"), spec.list("versions"));
    for (index, version) in all.iter().enumerate() {
        let (path, name) = (list.index(index), version.text("name"));
        if !version.has("schema.openAPIV3Schema") {
            let path = path.field("schema.openAPIV3Schema");
            errors.push(FieldError::required(path, "schemas are required"));
        }
        let wrong = dns_label_1035(name);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(path.field("name"), name, wrong.join(",")));
        }
        if version.has("deprecationWarning") && !version.flag("deprecated") {
            let detail = "can only be set for deprecated versions";
            let warning = version.text("deprecationWarning");
            errors.push(FieldError::invalid(path.field("deprecationWarning"), warning, detail));
        }
        let columns = path.field("additionalPrinterColumns");
        for (index, column) in version.list("additionalPrinterColumns").iter().enumerate() {
            let path = columns.index(index);
            required(errors, &path.field("name"), column.text("name"));
            match column.text("type") {
                "" => {
                    let detail = "must be one of boolean,date,integer,number,string";
                    errors.push(FieldError::required(path.field("type"), detail));
                }
                kind => {
                    let known = ["boolean", "date", "integer", "number", "string"];
                    one_of(errors, &path.field("type"), kind, &known);
                }
            }
            required(errors, &path.field("jsonPath"), column.text("jsonPath"));
        }
    }
    let shown = || spec.at("versions").clone();
    let repeated =
        |(index, one): (usize, &Value)| all[..index].iter().any(|it| it.at("name") == one.at("name"));
    if all.iter().enumerate().any(repeated) {
        errors.push(FieldError::invalid(list, shown(), "must contain unique version names"));
    }
    if all.iter().filter(|version| version.flag("storage")).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(list, shown(), detail));
    }
}

fn names(errors: &mut Vec<FieldError>, names: &Value) {
    let path = SPEC.field("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        let (path, name) = (path.field(field), names.text(field));
        required(errors, &path, name);
        let wrong = dns_label_1035(&name.to_lowercase());
        if name.is_empty() || wrong.is_empty() && (field.ends_with("ind") || name == name.to_lowercase()) {
            continue;
        }
        let detail = if field.ends_with("ind") {
            format!("may have mixed case, but should otherwise match: {}", wrong.join(","))
        } else {
            dns_label_1035(name).join(",")
        };
        errors.push(FieldError::invalid(path, name, detail));
    }
    for field in ["shortNames", "categories"] {
        let list = path.field(field);
        for (index, name) in words(names, field).iter().enumerate() {
            invalid_all(errors, &list.index(index), name, dns_label_1035(name));
        }
    }
    if !names.text("kind").is_empty() && names.at("kind") == names.at("listKind") {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(path.field("listKind"), names.text("listKind"), detail));
    }
}

fn conversion(errors: &mut Vec<FieldError>, path: &Path<'_>, conversion: &Value) {
    let (strategy, webhook) = (conversion.text("strategy"), conversion.at("webhook"));
    one_of(errors, &path.field("strategy"), strategy, &["None", "Webhook"]);
    let path = path.field("webhook");
    if strategy != "Webhook" {
        if webhook.is_object() {
            let detail = "should not be set when strategy is not set to Webhook";
            errors.push(FieldError::forbidden(path.field("clientConfig"), detail));
        }
        return;
    }
    let client = path.field("clientConfig");
    if webhook.has("clientConfig") {
        webhook_client(errors, &client, webhook.at("clientConfig"));
    } else {
        errors.push(FieldError::required(client, "required when strategy is set to Webhook"));
    }
    let (path, versions) =
        (path.field("conversionReviewVersions"), words(webhook, "conversionReviewVersions"));
    if versions.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(FieldError::invalid(path, Value::from(versions), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tests::{created, refused, update_refused, with};

    const NAME: &str = "apiextensions.k8s.io/customresourcedefinitions";

    fn definition() -> Value {
        let version = |name: &str, storage: bool| {
            json!({
                "name": name, "served": true, "storage": storage,
                "schema": { "openAPIV3Schema": { "type": "object" } },
            })
        };
        json!({
            "metadata": { "name": "ships.example.com" },
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": { "plural": "ships", "kind": "Ship" },
                "versions": [version("v1", true), version("v1beta1", false)],
            },
        })
    }

    #[test]
    fn names_and_stored_versions_are_filled_in() {
        let made = created(NAME, definition());
        assert_eq!(made["spec"]["names"]["singular"], "ship");
        assert_eq!(made["spec"]["names"]["listKind"], "ShipList");
        assert_eq!(made["spec"]["conversion"], json!({ "strategy": "None" }));
        assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(made["metadata"]["generation"], 1);
        refused(NAME, definition(), &[]);
    }

    #[test]
    fn bad_definitions_are_told_where() {
        refused(
            NAME,
            with(definition(), "/metadata/name", json!("boats.example.com")),
            &[
                "metadata.name: Invalid value: \"boats.example.com\": must be spec.names.plural+\".\"+spec.group",
            ],
        );
        refused(
            NAME,
            with(definition(), "/spec/scope", json!("Galaxy")),
            &["spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\""],
        );
        refused(
            NAME,
            with(definition(), "/spec/versions/1/schema", Value::Null),
            &["spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required"],
        );
        refused(
            NAME,
            with(definition(), "/spec/names/kind", json!("Ship Yard")),
            &[
                "spec.names.singular: Invalid value: \"ship yard\": a DNS-1035 label must consist of lower case alphanumeric \
                 characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
                 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
                "spec.names.kind: Invalid value: \"Ship Yard\": may have mixed case, but should otherwise match: a DNS-1035 \
                 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and \
                 end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
                 '[a-z]([-a-z0-9]*[a-z0-9])?')",
                "spec.names.listKind: Invalid value: \"Ship YardList\": may have mixed case, but should otherwise match: a \
                 DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                 character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
                 is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ],
        );
        let ours = with(
            with(definition(), "/metadata/name", json!("ships.fleet.k8s.io")),
            "/spec/group",
            json!("fleet.k8s.io"),
        );
        refused(
            NAME,
            ours,
            &[
                "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval \
                 annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
            ],
        );
        refused(
            NAME,
            with(definition(), "/spec/conversion", json!({ "strategy": "Webhook" })),
            &[
                "spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook",
                "spec.conversion.webhook.conversionReviewVersions: Required value",
            ],
        );
    }

    #[test]
    fn group_and_plural_stand() {
        let other = with(
            with(definition(), "/spec/names/plural", json!("boats")),
            "/metadata/name",
            json!("boats.example.com"),
        );
        update_refused(
            NAME,
            definition(),
            other,
            &[
                "metadata.name: Invalid value",
                "spec.names.plural: Invalid value: \"boats\": field is immutable",
            ],
        );
    }
}
