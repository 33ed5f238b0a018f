//! The ConfigMap `kube-root-ca.crt` in every namespace that lives: what pods trust the API server by.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use hawser_api::{Api, Error, resource::ObjectKey};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::{
    Context, Starts,
    caches::ROOT_CA,
    meta::MetaExt,
    queue::Queue,
    worker::{Next, Reconciler},
};

const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "The certificates by which to know this cluster's API server from inside it.",
);

pub(crate) fn register(starts: &mut Starts<'_>) {
    if !starts.wants("root-ca") || starts.context.config.root_ca_pem.is_empty() {
        return;
    }
    let context = starts.context.clone();
    let queue = Queue::new();
    let changed = queue.clone();
    context.caches.namespaces.on_change(move |change| changed.add(change.key.name.clone()));
    let changed = queue.clone();
    context.caches.root_ca.on_change(move |change| changed.add(change.key.namespace.clone()));
    starts.add(Controller { context }, queue, 2);
}

struct Controller {
    context: Arc<Context>,
}

#[async_trait]
impl Reconciler for Controller {
    type Key = String;

    const NAME: &'static str = "root-ca";

    async fn reconcile(&self, namespace: &String) -> Result<Next, Error> {
        let caches = &self.context.caches;
        let lives = caches.namespaces.get(&ObjectKey::new("", namespace.as_str()));
        if lives.is_none_or(|namespace| namespace.is_deleting()) {
            return Ok(Next::Done);
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.context.config.root_ca_pem.clone())]);
        let maps: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        let existing = caches.root_ca.get(&ObjectKey::new(namespace.as_str(), ROOT_CA));
        match existing {
            Some(existing) if existing.data.as_ref() == Some(&data) => {}
            Some(existing) => {
                let mut changed = (*existing).clone();
                changed.data = Some(data);
                maps.update(&changed).await?;
            }
            None => {
                let (name, text) = DESCRIPTION;
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(ROOT_CA.to_owned()),
                        namespace: Some(namespace.clone()),
                        annotations: Some([(name.to_owned(), text.to_owned())].into()),
                        ..ObjectMeta::default()
                    },
                    data: Some(data),
                    ..ConfigMap::default()
                };
                match maps.create(&map).await {
                    // Made before the cache showed it.
                    Err(error) if error.is_already_exists() => {}
                    outcome => drop(outcome?),
                }
            }
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use hawser_api::client::DeleteOptions;
    use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
    use serde_json::json;

    use super::*;
    use crate::{
        Config,
        testing::{FakeApi, Running},
    };

    #[tokio::test(start_paused = true)]
    async fn every_namespace_has_its_account_and_certificate_and_gets_them_back() {
        let api = FakeApi::new();
        let config = Config {
            controllers: vec!["serviceaccount".to_owned(), "root-ca".to_owned()],
            root_ca_pem: "a certificate".to_owned(),
            ..Config::default()
        };
        let _running = Running::start_with(&api, config);
        let is_complete = |api: &FakeApi| {
            ["default", "other"].iter().all(|namespace| {
                let data = api.read::<ConfigMap>(namespace, ROOT_CA).and_then(|map| map.data);
                data.is_some_and(|data| data["ca.crt"] == "a certificate")
                    && api.read::<ServiceAccount>(namespace, "default").is_some()
            })
        };
        for name in ["default", "other"] {
            api.put::<Namespace>(json!({ "metadata": { "name": name } }));
        }
        api.until("both have both", is_complete).await;
        api.remove::<ServiceAccount>("other", "default", &DeleteOptions::default());
        api.patch::<ConfigMap>("default", ROOT_CA, json!({ "data": { "ca.crt": "another" } }));
        api.until("both have both again", is_complete).await;
    }
}
