//! The kubelet's HTTPS API, on 10250: logs, exec, attach, port-forward, connections to pods, and what it says of itself.
//!
//! Its client is the API server, which passes its own clients' streams through byte for byte; so WebSocket
//! and SPDY end here. It knows pods through [`PodSource`] and containers through the runtime, and nothing of
//! how they are kept running. Who calls is told by a client certificate or a token; what they may, by [`Authorizer`].

mod auth;
mod body;
mod configz;
mod connection;
mod delegated;
mod files;
mod logs;
mod netns;
mod routes;
mod settings;
pub mod spdy;
mod streams;
mod summary;
mod websocket;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::Runtime;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Telemetry;

use connection::Connection;

pub use auth::{AllowGroups, Attributes, Authorizer, TlsError, User, tls_config};
pub use delegated::Delegated;
pub use settings::{Reviews, ServerSettings, TlsLimits};

/// Connections at a time, those that have become streams included. Each costs a task and a TLS session; the API server
/// opens one a stream.
const MAX_CONNECTIONS: usize = 1024;

/// How long a stream may be silent in both directions: what upstream's `streamingConnectionIdleTimeout` is unset.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// How long a client may take over its handshake and the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long streams may go on after the server was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server has to know of the node's pods.
pub trait PodSource: Send + Sync + 'static {
    /// The pods of this node, as the API spells them: the body of `/pods` (a `v1` `PodList`).
    fn pods(&self) -> serde_json::Value;

    /// The runtime's id of the running container.
    fn container_id(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Refusal>;

    /// The log of the container's newest attempt, or of the one before it.
    fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        attempt: LogAttempt,
    ) -> Result<LogFile, Refusal>;

    /// The folder below which containers' logs are.
    fn log_folder(&self) -> PathBuf;

    /// Where the node reaches the pod, the preferred address first.
    fn addresses(&self, namespace: &str, pod: &str) -> Result<Vec<IpAddr>, Refusal>;

    /// Where the pod's ports are: its network namespace, `None` for the node's own.
    fn network(&self, namespace: &str, pod: &str) -> Result<Option<PathBuf>, Refusal>;

    /// `Err`, with the reason, makes `/healthz` fail.
    fn health(&self) -> Result<(), String> {
        Ok(())
    }

    /// The body of `/metrics`, in Prometheus' text format.
    fn metrics(&self) -> String {
        self.telemetry().map(|telemetry| telemetry.metrics()).unwrap_or_default()
    }

    /// What the kubelet knows of itself and of what pods use; `None` where there is no kubelet behind the server.
    fn telemetry(&self) -> Option<Telemetry> {
        None
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogAttempt {
    Newest,
    /// `kubectl logs -p`
    Previous,
}

/// A container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    pub container_id: String,
    /// The container is known to have ended. Its log writer may be behind all the same.
    pub has_ended: bool,
}

/// Why a request is not served: an HTTP status, and a text that the client shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.into() }
    }
}

/// What requests are answered with.
pub struct Backend {
    pub node_name: String,
    pub runtime: Arc<dyn Runtime>,
    pub pods: Arc<dyn PodSource>,
    pub authorizer: Arc<dyn Authorizer>,
}

/// A server that has its port.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    backend: Arc<Backend>,
}

impl Server {
    pub async fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        backend: Backend,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, tls: TlsAcceptor::from(tls), backend: Arc::new(backend) })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; streams then have a moment to end.
    pub async fn run(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // Waiting here leaves further connections in the kernel's queue.
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &permits) => accepted,
            };
            let (stream, permit) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection to the kubelet could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection =
                serve_connection(stream, permit, self.tls.clone(), Arc::clone(&self.backend), tasks.clone());
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stopped_and_drained(&stop) => {}
                    result = connection => if let Err(error) = result {
                        tracing::debug!(%error, "connection to the kubelet ended");
                    }
                }
            });
        }
        tasks.close();
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, tasks.wait()).await;
    }
}

async fn stopped_and_drained(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN_TIMEOUT).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve_connection(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    tls: TlsAcceptor,
    backend: Arc<Backend>,
    tasks: TaskTracker,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    hawser_api::long_lived(&stream)?;
    let stream = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await??;
    let user = auth::user_of(stream.get_ref().1.peer_certificates());
    let service =
        service_fn(move |request| routes::answer(Arc::clone(&backend), tasks.clone(), user.clone(), request));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(Connection::new(stream, permit, STREAM_IDLE_TIMEOUT)), service)
        .with_upgrades()
        .await?;
    Ok(())
}
