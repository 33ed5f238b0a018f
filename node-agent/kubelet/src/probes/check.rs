//! Carrying out one check: exec, HTTP, TCP or gRPC, with upstream's words for what failed.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hawser_runtime::{Error, Runtime};
use k8s_openapi::api::core::v1::{ContainerPort, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{ProbeTarget, http, timeout};

/// How much of a command's output a failure shows.
const MAX_OUTPUT_BYTES: usize = 10 << 10;

/// `None` when there was nobody to ask.
pub async fn check(runtime: &dyn Runtime, target: &ProbeTarget) -> Option<Result<Passed, String>> {
    let probe = &target.probe;
    let limit = timeout(probe);
    if let Some(action) = &probe.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return exec(runtime, &target.container_id, command, limit).await.map(passed);
    }
    if let Some(action) = &probe.http_get {
        return Some(http_get(action, target.pod_ip, &target.ports, limit, "kube-probe/1.36").await);
    }
    if let Some(action) = &probe.tcp_socket {
        return Some(passed(tcp(action, target.pod_ip, &target.ports, limit).await));
    }
    if let Some(action) = &probe.grpc {
        return Some(passed(grpc(action, target.pod_ip?, limit).await));
    }
    None
}

/// A check that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// What is wrong with it all the same.
    pub warning: Option<String>,
}

fn passed(result: Result<(), String>) -> Result<Passed, String> {
    result.map(|()| Passed::default())
}

async fn exec(
    runtime: &dyn Runtime,
    id: &str,
    command: &[String],
    limit: Duration,
) -> Option<Result<(), String>> {
    match runtime.exec_sync(id, command, limit, MAX_OUTPUT_BYTES).await {
        Ok(output) if output.exit_code == 0 => Some(Ok(())),
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            Some(Err(text))
        }
        Err(Error::Timeout { .. }) => {
            Some(Err(format!("command timed out: {command:?} timed out after {limit:?}")))
        }
        Err(Error::Start { message, .. }) => Some(Err(message)),
        // The container has just ended, or containerd is away: no verdict about the container.
        Err(_) => None,
    }
}

/// The port by number or by the name that the container gives it.
pub fn resolve_port(port: &IntOrString, ports: &[ContainerPort]) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => match ports.iter().find(|p| p.name.as_ref() == Some(name)) {
            Some(found) => Some(found.container_port),
            None => name.parse().ok(),
        },
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(n) => format!("invalid port number: {n}"),
        IntOrString::String(name) => format!("couldn't find port: {name:?}"),
    })
}

/// An HTTP GET that succeeds with 200 to 399, for probes and hooks.
pub async fn http_get(
    action: &HTTPGetAction,
    pod_ip: Option<IpAddr>,
    ports: &[ContainerPort],
    limit: Duration,
    user_agent: &str,
) -> Result<Passed, String> {
    let port = resolve_port(&action.port, ports)?;
    let host = action.host.clone().filter(|h| !h.is_empty());
    let host = host.or_else(|| pod_ip.map(|ip| ip.to_string())).ok_or("the pod has no address")?;
    let request = http::Request {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host,
        port,
        path: action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into()),
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        user_agent: user_agent.to_owned(),
    };
    let url = request.url();
    match tokio::time::timeout(limit, http::get(request)).await {
        Err(_) => Err(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
        Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
        Ok(Ok(answer)) if (200..400).contains(&answer.status) => {
            let warn = |to: String| format!("Probe terminated redirects: {to} is another host");
            Ok(Passed { warning: answer.leads_elsewhere.map(warn) })
        }
        Ok(Ok(answer)) => Err(format!("HTTP probe failed with statuscode: {}", answer.status)),
    }
}

pub async fn tcp(
    action: &TCPSocketAction,
    pod_ip: Option<IpAddr>,
    ports: &[ContainerPort],
    limit: Duration,
) -> Result<(), String> {
    let port = resolve_port(&action.port, ports)?;
    let host = action.host.clone().filter(|h| !h.is_empty());
    let host = host.or_else(|| pod_ip.map(|ip| ip.to_string())).ok_or("the pod has no address")?;
    match tokio::time::timeout(limit, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(dial_failure(&host, port, &error)),
        Err(_) => Err(dial_timeout(&host, port)),
    }
}

/// `10.1.0.7:80`, `[fd00::7]:80`
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A failed connect in Go's words, which users know from upstream's events.
pub fn dial_failure(host: &str, port: u16, error: &std::io::Error) -> String {
    let reason = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: {reason}", address(host, port))
}

/// A connect that took too long, in the same words.
pub fn dial_timeout(host: &str, port: u16) -> String {
    format!("dial tcp {}: i/o timeout", address(host, port))
}

async fn grpc(action: &GRPCAction, ip: IpAddr, limit: Duration) -> Result<(), String> {
    let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
    let at = SocketAddr::new(ip, port);
    let late =
        || format!("timeout: failed to connect service \"{at}\" within {limit:?}: context deadline exceeded");
    let call = async {
        let endpoint = Endpoint::from_shared(format!("http://{at}")).map_err(|e| e.to_string())?;
        let channel = endpoint.connect().await.map_err(|_| late())?;
        let request = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
        let answer = HealthClient::new(channel).check(request).await;
        match answer.map(|a| a.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(other) => Err(format!("service unhealthy (responded with {:?})", other.as_str_name())),
            Err(status) => Err(format!("error: health rpc probe failed: {status}")),
        }
    };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection with the next of `answers`.
    async fn serve(answers: Vec<String>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.expect("request");
                let text = String::from_utf8_lossy(&request[..read]).into_owned();
                let answer = answer.replace("{headers}", &text.replace("\r\n", "|"));
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        port
    }

    async fn get(port: u16, path: &str) -> Result<(), String> {
        let action = HTTPGetAction {
            port: IntOrString::Int(i32::from(port)),
            path: Some(path.into()),
            ..HTTPGetAction::default()
        };
        let ip = Some("127.0.0.1".parse().expect("address"));
        http_get(&action, ip, &[], Duration::from_secs(5), "test").await.map(drop)
    }

    fn answer(status: &str, more: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn http_succeeds_from_200_to_399() {
        let port =
            serve(vec![answer("204 No Content", ""), answer("304 Not Modified", ""), answer("500 Oops", "")])
                .await;
        assert_eq!(get(port, "/").await, Ok(()));
        assert_eq!(get(port, "/").await, Ok(()));
        assert_eq!(get(port, "/").await, Err("HTTP probe failed with statuscode: 500".into()));
    }

    #[tokio::test]
    async fn redirects_to_the_same_host_are_followed() {
        let port = serve(vec![answer("302 Found", "location: /other\r\n"), answer("503 No", "")]).await;
        assert_eq!(get(port, "/").await, Err("HTTP probe failed with statuscode: 503".into()));
        let port = serve(vec![answer("302 Found", "location: b?x=1\r\n"), answer("200 OK", "")]).await;
        assert_eq!(get(port, "/a/").await, Ok(()), "a name beside the one that was asked for");
        let port = serve(vec![answer("302 Found", "location: http://elsewhere.test/\r\n")]).await;
        let action = HTTPGetAction { port: IntOrString::Int(i32::from(port)), ..HTTPGetAction::default() };
        let ip = Some("127.0.0.1".parse().expect("address"));
        let passed = http_get(&action, ip, &[], Duration::from_secs(5), "test").await;
        let warning = "Probe terminated redirects: http://elsewhere.test/ is another host".to_owned();
        assert_eq!(passed, Ok(Passed { warning: Some(warning) }), "another host is not asked");
    }

    #[tokio::test]
    async fn refused_connection_reads_as_upstream_says_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(get(port, "/x").await, Err(format!("Get \"http://127.0.0.1:{port}/x\": {refused}")));
        let action = TCPSocketAction { port: IntOrString::Int(i32::from(port)), host: None };
        let ip = Some("127.0.0.1".parse().expect("address"));
        assert_eq!(tcp(&action, ip, &[], Duration::from_secs(1)).await, Err(refused));
    }

    #[test]
    fn ports_resolve_by_name() {
        let ports =
            [ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() }];
        assert_eq!(resolve_port(&IntOrString::String("web".into()), &ports), Ok(8080));
        assert_eq!(resolve_port(&IntOrString::String("81".into()), &ports), Ok(81));
        assert!(resolve_port(&IntOrString::String("db".into()), &ports).is_err());
        assert!(resolve_port(&IntOrString::Int(70000), &ports).is_err());
    }
}
