//! The gRPC front (package `hawser.v1`).

use crate::ApiServer;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct NodeSessions {}

pub async fn renew_leases(_server: Arc<ApiServer>, _shutdown: CancellationToken) {}
