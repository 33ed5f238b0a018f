//! Admission: what the cluster has to say about a write that its author may do.
//!
//! Plugins run in one order, upstream's, twice: to change the object before validation, and to refuse it after. Webhooks
//! and policies are further plugins, after the built-in ones of their phase.

mod certificates;
mod lifecycle;
mod node_restriction;
mod priority;
mod rbac_escalation;
mod service_account;
mod socket_translation;
mod tolerations;

pub use tolerations::DefaultTolerationSeconds;

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::Value;

use crate::{
    auth::{Authorizer, User, rbac::Rbac},
    cache::Cache,
    resources::{Resource, Resources},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream or another action on an object (exec, eviction, token).
    Connect,
}

/// A write on its way, as plugins see it.
pub struct Request<'a> {
    pub user: &'a Arc<User>,
    pub operation: Operation,
    pub resource: &'a Resource,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty where the server makes the name.
    pub name: &'a str,
    pub dry_run: bool,
    /// In the storage version; for a deletion the object as it is.
    pub object: &'a mut Value,
    pub old: Option<&'a Value>,
}

impl Request<'_> {
    /// Whether this creates an object of that core kind.
    fn creates(&self, plural: &str) -> bool {
        self.operation == Operation::Create && self.is("", plural) && self.subresource.is_empty()
    }

    fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.row.group == group && self.resource.row.plural == plural
    }

    fn forbidden(&self, why: &str) -> Error {
        Error::forbidden(&self.resource.gvr, self.name, why)
    }
}

/// The image, in the API, of a pod that a node runs by itself.
fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null()
}

#[async_trait]
pub trait Plugin: Send + Sync {
    /// Upstream's name of the plugin, or that of one of our own.
    fn name(&self) -> &'static str;

    /// Changes the object. Must come to the same when called again on its own result.
    async fn mutate(&self, _request: &mut Request<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Refuses, or not.
    async fn validate(&self, _request: &Request<'_>) -> Result<(), Error> {
        Ok(())
    }
}

/// The plugins, in order.
pub struct Admission {
    plugins: Vec<Arc<dyn Plugin>>,
}

impl Admission {
    /// What every cluster runs.
    pub fn builtin(
        cache: &Arc<Cache>,
        resources: &Resources,
        tolerations: DefaultTolerationSeconds,
        (rbac, authorizer): (Rbac, Arc<dyn Authorizer>),
    ) -> Self {
        Self::new(vec![
            Arc::new(lifecycle::NamespaceLifecycle::new(cache, resources)),
            Arc::new(service_account::ServiceAccount::new(cache, resources)),
            Arc::new(node_restriction::NodeRestriction::new(cache, resources)),
            Arc::new(priority::Priority::new(cache, resources)),
            Arc::new(tolerations),
            Arc::new(certificates::SigningRequester),
            Arc::new(certificates::CertificateApproval::new(&authorizer)),
            Arc::new(certificates::CertificateSigning::new(&authorizer)),
            Arc::new(certificates::CertificateSubjectRestriction),
            Arc::new(socket_translation::SocketTranslation::new(resources)),
            Arc::new(rbac_escalation::RbacEscalation::new(cache, rbac, authorizer)),
        ])
    }

    pub fn new(plugins: Vec<Arc<dyn Plugin>>) -> Self {
        Self { plugins }
    }

    pub async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        for plugin in &self.plugins {
            plugin.mutate(request).await?;
        }
        Ok(())
    }

    pub async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        for plugin in &self.plugins {
            plugin.validate(request).await?;
        }
        Ok(())
    }
}
