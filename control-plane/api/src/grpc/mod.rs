//! The gRPC side of the API: a [`Client`](crate::Client) over the wire, the node's stream, and errors.

mod kubeconfig;
mod node_session;
mod remote;
pub mod status;

pub use node_session::{NodeEvent, NodeSession};
pub use remote::{Remote, RemoteOptions};

use crate::{
    Error,
    resource::{GroupVersionResource, Target},
    v1,
};

/// A target as the protocol names it.
pub fn resource_of(target: &Target) -> v1::Resource {
    v1::Resource {
        group: target.resource.group.to_string(),
        version: target.resource.version.to_string(),
        resource: target.resource.resource.to_string(),
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name.clone().unwrap_or_default(),
        subresource: target.subresource.as_deref().unwrap_or_default().to_owned(),
    }
}

/// The target that a message of the protocol names.
///
/// # Errors
/// BadRequest where version or resource are missing.
pub fn target_of(resource: Option<v1::Resource>) -> Result<Target, Error> {
    let resource = resource.ok_or_else(|| Error::bad_request("resource: required"))?;
    for (field, value) in [("resource.version", &resource.version), ("resource.resource", &resource.resource)]
    {
        if value.is_empty() {
            return Err(Error::bad_request(format!("{field}: required")));
        }
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Target {
        resource: GroupVersionResource {
            group: resource.group.into(),
            version: resource.version.into(),
            resource: resource.resource.into(),
        },
        namespace: some(resource.namespace),
        name: some(resource.name),
        subresource: some(resource.subresource).map(Into::into),
    })
}
