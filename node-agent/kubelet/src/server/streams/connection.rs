//! A plain connection to a port of a pod of this node: what the API server passes its proxies' requests through.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::probes::check::{dial_failure, dial_timeout};
use crate::server::body::{self, Body};
use crate::server::routes::{Query, parameter};
use crate::server::{Backend, Refusal};

/// What the connection is upgraded to.
const TCP: &str = "tcp";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, and only then accepts the upgrade: 502 with the reason where the pod does not answer.
pub(in crate::server) async fn connect(
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
    (namespace, pod): (&str, &str),
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let wanted = request.headers().get(header::UPGRADE).map(HeaderValue::as_bytes);
    if wanted != Some(TCP.as_bytes()) {
        return Err(Refusal::bad_request("unable to upgrade: tcp expected"));
    }
    let port = parameter(query, "port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let port = port.ok_or_else(|| Refusal::bad_request("query parameter \"port\" is required"))?;
    let addresses = backend.pods.addresses(namespace, pod)?;
    let mut connection = dial(&addresses, port)
        .await
        .map_err(|message| Refusal { status: StatusCode::BAD_GATEWAY, message })?;
    let _ = connection.set_nodelay(true);
    let mut response = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(TCP));
    tasks.spawn(async move {
        match hyper::upgrade::on(request).await {
            // Ends when both sides have closed, or one of them breaks.
            Ok(upgraded) => {
                let copied = copy_bidirectional(&mut TokioIo::new(upgraded), &mut connection).await;
                if let Err(error) = copied {
                    tracing::debug!(%error, "connection to a pod ended");
                }
            }
            Err(error) => tracing::debug!(%error, "client left during the upgrade"),
        }
    });
    Ok(response)
}

/// Tries the addresses one after the other; the first failure is the one that is told.
async fn dial(addresses: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut failure = None;
    for address in addresses {
        let attempt = TcpStream::connect(SocketAddr::new(*address, port));
        let host = address.to_string();
        let failed = match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => dial_failure(&host, port, &error),
            Err(_) => dial_timeout(&host, port),
        };
        failure.get_or_insert(failed);
    }
    Err(failure.unwrap_or_else(|| "the pod has no address".to_owned()))
}
