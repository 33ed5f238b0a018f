//! Admission: what the cluster has to say about a write that its author may do.
//!
//! Plugins run in one order, upstream's, twice: to change the object before validation, and to refuse it after. Webhooks
//! and policies are further plugins, after the built-in ones of their phase. Last of all come quotas ([`quota`]), which
//! are charged together with the write.

mod certificates;
mod claim_resize;
mod default_class;
mod deprecations;
mod events;
mod lifecycle;
mod limit_ranger;
mod node_restriction;
mod node_taint;
mod pod_certificates;
mod pod_security;
mod pod_topology;
mod priority;
mod quota;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod socket_translation;
mod storage_protection;
mod tolerations;
pub(crate) mod warnings;

pub(crate) use quota::{Charge, Demand};
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

    /// Whether this changes an object of that core kind itself, and none of its subresources.
    fn updates(&self, plural: &str) -> bool {
        self.operation == Operation::Update && self.is("", plural) && self.subresource.is_empty()
    }

    fn is(&self, group: &str, plural: &str) -> bool {
        self.resource.row.group == group && self.resource.row.plural == plural
    }

    fn forbidden(&self, why: &str) -> Error {
        Error::forbidden(&self.resource.gvr, self.name, why)
    }
}

/// The image, in the API, of a pod that a node runs by itself.
pub(crate) fn is_mirror(pod: &Value) -> bool {
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

/// Kinds that plugins and authorization read from the caches: who wrote one must find it heeded at once. Who took a right
/// away is answered when it is gone.
const READ: [(&str, &str); 12] = [
    ("", "limitranges"),
    ("", "namespaces"),
    ("", "resourcequotas"),
    ("certificates.k8s.io", "podcertificaterequests"),
    ("networking.k8s.io", "ingressclasses"),
    ("node.k8s.io", "runtimeclasses"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("storage.k8s.io", "storageclasses"),
];

/// Whether a write of this resource is to be answered only when the cache has it.
pub(crate) fn is_read(resource: &Resource) -> bool {
    READ.contains(&(resource.row.group, resource.row.plural))
}

/// The elements of a list; none where there is none.
fn elements(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The plugins, in order, and the quotas.
pub struct Admission {
    plugins: Vec<Arc<dyn Plugin>>,
    quotas: quota::Quotas,
}

impl Admission {
    /// What every cluster runs.
    pub fn builtin(
        cache: &Arc<Cache>,
        resources: &Resources,
        tolerations: DefaultTolerationSeconds,
        (rbac, authorizer): (Rbac, Arc<dyn Authorizer>),
    ) -> Self {
        let plugins: Vec<Arc<dyn Plugin>> = vec![
            Arc::new(lifecycle::NamespaceLifecycle::new(cache, resources)),
            Arc::new(events::NewerEvents),
            Arc::new(limit_ranger::LimitRanger::new(resources)),
            Arc::new(service_account::ServiceAccount::new(cache, resources)),
            Arc::new(node_restriction::NodeRestriction::new(cache, resources)),
            Arc::new(node_taint::NodeTaint),
            Arc::new(pod_security::PodSecurity::new(resources)),
            Arc::new(priority::Priority::new(cache, resources)),
            Arc::new(tolerations),
            Arc::new(default_class::DefaultClass::storage(resources)),
            Arc::new(storage_protection::StorageProtection),
            Arc::new(claim_resize::ClaimResize::new(resources)),
            Arc::new(runtime_class::RuntimeClass::new(cache, resources)),
            Arc::new(certificates::SigningRequester),
            Arc::new(certificates::CertificateApproval::new(&authorizer)),
            Arc::new(certificates::CertificateSigning::new(&authorizer)),
            Arc::new(certificates::CertificateSubjectRestriction),
            Arc::new(pod_certificates::PodCertificateSigning::new(&authorizer)),
            Arc::new(default_class::DefaultClass::ingress(resources)),
            Arc::new(pod_topology::PodTopology::new(resources)),
            Arc::new(socket_translation::SocketTranslation::new(resources)),
            Arc::new(rbac_escalation::RbacEscalation::new(cache, rbac, authorizer)),
            Arc::new(deprecations::Deprecations),
        ];
        Self { plugins, quotas: quota::Quotas::new(cache, resources) }
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

    /// What an admitted write takes from quotas; `None` where none limits it.
    pub(crate) fn demand(&self, request: &Request<'_>) -> Option<Demand> {
        self.quotas.demand(request)
    }

    /// Takes from quotas what a write demands, or refuses it; the charge is to be written together with the object.
    pub(crate) async fn charge(&self, demand: Option<&Demand>) -> Result<Charge, Error> {
        match demand {
            Some(demand) => self.quotas.charge(demand).await,
            None => Ok(Charge::default()),
        }
    }
}
