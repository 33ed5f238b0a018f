//! A watch over a WebSocket (RFC 6455): one message an event, text for JSON and binary for protobuf, as upstream's.
//!
//! For clients in browsers, and others that cannot read an answer while it comes. What a client sends is taken in and
//! forgotten; its close, or its silence at the end of the connection, ends the watch.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hawser_api::Error;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tracing::debug;

use super::{
    body::{self, Body},
    watch::State,
};

/// Largest message of a client, which has nothing to say.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// How long a client may take to read what was sent before the close, and to answer it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A client that wants its watch over a WebSocket.
pub(super) struct Wanted {
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
    connection: OnUpgrade,
}

/// Whether a WebSocket is asked for, and how it is accepted.
///
/// # Errors
/// BadRequest for a handshake without a key, or on a connection that cannot be upgraded.
pub(super) fn wanted(parts: &Parts) -> Result<Option<Wanted>, Error> {
    let headers = &parts.headers;
    if !names(headers, header::UPGRADE, "websocket") || !names(headers, header::CONNECTION, "upgrade") {
        return Ok(None);
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| Error::bad_request("websocket handshake without a key"))?;
    let connection = parts.extensions.get::<OnUpgrade>().cloned();
    let connection =
        connection.ok_or_else(|| Error::bad_request("a WebSocket needs a connection of HTTP/1.1"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(Error::internal)?;
    // Upstream's takes what is offered, where it is one.
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
    let protocol = offered.filter(|offered| !offered.as_bytes().contains(&b','));
    Ok(Some(Wanted { accept, protocol, connection }))
}

/// Whether a header that is a list names something.
fn names(headers: &HeaderMap, header: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case(word))
}

impl Wanted {
    /// Accepts; the watch goes on in a task of its own, until it ends, the client goes or the server does.
    pub(super) fn begin(self, mut watch: State) -> Response<Body> {
        let mut response = Response::new(body::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        tokio::spawn(async move {
            match self.connection.await {
                Ok(connection) => serve(connection, &mut watch).await,
                Err(error) => debug!(%error, "a watch's connection was not upgraded"),
            }
        });
        response
    }
}

async fn serve(connection: Upgraded, watch: &mut State) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(connection), Role::Server, Some(config)).await;
    let (mut to_client, mut from_client) = socket.split();
    let is_over = watch.end();
    let outwards = async {
        while let Some(events) = watch.next_events().await {
            for event in events {
                if to_client.feed(event).await.is_err() {
                    return;
                }
            }
            if to_client.flush().await.is_err() {
                return;
            }
        }
    };
    // Reading also answers pings.
    let inwards = async {
        while let Some(Ok(message)) = from_client.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
        // A client that does not read must not keep a watch beyond its time.
        () = is_over => {}
    }
    let close = Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Default::default() }));
    let closed = async {
        // Fails where the client has gone, which is as well.
        if to_client.send(close).await.is_ok() {
            while let Some(Ok(_)) = from_client.next().await {}
        }
    };
    let _ = timeout(CLOSE_DEADLINE, closed).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_told_from_other_upgrades() {
        let of = |headers: &[(&'static str, &str)]| {
            let mut request = http::Request::builder();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            wanted(&parts).map(|wanted| wanted.is_some()).map_err(|error| error.code())
        };
        assert_eq!(of(&[]), Ok(false));
        assert_eq!(of(&[("connection", "Upgrade"), ("upgrade", "h2c")]), Ok(false));
        assert_eq!(of(&[("upgrade", "websocket")]), Ok(false));
        let asks = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        assert_eq!(of(&asks), Err(400), "without a key");
    }
}
