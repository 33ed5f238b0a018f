//! What goes on beside the operations of a workload, as often as upstream's.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use hawser_api::grpc::Remote;
use serde_json::Value;

use crate::{
    objects::{self, Which},
    seen::PODS,
    wire::{create, delete, object_target},
};

/// Pods of one namespace.
pub(crate) struct Made {
    pub(crate) namespace: &'static str,
    pub(crate) names: Vec<String>,
}

/// Objects of all templates come, over and over.
pub(crate) async fn come(
    client: Arc<Remote>,
    templates: &'static [&'static str],
    namespace: String,
    every: Duration,
) -> Result<()> {
    let mut pace = tokio::time::interval(every);
    for number in 0.. {
        pace.tick().await;
        for object in churned(templates, &namespace, number) {
            create(&client, object).await?;
        }
    }
    Ok(())
}

/// One object of each template comes, goes, and comes again.
pub(crate) async fn come_and_go(
    client: Arc<Remote>,
    templates: &'static [&'static str],
    namespace: String,
    every: Duration,
) -> Result<()> {
    let mut pace = tokio::time::interval(every);
    for number in 0.. {
        let objects = churned(templates, &namespace, number);
        pace.tick().await;
        for object in &objects {
            create(&client, object.clone()).await?;
        }
        pace.tick().await;
        for object in &objects {
            let target = object_target(object);
            let name = target.name.unwrap_or_default();
            delete(&client, target.resource, target.namespace.as_deref(), &name, None).await?;
        }
    }
    Ok(())
}

pub(crate) async fn delete_all(client: Arc<Remote>, pods: Made, every: Duration) -> Result<()> {
    let mut pace = tokio::time::interval(every);
    for name in &pods.names {
        pace.tick().await;
        delete(&client, PODS, Some(pods.namespace), name, None).await?;
    }
    Ok(())
}

fn churned(templates: &[&str], namespace: &str, number: usize) -> Vec<Value> {
    let which = Which { index: 0, count: 1 };
    templates.iter().map(|template| objects::named(template, which, number, Some(namespace))).collect()
}
