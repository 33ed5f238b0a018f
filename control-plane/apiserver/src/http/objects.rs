//! Requests about resources: parameters and bodies in, objects out.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures::stream;
use hawser_api::{Error, FieldError, error::Reason, patch::PatchType, resource::Target};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use serde_json::Value;

use super::{
    body::{self, Body, Pieces},
    encode::{self, List},
    handler::respond,
    negotiate::{self, Output, Shape},
    options,
    path::{PROXY, Query},
    proxy, streams, watch, watch_socket,
};
use crate::{
    ApiServer,
    auth::User,
    codec::{self, Encoding},
    local::expected_type,
    ops::{Apply, Call, Reply, StreamKind, Written},
    registry::Listed,
    resources::method_not_allowed,
    table::IncludeObject,
};

/// A request about a resource, before the chain.
pub(super) struct Request {
    pub user: Arc<User>,
    pub verb: &'static str,
    pub target: Target,
    pub query: Query,
    /// An unacceptable `Accept` is told only to those who may ask.
    pub output: Result<Output, Error>,
    /// Where the client is.
    pub peer: Option<SocketAddr>,
}

pub(super) async fn answer(
    server: &Arc<ApiServer>,
    request: Request,
    http: http::Request<Incoming>,
) -> Result<Response<Body>, Error> {
    let Request { user, verb, target, query, output, peer } = request;
    let is_proxy = target.subresource.as_deref() == Some(PROXY);
    if verb.is_empty() && !(is_proxy && http.method() == Method::OPTIONS) {
        return Err(method_not_allowed());
    }
    if is_proxy {
        let call = server.enter(&user, verb, target, "")?;
        return Box::pin(proxy::answer(server, &call, peer, http)).await;
    }
    let stream = target.subresource.as_deref().and_then(StreamKind::of);
    if let Some(kind) = stream {
        // GET is how WebSockets begin; to the authorizer a stream is a create, but a log is read.
        let verb = if kind == StreamKind::Log { "get" } else { verb };
        let call = server.enter(&user, verb, target, "")?;
        return Box::pin(streams::answer(server, &call, kind, &query, http)).await;
    }
    let (parts, mut body) = http.into_parts();
    let outcome = async {
        let admitted = server.admit(&user, verb, target, query.get("fieldSelector"))?;
        let output = output?;
        let include = IncludeObject::parse(query.get("includeObject"))
            .ok_or_else(|| Error::bad_request("includeObject: must be one of None, Metadata, Object"))?;
        // Before the request has its place: one that comes slowly must not hold up the others.
        let bytes = match verb {
            "get" | "list" | "watch" => Bytes::new(),
            _ => body::read(&mut body, server.chain().read_body(&admitted.entry)).await?,
        };
        let call = server.begin(admitted)?;
        Front { server, call, query, output, include }.answer(&parts, bytes).await
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        // A connection whose request was not read to its end is closed, under a client that sends its next one on it.
        body::drain(&mut body).await;
    }
    outcome
}

/// The content type of an applied configuration.
const APPLY: &str = "application/apply-patch+yaml";

/// The body of a PATCH.
enum Patch {
    Apply(Apply),
    Other(codec::Patch),
}

/// One request inside.
struct Front<'a> {
    server: &'a Arc<ApiServer>,
    call: Call,
    query: Query,
    output: Output,
    include: IncludeObject,
}

// What is rare, or large, is a future of its own: every request pays for the size of the largest that is not.
impl Front<'_> {
    async fn answer(self, parts: &Parts, body: Bytes) -> Result<Response<Body>, Error> {
        let verb = self.call.pass.attributes().verb.clone();
        let kind = crate::ops::options::kind(&verb);
        match &*verb {
            "get" => {
                let reply = self.server.get(&self.call, self.query.get("resourceVersion")).await?;
                self.reply(StatusCode::OK, &reply, &self.call.read_warnings(), &parts.headers)
            }
            "list" => Box::pin(self.list(&parts.headers)).await,
            "watch" => Box::pin(self.watch(parts)).await,
            // What only answers has neither rows nor metadata.
            "create" if self.call.resource.storage().is_none() && self.output.shape != Shape::Plain => {
                Err(negotiate::not_acceptable())
            }
            "create" => {
                let (object, mut warnings) = self.decode(kind, &parts.headers, &body)?;
                let written = self
                    .server
                    .create(&self.call, object, &options::write(kind, &self.query, &parts.headers)?)
                    .await?;
                warnings.extend(written.warnings.iter().cloned());
                self.written(Written { warnings, ..written }, &parts.headers)
            }
            "update" => {
                let (object, mut warnings) = self.decode(kind, &parts.headers, &body)?;
                let options = options::write(kind, &self.query, &parts.headers)?;
                let written = Box::pin(self.server.update(&self.call, object, &options)).await?;
                warnings.extend(written.warnings.iter().cloned());
                self.written(Written { warnings, ..written }, &parts.headers)
            }
            "patch" => {
                let patch = self.read_patch(&parts.headers, body)?;
                let options = options::write(kind, &self.query, &parts.headers)?;
                let written = match patch {
                    Patch::Apply(apply) => Box::pin(self.server.apply(&self.call, apply, &options)).await?,
                    Patch::Other(patch) => Box::pin(self.server.patch(&self.call, patch, &options)).await?,
                };
                self.written(written, &parts.headers)
            }
            "delete" => {
                let request = options::delete(&self.query, &parts.headers, &body)?;
                let deleted = Box::pin(self.server.delete(&self.call, &request)).await?;
                self.written(deleted, &parts.headers)
            }
            "deletecollection" => Box::pin(self.delete_collection(&parts.headers, &body)).await,
            _ => Err(method_not_allowed()),
        }
    }

    async fn list(self, headers: &HeaderMap) -> Result<Response<Body>, Error> {
        let listed = self.server.list(&self.call, &options::list(&self.query)?).await?;
        let list = encode::list(&self.call.resource, listed, self.output, self.include).await?;
        let mut response = list_response(list, self.output, headers);
        warn(&mut response, &self.call.read_warnings());
        Ok(response)
    }

    async fn watch(self, parts: &Parts) -> Result<Response<Body>, Error> {
        if self.output.encoding == Encoding::Yaml {
            return Err(negotiate::not_streamed());
        }
        let socket = watch_socket::wanted(parts)?;
        let request = options::watch(&self.query)?;
        let timeout = options::timeout(&self.query)?;
        let content_type = self.output.watch_content_type();
        let warnings = self.call.read_warnings();
        let resource = &self.call.resource;
        let pieces: Pieces = match self.server.watch(&self.call, &request).await {
            Ok(watched) => {
                let options = watch::Options {
                    bookmarks: self.query.is_on("allowWatchBookmarks"),
                    timeout,
                    output: self.output,
                    include: self.include,
                };
                let begun = watch::begin(self.server, resource, watched, options);
                match socket {
                    Some(socket) => {
                        let mut response = socket.begin(begun);
                        warn(&mut response, &warnings);
                        return Ok(response);
                    }
                    None => watch::body(begun),
                }
            }
            Err(error) if error.is_expired() && socket.is_none() => {
                let failed = watch::failed(resource, self.output, &error);
                Box::pin(stream::iter([failed]))
            }
            Err(error) => return Err(error),
        };
        let mut response = Response::new(body::streamed(pieces));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn decode(
        &self,
        options: &str,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(Value, Vec<String>), Error> {
        let encoding = negotiate::input(headers)?;
        let (api_version, kind) = expected_type(&self.call.resource, &self.call.target);
        let validation = options::field_validation(options, &self.query)?;
        let decoded = codec::decode(body, encoding, (&api_version, &kind), validation)?;
        Ok((decoded.object, decoded.warnings))
    }

    fn read_patch(&self, headers: &HeaderMap, body: Bytes) -> Result<Patch, Error> {
        let media = negotiate::content_type(headers).split(';').next().unwrap_or_default().trim();
        let force = self.query.is_on("force");
        if media.eq_ignore_ascii_case(APPLY) {
            let validation = options::field_validation("PatchOptions", &self.query)?;
            return Ok(Patch::Apply(Apply { body, force, validation }));
        }
        let kind = PatchType::from_content_type(negotiate::content_type(headers)).ok_or_else(|| {
            let others = PatchType::ALL.iter().map(|(_, name)| *name);
            let accepted: Vec<&str> = others.chain([APPLY]).collect();
            Error::new(
                Reason::UnsupportedMediaType,
                format!(
                    "the body of the request was in an unknown format - accepted media types include: {}",
                    accepted.join(", ")
                ),
            )
        })?;
        if force {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(Error::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let validation = options::field_validation("PatchOptions", &self.query)?;
        Ok(Patch::Other(codec::Patch { kind, body, validation }))
    }

    async fn delete_collection(self, headers: &HeaderMap, body: &Bytes) -> Result<Response<Body>, Error> {
        let request = options::delete(&self.query, headers, body)?;
        let list = options::list(&self.query)?;
        let (deleted, warnings) = self.server.delete_collection(&self.call, &list, &request).await?;
        let resource = &self.call.resource;
        let status = deleted.to_status(resource);
        let Some(objects) = deleted.objects else {
            let output = Output { shape: Shape::Plain, ..self.output };
            let mut response =
                respond(StatusCode::OK, output.content_type(), encode::value(&status, output)?);
            warn(&mut response, &warnings);
            return Ok(response);
        };
        let listed = Listed::of(objects, deleted.revision);
        let list = encode::list(resource, listed, self.output, self.include).await?;
        let mut response = list_response(list, self.output, headers);
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn written(&self, written: Written, headers: &HeaderMap) -> Result<Response<Body>, Error> {
        let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        self.reply(code, &written.reply, &written.warnings, headers)
    }

    fn reply(
        &self,
        code: StatusCode,
        reply: &Reply,
        warnings: &[String],
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Error> {
        let bytes = match reply {
            Reply::Object(object) => encode::object(&self.call.resource, object, self.output, self.include)?,
            Reply::Value(value) => encode::value(value, self.output)?,
        };
        let mut response = if body::is_worth_compressing(bytes.len()) && negotiate::takes_gzip(headers) {
            list_response(List::Whole(bytes), self.output, headers)
        } else {
            respond(code, self.output.content_type(), bytes)
        };
        *response.status_mut() = code;
        warn(&mut response, warnings);
        Ok(response)
    }
}

/// Letters of one warning, and of all that an answer has: clients bound the headers that they read. Upstream's.
const WARNING_LETTERS: usize = 256;
const ALL_WARNINGS_LETTERS: usize = 4096;

/// Adds one header `Warning` for each, as far as there is room.
fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut room = ALL_WARNINGS_LETTERS;
    for warning in warnings {
        let letters = warning.chars().filter(|letter| !letter.is_control());
        let text: String = letters.take(WARNING_LETTERS).collect();
        let Some(left) = room.checked_sub(text.chars().count()) else { return };
        room = left;
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

fn list_response(list: List, output: Output, headers: &HeaderMap) -> Response<Body> {
    let gzip = negotiate::takes_gzip(headers);
    let (body, compressed) = match list {
        List::Whole(bytes) if gzip && body::is_worth_compressing(bytes.len()) => {
            (body::streamed(body::gzip(in_pieces(bytes))), true)
        }
        List::Whole(bytes) => (body::full(bytes), false),
        // How long it will be is not known, but longer than one piece.
        List::Pieces(pieces) if gzip => (body::streamed(body::gzip(pieces)), true),
        List::Pieces(pieces) => (body::streamed(pieces), false),
    };
    let mut response = Response::new(body);
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(output.content_type()));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if compressed {
        fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        fields.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    response
}

/// Bytes cut so that compressing them does not hold the thread for long.
fn in_pieces(bytes: Bytes) -> Pieces {
    const PIECE: usize = 64 << 10;
    let count = bytes.len().div_ceil(PIECE);
    Box::pin(stream::iter(
        (0..count).map(move |at| bytes.slice(at * PIECE..bytes.len().min((at + 1) * PIECE))),
    ))
}
