//! A signer for tests, that knows no cryptography.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

use super::Signer;

/// Serves the signers of `kubernetes.io`, takes what a request holds for the name of its node, and signs what is for
/// client authentication alone.
#[derive(Debug)]
pub(super) struct FakeSigner;

impl Signer for FakeSigner {
    fn serves(&self, signer_name: &str) -> bool {
        signer_name.starts_with("kubernetes.io/")
    }

    fn node_client(&self, request: &CertificateSigningRequestSpec) -> Option<String> {
        let name = String::from_utf8(request.request.0.clone()).expect("text");
        Some(name).filter(|name| name.starts_with("system:node:"))
    }

    fn sign(&self, request: &CertificateSigningRequestSpec) -> Result<String, String> {
        let usages = request.usages.iter().flatten().cloned().collect::<Vec<_>>();
        if usages == ["client auth"] { Ok("PEM".to_owned()) } else { Err(format!("not {usages:?}")) }
    }
}
