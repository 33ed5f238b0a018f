//! The feature `otel`: the spans of requests, as a collector receives them from the binary.

mod common;

use std::{fs, io, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::{ControlPlane, begin};
use futures::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    client::conn::http1,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const DEADLINE: Duration = Duration::from_secs(60);

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const TRACE_ID: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const CLIENTS_SPAN_ID: u64 = 0x00f0_67aa_0ba9_02b7;

/// Takes calls of gRPC's, and hands on their paths and messages; each is answered with an empty message.
async fn collect(listener: TcpListener, calls: mpsc::Sender<(String, Bytes)>) {
    while let Ok((stream, _)) = listener.accept().await {
        let calls = calls.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let calls = calls.clone();
            async move {
                let path = request.uri().path().to_owned();
                let message = request.into_body().collect().await?.to_bytes();
                let _ = calls.send((path, message)).await;
                let mut status = HeaderMap::new();
                status.insert("grpc-status", "0".parse().expect("a header"));
                let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(status)]
                    .map(Ok::<_, io::Error>);
                let mut answer = Response::new(StreamBody::new(stream::iter(frames)));
                answer.headers_mut().insert("content-type", "application/grpc".parse().expect("a header"));
                Ok::<_, hyper::Error>(answer)
            }
        });
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection);
    }
}

/// A connection to the control plane, as soon as it listens.
async fn connect(plane: &ControlPlane) -> TlsStream<TcpStream> {
    plane.wait_for("a kubeconfig", || plane.kubeconfig().exists());
    let config = fs::read_to_string(plane.kubeconfig()).expect("a kubeconfig");
    let field = |name: &str| {
        config.lines().find_map(|line| line.trim().strip_prefix(name)).expect("the field").trim().to_owned()
    };
    let mut roots = RootCertStore::empty();
    let authority = STANDARD.decode(field("certificate-authority-data:")).expect("base64");
    roots.add(CertificateDer::from_pem_slice(&authority).expect("PEM")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = field("server: https://");
    let stream = TcpStream::connect(&address).await.expect("it listens");
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("a handshake")
}

/// The fields of a protobuf message that have a length, by number; of a number, its bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = match tag & 7 {
            0 => {
                varint(&mut message);
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)).expect("a length"),
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = message.split_at(length);
        found.push((tag >> 3, value));
        message = rest;
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..).step_by(7) {
        let (first, rest) = message.split_first().expect("more");
        *message = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    number
}

fn field(message: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    fields(message).into_iter().filter(move |(it, _)| *it == number).map(|(_, value)| value)
}

/// A text out of a message; empty where it has none.
fn text(message: &[u8], number: u64) -> String {
    field(message, number).map(|text| String::from_utf8_lossy(text).into_owned()).next().unwrap_or_default()
}

/// The text of an attribute (`KeyValue`, `AnyValue`).
fn attribute(message: &[u8], list: u64, key: &str) -> String {
    let found = field(message, list).find(|attribute| text(attribute, 1) == key);
    found.and_then(|attribute| field(attribute, 2).next()).map(|value| text(value, 1)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_trace_goes_on_at_the_collector() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (calls, mut collected) = mpsc::channel(16);
    let collector = tokio::spawn(collect(listener, calls));
    let plane = begin("apiserver", &[format!("--otel-exporter-otlp-endpoint={endpoint}")]);

    let (mut sender, connection) = http1::handshake(TokioIo::new(connect(&plane).await)).await.expect("HTTP");
    tokio::spawn(connection);
    let request = Request::get("/api/v1/namespaces/shop/pods/web")
        .header("host", "a")
        .header("traceparent", format!("00-{TRACE_ID:032x}-{CLIENTS_SPAN_ID:016x}-01"))
        .body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();

    let (resource, span) = loop {
        let (path, call) = timeout(DEADLINE, collected.recv()).await.expect("in time").expect("a call");
        assert_eq!(path, EXPORT);
        // ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span; five bytes of gRPC's come before.
        let found = field(&call[5..], 1).find_map(|resource| {
            let mut spans = field(resource, 2).flat_map(|scope| field(scope, 2));
            let span = spans.find(|span| field(span, 1).any(|id| id == TRACE_ID.to_be_bytes()))?;
            Some((field(resource, 1).next()?.to_vec(), span.to_vec()))
        });
        if let Some(found) = found {
            break found;
        }
    };
    assert_eq!(attribute(&resource, 1, "service.name"), "control-plane");
    assert_eq!(
        field(&span, 4).next(),
        Some(&CLIENTS_SPAN_ID.to_be_bytes()[..]),
        "the client's is its parent"
    );
    assert_eq!(text(&span, 5), "request");
    for (key, value) in [
        ("verb", "get"),
        ("resource", "pods"),
        ("namespace", "shop"),
        ("name", "web"),
        ("user", "system:anonymous"),
        ("path", "/api/v1/namespaces/shop/pods/web"),
    ] {
        assert_eq!(attribute(&span, 9, key), value, "{key}");
    }
    assert_eq!(code, 403, "nobody may");
    collector.abort();
}
