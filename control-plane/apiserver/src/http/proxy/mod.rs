//! The subresource `proxy`: HTTP requests passed on to pods, endpoints of services, and kubelets.
//!
//! The API server is no part of the pod network: it asks the kubelet of the pod's node for a connection to the port, and
//! speaks HTTP/1.1 through it, with TLS that ends in the pod where the scheme asks for it. Upgrades pass, and bodies stream
//! in both directions. What comes back is made to fit the address under which the client asked ([`rewrite`]).

mod headers;
mod html;
mod rewrite;
mod tls;

use std::{net::SocketAddr, sync::Arc};

use hawser_api::Error;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;

use super::{
    body::Body,
    kubelet::{self, Sender},
    path::split_after,
};
use crate::{
    ApiServer,
    ops::{Call, KubeletEndpoint, ProxyTarget},
};
use rewrite::Rewriter;

/// What the kubelet calls a plain connection to a port, as a protocol to upgrade to.
const TCP: &str = "tcp";

pub(super) async fn answer(
    server: &Arc<ApiServer>,
    call: &Call,
    peer: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let target = server.proxy_target(call).await?;
    let uri = request.uri().clone();
    // `/api/v1/namespaces/{namespace}/{resource}/{name}/proxy`, or the same without a namespace.
    let segments = if call.resource.row.namespaced { 7 } else { 5 };
    let (prefix, path) = split_after(uri.path(), segments);
    let is_upgrade = headers::ask_for_upgrade(request.headers());
    if path.is_empty() && !is_upgrade && matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(moved(prefix, uri.query()));
    }
    let host = headers::host(&request);
    let outgoing = outgoing(&request, (prefix, path), peer, is_upgrade)?;
    let is_head = outgoing.method() == Method::HEAD;
    let mut sender = open(server, &target).await.map_err(unreachable)?;
    let (client, body) = if is_upgrade {
        (Some(request), kubelet::nothing())
    } else {
        (None, request.into_body().map_err(Into::into).boxed_unsync())
    };
    // As long as it takes: only the client knows how long it wants to wait.
    let answer = sender.send_request(outgoing.map(|()| body)).await;
    let answer = answer.map_err(|error| unreachable(error.to_string()))?;
    if let Some(client) = client
        && answer.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        return Ok(upgraded(server, &target, client, answer));
    }
    let rewriter = Rewriter::new(prefix, &target.address().to_string(), &host);
    returned(answer, sender, &rewriter, is_head).await
}

fn unreachable(error: String) -> Error {
    Error::unavailable(format!("error trying to reach service: {error}"))
}

/// Relative links of the other side's first page must not lead out of the proxy.
fn moved(path: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let mut response = Response::new(kubelet::nothing());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{path}/{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The request as the other side gets it, without its body.
fn outgoing(
    request: &Request<Incoming>,
    (prefix, path): (&str, &str),
    peer: Option<SocketAddr>,
    is_upgrade: bool,
) -> Result<Request<()>, Error> {
    let path = if path.is_empty() { "/" } else { path };
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let mut fields = headers::passed_on(request, is_upgrade);
    headers::add_forwarded(&mut fields, peer, &format!("{prefix}{path}"));
    let outgoing = Request::builder().method(request.method()).uri(format!("{path}{query}"));
    let mut outgoing = outgoing.body(()).map_err(|error| Error::bad_request(error.to_string()))?;
    *outgoing.headers_mut() = fields;
    Ok(outgoing)
}

fn upgraded(
    server: &Arc<ApiServer>,
    target: &ProxyTarget,
    client: Request<Incoming>,
    answer: Response<Incoming>,
) -> Response<Body> {
    let mut response = Response::new(kubelet::nothing());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    kubelet::join(server, client, answer, target.node().to_owned());
    response
}

async fn open(server: &ApiServer, target: &ProxyTarget) -> Result<Sender, String> {
    let port = match target {
        ProxyTarget::Kubelet(kubelet) => {
            let connection = kubelet::dial(server, kubelet).await?;
            return kubelet::begin(connection).await.map_err(|error| error.to_string());
        }
        ProxyTarget::Pod(port) => port,
    };
    let connection = TokioIo::new(connect(server, &port.connection).await?);
    let sender = if port.tls {
        let connection =
            tls::connect(port.address.ip(), connection).await.map_err(|error| error.to_string())?;
        kubelet::begin(connection).await
    } else {
        kubelet::begin(connection).await
    };
    sender.map_err(|error| error.to_string())
}

/// A connection to a pod's port, made by its node.
async fn connect(server: &ApiServer, endpoint: &KubeletEndpoint) -> Result<Upgraded, String> {
    let mut sender =
        kubelet::begin(kubelet::dial(server, &endpoint.kubelet).await?).await.map_err(|e| e.to_string())?;
    let request = Request::post(&endpoint.path_and_query)
        .header(header::HOST, endpoint.kubelet.address.to_string())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, TCP)
        .body(kubelet::nothing())
        .map_err(|error| error.to_string())?;
    let answer = kubelet::ask(&mut sender, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(kubelet::text_of(answer).await);
    }
    upgrade::on(answer).await.map_err(|error| error.to_string())
}

/// The other side's answer as the client gets it.
async fn returned(
    answer: Response<Incoming>,
    sender: Sender,
    rewriter: &Rewriter,
    is_head: bool,
) -> Result<Response<Body>, Error> {
    let (mut parts, body) = answer.into_parts();
    let body = kubelet::keeping(sender, body);
    headers::clean_answer(&mut parts.headers);
    let location = parts.headers.get(header::LOCATION).cloned();
    let body = match location {
        Some(location) => {
            let rewritten = location.to_str().ok().and_then(|location| rewriter.url(location));
            if let Some(value) = rewritten.and_then(|url| HeaderValue::try_from(url).ok()) {
                parts.headers.insert(header::LOCATION, value);
            }
            body
        }
        None if is_head || !html::is_html(&parts.headers) => body,
        None => {
            html::rewrite(&mut parts.headers, body, rewriter).await.map_err(|e| unreachable(e.to_string()))?
        }
    };
    // A new one: its version is the client's connection's, not the other side's.
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}
