//! PriorityClasses: what of them may change.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    coverage::texts,
    steps::{counted, create, delete_all, list, patch, try_patch, try_update, update},
    support::{refused, test, unique},
};

texts! {
    "Scheduler, Verify PriorityClass endpoints" => verify_priorityclass_endpoints_can_be_operated_with_different_http_methods,
}

/// Scheduler, Verify PriorityClass endpoints
#[test]
fn verify_priorityclass_endpoints_can_be_operated_with_different_http_methods() {
    test(async |bed| {
        let (classes, label) = (bed.all::<PriorityClass>(), unique("classes"));
        let selector = format!("label={label}");
        let names = [format!("{label}-1"), format!("{label}-2")];
        for (name, value) in names.iter().zip([1, 2]) {
            let metadata = json!({ "name": name, "labels": { "label": label } });
            create(&classes, json!({ "metadata": metadata, "value": value, "description": "first" })).await;
        }
        let listed = list(&classes, &selector).await;
        assert_eq!(listed.iter().map(|class| class.value).collect::<Vec<_>>(), [Some(1), Some(2)]);

        let [first, second] = &names;
        let patched = patch(&classes, first, json!({ "description": "patched" })).await;
        assert_eq!(patched.description.as_deref(), Some("patched"));
        let updated = update(&classes, second, |class| class.description = Some("updated".into())).await;
        assert_eq!(updated.description.as_deref(), Some("updated"));

        // What pods were given once holds for the class's life.
        for name in &names {
            refused(try_patch(&classes, name, json!({ "value": 11 })).await, 422, "Invalid");
            refused(try_patch(&classes, name, json!({ "preemptionPolicy": "Never" })).await, 422, "Invalid");
            refused(try_update(&classes, name, |class| class.value = Some(11)).await, 422, "Invalid");
        }
        let listed = list(&classes, &selector).await;
        assert_eq!(listed.iter().map(|class| class.value).collect::<Vec<_>>(), [Some(1), Some(2)]);
        assert_eq!(listed[0].name_any(), *first);
        delete_all(&classes, &selector).await;
        counted(&classes, &selector, 0).await;
    });
}
