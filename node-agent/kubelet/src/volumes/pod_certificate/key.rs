//! Keys of pods' certificates: made, shown to the API by a request that they sign, and read again from a volume.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCertificateProjection;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::volumes::trust_bundle::pem;

/// Kinds of keys that a pod may ask for, and that are made here.
const MADE: &str = "ECDSAP256, ECDSAP384 and ED25519";
/// An Ed25519 key in PKCS#8 (RFC 8410), up to the 32 bytes of the key itself. `ring` writes the second version, with the
/// public key in it, which OpenSSL does not read.
const ED25519_PREFIX: [u8; 16] = [0x30, 46, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32];

/// A key and the certificates that were issued to it, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// PKCS#8.
    pub key: String,
    /// The leaf first.
    pub chain: String,
}

/// A key, and a request that it has signed.
pub(super) struct NewKey {
    /// PKCS#8 in PEM.
    pub(super) pem: String,
    /// PKCS#10 in DER, empty but for the key: who the pod is, the API says.
    pub(super) request: Vec<u8>,
}

/// Makes a key of the kind that a pod's author names.
///
/// # Errors
/// None are made of this kind, or the machine has no random numbers.
pub(super) fn generate(key_type: &str) -> Result<NewKey, String> {
    let failed = |error: rcgen::Error| format!("a key of type {key_type} was not made: {error}");
    let pair = match key_type {
        "ECDSAP256" => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        "ED25519" => KeyPair::try_from([ED25519_PREFIX, random()?, random()?].concat()),
        _ => {
            return Err(format!(
                "keys of type {key_type} are not supported on this node, which makes {MADE}"
            ));
        }
    };
    let pair = pair.map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&pair).map_err(failed)?;
    let pem = pem("PRIVATE KEY", pair.serialized_der());
    Ok(NewKey { pem, request: request.der().to_vec() })
}

fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| "the machine gives no random numbers".to_owned())?;
    Ok(bytes)
}

/// A part of `most`, by chance, so that what began together does not stay together.
pub(super) fn jitter(most: Duration) -> Duration {
    let [byte, next, ..] = random().unwrap_or_default();
    most * u32::from(u16::from_be_bytes([byte, next])) / u32::from(u16::MAX)
}

/// The certificates of a text, without what stands around and in their blocks; empty where there are none.
///
/// # Errors
/// A block that cannot be read.
pub(super) fn certificates(text: &str) -> Result<String, String> {
    let blocks = CertificateDer::pem_slice_iter(text.as_bytes());
    blocks.map(|der| Ok(pem("CERTIFICATE", &der.map_err(|error| error.to_string())?))).collect()
}

/// What the volume shows of the projection, and when that ends; `None` where it is not all there.
pub(super) fn shown_in(dir: &Path, projection: &PodCertificateProjection) -> Option<(Bundle, Timestamp)> {
    let read = |path: &Option<String>| {
        let path = path.as_deref().filter(|path| !path.is_empty())?;
        fs::read_to_string(dir.join(path)).ok()
    };
    let (key, chain) = match read(&projection.credential_bundle_path) {
        Some(both) => (both.clone(), both),
        None => (read(&projection.key_path)?, read(&projection.certificate_chain_path)?),
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).ok()?;
    let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&leaf).ok()?;
    let ends = Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()?;
    let key = pem("PRIVATE KEY", key.secret_pkcs8_der());
    Some((Bundle { key, chain: certificates(&chain).ok()? }, ends))
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;
    use x509_parser::certification_request::X509CertificationRequest;

    use super::*;

    #[test]
    fn a_new_key_has_signed_its_request() {
        for key_type in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (one, two) = (generate(key_type).expect("made"), generate(key_type).expect("made"));
            assert_ne!(one.pem, two.pem, "{key_type}");
            let (_, request) = X509CertificationRequest::from_der(&one.request).expect("a request");
            assert_eq!(request.certification_request_info.subject.iter().count(), 0);
            let key = KeyPair::from_pem(&one.pem).expect("a key");
            let asked = request.certification_request_info.subject_pki.raw;
            assert_eq!(asked, key.subject_public_key_info(), "{key_type}");
            let der = PrivatePkcs8KeyDer::from_pem_slice(one.pem.as_bytes()).expect("PKCS#8");
            // After the tag and the length, which has one or two bytes.
            let version = der.secret_pkcs8_der().windows(3).position(|part| part == [2, 1, 0]);
            assert!(version.is_some_and(|at| at <= 4), "{key_type}: the first version, which all read");
        }
        for key_type in ["RSA3072", "RSA4096", "ECDSAP521", "odd"] {
            let error = generate(key_type).err().expect("refused");
            assert!(error.starts_with(&format!("keys of type {key_type} are not supported")), "{error}");
        }
    }

    #[test]
    fn what_a_volume_shows_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let bundle = Bundle {
            key: pem("PRIVATE KEY", key.serialized_der()),
            chain: certificates(&chain).expect("a chain"),
        };
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("both", &(bundle.key.clone() + "a remark\n" + &chain));
        write("key", &bundle.key);
        write("chain", &chain);
        let projection = |fields: serde_json::Value| -> PodCertificateProjection {
            let mut all = serde_json::json!({ "signerName": "example.com/web", "keyType": "ECDSAP256" });
            all.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
            serde_json::from_value(all).expect("a projection")
        };
        let ends = "2030-01-01T00:00:00Z".parse().expect("a time");
        for (fields, expected) in [
            (serde_json::json!({ "credentialBundlePath": "both" }), Some((bundle.clone(), ends))),
            (serde_json::json!({ "keyPath": "key", "certificateChainPath": "chain" }), Some((bundle, ends))),
            (serde_json::json!({ "credentialBundlePath": "none" }), None),
            (serde_json::json!({ "keyPath": "key" }), None),
            (serde_json::json!({ "credentialBundlePath": "chain" }), None),
        ] {
            assert_eq!(shown_in(dir.path(), &projection(fields.clone())), expected, "{fields}");
        }
    }

    #[test]
    fn jitter_stays_within() {
        let most = Duration::from_secs(300);
        assert!((0..100).all(|_| jitter(most) <= most));
    }
}
