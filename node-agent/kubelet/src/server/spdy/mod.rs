//! SPDY/3.1, the server's side: streams that a client opens over one connection.
//!
//! Kubernetes clients speak it for port-forward (inside a WebSocket since kubectl 1.31) and, older ones, for
//! exec and attach. Like the other implementations in use there, it has no flow control: a stream whose
//! reader is slow holds the connection up, and so nothing is buffered without a bound.

mod dictionary;
mod frame;
mod headers;

use std::collections::HashMap;
use std::future::Future;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use frame::{Frame, FrameDecoder, FrameEncoder};
pub use headers::Headers;

/// Chunks kept of one stream for its reader; a full queue holds the connection up.
const STREAM_QUEUE: usize = 8;

/// Frames waiting to be written; a full queue makes the streams wait.
const WRITE_QUEUE: usize = 32;

/// Streams of a connection at a time: exec has five, a forwarded connection two.
const MAX_STREAMS: usize = 1024;

const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Bytes in one data frame.
const MAX_DATA_BYTES: usize = 32 << 10;

/// The other side does not speak SPDY/3.1, or the connection broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("header block is {0}")]
    Headers(&'static str),
    #[error("frame has {bytes} bytes")]
    FrameTooLarge { bytes: usize },
    #[error("frame of kind {kind} is cut short")]
    ShortFrame { kind: u16 },
    #[error("version {0} is not spoken")]
    Version(u16),
    #[error("connection broke")]
    Io(#[from] std::io::Error),
}

/// A stream that the client opened.
pub struct Stream {
    pub id: u32,
    /// Names are in lower case.
    pub headers: Headers,
    /// What the client sends; ends when it closes its side.
    pub input: mpsc::Receiver<Bytes>,
    pub output: StreamWriter,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The server's side of a stream. Dropping it without [`StreamWriter::finish`] resets the stream.
pub struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Frame>,
    finished: bool,
}

impl StreamWriter {
    /// Waits while the client is behind; `Err` when the connection is gone.
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(MAX_DATA_BYTES));
            let frame = Frame::Data { id: self.id, fin: false, bytes: part };
            self.frames.send(frame).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Closes the server's side: the client reads what was written, and then the end.
    pub async fn finish(mut self) {
        self.finished = true;
        let frame = Frame::Data { id: self.id, fin: true, bytes: Bytes::new() };
        // Fails when the connection is gone, which ends the stream as well.
        let _ = self.frames.send(frame).await;
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.finished {
            // A full queue loses this; the client then sees the end of the connection at the latest.
            let _ = self.frames.try_send(Frame::RstStream { id: self.id, status: CANCEL });
        }
    }
}

/// The connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection is closed")]
pub struct Closed;

/// Serves one connection: the streams that the client opens come out of the receiver; the future does the
/// work and ends with the connection, or when the receiver and all streams are dropped.
pub fn serve(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
) -> (mpsc::Receiver<Stream>, impl Future<Output = Result<(), Error>> + Send) {
    let (streams, receiver) = mpsc::channel(STREAM_QUEUE);
    let (frames, to_write) = mpsc::channel(WRITE_QUEUE);
    let work = async move {
        let (reader, writer) = tokio::io::split(io);
        let writing = write_frames(writer, to_write);
        let reading = async {
            let wanted = streams.clone();
            let connection = Reader { streams, open: HashMap::new(), frames };
            tokio::select! {
                result = read_frames(reader, connection) => result,
                // Whoever took the streams wants no more: what is queued is still written.
                () = wanted.closed() => Ok(()),
            }
        };
        // The writer ends when the reader and every stream have let go of the queue.
        let (read, written) = tokio::join!(reading, writing);
        read.and(written)
    };
    (receiver, work)
}

struct Reader {
    streams: mpsc::Sender<Stream>,
    /// The client's side of each stream that it has not closed.
    open: HashMap<u32, mpsc::Sender<Bytes>>,
    frames: mpsc::Sender<Frame>,
}

async fn read_frames(mut io: impl AsyncRead + Unpin, mut connection: Reader) -> Result<(), Error> {
    let mut decoder = FrameDecoder::new();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut buffer)? {
            if matches!(frame, Frame::GoAway { .. }) {
                return Ok(());
            }
            connection.handle(frame).await;
        }
        if io.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

impl Reader {
    /// A send that fails means that nobody cares for what would have been sent.
    async fn handle(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open_stream(id, fin, headers).await,
            Frame::Data { id, fin, bytes } => {
                if let Some(stream) = self.open.get(&id)
                    && !bytes.is_empty()
                    && stream.send(bytes).await.is_err()
                {
                    self.open.remove(&id);
                }
                if fin {
                    self.open.remove(&id);
                }
            }
            Frame::RstStream { id, .. } => drop(self.open.remove(&id)),
            Frame::Ping { id } => {
                // Ours would be even, and we send none.
                if id % 2 == 1 {
                    let _ = self.frames.send(Frame::Ping { id }).await;
                }
            }
            Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ignored => {}
        }
    }

    async fn open_stream(&mut self, id: u32, fin: bool, headers: Headers) {
        self.open.retain(|_, stream| !stream.is_closed());
        if self.open.len() >= MAX_STREAMS || self.open.contains_key(&id) {
            let _ = self.frames.send(Frame::RstStream { id, status: REFUSED_STREAM }).await;
            return;
        }
        let (sender, input) = mpsc::channel(STREAM_QUEUE);
        if !fin {
            self.open.insert(id, sender);
        }
        let _ = self.frames.send(Frame::SynReply { id, headers: Headers::new() }).await;
        let output = StreamWriter { id, frames: self.frames.clone(), finished: false };
        let _ = self.streams.send(Stream { id, headers, input, output }).await;
    }
}

async fn write_frames(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), Error> {
    let mut encoder = FrameEncoder::new();
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        encoder.encode(&frame, &mut buffer);
        // What else is ready goes out together.
        while let Ok(frame) = frames.try_recv() {
            encoder.encode(&frame, &mut buffer);
        }
        io.write_all_buf(&mut buffer).await?;
        io.flush().await?;
    }
    let _ = io.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn client_frames(client: &mut tokio::io::DuplexStream, count: usize) -> Vec<Frame> {
        let (mut decoder, mut buffer, mut found) = (FrameDecoder::new(), BytesMut::new(), Vec::new());
        while found.len() < count {
            match decoder.decode(&mut buffer).unwrap() {
                Some(frame) => found.push(frame),
                None => assert!(client.read_buf(&mut buffer).await.unwrap() > 0, "{found:?}"),
            }
        }
        found
    }

    #[tokio::test]
    async fn stream_is_opened_used_and_closed() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut encoder = FrameEncoder::new();
        let mut bytes = BytesMut::new();
        let headers = vec![("streamtype".to_owned(), "data".to_owned())];
        for frame in [
            Frame::SynStream { id: 1, fin: false, headers },
            Frame::Data { id: 1, fin: true, bytes: Bytes::from_static(b"question") },
            Frame::Ping { id: 1 },
        ] {
            encoder.encode(&frame, &mut bytes);
        }
        client.write_all(&bytes).await.unwrap();
        let mut stream = streams.recv().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("data"));
        assert_eq!(stream.input.recv().await.unwrap(), "question");
        assert_eq!(stream.input.recv().await, None);
        stream.output.write(Bytes::from_static(b"answer")).await.unwrap();
        stream.output.finish().await;

        let mut got = client_frames(&mut client, 4).await;
        got.sort_by_key(|frame| matches!(frame, Frame::Data { .. }));
        assert!(matches!(got[0], Frame::SynReply { id: 1, .. }), "{got:?}");
        assert_eq!(got[1], Frame::Ping { id: 1 });
        assert_eq!(got[2], Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"answer") });
        assert_eq!(got[3], Frame::Data { id: 1, fin: true, bytes: Bytes::new() });
        drop(streams);
        work.await.unwrap().unwrap();
    }
}
