//! The server's HTTPS port, and clients with certificates for it.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hawser_api::v1;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::Running;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A port that a server is served at.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    authority: String,
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    user: &str,
    groups: &[&str],
    purpose: ExtendedKeyUsagePurpose,
) -> (rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate().expect("a key");
    (params.signed_by(&key, issuer).expect("a certificate"), key)
}

fn identity(
    issuer: &Issuer<'static, KeyPair>,
    user: &str,
    groups: &[&str],
    purpose: ExtendedKeyUsagePurpose,
) -> Identity {
    let (certificate, key) = issue(issuer, user, groups, purpose);
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    Identity { certificate: certificate.der().clone(), key }
}

impl Wire {
    pub(crate) async fn start(running: &Running) -> Self {
        // Another crate of the test's brings a provider of its own, so one has to be chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("an authority");
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).expect("an authority");
        let roots = Arc::new(roots);
        let issuer = Issuer::new(params, key);
        let own = identity(&issuer, "kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth);
        let verifier = WebPkiClientVerifier::builder(roots.clone()).allow_unauthenticated().build();
        let mut config = ServerConfig::builder()
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(vec![own.certificate], own.key)
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let (server, grace) = (running.server.clone(), Duration::from_secs(1));
        let serving =
            hawser_apiserver::http::serve(server, listener, Arc::new(config), shutdown.clone(), grace);
        Self { address, authority: authority.pem(), issuer, roots, shutdown, serving: tokio::spawn(serving) }
    }

    /// A connection of a user's, on which nothing was said yet.
    pub(crate) async fn dial(&self, user: &str, groups: &[&str]) -> TlsStream<TcpStream> {
        let own = identity(&self.issuer, user, groups, ExtendedKeyUsagePurpose::ClientAuth);
        let config = ClientConfig::builder()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(vec![own.certificate], own.key)
            .expect("a certificate");
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake")
    }

    /// A connection of a user's for requests.
    pub(crate) async fn connect(&self, user: &str, groups: &[&str]) -> Connection {
        let stream = self.dial(user, groups).await;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection.with_upgrades());
        Connection(sender)
    }

    /// The authority's certificate.
    pub(crate) fn authority_pem(&self) -> String {
        self.authority.clone()
    }

    /// Certificate and key of a user's.
    pub(crate) fn identity_pem(&self, user: &str, groups: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let (certificate, key) = issue(&self.issuer, user, groups, ExtendedKeyUsagePurpose::ClientAuth);
        (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    /// A channel of a user's for gRPC.
    pub(crate) async fn channel(&self, user: &str, groups: &[&str]) -> Channel {
        let (certificate, key) = self.identity_pem(user, groups);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority_pem()))
            .identity(tonic::transport::Identity::from_pem(certificate, key));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("an address");
        endpoint.tls_config(tls).expect("TLS").connect().await.expect("connected")
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.expect("it ends");
    }
}

/// One connection, which waits for one answer at a time.
pub(crate) struct Connection(SendRequest<Body>);

impl Connection {
    /// Sends a request; the answer's body is still to come.
    pub(crate) async fn open(&mut self, request: Request<Body>) -> Response<Incoming> {
        self.0.ready().await.expect("a connection");
        self.0.send_request(request).await.expect("an answer")
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> (StatusCode, Value) {
        let answer = self.open(request).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    pub(crate) async fn text(&mut self, path: &str) -> String {
        let body = self.open(request("GET", path, "")).await.into_body().collect().await.expect("a body");
        String::from_utf8(body.to_bytes().to_vec()).expect("text")
    }

    pub(crate) async fn get(&mut self, path: &str) -> (StatusCode, Value) {
        self.send(request("GET", path, "")).await
    }
}

/// A request with a JSON body, where there is one.
pub(crate) fn request(method: &str, path: &str, body: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1");
    let request =
        if body.is_empty() { request } else { request.header(header::CONTENT_TYPE, "application/json") };
    request.body(Full::from(body.to_owned()).boxed_unsync()).expect("a request")
}

/// The config maps of the namespace `shop`, or one of them, as gRPC names them.
pub(crate) fn maps(name: &str) -> Option<v1::Resource> {
    Some(v1::Resource {
        version: "v1".into(),
        resource: "configmaps".into(),
        namespace: "shop".into(),
        name: name.into(),
        ..v1::Resource::default()
    })
}
