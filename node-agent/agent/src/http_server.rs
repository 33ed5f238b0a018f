//! Small HTTP servers of the agent: metrics, health. One answer a connection; bounded connections and times.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

pub(crate) type Answer = Response<Full<Bytes>>;

/// Connections of one server at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long one connection may take from its first byte to its last.
const MAX_TIME: Duration = Duration::from_secs(30);
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Answers requests until dropped.
pub(crate) async fn serve<H>(listener: TcpListener, handler: H)
where
    H: Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    if let Ok(Err(error)) = timeout(MAX_TIME, serve_one(stream, handler)).await {
                        debug!(%error, "connection ended early");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one<H>(stream: TcpStream, handler: Arc<H>) -> hyper::Result<()>
where
    H: Fn(&Request<Incoming>) -> Answer,
{
    let service = service_fn(|request| {
        let answer = handler(&request);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Serves at `address` until dropped. A port that is taken is tried again: another process may give it back.
pub(crate) async fn serve_at<H>(what: &'static str, address: SocketAddr, handler: H)
where
    H: Fn(&Request<Incoming>) -> Answer + Send + Sync + 'static,
{
    let mut warned = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !warned {
                    warn!(%address, %error, "{what} cannot be served; trying again");
                    warned = true;
                }
                sleep(BIND_AGAIN).await;
            }
        }
    };
    serve(listener, handler).await;
}

/// A port on all addresses of this namespace, of both families where IPv6 is there.
pub(crate) async fn bind_everywhere(port: u16) -> io::Result<TcpListener> {
    let v6 = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).await;
    match v6 {
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(crate) fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".into())
}
