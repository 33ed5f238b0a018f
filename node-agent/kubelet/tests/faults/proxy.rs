//! Stands between the agent and containerd, and does harm to calls by a plan that follows from a seed.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use hawser_runtime::testing::Random;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

type Body = BoxBody<Bytes, hyper::Error>;

/// What becomes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    /// Reaches containerd late.
    IsSlow(Duration),
    /// Never reaches it, and is answered with an error of that gRPC code.
    IsRefused(u8),
    /// Is carried out, and answered with an error.
    LosesItsAnswer(u8),
    /// Is carried out, and takes the connection down with all other calls on it.
    BreaksTheConnection,
}

/// gRPC's `UNKNOWN`, `INTERNAL`, `UNAVAILABLE`.
const CODES: [u8; 3] = [2, 13, 14];

struct Plan {
    random: Mutex<Random>,
    stormy: AtomicBool,
    harmed: AtomicU64,
}

impl Plan {
    /// One call in six is harmed while the storm lasts. Streams are slowed down or broken, never answered for.
    fn fate(&self, path: &str) -> Fate {
        if !self.stormy.load(Ordering::Relaxed) {
            return Fate::Passes;
        }
        let mut random = self.random.lock();
        let code = CODES[random.below(3) as usize];
        let delay = Duration::from_millis(random.below(300));
        let is_stream = ["Subscribe", "Write", "Read", "ListStream"].iter().any(|name| path.ends_with(name));
        let fate = match random.below(100) {
            0..7 => Fate::IsSlow(delay),
            7..11 if !is_stream => Fate::IsRefused(code),
            11..15 if !is_stream => Fate::LosesItsAnswer(code),
            15 => Fate::BreaksTheConnection,
            _ => Fate::Passes,
        };
        if fate != Fate::Passes {
            self.harmed.fetch_add(1, Ordering::Relaxed);
        }
        fate
    }
}

/// Listens until dropped.
pub(crate) struct Proxy {
    pub(crate) socket: PathBuf,
    plan: Arc<Plan>,
    _listening: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Everything passes at first.
    pub(crate) fn start(containerd: &Path, socket: PathBuf, seed: u64) -> Result<Self> {
        let plan = Arc::new(Plan {
            random: Mutex::new(Random(seed)),
            stormy: AtomicBool::new(false),
            harmed: AtomicU64::new(0),
        });
        let listener = UnixListener::bind(&socket)?;
        let listening = tokio::spawn(listen(listener, containerd.to_owned(), plan.clone()));
        Ok(Self { socket, plan, _listening: AbortOnDropHandle::new(listening) })
    }

    pub(crate) fn storm(&self, stormy: bool) {
        self.plan.stormy.store(stormy, Ordering::Relaxed);
    }

    /// Number of calls that were harmed.
    pub(crate) fn harmed(&self) -> u64 {
        self.plan.harmed.load(Ordering::Relaxed)
    }
}

async fn listen(listener: UnixListener, containerd: PathBuf, plan: Arc<Plan>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(connection(stream, containerd.clone(), plan.clone()));
    }
}

/// Ends when either side does, or a call breaks it.
async fn connection(stream: UnixStream, containerd: PathBuf, plan: Arc<Plan>) {
    // While containerd is away, so is this.
    let Ok(upstream) = UnixStream::connect(containerd).await else { return };
    let Ok((sender, driver)) = client::handshake(TokioExecutor::new(), TokioIo::new(upstream)).await else {
        return;
    };
    let broken = CancellationToken::new();
    let service = service_fn(|request: Request<Incoming>| {
        let (sender, plan, broken) = (sender.clone(), plan.clone(), broken.clone());
        async move { Ok::<_, Infallible>(pass(request, sender, &plan, &broken).await) }
    });
    let serving = server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = driver => {}
        _ = serving => {}
        () = broken.cancelled() => {}
    }
}

async fn pass(
    request: Request<Incoming>,
    mut sender: client::SendRequest<Incoming>,
    plan: &Plan,
    broken: &CancellationToken,
) -> Response<Body> {
    let fate = plan.fate(request.uri().path());
    match fate {
        Fate::IsSlow(delay) => tokio::time::sleep(delay).await,
        Fate::IsRefused(code) => return error(code, "refused by the test"),
        _ => {}
    }
    let answer = sender.send_request(request).await;
    match (fate, answer) {
        (Fate::LosesItsAnswer(code), Ok(answer)) => {
            // To its end: what it asked for is done.
            let _ = answer.into_body().collect().await;
            error(code, "answer lost by the test")
        }
        (Fate::BreaksTheConnection, _) => {
            broken.cancel();
            error(14, "broken by the test")
        }
        (_, Ok(answer)) => answer.map(BodyExt::boxed),
        (_, Err(failure)) => error(14, &failure.to_string()),
    }
}

/// An answer without a message, as gRPC has it.
fn error(code: u8, message: &str) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    headers.insert(
        "grpc-message",
        HeaderValue::from_str(&message.replace(['\n', '%'], " "))
            .unwrap_or(HeaderValue::from_static("failed")),
    );
    answer
}
