//! Requests to one extender: JSON over HTTP/1.1, with TLS where its address says so, on one connection that is kept.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, sync::Mutex, time::error::Elapsed};
use tokio_rustls::TlsConnector;

/// Lists of nodes come back whole: 100,000 of 2 kB.
const LONGEST_ANSWER: usize = 256 << 20;

/// Where an extender is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Before the verb, without a slash at its end.
    path: String,
}

impl Address {
    /// Reads `http://host:port/path`.
    pub(crate) fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("{url:?} begins neither with http:// nor with https://"),
        };
        ensure!(uri.query().is_none(), "{url:?} has a query");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        ensure!(!host.is_empty(), "{url:?} names no host");
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port, path: uri.path().trim_end_matches('/').to_owned() })
    }

    fn authority(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

pub(crate) struct Http {
    address: Address,
    /// Whose certificate is expected; the host's unless it is said otherwise.
    server_name: String,
    tls: Option<TlsConnector>,
    timeout: Duration,
    /// From the last request; requests are few, and mostly come one by one.
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Http {
    pub(crate) fn new(
        address: Address,
        server_name: Option<String>,
        tls: Option<Arc<ClientConfig>>,
        timeout: Duration,
    ) -> Self {
        let server_name = server_name.unwrap_or_else(|| address.host.clone());
        Self { address, server_name, tls: tls.map(TlsConnector::from), timeout, idle: Mutex::default() }
    }

    /// Posts to a verb, and reads the answer. May ask twice, where a connection that was kept turns out to be gone. The error
    /// says what was asked, and where.
    pub(super) async fn ask<A: DeserializeOwned>(
        &self,
        verb: &str,
        args: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = Bytes::from(serde_json::to_vec(args)?);
        let answer = tokio::time::timeout(self.timeout, self.post_kept(verb, &body)).await;
        self.read(verb, answer)
    }

    /// The same, asked once at most.
    pub(super) async fn tell<A: DeserializeOwned>(
        &self,
        verb: &str,
        args: &impl Serialize,
    ) -> anyhow::Result<A> {
        let body = Bytes::from(serde_json::to_vec(args)?);
        let answer = tokio::time::timeout(self.timeout, self.post_anew(verb, &body)).await;
        self.read(verb, answer)
    }

    fn read<A: DeserializeOwned>(
        &self,
        verb: &str,
        answer: Result<anyhow::Result<Bytes>, Elapsed>,
    ) -> anyhow::Result<A> {
        let scheme = if self.address.https { "https" } else { "http" };
        let url = format!("{scheme}://{}{}/{verb}", self.address.authority(), self.address.path);
        let answer = answer
            .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {:?}", self.timeout)))
            .with_context(|| format!("failed to ask the extender at {url}"))?;
        serde_json::from_slice(&answer)
            .with_context(|| format!("the answer of the extender at {url} cannot be read"))
    }

    async fn post_kept(&self, verb: &str, body: &Bytes) -> anyhow::Result<Bytes> {
        let kept = self.idle.lock().await.take();
        if let Some(mut kept) = kept
            && kept.ready().await.is_ok()
            && let Ok(answer) = self.post(kept, verb, body).await
        {
            return Ok(answer);
        }
        self.post_anew(verb, body).await
    }

    async fn post_anew(&self, verb: &str, body: &Bytes) -> anyhow::Result<Bytes> {
        self.post(self.connect().await?, verb, body).await
    }

    async fn post(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        verb: &str,
        body: &Bytes,
    ) -> anyhow::Result<Bytes> {
        let request = Request::post(format!("{}/{verb}", self.address.path))
            .header(HOST, self.address.authority())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "it answers {status}");
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer breaks off: {error}"))?.to_bytes();
        *self.idle.lock().await = Some(sender);
        Ok(body)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        stream.set_nodelay(true)?;
        // The connection's task ends with the sender, or with the extender; a request in flight says which.
        if let Some(tls) = &self.tls {
            let name = ServerName::try_from(self.server_name.clone())?;
            let (sender, connection) = handshake(TokioIo::new(tls.connect(name, stream).await?)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls() {
        let read = |url: &str| {
            Address::parse(url)
                .map(|address| (address.https, address.authority(), address.path.clone(), address.port))
        };
        assert_eq!(read("http://a/").unwrap(), (false, "a:80".to_owned(), String::new(), 80));
        assert_eq!(
            read("https://[::1]:8443/scheduler/").unwrap(),
            (true, "[::1]:8443".to_owned(), "/scheduler".to_owned(), 8443)
        );
        for (url, error) in [
            ("a:80", "\"a:80\" begins neither with http:// nor with https://"),
            ("http://a/?b", "\"http://a/?b\" has a query"),
            ("ftp://a", "\"ftp://a\" begins neither with http:// nor with https://"),
        ] {
            assert_eq!(read(url).unwrap_err().to_string(), error);
        }
    }
}
