//! A ServiceAccount `default` in every namespace that lives.
//!
//! Tokens are asked for by the node agents (TokenRequest); token Secrets of the old kind are not made.

use std::sync::Arc;

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{api::core::v1::ServiceAccount, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::{
    Context, Starts,
    meta::MetaExt,
    queue::Queue,
    worker::{Next, Reconciler},
};

const DEFAULT: &str = "default";

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("serviceaccount") {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.namespaces.on_change(move |change| changed.add(change.key.name.clone()));
    let changed = queue.clone();
    context.caches.service_accounts.on_change(move |change| {
        if change.new.is_none() {
            changed.add(change.key.namespace.clone());
        }
    });
    starts.add(Controller { context }, queue, 2);
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = String;

    const NAME: &'static str = "serviceaccount";

    async fn reconcile(&self, namespace: &String) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let lives = caches.namespaces.get(&ObjectKey::new("", namespace.as_str()));
        if lives.is_none_or(|namespace| namespace.is_deleting())
            || caches.service_accounts.get(&ObjectKey::new(namespace.as_str(), DEFAULT)).is_some()
        {
            return Ok(Next::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(DEFAULT.to_owned()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.context.client.clone(), namespace);
        match accounts.create(&account).await {
            // Made before the cache showed it.
            Err(error) if error.is_already_exists() => Ok(Next::Done),
            outcome => outcome.map(|_| Next::Done),
        }
    }
}
