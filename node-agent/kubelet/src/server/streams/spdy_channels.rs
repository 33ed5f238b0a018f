//! Exec and attach over SPDY: one stream a channel, told apart by the header `streamtype`.

use std::future::Future;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::Wanted;
use super::channels::{Channels, FromClient, QUEUE, ToClient, parse_size};
use crate::server::spdy::{Stream, StreamWriter};

/// How long a client may take to open its streams.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

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
    fn is_complete(&self, wanted: Wanted) -> bool {
        let there = |wanted: bool, stream: &Option<Stream>| !wanted || stream.is_some();
        self.status.is_some()
            && there(wanted.stdin, &self.stdin)
            && there(wanted.stdout, &self.stdout)
            && there(wanted.stderr, &self.stderr)
            && there(wanted.tty, &self.resize)
    }
}

/// Waits for the streams that the client asked for; `None` when it does not open them.
pub(super) async fn serve(
    mut streams: mpsc::Receiver<Stream>,
    wanted: Wanted,
) -> Option<(Channels, impl Future<Output = ()> + Send)> {
    let opened = tokio::time::timeout(OPEN_TIMEOUT, open(&mut streams, wanted)).await.ok()??;
    let (input, from_client) = mpsc::channel(QUEUE);
    let (to_client, output) = mpsc::channel(QUEUE);
    let Opened { status, stdin, stdout, stderr, resize } = opened;
    let (status_input, status) = status.map(|stream| (stream.input, stream.output)).unzip();
    let work = async move {
        let reading = read(stdin, resize, status_input, streams, input);
        let writing =
            write(status, stdout.map(|stream| stream.output), stderr.map(|stream| stream.output), output);
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    Some((Channels { from_client, to_client }, work))
}

async fn open(streams: &mut mpsc::Receiver<Stream>, wanted: Wanted) -> Option<Opened> {
    let mut opened = Opened::default();
    while !opened.is_complete(wanted) {
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
    status: Option<mpsc::Receiver<bytes::Bytes>>,
    mut streams: mpsc::Receiver<Stream>,
    input: mpsc::Sender<FromClient>,
) {
    let stdin = async {
        // The writer is kept: letting go of it would reset the stream.
        let Some(Stream { input: mut chunks, output: _output, .. }) = stdin else { return };
        while let Some(bytes) = chunks.recv().await {
            if input.send(FromClient::Stdin(bytes)).await.is_err() {
                return;
            }
        }
        let _ = input.send(FromClient::StdinEnd).await;
    };
    let sizes = async {
        let Some(Stream { input: mut chunks, output: _output, .. }) = resize else { return };
        let mut text = BytesMut::new();
        while let Some(bytes) = chunks.recv().await {
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
    let _status = status;
    // The end of the input is not the end: the client waits for output.
    tokio::join!(stdin, sizes, ended);
}

async fn write(
    status: Option<StreamWriter>,
    mut stdout: Option<StreamWriter>,
    mut stderr: Option<StreamWriter>,
    mut output: mpsc::Receiver<ToClient>,
) {
    while let Some(event) = output.recv().await {
        let (stream, bytes) = match event {
            ToClient::Stdout(bytes) => (&stdout, bytes),
            ToClient::Stderr(bytes) => (&stderr, bytes),
            ToClient::Status(value) => {
                for stream in [stdout.take(), stderr.take()].into_iter().flatten() {
                    stream.finish().await;
                }
                if let Some(status) = status {
                    let _ = status.write(value.to_string().into()).await;
                    status.finish().await;
                }
                return;
            }
        };
        if let Some(stream) = stream
            && stream.write(bytes).await.is_err()
        {
            return;
        }
    }
}
