//! Exec and attach over WebSocket: one message a chunk, its first byte the channel (KEP-4006).
//!
//! `v5` adds a message that closes a channel, so that stdin can end before the connection does. The
//! `base64` variants carry text, the channel as a digit. Before `v4` the outcome is plain text; that is also what a
//! client gets that names no protocol.

use std::future::Future;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::SplitStream;
use futures::{Sink, SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::Wanted;
use super::channels::{Channels, FromClient, QUEUE, StatusForm, ToClient, parse_size};
use crate::server::websocket::{CLOSE_TIMEOUT, WebSocket, normal_close};

/// A client that has heard nothing for so long is pinged. One that has gone is found out by that, also where its input waits
/// for the process, and nobody reads what it sent last.
const PING_INTERVAL: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How messages are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) base64: bool,
    pub(super) close_message: bool,
    pub(super) status: StatusForm,
}

impl Encoding {
    pub(super) fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64"),
            close_message: protocol.starts_with("v5."),
            status: StatusForm::of(protocol),
        }
    }

    pub(super) fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::from(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    /// Channel and bytes; `None` for what is neither.
    pub(super) fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let channel = bytes.split_to(1)[0];
        if !self.base64 {
            return Some((channel, bytes));
        }
        let decoded = STANDARD.decode(&bytes).ok()?;
        Some((channel.checked_sub(b'0')?, decoded.into()))
    }
}

pub(super) fn serve(
    socket: WebSocket,
    protocol: &str,
    wanted: Wanted,
) -> (Channels, impl Future<Output = ()> + Send + use<>) {
    let encoding = Encoding::of(protocol);
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let (sink, stream) = socket.split();
    let work = async move {
        let mut reading = std::pin::pin!(read(stream, encoding, input));
        let mut writing = std::pin::pin!(write(sink, encoding, wanted, output));
        tokio::select! {
            // The client has gone, and with it whoever would read.
            () = &mut reading => writing.await,
            () = &mut writing => {
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, reading).await;
            }
        }
    };
    (Channels { from_client, to_client }, work)
}

async fn read(mut stream: SplitStream<WebSocket>, encoding: Encoding, input: mpsc::Sender<FromClient>) {
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        let Some((channel, bytes)) = encoding.decode(message) else { continue };
        let event = match channel {
            // An empty message says hello; it is no end of input.
            STDIN if bytes.is_empty() => continue,
            STDIN => FromClient::Stdin(bytes),
            RESIZE => match parse_size(&bytes) {
                Some(size) => FromClient::Resize(size),
                None => continue,
            },
            CLOSE if encoding.close_message && bytes.first() == Some(&STDIN) => FromClient::StdinEnd,
            _ => continue,
        };
        if input.send(event).await.is_err() {
            // The process has ended; the client's answer to our close is still to come.
            break;
        }
    }
    while let Some(Ok(message)) = stream.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
    }
}

async fn write(
    mut sink: impl Sink<Message> + Unpin,
    encoding: Encoding,
    wanted: Wanted,
    mut output: mpsc::Receiver<ToClient>,
) {
    let mut result = match greeting(encoding, wanted) {
        Some(message) => sink.send(message).await,
        None => Ok(()),
    };
    while result.is_ok() {
        let Ok(event) = tokio::time::timeout(PING_INTERVAL, output.recv()).await else {
            result = sink.send(Message::Ping(Bytes::new())).await;
            continue;
        };
        let Some(event) = event else { break };
        let message = match event {
            ToClient::Stdout(bytes) => encoding.encode(STDOUT, &bytes),
            ToClient::Stderr(bytes) => encoding.encode(STDERR, &bytes),
            ToClient::Status(status) => match encoding.status.encode(&status) {
                Some(text) => encoding.encode(STATUS, &text),
                None => continue,
            },
        };
        result = sink.send(message).await;
    }
    let _ = sink.send(normal_close()).await;
}

/// An empty message on the first channel tells a client that it is connected.
///
/// Not with v5: client-go before 0.34 (kubectl 1.32) reads before its streams exist, and discards with a warning what
/// comes so soon.
fn greeting(encoding: Encoding, wanted: Wanted) -> Option<Message> {
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted { stderr: true, .. } => STDERR,
        _ => STATUS,
    };
    (!encoding.close_message).then(|| encoding.encode(first, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_v5_are_not_greeted() {
        let wanted = Wanted { stdin: false, stdout: false, stderr: true, tty: false };
        for (protocol, expected) in [
            ("v5.channel.k8s.io", None),
            ("v4.channel.k8s.io", Some(Message::binary(vec![STDERR]))),
            ("v4.base64.channel.k8s.io", Some(Message::text("2"))),
        ] {
            assert_eq!(greeting(Encoding::of(protocol), wanted), expected, "{protocol}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_has_gone_is_found_out_where_nothing_is_said() {
        let wanted = Wanted { stdin: true, stdout: false, stderr: false, tty: false };
        let (sink, mut heard) = futures::channel::mpsc::channel(1);
        let (to_client, output) = mpsc::channel(1);
        let writing = tokio::spawn(write(sink, Encoding::of("v5.channel.k8s.io"), wanted, output));
        assert_eq!(heard.next().await, Some(Message::Ping(Bytes::new())));
        drop(heard);
        to_client.closed().await;
        writing.await.expect("ended");
    }

    #[test]
    fn messages_are_spelled_as_the_protocol_says() {
        for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
            let encoding = Encoding::of(protocol);
            let message = encoding.encode(STDERR, b"text");
            assert_eq!(message.is_text(), protocol.contains("base64"), "{protocol}");
            assert_eq!(encoding.decode(message), Some((STDERR, Bytes::from_static(b"text"))), "{protocol}");
        }
        assert!(Encoding::of("v5.channel.k8s.io").close_message);
        assert_eq!(Encoding::of("v4.channel.k8s.io").decode(Message::binary(vec![])), None);
        assert_eq!(Encoding::of("v4.base64.channel.k8s.io").decode(Message::text("0*")), None);
    }
}
