//! Who calls, by client certificate or token; and what they may.

use std::sync::Arc;

use async_trait::async_trait;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::settings::TlsLimits;

/// The subject of a verified client certificate (common name and organisations), or whom a token speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// What a request does, in the words of RBAC: `verb` on `nodes/<subresource>` of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `create`
    pub verb: &'static str,
    /// `log`, `stats`, `metrics`, `pods`, `healthz`, `configz`, `proxy`
    pub subresource: &'static str,
    pub path: String,
}

/// Decides about verified users.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Whom a bearer token speaks for; `None` for one that is not good. `Err` where that cannot be told now.
    async fn user_of_token(&self, _token: &str) -> Result<Option<User>, String> {
        Ok(None)
    }

    /// `Err` with the reason for a refusal.
    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), String>;
}

/// Lets members of some groups do everything, and nobody else anything.
#[derive(Debug, Clone)]
pub struct AllowGroups(pub Vec<String>);

#[async_trait]
impl Authorizer for AllowGroups {
    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<(), String> {
        if user.groups.iter().any(|group| self.0.contains(group)) {
            return Ok(());
        }
        let Attributes { verb, subresource, .. } = attributes;
        Err(format!("user={:?}, verb={verb}, resource=nodes, subresource={subresource}", user.name))
    }
}

/// A certificate or key that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} is no PEM")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("client CA cannot be used")]
    ClientCa(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("serving certificate and key cannot be used")]
    Serving(#[source] rustls::Error),
}

/// TLS as the kubelet serves it: its own certificate, and clients' certificates by the cluster's CA. A
/// client without one gets as far as 401.
pub fn tls_config(
    certificate_pem: &[u8],
    key_pem: &[u8],
    client_ca_pem: &[u8],
    limits: &TlsLimits,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(limits.provider());
    let certificates = |what, pem| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|source| TlsError::Pem { what, source })
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("client CA", client_ca_pem)? {
        roots.add(certificate).map_err(|e| TlsError::ClientCa(e.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| TlsError::ClientCa(e.into()))?;
    let chain = certificates("serving certificate", certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|source| TlsError::Pem { what: "serving key", source })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(limits.versions())
        .map_err(TlsError::Serving)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Serving)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The user that a verified certificate names.
pub(super) fn user_of(certificates: Option<&[CertificateDer<'_>]>) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let subject = certificate.subject();
    let text =
        |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    Some(User {
        name: subject.iter_common_name().next().and_then(text)?,
        groups: subject.iter_organization().filter_map(text).collect(),
    })
}
