//! The client's side of a connection, for tests.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(in crate::server) use super::frame::Frame;
use super::frame::{FrameDecoder, FrameEncoder};

/// Speaks one frame after the other.
pub(in crate::server) struct Client<S> {
    io: S,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    received: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(in crate::server) fn new(io: S) -> Self {
        Self { io, encoder: FrameEncoder::new(), decoder: FrameDecoder::new(), received: BytesMut::new() }
    }

    pub(in crate::server) async fn write(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.io.write_all(&bytes).await.expect("written");
    }

    pub(in crate::server) async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        self.write(Frame::SynStream { id, fin: false, headers }).await;
    }

    pub(in crate::server) async fn send(&mut self, id: u32, bytes: &[u8]) {
        self.write(Frame::Data { id, fin: false, bytes: Bytes::copy_from_slice(bytes) }).await;
    }

    pub(in crate::server) async fn close(&mut self, id: u32) {
        self.write(Frame::Data { id, fin: true, bytes: Bytes::new() }).await;
    }

    pub(in crate::server) async fn reset(&mut self, id: u32) {
        self.write(Frame::RstStream { id, status: 5 }).await;
    }

    /// The next frames; fewer where the connection ends before.
    pub(in crate::server) async fn frames(&mut self, count: usize) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.len() < count {
            match self.decoder.decode(&mut self.received).expect("a frame") {
                Some(frame) => frames.push(frame),
                None if self.io.read_buf(&mut self.received).await.expect("read") == 0 => break,
                None => {}
            }
        }
        frames
    }

    /// What the server sends on a stream until it closes its side.
    pub(in crate::server) async fn read_to_end(&mut self, wanted: u32) -> Bytes {
        let mut text = BytesMut::new();
        loop {
            match self.frames(1).await.pop() {
                Some(Frame::Data { id, fin, bytes }) if id == wanted => {
                    text.extend_from_slice(&bytes);
                    if fin {
                        return text.freeze();
                    }
                }
                Some(Frame::RstStream { id, status }) if id == wanted => {
                    panic!("stream {id} is reset: {status}")
                }
                Some(_) => {}
                None => panic!("the connection ended before stream {wanted}"),
            }
        }
    }
}
