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
use crate::server::spdy::{Stream, StreamReader, StreamWriter};

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
        let mut waiting: HashMap<String, Errors> = HashMap::new();
        let mut forwarded = JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = streams.recv() => stream,
                Some(_) = forwarded.join_next() => continue,
            };
            let Some(stream) = stream else { break };
            let request = request_id(&stream);
            match stream.header("streamtype") {
                Some("error") if waiting.len() < MAX_WAITING => {
                    drop(waiting.insert(request, Errors::of(stream)))
                }
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

    async fn forward(&self, errors: Errors, data: Stream) {
        let named = data.header("port").map(str::to_owned).or(errors.port).unwrap_or_default();
        let connected = match named.parse() {
            Ok(port) if port != 0 => self.connect(port).await,
            _ => Err(format!("invalid port {named:?}")),
        };
        match connected {
            Ok(connection) => {
                let (from_pod, to_pod) = connection.into_split();
                let abandoned = data.output.abandoned();
                let both =
                    async { tokio::join!(upload(data.input, to_pod), download(from_pod, data.output)) };
                tokio::select! {
                    ((), ()) = both => {}
                    // Its own client has gone, and it waits for the end of the error stream.
                    () = abandoned => {}
                }
            }
            Err(message) => {
                let _ = errors.output.write(message.into()).await;
                data.output.finish().await;
            }
        }
        errors.output.finish().await;
    }
}

/// An error stream; what clients send on it is thrown away.
struct Errors {
    port: Option<String>,
    output: StreamWriter,
}

impl Errors {
    fn of(stream: Stream) -> Self {
        Self { port: stream.header("port").map(str::to_owned), output: stream.output }
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

async fn upload(mut chunks: StreamReader, mut to_pod: OwnedWriteHalf) {
    while let Some(bytes) = chunks.read().await {
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::server::spdy::{
        self,
        testing::{Client, Frame},
    };

    /// A client that has opened a pair of streams to `port`: 1 for errors, 3 for data.
    async fn forwarding_to(port: &str) -> Client<tokio::io::DuplexStream> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (streams, connection) = spdy::serve(server);
        tokio::spawn(connection);
        tokio::spawn(Forwarder { network: None, pod: "default/web".into() }.serve(streams));
        let mut client = Client::new(client);
        for (id, kind) in [(1, "error"), (3, "data")] {
            client.open(id, &[("streamtype", kind), ("port", port), ("requestid", "0")]).await;
        }
        client.close(1).await;
        client
    }

    #[tokio::test]
    async fn reset_by_the_client_closes_the_pods_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = forwarding_to(&listener.local_addr().expect("bound").port().to_string()).await;
        let (mut pod, _) = listener.accept().await.expect("connected");
        client.close(3).await;
        assert_eq!(pod.read(&mut [0; 1]).await.expect("read"), 0, "the client's side is closed");
        client.reset(3).await;
        // The error stream ends though the pod has not said its last word.
        assert!(client.read_to_end(1).await.is_empty());
        let mut written = Ok(());
        while written.is_ok() {
            written = pod.write_all(&[b'x'; 1024]).await;
        }
    }

    #[tokio::test]
    async fn failures_are_told_on_the_error_stream() {
        for port in ["0", "70000", "http", ""] {
            let text = forwarding_to(port).await.read_to_end(1).await;
            assert_eq!(text, format!("invalid port {port:?}"));
        }
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound").port();
        let mut client = forwarding_to(&closed.to_string()).await;
        let text = client.read_to_end(1).await;
        assert!(String::from_utf8_lossy(&text).contains("refused"), "{text:?}");
    }

    #[tokio::test]
    async fn data_without_an_error_stream_is_reset() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (streams, connection) = spdy::serve(server);
        tokio::spawn(connection);
        tokio::spawn(Forwarder { network: None, pod: "default/web".into() }.serve(streams));
        let mut client = Client::new(client);
        client.open(1, &[("streamtype", "data"), ("port", "80"), ("requestid", "5")]).await;
        let frames = client.frames(2).await;
        assert!(matches!(frames[1], Frame::RstStream { id: 1, .. }), "{frames:?}");
    }
}
