//! DefaultStorageClass and DefaultIngressClass: what names no class gets the one that is marked as the default.
//!
//! Of several the newest is taken, and of those the first by name.

use std::{cmp::Reverse, sync::Arc};

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::{
    cache::{CachedObject, KindCache, Selection},
    resources::Resources,
};

/// One of the two plugins.
pub(super) struct DefaultClass {
    name: &'static str,
    classes: Arc<KindCache>,
    /// Annotations that mark the default.
    marks: &'static [&'static str],
    /// Group and plural of what has a class.
    of: (&'static str, &'static str),
    /// The field with the class, and the annotation that did its work before.
    field: &'static str,
    older: &'static str,
}

impl DefaultClass {
    /// DefaultStorageClass.
    pub(super) fn storage(resources: &Resources) -> Self {
        Self {
            name: "DefaultStorageClass",
            classes: classes(resources, "storage.k8s.io", "storageclasses"),
            marks: &[
                "storageclass.kubernetes.io/is-default-class",
                "storageclass.beta.kubernetes.io/is-default-class",
            ],
            of: ("", "persistentvolumeclaims"),
            field: "storageClassName",
            older: "volume.beta.kubernetes.io/storage-class",
        }
    }

    /// DefaultIngressClass.
    pub(super) fn ingress(resources: &Resources) -> Self {
        Self {
            name: "DefaultIngressClass",
            classes: classes(resources, "networking.k8s.io", "ingressclasses"),
            marks: &["ingressclass.kubernetes.io/is-default-class"],
            of: ("networking.k8s.io", "ingresses"),
            field: "ingressClassName",
            older: "kubernetes.io/ingress.class",
        }
    }

    fn default(&self) -> Option<Arc<CachedObject>> {
        let state = self.classes.snapshot().state;
        let all = Selection::default().select(&self.classes, &state, "");
        let marked = all.filter_map(|class| {
            let value = class.value();
            let created = value["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
            is_marked(&value, self.marks).then_some((Reverse(created), class))
        });
        // Classes come in the order of their names, and the first of equals is kept.
        marked.min_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, class)| class)
    }
}

fn classes(resources: &Resources, group: &str, plural: &str) -> Arc<KindCache> {
    resources.builtin(group, "v1", plural).cache().expect("a kind that is stored").clone()
}

fn is_marked(class: &Value, marks: &[&str]) -> bool {
    marks.iter().any(|mark| class["metadata"]["annotations"][*mark] == "true")
}

#[async_trait]
impl Plugin for DefaultClass {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        let (group, plural) = self.of;
        if request.operation != Operation::Create
            || !request.is(group, plural)
            || !request.subresource.is_empty()
        {
            return Ok(());
        }
        let object = &mut *request.object;
        // An empty class is a choice too: none.
        let chooses =
            !object["spec"][self.field].is_null() || !object["metadata"]["annotations"][self.older].is_null();
        if !chooses && let Some(class) = self.default() {
            object["spec"][self.field] = json!(class.name());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_marked_by_an_annotation() {
        let class = |key: &str, value: &str| json!({ "metadata": { "annotations": { key: value } } });
        assert!(is_marked(&class("a", "true"), &["b", "a"]));
        assert!(!is_marked(&class("a", "false"), &["a"]) && !is_marked(&class("c", "true"), &["a"]));
        assert!(!is_marked(&json!({}), &["a"]));
    }
}
