//! Deadlines of calls: the client's (`grpc-timeout`), and the server's own for what is no stream that goes on.
//!
//! A call that has not begun to answer by then ends with DEADLINE_EXCEEDED, and is dropped where it stands. A stream ends
//! so at the client's deadline alone.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hawser_api::Error;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::status_of;
use crate::http::Body as Answer;

/// What a call may take that is no watch and no node's stream: HTTP's.
const DEADLINE: Duration = Duration::from_secs(60);

/// Services whose calls all end by themselves.
const ENDING: [&str; 2] = ["/hawser.v1.ObjectService/", "/hawser.v1.BindingService/"];

const TIMEOUT: &str = "grpc-timeout";

/// Carries out a call within its deadlines; `asked` is the client's ([`asked`]).
pub(crate) async fn within<F, B>(
    path: &str,
    asked: Result<Option<Duration>, Error>,
    call: impl FnOnce() -> F,
) -> Response<Answer>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => return refusal(&error),
    };
    let ends = asked.map(|asked| Instant::now() + asked);
    let own = ENDING.iter().any(|service| path.starts_with(service)).then_some(DEADLINE);
    let response = match asked.into_iter().chain(own).min() {
        Some(deadline) => match timeout(deadline, call()).await {
            Ok(response) => response,
            Err(_) => return refusal(&late()),
        },
        None => call().await,
    };
    response.map(|body| {
        let body = body.map_err(Into::into);
        match ends {
            Some(ends) => Ending { body: Box::pin(body), ends, sleep: None, is_over: false }.boxed_unsync(),
            None => body.boxed_unsync(),
        }
    })
}

pub(crate) fn refusal(error: &Error) -> Response<Answer> {
    let response = status_of(error).into_http::<tonic::body::Body>();
    response.map(|body| body.map_err(Into::into).boxed_unsync())
}

fn late() -> Error {
    Error::timeout("the request did not complete within the allotted timeout")
}

/// What the client allows: at most eight digits and a unit (gRPC over HTTP/2).
pub(crate) fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let read = || {
        let text = value.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let amount =
            digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse::<u64>().ok())??;
        Some(match (unit, digits.len()) {
            (_, 9..) => return None,
            ("H", _) => Duration::from_secs(amount * 3600),
            ("M", _) => Duration::from_secs(amount * 60),
            ("S", _) => Duration::from_secs(amount),
            ("m", _) => Duration::from_millis(amount),
            ("u", _) => Duration::from_micros(amount),
            ("n", _) => Duration::from_nanos(amount),
            _ => return None,
        })
    };
    let duration =
        read().ok_or_else(|| Error::bad_request(format!("{TIMEOUT}: {value:?} is no duration")))?;
    Ok(Some(duration))
}

/// A body that ends at a time, whatever is still to come.
struct Ending<B> {
    body: Pin<Box<B>>,
    ends: Instant,
    /// Made when the body is first waited for: most answers are there.
    sleep: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl<B: Body<Data = Bytes>> Body for Ending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let ends = self.ends;
        let ready = self.body.as_mut().poll_frame(context);
        if ready.is_ready() && Instant::now() < ends {
            return ready;
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        if sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.is_over = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(match status_of(&late()).add_header(&mut trailers) {
            Ok(()) => Some(Ok(Frame::trailers(trailers))),
            // A body without trailers is a failure to every client.
            Err(_) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use http_body_util::{Full, StreamBody};
    use tonic::Code;

    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TIMEOUT, timeout.parse().expect("a header"));
        headers
    }

    fn code(headers: &HeaderMap) -> Option<Code> {
        tonic::Status::from_header_map(headers).map(|status| status.code())
    }

    #[test]
    fn clients_say_how_long_they_wait() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("30S", Some(Duration::from_secs(30))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("999999999n", None),
            ("S", None),
            ("-1S", None),
            ("1", None),
            ("", None),
        ] {
            assert_eq!(asked(&headers(text)).ok().flatten(), expected, "{text}");
        }
        assert!(asked(&HeaderMap::new()).expect("none").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline() {
        let never = || std::future::pending::<Response<Full<Bytes>>>();
        let (object, watch) = ("/hawser.v1.ObjectService/Get", "/hawser.v1.WatchService/Watch");
        for (path, headers) in [(object, HeaderMap::new()), (object, headers("5S")), (watch, headers("5S"))] {
            let ended = within(path, asked(&headers), never).await;
            assert_eq!(code(ended.headers()), Some(Code::DeadlineExceeded), "{path}");
        }
        let goes_on = timeout(DEADLINE * 2, within(watch, Ok(None), never)).await;
        assert!(goes_on.is_err(), "a watch has no deadline of the server's");
        let refused = within(object, asked(&headers("soon")), never).await;
        assert_eq!(code(refused.headers()), Some(Code::InvalidArgument));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_the_clients_deadline() {
        let first = stream::iter([Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"a")))]);
        let body = StreamBody::new(futures::StreamExt::chain(first, stream::pending()));
        let path = "/hawser.v1.WatchService/Watch";
        let answer = within(path, asked(&headers("5S")), || std::future::ready(Response::new(body))).await;
        let ended = answer.into_body().collect().await.expect("no error");
        assert_eq!(ended.trailers().and_then(code), Some(Code::DeadlineExceeded));
        assert_eq!(ended.to_bytes(), "a");
    }
}
