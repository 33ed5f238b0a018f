//! VolumeAttributesClasses: parameters of volumes that may change while they are in use (KEP-3751).

use hawser_api::{FieldError, error::FieldErrorKind};

use super::{
    AGE, Hooks, NAME, PLAIN,
    apps::age,
    names::qualified_name,
    rules::at_most,
    text,
    value::{Fields, Path},
};

const MOST_PARAMETERS: usize = 512;
const PARAMETERS_BYTES: usize = 256 * 1024;

pub(crate) static VOLUME_ATTRIBUTES_CLASS: Hooks = Hooks {
    validate_create: |class| {
        let mut errors = Vec::new();
        let (path, driver) = (Path::Root("driverName"), class.text("driverName"));
        if driver.is_empty() {
            errors.push(FieldError::required(path, ""));
        } else {
            let wrong = qualified_name(&driver.to_lowercase()).into_iter();
            errors.extend(wrong.map(|wrong| FieldError::invalid(path, driver, wrong)));
        }
        let (path, parameters) = (Path::Root("parameters"), class.map("parameters"));
        if parameters.is_empty() {
            errors.push(FieldError::required(path, "must contain at least one key/value pair"));
        }
        at_most(&mut errors, &path, parameters.len(), MOST_PARAMETERS);
        let bytes: usize =
            parameters.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
        if parameters.contains_key("") {
            errors.push(FieldError::invalid(path, "", "field can not be empty."));
        }
        if bytes > PARAMETERS_BYTES {
            let detail = format!("may not be more than {PARAMETERS_BYTES} bytes");
            errors.push(FieldError::new(FieldErrorKind::TooLong, path, None, detail));
        }
        errors
    },
    validate_update: |new, old| {
        let changed = ["driverName", "parameters"].into_iter().filter(|field| new.at(field) != old.at(field));
        changed
            .map(|field| FieldError::forbidden(field, format!("updates to {field} are forbidden.")))
            .collect()
    },
    columns: &[NAME, text("DriverName"), AGE],
    cells: |class, now| {
        vec![class.at("metadata.name").clone(), class.at("driverName").clone(), age(class, now)]
    },
    warning: Some("the VolumeAttributesClass is stored, but nothing changes volumes in place here yet"),
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kinds::tests::{refused, update_refused, with};

    const CLASS: &str = "storage.k8s.io/volumeattributesclasses";

    fn class() -> Value {
        json!({
            "kind": "VolumeAttributesClass", "apiVersion": "storage.k8s.io/v1", "metadata": { "name": "fast" },
            "driverName": "disk.example.com", "parameters": { "iops": "1000" },
        })
    }

    #[test]
    fn a_class_names_its_driver_and_parameters_for_good() {
        refused(CLASS, class(), &[]);
        refused(
            CLASS,
            json!({ "metadata": { "name": "fast" } }),
            &[
                "driverName: Required value",
                "parameters: Required value: must contain at least one key/value pair",
            ],
        );
        update_refused(
            CLASS,
            class(),
            with(with(class(), "/parameters/iops", json!("2")), "/driverName", json!("other.example.com")),
            &[
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
            ],
        );
    }
}
