//! `BindingService`: the scheduler's decisions, in batches.

use std::time::Instant;

use hawser_api::{
    Error,
    client::Binding,
    v1::{self, binding_service_server::BindingService},
};
use tonic::{Request, Response, Status};

use super::{Front, count, labels, user_of};
use crate::local::{bind_all, binding_of};

#[tonic::async_trait]
impl BindingService for Front {
    async fn bind(&self, request: Request<v1::BindRequest>) -> Result<Response<v1::BindResponse>, Status> {
        let user = user_of(&request)?;
        let bindings: Vec<Binding> = request
            .into_inner()
            .bindings
            .into_iter()
            .map(|binding| Binding {
                namespace: binding.namespace,
                pod: binding.pod,
                uid: binding.uid,
                node: binding.node,
            })
            .collect();
        let began = Instant::now();
        let results = bind_all(&self.server, &user, &bindings).await;
        // All are counted alike, whichever pods they are of.
        let labels = labels(&self.server, "create", &Ok(binding_of("", "")));
        for result in &results {
            count(&self.server, labels, result.as_ref().err().map_or(201, Error::code), began);
        }
        let results = results
            .into_iter()
            .map(|result| v1::BindResult {
                error: result
                    .err()
                    .map_or_else(Default::default, |error| error.to_status().to_string().into()),
            })
            .collect();
        Ok(Response::new(v1::BindResponse { results }))
    }
}
