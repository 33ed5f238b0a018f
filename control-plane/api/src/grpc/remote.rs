//! [`Client`] over gRPC.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tracing::warn;

use super::{NodeEvent, NodeSession, resource_of, status::from_grpc};
use crate::{
    Error,
    client::{
        Binding, Client, DeleteOptions, List, ListOptions, Patch, WatchEvent, WatchOptions, WatchStream,
        WriteOptions,
    },
    resource::Target,
    v1::{
        self, binding_service_client::BindingServiceClient, node_service_client::NodeServiceClient,
        object_service_client::ObjectServiceClient, watch_service_client::WatchServiceClient,
    },
};

/// After this a call fails, whatever the server does. Streams have no such end.
const DEADLINE: Duration = Duration::from_secs(30);
/// A server that answers no ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Largest message: a list arrives in messages of a few objects, an object has 1.5 MiB at most.
const MESSAGE_LIMIT: usize = 32 << 20;

/// How to reach the API servers, and as whom.
#[derive(Clone)]
pub struct RemoteOptions {
    /// `https://10.0.0.1:6443`; more than one share the load, and stand in for each other.
    pub servers: Vec<String>,
    /// The authority that signed the servers' certificates, PEM.
    pub ca_pem: Vec<u8>,
    /// Client certificate and key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Reads and writes over gRPC. Cheap to clone; connects when first used, and again after a break.
#[derive(Clone)]
pub struct Remote {
    objects: ObjectServiceClient<Channel>,
    watches: WatchServiceClient<Channel>,
    bindings: BindingServiceClient<Channel>,
    nodes: NodeServiceClient<Channel>,
}

impl Remote {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// BadRequest for an address or a certificate that cannot be read.
    pub fn new(options: &RemoteOptions) -> Result<Self, Error> {
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&options.ca_pem));
        if let Some((certificate, key)) = &options.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = |server: &String| {
            let failed = |error| Error::bad_request(format!("API server {server:?}: {error}"));
            Ok(Endpoint::from_shared(server.clone())
                .map_err(|error| failed(error.to_string()))?
                .tls_config(tls.clone())
                .map_err(|error| failed(error.to_string()))?
                .connect_timeout(Duration::from_secs(5))
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(8 << 20))
        };
        let endpoints = options.servers.iter().map(endpoint).collect::<Result<Vec<_>, Error>>()?;
        let channel = match endpoints.as_slice() {
            [] => return Err(Error::bad_request("no API server is named")),
            [only] => only.connect_lazy(),
            _ => Channel::balance_list(endpoints.into_iter()),
        };
        Ok(Self {
            objects: ObjectServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            watches: WatchServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            bindings: BindingServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// Opens the node's stream, which then keeps itself open.
    pub fn node_session(&self, node_name: &str) -> (NodeSession, tokio::sync::mpsc::Receiver<NodeEvent>) {
        NodeSession::start(self.nodes.clone(), node_name.to_owned())
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn json(body: Bytes) -> Option<v1::Object> {
    Some(v1::Object { encoding: v1::Encoding::Json.into(), body })
}

/// An answer's object. Its warnings are logged: who asks through [`Client`] is a program.
fn body(object: Option<v1::Object>, warnings: &[String]) -> Result<Bytes, Error> {
    for warning in warnings {
        warn!(%warning, "the API server warns");
    }
    object.map(|object| object.body).ok_or_else(|| Error::internal("the server's answer has no object"))
}

fn options(options: &WriteOptions) -> Option<v1::WriteOptions> {
    Some(v1::WriteOptions {
        dry_run: options.dry_run,
        field_manager: options.field_manager.clone(),
        field_validation: String::new(),
    })
}

#[async_trait]
impl Client for Remote {
    async fn get(&self, target: &Target) -> Result<Bytes, Error> {
        let message = v1::GetRequest {
            resource: Some(resource_of(target)),
            encoding: v1::Encoding::Json.into(),
            ..v1::GetRequest::default()
        };
        let answer = self.objects.clone().get(request(message)).await.map_err(|status| from_grpc(&status))?;
        let answer = answer.into_inner();
        body(answer.object, &answer.warnings)
    }

    async fn list(&self, target: &Target, options: &ListOptions) -> Result<List, Error> {
        let message = v1::ListRequest {
            resource: Some(resource_of(target)),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
            encoding: v1::Encoding::Json.into(),
            ..v1::ListRequest::default()
        };
        let answer =
            self.objects.clone().list(Request::new(message)).await.map_err(|status| from_grpc(&status))?;
        let mut stream = answer.into_inner();
        let mut list = List { items: Vec::new(), resource_version: String::new() };
        while let Some(part) = stream.try_next().await.map_err(|status| from_grpc(&status))? {
            list.items.extend(part.items.into_iter().map(|object| object.body));
            if !part.resource_version.is_empty() {
                list.resource_version = part.resource_version;
            }
        }
        if list.resource_version.is_empty() {
            return Err(Error::unavailable("the list broke off"));
        }
        Ok(list)
    }

    async fn watch(&self, target: &Target, options: &WatchOptions) -> Result<WatchStream, Error> {
        let message = v1::WatchRequest {
            resource: Some(resource_of(target)),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
            resource_version: options.resource_version.clone(),
            encoding: v1::Encoding::Json.into(),
            allow_bookmarks: true,
            ..v1::WatchRequest::default()
        };
        let answer =
            self.watches.clone().watch(Request::new(message)).await.map_err(|status| from_grpc(&status))?;
        let events =
            answer.into_inner().map(|event| event.map_err(|status| from_grpc(&status)).and_then(event_of));
        Ok(events.boxed())
    }

    async fn create(&self, target: &Target, object: Bytes, write: &WriteOptions) -> Result<Bytes, Error> {
        let message = v1::CreateRequest {
            resource: Some(resource_of(target)),
            object: json(object),
            options: options(write),
        };
        let answer =
            self.objects.clone().create(request(message)).await.map_err(|status| from_grpc(&status))?;
        let answer = answer.into_inner();
        body(answer.object, &answer.warnings)
    }

    async fn update(&self, target: &Target, object: Bytes, write: &WriteOptions) -> Result<Bytes, Error> {
        let message = v1::UpdateRequest {
            resource: Some(resource_of(target)),
            object: json(object),
            options: options(write),
        };
        let answer =
            self.objects.clone().update(request(message)).await.map_err(|status| from_grpc(&status))?;
        let answer = answer.into_inner();
        body(answer.object, &answer.warnings)
    }

    async fn patch(&self, target: &Target, patch: Patch, write: &WriteOptions) -> Result<Bytes, Error> {
        let (kind, patch) = match patch {
            Patch::Json(patch) => (v1::PatchType::Json, patch),
            Patch::Merge(patch) => (v1::PatchType::Merge, patch),
            Patch::StrategicMerge(patch) => (v1::PatchType::StrategicMerge, patch),
            Patch::Apply { configuration, force } => {
                let message = v1::ApplyRequest {
                    resource: Some(resource_of(target)),
                    configuration,
                    options: options(write),
                    force,
                    encoding: v1::Encoding::Json.into(),
                };
                let answer = self
                    .objects
                    .clone()
                    .apply(request(message))
                    .await
                    .map_err(|status| from_grpc(&status))?;
                let answer = answer.into_inner();
                return body(answer.object, &answer.warnings);
            }
        };
        let message = v1::PatchRequest {
            resource: Some(resource_of(target)),
            r#type: kind.into(),
            patch,
            options: options(write),
            encoding: v1::Encoding::Json.into(),
        };
        let answer =
            self.objects.clone().patch(request(message)).await.map_err(|status| from_grpc(&status))?;
        let answer = answer.into_inner();
        body(answer.object, &answer.warnings)
    }

    async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<Bytes, Error> {
        let message = v1::DeleteRequest {
            resource: Some(resource_of(target)),
            grace_period_seconds: options.grace_period_seconds,
            propagation_policy: options.propagation.map(|word| word.as_str().to_owned()).unwrap_or_default(),
            uid: options.uid.clone().unwrap_or_default(),
            resource_version: options.resource_version.clone().unwrap_or_default(),
            dry_run: false,
            collection: target.name.is_none(),
            label_selector: options.label_selector.clone(),
            field_selector: options.field_selector.clone(),
            encoding: v1::Encoding::Json.into(),
        };
        let answer =
            self.objects.clone().delete(request(message)).await.map_err(|status| from_grpc(&status))?;
        let answer = answer.into_inner();
        body(answer.object, &answer.warnings)
    }

    async fn bind(&self, bindings: &[Binding]) -> Vec<Result<(), Error>> {
        let message = v1::BindRequest {
            bindings: bindings
                .iter()
                .map(|binding| v1::Binding {
                    namespace: binding.namespace.clone(),
                    pod: binding.pod.clone(),
                    uid: binding.uid.clone(),
                    node: binding.node.clone(),
                })
                .collect(),
        };
        let answer = self.bindings.clone().bind(request(message)).await;
        let results = match answer {
            Ok(answer) => answer.into_inner().results,
            Err(status) => return vec![Err(from_grpc(&status)); bindings.len()],
        };
        let mut outcomes: Vec<Result<(), Error>> =
            results.into_iter().map(|result| outcome(&result.error)).collect();
        outcomes.resize_with(bindings.len(), || Err(Error::internal("the server's answer is short")));
        outcomes
    }
}

/// What an answer's `error` field says: empty where all is well, else the `metav1.Status` as JSON.
pub(super) fn outcome(error: &[u8]) -> Result<(), Error> {
    if error.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice(error).map_or_else(Error::internal, |status| Error::from_status(&status)))
}

fn event_of(response: v1::WatchResponse) -> Result<WatchEvent, Error> {
    let resource_version = response.resource_version.clone();
    let kind = response.r#type();
    if kind == v1::EventType::Bookmark {
        return Ok(WatchEvent::Bookmark { resource_version });
    }
    let object = body(response.object, &[])?;
    match kind {
        v1::EventType::Added => Ok(WatchEvent::Added { object, resource_version }),
        v1::EventType::Modified => Ok(WatchEvent::Modified { object, resource_version }),
        v1::EventType::Deleted => Ok(WatchEvent::Deleted { object, resource_version }),
        v1::EventType::Bookmark | v1::EventType::Unspecified => Err(Error::internal("unknown kind of event")),
    }
}
