//! A span for each request: who asks for what, and how it ended.
//!
//! Spans have the level DEBUG and the target [`TARGET`]. Where nobody listens, one costs a look at a flag, and nothing of the
//! request is put into words. A client's trace goes on: its ids (`traceparent`, W3C Trace Context) are in the span, and an
//! exporter can make the span a part of it ([`Adopt`]). Every answer names its request (`Audit-ID`, as upstream's do), by
//! what the client calls it or by a number of this process's.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use hawser_api::resource::Target;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tracing::{Span, debug_span, field::Empty};
use uuid::Uuid;

/// The target of the spans, for filters: `info,hawser_apiserver::request=debug`.
pub const TARGET: &str = "hawser_apiserver::request";

pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const TRACE_PARENT: &str = "traceparent";

/// Of a client's name for its request no more is taken, as upstream.
const MAX_AUDIT_ID: usize = 64;

/// Makes a span a part of a client's trace.
pub type Adopt = Arc<dyn Fn(&Span, TraceParent) + Send + Sync>;

/// Where in which trace a client sent its request from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    pub span_id: u64,
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads the header: `00-<32 digits>-<16 digits>-<2 digits>`; later versions may say more behind.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut number = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = part.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(part, 16).ok().filter(|_| is_hex)
        };
        let (version, trace_id, span_id, flags) = (number(2)?, number(32)?, number(16)?, number(2)?);
        let is_known = version == 0 && parts.next().is_none() || (1..0xff).contains(&version);
        let span_id = u64::try_from(span_id).ok()?;
        (is_known && trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled: flags & 1 == 1,
        })
    }
}

/// The span of a request, and how its client calls it.
pub(crate) struct Request {
    pub span: Span,
    audit_id: HeaderValue,
    began: Instant,
}

impl Request {
    /// Begins; what the request is about is said by [`describe`] where it is known.
    pub(crate) fn begin(method: &Method, path: &str, headers: &HeaderMap, adopt: Option<&Adopt>) -> Self {
        let audit_id = audit_id(headers);
        let span = debug_span!(
            target: TARGET, "request", %method, path, verb = Empty, group = Empty, version = Empty, resource = Empty,
            subresource = Empty, namespace = Empty, name = Empty, user = Empty, audit_id = ?audit_id, trace_id = Empty,
            code = Empty, latency_us = Empty,
        );
        if !span.is_disabled() {
            let parent = headers.get(TRACE_PARENT).and_then(|value| TraceParent::parse(value.to_str().ok()?));
            if let Some(parent) = parent {
                span.record("trace_id", tracing::field::display(Hex(parent.trace_id)));
                if let Some(adopt) = adopt {
                    adopt(&span, parent);
                }
            }
        }
        Self { span, audit_id, began: Instant::now() }
    }

    /// Ends, and names the request in its answer. Of a call of gRPC's who counts it says the code ([`say_code`]): the one of
    /// the answer says nothing.
    pub(crate) fn end(self, code: Option<u16>, headers: &mut HeaderMap) {
        if !self.span.is_disabled() {
            if let Some(code) = code {
                say_code(&self.span, code);
            }
            self.span
                .record("latency_us", u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        headers.insert(AUDIT_ID, self.audit_id);
    }
}

/// Says in a request's span how it ended: by HTTP's code.
pub(crate) fn say_code(span: &Span, code: u16) {
    span.record("code", code);
}

/// Says in a request's span what it is about.
pub(crate) fn describe(span: &Span, verb: &str, target: &Target) {
    if span.is_disabled() {
        return;
    }
    let resource = &target.resource;
    span.record("verb", verb);
    for (field, value) in [
        ("group", Some(&*resource.group)),
        ("version", Some(&*resource.version)),
        ("resource", Some(&*resource.resource)),
        ("subresource", target.subresource.as_deref()),
        ("namespace", target.namespace.as_deref()),
        ("name", target.name.as_deref()),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            span.record(field, value);
        }
    }
}

struct Hex(u128);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn audit_id(headers: &HeaderMap) -> HeaderValue {
    let named = headers.get(&AUDIT_ID).filter(|value| !value.is_empty()).map(HeaderValue::as_bytes);
    let named = named.and_then(|value| HeaderValue::from_bytes(&value[..value.len().min(MAX_AUDIT_ID)]).ok());
    named.unwrap_or_else(next_audit_id)
}

/// A number that no other request has: one of this process's own and a count, since randomness for each is a system call.
fn next_audit_id() -> HeaderValue {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let process = *PROCESS.get_or_init(|| Uuid::new_v4().as_u64_pair().0);
    let id = Uuid::from_u64_pair(process, COUNT.fetch_add(1, Ordering::Relaxed));
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hawser_api::GroupVersionResource;
    use parking_lot::Mutex;
    use tracing::{
        Event, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id, Record},
    };

    use super::*;

    type Fields = Arc<Mutex<BTreeMap<&'static str, String>>>;

    /// Keeps the fields of the requests' spans.
    struct Kept(Fields);

    impl Visit for &Kept {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.lock().insert(field.name(), format!("{value:?}").replace('"', ""));
        }
    }

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == TARGET
        }

        fn new_span(&self, span: &Attributes<'_>) -> Id {
            span.record(&mut &*self);
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, values: &Record<'_>) {
            values.record(&mut &*self);
        }

        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_span_says_who_asks_for_what_and_how_it_ended() {
        let (fields, adopted) = (Fields::default(), Arc::new(Mutex::new(None)));
        let adopt: Adopt = {
            let adopted = adopted.clone();
            Arc::new(move |_: &Span, parent| *adopted.lock() = Some(parent.span_id))
        };
        let mut headers = HeaderMap::new();
        headers.insert(AUDIT_ID, HeaderValue::from_static("mine"));
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        headers.insert(TRACE_PARENT, HeaderValue::from_static(trace));
        let mut answer = HeaderMap::new();
        tracing::subscriber::with_default(Kept(fields.clone()), || {
            let request = Request::begin(&Method::PUT, "/a", &headers, Some(&adopt));
            let pods = GroupVersionResource::fixed("", "v1", "pods");
            describe(
                &request.span,
                "update",
                &Target::object(pods, Some("shop"), "a").with_subresource("status"),
            );
            request.span.record("user", "alice");
            request.end(Some(409), &mut answer);
        });
        assert_eq!(
            (answer[AUDIT_ID].as_bytes(), *adopted.lock()),
            (&b"mine"[..], Some(0x00f0_67aa_0ba9_02b7))
        );
        let mut fields = fields.lock();
        assert!(fields.remove("latency_us").is_some());
        let expected = [
            ("audit_id", "mine"),
            ("code", "409"),
            ("method", "PUT"),
            ("name", "a"),
            ("namespace", "shop"),
            ("path", "/a"),
            ("resource", "pods"),
            ("subresource", "status"),
            ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ("user", "alice"),
            ("verb", "update"),
            ("version", "v1"),
        ];
        assert_eq!(*fields, expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn a_clients_trace_is_read_or_left() {
        let parse = TraceParent::parse;
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let expected = TraceParent {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            span_id: 0x00f0_67aa_0ba9_02b7,
            is_sampled: true,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse(&text.replacen("00", "01", 1)).map(|it| it.span_id), Some(expected.span_id));
        assert!(parse(&format!("{}-more", text.replacen("00", "01", 1))).is_some(), "of a later version");
        for wrong in [
            format!("{text}-more"),
            text.replacen("00", "ff", 1),
            text.to_uppercase(),
            text.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            text.replace("00f067aa0ba902b7", &"0".repeat(16)),
            text.replace("4bf9", "+bf9"),
            "00-1-1-1".to_owned(),
            String::new(),
        ] {
            assert_eq!(parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_is_named_by_its_client_or_here() {
        let mut headers = HeaderMap::new();
        let own = audit_id(&headers);
        assert_ne!(own, audit_id(&headers), "each has its own");
        headers.insert(AUDIT_ID, HeaderValue::from_static("mine"));
        assert_eq!(audit_id(&headers), "mine");
        headers.insert(AUDIT_ID, "x".repeat(100).parse().expect("a header"));
        assert_eq!(audit_id(&headers).len(), MAX_AUDIT_ID);
    }
}
