//! One HTTP GET over a connection of its own, as probes make it: certificates are not verified, redirects are
//! followed on the same host only, bodies are not read.

use std::sync::{Arc, LazyLock};

use ::http::{HeaderName, HeaderValue, Request as HttpRequest, StatusCode, header};
use bytes::Bytes;
use hawser_api::AnyCertificate;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::check::dial_failure;

const MAX_REDIRECTS: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// With its query.
    pub path: String,
    /// A `Host` header among them replaces the one of the address.
    pub headers: Vec<(String, String)>,
    pub user_agent: String,
}

impl Request {
    pub fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{}{slash}{}", self.authority(), self.path)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Where the last redirect leads, which was not followed.
    pub leads_elsewhere: Option<String>,
}

/// The answer after redirects. The caller sets the time limit.
pub async fn get(mut request: Request) -> Result<Answer, String> {
    for _ in 0..=MAX_REDIRECTS {
        let (status, location) = get_once(&request).await?;
        let location = location.filter(|_| status.is_redirection());
        match location.as_ref().map(|location| redirected(&request, location)) {
            Some(Some(next)) => request = next,
            // Another host is not this container's to answer for; upstream counts it as success too.
            Some(None) => return Ok(Answer { status: status.as_u16(), leads_elsewhere: location }),
            None => return Ok(Answer { status: status.as_u16(), leads_elsewhere: None }),
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

fn redirected(request: &Request, location: &str) -> Option<Request> {
    let mut next = request.clone();
    if location.starts_with('/') && !location.starts_with("//") {
        next.path = location.to_owned();
        return Some(next);
    }
    if !location.contains("//") {
        let path = request.path.split('?').next().unwrap_or_default();
        let beside = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        next.path = format!("{beside}{location}");
        return Some(next);
    }
    let uri: ::http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != request.host {
        return None;
    }
    next.https = uri.scheme_str() == Some("https");
    next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
    next.path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    Some(next)
}

async fn get_once(request: &Request) -> Result<(StatusCode, Option<String>), String> {
    let stream = TcpStream::connect((request.host.as_str(), request.port)).await;
    let stream = stream.map_err(|error| dial_failure(&request.host, request.port, &error))?;
    if !request.https {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(request.host.clone()).map_err(|e| e.to_string())?;
    let tls =
        TlsConnector::from(trusting_config()?).connect(name, stream).await.map_err(|e| e.to_string())?;
    exchange(tls, request).await
}

async fn exchange<S>(stream: S, request: &Request) -> Result<(StatusCode, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let ask = sender.send_request(to_http(request)?);
    tokio::pin!(ask, connection);
    // Driven here rather than in a task: when this future is dropped, the connection closes.
    let answer = tokio::select! {
        answer = &mut ask => answer.map_err(text)?,
        ended = &mut connection => match ended {
            Ok(()) => ask.await.map_err(text)?,
            Err(error) => return Err(error.to_string()),
        },
    };
    let location = answer.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
    Ok((answer.status(), location))
}

fn to_http(request: &Request) -> Result<HttpRequest<Empty<Bytes>>, String> {
    let path =
        if request.path.starts_with('/') { request.path.clone() } else { format!("/{}", request.path) };
    let mut http = HttpRequest::builder().uri(path).body(Empty::new()).map_err(|e| e.to_string())?;
    let headers = http.headers_mut();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| e.to_string());
    headers.insert(header::HOST, value(&request.authority())?);
    headers.insert(header::USER_AGENT, value(&request.user_agent)?);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for (name, text) in &request.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("invalid header name {name:?}"))?;
        if text.is_empty() && name == header::ACCEPT {
            headers.remove(name);
        } else {
            headers.insert(name, value(text)?);
        }
    }
    Ok(http)
}

/// Made once: it is the same for every probe.
fn trusting_config() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(make_trusting_config);
    CONFIG.clone()
}

/// Probes ask whether something answers, not who: certificates of pods are rarely for their address.
fn make_trusting_config() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?;
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(&provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}
