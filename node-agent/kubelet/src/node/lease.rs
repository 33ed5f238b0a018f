//! The node's Lease in `kube-node-lease`, renewed while the agent lives.

use std::sync::Arc;

use hawser_api::Api;
use hawser_api::client::Client;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use tracing::debug;

use crate::config::Config;

const NAMESPACE: &str = "kube-node-lease";

/// Renews the lease for ever; a failed renewal is tried again at the next turn.
pub(super) async fn keep(client: Arc<dyn Client>, config: Arc<Config>, node_uid: Option<String>) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut known: Option<Lease> = None;
    let mut tick = tokio::time::interval(config.lease_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        known = match renew(&api, &config, node_uid.as_deref(), known).await {
            Ok(lease) => Some(lease),
            Err(error) => {
                debug!(%error, "the lease was not renewed, trying again");
                None
            }
        };
    }
}

async fn renew(
    api: &Api<Lease>,
    config: &Config,
    node_uid: Option<&str>,
    known: Option<Lease>,
) -> Result<Lease, hawser_api::Error> {
    let known = match known {
        Some(lease) => Some(lease),
        None => api.find(&config.node_name).await?,
    };
    let spec = LeaseSpec {
        holder_identity: Some(config.node_name.clone()),
        lease_duration_seconds: i32::try_from(config.lease_duration.as_secs()).ok(),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    match known {
        Some(mut lease) => {
            lease.spec = Some(spec);
            api.update(&lease).await
        }
        None => {
            let owner = node_uid.map(|uid| OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: config.node_name.clone(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            });
            let metadata = ObjectMeta {
                name: Some(config.node_name.clone()),
                namespace: Some(NAMESPACE.into()),
                owner_references: owner.map(|o| vec![o]),
                ..ObjectMeta::default()
            };
            api.create(&Lease { metadata, spec: Some(spec) }).await
        }
    }
}
