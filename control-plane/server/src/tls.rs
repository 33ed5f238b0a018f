//! TLS of the port that is served, and of connections to kubelets.

use std::sync::Arc;

use anyhow::Context;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::pki::Identity;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(authority: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots
            .add(certificate.context("the authority is not PEM")?)
            .context("the authority is not a certificate")?;
    }
    Ok(roots)
}

fn chain(identity: &Identity) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let certificates = CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
    let certificates = certificates.collect::<Result<_, _>>().context("a certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).context("a key is not PEM")?;
    Ok((certificates, key))
}

/// The API server's port: clients may show a certificate of the authority, or none.
pub(crate) fn server(authority: &str, identity: &Identity) -> anyhow::Result<Arc<ServerConfig>> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider())
        .allow_unauthenticated()
        .build()
        .context("client certificates cannot be checked")?;
    let (certificates, key) = chain(identity)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .context("the serving certificate cannot be used")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Connections to kubelets: HTTP/1.1, because streams are upgrades.
pub(crate) fn kubelet_client(authority: &str, identity: &Identity) -> anyhow::Result<Arc<ClientConfig>> {
    let (certificates, key) = chain(identity)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(certificates, key)
        .context("the kubelet client certificate cannot be used")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
