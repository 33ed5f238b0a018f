//! A process's streams, joined with a client's channels, until one of the two ends.

use std::time::Duration;

use bytes::BytesMut;
use hawser_runtime::{BoxRead, BoxWrite, Session, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channels::{Channels, FromClient, ToClient};
use super::status;

/// How long output is waited for after the process has ended: what it left behind may hold it open.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one message.
const CHUNK_BYTES: usize = 32 << 10;

/// What the end of the process is to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    ExitCode,
    Success,
}

/// Starts the process and serves it. When the client goes, the session is dropped, which ends a process
/// that exec started.
pub(super) async fn run(
    channels: Channels,
    start: impl Future<Output = hawser_runtime::Result<Session>>,
    outcome: Outcome,
) {
    let Channels { from_client, to_client } = channels;
    let session = match start.await {
        Ok(session) => session,
        Err(error) => {
            let message = format!("error executing command in container: {error}");
            // Fails when the client has gone.
            let _ = to_client.send(ToClient::Status(status::internal_error(&message))).await;
            return;
        }
    };
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let output = async {
        tokio::join!(pump(stdout, &to_client, ToClient::Stdout), pump(stderr, &to_client, ToClient::Stderr),);
    };
    let process = async {
        let mut output = std::pin::pin!(output);
        let mut exit = exit;
        let mut drained = false;
        let ended = loop {
            tokio::select! {
                ended = &mut exit => break ended,
                () = &mut output, if !drained => drained = true,
            }
        };
        if !drained {
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, output).await;
        }
        ended
    };
    let ended = tokio::select! {
        ended = process => ended,
        () = feed(from_client, stdin, resize) => return,
    };
    let status = match (ended, outcome) {
        (Ok(0), _) | (Ok(_), Outcome::Success) => status::success(),
        (Ok(code), Outcome::ExitCode) => status::exit_code(code),
        (Err(error), _) => status::internal_error(&error.to_string()),
    };
    let _ = to_client.send(ToClient::Status(status)).await;
}

async fn pump(
    stream: Option<BoxRead>,
    to_client: &mpsc::Sender<ToClient>,
    wrap: impl Fn(bytes::Bytes) -> ToClient,
) {
    let Some(mut stream) = stream else { return };
    let mut chunk = BytesMut::new();
    loop {
        chunk.reserve(CHUNK_BYTES);
        match stream.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if to_client.send(wrap(chunk.split().freeze())).await.is_err() {
            return;
        }
    }
}

/// Passes the client's input on; returns when the client has gone.
async fn feed(
    mut from_client: mpsc::Receiver<FromClient>,
    mut stdin: Option<BoxWrite>,
    resize: Option<mpsc::Sender<TerminalSize>>,
) {
    while let Some(message) = from_client.recv().await {
        match message {
            FromClient::Stdin(bytes) => {
                if let Some(open) = &mut stdin
                    && open.write_all(&bytes).await.is_err()
                {
                    // The process closed its input; what else comes is thrown away.
                    stdin = None;
                }
            }
            FromClient::StdinEnd => {
                if let Some(mut open) = stdin.take() {
                    let _ = open.shutdown().await;
                }
            }
            FromClient::Resize(size) => {
                if let Some(resize) = &resize {
                    let _ = resize.send(size).await;
                }
            }
        }
    }
}
