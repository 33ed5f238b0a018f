//! RuntimeClass: a pod costs and goes where its runtime class says.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Error, usage::amounts};
use serde_json::{Value, json};

use super::{Plugin, Request, elements};
use crate::{
    cache::{Cache, KindCache},
    resources::Resources,
};

pub(super) struct RuntimeClass {
    cache: Arc<Cache>,
    classes: Arc<KindCache>,
}

impl RuntimeClass {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let classes = resources.builtin("node.k8s.io", "v1", "runtimeclasses");
        Self { cache: cache.clone(), classes: classes.cache().expect("a kind that is stored").clone() }
    }

    /// The class that the pod names; null where it names none.
    async fn class_of(&self, request: &Request<'_>) -> Result<Value, Error> {
        let name = request.object["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Ok(Value::Null);
        }
        if self.classes.get("", &name).is_none() {
            self.cache.consistent().await?;
        }
        let found = self.classes.get("", &name).map(|class| class.value());
        found.ok_or_else(|| request.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")))
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if !request.creates("pods") {
            return Ok(());
        }
        let class = self.class_of(request).await?;
        if class.is_null() {
            return Ok(());
        }
        apply(request.object, &class).map_err(|why| request.forbidden(&why))
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !request.creates("pods") || request.object["spec"]["overhead"].is_null() {
            return Ok(());
        }
        let class = self.class_of(request).await?;
        check_overhead(request.object, &class).map_err(|why| request.forbidden(why))
    }
}

/// Gives the pod its class's overhead, node selector and tolerations; an error where they contradict its own.
fn apply(pod: &mut Value, class: &Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    if overhead.is_object() {
        let own = amounts(&pod["spec"]["overhead"]);
        if !own.is_empty() && own != amounts(overhead) {
            return Err(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned()
            );
        }
        pod["spec"]["overhead"] = overhead.clone();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let selector = &mut pod["spec"]["nodeSelector"];
        if selector.is_null() {
            *selector = json!({});
        }
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            ));
        }
        selector[key] = value.clone();
    }
    let own = elements(&pod["spec"]["tolerations"]);
    let more: Vec<Value> = elements(&scheduling["tolerations"])
        .iter()
        .filter(|toleration| !own.contains(toleration))
        .cloned()
        .collect();
    if !more.is_empty() {
        pod["spec"]["tolerations"] = own.iter().cloned().chain(more).collect();
    }
    Ok(())
}

fn check_overhead(pod: &Value, class: &Value) -> Result<(), &'static str> {
    let (own, overhead) = (amounts(&pod["spec"]["overhead"]), &class["overhead"]["podFixed"]);
    if own.is_empty() {
        return Ok(());
    }
    if !overhead.is_object() {
        return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead");
    }
    if own != amounts(overhead) {
        return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_what_its_class_says_and_nothing_that_contradicts_it() {
        let class = json!({
            "overhead": { "podFixed": { "cpu": "250m" } },
            "scheduling": {
                "nodeSelector": { "runtime": "vm" },
                "tolerations": [{ "key": "vm", "operator": "Exists" }],
            },
        });
        let mut pod = json!({ "spec": { "nodeSelector": { "disk": "ssd" } } });
        apply(&mut pod, &class).expect("nothing contradicts");
        assert_eq!(
            pod["spec"],
            json!({
                "nodeSelector": { "disk": "ssd", "runtime": "vm" },
                "overhead": { "cpu": "250m" },
                "tolerations": [{ "key": "vm", "operator": "Exists" }],
            })
        );
        let before = pod.clone();
        apply(&mut pod, &class).expect("nothing contradicts");
        assert_eq!(pod, before, "a second run changes nothing");
        assert_eq!(check_overhead(&pod, &class), Ok(()));
        let mut other = json!({ "spec": { "nodeSelector": { "runtime": "plain" } } });
        assert_eq!(
            apply(&mut other, &class).expect_err("a contradiction"),
            "conflict: runtimeClass.scheduling.nodeSelector[runtime] = vm; pod.spec.nodeSelector[runtime] = plain"
        );
        let dear = json!({ "spec": { "overhead": { "cpu": "1" } } });
        assert!(apply(&mut dear.clone(), &class).is_err() && check_overhead(&dear, &class).is_err());
        assert_eq!(
            check_overhead(&dear, &Value::Null),
            Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        );
    }
}
