//! Port-forward over SPDY: for each forwarded connection the client opens a stream for errors and one for
//! data, with the same `requestid`.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::server::netns;
use crate::server::spdy::{Stream, StreamWriter};

/// Error streams whose data stream has not come.
const MAX_WAITING: usize = 256;

const CHUNK_BYTES: usize = 32 << 10;

/// Connects to the ports of one pod.
#[derive(Debug, Clone)]
pub(super) struct Forwarder {
    /// The pod's network namespace; `None` for the node's.
    pub(super) network: Option<PathBuf>,
    /// `namespace/name`, for messages.
    pub(super) pod: String,
}

impl Forwarder {
    pub(super) async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        netns::connect(self.network.clone(), port).await.map_err(|error| {
            format!(
                "error forwarding port {port} to pod {}: failed to connect to localhost:{port} inside its network namespace: {error}",
                self.pod
            )
        })
    }

    /// Serves the streams of one connection, until it ends.
    pub(super) async fn serve(self, mut streams: mpsc::Receiver<Stream>) {
        let mut waiting: HashMap<String, Stream> = HashMap::new();
        let mut forwarded = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = streams.recv() => stream,
                Some(_) = forwarded.join_next() => continue,
            };
            let Some(stream) = stream else { break };
            let request = request_id(&stream);
            match stream.header("streamtype") {
                Some("error") if waiting.len() < MAX_WAITING => drop(waiting.insert(request, stream)),
                Some("data") => {
                    // Without an error stream there is nobody to tell what fails.
                    let Some(errors) = waiting.remove(&request) else { continue };
                    let forwarder = self.clone();
                    forwarded.spawn(async move { forwarder.forward(errors, stream).await });
                }
                _ => {}
            }
        }
        // Dropping the set closes what is still forwarded.
    }

    async fn forward(&self, errors: Stream, data: Stream) {
        let port = data.header("port").or(errors.header("port")).and_then(|port| port.parse().ok());
        let connected = match port {
            Some(port) => self.connect(port).await,
            None => Err(format!("invalid port {:?}", data.header("port").unwrap_or_default())),
        };
        match connected {
            Ok(connection) => {
                let (from_pod, to_pod) = connection.into_split();
                tokio::join!(upload(data.input, to_pod), download(from_pod, data.output));
            }
            Err(message) => {
                let _ = errors.output.write(message.into()).await;
                data.output.finish().await;
            }
        }
        errors.output.finish().await;
    }
}

/// Old clients send no request id; their data stream follows its error stream, and ids go up by two.
fn request_id(stream: &Stream) -> String {
    match (stream.header("requestid"), stream.header("streamtype")) {
        (Some(id), _) => id.to_owned(),
        (None, Some("data")) => format!("stream {}", stream.id.saturating_sub(2)),
        (None, _) => format!("stream {}", stream.id),
    }
}

async fn upload(mut chunks: mpsc::Receiver<bytes::Bytes>, mut to_pod: OwnedWriteHalf) {
    while let Some(bytes) = chunks.recv().await {
        if to_pod.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = to_pod.shutdown().await;
}

async fn download(mut from_pod: OwnedReadHalf, to_client: StreamWriter) {
    let mut chunk = BytesMut::new();
    loop {
        chunk.reserve(CHUNK_BYTES);
        match from_pod.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if to_client.write(chunk.split().freeze()).await.is_err() {
            break;
        }
    }
    to_client.finish().await;
}
