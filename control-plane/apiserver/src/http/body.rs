//! Bodies: reading them within bounds, and sending bytes, streams and compressed streams.

use std::{io::Write, pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use flate2::{Compression, write::GzEncoder};
use futures::{Stream, StreamExt, stream};
use hawser_api::{Error, error::Reason};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::time::timeout;

use crate::bodies::Reading;

/// Upstream's bound of a request's body.
const MAX_BODY_BYTES: usize = 3 << 20;

/// A client that sends nothing of its body for so long is given up.
const STALL: Duration = Duration::from_secs(15);

/// What is taken in of a body that is too large, so that a client which sends it all before it reads hears why.
const MAX_DRAINED_BYTES: usize = 16 << 20;

/// Bodies from here on are compressed for clients that take it, as upstream.
const MIN_COMPRESSED_BYTES: usize = 128 << 10;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Pieces of a body that are made while it is sent.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn streamed(pieces: Pieces) -> Body {
    StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync()
}

/// Reads a request's body. What is read of it takes its room until it is there.
///
/// # Errors
/// 413 beyond the bound, 429 where there is no room, 504 for a client that sends nothing for [`STALL`].
pub(super) async fn read<B>(mut body: B, mut room: Reading<'_>) -> Result<Bytes, Error>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let (mut first, mut joined, mut size) = (Bytes::new(), BytesMut::new(), 0);
    loop {
        let frame = timeout(STALL, body.frame()).await.map_err(|_| {
            Error::timeout(format!(
                "the request's body stopped: nothing came for {} seconds",
                STALL.as_secs()
            ))
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            let error: BoxError = error.into();
            Error::bad_request(format!("the request's body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let before = size;
        size += data.len();
        if size > MAX_BODY_BYTES {
            drop(room);
            drain(body).await;
            return Err(Error::new(
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {MAX_BODY_BYTES}"),
            ));
        }
        room.take(data.len())?;
        // Most bodies come as one piece, which is not copied.
        match before {
            0 => first = data,
            _ => {
                if joined.is_empty() {
                    joined.extend_from_slice(&first);
                }
                joined.extend_from_slice(&data);
            }
        }
    }
    Ok(if joined.is_empty() { first } else { joined.freeze() })
}

/// Takes in the rest of a body and forgets it, within a bound and as long as it comes.
pub(super) async fn drain<B>(mut body: B)
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_DRAINED_BYTES;
    while let Ok(Some(Ok(frame))) = timeout(STALL, body.frame()).await {
        let taken = frame.data_ref().map_or(0, Bytes::len);
        if taken > left {
            return;
        }
        left -= taken;
    }
}

/// Whether a body is worth compressing.
pub(super) fn is_worth_compressing(bytes: usize) -> bool {
    bytes >= MIN_COMPRESSED_BYTES
}

/// Compresses pieces as they come. Level 1: the network is faster than a better ratio.
pub(super) fn gzip(pieces: Pieces) -> Pieces {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let compressed = stream::unfold(Some((pieces, encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        // Writing to memory does not fail.
        match pieces.next().await {
            Some(piece) => {
                let _ = encoder.write_all(&piece);
                let ready = std::mem::take(encoder.get_mut());
                Some((Bytes::from(ready), Some((pieces, encoder))))
            }
            None => Some((encoder.finish().unwrap_or_default().into(), None)),
        }
    });
    Box::pin(compressed.filter(|piece| std::future::ready(!piece.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::User, bodies::BodyRoom};

    type Piece = Result<Frame<Bytes>, BoxError>;

    fn pieces(sizes: &'static [usize]) -> impl Stream<Item = Piece> + Unpin {
        stream::iter(sizes.iter().map(|size| Ok(Frame::data(vec![b'x'; *size].into()))))
    }

    #[tokio::test]
    async fn a_body_is_read_whole_within_its_bounds() {
        let (room, user) = (BodyRoom::new(32 << 20), User::named("client", &[]));
        for (sizes, expected) in
            [(&[][..], Ok(0)), (&[5], Ok(5)), (&[1, 2, 3], Ok(6)), (&[MAX_BODY_BYTES, 1], Err(413))]
        {
            let read = read(StreamBody::new(pieces(sizes)), room.begin(&user)).await;
            assert_eq!(read.map(|bytes| bytes.len()).map_err(|error| error.code()), expected, "{sizes:?}");
        }
        let full = BodyRoom::new(20);
        let refused = read(StreamBody::new(pieces(&[4, 4])), full.begin(&user)).await.expect_err("no room");
        assert_eq!(refused.code(), 429);
        full.begin(&user).take(5).expect("nothing stays behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_given_up() {
        let (room, user) = (BodyRoom::new(16), User::named("client", &[]));
        let body = StreamBody::new(pieces(&[4]).chain(stream::pending()));
        let stopped = read(body, room.begin(&user)).await.expect_err("it never ends");
        assert_eq!(stopped.code(), 504);
        room.begin(&user).take(4).expect("nothing stays behind");
    }
}
