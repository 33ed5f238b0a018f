//! How the kubelet's API is served, and for how long it believes what the API server said of its clients: what of a
//! KubeletConfiguration is about the server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};

/// Of upstream's names (those of Go's `crypto/tls`, and two older ones) those whose suites this server does not have, and the
/// two that mean suites that it has.
const OLD_SUITES: [&str; 18] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// Where it listens; the node's own address where it is not said.
    pub address: Option<IpAddr>,
    /// Who signs the certificates of clients, for `/configz`: whoever makes the server reads it.
    pub client_ca_file: Option<PathBuf>,
    pub tls: TlsLimits,
    pub reviews: Reviews,
}

/// What clients may choose of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsLimits {
    /// TLS 1.2 is refused.
    pub only_tls13: bool,
    /// Of TLS 1.2, by their names at IANA; all that there are where empty. Those of TLS 1.3 are not chosen among, as upstream
    /// does not.
    pub cipher_suites: Vec<String>,
}

impl TlsLimits {
    /// Names of suites that upstream has and this server does not, all of them of old kinds, choose nothing: the caller says
    /// so of those in [`Self::missing`].
    ///
    /// # Errors
    /// A cipher suite that upstream does not know either.
    pub fn new(only_tls13: bool, cipher_suites: Vec<String>) -> Result<Self, String> {
        let known: Vec<String> = here().into_iter().chain(OLD_SUITES.map(str::to_owned)).collect();
        if let Some(unknown) = cipher_suites.iter().find(|suite| !known.contains(suite)) {
            return Err(format!("{unknown:?} is none of {}", known.join(", ")));
        }
        let cipher_suites = cipher_suites.iter().map(|name| canonical(name).to_owned()).collect();
        Ok(Self { only_tls13, cipher_suites })
    }

    /// Those of the chosen suites that are not here.
    pub fn missing(&self) -> Vec<&str> {
        let here = here();
        let chosen = self.cipher_suites.iter().map(String::as_str);
        chosen.filter(|suite| here.iter().all(|known| known != suite)).collect()
    }

    pub(super) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static ONLY_TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        if self.only_tls13 { ONLY_TLS13 } else { rustls::DEFAULT_VERSIONS }
    }

    pub(super) fn provider(&self) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.cipher_suites.is_empty() {
            provider.cipher_suites.retain(|suite| {
                suite.version().version == ProtocolVersion::TLSv1_3
                    || self.cipher_suites.contains(&name_of(suite))
            });
        }
        provider
    }
}

/// At IANA. The library has names of its own for the suites of TLS 1.3 (`TLS13_...`).
fn name_of(suite: &SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

/// Names of all suites that this server has.
fn here() -> Vec<String> {
    rustls::crypto::ring::default_provider().cipher_suites.iter().map(name_of).collect()
}

/// Upstream takes two names that were given before their standard was.
fn canonical(name: &str) -> &str {
    match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    }
}

/// What is asked of the API server (TokenReview, SubjectAccessReview), and for how long an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reviews {
    /// Bearer tokens are taken at all.
    pub tokens: bool,
    pub token_ttl: Duration,
    pub allowed_ttl: Duration,
    pub refused_ttl: Duration,
}

impl Default for Reviews {
    /// KubeletConfiguration's.
    fn default() -> Self {
        Self {
            tokens: true,
            token_ttl: Duration::from_secs(120),
            allowed_ttl: Duration::from_secs(300),
            refused_ttl: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cipher_suites_of_tls_1_2_are_chosen_by_name() {
        let check = |chosen: &[&str], expected: &[&str], missing: &[&str]| {
            let chosen = chosen.iter().map(|name| (*name).to_owned()).collect();
            let limits = TlsLimits::new(false, chosen).unwrap();
            let provider = limits.provider();
            let of_tls12 =
                provider.cipher_suites.iter().filter(|s| s.version().version == ProtocolVersion::TLSv1_2);
            assert_eq!(of_tls12.map(name_of).collect::<Vec<_>>(), expected);
            assert_eq!(provider.cipher_suites.len(), expected.len() + 3, "and the three of TLS 1.3");
            assert_eq!(limits.missing(), missing);
        };
        let gcm = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        let old = "TLS_RSA_WITH_AES_128_CBC_SHA";
        check(&[gcm], &[gcm], &[]);
        check(&[gcm, "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"], &[gcm], &[]);
        check(&[gcm, old], &[gcm], &[old]);
        check(&[old], &[], &[old]);
        let chacha = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305";
        check(&[chacha], &[&format!("{chacha}_SHA256")], &[]);
        let unknown = TlsLimits::new(false, vec!["RC4".into()]).unwrap_err();
        assert!(unknown.starts_with("\"RC4\" is none of TLS_AES"), "{unknown}");
    }
}
