//! How the kubelet's API is served, and for how long it believes what the API server said of its clients: what of a
//! KubeletConfiguration is about the server.

use std::net::IpAddr;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{ProtocolVersion, SupportedProtocolVersion};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    /// Where it listens; the node's own address where it is not said.
    pub address: Option<IpAddr>,
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
    /// # Errors
    /// A cipher suite that is not here.
    pub fn new(only_tls13: bool, cipher_suites: Vec<String>) -> Result<Self, String> {
        let provider = rustls::crypto::ring::default_provider();
        let known: Vec<String> = suites_of_tls12(&provider).collect();
        match cipher_suites.iter().find(|suite| !known.contains(suite)) {
            Some(unknown) => Err(format!("{unknown:?} is none of {}", known.join(", "))),
            None => Ok(Self { only_tls13, cipher_suites }),
        }
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
                    || self.cipher_suites.contains(&format!("{:?}", suite.suite()))
            });
        }
        provider
    }
}

fn suites_of_tls12(provider: &CryptoProvider) -> impl Iterator<Item = String> {
    let of_tls12 = provider.cipher_suites.iter().filter(|s| s.version().version == ProtocolVersion::TLSv1_2);
    of_tls12.map(|suite| format!("{:?}", suite.suite()))
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
        let chosen = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned();
        let limits = TlsLimits::new(false, vec![chosen.clone()]).unwrap();
        assert_eq!(suites_of_tls12(&limits.provider()).collect::<Vec<_>>(), [chosen]);
        assert_eq!(limits.provider().cipher_suites.len(), 4, "and the three of TLS 1.3");
        let weak = TlsLimits::new(false, vec!["TLS_RSA_WITH_AES_128_CBC_SHA".into()]).unwrap_err();
        assert!(weak.starts_with("\"TLS_RSA_WITH_AES_128_CBC_SHA\" is none of TLS_ECDHE"), "{weak}");
    }
}
