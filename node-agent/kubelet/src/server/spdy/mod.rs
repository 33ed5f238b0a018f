//! SPDY/3.1, the server's side: streams that a client opens over one connection.
//!
//! Kubernetes clients speak it for port-forward (inside a WebSocket since kubectl 1.31) and, older ones, for
//! exec and attach. Like the other implementations in use there (moby/spdystream), it neither sends nor heeds window
//! updates: a sender that waited for one would wait for ever. A stream whose reader is slow holds the connection up
//! instead, and so nothing is buffered without a bound.

mod dictionary;
mod frame;
mod headers;

#[cfg(test)]
pub(super) mod testing;

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use frame::{Frame, FrameDecoder, FrameEncoder};
pub use headers::Headers;

/// Chunks kept of one stream for its reader; a full queue holds the connection up.
const STREAM_QUEUE: usize = 8;

/// Frames waiting to be written; a full queue makes the streams wait.
const WRITE_QUEUE: usize = 32;

/// Bytes kept of all streams of a connection for their readers: two frames of the largest size. Without room the
/// connection is held up.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// Streams of a connection at a time: exec has five, a forwarded connection two.
const MAX_STREAMS: usize = 2048;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Bytes in one data frame.
const MAX_DATA_BYTES: usize = 32 << 10;

/// A client that has heard nothing for so long is pinged. One that has gone is found out by that, also where the connection is
/// held up by a stream that nobody reads, so that its end is not seen.
const PING_INTERVAL: Duration = Duration::from_secs(30);

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
    /// Dropping it throws away what the client still sends.
    pub input: StreamReader,
    pub output: StreamWriter,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What the client sends on a stream.
pub struct StreamReader(mpsc::Receiver<Chunk>);

/// A piece of a stream, and its part of [`MAX_WAITING_BYTES`].
struct Chunk {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl StreamReader {
    /// `None` when the client has closed its side, has reset the stream, or is gone. Cancel safe.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|chunk| chunk.bytes)
    }
}

/// The server's side of a stream. Dropping it without [`StreamWriter::finish`] resets the stream.
pub struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Frame>,
    /// Becomes true when the client resets the stream; its sender goes with the connection.
    reset: watch::Receiver<bool>,
    finished: bool,
}

impl StreamWriter {
    /// Resolves when the client has reset the stream or the connection is gone: what is written then reaches nobody.
    pub fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut reset = self.reset.clone();
        async move {
            // Fails when the connection is gone.
            let _ = reset.wait_for(|reset| *reset).await;
        }
    }

    fn is_reset(&self) -> bool {
        *self.reset.borrow()
    }

    /// Waits while the client is behind; `Err` when it has reset the stream, or the connection is gone.
    pub async fn write(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            if self.is_reset() {
                return Err(Closed);
            }
            let part = bytes.split_to(bytes.len().min(MAX_DATA_BYTES));
            let frame = Frame::Data { id: self.id, fin: false, bytes: part };
            self.frames.send(frame).await.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Closes the server's side: the client reads what was written, and then the end.
    pub async fn finish(mut self) {
        self.finished = true;
        if self.is_reset() {
            return;
        }
        let frame = Frame::Data { id: self.id, fin: true, bytes: Bytes::new() };
        // Fails when the connection is gone, which ends the stream as well.
        let _ = self.frames.send(frame).await;
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if !self.finished && !self.is_reset() {
            // A full queue loses this; the client then sees the end of the connection at the latest.
            let _ = self.frames.try_send(Frame::RstStream { id: self.id, status: CANCEL });
        }
    }
}

/// Nobody hears what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream is closed")]
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
            let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
            let connection = Reader { streams, open: HashMap::new(), room, frames };
            tokio::select! {
                result = read_frames(reader, connection) => result,
                // Whoever took the streams wants no more: what is queued is still written.
                () = wanted.closed() => Ok(()),
            }
        };
        let (mut reading, mut writing) = (pin!(reading), pin!(writing));
        tokio::select! {
            // The writer ends when the reader and every stream have let go of the queue.
            read = &mut reading => read.and(writing.await),
            // Nobody hears what is written: the client has gone.
            written = &mut writing => written,
        }
    };
    (receiver, work)
}

struct Reader {
    streams: mpsc::Sender<Stream>,
    /// Streams of which a side is open.
    open: HashMap<u32, OpenStream>,
    /// For bytes that wait for their readers.
    room: Arc<Semaphore>,
    frames: mpsc::Sender<Frame>,
}

struct OpenStream {
    /// `None` when the client has closed its side, or nobody reads it.
    input: Option<mpsc::Sender<Chunk>>,
    /// Closed when the server's side is.
    reset: watch::Sender<bool>,
}

impl OpenStream {
    fn has_ended(&self) -> bool {
        self.input.as_ref().is_none_or(mpsc::Sender::is_closed) && self.reset.is_closed()
    }
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
            Frame::Data { id, fin, bytes } => self.pass_on(id, fin, bytes).await,
            Frame::RstStream { id, .. } => {
                if let Some(stream) = self.open.remove(&id) {
                    stream.reset.send_replace(true);
                }
            }
            Frame::Ping { id } => {
                // The answer to ours, which are even, says no more than that the connection carried it.
                if id % 2 == 1 {
                    let _ = self.frames.send(Frame::Ping { id }).await;
                }
            }
            Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ignored => {}
        }
    }

    async fn pass_on(&mut self, id: u32, fin: bool, bytes: Bytes) {
        // Data of a stream that was refused or reset is on its way for a while.
        let Some(stream) = self.open.get_mut(&id) else { return };
        if !bytes.is_empty()
            && let Some(input) = &stream.input
        {
            let wanted = u32::try_from(bytes.len()).expect("frames are shorter than what may wait");
            let room = self.room.clone().acquire_many_owned(wanted).await;
            let chunk = Chunk { bytes, _room: room.expect("the semaphore is never closed") };
            if input.send(chunk).await.is_err() {
                stream.input = None;
            }
        }
        if fin {
            stream.input = None;
        }
        if stream.has_ended() {
            self.open.remove(&id);
        }
    }

    async fn open_stream(&mut self, id: u32, fin: bool, headers: Headers) {
        self.open.retain(|_, stream| !stream.has_ended());
        let refused = match id {
            // Even ones would be the server's own.
            id if id % 2 == 0 || self.open.contains_key(&id) => Some(PROTOCOL_ERROR),
            _ if self.open.len() >= MAX_STREAMS => Some(REFUSED_STREAM),
            _ => None,
        };
        if let Some(status) = refused {
            let _ = self.frames.send(Frame::RstStream { id, status }).await;
            return;
        }
        let (sender, input) = mpsc::channel(STREAM_QUEUE);
        let (reset, on_reset) = watch::channel(false);
        self.open.insert(id, OpenStream { input: (!fin).then_some(sender), reset });
        let _ = self.frames.send(Frame::SynReply { id, headers: Headers::new() }).await;
        let output = StreamWriter { id, frames: self.frames.clone(), reset: on_reset, finished: false };
        let _ = self.streams.send(Stream { id, headers, input: StreamReader(input), output }).await;
    }
}

async fn write_frames(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), Error> {
    let mut encoder = FrameEncoder::new();
    let mut buffer = BytesMut::new();
    let mut pings = (2..=u32::MAX).step_by(2).cycle();
    loop {
        let frame = match tokio::time::timeout(PING_INTERVAL, frames.recv()).await {
            Ok(None) => break,
            Ok(Some(frame)) => frame,
            Err(_) => Frame::Ping { id: pings.next().expect("it has no end") },
        };
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
    use std::collections::VecDeque;

    use super::testing::Client;
    use super::*;

    #[tokio::test]
    async fn stream_is_opened_used_and_closed() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        client.open(1, &[("streamtype", "data")]).await;
        client.send(1, b"question").await;
        client.close(1).await;
        client.write(Frame::Ping { id: 1 }).await;
        let mut stream = streams.recv().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("data"));
        assert_eq!(stream.input.read().await.unwrap(), "question");
        assert_eq!(stream.input.read().await, None);
        stream.output.write(Bytes::from_static(b"answer")).await.unwrap();
        stream.output.finish().await;

        let mut got = client.frames(4).await;
        got.sort_by_key(|frame| matches!(frame, Frame::Data { .. }));
        assert!(matches!(got[0], Frame::SynReply { id: 1, .. }), "{got:?}");
        assert_eq!(got[1], Frame::Ping { id: 1 });
        assert_eq!(got[2], Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"answer") });
        assert_eq!(got[3], Frame::Data { id: 1, fin: true, bytes: Bytes::new() });
        drop(streams);
        work.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn reset_by_the_client_ends_both_sides() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        client.open(1, &[]).await;
        // Its own side is closed already, as port-forwarding clients do.
        client.close(1).await;
        let mut stream = streams.recv().await.unwrap();
        client.reset(1).await;
        stream.output.abandoned().await;
        assert_eq!(stream.input.read().await, None);
        assert_eq!(stream.output.write(Bytes::from_static(b"late")).await, Err(Closed));
        stream.output.finish().await;
        // The connection goes on, and nothing was said on the stream.
        client.write(Frame::Ping { id: 1 }).await;
        assert!(matches!(client.frames(2).await[..], [Frame::SynReply { id: 1, .. }, Frame::Ping { id: 1 }]));
        drop(streams);
        work.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn streams_that_cannot_be_are_refused() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        for id in [1, 1, 0, 2] {
            client.open(id, &[]).await;
        }
        let first = streams.recv().await.unwrap();
        let got = client.frames(4).await;
        assert!(matches!(got[0], Frame::SynReply { id: 1, .. }), "{got:?}");
        for (frame, id) in got[1..].iter().zip([1, 0, 2]) {
            assert_eq!(*frame, Frame::RstStream { id, status: PROTOCOL_ERROR });
        }
        drop((first, streams));
        work.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_hears_nothing_is_pinged() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        for id in [2, 4] {
            assert_eq!(client.frames(1).await, [Frame::Ping { id }]);
            client.write(Frame::Ping { id }).await;
        }
        drop(streams);
        work.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_goes_while_nobody_reads_ends_the_connection() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        client.open(1, &[]).await;
        for _ in 0..=STREAM_QUEUE {
            client.send(1, b"unread").await;
        }
        let stream = streams.recv().await.unwrap();
        drop(client);
        stream.output.abandoned().await;
        work.await.unwrap().unwrap_err();
    }

    // On a paused clock a timeout means that nothing else can happen.
    #[tokio::test(start_paused = true)]
    async fn what_waits_for_readers_is_bounded() {
        const PIECE: usize = 1 << 20;
        let (client, server) = tokio::io::duplex(1 << 16);
        let (mut streams, work) = serve(server);
        let work = tokio::spawn(work);
        let mut client = Client::new(client);
        let count = 3 * MAX_WAITING_BYTES / PIECE;
        let sending = tokio::spawn(async move {
            for id in 0..count as u32 {
                client.open(2 * id + 1, &[]).await;
                client.send(2 * id + 1, &vec![b'x'; PIECE]).await;
                client.close(2 * id + 1).await;
            }
            client
        });
        let mut opened = VecDeque::new();
        while opened.len() * PIECE <= MAX_WAITING_BYTES {
            opened.push_back(streams.recv().await.unwrap());
        }
        // One stream more is open than there is room for: no further one comes before a reader takes something.
        let early = tokio::time::timeout(Duration::from_secs(1), streams.recv()).await;
        assert!(early.is_err(), "nothing held the client up");
        let mut received = 0;
        while received < count * PIECE {
            let mut stream = match opened.pop_front() {
                Some(stream) => stream,
                None => streams.recv().await.unwrap(),
            };
            while let Some(bytes) = stream.input.read().await {
                received += bytes.len();
            }
        }
        let client = sending.await.unwrap();
        drop(streams);
        work.await.unwrap().unwrap();
        drop(client);
    }
}
