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

/// Attempts to take an eviction off a budget, or to evict a pod, that others write at the same time.
const ATTEMPTS: usize = 16;
/// Evictions that a controller has not seen yet; more are not let through (as upstream).
const MAX_DISRUPTED: usize = 2000;
/// When a budget that is not counted yet is worth another look.
const RETRY_SECONDS: u32 = 10;

const DISRUPTION_TARGET: &str = "DisruptionTarget";
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// What the leave to go rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Nothing that could change: a charge, that no budget is about it, or that it has ended.
    Given,
    /// It does not work, as it was read. Where it has changed since, a budget may protect it.
    AsRead,
}

impl ApiServer {
    /// Deletes a pod unless a disruption budget forbids it now.
    pub(super) async fn evict(
        &self,
        call: &Call,
        eviction: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let (namespace, name) = call.place()?;
        if eviction["metadata"]["name"] != name {
            return Err(Error::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut asked = request(eviction);
        asked.dry_run |= options.dry_run;
        for _ in 0..ATTEMPTS {
            let pod = self.registry().get(&call.pass, &call.resource, (namespace, name), "").await?;
            let leave = self.charge_budget(namespace, &pod, asked.dry_run).await?;
            let (request, is_ours) = conditioned(&asked, leave, &pod);
            let outcome = async {
                let request = self.mark_evicted((namespace, name), &pod, request).await?;
                self.registry().delete(&call.pass, &call.resource, (namespace, name), &request).await
            };
            match outcome.await {
                Err(error) if error.is_conflict() && is_ours => {}
                outcome => return outcome.map(|_| success()),
            }
        }
        Err(refusal("The pod is written by many others now.", RETRY_SECONDS))
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
            body: mark(&pod, request.resource_version.as_deref()).to_string().into(),
            validation: FieldValidation::Ignore,
        });
        let marked = self
            .registry()
            .update(&call.pass, &call.resource, place, Part::Status, &change, &options)
            .await?;
        let version = marked.object.value()["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        Ok(DeleteRequest { resource_version: request.resource_version.and(version), ..request })
    }

    /// Takes the pod off the budget that selects it, or refuses; pods that do not run are never protected.
    async fn charge_budget(
        &self,
        namespace: &str,
        pod: &CachedObject,
        dry_run: bool,
    ) -> Result<Leave, Error> {
        let pod = pod.encoded().tree();
        if let Some(leave) = unprotected(&pod) {
            return Ok(leave);
        }
        let mut budgets = self.budgets_of(namespace, &pod)?;
        let Some(mut budget) = budgets.pop() else { return Ok(Leave::Given) };
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
            let Some(charged) = charged(budget.value(), &pod)? else { return Ok(Leave::AsRead) };
            let options = WriteOptions { dry_run, ..WriteOptions::default() }.for_update(&call)?;
            let change = Change::Replace(charged);
            let place = (namespace, name.as_str());
            match self
                .registry()
                .update(&call.pass, &call.resource, place, Part::Status, &change, &options)
                .await
            {
                Err(error) if error.is_conflict() => {}
                written => return written.map(|_| Leave::Given),
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

/// The deletion that an Eviction asks for.
fn request(eviction: &Value) -> DeleteRequest {
    let options = &eviction["deleteOptions"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    DeleteRequest {
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
    }
}

fn success() -> Written {
    Written {
        reply: Reply::Value(
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 }),
        ),
        created: true,
        warnings: Vec::new(),
    }
}

/// The request for the pod as the leave was given, and whether that made it conditional: a conflict is ours to solve then.
fn conditioned(asked: &DeleteRequest, leave: Leave, pod: &CachedObject) -> (DeleteRequest, bool) {
    if leave == Leave::Given
        || asked.resource_version.is_some()
        || asked.uid.is_some() && asked.uid != uid_of(pod)
    {
        return (asked.clone(), false);
    }
    (DeleteRequest { resource_version: Some(pod.revision().to_string()), ..asked.clone() }, true)
}

fn uid_of(pod: &CachedObject) -> Option<String> {
    pod.encoded().tree()["metadata"]["uid"].as_str().map(str::to_owned)
}

/// The leave of pods that no budget is about: they run not yet, or no more.
fn unprotected(pod: &Value) -> Option<Leave> {
    match pod["status"]["phase"].as_str() {
        Some("Succeeded" | "Failed") => Some(Leave::Given),
        _ if pod["metadata"]["deletionTimestamp"].is_string() => Some(Leave::Given),
        Some("Pending") => Some(Leave::AsRead),
        _ => None,
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

/// The patch that gives a pod the condition, of this version alone where there is one. Words are upstream's; one that the
/// pod has already keeps its time.
fn mark(pod: &Value, version: Option<&str>) -> Value {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let known = conditions.find(|one| one["type"] == DISRUPTION_TARGET && one["status"] == "True");
    let since = known.map(|known| known["lastTransitionTime"].clone()).filter(Value::is_string);
    let now = || Timestamp::from_second(Timestamp::now().as_second()).map(|now| now.to_string()).ok();
    let condition = json!({
        "type": DISRUPTION_TARGET,
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": since.unwrap_or_else(|| json!(now())),
    });
    let mut patch = json!({ "status": { "conditions": [condition] } });
    if let Some(version) = version {
        patch["metadata"] = json!({ "resourceVersion": version });
    }
    patch
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

    #[test]
    fn pods_that_do_not_run_go_as_they_were_read() {
        let of_phase = |phase: &str| {
            let mut pod = pod("True");
            pod["status"]["phase"] = phase.into();
            unprotected(&pod)
        };
        assert_eq!(of_phase("Running"), None);
        assert_eq!(of_phase("Pending"), Some(Leave::AsRead));
        assert_eq!(of_phase("Succeeded"), Some(Leave::Given));
        let mut going = pod("True");
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(unprotected(&going), Some(Leave::Given));
    }

    #[test]
    fn a_leave_for_the_pod_as_it_was_read_is_held_to_that() {
        let json: bytes::Bytes = json!({ "metadata": { "name": "web", "uid": "1" } }).to_string().into();
        let pod = CachedObject::parse("/registry/pods/default/web".into(), &json, 7).expect("an object");
        let version = |asked: &DeleteRequest, leave| {
            let (request, is_ours) = conditioned(asked, leave, &pod);
            (request.resource_version, is_ours)
        };
        let plain = DeleteRequest::default();
        assert_eq!(version(&plain, Leave::Given), (None, false));
        assert_eq!(version(&plain, Leave::AsRead), (Some("7".to_owned()), true));
        let own = DeleteRequest { resource_version: Some("6".to_owned()), ..DeleteRequest::default() };
        assert_eq!(version(&own, Leave::AsRead), (Some("6".to_owned()), false));
        let other = DeleteRequest { uid: Some("2".to_owned()), ..DeleteRequest::default() };
        assert_eq!(version(&other, Leave::AsRead), (None, false));
    }

    #[test]
    fn a_mark_is_for_the_version_that_is_meant_and_keeps_its_time() {
        let mut pod = pod("True");
        assert!(mark(&pod, None).get("metadata").is_none());
        assert_eq!(mark(&pod, Some("7"))["metadata"]["resourceVersion"], "7");
        let time = |pod: &Value| mark(pod, None)["status"]["conditions"][0]["lastTransitionTime"].clone();
        for (status, is_kept) in [("True", true), ("False", false)] {
            pod["status"]["conditions"][0] = json!({
                "type": "DisruptionTarget", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            assert_eq!(time(&pod) == "2026-01-01T00:00:00Z", is_kept, "{status}");
            assert!(time(&pod).is_string());
        }
    }
}
