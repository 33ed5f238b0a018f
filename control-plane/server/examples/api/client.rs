//! HTTPS connections that wait for one answer at a time, as cheap as they can be.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Connects to one server as its administrator.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: TlsConnector,
    port: u16,
}

impl Connector {
    pub(crate) fn new(port: u16, kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)?;
        let field = |name: &str| -> Result<Vec<u8>> {
            let value = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            Ok(STANDARD
                .decode(value.with_context(|| format!("the kubeconfig has no {name}"))?.trim_matches('"'))?)
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&field("certificate-authority-data")?)?)?;
        let certificate = CertificateDer::from_pem_slice(&field("client-certificate-data")?)?;
        let key = PrivateKeyDer::from_pem_slice(&field("client-key-data")?)?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), port })
    }

    pub(crate) async fn connect(&self) -> Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the client, or with the server; a request in flight says which.
        tokio::spawn(connection);
        Ok(Client { sender })
    }

    pub(crate) async fn connect_many(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        for _ in 0..count {
            clients.push(self.connect().await?);
        }
        Ok(clients)
    }
}

/// One connection.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Sends a request; returns the size of the answer's body, which must be a good one.
    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<usize> {
        let mut body = self.open(request).await?.into_body();
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            size += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(size)
    }

    /// Sends a request; returns the answer whose body is still to come.
    pub(crate) async fn open(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        if !matches!(status, StatusCode::OK | StatusCode::CREATED) {
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(response)
    }

    pub(crate) async fn get(&mut self, path: &str, accept: &str) -> Result<usize> {
        self.send(get(path, accept)?).await
    }

    /// The body of an answer in JSON.
    pub(crate) async fn json(&mut self, path: &str) -> Result<Value> {
        let body = self.open(get(path, "")?).await?.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&body)?)
    }
}

pub(crate) fn get(path: &str, accept: &str) -> Result<Request<Full<Bytes>>> {
    let request = Request::get(path).header(HOST, "127.0.0.1");
    let request = if accept.is_empty() { request } else { request.header(ACCEPT, accept) };
    Ok(request.body(Full::default())?)
}

pub(crate) fn write(method: Method, path: &str, content: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    let request = Request::builder().method(method).uri(path).header(HOST, "127.0.0.1");
    Ok(request.header(CONTENT_TYPE, content).body(Full::new(body))?)
}
