//! What exec and attach are to a client, whichever protocol carries them.

use bytes::Bytes;
use hawser_runtime::TerminalSize;
use serde_json::Value;
use tokio::sync::mpsc;

/// Messages on their way, each direction. Full queues hold the sender up: the process, or the client.
pub(super) const QUEUE: usize = 16;

/// The process's end of the channels.
pub(super) struct Channels {
    /// Ends when the client has gone.
    pub(super) from_client: mpsc::Receiver<FromClient>,
    /// Dropping it lets the transport end the connection, after all that was sent.
    pub(super) to_client: mpsc::Sender<ToClient>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromClient {
    Stdin(Bytes),
    /// No more input; the client still listens.
    StdinEnd,
    Resize(TerminalSize),
}

#[derive(Debug, PartialEq)]
pub(super) enum ToClient {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The outcome, a `metav1.Status`; the last message.
    Status(Value),
}

/// How a protocol tells the outcome on its error channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusForm {
    /// A `metav1.Status`, from version 4 on.
    Json,
    /// The message of a failure, and nothing for a success.
    Text,
}

impl StatusForm {
    pub(super) fn of(protocol: &str) -> Self {
        if protocol.starts_with("v4.") || protocol.starts_with("v5.") { Self::Json } else { Self::Text }
    }

    /// `None` where nothing is said.
    pub(super) fn encode(self, status: &Value) -> Option<Bytes> {
        match self {
            Self::Json => Some(status.to_string().into()),
            Self::Text if status["status"] == "Success" => None,
            Self::Text => Some(status["message"].as_str().unwrap_or_default().to_owned().into()),
        }
    }
}

/// `{"Width":80,"Height":24}`; `None` for what is no size.
pub(super) fn parse_size(bytes: &[u8]) -> Option<TerminalSize> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(bytes).ok()?;
    Some(TerminalSize { width: size.width, height: size.height })
}
