//! TaintNodesByCondition: no pod goes to a node that has not said yet that it is ready.
//!
//! The node lifecycle controller takes the taint away when the node's condition `Ready` is true.

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request, elements};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct NodeTaint;

#[async_trait]
impl Plugin for NodeTaint {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if request.creates("nodes") {
            add_taint(request.object);
        }
        Ok(())
    }
}

fn add_taint(node: &mut Value) {
    let mut taints = elements(&node["spec"]["taints"]).to_vec();
    if !taints.iter().any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule") {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
        node["spec"]["taints"] = json!(taints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_takes_no_pods_until_it_is_ready() {
        let mut node = json!({ "spec": { "taints": [{ "key": NOT_READY, "effect": "NoExecute" }] } });
        add_taint(&mut node);
        add_taint(&mut node);
        assert_eq!(node["spec"]["taints"][1], json!({ "key": NOT_READY, "effect": "NoSchedule" }));
        assert_eq!(elements(&node["spec"]["taints"]).len(), 2);
    }
}
