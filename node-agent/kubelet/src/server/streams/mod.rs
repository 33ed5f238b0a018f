//! Exec, attach, port-forward and plain connections: what is asked for, over which protocol, and who carries it out.
//!
//! What can be refused is refused with an HTTP status before the upgrade. After it, the outcome goes to the
//! client in the stream's own error channel, as a `metav1.Status`.

mod channels;
mod connection;
mod port_forward;
mod remote_command;
mod spdy_channels;
mod status;
mod ws_channels;
mod ws_ports;

use std::sync::Arc;

use hawser_runtime::{AttachRequest, ExecRequest};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;

use super::body::{self, Body};
use super::routes::{Query, flag};
use super::{Backend, Refusal, websocket};
pub(super) use connection::connect;
use remote_command::Outcome;

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &Query) -> Result<Self, Refusal> {
        let tty = flag(query, "tty");
        let wanted = Self {
            stdin: flag(query, "input"),
            stdout: flag(query, "output"),
            // A terminal has one output.
            stderr: flag(query, "error") && !tty,
            tty,
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(wanted)
    }
}

/// Subprotocols of exec and attach over WebSocket, the best first.
const COMMAND_PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    websocket::UNNAMED,
];

const SPDY_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_PROTOCOLS: &[&str] =
    &[SPDY_TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", websocket::UNNAMED];
const SPDY_PORT_VERSIONS: &[&str] = &["portforward.k8s.io"];

pub(super) async fn exec(
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
    target: &Target,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let wanted = Wanted::parse(query)?;
    let command: Vec<String> =
        query.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect();
    if command.is_empty() {
        return Err(Refusal::bad_request("you must specify at least 1 command for the container"));
    }
    let id = backend.pods.container_id(&target.namespace, &target.pod, &target.container)?;
    let runtime = Arc::clone(&backend.runtime);
    let start = async move {
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        runtime.exec(&id, &ExecRequest { command, tty, stdin, stdout, stderr }).await
    };
    remote_command(tasks, wanted, request, start, Outcome::ExitCode)
}

pub(super) async fn attach(
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
    target: &Target,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let wanted = Wanted::parse(query)?;
    let id = backend.pods.container_id(&target.namespace, &target.pod, &target.container)?;
    let runtime = Arc::clone(&backend.runtime);
    let start = async move {
        let Wanted { stdin, stdout, stderr, .. } = wanted;
        runtime.attach(&id, &AttachRequest { stdin, stdout, stderr }).await
    };
    // How the container ended is in its status; that it did ends an attachment in peace.
    remote_command(tasks, wanted, request, start, Outcome::Success)
}

/// Accepts the upgrade; what follows runs as a task of the server's.
fn remote_command(
    tasks: &TaskTracker,
    wanted: Wanted,
    request: Request<Incoming>,
    start: impl Future<Output = hawser_runtime::Result<hawser_runtime::Session>> + Send + 'static,
    outcome: Outcome,
) -> Result<Response<Body>, Refusal> {
    if websocket::is_requested(request.headers()) {
        let protocol = websocket::choose(request.headers(), COMMAND_PROTOCOLS)?;
        let (response, upgraded) = websocket::accept(request, protocol)?;
        tasks.spawn(async move {
            match upgraded.await {
                Ok(socket) => {
                    let (channels, transport) = ws_channels::serve(socket, protocol, wanted);
                    tokio::join!(transport, remote_command::run(channels, start, outcome));
                }
                Err(error) => tracing::debug!(%error, "client left during the upgrade"),
            }
        });
        return Ok(response);
    }
    let (version, response) = spdy_upgrade(request.headers(), spdy_channels::VERSIONS)?;
    tasks.spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let (streams, connection) = super::spdy::serve(TokioIo::new(upgraded));
                let command = async {
                    match spdy_channels::serve(streams, wanted, version).await {
                        Some((channels, transport)) => {
                            tokio::join!(transport, remote_command::run(channels, start, outcome));
                        }
                        None => tracing::debug!("client did not open the streams that it asked for"),
                    }
                };
                let (ended, ()) = tokio::join!(connection, command);
                log_end(ended);
            }
            Err(error) => tracing::debug!(%error, "client left during the upgrade"),
        }
    });
    Ok(response)
}

pub(super) async fn port_forward(
    backend: &Arc<Backend>,
    tasks: &TaskTracker,
    (namespace, pod): (&str, &str),
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let network = backend.pods.network(namespace, pod)?;
    let pod = format!("{namespace}/{pod}");
    let forwarder = port_forward::Forwarder { network, pod };
    if websocket::is_requested(request.headers()) {
        let protocol = websocket::choose(request.headers(), PORT_PROTOCOLS)?;
        let ports = if protocol == SPDY_TUNNEL { Vec::new() } else { ws_ports::ports(query)? };
        let (response, upgraded) = websocket::accept(request, protocol)?;
        tasks.spawn(async move {
            match upgraded.await {
                Ok(socket) if protocol == SPDY_TUNNEL => {
                    let (io, tunnel) = websocket::tunnel(socket);
                    let (streams, connection) = super::spdy::serve(io);
                    let ((), ended, ()) = tokio::join!(tunnel, connection, forwarder.serve(streams));
                    log_end(ended);
                }
                Ok(socket) => ws_ports::serve(socket, protocol, &ports, &forwarder).await,
                Err(error) => tracing::debug!(%error, "client left during the upgrade"),
            }
        });
        return Ok(response);
    }
    let (_, response) = spdy_upgrade(request.headers(), SPDY_PORT_VERSIONS)?;
    tasks.spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let (streams, connection) = super::spdy::serve(TokioIo::new(upgraded));
                let (ended, ()) = tokio::join!(connection, forwarder.serve(streams));
                log_end(ended);
            }
            Err(error) => tracing::debug!(%error, "client left during the upgrade"),
        }
    });
    Ok(response)
}

fn log_end(ended: Result<(), super::spdy::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "stream connection ended");
    }
}

/// Accepts an upgrade to SPDY/3.1 with the first of the versions that the client offers which is `supported`.
fn spdy_upgrade<'a>(
    headers: &HeaderMap,
    supported: &[&'a str],
) -> Result<(&'a str, Response<Body>), Refusal> {
    const OFFERED: &str = "x-stream-protocol-version";

    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        return Err(Refusal::bad_request(
            "unable to upgrade: missing upgrade headers in request: websocket or SPDY/3.1 expected",
        ));
    }
    let offered: Vec<&str> = headers
        .get_all(OFFERED)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let known = |offered: &&str| supported.iter().copied().find(|version| version == offered);
    let version = offered.iter().find_map(known).ok_or_else(|| Refusal {
        status: StatusCode::FORBIDDEN,
        message: format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {supported:?}"
        ),
    })?;
    let mut response = body::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    let value = HeaderValue::from_str(version).map_err(|e| Refusal::internal(e.to_string()))?;
    headers.insert(OFFERED, value);
    Ok((version, response))
}
