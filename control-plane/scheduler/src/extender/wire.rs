//! What is said to extenders and what they answer: `k8s.io/kube-scheduler/extender/v1`.
//!
//! Go's field names go out; answers may be written in either case, because Go reads both and extenders of other languages
//! rely on that.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// For `filter` and `prioritize`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Args<'a> {
    pub(super) pod: &'a Value,
    /// Whole nodes, for extenders that keep none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nodes: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_names: Option<&'a [String]>,
}

/// A `v1.NodeList`.
pub(super) fn node_list(nodes: Vec<Value>) -> Value {
    json!({ "metadata": {}, "items": nodes })
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct FilterResult {
    #[serde(alias = "nodes", deserialize_with = "names_of_nodes")]
    pub(super) nodes: Option<Vec<String>>,
    #[serde(alias = "nodeNames", alias = "nodenames")]
    pub(super) node_names: Option<Vec<String>>,
    #[serde(alias = "failedNodes", deserialize_with = "or_empty")]
    pub(super) failed_nodes: BTreeMap<String, String>,
    #[serde(alias = "failedAndUnresolvableNodes", deserialize_with = "or_empty")]
    pub(super) failed_and_unresolvable_nodes: BTreeMap<String, String>,
    #[serde(alias = "error")]
    pub(super) error: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostPriority {
    #[serde(alias = "host")]
    pub(super) host: String,
    #[serde(alias = "score")]
    pub(super) score: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct BindingArgs<'a> {
    pub(super) pod_name: &'a str,
    pub(super) pod_namespace: &'a str,
    #[serde(rename = "PodUID")]
    pub(super) pod_uid: &'a str,
    pub(super) node: &'a str,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct BindingResult {
    #[serde(alias = "error")]
    pub(super) error: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PreemptionArgs<'a> {
    pub(super) pod: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_name_to_victims: Option<BTreeMap<&'a str, Victims<Value>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node_name_to_meta_victims: Option<BTreeMap<&'a str, Victims<MetaPod>>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Victims<P> {
    #[serde(alias = "pods", default = "Vec::new")]
    pub(super) pods: Vec<P>,
    #[serde(rename = "NumPDBViolations", alias = "numPDBViolations", default)]
    pub(super) num_pdb_violations: i64,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct MetaPod {
    #[serde(rename = "UID", alias = "uid")]
    pub(super) uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PreemptionResult {
    #[serde(alias = "nodeNameToMetaVictims", deserialize_with = "or_empty")]
    pub(super) node_name_to_meta_victims: BTreeMap<String, Victims<MetaPod>>,
}

/// Go writes an empty map as null.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Of a `v1.NodeList` only the names are of interest: the nodes are known.
fn names_of_nodes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default, deserialize_with = "or_empty")]
        items: Vec<Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    let list: Option<List> = Option::deserialize(from)?;
    Ok(list.map(|list| list.items.into_iter().map(|node| node.metadata.name).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_go_and_of_others_are_read() {
        let read = |text: &str| serde_json::from_str::<FilterResult>(text).unwrap();
        let answer = read(
            r#"{"Nodes": {"metadata": {}, "items": [{"metadata": {"name": "n1"}}]}, "NodeNames": null,
                "FailedNodes": {"n2": "full"}, "FailedAndUnresolvableNodes": null, "Error": ""}"#,
        );
        assert_eq!(answer.nodes.unwrap(), ["n1"]);
        assert_eq!(answer.node_names, None);
        assert_eq!(answer.failed_nodes["n2"], "full");
        let answer = read(r#"{"nodenames": ["n1"], "failedNodes": {}, "error": "no"}"#);
        assert_eq!((answer.node_names.unwrap(), answer.error.as_str()), (vec!["n1".to_owned()], "no"));
        let answer: PreemptionResult = serde_json::from_str(
            r#"{"NodeNameToMetaVictims": {"n1": {"Pods": [{"UID": "u"}], "NumPDBViolations": 1}}}"#,
        )
        .unwrap();
        let victims = &answer.node_name_to_meta_victims["n1"];
        assert_eq!((victims.pods[0].uid.as_str(), victims.num_pdb_violations), ("u", 1));
    }
}
