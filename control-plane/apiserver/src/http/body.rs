//! Bodies: reading them within bounds, and sending bytes, streams and compressed streams.

use std::{io::Write, pin::Pin};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{Stream, StreamExt, stream};
use hawser_api::{Error, error::Reason};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;

/// Upstream's bound of a request's body.
const MAX_BODY_BYTES: usize = 3 << 20;

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

/// Reads a request's body.
pub(super) async fn read<B>(mut body: B) -> Result<Bytes, Error>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    match Limited::new(&mut body, MAX_BODY_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            drain(body).await;
            Err(Error::new(
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {MAX_BODY_BYTES}"),
            ))
        }
        Err(error) => Err(Error::bad_request(format!("the request's body could not be read: {error}"))),
    }
}

/// Takes in the rest of a body and forgets it, within a bound; the request's deadline ends it too.
pub(super) async fn drain<B>(mut body: B)
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_DRAINED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
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
