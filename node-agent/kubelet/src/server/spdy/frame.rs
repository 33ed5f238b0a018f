//! Frames of SPDY/3.1 to and from bytes (draft-mbelshe-httpbis-spdy-00, section 2.2), as far as streams of
//! Kubernetes use them: pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Error;
use super::headers::{HeaderDecoder, HeaderEncoder, Headers};

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;

const FLAG_FIN: u8 = 1;
const HEAD_BYTES: usize = 8;

/// Largest frame that is read. Clients send what they read from a pipe or socket at once, some 32 KiB.
const MAX_FRAME_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_id: u32,
    },
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// A kind that needs no answer: settings, window updates, further headers.
    Ignored,
}

pub(super) struct FrameDecoder {
    headers: HeaderDecoder,
}

impl FrameDecoder {
    pub(super) fn new() -> Self {
        Self { headers: HeaderDecoder::new() }
    }

    /// Takes one frame from the front of `buffer`; `None` until it is all there.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let flags = buffer[4];
        let length = u32::from_be_bytes([0, buffer[5], buffer[6], buffer[7]]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(Error::FrameTooLarge { bytes: length });
        }
        if buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        let mut head = buffer.split_to(HEAD_BYTES);
        let payload = buffer.split_to(length).freeze();
        let first = head.get_u32();
        let fin = flags & FLAG_FIN != 0;
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { id: first, fin, bytes: payload }));
        }
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        self.control(kind, fin, payload).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, Error> {
        let needed = match kind {
            SYN_STREAM => 10,
            RST_STREAM | GO_AWAY => 8,
            SYN_REPLY | PING | HEADERS => 4,
            _ => return Ok(Frame::Ignored),
        };
        if payload.len() < needed {
            return Err(Error::ShortFrame { kind });
        }
        let id = payload.get_u32() & 0x7fff_ffff;
        Ok(match kind {
            SYN_STREAM => {
                // Associated stream, priority and slot: of no meaning here.
                payload.advance(6);
                Frame::SynStream { id, fin, headers: self.headers.decode(&payload)? }
            }
            SYN_REPLY => Frame::SynReply { id, headers: self.headers.decode(&payload)? },
            HEADERS => {
                // Decoded all the same, because later blocks build on this one.
                self.headers.decode(&payload)?;
                Frame::Ignored
            }
            RST_STREAM => Frame::RstStream { id, status: payload.get_u32() },
            PING => Frame::Ping { id },
            _ => Frame::GoAway { last_id: id },
        })
    }
}

pub(super) struct FrameEncoder {
    headers: HeaderEncoder,
}

impl FrameEncoder {
    pub(super) fn new() -> Self {
        Self { headers: HeaderEncoder::new() }
    }

    pub(super) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data { id, fin, bytes } => {
                out.put_u32(*id);
                out.put_u32(u32::from(*fin) << 24 | bytes.len() as u32);
                out.put_slice(bytes);
            }
            Frame::SynStream { id, fin, headers } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*id);
                payload.put_bytes(0, 6);
                payload.put_slice(&self.headers.encode(headers));
                control(SYN_STREAM, *fin, &payload, out);
            }
            Frame::SynReply { id, headers } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*id);
                payload.put_slice(&self.headers.encode(headers));
                control(SYN_REPLY, false, &payload, out);
            }
            Frame::RstStream { id, status } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*id);
                payload.put_u32(*status);
                control(RST_STREAM, false, &payload, out);
            }
            Frame::Ping { id } => control(PING, false, &id.to_be_bytes(), out),
            Frame::GoAway { last_id } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*last_id);
                payload.put_u32(0);
                control(GO_AWAY, false, &payload, out);
            }
            Frame::Ignored => {}
        }
    }
}

fn control(kind: u16, fin: bool, payload: &[u8], out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(fin) << 24 | payload.len() as u32);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let headers = vec![("streamtype".to_owned(), "data".to_owned())];
        vec![
            Frame::SynStream { id: 1, fin: false, headers: headers.clone() },
            Frame::SynReply { id: 1, headers: vec![] },
            Frame::Data { id: 1, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { id: 1, fin: true, bytes: Bytes::new() },
            Frame::RstStream { id: 3, status: 5 },
            Frame::Ping { id: 7 },
            Frame::GoAway { last_id: 3 },
            Frame::SynStream { id: 5, fin: true, headers },
        ]
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        let mut encoder = FrameEncoder::new();
        frames().iter().for_each(|frame| encoder.encode(frame, &mut bytes));
        for step in [1, 3, 7, bytes.len()] {
            let (mut decoder, mut buffer, mut found) = (FrameDecoder::new(), BytesMut::new(), Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames(), "{step}");
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        let refused = |bytes: &[u8]| FrameDecoder::new().decode(&mut BytesMut::from(bytes)).is_err();
        assert!(refused(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]), "16 MiB of data");
        assert!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 0]), "version 2");
        assert!(refused(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]), "stream without an id");
        assert!(!refused(&[0x80, 3, 0, 9, 0, 0, 0, 0]), "a kind that is passed over");
    }
}
