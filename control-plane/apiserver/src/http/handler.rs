//! One request: who asks, what for, and the answer, whatever goes wrong on the way.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hawser_api::{Error, error::Reason};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use jiff::SignedDuration;
use serde_json::json;
use tokio::time::timeout;
use tower::Service as _;
use tracing::{Instrument, debug, error};

use super::{
    Peer,
    body::{self, Body},
    encode, info,
    negotiate::{self, Output},
    objects,
    path::{PROXY, Query, Route, route},
    socket_token,
};
use crate::{
    ApiServer,
    auth::{Attributes, User, impersonation},
    grpc::deadline,
    metrics::Labels,
    spans,
};

/// What a request may take that is no watch or stream (upstream's `--request-timeout`).
const DEADLINE: Duration = Duration::from_secs(60);
/// What is passed on takes as long as the other side takes, or until the client goes.
const NO_DEADLINE: Duration = Duration::MAX;

#[derive(Clone)]
pub(super) struct Service {
    server: Arc<ApiServer>,
    grpc: tonic::service::Routes,
    peer: Option<Arc<Peer>>,
}

impl Service {
    pub(super) fn new(server: Arc<ApiServer>, grpc: tonic::service::Routes) -> Self {
        Self { server, grpc, peer: None }
    }

    pub(super) fn for_peer(self, peer: Peer) -> Self {
        Self { peer: Some(Arc::new(peer)), ..self }
    }
}

impl tower::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (server, peer) = (self.server.clone(), self.peer.clone());
        if is_grpc(request.headers()) {
            let mut grpc = self.grpc.clone();
            return Box::pin(
                async move { Ok(grpc_call(&server, &mut grpc, peer.as_deref(), request).await) },
            );
        }
        Box::pin(async move { Ok(answer(&server, peer.as_deref(), request).await) })
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn authenticate(server: &ApiServer, peer: Option<&Peer>, headers: &HeaderMap) -> Result<Arc<User>, Error> {
    let certificate = peer.and_then(|peer| peer.user.as_ref());
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let user = server.authenticator().authenticate(certificate, authorization)?;
    impersonation::effective(user, headers, server.chain().authorizer().as_ref())
}

async fn grpc_call(
    server: &Arc<ApiServer>,
    grpc: &mut tonic::service::Routes,
    peer: Option<&Peer>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    match authenticate(server, peer, request.headers()) {
        Ok(user) => {
            request.extensions_mut().insert(user);
        }
        Err(error) => return deadline::refusal(&error),
    }
    let path = request.uri().path().to_owned();
    let asked = deadline::asked(request.headers());
    let traced = spans::Request::begin(request.method(), &path, request.headers(), server.adopt());
    if let Some(user) = request.extensions().get::<Arc<User>>() {
        traced.span.record("user", user.name.as_str());
    }
    let call = || async move { grpc.call(request).await.unwrap_or_else(|never| match never {}) };
    let mut response = deadline::within(&path, asked, call).instrument(traced.span.clone()).await;
    traced.end(None, response.headers_mut());
    response
}

async fn answer(
    server: &Arc<ApiServer>,
    peer: Option<&Peer>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let began = Instant::now();
    let query = Query::parse(request.uri().query());
    let path = request.uri().path().to_owned();
    let found = route(request.method(), &path, &query);
    let traced = spans::Request::begin(request.method(), &path, request.headers(), server.adopt());
    let labels = match &found {
        Route::Resource { verb, target } => {
            spans::describe(&traced.span, verb, target);
            Labels::of(server.registry().resources(), verb, target)
        }
        Route::Path => None,
    };
    let deadline = deadline(&found, &query);
    let output = negotiate::output(request.headers(), wants_pretty(&query));
    let shown = *output.as_ref().unwrap_or(&Output::JSON);
    let method = request.method().clone();
    // Apart, since each future that it is moved into would have room for it once more.
    let outcome = Box::pin(async {
        socket_token::take(request.headers_mut())?;
        let user = authenticate(server, peer, request.headers())?;
        traced.span.record("user", user.name.as_str());
        match found {
            Route::Resource { verb, target } => {
                let peer = peer.map(|peer| peer.address);
                let call = objects::Request { user, verb, target, query, output, peer };
                objects::answer(server, call, request).await
            }
            Route::Path => {
                let verb = match request.method().as_str() {
                    "GET" => "get",
                    "HEAD" => "head",
                    "POST" => "post",
                    "PUT" => "put",
                    "DELETE" => "delete",
                    _ => "patch",
                };
                server.chain().enter(&user, Attributes::path(verb, &path))?;
                if !matches!(verb, "get" | "head") {
                    return Err(crate::resources::method_not_allowed());
                }
                Box::pin(info::answer(server, &path, &query, request.headers())).await
            }
        }
    });
    // Watches and streams return at once with a body that goes on; the deadline is for getting there.
    let outcome = async { timeout(deadline?, outcome).await.unwrap_or_else(|_| Err(late())) };
    let mut response = match outcome.instrument(traced.span.clone()).await {
        Ok(response) => response,
        Err(failure) => failed(&failure, shown),
    };
    let code = response.status().as_u16();
    if response.status().is_server_error() {
        error!(method = %method, %path, code, "request failed");
    } else {
        debug!(method = %method, %path, code, took = ?began.elapsed(), "request");
    }
    if let Some(labels) = labels {
        server.metrics().record(labels, code, began.elapsed());
    }
    traced.end(Some(code), response.headers_mut());
    if method == http::Method::HEAD { response.map(|_| body::full(Bytes::new())) } else { response }
}

/// How long the client wants to wait at most, in Go's notation (`1m30s`); never longer than [`DEADLINE`].
///
/// What is passed through has parameters of its own, and takes as long as it takes behind a proxy; a watch has
/// `timeoutSeconds`.
fn deadline(route: &Route, query: &Query) -> Result<Duration, Error> {
    let text = query.get("timeout");
    let is_long = match route {
        Route::Resource { verb, target } => match target.subresource.as_deref() {
            Some(PROXY) => return Ok(NO_DEADLINE),
            Some("attach" | "exec" | "log" | "portforward") => true,
            _ => *verb == "watch",
        },
        Route::Path => false,
    };
    if text.is_empty() || is_long {
        return Ok(DEADLINE);
    }
    let wanted = text.parse::<SignedDuration>().ok().and_then(|wanted| Duration::try_from(wanted).ok());
    match wanted {
        Some(Duration::ZERO) => Ok(DEADLINE),
        Some(wanted) => Ok(wanted.min(DEADLINE)),
        None => Err(Error::bad_request(format!("invalid timeout specified in the request URL: {text:?}"))),
    }
}

fn late() -> Error {
    Error::timeout("the request did not complete within the allotted timeout")
}

fn wants_pretty(query: &Query) -> Option<bool> {
    query.find("pretty").map(crate::ops::is_true)
}

/// An error as the client takes it: a Status, in JSON where its encoding is unclear.
fn failed(error: &Error, output: Output) -> Response<Body> {
    let output = Output { shape: negotiate::Shape::Plain, ..output };
    let mut status = error.to_status();
    if error.reason() == Reason::Unauthorized {
        status["metadata"] = json!({});
    }
    let (bytes, output) = match encode::value(&status, output) {
        Ok(bytes) => (bytes, output),
        Err(_) => (status.to_string().into(), Output::JSON),
    };
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(code, output.content_type(), bytes);
    if let Some(seconds) = error.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer with a body that is ready.
pub(super) fn respond(
    code: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Answers are for one user and one moment.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_shorten_their_deadline() {
        let of = |path: &str, text: &str| {
            let query = Query::parse(Some(text));
            deadline(&route(&http::Method::GET, path, &query), &query)
        };
        let (pods, log) = ("/api/v1/namespaces/n/pods", "/api/v1/namespaces/n/pods/p/log");
        for (text, expected) in [
            ("", DEADLINE),
            ("timeout=1m30s", DEADLINE),
            ("timeout=0s", DEADLINE),
            ("timeout=32s", Duration::from_secs(32)),
            ("timeout=1.5s", Duration::from_millis(1_500)),
            ("timeout=250ms", Duration::from_millis(250)),
        ] {
            assert_eq!(of(pods, text).expect(text), expected, "{text}");
            assert_eq!(of(log, text).expect(text), DEADLINE, "what streams: {text}");
        }
        for wrong in ["timeout=soon", "timeout=-1s", "timeout=5"] {
            let error = of(pods, wrong).expect_err(wrong);
            assert!(error.message().starts_with("invalid timeout specified in the request URL"));
        }
        of(pods, "watch=true&timeout=soon").expect("not looked at");
        let proxied = of("/api/v1/namespaces/n/pods/p/proxy", "timeout=1s");
        assert_eq!(proxied.expect("the other side's parameter"), NO_DEADLINE);
    }
}
