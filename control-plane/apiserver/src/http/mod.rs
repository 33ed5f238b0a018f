//! The HTTP front: one TLS port for HTTP/1.1, HTTP/2 and gRPC.
//!
//! A connection is a task; it knows its client certificate's user from the handshake. Requests are told apart by content
//! type (gRPC) and path. On shutdown nothing new is accepted, requests in flight are finished, watches end.

mod body;
mod encode;
mod handler;
mod info;
mod kubelet;
mod negotiate;
mod objects;
mod path;
mod proxy;
mod socket_token;
mod statusz;
mod streams;
mod watch;

pub use body::Body;
pub(crate) use encode::sealed;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    ApiServer,
    auth::{User, authn::certificate_user},
};

/// Connections at a time: each costs a task, buffers and a file descriptor. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 20_000;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const HEADER_DEADLINE: Duration = Duration::from_secs(30);

/// Streams of one HTTP/2 connection; client-go opens one watch for each kind, and upstream allows as many.
const MAX_STREAMS: u32 = 1_000;

/// What is known of a connection.
pub struct Peer {
    pub user: Option<Arc<User>>,
    pub address: SocketAddr,
}

/// Serves `server` on a listener until `shutdown`, then finishes what is in flight, for at most `grace`.
pub async fn serve(
    server: Arc<ApiServer>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let grpc = crate::grpc::routes(server.clone());
    let mut connections = JoinSet::new();
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving");
    }
    loop {
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = room.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let (acceptor, shutdown) = (acceptor.clone(), shutdown.clone());
                let service = handler::Service::new(server.clone(), grpc.clone());
                connections.spawn(async move {
                    connection(service, stream, address, acceptor, shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give the others time to close.
                warn!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(grace, drained).await.is_err() {
        debug!("connections are cut");
    }
}

async fn connection(
    service: handler::Service,
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    shutdown: CancellationToken,
) {
    if let Err(error) = hawser_api::long_lived(&stream) {
        return debug!(%address, %error, "connection broke before its handshake");
    }
    let stream = match timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%address, %error, "TLS handshake failed"),
        Err(_) => return debug!(%address, "TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|certificate| certificate_user(certificate));
    let service = TowerToHyperService::new(service.for_peer(Peer { user, address }));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        debug!(%address, %error, "connection ended");
    }
}
