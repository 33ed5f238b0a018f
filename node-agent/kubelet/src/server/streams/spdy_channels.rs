//! Exec and attach over SPDY: one stream a channel, told apart by the header `streamtype`.
//!
//! Version 3 brought the stream for sizes, version 4 an outcome that programs can read. Versions 1 and 2 are the same here:
//! upstream's version 1 differs by a mistake in how its error stream ends.

use std::future::Future;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use tokio::sync::mpsc;

use super::Wanted;
use super::channels::{Channels, FromClient, QUEUE, StatusForm, ToClient, parse_size};
use crate::server::spdy::{Stream, StreamWriter};

/// Versions of the protocol, by the names that clients send.
pub(super) const VERSIONS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// How long a client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the process may take to read what a client that has gone had sent.
const LAST_INPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sizes are a few dozen bytes.
const MAX_SIZE_BYTES: usize = 4096;

#[derive(Default)]
struct Opened {
    status: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Opened {
    fn is_complete(&self, wanted: Wanted, with_sizes: bool) -> bool {
        let there = |wanted: bool, stream: &Option<Stream>| !wanted || stream.is_some();
        self.status.is_some()
            && there(wanted.stdin, &self.stdin)
            && there(wanted.stdout, &self.stdout)
            && there(wanted.stderr, &self.stderr)
            && there(wanted.tty && with_sizes, &self.resize)
    }
}

/// Waits for the streams that the client asked for; `None` when it does not open them.
pub(super) async fn serve(
    mut streams: mpsc::Receiver<Stream>,
    wanted: Wanted,
    version: &str,
) -> Option<(Channels, impl Future<Output = ()> + Send + use<>)> {
    let with_sizes = version.starts_with("v3.") || version.starts_with("v4.");
    let opened = tokio::time::timeout(OPEN_TIMEOUT, open(&mut streams, wanted, with_sizes)).await.ok()??;
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let Opened { status, stdin, stdout, stderr, resize } = opened;
    // What clients send on these is thrown away, so that it does not hold the connection up.
    let [status, stdout, stderr] = [status, stdout, stderr].map(|stream| stream.map(|stream| stream.output));
    let form = StatusForm::of(version);
    let work = async move {
        let reading = read(stdin, resize, streams, input);
        let writing = write(status, form, stdout, stderr, output);
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    Some((Channels { from_client, to_client }, work))
}

async fn open(streams: &mut mpsc::Receiver<Stream>, wanted: Wanted, with_sizes: bool) -> Option<Opened> {
    let mut opened = Opened::default();
    while !opened.is_complete(wanted, with_sizes) {
        let stream = streams.recv().await?;
        let slot = match stream.header("streamtype") {
            Some("error") => &mut opened.status,
            Some("stdin") => &mut opened.stdin,
            Some("stdout") => &mut opened.stdout,
            Some("stderr") => &mut opened.stderr,
            Some("resize") => &mut opened.resize,
            _ => continue,
        };
        *slot = Some(stream);
    }
    Some(opened)
}

/// Passes input and sizes on; returns when the connection has ended.
async fn read(
    stdin: Option<Stream>,
    resize: Option<Stream>,
    mut streams: mpsc::Receiver<Stream>,
    input: mpsc::Sender<FromClient>,
) {
    let stdin = async {
        // The writer is kept: letting go of it would reset the stream.
        let Some(Stream { input: mut chunks, output: _output, .. }) = stdin else { return };
        while let Some(bytes) = chunks.read().await {
            if input.send(FromClient::Stdin(bytes)).await.is_err() {
                return;
            }
        }
        let _ = input.send(FromClient::StdinEnd).await;
    };
    let sizes = async {
        let Some(Stream { input: mut chunks, output: _output, .. }) = resize else { return };
        let mut text = BytesMut::new();
        while let Some(bytes) = chunks.read().await {
            text.extend_from_slice(&bytes);
            // Sizes follow one another as JSON objects, with or without a newline between them.
            while let Some(end) = text.iter().position(|byte| *byte == b'}') {
                let object = text.split_to(end + 1);
                if let Some(size) = parse_size(object.trim_ascii()) {
                    let _ = input.send(FromClient::Resize(size)).await;
                }
            }
            if text.len() > MAX_SIZE_BYTES {
                text.clear();
            }
        }
    };
    let ended = async {
        // No more streams can come: the connection has ended.
        while streams.recv().await.is_some() {}
    };
    let ended = ended.shared();
    let given_up = async {
        ended.clone().await;
        tokio::time::sleep(LAST_INPUT_TIMEOUT).await;
    };
    tokio::select! {
        // The end of the input is not the end: the client waits for output.
        _ = async { tokio::join!(stdin, sizes, ended.clone()) } => {}
        () = given_up => {}
    }
}

async fn write(
    status: Option<StreamWriter>,
    form: StatusForm,
    mut stdout: Option<StreamWriter>,
    mut stderr: Option<StreamWriter>,
    mut output: mpsc::Receiver<ToClient>,
) {
    while let Some(event) = output.recv().await {
        let (stream, bytes) = match event {
            ToClient::Stdout(bytes) => (&mut stdout, bytes),
            ToClient::Stderr(bytes) => (&mut stderr, bytes),
            ToClient::Status(value) => {
                for stream in [stdout.take(), stderr.take()].into_iter().flatten() {
                    stream.finish().await;
                }
                if let Some(status) = status {
                    if let Some(text) = form.encode(&value) {
                        let _ = status.write(text).await;
                    }
                    status.finish().await;
                }
                return;
            }
        };
        if let Some(open) = stream
            && open.write(bytes).await.is_err()
        {
            // The client wants no more of it, but still hears how the process ended.
            *stream = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::status;
    use super::*;
    use crate::server::spdy::{self, testing::Client};

    /// What a client of `version` reads on its error stream when a process on a terminal has ended.
    async fn told(version: &str, outcome: serde_json::Value) -> String {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (streams, connection) = spdy::serve(server);
        tokio::spawn(connection);
        let mut client = Client::new(client);
        let mut kinds = vec!["error", "stdin", "stdout"];
        if version.starts_with("v3.") || version.starts_with("v4.") {
            kinds.push("resize");
        }
        for (index, kind) in kinds.iter().enumerate() {
            client.open(2 * index as u32 + 1, &[("streamtype", kind)]).await;
        }
        let wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };
        let (channels, transport) = serve(streams, wanted, version).await.expect("all streams are there");
        let Channels { mut from_client, to_client } = channels;
        client.send(3, b"typed").await;
        client.close(3).await;
        if let Some(sizes) = kinds.iter().position(|kind| *kind == "resize") {
            client.send(2 * sizes as u32 + 1, br#"{"Width":80,"Height":24}"#).await;
        }
        let process = async {
            let mut heard = Vec::new();
            while heard.len() < kinds.len() - 1 {
                heard.push(from_client.recv().await.expect("the client is there"));
            }
            assert!(heard.contains(&FromClient::Stdin("typed".into())), "{version}: {heard:?}");
            assert!(heard.contains(&FromClient::StdinEnd), "{version}: {heard:?}");
            to_client.send(ToClient::Stdout("shown".into())).await.expect("sent");
            to_client.send(ToClient::Status(outcome)).await.expect("sent");
        };
        let reads = async {
            assert_eq!(client.read_to_end(5).await, "shown", "{version}");
            String::from_utf8(client.read_to_end(1).await.to_vec()).expect("text")
        };
        tokio::join!(transport, process, reads).2
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_goes_while_its_input_is_not_taken_ends_the_session() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (streams, connection) = spdy::serve(server);
        tokio::spawn(connection);
        let mut client = Client::new(client);
        for (id, kind) in [(1, "error"), (3, "stdin")] {
            client.open(id, &[("streamtype", kind)]).await;
        }
        let wanted = Wanted { stdin: true, stdout: false, stderr: false, tty: false };
        let (channels, transport) = serve(streams, wanted, "v4.channel.k8s.io").await.expect("all are there");
        for _ in 0..=QUEUE {
            client.send(3, b"unread").await;
        }
        drop(client);
        transport.await;
        channels.to_client.closed().await;
    }

    #[tokio::test]
    async fn every_version_tells_the_outcome_in_its_way() {
        for version in VERSIONS {
            let text = told(version, status::exit_code(7)).await;
            match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(status) if version.starts_with("v4.") => {
                    assert_eq!(
                        status["details"]["causes"][0],
                        json!({ "reason": "ExitCode", "message": "7" })
                    );
                }
                _ => assert_eq!(text, "command terminated with non-zero exit code: exit code 7", "{version}"),
            }
            let text = told(version, status::success()).await;
            assert_eq!(text.is_empty(), !version.starts_with("v4."), "{version}: {text}");
        }
    }
}
