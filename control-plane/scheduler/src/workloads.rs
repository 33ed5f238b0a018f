//! Which pods are of one workload, for spread constraints that the cluster has for all pods.
//!
//! As upstream: those that the Services which select the pod select, and its ReplicationController, ReplicaSet or
//! StatefulSet. A pod is of none where these say nothing. Services are found by a label that they ask for, so a pod costs
//! its labels, however many there are. Bounded by the objects of the cluster.

use std::collections::{BTreeSet, HashMap};

use hawser_api::{resource::ObjectKey, selector::LabelSelector};
use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorObject,
};

use crate::pod::Labels;

/// A pod's controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Controller {
    pub(crate) kind: ControllerKind,
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ControllerKind {
    ReplicationController,
    ReplicaSet,
    StatefulSet,
}

#[derive(Debug, Default)]
pub(crate) struct Workloads {
    /// By namespace.
    services: HashMap<String, Services>,
    controllers: HashMap<String, HashMap<Controller, LabelSelector>>,
    /// Counts changes, for whoever keeps what was said of a pod.
    version: u64,
}

#[derive(Debug, Default)]
struct Services {
    /// By name; none is empty.
    selectors: HashMap<String, Labels>,
    /// Names by the first label that a service asks for: key, then value.
    by_label: HashMap<String, HashMap<String, BTreeSet<String>>>,
}

impl Controller {
    /// Of the kinds that select pods; others say nothing of workloads.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        let kind = match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("v1", "ReplicationController") => ControllerKind::ReplicationController,
            ("apps/v1", "ReplicaSet") => ControllerKind::ReplicaSet,
            ("apps/v1", "StatefulSet") => ControllerKind::StatefulSet,
            _ => return None,
        };
        Some(Self { kind, name: owner.name.clone() })
    }
}

impl Workloads {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn put_service(&mut self, service: &Service) {
        let key = ObjectKey::of(service);
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
        let known = self.services.get(&key.namespace).and_then(|all| all.selectors.get(&key.name));
        if known.map_or(selector.is_empty(), |known| *known == selector) {
            return;
        }
        self.remove_service(&key);
        if !selector.is_empty() {
            self.services.entry(key.namespace).or_default().add(key.name, selector);
            self.version += 1;
        }
    }

    pub(crate) fn remove_service(&mut self, key: &ObjectKey) {
        let Some(services) = self.services.get_mut(&key.namespace) else { return };
        if services.remove(&key.name) {
            self.version += 1;
        }
        if services.selectors.is_empty() {
            self.services.remove(&key.namespace);
        }
    }

    /// Takes over what a ReplicaSet or StatefulSet selects.
    pub(crate) fn put_set(
        &mut self,
        kind: ControllerKind,
        key: &ObjectKey,
        selector: Option<&SelectorObject>,
    ) {
        // The API server refuses what is no selector.
        let selector = LabelSelector::from_typed(selector).unwrap_or_else(|_| LabelSelector::nothing());
        self.put_controller(kind, key, selector);
    }

    pub(crate) fn put_replication_controller(&mut self, key: &ObjectKey, selector: Option<&Labels>) {
        let selector = selector.map_or_else(LabelSelector::nothing, LabelSelector::from_map);
        self.put_controller(ControllerKind::ReplicationController, key, selector);
    }

    pub(crate) fn remove_controller(&mut self, kind: ControllerKind, key: &ObjectKey) {
        let Some(controllers) = self.controllers.get_mut(&key.namespace) else { return };
        if controllers.remove(&Controller { kind, name: key.name.clone() }).is_some() {
            self.version += 1;
        }
        if controllers.is_empty() {
            self.controllers.remove(&key.namespace);
        }
    }

    /// What selects the pods of the workload that a pod with the labels is of; everything where it is of none.
    pub(crate) fn selector_of(
        &self,
        namespace: &str,
        labels: &Labels,
        controller: Option<&Controller>,
    ) -> LabelSelector {
        let mut equal = Labels::new();
        for selector in self.services.get(namespace).into_iter().flat_map(|all| all.selecting(labels)) {
            equal.extend(selector.clone());
        }
        let mut requirements = LabelSelector::from_map(&equal).requirements().to_vec();
        let of_controller = || self.controllers.get(namespace)?.get(controller?);
        for requirement in of_controller().into_iter().flat_map(LabelSelector::requirements) {
            if !requirements.contains(requirement) {
                requirements.push(requirement.clone());
            }
        }
        LabelSelector::from_requirements(requirements)
    }

    fn put_controller(&mut self, kind: ControllerKind, key: &ObjectKey, selector: LabelSelector) {
        let controller = Controller { kind, name: key.name.clone() };
        let controllers = self.controllers.entry(key.namespace.clone()).or_default();
        if controllers.get(&controller) != Some(&selector) {
            controllers.insert(controller, selector);
            self.version += 1;
        }
    }
}

impl Services {
    fn add(&mut self, name: String, selector: Labels) {
        if let Some((key, value)) = selector.first_key_value() {
            let by_value = self.by_label.entry(key.clone()).or_default();
            by_value.entry(value.clone()).or_default().insert(name.clone());
        }
        self.selectors.insert(name, selector);
    }

    /// True where it was there.
    fn remove(&mut self, name: &str) -> bool {
        let Some(selector) = self.selectors.remove(name) else { return false };
        if let Some((key, value)) = selector.first_key_value()
            && let Some(by_value) = self.by_label.get_mut(key)
        {
            if let Some(names) = by_value.get_mut(value) {
                names.remove(name);
                if names.is_empty() {
                    by_value.remove(value);
                }
            }
            if by_value.is_empty() {
                self.by_label.remove(key);
            }
        }
        true
    }

    fn selecting<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Labels> {
        let by_label = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        let selectors = by_label.flatten().filter_map(|name| self.selectors.get(name));
        selectors.filter(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, selector: Value) -> Service {
        let metadata = json!({ "name": name, "namespace": "a" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": { "selector": selector } })).unwrap()
    }

    #[track_caller]
    fn check(workloads: &Workloads, controller: Option<&Controller>, expected: &str) {
        let labels = [("app", "web"), ("tier", "x")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let found = workloads.selector_of("a", &labels.into(), controller);
        assert_eq!(found, LabelSelector::parse(expected).unwrap());
    }

    #[test]
    fn a_workload_is_what_its_services_and_its_controller_select() {
        let mut workloads = Workloads::default();
        let web = Controller { kind: ControllerKind::ReplicaSet, name: "web".to_owned() };
        let key = ObjectKey::new("a", "web");
        check(&workloads, Some(&web), "");
        workloads.put_service(&service("all", json!({})));
        workloads.put_service(&service("none", Value::Null));
        workloads.put_service(&service("other", json!({ "app": "web", "tier": "y" })));
        check(&workloads, None, "");
        workloads.put_service(&service("one", json!({ "app": "web" })));
        workloads.put_service(&service("two", json!({ "tier": "x" })));
        check(&workloads, None, "app in (web),tier in (x)");
        let selector = serde_json::from_value(json!({
            "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "hash", "operator": "Exists" }],
        }));
        workloads.put_set(ControllerKind::ReplicaSet, &key, Some(&selector.unwrap()));
        check(&workloads, Some(&web), "app in (web),hash,tier in (x)");
        // One of that name and of another kind is another.
        let stateful = Controller { kind: ControllerKind::StatefulSet, ..web.clone() };
        check(&workloads, Some(&stateful), "app in (web),tier in (x)");
        workloads.remove_service(&ObjectKey::new("a", "one"));
        workloads.put_service(&service("two", json!({ "app": "db" })));
        check(&workloads, Some(&web), "app in (web),hash");
        let version = workloads.version();
        workloads.put_service(&service("two", json!({ "app": "db" })));
        workloads.remove_service(&ObjectKey::new("b", "two"));
        assert_eq!(workloads.version(), version);
        workloads.remove_controller(ControllerKind::ReplicaSet, &key);
        workloads.remove_service(&ObjectKey::new("a", "two"));
        workloads.remove_service(&ObjectKey::new("a", "other"));
        check(&workloads, Some(&web), "");
        assert!(workloads.services.is_empty() && workloads.controllers.is_empty());
    }
}
