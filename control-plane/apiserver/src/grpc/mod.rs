//! The gRPC front (package `hawser.v1`).

use crate::ApiServer;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct NodeSessions {}

pub async fn renew_leases(_server: Arc<ApiServer>, _shutdown: CancellationToken) {}

pub fn routes(_server: Arc<ApiServer>) -> tonic::service::Routes {
    tonic::service::Routes::default()
}

pub fn status_of(error: &hawser_api::Error) -> tonic::Status {
    tonic::Status::unknown(error.message())
}
