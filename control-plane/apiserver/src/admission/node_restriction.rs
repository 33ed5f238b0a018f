//! NodeRestriction: a node creates and changes objects of its own name only.

use async_trait::async_trait;
use hawser_api::Error;

use super::{Operation, Plugin, Request};

pub(super) struct NodeRestriction;

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
        if row.group.is_empty()
            && row.plural == "pods"
            && request.operation == Operation::Create
            && request.subresource.is_empty()
        {
            let mirror = !request.object["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null();
            if !mirror {
                return Err(request.forbidden("pod does not have \"kubernetes.io/config.mirror\" annotation, node can only create mirror pods"));
            }
            if request.object["spec"]["nodeName"] != node {
                return Err(request.forbidden(&format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                )));
            }
        }
        Ok(())
    }
}
