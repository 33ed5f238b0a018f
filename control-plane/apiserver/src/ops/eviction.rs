//! Evictions: deletions that disruption budgets allow (the `eviction` subresource of pods).
//!
//! An eviction is taken off the budget before the pod goes, by a write that holds against others, and is noted there: the
//! next one finds less, whether or not the budget's controller has counted meanwhile.

use std::sync::Arc;

use hawser_api::{
    Error, GroupVersionResource, client::Propagation, patch::PatchType, resource::Target,
    schema::FieldValidation, selector::LabelSelector,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Call, Reply, WriteOptions, Written};
use crate::{
    ApiServer,
    auth::{APISERVER, SYSTEM_MASTERS, User},
    cache::{CachedObject, Selection},
    codec::Patch,
    registry::{Change, DeleteRequest, Part},
};

const PODS: GroupVersionResource = GroupVersionResource::fixed("", "v1", "pods");
const BUDGETS: GroupVersionResource = GroupVersionResource::fixed("policy", "v1", "poddisruptionbudgets");

/// Attempts to take an eviction off a budget that others write at the same time.
const ATTEMPTS: usize = 16;
/// Evictions that a controller has not seen yet; more are not let through (as upstream).
const MAX_DISRUPTED: usize = 2000;
/// When a budget that is not counted yet is worth another look.
const RETRY_SECONDS: u32 = 10;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl ApiServer {
    /// Deletes a pod unless a disruption budget forbids it now.
    pub(super) async fn evict(&self, call: &Call, eviction: &Value) -> Result<Written, Error> {
        let (namespace, name) = call.place()?;
        let pod = self.registry().get(&call.pass, &call.resource, (namespace, name), "").await?;
        let options = &eviction["deleteOptions"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let request = DeleteRequest {
            grace_period_seconds: options["gracePeriodSeconds"].as_i64(),
            propagation: options["propagationPolicy"].as_str().and_then(|name| match name {
                "Foreground" => Some(Propagation::Foreground),
                "Orphan" => Some(Propagation::Orphan),
                "Background" => Some(Propagation::Background),
                _ => None,
            }),
            uid: text(&options["preconditions"]["uid"]),
            resource_version: text(&options["preconditions"]["resourceVersion"]),
            dry_run: options["dryRun"][0] == "All",
        };
        self.charge_budget(namespace, &pod, request.dry_run).await?;
        let request = self.mark_evicted((namespace, name), &pod, request).await?;
        self.registry().delete(&call.pass, &call.resource, (namespace, name), &request).await?;
        Ok(Written {
            reply: Reply::Value(
                json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
            ),
            created: true,
            warnings: Vec::new(),
        })
    }

    /// Gives the pod the condition by which controllers know that it does not end by itself, and returns the request
    /// for the pod as it is then. One that is not about the pod as it is now is left to its refusal.
    async fn mark_evicted(
        &self,
        place: (&str, &str),
        pod: &CachedObject,
        request: DeleteRequest,
    ) -> Result<DeleteRequest, Error> {
        let pod = pod.encoded().tree();
        let uid = pod["metadata"]["uid"].as_str().map(str::to_owned);
        let is_other = |wanted: &Option<String>, field: &str| {
            wanted.as_deref().is_some_and(|wanted| pod["metadata"][field] != wanted)
        };
        if request.dry_run
            || is_other(&request.uid, "uid")
            || is_other(&request.resource_version, "resourceVersion")
        {
            return Ok(request);
        }
        let user = Arc::new(User::named(APISERVER, &[SYSTEM_MASTERS]));
        let target = Target::object(PODS, Some(place.0), place.1).with_subresource("status");
        let call = self.enter(&user, "patch", target, "")?;
        let options = WriteOptions { uid, ..WriteOptions::default() }.for_update(&call)?;
        let change = Change::Patch(Patch {
            kind: PatchType::StrategicMerge,
            body: json!({ "status": { "conditions": [evicted()] } }).to_string().into(),
            validation: FieldValidation::Ignore,
        });
        let marked =
            self.registry().update(&call.pass, &call.resource, place, Part::Status, change, &options).await?;
        let version = marked.object.value()["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        Ok(DeleteRequest { resource_version: request.resource_version.and(version), ..request })
    }

    /// Takes the pod off the budget that selects it, or refuses; pods that do not run are never protected.
    async fn charge_budget(&self, namespace: &str, pod: &CachedObject, dry_run: bool) -> Result<(), Error> {
        let pod = pod.encoded().tree();
        let phase = pod["status"]["phase"].as_str();
        if matches!(phase, Some("Succeeded" | "Failed" | "Pending"))
            || pod["metadata"]["deletionTimestamp"].is_string()
        {
            return Ok(());
        }
        let mut budgets = self.budgets_of(namespace, &pod)?;
        let Some(mut budget) = budgets.pop() else { return Ok(()) };
        if !budgets.is_empty() {
            return Err(Error::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let name = budget.name().to_owned();
        let user = Arc::new(User::named(APISERVER, &[SYSTEM_MASTERS]));
        let target = Target::object(BUDGETS, Some(namespace), &name).with_subresource("status");
        let call = self.enter(&user, "update", target, "")?;
        for _ in 0..ATTEMPTS {
            // A write from before the pod was read may not be in the cache yet: the store decides.
            budget = self.registry().get(&call.pass, &call.resource, (namespace, &name), "").await?;
            let Some(charged) = charged(budget.value(), &pod)? else { return Ok(()) };
            let options = WriteOptions { dry_run, ..WriteOptions::default() }.for_update(&call)?;
            let change = Change::Replace(charged);
            let place = (namespace, name.as_str());
            match self
                .registry()
                .update(&call.pass, &call.resource, place, Part::Status, change, &options)
                .await
            {
                Err(error) if error.is_conflict() => {}
                written => return written.map(drop),
            }
        }
        Err(refusal(&format!("The disruption budget {name} is written by many others now."), RETRY_SECONDS))
    }

    fn budgets_of(&self, namespace: &str, pod: &Value) -> Result<Vec<Arc<CachedObject>>, Error> {
        let resource = self.registry().resources().builtin("policy", "v1", "poddisruptionbudgets");
        let cache = resource.cache()?;
        let mut found = Vec::new();
        for budget in Selection::within(Some(namespace)).select(cache, &cache.snapshot().state, "") {
            let selector = LabelSelector::from_value(budget.kept()["spec"].get("selector"))
                .map_err(|error| Error::internal(format!("budget {}: {error}", budget.name())))?;
            if selector.matches_object(pod) {
                found.push(budget);
            }
        }
        Ok(found)
    }
}

/// The budget with one disruption less, and the pod noted; `None` where the pod may go without.
fn charged(mut budget: Value, pod: &Value) -> Result<Option<Value>, Error> {
    let status = &budget["status"];
    let number = |field: &str| status[field].as_i64().unwrap_or_default();
    let name = budget["metadata"]["name"].as_str().unwrap_or_default();
    let (healthy, needed) = (number("currentHealthy"), number("desiredHealthy"));
    // Who is not ready keeps no budget, where enough others are (KEP-3017).
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    if !is_ready(pod) && (always || (needed > 0 && healthy >= needed)) {
        return Ok(None);
    }
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or_default() {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refusal(&why, RETRY_SECONDS));
    }
    let allowed = number("disruptionsAllowed");
    if allowed <= 0 {
        let why =
            format!("The disruption budget {name} needs {needed} healthy pods and has {healthy} currently");
        return Err(refusal(&why, 0));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() >= MAX_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Error::forbidden(&BUDGETS, name, why));
    }
    let evicted = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let now = Timestamp::from_second(Timestamp::now().as_second()).map_err(Error::internal)?;
    budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
    budget["status"]["disruptedPods"][evicted] = json!(now.to_string());
    Ok(Some(budget))
}

/// Upstream's words.
fn evicted() -> Value {
    json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": Timestamp::from_second(Timestamp::now().as_second()).map(|now| now.to_string()).ok(),
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|is| is["type"] == "Ready" && is["status"] == "True")
}

fn refusal(why: &str, retry_seconds: u32) -> Error {
    Error::too_many_requests_because(REFUSED, retry_seconds, "DisruptionBudget", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str) -> Value {
        json!({
            "metadata": { "name": "web" },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
        })
    }

    fn budget(allowed: i64, healthy: i64, needed: i64) -> Value {
        json!({
            "metadata": { "name": "b", "generation": 2 },
            "spec": {},
            "status": { "observedGeneration": 2, "disruptionsAllowed": allowed, "currentHealthy": healthy,
                        "desiredHealthy": needed },
        })
    }

    #[track_caller]
    fn refused(budget: Value, why: &str) {
        let error = charged(budget, &pod("True")).expect_err("refused");
        assert_eq!((error.code(), error.message()), (429, REFUSED));
        let cause = &error.to_status()["details"]["causes"][0];
        assert_eq!(
            (cause["reason"].as_str(), cause["message"].as_str()),
            (Some("DisruptionBudget"), Some(why))
        );
    }

    #[test]
    fn an_eviction_is_taken_off_the_budget_and_noted() {
        let left = charged(budget(2, 5, 3), &pod("True")).expect("allowed").expect("a budget to write");
        assert_eq!(left["status"]["disruptionsAllowed"], 1);
        assert!(left["status"]["disruptedPods"]["web"].is_string());
    }

    #[test]
    fn a_budget_without_room_or_count_refuses() {
        refused(budget(0, 3, 3), "The disruption budget b needs 3 healthy pods and has 3 currently");
        let mut changed = budget(1, 3, 2);
        changed["metadata"]["generation"] = 3.into();
        refused(changed, "The disruption budget b is still being processed by the server.");
        let mut full = budget(1, 3, 2);
        full["status"]["disruptedPods"] =
            (0..MAX_DISRUPTED).map(|n| (n.to_string(), json!("2026-01-01T00:00:00Z"))).collect();
        assert_eq!(charged(full, &pod("True")).expect_err("too many").code(), 403);
    }

    #[test]
    fn pods_that_are_not_ready_go_where_enough_others_are() {
        assert_eq!(charged(budget(0, 3, 3), &pod("False")).expect("allowed"), None);
        charged(budget(0, 2, 3), &pod("False")).expect_err("too few are healthy");
        let mut always = budget(0, 2, 3);
        always["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        assert_eq!(charged(always, &pod("False")).expect("allowed"), None);
    }
}
