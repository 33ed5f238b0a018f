//! WebSocket (RFC 6455) on an upgraded HTTP/1.1 connection, with Kubernetes' subprotocols.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::Refusal;
use super::body::{self, Body};

pub(super) type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Largest message from a client: terminals and copies send some 32 KiB at once.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Bytes on their way through a tunnel, each direction.
const TUNNEL_BYTES: usize = 64 << 10;

/// The protocol of clients that name none.
pub(super) const UNNAMED: &str = "";

/// How long the client's answer to a close is waited for.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn is_requested(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The first of `supported`, in our order of preference, that the client offers; [`UNNAMED`] stands for no offer.
pub(super) fn choose<'a>(headers: &HeaderMap, supported: &[&'a str]) -> Result<&'a str, Refusal> {
    let mut offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| *protocol != UNNAMED)
        .collect();
    if offered.is_empty() {
        offered.push(UNNAMED);
    }
    supported.iter().copied().find(|protocol| offered.contains(protocol)).ok_or_else(|| {
        Refusal::bad_request(format!(
            "unable to negotiate protocol: client supports {offered:?}, server supports {supported:?}"
        ))
    })
}

/// The answer that accepts, and the connection that there will be when it is sent.
pub(super) fn accept(
    request: Request<Incoming>,
    protocol: &str,
) -> Result<(Response<Body>, impl Future<Output = Result<WebSocket, hyper::Error>> + Send + use<>), Refusal> {
    let key = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Refusal::bad_request("websocket handshake without a key"))?;
    let mut response = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| Refusal::internal(e.to_string()));
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, value(&derive_accept_key(key.as_bytes()))?);
    if protocol != UNNAMED {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(protocol)?);
    }
    let upgraded = async move {
        let upgraded = TokioIo::new(hyper::upgrade::on(request).await?);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
    };
    Ok((response, upgraded))
}

/// A close that says that all is well; clients take one without a code for a failure.
pub(super) fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Default::default() }))
}

/// The payload of binary messages as a stream of bytes; the future does the copying.
pub(super) fn tunnel(socket: WebSocket) -> (DuplexStream, impl Future<Output = ()> + Send) {
    let (inner, outer) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_inner, mut to_inner) = tokio::io::split(inner);
    let (mut to_client, mut from_client) = socket.split();
    let work = async move {
        let inwards = async {
            while let Some(Ok(message)) = from_client.next().await {
                match message {
                    Message::Binary(bytes) if to_inner.write_all(&bytes).await.is_err() => break,
                    Message::Close(_) => break,
                    _ => {}
                }
            }
            let _ = to_inner.shutdown().await;
        };
        let outwards = async {
            let mut chunk = vec![0; 32 << 10];
            while let Ok(count) = from_inner.read(&mut chunk).await {
                if count == 0 {
                    break;
                }
                let message = Message::Binary(Bytes::copy_from_slice(&chunk[..count]));
                if to_client.send(message).await.is_err() {
                    break;
                }
            }
            // Fails when the client has gone.
            let _ = to_client.send(normal_close()).await;
        };
        let mut inwards = std::pin::pin!(inwards);
        let mut outwards = std::pin::pin!(outwards);
        tokio::select! {
            // What the server still has to say is said to a client that has gone silent, too.
            () = &mut inwards => outwards.await,
            () = &mut outwards => {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, inwards).await;
            }
        }
    };
    (outer, work)
}
