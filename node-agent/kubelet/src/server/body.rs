//! Bodies of answers.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

use super::Refusal;

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(super) fn text(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

pub(super) fn json(value: &serde_json::Value) -> Response<Body> {
    text(StatusCode::OK, "application/json", value.to_string())
}

pub(super) fn refusal(refusal: Refusal) -> Response<Body> {
    text(refusal.status, "text/plain; charset=utf-8", refusal.message)
}

pub(super) fn stream(chunks: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Response<Body> {
    let frames = chunks.map(|chunk| chunk.map(Frame::data));
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    let plain = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
