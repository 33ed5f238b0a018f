//! Priority: a pod's priority class becomes its priority.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Operation, Plugin, Request};
use crate::{
    cache::{Cache, CachedObject, KindCache, Selection},
    resources::Resources,
};

const PREEMPTING: &str = "PreemptLowerPriority";

pub(super) struct Priority {
    cache: Arc<Cache>,
    classes: Arc<KindCache>,
}

impl Priority {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let classes = resources.builtin("scheduling.k8s.io", "v1", "priorityclasses");
        Self { cache: cache.clone(), classes: classes.cache().expect("a kind that is stored").clone() }
    }

    async fn find(&self, name: &str) -> Result<Option<Arc<CachedObject>>, Error> {
        if self.classes.get("", name).is_none() {
            self.cache.consistent().await?;
        }
        Ok(self.classes.get("", name))
    }

    /// The class for pods that name none: of several, the lowest.
    fn default_class(&self) -> Option<Arc<CachedObject>> {
        Selection::default()
            .select(&self.classes, &self.classes.snapshot().state, "")
            .filter(|class| class.kept()["globalDefault"] == true)
            .min_by_key(|class| class.kept()["value"].as_i64())
    }
}

/// What an update leaves out of what follows from the class stays as it is.
fn keep(old: &Value, new: &mut Value) {
    for field in ["priority", "preemptionPolicy"] {
        if new[field].is_null() && !old[field].is_null() {
            new[field] = old[field].clone();
        }
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if let (true, Some(old)) = (request.updates("pods"), request.old) {
            keep(&old["spec"], &mut request.object["spec"]);
        }
        if !request.creates("pods") {
            return Ok(());
        }
        let named = request.object["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class =
            if named.is_empty() {
                self.default_class()
            } else {
                let found = self.find(&named).await?;
                Some(found.ok_or_else(|| {
                    request.forbidden(&format!("no PriorityClass with name {named} was found"))
                })?)
            };
        let class = class.as_deref().map(CachedObject::kept);
        let value = class.and_then(|class| class["value"].as_i64()).unwrap_or(0);
        let policy =
            class.and_then(|class| class["preemptionPolicy"].as_str()).unwrap_or(PREEMPTING).to_owned();
        let spec = &request.object["spec"];
        if spec["priority"].as_i64().is_some_and(|given| given != value) {
            return Err(request.forbidden(&format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name",
                spec["priority"]
            )));
        }
        if spec["preemptionPolicy"].as_str().is_some_and(|given| given != policy) {
            return Err(request.forbidden(
                "the string value of PreemptionPolicy must not be provided in pod spec; priority admission controller \
                 computed another one from the given PriorityClass name",
            ));
        }
        if named.is_empty()
            && let Some(class) = class
        {
            request.object["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
        }
        request.object["spec"]["priority"] = json!(value);
        request.object["spec"]["preemptionPolicy"] = json!(policy);
        Ok(())
    }

    /// One class at most is for pods that name none.
    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes
            || !request.is("scheduling.k8s.io", "priorityclasses")
            || request.object["globalDefault"] != true
        {
            return Ok(());
        }
        match self.default_class() {
            Some(class) => one_default(request.operation, request.object, class.kept())
                .map_err(|why| request.forbidden(&why)),
            None => Ok(()),
        }
    }
}

/// Refuses a class for pods that name none where `other` is one, unless that is the class itself, as it was.
fn one_default(operation: Operation, class: &Value, other: &Value) -> Result<(), String> {
    let name = &other["metadata"]["name"];
    if operation == Operation::Update && *name == class["metadata"]["name"] {
        return Ok(());
    }
    let name = name.as_str().unwrap_or_default();
    Err(format!("PriorityClass {name} is already marked as default. Only one default can exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_is_the_default() {
        let class = |name: &str| json!({ "metadata": { "name": name }, "globalDefault": true });
        let taken = "PriorityClass low is already marked as default. Only one default can exist";
        for (operation, name, refused) in [
            (Operation::Create, "high", true),
            (Operation::Update, "high", true),
            (Operation::Update, "low", false),
        ] {
            let expected = if refused { Err(taken.to_owned()) } else { Ok(()) };
            assert_eq!(one_default(operation, &class(name), &class("low")), expected, "{operation:?} {name}");
        }
    }
}
