//! gRPC over unix sockets, as a kubelet and its plugins speak it.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time; a plugin makes one.
const MAX_CONNECTIONS: usize = 64;

/// A connection to a plugin's socket.
pub async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    endpoint().connect_with_connector(connector(socket)).await
}

/// The same, made when it is first used, and again where it broke.
pub fn connect_lazily(socket: PathBuf) -> Channel {
    endpoint().connect_with_connector_lazy(connector(socket))
}

fn endpoint() -> Endpoint {
    // The address is not used: there is but the one socket.
    Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT)
}

/// Connects to the socket, whatever it is asked for.
fn connector(
    socket: PathBuf,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = std::io::Error, Future: Send + 'static> + Send
{
    tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}

/// A plugin's answer, or why there is none: its own words, or that it took too long.
pub(crate) async fn within<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err(format!("no answer within {timeout:?}")),
    }
}

/// Serves a generated service until dropped, or until the socket fails.
pub async fn serve<S>(listener: UnixListener, service: S) -> std::io::Error
where
    S: Service<Request<Incoming>, Response = Response<tonic::body::Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => return error,
            },
            Some(_) = connections.join_next() => continue,
        };
        let service = TowerToHyperService::new(service.clone());
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection of a plugin ended");
            }
        });
    }
}
