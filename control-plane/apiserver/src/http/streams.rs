//! Streams that pass through to a node's kubelet: logs, exec, attach, port-forward.
//!
//! The API server checks who may, finds the kubelet, and from then on copies bytes. A stream begins as an HTTP/1.1 upgrade
//! on both sides (WebSocket or SPDY: what client and kubelet agree on is not looked at).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hawser_api::Error;
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{io::copy_bidirectional, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::debug;

use super::{body::Body, path::Query};
use crate::{
    ApiServer,
    ops::{Call, KubeletEndpoint, StreamKind},
};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a kubelet may take to begin its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Headers of an upgrade that are passed on, in both directions.
const UPGRADE_HEADERS: [&str; 9] = [
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "sec-websocket-accept",
    "x-stream-protocol-version",
    "x-accepted-stream-protocol-versions",
];

pub(super) async fn answer(
    server: &Arc<ApiServer>,
    call: &Call,
    kind: StreamKind,
    query: &Query,
    request: http::Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let endpoint = server.connect(call, kind, query.pairs()).await?;
    if kind == StreamKind::Log {
        return log(server, &endpoint).await;
    }
    if request.headers().get(header::UPGRADE).is_none() {
        return Err(Error::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    stream(server, &endpoint, request).await
}

async fn connect(server: &ApiServer, endpoint: &KubeletEndpoint) -> Result<TlsStream<TcpStream>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::internal(format!("error dialing backend: {}: {error}", endpoint.address))
    };
    let Some(config) = server.kubelet_tls() else {
        return Err(Error::unavailable("this API server has no credentials for kubelets"));
    };
    let dial = async {
        let stream = TcpStream::connect(endpoint.address).await.map_err(|error| failed(&error))?;
        let _ = stream.set_nodelay(true);
        // The certificate is the node's, by name: addresses come from the node's own status.
        let name = ServerName::try_from(endpoint.node.clone()).map_err(|error| failed(&error))?;
        TlsConnector::from(config.clone()).connect(name, stream).await.map_err(|error| failed(&error))
    };
    timeout(CONNECT_DEADLINE, dial).await.map_err(|_| failed(&"timeout"))?
}

fn request(
    endpoint: &KubeletEndpoint,
    method: http::Method,
    headers: &HeaderMap,
) -> Result<http::Request<Empty<Bytes>>, Error> {
    let mut request = http::Request::builder()
        .method(method)
        .uri(&endpoint.path_and_query)
        .header(header::HOST, host(endpoint.address));
    for name in UPGRADE_HEADERS {
        for value in headers.get_all(name) {
            request = request.header(name, value);
        }
    }
    request.body(Empty::new()).map_err(Error::internal)
}

fn host(address: SocketAddr) -> String {
    address.to_string()
}

async fn log(server: &ApiServer, endpoint: &KubeletEndpoint) -> Result<Response<Body>, Error> {
    let stream = connect(server, endpoint).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::internal)?;
    // Ends when the log does, or when the client goes and drops the body.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to a kubelet ended");
        }
    });
    let request = request(endpoint, http::Method::GET, &HeaderMap::new())?;
    let answer = timeout(ANSWER_DEADLINE, sender.send_request(request))
        .await
        .map_err(|_| Error::timeout("the kubelet did not answer in time"))?
        .map_err(Error::internal)?;
    if !answer.status().is_success() {
        return Err(refused(answer).await);
    }
    let (parts, body) = answer.into_parts();
    // The sender must live as long as the body: a dropped sender ends the connection.
    let body = body.map_frame(move |frame| {
        let _ = &sender;
        frame
    });
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type.unwrap_or(plain));
    Ok(response)
}

/// What a kubelet said instead of what was wanted.
async fn refused(answer: Response<Incoming>) -> Error {
    let code = answer.status();
    let text = match super::body::read(answer.into_body()).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        StatusCode::NOT_FOUND => Error::new(hawser_api::error::Reason::NotFound, text),
        code if code.is_client_error() => Error::bad_request(text),
        code => Error::internal(format!("the kubelet answered {code}: {text}")),
    }
}

/// Joins the client's upgraded connection with one to the kubelet.
async fn stream(
    server: &Arc<ApiServer>,
    endpoint: &KubeletEndpoint,
    mut client: http::Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let stream = connect(server, endpoint).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::internal)?;
    let shutdown = server.shutdown().clone();
    // Ends with the upgrade, which takes the connection over.
    tokio::spawn(connection.with_upgrades());
    let request = request(endpoint, client.method().clone(), client.headers())?;
    let mut answer = timeout(ANSWER_DEADLINE, sender.send_request(request))
        .await
        .map_err(|_| Error::timeout("the kubelet did not answer in time"))?
        .map_err(Error::internal)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(answer).await);
    }
    let mut response = Response::new(super::body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in UPGRADE_HEADERS {
        for value in answer.headers().get_all(name) {
            response.headers_mut().append(HeaderName::from_static(name), value.clone());
        }
    }
    let node = endpoint.node.clone();
    // Ends when either side closes, or with the server.
    tokio::spawn(async move {
        let joined = async {
            let (ours, theirs) = tokio::try_join!(upgrade::on(&mut client), upgrade::on(&mut answer))?;
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            copy_bidirectional(&mut ours, &mut theirs).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            outcome = joined => if let Err(error) = outcome {
                debug!(%node, %error, "stream ended");
            }
        }
    });
    Ok(response)
}
