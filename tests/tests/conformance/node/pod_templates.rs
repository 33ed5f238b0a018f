//! PodTemplates as objects.

use k8s_openapi::api::core::v1::PodTemplate;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    coverage::texts,
    kubelet::IMAGE,
    steps::{counted, create, delete, delete_all, gone, list, patch, update, watch_labels},
    support::{test, unique},
};

texts! {
    "PodTemplate lifecycle" => should_run_the_lifecycle_of_podtemplates,
    "PodTemplate, delete a collection" => should_delete_a_collection_of_pod_templates,
    "PodTemplate, replace" => should_replace_a_pod_template,
}

fn pod_template(name: &str, label: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "podtemplate": label } },
        "template": { "spec": { "containers": [{ "name": "app", "image": IMAGE }] } },
    })
}

/// PodTemplate lifecycle
#[test]
fn should_run_the_lifecycle_of_podtemplates() {
    test(async |bed| {
        let (name, templates) = (unique("lifecycle"), bed.api::<PodTemplate>());
        let (selector, everywhere) = (format!("podtemplate={name}"), bed.all::<PodTemplate>());
        assert_eq!(list(&everywhere, &selector).await.len(), 0);
        let mut events = watch_labels(&templates, &selector).await;
        create(&templates, pod_template(&name, &name)).await;
        events.until("ADDED", |seen| seen.name_any() == name).await;

        let patched = patch(&templates, &name, json!({ "metadata": { "labels": { "patched": "yes" } } }));
        assert_eq!(patched.await.labels()["patched"], "yes");
        let read = templates.get(&name).await.expect("the template is read");
        assert_eq!(read.labels()["patched"], "yes");
        assert_eq!(list(&everywhere, &format!("{selector},patched=yes")).await.len(), 1);
        delete(&templates, &name).await;
        events.until("DELETED", |seen| seen.name_any() == name).await;
        gone(&templates, &name).await;
    });
}

/// PodTemplate, delete a collection
#[test]
fn should_delete_a_collection_of_pod_templates() {
    test(async |bed| {
        let (label, templates) = (unique("together"), bed.api::<PodTemplate>());
        for number in 1..=3 {
            create(&templates, pod_template(&format!("{label}-{number}"), &label)).await;
        }
        create(&templates, pod_template("apart", "apart")).await;
        let selector = format!("podtemplate={label}");
        assert_eq!(list(&templates, &selector).await.len(), 3);
        delete_all(&templates, &selector).await;
        counted(&templates, &selector, 0).await;
        assert_eq!(list(&templates, "").await.len(), 1);
    });
}

/// PodTemplate, replace
#[test]
fn should_replace_a_pod_template() {
    test(async |bed| {
        let (name, templates) = (unique("replaced"), bed.api::<PodTemplate>());
        let made = create(&templates, pod_template(&name, &name)).await;
        let replaced = update(&templates, &name, |template| {
            template.annotations_mut().insert("updated".into(), "true".into());
        })
        .await;
        assert_eq!(replaced.annotations()["updated"], "true");
        assert_eq!((replaced.uid(), &replaced.template), (made.uid(), &made.template));
        let read = templates.get(&name).await.expect("the template is read");
        assert_eq!(read.annotations()["updated"], "true");
    });
}
