//! NodeRestriction: a node creates and changes objects of its own name only, and says of them what a node may say.
//!
//! The rules and their words are upstream's plugin's: mirror pods name nothing that would open other objects to the node,
//! tokens are bound to a pod that runs here, and labels and taints that administrators steer workloads with are theirs.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::Value;

use super::{Operation, Plugin, Request, is_mirror};
use crate::{
    auth::node::references,
    cache::{Cache, KindCache},
    resources::Resources,
};

/// Labels of the `kubernetes.io` and `k8s.io` domains that a node sets itself.
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

pub(super) struct NodeRestriction {
    cache: Arc<Cache>,
    nodes: Arc<KindCache>,
    pods: Arc<KindCache>,
    accounts: Arc<KindCache>,
}

impl NodeRestriction {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let kind =
            |plural| resources.builtin("", "v1", plural).cache().expect("a kind that is stored").clone();
        Self {
            cache: cache.clone(),
            nodes: kind("nodes"),
            pods: kind("pods"),
            accounts: kind("serviceaccounts"),
        }
    }

    fn check_mirror_pod(&self, request: &Request<'_>, node: &str) -> Result<(), Error> {
        let pod = &*request.object;
        let refuse = |why: String| Err(request.forbidden(&why));
        if !is_mirror(pod) {
            return refuse(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        if pod["spec"]["nodeName"] != node {
            return refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        if !self.is_owner(pod, node) {
            return refuse(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
        let mut named: Vec<&str> = references(pod).into_iter().map(|reference| reference.resource).collect();
        if has_source(pod, "serviceAccountToken") {
            named.push("serviceaccounts");
        }
        if has_source(pod, "podCertificate") {
            named.push("podcertificates");
        }
        // Templates count too.
        if pod["spec"]["resourceClaims"].as_array().is_some_and(|claims| !claims.is_empty()) {
            named.push("resourceclaims");
        }
        match named.first() {
            None => Ok(()),
            Some(&"serviceaccounts") => {
                refuse(format!("node {node:?} can not create pods that reference a service account"))
            }
            Some(resource) => refuse(format!("node {node:?} can not create pods that reference {resource}")),
        }
    }

    /// The pod's one owner is the node itself, as it is now, and the pod does not hold back its deletion.
    fn is_owner(&self, pod: &Value, node: &str) -> bool {
        let Some([owner]) = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice) else {
            return false;
        };
        let uid = self.nodes.get("", node).map(|node| node.value()["metadata"]["uid"].clone());
        owner["apiVersion"] == "v1"
            && owner["kind"] == "Node"
            && owner["name"] == node
            && owner["controller"] == true
            && owner["blockOwnerDeletion"] != true
            && uid.is_some_and(|uid| uid == owner["uid"])
    }

    /// A node gets tokens for the pods that it runs, for nobody else.
    async fn check_token(&self, request: &Request<'_>, node: &str) -> Result<(), Error> {
        let refuse = |why: &str| Err(request.forbidden(why));
        let bound = &request.object["spec"]["boundObjectRef"];
        let text = |field: &str| bound[field].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return refuse("node requested token not bound to a pod");
        }
        if text("uid").is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        self.cache.consistent().await?;
        let Some(pod) = self.pods.get(request.namespace, text("name")) else {
            return refuse("node requested token bound to a pod that does not exist");
        };
        let value = pod.value();
        if value["metadata"]["uid"] != bound["uid"] {
            return refuse("node requested token bound to a pod with another uid");
        }
        if value["spec"]["serviceAccountName"] != request.name {
            return refuse("node requested token bound to a pod with another service account");
        }
        if pod.node() != node {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }

    /// A node asks for certificates of pods that it runs, and tells signers the truth about them.
    async fn check_certificate_request(&self, request: &Request<'_>, node: &str) -> Result<(), Error> {
        let refuse = |why: String| Err(request.forbidden(&why));
        let spec = &request.object["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default();
        if text("nodeName") != node {
            return refuse(format!(
                "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
                text("nodeName")
            ));
        }
        self.cache.consistent().await?;
        let has_uid = |object: &Value, field: &str| object["metadata"]["uid"] == spec[field];
        if !self.nodes.get("", node).is_some_and(|node| has_uid(&node.value(), "nodeUID")) {
            return refuse(format!("node {node:?} is not there with uid {:?}", text("nodeUID")));
        }
        let name = text("podName");
        let Some(pod) = self.pods.get(request.namespace, name) else {
            return refuse(format!("pod {name:?} not found"));
        };
        if pod.node() != node {
            return refuse(format!(
                "pod {name:?} is not running on node {node:?} named in the PodCertificateRequest"
            ));
        }
        let pod = pod.value();
        if !has_uid(&pod, "podUID") {
            return refuse(format!("pod {name:?} has another uid than {:?}", text("podUID")));
        }
        if is_mirror(&pod) {
            return refuse(format!("pod {name:?} is a mirror pod"));
        }
        let account = text("serviceAccountName");
        if pod["spec"]["serviceAccountName"] != account {
            return refuse(format!("pod {name:?} has another service account than {account:?}"));
        }
        let known = self.accounts.get(request.namespace, account);
        if !known.is_some_and(|known| has_uid(&known.value(), "serviceAccountUID")) {
            return refuse(format!(
                "service account {account:?} is not there with uid {:?}",
                text("serviceAccountUID")
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let Some(node) = request.user.node() else { return Ok(()) };
        let row = request.resource.row;
        let own_name = match (row.group, row.plural) {
            ("", "nodes") | ("storage.k8s.io", "csinodes") => true,
            ("coordination.k8s.io", "leases") => request.operation == Operation::Create,
            _ => false,
        };
        if own_name && request.name != node {
            return Err(request.forbidden(&format!(
                "node {node:?} is not allowed to modify {} {:?}",
                row.singular, request.name
            )));
        }
        match (row.group, row.plural, request.subresource, request.operation) {
            ("", "nodes", _, Operation::Create | Operation::Update) => check_node(request, node),
            ("", "pods", "", Operation::Create) => self.check_mirror_pod(request, node),
            ("", "pods", "status", Operation::Update) => check_pod_status(request, node),
            ("", "persistentvolumeclaims", "status", Operation::Update) => check_claim_status(request, node),
            ("resource.k8s.io", "resourceslices", "", Operation::Create) => check_slice(request, node),
            ("", "serviceaccounts", "token", _) => self.check_token(request, node).await,
            ("certificates.k8s.io", "podcertificaterequests", "", Operation::Create) => {
                self.check_certificate_request(request, node).await
            }
            _ => Ok(()),
        }
    }
}

/// Labels select what a pod counts for: a Service's backends, a policy's peers, a budget. The names of its claims open
/// these to the node.
fn check_pod_status(request: &Request<'_>, node: &str) -> Result<(), Error> {
    let new = &*request.object;
    let Some(old) = request.old else { return Ok(()) };
    let what = if new["metadata"]["labels"] != old["metadata"]["labels"] {
        "labels through pod status"
    } else if new["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
        "resource claim statuses"
    } else if new["status"]["extendedResourceClaimStatus"] != old["status"]["extendedResourceClaimStatus"] {
        "extended resource claim status"
    } else {
        return Ok(());
    };
    Err(request.forbidden(&format!("node {node:?} cannot update {what}")))
}

/// A kubelet says how far the growth of a volume is, and nothing else.
fn check_claim_status(request: &Request<'_>, node: &str) -> Result<(), Error> {
    const ITS_OWN: [&str; 4] = ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"];
    let others = |claim: &Value| {
        let mut claim = claim.clone();
        for (part, fields) in [("metadata", &["resourceVersion", "managedFields"][..]), ("status", &ITS_OWN)]
        {
            if let Some(members) = claim[part].as_object_mut() {
                members.retain(|name, _| !fields.contains(&name.as_str()));
            }
        }
        claim
    };
    if request.old.is_some_and(|old| others(old) != others(request.object)) {
        return Err(request.forbidden(&format!(
            "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
        )));
    }
    Ok(())
}

fn check_slice(request: &Request<'_>, node: &str) -> Result<(), Error> {
    if request.object["spec"]["nodeName"] != node {
        let why = "can only create ResourceSlice with the same NodeName as the requesting node";
        return Err(request.forbidden(why));
    }
    Ok(())
}

fn check_node(request: &Request<'_>, node: &str) -> Result<(), Error> {
    let (new, old) = (&*request.object, request.old);
    if let Some(old) = old {
        if new["spec"]["taints"] != old["spec"]["taints"] {
            return Err(request.forbidden(&format!("node {node:?} is not allowed to modify taints")));
        }
        if new["metadata"]["ownerReferences"] != old["metadata"]["ownerReferences"] {
            return Err(request.forbidden(&format!("node {node:?} is not allowed to modify ownerReferences")));
        }
    }
    let forbidden: Vec<&str> =
        changed_labels(new, old).into_iter().filter(|label| is_forbidden(label)).collect();
    if forbidden.is_empty() {
        return Ok(());
    }
    let forbidden = forbidden.join(", ");
    Err(request.forbidden(&match old {
        None => format!("node {node:?} is not allowed to set the following labels: {forbidden}"),
        Some(_) => format!("is not allowed to modify labels: {forbidden}"),
    }))
}

fn changed_labels<'a>(new: &'a Value, old: Option<&'a Value>) -> BTreeSet<&'a str> {
    fn labels(object: &Value) -> impl Iterator<Item = (&str, &Value)> {
        object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value))
    }
    let before = old.unwrap_or(&Value::Null);
    let added = labels(new).filter(|(key, value)| before["metadata"]["labels"][*key] != **value);
    let removed = labels(before).filter(|(key, _)| new["metadata"]["labels"][*key].is_null());
    added.chain(removed).map(|(key, _)| key).collect()
}

/// Labels that a node may not give itself: what administrators restrict to themselves, and unknown ones of Kubernetes.
fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let is_below =
        |parent: &str| domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if is_below("node-restriction.kubernetes.io") {
        return true;
    }
    let kubernetes = is_below("kubernetes.io") || is_below("k8s.io");
    let kubelets = KUBELET_LABELS.contains(&label)
        || is_below("kubelet.kubernetes.io")
        || is_below("node.kubernetes.io");
    kubernetes && !kubelets
}

/// Whether a projected volume of the pod has a source of that kind.
pub(super) fn has_source(pod: &Value, kind: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources =
        volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    sources.any(|source| source[kind].is_object())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_administrators_and_unknown_ones_of_kubernetes_are_not_the_nodes() {
        for (label, forbidden) in [
            ("team", false),
            ("example.com/team", false),
            ("kubernetes.io/hostname", false),
            ("topology.kubernetes.io/zone", false),
            ("node.kubernetes.io/anything", false),
            ("sub.kubelet.kubernetes.io/anything", false),
            ("kubernetes.io/unknown", true),
            ("storage.k8s.io/unknown", true),
            ("node-role.kubernetes.io/control-plane", true),
            ("node-restriction.kubernetes.io/pci", true),
            ("example.node-restriction.kubernetes.io/pci", true),
            ("notkubernetes.io/a", false),
        ] {
            assert_eq!(is_forbidden(label), forbidden, "{label}");
        }
    }

    #[test]
    fn a_label_counts_as_changed_when_it_comes_goes_or_differs() {
        let old = json!({ "metadata": { "labels": { "same": "1", "differs": "1", "gone": "1" } } });
        let new = json!({ "metadata": { "labels": { "same": "1", "differs": "2", "new": "1" } } });
        let changed: Vec<&str> = changed_labels(&new, Some(&old)).into_iter().collect();
        assert_eq!(changed, ["differs", "gone", "new"]);
        assert_eq!(changed_labels(&new, None).len(), 3);
    }
}
