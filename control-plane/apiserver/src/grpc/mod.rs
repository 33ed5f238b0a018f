//! The gRPC front (package `hawser.v1`), on the port and behind the chain of HTTP.
//!
//! The connection's user comes with each request as an extension; every message passes the chain by itself. Errors are
//! those of the API, as [`hawser_api::grpc::status`] writes them.

mod binding;
pub(crate) mod deadline;
mod node;
mod node_writes;
mod object;
mod sessions;
mod usage;
mod watch;

pub(crate) use hawser_api::grpc::status::to_grpc as status_of;
pub use sessions::NodeSessions;
pub(crate) use sessions::renew_leases;
pub use usage::{Amount, NodeUsage, PodUsage};

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use hawser_api::{
    Error,
    resource::Target,
    schema::FieldValidation,
    v1::{
        self, binding_service_server::BindingServiceServer, node_service_server::NodeServiceServer,
        object_service_server::ObjectServiceServer, watch_service_server::WatchServiceServer,
    },
};
use serde_json::Value;
use tonic::{Request, Response, Status, service::Routes};
use tracing::Span;

use crate::{
    ApiServer,
    auth::User,
    cache::CachedObject,
    codec::{self, Encoding},
    local::expected_type,
    metrics::Labels,
    ops::{Reply, WriteOptions, options},
    resources::Resource,
    spans,
};

/// Largest message that is taken: an object's bound, and a little.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// All services, with health and reflection.
pub(crate) fn routes(server: Arc<ApiServer>) -> Routes {
    let front = Front { server };
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by the build");
    // The server is ready before it listens.
    tokio::spawn(async move {
        reporter.set_serving::<ObjectServiceServer<Front>>().await;
        reporter.set_serving::<WatchServiceServer<Front>>().await;
        reporter.set_serving::<NodeServiceServer<Front>>().await;
        reporter.set_serving::<BindingServiceServer<Front>>().await;
    });
    Routes::new(health)
        .add_service(reflection)
        .add_service(ObjectServiceServer::new(front.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(WatchServiceServer::new(front.clone()))
        .add_service(NodeServiceServer::new(front.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(BindingServiceServer::new(front).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .prepare()
}

/// What implements the services.
#[derive(Clone)]
struct Front {
    server: Arc<ApiServer>,
}

impl Front {
    /// Carries out a call about a resource, and counts it as HTTP's are counted.
    async fn counted<T, F>(
        &self,
        verb: &'static str,
        target: Result<Target, Error>,
        work: impl FnOnce(Target) -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let began = Instant::now();
        let span = Span::current();
        let labels = labels(&self.server, verb, &target);
        let outcome = match target {
            Ok(target) => {
                spans::describe(&span, verb, &target);
                work(target).await
            }
            Err(error) => Err(error),
        };
        let code = match &outcome {
            Ok(_) if verb == "create" => 201,
            Ok(_) => 200,
            Err(error) => error.code(),
        };
        spans::say_code(&span, code);
        count(&self.server, labels, code, began);
        outcome.map(Response::new).map_err(|error| status_of(&error))
    }
}

/// How a request about a resource is counted; not at all where it is not served.
fn labels(server: &ApiServer, verb: &'static str, target: &Result<Target, Error>) -> Option<Labels> {
    Labels::of(server.registry().resources(), verb, target.as_ref().ok()?)
}

fn count(server: &ApiServer, labels: Option<Labels>, code: u16, began: Instant) {
    if let Some(labels) = labels {
        server.metrics().record(labels, code, began.elapsed());
    }
}

/// The user of a request; put there by the HTTP front.
fn user_of<T>(request: &Request<T>) -> Result<Arc<User>, Status> {
    request.extensions().get::<Arc<User>>().cloned().ok_or_else(|| status_of(&Error::unauthorized()))
}

/// The program that asks, as it names itself.
fn user_agent_of<T>(request: &Request<T>) -> String {
    let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok());
    agent.unwrap_or("unknown").to_owned()
}

fn encoding_of(encoding: v1::Encoding) -> Encoding {
    match encoding {
        v1::Encoding::Protobuf => Encoding::Protobuf,
        v1::Encoding::Unspecified | v1::Encoding::Json => Encoding::Json,
    }
}

/// An object in the encoding asked for.
fn object_of(
    resource: &Resource,
    object: &CachedObject,
    encoding: v1::Encoding,
) -> Result<v1::Object, Error> {
    let body = match encoding_of(encoding) {
        Encoding::Protobuf => crate::http::sealed(resource, object)?,
        _ => resource.encoded(object)?.json().clone(),
    };
    Ok(v1::Object { encoding: encoding.into(), body })
}

fn reply_of(resource: &Resource, reply: &Reply, encoding: v1::Encoding) -> Result<v1::Object, Error> {
    match reply {
        Reply::Object(object) => object_of(resource, object, encoding),
        Reply::Value(value) => {
            Ok(v1::Object { encoding: encoding.into(), body: codec::encode(value, encoding_of(encoding))? })
        }
    }
}

/// The tree of an object that a client sent, and what there is to say of it.
fn decode(
    resource: &Resource,
    target: &Target,
    object: Option<v1::Object>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>, v1::Encoding), Error> {
    let object = object.ok_or_else(|| Error::bad_request("object: required"))?;
    let encoding = object.encoding();
    let body: Bytes = object.body;
    let (api_version, kind) = expected_type(resource, target);
    let decoded = codec::decode(&body, encoding_of(encoding), (&api_version, &kind), validation)?;
    Ok((decoded.object, decoded.warnings, encoding))
}

/// Options of a write, of that kind (`CreateOptions`), and how strictly its body is read.
fn options_of(
    kind: &str,
    user: &User,
    user_agent: &str,
    given: Option<v1::WriteOptions>,
) -> Result<(WriteOptions, FieldValidation), Error> {
    let given = given.unwrap_or_default();
    let validation = options::field_validation(kind, &given.field_validation)?;
    // Components are named for what they are, not for the library that they speak through.
    let user_agent = if user.name.starts_with("system:") { "" } else { user_agent }.to_owned();
    let write =
        WriteOptions { dry_run: given.dry_run, field_manager: given.field_manager, user_agent, uid: None };
    Ok((write, validation))
}
