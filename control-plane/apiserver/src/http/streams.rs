//! Streams that pass through to a node's kubelet: logs, exec, attach, port-forward.
//!
//! The API server checks who may, finds the kubelet, and from then on copies bytes. A stream begins as an HTTP/1.1 upgrade
//! on both sides (WebSocket or SPDY: what client and kubelet agree on is not looked at).

use std::sync::Arc;

use hawser_api::{Error, error::Reason};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    body::{self, Body},
    kubelet::{self, Sender},
    path::Query,
};
use crate::{
    ApiServer,
    ops::{Call, KubeletEndpoint, StreamKind},
};

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
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let Some(endpoint) = server.connect(call, kind, query.pairs()).await? else {
        let mut nothing = Response::new(body::full(""));
        *nothing.status_mut() = StatusCode::NO_CONTENT;
        return Ok(nothing);
    };
    let upgrades = upgrades(kind, request.headers());
    if kind == StreamKind::Log && !upgrades {
        return log(server, &endpoint).await;
    }
    if !upgrades {
        return Err(Error::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    stream(server, &endpoint, request).await
}

/// Whether a stream is asked for. A log comes in the answer's body unless it is a WebSocket's: what else a client says of
/// other protocols (`Upgrade: h2c`) is no reason to refuse it.
fn upgrades(kind: StreamKind, headers: &HeaderMap) -> bool {
    if kind != StreamKind::Log {
        return headers.contains_key(header::UPGRADE);
    }
    let values = headers.get_all(header::UPGRADE).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

async fn log(server: &ApiServer, endpoint: &KubeletEndpoint) -> Result<Response<Body>, Error> {
    let (answer, sender) = ask(server, endpoint, Method::GET, &HeaderMap::new()).await?;
    if !answer.status().is_success() {
        return Err(refused(answer).await);
    }
    let (parts, body) = answer.into_parts();
    // Ends when the log does, or when the client goes and drops the body.
    let mut response = Response::new(kubelet::keeping(sender, body));
    let content_type = parts.headers.get(header::CONTENT_TYPE).cloned();
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type.unwrap_or(plain));
    Ok(response)
}

async fn stream(
    server: &Arc<ApiServer>,
    endpoint: &KubeletEndpoint,
    client: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let (answer, _sender) = ask(server, endpoint, client.method().clone(), client.headers()).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refused(answer).await);
    }
    let mut response = Response::new(kubelet::nothing());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in UPGRADE_HEADERS {
        for value in answer.headers().get_all(name) {
            response.headers_mut().append(HeaderName::from_static(name), value.clone());
        }
    }
    kubelet::join(server, client, answer, endpoint.kubelet.node.clone());
    Ok(response)
}

async fn ask(
    server: &ApiServer,
    endpoint: &KubeletEndpoint,
    method: Method,
    headers: &HeaderMap,
) -> Result<(Response<Incoming>, Sender), Error> {
    let failed = |error: String| Error::internal(format!("error dialing backend: {error}"));
    let mut request = Request::builder()
        .method(method)
        .uri(&endpoint.path_and_query)
        .header(header::HOST, endpoint.kubelet.address.to_string());
    for name in UPGRADE_HEADERS {
        for value in headers.get_all(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(kubelet::nothing()).map_err(Error::internal)?;
    let connection = kubelet::dial(server, &endpoint.kubelet).await.map_err(failed)?;
    let mut sender = kubelet::begin(connection).await.map_err(|error| failed(error.to_string()))?;
    let answer = kubelet::ask(&mut sender, request).await.map_err(failed)?;
    Ok((answer, sender))
}

/// What a kubelet said instead of what was wanted.
async fn refused(answer: Response<Incoming>) -> Error {
    let code = answer.status();
    let text = kubelet::text_of(answer).await;
    match code {
        StatusCode::NOT_FOUND => Error::new(Reason::NotFound, text),
        // No version of the stream's protocol is known to both sides.
        StatusCode::FORBIDDEN => Error::new(Reason::Forbidden, text),
        code if code.is_client_error() => Error::bad_request(text),
        code => Error::internal(format!("the kubelet answered {code}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_a_stream_for_websockets_alone() {
        for (upgrade, log) in
            [("websocket", true), ("h2c, WebSocket", true), ("h2c", false), ("SPDY/3.1", false), ("", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
            assert_eq!(upgrades(StreamKind::Log, &headers), log, "{upgrade:?}");
            assert!(upgrades(StreamKind::Exec, &headers), "what the kubelet thinks of it, it says");
        }
        assert!(!upgrades(StreamKind::Log, &HeaderMap::new()));
    }
}
