//! ServiceAccount: every pod has an account, and a token of it where the account and the pod allow.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use hawser_api::Error;
use serde_json::{Value, json};

use super::{Plugin, Request, is_mirror, node_restriction::has_source};
use crate::{
    auth::node::references,
    cache::{Cache, CachedObject, KindCache},
    registry::random_suffix,
    resources::Resources,
};

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN_SECONDS: i64 = 3607;
const VOLUME_PREFIX: &str = "kube-api-access-";

/// A namespace's default account is made by a controller right after the namespace; pods wait a second for it.
const ATTEMPTS: usize = 10;
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(super) struct ServiceAccount {
    cache: Arc<Cache>,
    accounts: Arc<KindCache>,
}

impl ServiceAccount {
    pub(super) fn new(cache: &Arc<Cache>, resources: &Resources) -> Self {
        let accounts =
            resources.builtin("", "v1", "serviceaccounts").cache().expect("a kind that is stored").clone();
        Self { cache: cache.clone(), accounts }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Option<Arc<CachedObject>>, Error> {
        if let Some(account) = self.accounts.get(namespace, name) {
            return Ok(Some(account));
        }
        let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(RETRY_AFTER).await;
            }
            self.cache.consistent().await?;
            if let Some(account) = self.accounts.get(namespace, name) {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Error> {
        if !request.creates("pods") || is_mirror(request.object) {
            return Ok(());
        }
        let spec = &mut request.object["spec"];
        if spec["serviceAccountName"].as_str().is_none_or(str::is_empty) {
            spec["serviceAccountName"] = json!(DEFAULT);
        }
        let name = spec["serviceAccountName"].as_str().unwrap_or_default().to_owned();
        spec["serviceAccount"] = json!(name);
        let Some(account) = self.find(request.namespace, &name).await? else {
            return Err(request.forbidden(&format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                request.namespace
            )));
        };
        add_access(request.object, account.kept());
        Ok(())
    }

    /// A mirror pod runs whatever the API says: it must not look as if it had been given what it names.
    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        if !request.creates("pods") || !is_mirror(request.object) {
            return Ok(());
        }
        for reference in references(request.object) {
            match reference.resource {
                "serviceaccounts" => {
                    return Err(request.forbidden("a mirror pod may not reference service accounts"));
                }
                "secrets" => return Err(request.forbidden("a mirror pod may not reference secrets")),
                _ => {}
            }
        }
        if has_source(request.object, "serviceAccountToken") {
            return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
        }
        Ok(())
    }
}

/// Gives the pod what its account has: pull secrets, and a token where it is to be mounted.
fn add_access(pod: &mut Value, account: &Value) {
    let spec = &mut pod["spec"];
    let automount = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    let no_secrets = spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty);
    if no_secrets && account["imagePullSecrets"].as_array().is_some_and(|secrets| !secrets.is_empty()) {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
}

fn mount_token(spec: &mut Value) {
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let known = volumes
        .iter()
        .find(|volume| volume["name"].as_str().is_some_and(|name| name.starts_with(VOLUME_PREFIX)))
        .and_then(|volume| volume["name"].as_str());
    let name = known.map_or_else(|| format!("{VOLUME_PREFIX}{}", random_suffix()), str::to_owned);
    let mut used = false;
    for containers in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(containers).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
            container["volumeMounts"] = Value::Array(mounts);
            used = true;
        }
    }
    if used && known.is_none() {
        let volume = token_volume(&name);
        spec["volumes"] = volumes.into_iter().chain([volume]).collect();
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{
                    "path": "namespace",
                    "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        json!({ "spec": { "containers": [{ "name": "a" }, {
            "name": "b", "volumeMounts": [{ "name": "own", "mountPath": MOUNT_PATH }],
        }] } })
    }

    #[test]
    fn the_token_is_mounted_where_nothing_else_is() {
        let mut pod = pod();
        add_access(&mut pod, &json!({ "imagePullSecrets": [{ "name": "pull" }] }));
        let volume = pod["spec"]["volumes"][0]["name"].as_str().expect("a volume").to_owned();
        assert!(volume.starts_with(VOLUME_PREFIX));
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], *volume);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "pull");
        let before = pod.clone();
        add_access(&mut pod, &json!({}));
        assert_eq!(pod, before, "a second run changes nothing");
    }

    #[test]
    fn pod_and_account_can_refuse_the_token_and_the_pod_has_the_last_word() {
        let refuses = json!({ "automountServiceAccountToken": false });
        let mut plain = pod();
        add_access(&mut plain, &refuses);
        assert!(plain["spec"]["volumes"].is_null());
        let mut wants = pod();
        wants["spec"]["automountServiceAccountToken"] = json!(true);
        add_access(&mut wants, &refuses);
        assert!(wants["spec"]["volumes"].is_array());
    }
}
