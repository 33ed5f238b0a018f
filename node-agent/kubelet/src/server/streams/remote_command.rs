//! A process's streams, joined with a client's channels, until one of the two ends.

use std::time::Duration;

use bytes::BytesMut;
use hawser_runtime::{BoxRead, BoxWrite, Session, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::channels::{Channels, FromClient, ToClient};
use super::status;

/// How long output is waited for after the process has ended: what it left behind may hold it open. Time that the
/// client takes to read does not count.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Output of one stream that is passed on after the process has ended. What it wrote itself is in pipes by then, which
/// hold less (1 MiB each at most); what it left behind may write for ever.
const DRAIN_BYTES: usize = 4 << 20;

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
    let (ended_at, ended) = watch::channel(None);
    let exit = async {
        let exit = exit.await;
        ended_at.send_replace(Some(Instant::now()));
        exit
    };
    let process = async {
        let (exit, (), ()) = tokio::join!(
            exit,
            pump(stdout, &to_client, ended.clone(), ToClient::Stdout),
            pump(stderr, &to_client, ended.clone(), ToClient::Stderr),
        );
        exit
    };
    let ended = tokio::select! {
        ended = process => ended,
        () = feed(from_client, stdin, resize) => return,
        // Where the process does not read its input, `feed` does not hear that the client has gone.
        () = to_client.closed() => return,
    };
    let status = match (ended, outcome) {
        (Ok(0), _) | (Ok(_), Outcome::Success) => status::success(),
        (Ok(code), Outcome::ExitCode) => status::exit_code(code),
        (Err(error), _) => status::internal_error(&error.to_string()),
    };
    let _ = to_client.send(ToClient::Status(status)).await;
}

/// Passes output on to its end; once the process has ended, only as long as what it wrote itself may take.
async fn pump(
    stream: Option<BoxRead>,
    to_client: &mpsc::Sender<ToClient>,
    ended: watch::Receiver<Option<Instant>>,
    wrap: impl Fn(bytes::Bytes) -> ToClient,
) {
    let Some(mut stream) = stream else { return };
    let mut chunk = BytesMut::new();
    let (mut time_left, mut bytes_left) = (DRAIN_TIMEOUT, DRAIN_BYTES);
    loop {
        chunk.reserve(CHUNK_BYTES);
        let began = Instant::now();
        let read = tokio::select! {
            biased;
            read = stream.read_buf(&mut chunk) => read,
            () = given_up(ended.clone(), time_left) => return,
        };
        let Ok(count @ 1..) = read else { return };
        if let Some(ended_at) = *ended.borrow() {
            time_left = time_left.saturating_sub(began.max(ended_at).elapsed());
            bytes_left = bytes_left.saturating_sub(count);
        }
        if to_client.send(wrap(chunk.split().freeze())).await.is_err() || bytes_left == 0 {
            return;
        }
    }
}

/// Resolves `time_left` after the process has ended, or from now on if it has.
async fn given_up(mut ended: watch::Receiver<Option<Instant>>, time_left: Duration) {
    // Its sender lives as long as the session.
    let _ = ended.wait_for(Option::is_some).await;
    tokio::time::sleep(time_left).await;
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::channels::QUEUE;
    use super::*;

    /// A session of a process that has ended already, and what its client gets, taking `pause` for each message.
    async fn received(stdout: BoxRead, pause: Duration) -> Vec<ToClient> {
        let session = Session {
            stdin: None,
            stdout: Some(stdout),
            stderr: None,
            resize: None,
            exit: async { Ok(0) }.boxed(),
        };
        let (_client, from_client) = mpsc::channel(QUEUE);
        let (to_client, mut output) = mpsc::channel(1);
        let channels = Channels { from_client, to_client };
        let read = async {
            let mut messages = Vec::new();
            while let Some(message) = output.recv().await {
                messages.push(message);
                tokio::time::sleep(pause).await;
            }
            messages
        };
        tokio::join!(run(channels, async { Ok(session) }, Outcome::ExitCode), read).1
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_goes_while_its_input_is_not_read_ends_the_session() {
        let (stdin, _unread) = tokio::io::duplex(1);
        let session = Session {
            stdin: Some(Box::new(stdin)),
            stdout: None,
            stderr: None,
            resize: None,
            exit: std::future::pending().boxed(),
        };
        let (client, from_client) = mpsc::channel(QUEUE);
        let (to_client, output) = mpsc::channel(1);
        client.send(FromClient::Stdin("much".into())).await.expect("taken");
        let channels = Channels { from_client, to_client };
        let gone = async {
            tokio::time::sleep(DRAIN_TIMEOUT).await;
            drop(output);
        };
        tokio::join!(run(channels, async { Ok(session) }, Outcome::ExitCode), gone);
        drop(client);
    }

    fn output_bytes(messages: &[ToClient]) -> usize {
        let bytes = messages.iter().map(|message| match message {
            ToClient::Stdout(bytes) => bytes.len(),
            _ => 0,
        });
        bytes.sum()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_gets_all_output() {
        let output = vec![b'x'; 10 * CHUNK_BYTES];
        let messages = received(Box::new(std::io::Cursor::new(output)), 2 * DRAIN_TIMEOUT).await;
        assert_eq!(output_bytes(&messages), 10 * CHUNK_BYTES);
        assert_eq!(messages.last(), Some(&ToClient::Status(status::success())));
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_is_held_open_does_not_hold_the_client() {
        let (_held, output) = tokio::io::duplex(1);
        let messages = received(Box::new(output), Duration::ZERO).await;
        assert_eq!(messages, [ToClient::Status(status::success())]);
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_never_ends_does_not_hold_the_client() {
        let messages = received(Box::new(tokio::io::repeat(b'x')), DRAIN_TIMEOUT).await;
        assert!((DRAIN_BYTES..2 * DRAIN_BYTES).contains(&output_bytes(&messages)));
        assert_eq!(messages.last(), Some(&ToClient::Status(status::success())));
    }
}
