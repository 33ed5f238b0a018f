//! What the pod serves: an HTTP server that says what it was asked.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{copy, split},
    net::TcpListener,
};

/// Listens on a port of loopback, which is returned.
pub(super) async fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(connection.with_upgrades());
        }
    });
    port
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        "/page" => {
            let page = r#"<a href="/next">/next</a> <a href="http://198.51.100.7/x">"#;
            Response::builder().header(header::CONTENT_TYPE, "text/html; charset=utf-8").body(page.into())
        }
        "/old" => {
            Response::builder().status(StatusCode::FOUND).header(header::LOCATION, "/new?a=b").body("".into())
        }
        "/missing" => Response::builder().status(StatusCode::NOT_FOUND).body("nothing here".into()),
        "/open" => Response::builder().header("Access-Control-Allow-Origin", "*").body("".into()),
        "/echo" => Ok(echo(request)),
        _ => Ok(what_was_asked(request).await),
    };
    Ok(response.expect("a response"))
}

/// Switches to a protocol in which the server says what it hears.
fn echo(request: Request<Incoming>) -> Response<Full<Bytes>> {
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.expect("an upgrade");
        let (mut from, mut to) = split(TokioIo::new(upgraded));
        let _ = copy(&mut from, &mut to).await;
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "echo");
    response.body("".into()).expect("a response")
}

async fn what_was_asked(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let headers = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))));
    let asked = json!({
        "method": parts.method.as_str(),
        "uri": parts.uri.to_string(),
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "bytes": body.len(),
        "body": String::from_utf8_lossy(&body[..body.len().min(100)]),
    });
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    response.body(asked.to_string().into()).expect("a response")
}
