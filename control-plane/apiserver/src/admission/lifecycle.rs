//! NamespaceLifecycle: nothing is created in a namespace that is not there or on its way out, and some never go.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Error, GroupVersionResource};

use super::{Operation, Plugin, Request};
use crate::{
    cache::{Cache, CachedObject, KindCache},
    resources::Resources,
};

const NAMESPACES: GroupVersionResource = GroupVersionResource::fixed("", "v1", "namespaces");
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle {
    cache: Arc<Cache>,
    namespaces: Arc<KindCache>,
}

impl NamespaceLifecycle {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let namespaces =
            resources.builtin("", "v1", "namespaces").cache().expect("a kind that is stored").clone();
        Self { cache: cache.clone(), namespaces }
    }

    async fn find(&self, name: &str) -> Result<Option<Arc<CachedObject>>, Error> {
        if let Some(found) = self.namespaces.get("", name) {
            return Ok(Some(found));
        }
        // It may have been created a moment ago.
        self.cache.consistent().await?;
        Ok(self.namespaces.get("", name))
    }
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        // Before the other plugins, which would look for things in a namespace that is not there.
        let is_namespace = request.is("", "namespaces");
        if request.operation == Operation::Delete && is_namespace && IMMORTAL.contains(&request.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
        }
        if request.operation != Operation::Create || !request.resource.row.namespaced {
            return Ok(());
        }
        let Some(namespace) = self.find(request.namespace).await? else {
            return Err(Error::not_found(&NAMESPACES, request.namespace));
        };
        if namespace.kept()["metadata"]["deletionTimestamp"].is_string() {
            let name = request.namespace;
            let why =
                format!("unable to create new content in namespace {name} because it is being terminated");
            let cause = format!("namespace {name} is being terminated");
            // Controllers look for the cause, and stop trying.
            return Err(request.forbidden(&why).caused_by(
                "NamespaceTerminating",
                &cause,
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}
