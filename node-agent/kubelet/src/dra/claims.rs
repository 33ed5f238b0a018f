//! Which claims a pod has, whether it may use them, and what of them each container gets: pure, by upstream's rules.

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::pod::{DesiredContainer, DesiredPod};

/// A claim that a pod names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    /// Its name within the pod; `None` for the one that stands for extended resources (KEP-5004).
    pub local_name: Option<String>,
    /// Name of the ResourceClaim.
    pub name: String,
    /// It was made for this pod, and no other's will do.
    pub is_own: bool,
}

/// The claims of a pod. One that turned out not to be needed is left out.
///
/// # Errors
/// One is still to be made from its template.
pub fn of_pod(pod: &DesiredPod) -> Result<Vec<PodClaim>, String> {
    let mut claims = Vec::new();
    let status = pod.object.status.as_ref();
    for claim in pod.spec().resource_claims.iter().flatten() {
        let local_name = Some(claim.name.clone());
        if let Some(name) = &claim.resource_claim_name {
            claims.push(PodClaim { local_name, name: name.clone(), is_own: false });
            continue;
        }
        let made = status.and_then(|status| status.resource_claim_statuses.as_ref());
        let made = made.into_iter().flatten().find(|made| made.name == claim.name);
        let made = made.ok_or_else(|| {
            format!(
                "pod {}/{}, claim {}: ResourceClaim not created yet",
                pod.namespace(),
                pod.name(),
                claim.name
            )
        })?;
        if let Some(name) = &made.resource_claim_name {
            claims.push(PodClaim { local_name, name: name.clone(), is_own: true });
        }
    }
    if let Some(extended) = status.and_then(|status| status.extended_resource_claim_status.as_ref()) {
        let name = extended.resource_claim_name.clone();
        claims.push(PodClaim { local_name: None, name, is_own: true });
    }
    Ok(claims)
}

/// The drivers that have to prepare the claim.
///
/// # Errors
/// The pod may not use it.
pub fn check(pod: &DesiredPod, claim: &PodClaim, object: &ResourceClaim) -> Result<BTreeSet<String>, String> {
    let meta = &object.metadata;
    let owners = meta.owner_references.iter().flatten();
    if claim.is_own
        && !owners.into_iter().any(|owner| owner.uid == pod.uid() && owner.controller == Some(true))
    {
        return Err(format!(
            "ResourceClaim {}/{} was not created for pod {}/{} (pod is not owner)",
            pod.namespace(),
            claim.name,
            pod.namespace(),
            pod.name()
        ));
    }
    let status = object.status.as_ref();
    let reserved = status.and_then(|status| status.reserved_for.as_ref()).into_iter().flatten();
    if !reserved.into_iter().any(|user| user.uid == pod.uid()) {
        return Err(format!(
            "pod {}({}) is not allowed to use ResourceClaim {}({})",
            pod.name(),
            pod.uid(),
            claim.name,
            meta.uid.as_deref().unwrap_or_default()
        ));
    }
    let allocation = status.and_then(|status| status.allocation.as_ref());
    let allocation = allocation.ok_or_else(|| format!("ResourceClaim {} is not allocated", claim.name))?;
    let results = allocation.devices.as_ref().and_then(|devices| devices.results.as_ref());
    Ok(results.into_iter().flatten().map(|result| result.driver.clone()).collect())
}

/// Name of the claim and, where not all of it, the request that a container uses.
pub fn of_container(
    pod: &DesiredPod,
    container: &DesiredContainer,
    claims: &[PodClaim],
) -> Vec<(String, Option<String>)> {
    let mut used = Vec::new();
    let named = container.spec.resources.as_ref().and_then(|resources| resources.claims.as_ref());
    for wanted in named.into_iter().flatten() {
        let claims = claims.iter().filter(|claim| claim.local_name.as_ref() == Some(&wanted.name));
        used.extend(claims.map(|claim| (claim.name.clone(), wanted.request.clone())));
    }
    let status = pod.object.status.as_ref();
    if let Some(extended) = status.and_then(|status| status.extended_resource_claim_status.as_ref()) {
        let own =
            extended.request_mappings.iter().filter(|mapping| mapping.container_name == container.name());
        used.extend(
            own.map(|mapping| (extended.resource_claim_name.clone(), Some(mapping.request_name.clone()))),
        );
    }
    used
}

/// Whether a device that was prepared for requests of these names (none: for all) is one of the wanted request's. A
/// request that had alternatives is `<request>/<subrequest>` where it was prepared.
pub fn serves(prepared_for: &[String], wanted: Option<&str>) -> bool {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return true };
    let is_wanted =
        |name: &String| name == wanted || name.split_once('/').is_some_and(|(request, _)| request == wanted);
    prepared_for.is_empty() || prepared_for.iter().any(is_wanted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{
        Pod, PodResourceClaim, PodResourceClaimStatus, PodStatus, ResourceRequirements,
    };
    use serde_json::json;

    use super::*;
    use crate::pod::testing::{UID, container, pod_object, spec};

    fn pod(claims: &[(&str, Option<&str>)], statuses: &[(&str, Option<&str>)]) -> DesiredPod {
        let mut main = container("main");
        let wanted = serde_json::from_value(json!([{ "name": "gpu", "request": "one" }, { "name": "net" }]));
        main.resources = Some(ResourceRequirements { claims: wanted.expect("claims"), ..Default::default() });
        let mut spec = spec("Always", vec![], vec![main]);
        let claim = |(name, claim): &(&str, Option<&str>)| PodResourceClaim {
            name: (*name).to_owned(),
            resource_claim_name: claim.map(str::to_owned),
            resource_claim_template_name: claim.is_none().then(|| "template".to_owned()),
        };
        spec.resource_claims = Some(claims.iter().map(claim).collect());
        let made = statuses.iter().map(|(name, claim)| PodResourceClaimStatus {
            name: (*name).to_owned(),
            resource_claim_name: claim.map(str::to_owned),
        });
        let status = PodStatus { resource_claim_statuses: Some(made.collect()), ..PodStatus::default() };
        DesiredPod::new(Arc::new(Pod { status: Some(status), ..pod_object(spec) }))
    }

    fn claim(owner: &str, reserved_for: &str, allocated: bool) -> ResourceClaim {
        let allocation = json!({ "devices": { "results": [
            { "request": "one", "driver": "b.test", "pool": "p", "device": "d1" },
            { "request": "two", "driver": "a.test", "pool": "p", "device": "d2" },
            { "request": "two", "driver": "b.test", "pool": "p", "device": "d3" },
        ] } });
        let object = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "name": "c", "uid": "claim-uid", "ownerReferences": [
                { "apiVersion": "v1", "kind": "Pod", "name": "web", "uid": owner, "controller": true },
            ] },
            "spec": {},
            "status": {
                "reservedFor": [{ "resource": "pods", "name": "web", "uid": reserved_for }],
                "allocation": allocated.then_some(allocation),
            },
        });
        serde_json::from_value(object).expect("a claim")
    }

    #[test]
    fn claims_are_found_by_name_or_as_they_were_made() {
        let named = |pod: &DesiredPod| -> Result<Vec<(String, bool)>, String> {
            Ok(of_pod(pod)?.into_iter().map(|claim| (claim.name, claim.is_own)).collect())
        };
        let both = pod(&[("gpu", Some("shared")), ("net", None)], &[("net", Some("web-net-x"))]);
        assert_eq!(named(&both), Ok(vec![("shared".into(), false), ("web-net-x".into(), true)]));
        assert_eq!(named(&pod(&[("net", None)], &[("net", None)])), Ok(vec![]), "none was needed");
        let early = named(&pod(&[("net", None)], &[])).expect_err("not there yet");
        assert!(early.ends_with("ResourceClaim not created yet"), "{early}");
        let used = of_container(&both, &both.containers[0], &of_pod(&both).expect("both"));
        assert_eq!(used, [("shared".into(), Some("one".into())), ("web-net-x".into(), None)]);
    }

    #[test]
    fn only_a_pod_that_it_is_allocated_and_reserved_for_may_use_a_claim() {
        let pod = pod(&[("gpu", Some("c"))], &[]);
        let shared = PodClaim { local_name: Some("gpu".into()), name: "c".into(), is_own: false };
        let own = PodClaim { is_own: true, ..shared.clone() };
        let drivers = check(&pod, &shared, &claim("other", UID, true)).expect("allowed");
        assert_eq!(drivers.into_iter().collect::<Vec<_>>(), ["a.test", "b.test"]);
        check(&pod, &own, &claim(UID, UID, true)).expect("allowed");
        let refused =
            |claim: &PodClaim, object: ResourceClaim| check(&pod, claim, &object).expect_err("refused");
        assert!(refused(&own, claim("other", UID, true)).contains("pod is not owner"));
        let told = format!("pod web({UID}) is not allowed to use ResourceClaim c(claim-uid)");
        assert_eq!(refused(&shared, claim(UID, "other", true)), told);
        assert_eq!(refused(&shared, claim(UID, UID, false)), "ResourceClaim c is not allocated");
    }

    #[test]
    fn requests_are_matched_with_their_alternatives() {
        let check = |prepared: &[&str], wanted: Option<&str>, expected: bool| {
            let prepared: Vec<String> = prepared.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(serves(&prepared, wanted), expected, "{prepared:?} {wanted:?}");
        };
        check(&["one"], None, true);
        check(&["one"], Some(""), true);
        check(&[], Some("one"), true);
        check(&["two", "one"], Some("one"), true);
        check(&["one/large"], Some("one"), true);
        check(&["one/large"], Some("on"), false);
        check(&["two"], Some("one"), false);
    }
}
