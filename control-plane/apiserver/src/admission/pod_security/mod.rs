//! PodSecurity: the Pod Security Standards, as a namespace's labels ask for them.
//!
//! Pods are refused by the level to enforce, and warned of by the level to warn of; of workloads the template is looked
//! at, and only warned of. Labels of namespaces are checked, and where a namespace becomes stricter, its author is told of
//! the pods there that break the rules. There is no audit log to write to, so `audit` is checked and has no effect.
//! Nothing is exempt but what asks for nothing: a namespace without such labels costs a look at its labels.

mod checks;
mod policy;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::Value;

use super::{Operation, Plugin, Request, elements, warnings::warn};
use crate::{
    cache::{KindCache, Selection},
    resources::Resources,
};
use checks::evaluate;
use policy::{Level, Policy, Standard};

/// Pods of a namespace that are looked at when it becomes stricter.
const MAX_PODS: usize = 3_000;

/// Part of the key of an annotation that says what a container may not use, before there was a field.
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

pub(super) struct PodSecurity {
    namespaces: Arc<KindCache>,
    pods: Arc<KindCache>,
}

impl PodSecurity {
    pub(super) fn new(resources: &Resources) -> Self {
        let kind =
            |plural| resources.builtin("", "v1", plural).cache().expect("a kind that is stored").clone();
        Self { namespaces: kind("namespaces"), pods: kind("pods") }
    }

    fn policy(&self, namespace: &str) -> Policy {
        let namespace = self.namespaces.get("", namespace);
        // Labels that were wrong before they were checked mean what `Policy::parse` makes of them.
        namespace.map(|namespace| Policy::parse(|key| namespace.label(key)).0).unwrap_or_default()
    }

    fn check_pod(&self, request: &Request<'_>) -> Result<(), Error> {
        let policy = self.policy(request.namespace);
        let pod = &*request.object;
        if request.old.is_some_and(|old| !matters(pod, old)) {
            return Ok(());
        }
        let broken = evaluate(policy.enforce, &pod["metadata"], &pod["spec"]);
        if !broken.is_empty() {
            let detail = broken.detail();
            return Err(request.forbidden(&format!("violates PodSecurity \"{}\": {detail}", policy.enforce)));
        }
        warn_of(policy.warn, &pod["metadata"], &pod["spec"]);
        Ok(())
    }

    fn check_template(&self, request: &Request<'_>, template: &Value) {
        let policy = self.policy(request.namespace);
        if policy.warn.level != Level::Privileged && template["spec"].is_object() {
            warn_of(policy.warn, &template["metadata"], &template["spec"]);
        }
    }

    fn check_namespace(&self, request: &Request<'_>) -> Result<(), Error> {
        let parse = |namespace: &Value| {
            let labels = &namespace["metadata"]["labels"];
            Policy::parse(|key| labels[key].as_str())
        };
        let (policy, errors) = parse(request.object);
        let before = request.old.map(parse);
        let is_told = before.as_ref().is_some_and(|(_, known)| *known == errors);
        if !errors.is_empty() && !is_told {
            let row = request.resource.row;
            return Err(Error::invalid(row.group, row.kind, request.name, &errors));
        }
        let Some((before, _)) = before else { return Ok(()) };
        let (new, old) = (policy.enforce, before.enforce);
        let is_relaxed = new.version == old.version && new.level <= old.level;
        if new != old && new.level != Level::Privileged && !is_relaxed {
            self.warn_of_pods(request.name, new);
        }
        Ok(())
    }

    /// Tells which pods of the namespace break the rules that are to be enforced from now on.
    fn warn_of_pods(&self, namespace: &str, enforce: Standard) {
        let state = self.pods.snapshot().state;
        let mut pods = Selection::within(Some(namespace)).select(&self.pods, &state, "");
        let mut broken: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.by_ref().take(MAX_PODS) {
            let value = pod.value();
            let reasons = evaluate(enforce, &value["metadata"], &value["spec"]);
            if !reasons.is_empty() {
                // Pods come in the order of their names: the first is the one to be named.
                broken.entry(reasons.reasons()).or_insert_with(|| (pod.name().to_owned(), 0)).1 += 1;
            }
        }
        let left = pods.count();
        if left > 0 {
            warn(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
                MAX_PODS + left
            ));
        }
        if !broken.is_empty() {
            warn(format!(
                "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
            ));
        }
        let mut lines: Vec<String> = broken
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                _ => format!("{name} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        lines.sort();
        lines.into_iter().for_each(warn);
    }
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let row = request.resource.row;
        let (object, is_whole) = (&*request.object, request.subresource.is_empty());
        match (row.group, row.plural) {
            ("", "namespaces") if is_whole => return self.check_namespace(request),
            // Another part than these may change what the pod runs.
            ("", "pods") if !matches!(request.subresource, "binding" | "status" | "eviction") => {
                return self.check_pod(request);
            }
            ("", "replicationcontrollers") if is_whole => {
                self.check_template(request, &object["spec"]["template"])
            }
            ("", "podtemplates") if is_whole => self.check_template(request, &object["template"]),
            ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets") | ("batch", "jobs")
                if is_whole =>
            {
                self.check_template(request, &object["spec"]["template"]);
            }
            ("batch", "cronjobs") if is_whole => {
                self.check_template(request, &object["spec"]["jobTemplate"]["spec"]["template"]);
            }
            _ => {}
        }
        Ok(())
    }
}

fn warn_of(standard: Standard, metadata: &Value, spec: &Value) {
    let broken = evaluate(standard, metadata, spec);
    if !broken.is_empty() {
        warn(format!("would violate PodSecurity \"{standard}\": {}", broken.detail()));
    }
}

/// Whether an update of a pod can change what the standards say of it: images and containers; all else is immutable or
/// of no account.
fn matters(pod: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, key: &str| pod["metadata"]["annotations"][key].clone();
    if annotation(pod, SECCOMP_POD) != annotation(old, SECCOMP_POD) {
        return true;
    }
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|list| {
        let (new, known) = (elements(&pod["spec"][*list]), elements(&old["spec"][*list]));
        new.len() != known.len()
            || new.iter().zip(known).any(|(new, known)| {
                let key = format!("{SECCOMP_CONTAINER}{}", new["name"].as_str().unwrap_or_default());
                new["image"] != known["image"]
                    || new["name"] != known["name"]
                    || annotation(pod, &key) != annotation(old, &key)
            })
    })
}

#[cfg(test)]
mod tests;
