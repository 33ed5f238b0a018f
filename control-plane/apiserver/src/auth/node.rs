//! The node authorizer: a node sees and writes what concerns it, and nothing else (KEP-279).
//!
//! What concerns a node follows from the pods bound to it: the Secrets, ConfigMaps, ServiceAccounts and claims that they
//! name. It is computed from the watch cache's index of pods by node at each request; a node has about a hundred pods.

use std::{collections::BTreeSet, sync::Arc};

use hawser_api::selector::FieldSelector;
use serde_json::Value;

use super::{Attributes, Authorizer, Decision, Grounds, Rules, User};
use crate::{
    admission::is_mirror,
    cache::{CachedObject, KindCache, Selection},
    resources::Resources,
};

/// Where a node's Lease lives.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

pub struct NodeAuthorizer {
    pods: Arc<KindCache>,
    volumes: Arc<KindCache>,
    claims: Arc<KindCache>,
    attachments: Arc<KindCache>,
    slices: Arc<KindCache>,
    certificate_requests: Arc<KindCache>,
}

/// Secrets of a CSI driver's volume that its node needs.
const NODE_SECRETS: [&str; 3] = ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];

/// An object that a pod needs on its node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Plural: `configmaps`, `secrets`, `serviceaccounts`, `persistentvolumeclaims`, `resourceclaims`.
    pub resource: &'static str,
    pub namespace: String,
    pub name: String,
}

/// The objects that a pod names.
pub fn references(pod: &Value) -> BTreeSet<Reference> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let spec = &pod["spec"];
    let mut found = BTreeSet::new();
    let mut add = |resource, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert(Reference { resource, namespace: namespace.to_owned(), name: name.to_owned() });
        }
    };
    add("serviceaccounts", &spec["serviceAccountName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        add("secrets", &secret["name"]);
    }
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&spec[containers]) {
            for source in list(&container["envFrom"]) {
                add("configmaps", &source["configMapRef"]["name"]);
                add("secrets", &source["secretRef"]["name"]);
            }
            for variable in list(&container["env"]) {
                add("configmaps", &variable["valueFrom"]["configMapKeyRef"]["name"]);
                add("secrets", &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
    }
    for claim in list(&spec["resourceClaims"]) {
        add("resourceclaims", &claim["resourceClaimName"]);
        if claim["resourceClaimTemplateName"].is_string() {
            let made = list(&pod["status"]["resourceClaimStatuses"]).iter();
            made.filter(|made| made["name"] == claim["name"])
                .for_each(|made| add("resourceclaims", &made["resourceClaimName"]));
        }
    }
    add("resourceclaims", &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
    for volume in list(&spec["volumes"]) {
        add("configmaps", &volume["configMap"]["name"]);
        add("secrets", &volume["secret"]["secretName"]);
        add("persistentvolumeclaims", &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"].is_object()
            && let (Some(pod), Some(name)) = (pod["metadata"]["name"].as_str(), volume["name"].as_str())
        {
            add("persistentvolumeclaims", &Value::String(format!("{pod}-{name}")));
        }
        for source in list(&volume["projected"]["sources"]) {
            add("configmaps", &source["configMap"]["name"]);
            add("secrets", &source["secret"]["name"]);
        }
        for kind in ["csi", "flexVolume", "cephfs", "rbd", "iscsi", "scaleIO", "storageos"] {
            for field in ["nodePublishSecretRef", "secretRef"] {
                add("secrets", &volume[kind][field]["name"]);
            }
        }
    }
    found
}

/// The objects that a pod opens to the node that it is on: those that it names, and none where the node made it itself.
pub fn opened(pod: &Value) -> BTreeSet<Reference> {
    if is_mirror(pod) { BTreeSet::new() } else { references(pod) }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl NodeAuthorizer {
    pub fn new(resources: &Resources) -> Self {
        let cache_of = |group, version, plural| {
            resources.builtin(group, version, plural).cache().expect("a kind that is stored").clone()
        };
        let cache = |group, plural| cache_of(group, "v1", plural);
        Self {
            pods: cache("", "pods"),
            volumes: cache("", "persistentvolumes"),
            claims: cache("", "persistentvolumeclaims"),
            attachments: cache("storage.k8s.io", "volumeattachments"),
            slices: cache("resource.k8s.io", "resourceslices"),
            certificate_requests: cache_of("certificates.k8s.io", "v1beta1", "podcertificaterequests"),
        }
    }

    fn pods_on(&self, node: &str, namespace: Option<&str>) -> impl Iterator<Item = Arc<CachedObject>> {
        let selection = Selection::on_node(node, namespace);
        selection.select(&self.pods, &self.pods.snapshot().state, "")
    }

    fn is_referenced(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.pods_on(node, Some(namespace)).any(|pod| {
            opened(&pod.value()).iter().any(|known| known.resource == resource && known.name == name)
        })
    }

    fn owns_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(namespace, name).is_some_and(|pod| pod.node() == node)
    }

    /// A volume is a node's when a claim of one of its pods is bound to it.
    fn uses_volume(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.volumes.get("", name) else { return false };
        let volume = volume.value();
        let claim = &volume["spec"]["claimRef"];
        let text = |field: &str| claim[field].as_str().unwrap_or_default().to_owned();
        let (namespace, claim) = (text("namespace"), text("name"));
        self.claims.get(&namespace, &claim).is_some_and(|claim| is_for(&volume, &claim.value()))
            && self.is_referenced(node, "persistentvolumeclaims", &namespace, &claim)
    }

    /// Whether a volume of one of the node's pods needs the Secret there.
    fn is_secret_of_volume(&self, node: &str, namespace: &str, name: &str) -> bool {
        let names_it = |volume: &Value| {
            let driver = &volume["spec"]["csi"];
            NODE_SECRETS
                .iter()
                .any(|field| driver[field]["namespace"] == namespace && driver[field]["name"] == name)
        };
        self.pods_on(node, None).any(|pod| {
            opened(&pod.value()).iter().filter(|known| known.resource == "persistentvolumeclaims").any(
                |reference| {
                    let Some(claim) = self.claims.get(&reference.namespace, &reference.name) else {
                        return false;
                    };
                    let claim = claim.value();
                    let volume = claim["spec"]["volumeName"].as_str().and_then(|it| self.volumes.get("", it));
                    volume.map(|volume| volume.value()).is_some_and(|it| is_for(&it, &claim) && names_it(&it))
                },
            )
        })
    }

    fn decide(&self, node: &str, attributes: &Attributes) -> bool {
        let Attributes { group, resource, subresource, namespace, name, .. } = attributes;
        let verb = &*attributes.verb;
        let read = attributes.is_read();
        let write = matches!(verb, "create" | "update" | "patch" | "delete");
        match (group.as_str(), resource.as_str(), subresource.as_str()) {
            // Its own Node; others are read for addresses and pod ranges.
            ("", "nodes", "") => read || (verb == "create") || (write && verb != "delete" && name == node),
            ("", "nodes", "status") => name == node && matches!(verb, "update" | "patch"),
            // Not by name: another pod of the name may come to another node while the watch lasts.
            ("", "pods", "") if matches!(verb, "list" | "watch") => {
                selects_node(&attributes.field_selector, node)
            }
            // A mirror pod is created for the node itself; admission holds it to that.
            ("", "pods", "") if verb == "create" => true,
            // What a pod is to be is never the node's to say: only that it is gone, and how it does.
            ("", "pods", "") => matches!(verb, "get" | "delete") && self.owns_pod(node, namespace, name),
            ("", "pods", "status") => {
                matches!(verb, "get" | "update" | "patch") && self.owns_pod(node, namespace, name)
            }
            ("", "pods", "eviction") => verb == "create" && self.owns_pod(node, namespace, name),
            ("", "configmaps" | "secrets" | "persistentvolumeclaims", "") => {
                let single = !name.is_empty() && read;
                single
                    && (self.is_referenced(node, resource, namespace, name)
                        || resource == "secrets" && self.is_secret_of_volume(node, namespace, name))
            }
            ("", "persistentvolumeclaims", "status") => {
                matches!(verb, "update" | "patch") && self.is_referenced(node, resource, namespace, name)
            }
            ("", "persistentvolumes", "") => verb == "get" && self.uses_volume(node, name),
            ("", "serviceaccounts", "") => {
                verb == "get" && self.is_referenced(node, resource, namespace, name)
            }
            ("", "serviceaccounts", "token") => {
                verb == "create" && self.is_referenced(node, "serviceaccounts", namespace, name)
            }
            ("", "services", "") | ("discovery.k8s.io", "endpointslices", "") => read,
            ("", "endpoints", "") => verb == "get",
            // Its next certificate: it asks, and waits for the answer. Admission writes who asks.
            ("certificates.k8s.io", "certificatesigningrequests", "") => read || verb == "create",
            // Certificates of its pods: admission sees to it that they are its own.
            ("certificates.k8s.io", "podcertificaterequests", "") => match verb {
                "create" => true,
                "list" | "watch" => selects_node(&attributes.field_selector, node),
                _ => verb == "get" && names_node(&self.certificate_requests, namespace, name, node),
            },
            ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", "csidrivers", "") => read,
            ("networking.k8s.io", "networkpolicies", "") => read,
            ("coordination.k8s.io", "leases", "") => {
                namespace == LEASE_NAMESPACE
                    && (verb == "create" || ((write || verb == "get") && name == node))
            }
            ("storage.k8s.io", "volumeattachments", "") => {
                verb == "get" && names_node(&self.attachments, "", name, node)
            }
            ("resource.k8s.io", "resourceclaims", "") => {
                verb == "get" && self.is_referenced(node, resource, namespace, name)
            }
            // Admission sees to it that they are made for the node itself.
            ("resource.k8s.io", "resourceslices", "") => match verb {
                "create" => true,
                "list" | "watch" | "deletecollection" => selects_node(&attributes.field_selector, node),
                _ => (read || write) && names_node(&self.slices, "", name, node),
            },
            ("storage.k8s.io", "csinodes", "") => {
                verb == "create" || ((write || verb == "get") && name == node)
            }
            ("" | "events.k8s.io", "events", "") => matches!(verb, "create" | "update" | "patch"),
            ("authentication.k8s.io", "tokenreviews", "") => verb == "create",
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
                verb == "create"
            }
            _ => false,
        }
    }
}

/// Whether the volume says that it is for the claim. Which volume a claim names is its user's word.
fn is_for(volume: &Value, claim: &Value) -> bool {
    let (reference, claim) = (&volume["spec"]["claimRef"], &claim["metadata"]);
    let is_same = |field: &str| reference[field] == claim[field];
    let is_any = reference["uid"].as_str().is_none_or(str::is_empty);
    is_same("namespace") && is_same("name") && (is_any || is_same("uid"))
}

/// Whether the object there is about the node.
fn names_node(kind: &KindCache, namespace: &str, name: &str, node: &str) -> bool {
    kind.get(namespace, name).is_some_and(|object| object.value()["spec"]["nodeName"] == node)
}

/// Whether a field selector restricts a list of pods to the node's. Read as the list itself reads it.
fn selects_node(selector: &str, node: &str) -> bool {
    FieldSelector::parse(selector).is_ok_and(|selector| selector.exact("spec.nodeName") == Some(node))
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        let Some(node) = user.node() else { return Decision::NoOpinion(String::new()) };
        if !attributes.is_resource() {
            return Decision::NoOpinion(String::new());
        }
        if self.decide(node, attributes) {
            return Decision::Allow(Grounds::Text("the node's own objects"));
        }
        Decision::NoOpinion(format!("no relationship found between node '{node}' and this object"))
    }

    /// What a node may do follows from its pods, and is no list.
    fn rules(&self, user: &User, _: &str) -> Rules {
        match user.node() {
            Some(_) => Rules {
                incomplete: true,
                errors: vec!["node authorizer does not support user rule resolution".to_owned()],
                ..Rules::default()
            },
            None => Rules::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_a_pod_names_is_referenced() {
        let pod = json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": {
                "serviceAccountName": "runner",
                "imagePullSecrets": [{ "name": "pull" }],
                "containers": [{
                    "envFrom": [{ "configMapRef": { "name": "env" } }],
                    "env": [{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "key", "key": "a" } } }],
                }],
                "volumes": [
                    { "name": "a", "configMap": { "name": "files" } },
                    { "name": "b", "secret": { "secretName": "tls" } },
                    { "name": "c", "projected": { "sources": [{ "configMap": { "name": "root" } }] } },
                    { "name": "d", "persistentVolumeClaim": { "claimName": "disk" } },
                    { "name": "e", "ephemeral": {} },
                ],
                "resourceClaims": [
                    { "name": "a", "resourceClaimName": "gpu" },
                    { "name": "b", "resourceClaimTemplateName": "nic" },
                ],
            },
            // Two that the spec does not ask for: a template's alone is made.
            "status": { "resourceClaimStatuses": [
                { "name": "b", "resourceClaimName": "web-b-x7" },
                { "name": "a", "resourceClaimName": "another" },
                { "name": "c", "resourceClaimName": "another" },
            ] },
        });
        let found: Vec<_> =
            references(&pod).into_iter().map(|found| format!("{}/{}", found.resource, found.name)).collect();
        assert_eq!(
            found,
            [
                "configmaps/env",
                "configmaps/files",
                "configmaps/root",
                "persistentvolumeclaims/disk",
                "persistentvolumeclaims/web-e",
                "resourceclaims/gpu",
                "resourceclaims/web-b-x7",
                "secrets/key",
                "secrets/pull",
                "secrets/tls",
                "serviceaccounts/runner",
            ]
        );
    }

    #[test]
    fn a_pod_that_the_node_made_opens_nothing() {
        let mut pod =
            json!({ "metadata": { "namespace": "shop" }, "spec": { "serviceAccountName": "runner" } });
        assert_eq!(opened(&pod), references(&pod));
        pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "abc" });
        assert!(opened(&pod).is_empty());
    }

    #[test]
    fn only_a_selector_for_the_node_itself_counts() {
        assert!(selects_node("spec.nodeName=n1", "n1"));
        assert!(selects_node("status.phase=Running,spec.nodeName==n1", "n1"));
        for selector in [
            "",
            "spec.nodeName!=n1",
            "spec.nodeName=n2",
            "spec.nodeName=n11",
            "metadata.name=n1",
            // One term, about names: the comma is a part of the value.
            r"metadata.name!=a\,spec.nodeName=n1",
            "spec.nodeName===n1",
            r"spec.nodeName=n1\x",
        ] {
            assert!(!selects_node(selector, "n1"), "{selector}");
        }
    }
}
