//! The server as its clients see it: TLS and users, kubectl itself for every kind of stream, and plain
//! WebSocket clients for the protocols that kubectl does not speak.
//!
//! kubectl talks to a stand-in for the API server that translates paths as the API server does.

use std::convert::Infallible;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hawser_runtime::testing::{FakeRuntime, container, pod_sandbox};
use hawser_runtime::{ContainerConfig, ExecOutput, container_id};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{self, Body};
use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// One pod `web` with one running container `main`, on the network of the test.
struct OnePod {
    log: PathBuf,
    has_ended: Arc<AtomicBool>,
}

impl PodSource for OnePod {
    fn pods(&self) -> Value {
        json!({ "kind": "PodList", "apiVersion": "v1", "items": [] })
    }

    fn container_id(&self, _: &str, pod: &str, container: &str) -> Result<String, Refusal> {
        match (pod, container) {
            ("web", "main") => Ok(container_id("uid-web", "main", 0)),
            _ => Err(Refusal::not_found(format!("container {container} not found in pod {pod}"))),
        }
    }

    fn log(&self, _: &str, _: &str, container: &str, attempt: LogAttempt) -> Result<LogFile, Refusal> {
        if attempt == LogAttempt::Previous {
            let message = format!("previous terminated container {container:?} in pod \"web\" not found");
            return Err(Refusal::bad_request(message));
        }
        let has_ended = self.has_ended.load(Ordering::Relaxed);
        Ok(LogFile { path: self.log.clone(), container_id: container_id("uid-web", "main", 0), has_ended })
    }

    fn log_folder(&self) -> PathBuf {
        self.log.parent().unwrap().to_owned()
    }

    fn addresses(&self, _: &str, pod: &str) -> Result<Vec<IpAddr>, Refusal> {
        match pod {
            "web" => Ok(vec!["127.0.0.1".parse().unwrap()]),
            _ => Err(Refusal::not_found(format!("pod {pod:?} is not on this node"))),
        }
    }

    fn network(&self, _: &str, _: &str) -> Result<Option<PathBuf>, Refusal> {
        Ok(None)
    }

    fn metrics(&self) -> String {
        "up 1\n".into()
    }
}

struct Fixture {
    backend: Arc<Backend>,
    runtime: FakeRuntime,
    dir: tempfile::TempDir,
    /// The kubelet has heard that the container has ended.
    has_ended: Arc<AtomicBool>,
}

async fn fixture() -> Fixture {
    let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::DEBUG).try_init();
    let runtime = FakeRuntime::new();
    let dir = tempfile::tempdir().unwrap();
    let container =
        ContainerConfig { log_path: dir.path().join("0.log"), ..container("web", "main", "busybox") };
    runtime.run(&pod_sandbox("web"), &container).await;
    runtime.on_exec(Arc::new(|_, command| match command.first().map(String::as_str) {
        Some("missing") => Err(hawser_runtime::Error::Start {
            id: "x".into(),
            attempted: "exec in",
            message: "\"missing\": executable file not found in $PATH".into(),
        }),
        _ => {
            // Real processes take a while to write as well. kubectl 1.32 reads before its streams exist, and loses what
            // comes at once; it tells nobody when they do.
            std::thread::sleep(Duration::from_millis(80));
            Ok(ExecOutput {
                exit_code: command.last().and_then(|word| word.parse().ok()).unwrap_or(0),
                stdout: format!("out {}\n", command.join(" ")).into_bytes(),
                stderr: b"err\n".to_vec(),
            })
        }
    }));
    let has_ended = Arc::new(AtomicBool::new(false));
    let backend = Backend {
        node_name: "node-1".into(),
        runtime: Arc::new(runtime.clone()),
        pods: Arc::new(OnePod { log: dir.path().join("0.log"), has_ended: has_ended.clone() }),
        authorizer: Arc::new(AllowGroups(vec!["system:masters".into()])),
    };
    Fixture { backend: Arc::new(backend), runtime, dir, has_ended }
}

/// What the API server does: the pod, and its streams under the kubelet's paths.
async fn stand_in(backend: Arc<Backend>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let backend = Arc::clone(&backend);
            let service = service_fn(move |request| translate(Arc::clone(&backend), request));
            tokio::spawn(
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades(),
            );
        }
    });
    address.to_string()
}

async fn translate(
    backend: Arc<Backend>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let renamed: Vec<String> = query
        .split('&')
        .filter(|part| !part.ends_with("=false") && !part.starts_with("container="))
        .map(|part| match part.split_once('=') {
            Some(("stdin", _)) => "input=1".to_owned(),
            Some(("stdout", _)) => "output=1".to_owned(),
            Some(("stderr", _)) => "error=1".to_owned(),
            Some(("ports", ports)) => format!("port={ports}"),
            _ => part.to_owned(),
        })
        .collect();
    let kubelet_path = match request.uri().path() {
        "/api/v1/namespaces/default/pods/web/log" => "/containerLogs/default/web/main",
        "/api/v1/namespaces/default/pods/web/exec" => "/exec/default/web/main",
        "/api/v1/namespaces/default/pods/web/attach" => "/attach/default/web/main",
        "/api/v1/namespaces/default/pods/web/portforward" => "/portForward/default/web",
        "/api/v1/namespaces/default/pods/web" => {
            let pod = json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": { "name": "web", "namespace": "default", "uid": "uid" },
                "spec": { "containers": [{ "name": "main", "image": "busybox", "stdin": true }] },
                "status": { "phase": "Running" },
            });
            return Ok(body::json(&pod));
        }
        "/api" => return Ok(body::json(&json!({ "kind": "APIVersions", "versions": ["v1"] }))),
        "/apis" => {
            return Ok(body::json(&json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })));
        }
        "/api/v1" => {
            let resources = json!([{
                "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get", "list"], "shortNames": ["po"],
            }]);
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": resources,
            });
            return Ok(body::json(&list));
        }
        path => return Ok(body::refusal(Refusal::not_found(path))),
    };
    let path = format!("{kubelet_path}?{}", renamed.join("&"));
    *request.uri_mut() = path.parse::<Uri>().unwrap();
    let user = User { name: "api".into(), groups: vec!["system:masters".into()] };
    routes::answer(backend, TaskTracker::new(), Some(user), request).await
}

/// Runs kubectl; `None` where there is none.
async fn kubectl(server: &str, env: &[(&str, &str)], args: &[&str], input: &str) -> Option<Output> {
    let mut command = Command::new("kubectl");
    command.arg("--server").arg(format!("http://{server}")).args(args);
    command.env("HOME", "/nonexistent").env_remove("KUBECONFIG").envs(env.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(_) => {
            println!("skipped: kubectl is not installed");
            return None;
        }
    };
    let input = input.to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    });
    Some(tokio::time::timeout(DEADLINE, run).await.expect("kubectl ends").unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_executes_commands_over_both_protocols() {
    let fixture = fixture().await;
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    for env in [&[][..], SPDY] {
        let run = async |args: &[&str], input: &str| kubectl(&server, env, args, input).await;
        let Some(output) = run(&["exec", "web", "--", "say", "hello"], "").await else { return };
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("out say hello\n".into(), "err\n".into()));
        assert!(output.status.success());
        let output = run(&["exec", "web", "--", "exit", "7"], "").await.unwrap();
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let output = run(&["exec", "-i", "web", "--", "cat"], "some input\n").await.unwrap();
        assert_eq!(text(&output.stdout), "some input\n", "{}", text(&output.stderr));
        let output = run(&["exec", "web", "--", "missing"], "").await.unwrap();
        let message = text(&output.stderr);
        assert!(!output.status.success() && message.contains("executable file not found"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_forwards_ports_over_both_protocols() {
    let fixture = fixture().await;
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    for env in [&[][..], SPDY] {
        let mut command = tokio::process::Command::new("kubectl");
        command.arg("--server").arg(format!("http://{server}")).env("HOME", "/nonexistent");
        command.args(["port-forward", "web", &format!(":{target}")]).envs(env.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let Ok(mut child) = command.spawn() else {
            println!("skipped: kubectl is not installed");
            return;
        };
        let mut line = String::new();
        let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line);
        tokio::time::timeout(DEADLINE, read).await.expect("it says where").unwrap();
        let port = line.split(" -> ").next().and_then(|text| text.rsplit(':').next()).unwrap();
        let port: u16 = port.parse().unwrap_or_else(|_| panic!("{line:?}"));
        for round in 0..3 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let question = vec![b'a' + round; 100_000];
            let mut answer = Vec::new();
            let (mut from, mut to) = stream.split();
            let ask = async {
                to.write_all(&question).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let exchange = async { tokio::join!(ask, from.read_to_end(&mut answer)).1.unwrap() };
            tokio::time::timeout(DEADLINE, exchange).await.expect("an answer");
            assert_eq!(answer, question);
        }
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_logs() {
    let fixture = fixture().await;
    let lines = "2024-01-01T00:00:01.000000000Z stdout F one\n2024-01-01T00:00:02.000000000Z stderr F two\n";
    std::fs::write(fixture.dir.path().join("0.log"), lines).unwrap();
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let Some(output) = kubectl(&server, &[], &["logs", "web"], "").await else { return };
    assert_eq!(text(&output.stdout), "one\ntwo\n", "{}", text(&output.stderr));
    let output = kubectl(&server, &[], &["logs", "web", "--tail=1", "--timestamps"], "").await.unwrap();
    assert_eq!(text(&output.stdout), "2024-01-01T00:00:02.000000000Z two\n");
    let output = kubectl(&server, &[], &["logs", "web", "-p"], "").await.unwrap();
    // The stand-in does not wrap the kubelet's text in a Status, as the API server does.
    assert!(text(&output.stderr).contains("BadRequest"), "{}", text(&output.stderr));

    // Following ends with the log, whose writer may be behind its container's end.
    let runtime = fixture.runtime.clone();
    let log = fixture.dir.path().join("0.log");
    runtime.on_log_complete(Arc::new(move |_| {
        let last = "2024-01-01T00:00:03.000000000Z stdout F last words\n";
        let mut log = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        log.write_all(last.as_bytes()).unwrap();
    }));
    let following = kubectl(&server, &[], &["logs", "web", "-f"], "");
    let end = async {
        tokio::task::yield_now().await;
        runtime.exit(&container_id("uid-web", "main", 0), 0);
    };
    let (output, ()) = tokio::join!(following, end);
    assert_eq!(text(&output.unwrap().stdout), "one\ntwo\nlast words\n");
    // Nor does anybody else read too early who knows that it has ended.
    let output = kubectl(&server, &[], &["logs", "web"], "").await.unwrap();
    assert_eq!(text(&output.stdout), "one\ntwo\nlast words\nlast words\n");
    fixture.has_ended.store(true, Ordering::Relaxed);
    for (arguments, times) in [(&["logs", "web"] as &[&str], 3), (&["logs", "web", "-f"], 4)] {
        let output = kubectl(&server, &[], arguments, "").await.unwrap();
        assert_eq!(text(&output.stdout), format!("one\ntwo\n{}", "last words\n".repeat(times)));
    }
}

/// A client of one of the channel protocols.
async fn websocket_client(
    server: &str,
    path: &str,
    protocol: &str,
) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let mut request = format!("ws://{server}{path}").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let stream = TcpStream::connect(server).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
    socket
}

async fn next_binary(socket: &mut tokio_tungstenite::WebSocketStream<TcpStream>) -> Option<Bytes> {
    let message = tokio::time::timeout(DEADLINE, socket.next()).await.expect("a message");
    match message {
        Some(Ok(Message::Binary(bytes))) => Some(bytes),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_channels_carry_output_status_and_close() {
    let fixture = fixture().await;
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let path = "/api/v1/namespaces/default/pods/web/exec?command=say&command=3&stdout=true&stderr=true";
    let mut socket = websocket_client(&server, path, "v4.channel.k8s.io").await;
    let mut channels = vec![Vec::new(); 4];
    while let Some(bytes) = next_binary(&mut socket).await {
        channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    assert_eq!((text(&channels[1]), text(&channels[2])), ("out say 3\n".into(), "err\n".into()));
    let status: Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_read_over_websocket() {
    let fixture = fixture().await;
    std::fs::write(fixture.dir.path().join("0.log"), "2024-01-01T00:00:01.000000000Z stdout F one\n")
        .unwrap();
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let path = "/api/v1/namespaces/default/pods/web/log?container=main";
    for (protocol, expected) in
        [("binary.k8s.io", Message::binary("one\n")), ("base64.binary.k8s.io", Message::text("b25lCg=="))]
    {
        let mut socket = websocket_client(&server, path, protocol).await;
        let mut messages = Vec::new();
        while let Ok(Some(Ok(message))) = tokio::time::timeout(DEADLINE, socket.next()).await {
            messages.push(message);
        }
        assert_eq!(messages.remove(0), expected);
        assert!(matches!(messages[..], [Message::Close(_)]), "{messages:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stdin_can_be_closed_by_a_message() {
    let fixture = fixture().await;
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let path = "/api/v1/namespaces/default/pods/web/exec?command=cat&stdin=true&stdout=true";
    let mut socket = websocket_client(&server, path, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\0hello".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let (mut output, mut status) = (Vec::new(), Vec::new());
    while let Some(bytes) = next_binary(&mut socket).await {
        let channel = if bytes[0] == 1 { &mut output } else { &mut status };
        channel.extend_from_slice(&bytes[1..]);
    }
    assert_eq!(text(&output), "hello");
    assert_eq!(serde_json::from_slice::<Value>(&status).unwrap()["status"], "Success");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_as_plain_channels() {
    let fixture = fixture().await;
    let server = stand_in(Arc::clone(&fixture.backend)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let path = format!("/api/v1/namespaces/default/pods/web/portforward?ports={port}&ports={closed}");
    let mut socket = websocket_client(&server, &path, "v4.channel.k8s.io").await;
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while got.len() < 5 {
        got.push(next_binary(&mut socket).await.unwrap());
    }
    let name = |channel: u8, port: u16| [vec![channel], port.to_le_bytes().to_vec()].concat();
    for expected in [name(0, port), name(1, port), name(2, closed), name(3, closed)] {
        assert!(got.iter().any(|message| message[..] == expected[..]), "{got:?}");
    }
    let error = got.iter().find(|message| message[0] == 3 && message.len() > 3).unwrap();
    assert!(text(error).contains("refused"), "{}", text(error));
    socket.send(Message::binary(b"\0ping".to_vec())).await.unwrap();
    let mut question = [0; 4];
    peer.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"ping");
    peer.write_all(b"pong").await.unwrap();
    assert_eq!(next_binary(&mut socket).await.unwrap(), Bytes::from_static(b"\0pong"));
    drop(peer);
    assert_eq!(next_binary(&mut socket).await, None);
}

/// A CA, and certificates that it signed.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(parameters, key) }
    }

    /// Certificate and key, PEM.
    fn sign(&self, name: &str, group: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

async fn get(
    address: SocketAddr,
    ca: &Authority,
    client: Option<(String, String)>,
    path: &str,
) -> Option<(StatusCode, String)> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            config
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("node-1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "node-1").body(Empty::new()).unwrap();
    let response = sender.send_request(request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Some((status, text(&body)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_verified_and_allowed_users_are_answered() {
    let fixture = fixture().await;
    let (ca, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = ca.sign("node-1", "system:nodes");
    let tls = tls_config(
        certificate.as_bytes(),
        key.as_bytes(),
        ca.certificate.pem().as_bytes(),
        &TlsLimits::default(),
    )
    .unwrap();
    let backend = Arc::try_unwrap(fixture.backend).unwrap_or_else(|_| panic!("only one owner"));
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), tls, backend).await.unwrap();
    let address = server.local_addr().unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));

    let admin = || Some(ca.sign("admin", "system:masters"));
    let ask = async |client, path| get(address, &ca, client, path).await;
    assert_eq!(ask(admin(), "/healthz").await, Some((StatusCode::OK, "ok".into())));
    assert_eq!(ask(admin(), "/metrics").await, Some((StatusCode::OK, "up 1\n".into())));
    let (status, pods) = ask(admin(), "/pods").await.unwrap();
    assert!(status == StatusCode::OK && pods.contains("PodList"));
    let (_, summary) = ask(admin(), "/stats/summary").await.unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["node"]["nodeName"], "node-1");
    assert_eq!(summary["pods"][0]["podRef"]["name"], "web");
    assert_eq!(summary["pods"][0]["containers"][0]["name"], "main");

    assert_eq!(ask(None, "/pods").await.unwrap().0, StatusCode::UNAUTHORIZED);
    let (status, reason) = ask(Some(ca.sign("eve", "system:nodes")), "/pods").await.unwrap();
    assert!(status == StatusCode::FORBIDDEN && reason.contains("eve"), "{reason}");
    assert_eq!(ask(admin(), "/nothing").await.unwrap().0, StatusCode::NOT_FOUND);
    assert_eq!(
        ask(admin(), "/exec/default/web/other?command=x&output=1").await.unwrap().0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(ask(Some(stranger.sign("admin", "system:masters")), "/pods").await, None, "another CA");
    stop.cancel();
    tokio::time::timeout(DEADLINE, running).await.expect("it stops").unwrap();
}
