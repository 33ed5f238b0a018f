//! Public keys that service account tokens are checked with, beside the one that signs them: those of a control plane that
//! this one takes over from, and those of before a change of keys.
//!
//! A file with private keys is as good: their public part is taken, as upstream does.
//!
//! RSA (RS256, from 2,048 bits on) and ECDSA on P-256 and P-384 (ES256, ES384). A key has one algorithm, whatever a token's
//! header says. Its id is upstream's: the hash of its SubjectPublicKeyInfo.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};
use serde_json::{Value, json};
use x509_parser::{
    pem::Pem,
    prelude::{FromDer, X509Certificate},
    public_key::{PublicKey, RSAPublicKey},
    x509::SubjectPublicKeyInfo,
};

use super::private_keys;

/// Keys of one file.
const MAX_KEYS: usize = 16;
const MIN_RSA_BITS: usize = 2_048;

const EC_KEY: &str = "1.2.840.10045.2.1";
const RSA_KEY: &str = "1.2.840.113549.1.1.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const P521: &str = "1.3.132.0.35";

#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("not PEM")]
    Pem,
    #[error("holds no key")]
    Empty,
    #[error("holds more than {MAX_KEYS} keys")]
    TooMany,
    #[error(
        "holds a {0}: keys (PUBLIC KEY, PRIVATE KEY, RSA PRIVATE KEY, EC PRIVATE KEY) and certificates are needed"
    )]
    Label(String),
    #[error("holds a {0} that is none of RSA (of 2048 to 4096 bits), P-256 or P-384 with its public key")]
    Private(String),
    #[error("holds what is no public key")]
    Malformed,
    #[error("holds an RSA key of {0} bits: at least {MIN_RSA_BITS} are needed")]
    Short(usize),
    #[error("holds a key on the curve P-521 (ES512), which ring, which checks, lacks")]
    P521,
    #[error("holds a key of another kind than RSA, P-256 and P-384 ({0})")]
    Kind(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
    Es384,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &ECDSA_P384_SHA384_FIXED,
        }
    }
}

/// A key that checks.
#[derive(Debug)]
pub struct VerifyingKey {
    id: String,
    algorithm: Algorithm,
    /// A point, uncompressed, or an RSAPublicKey (RFC 8017) in DER.
    key: Vec<u8>,
}

impl VerifyingKey {
    /// The keys of a PEM file, in order.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, KeyFileError> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(|_| KeyFileError::Pem)?;
            if keys.len() == MAX_KEYS {
                return Err(KeyFileError::TooMany);
            }
            let malformed = |_| KeyFileError::Malformed;
            keys.push(match block.label.as_str() {
                "PUBLIC KEY" => {
                    Self::of(&SubjectPublicKeyInfo::from_der(&block.contents).map_err(malformed)?.1)?
                }
                "CERTIFICATE" => {
                    let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(malformed)?;
                    Self::of(certificate.public_key())?
                }
                label @ ("PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") => {
                    let public = private_keys::public_part(label, &block.contents)
                        .ok_or_else(|| KeyFileError::Private(label.to_owned()))?;
                    Self::of(&SubjectPublicKeyInfo::from_der(&public).map_err(malformed)?.1)?
                }
                // Which curve the key behind it is on, which that key says too.
                "EC PARAMETERS" => continue,
                other => return Err(KeyFileError::Label(other.to_owned())),
            });
        }
        if keys.is_empty() { Err(KeyFileError::Empty) } else { Ok(keys) }
    }

    fn of(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, KeyFileError> {
        let algorithm = match info.algorithm.algorithm.to_id_string().as_str() {
            RSA_KEY => match info.parsed() {
                Ok(PublicKey::RSA(key)) if key.key_size() < MIN_RSA_BITS => {
                    return Err(KeyFileError::Short(key.key_size()));
                }
                Ok(PublicKey::RSA(_)) => Algorithm::Rs256,
                _ => return Err(KeyFileError::Malformed),
            },
            EC_KEY => {
                let curve = info.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
                match curve.map(|curve| curve.to_id_string()).unwrap_or_default().as_str() {
                    P256 => Algorithm::Es256,
                    P384 => Algorithm::Es384,
                    P521 => return Err(KeyFileError::P521),
                    other => return Err(KeyFileError::Kind(other.to_owned())),
                }
            }
            other => return Err(KeyFileError::Kind(other.to_owned())),
        };
        // Uncompressed (SEC 1, 2.3.3): both coordinates behind a mark.
        let key = &info.subject_public_key.data;
        let is_whole = match algorithm {
            Algorithm::Rs256 => true,
            Algorithm::Es256 => key.len() == 65 && key[0] == 4,
            Algorithm::Es384 => key.len() == 97 && key[0] == 4,
        };
        if !is_whole {
            return Err(KeyFileError::Malformed);
        }
        let id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, info.raw));
        Ok(Self { id, algorithm, key: info.subject_public_key.data.to_vec() })
    }

    /// Whether this key signed `signed`, by that algorithm.
    pub(super) fn verifies(&self, algorithm: &str, signed: &str, signature: &[u8]) -> bool {
        algorithm == self.algorithm.name()
            && UnparsedPublicKey::new(self.algorithm.verification(), &self.key)
                .verify(signed.as_bytes(), signature)
                .is_ok()
    }

    pub(super) fn algorithm(&self) -> &'static str {
        self.algorithm.name()
    }

    /// As a JSON Web Key (RFC 7517).
    pub(super) fn jwk(&self) -> Value {
        let mut jwk = json!({ "use": "sig", "kid": self.id, "alg": self.algorithm.name() });
        let curve = match self.algorithm {
            Algorithm::Rs256 => {
                jwk["kty"] = json!("RSA");
                if let Ok((_, key)) = RSAPublicKey::from_der(&self.key) {
                    // A leading zero keeps a number of DER positive.
                    let digits =
                        |number: &[u8]| URL_SAFE_NO_PAD.encode(number.strip_prefix(&[0]).unwrap_or(number));
                    jwk["n"] = json!(digits(key.modulus));
                    jwk["e"] = json!(digits(key.exponent));
                }
                return jwk;
            }
            Algorithm::Es256 => "P-256",
            Algorithm::Es384 => "P-384",
        };
        let coordinates = &self.key[1..];
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        jwk["kty"] = json!("EC");
        jwk["crv"] = json!(curve);
        jwk["x"] = json!(URL_SAFE_NO_PAD.encode(x));
        jwk["y"] = json!(URL_SAFE_NO_PAD.encode(y));
        jwk
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData};
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
    };

    use super::*;

    /// Made with openssl; the private key is gone.
    const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA+ChDoaiyV9bv9nMG55qB
axT2X9/GD0Av8IfII5K4PvlDSHnNQj/eh4ZcVCGP4w3HI5HTnq7Mq5/uprC25Icr
RYGp/gGx82/UIl3illPLyvB6iWcXN3VkLcbzkrOvBzwHK2WYOOcjtHqqIVdEAZvz
bsTW/mfByp1EoKdlCE4kO3efayVijzGtHAqXcyNOp7EzM7IaPTiwCFd6DMVUHvL0
GbNI0IyC7RqmMLtO0OtCRfXAp7XNjyL1xPPjxzO6K8tWthEUPJmAZjbo79Q0WCx9
S3v2chD6J4cGefNIiN6HBxIIFLu1h9aTFTGbomWXgs4FyEDDJa8OI+tRUFvQLl8Y
jwIDAQAB
-----END PUBLIC KEY-----";
    const RSA_SIGNED: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6ZGVmYXVsdDpkZWZ\
        hdWx0In0";
    const RSA_SIGNATURE: &str = "iCYW1GjoS2bO2ginyc7s8TYw4hSzBzmIIvHAMzEmR2PKXJae1JovYihf9oTy6_fvW43omZhsdLdpHhsQVBNUy6HH_Fxl\
        kXRYpDKRKi01_A5WP8RNaRtP2GhyR0iBs3TfQXq7dfUQj7Wkc6gJnLTKUaCQG_wEMuna9R-AfVH-WbaAZt061AerGE1k\
        y2hUXFSimKfJUeoOBu9VHVOxRupT0EYRK0VOhhGkSRu_Oed1oJdvlYjVv-v5HZgFSZebWFjlyBJGB1dUu0QP-Q1MGJ5n\
        mw9xObFXSGgNPrb5t22mGyA1FPSfBlQAYzfi2OPd6KMdVhaZ1Z9x5b8gJ2svfkPI-w";

    const SHORT_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDvbz7AWT6AghHwTLufgY5OxZOQ
RP8DTr9u9H0JtRqeK4WfI5gNTpTAZ/dK7GL73LigAmXY7RedWlVK6fDaQbasAzDX
oLHUVWcZZAuSRysUxljP6a+8mCofEh00mGNi56jD6db9olcWa/xxIQl9pkepNMmv
ssXrV9ILsuf8wcuRwwIDAQAB
-----END PUBLIC KEY-----";

    const ON_P521: &str = "-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQA2Xicgq6kMkq/l9yuOCLMzB9XPLeY
6A1LPziWAqj5iF9o4DwBS0shKViwDgbF0sn22v3qauWJST+q08upod1DOHMAFvIZ
KRzEjl9NFDy1wFdoWl82gTbRuD7x0JsY1VtLiv/IA6KfLkCH6ymCJGGrWaYfl6bV
+G24Xctpy3IRhT3keK4=
-----END PUBLIC KEY-----";

    fn read(pem: &str) -> Result<VerifyingKey, KeyFileError> {
        VerifyingKey::all_from_pem(pem).map(|mut keys| keys.remove(0))
    }

    #[test]
    fn rsa_keys_check_what_they_signed() {
        let key = read(RSA).expect("a key");
        let signature = URL_SAFE_NO_PAD.decode(RSA_SIGNATURE).expect("base64");
        assert!(key.verifies("RS256", RSA_SIGNED, &signature));
        assert!(!key.verifies("RS256", "another", &signature));
        assert!(!key.verifies("ES256", RSA_SIGNED, &signature), "by another algorithm");
        let jwk = key.jwk();
        assert_eq!((&jwk["kty"], &jwk["e"]), (&json!("RSA"), &json!("AQAB")));
        assert_eq!(jwk["n"].as_str().map(str::len), Some(342), "256 bytes");
    }

    #[test]
    fn keys_on_both_curves_check_what_they_signed() {
        for (curve, signing, algorithm, length) in [
            (&PKCS_ECDSA_P256_SHA256, &ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", 43),
            (&PKCS_ECDSA_P384_SHA384, &ECDSA_P384_SHA384_FIXED_SIGNING, "ES384", 64),
        ] {
            let made = KeyPair::generate_for(curve).expect("a key");
            let key = read(&made.public_key_pem()).expect("a key");
            let private = read(&made.serialize_pem()).expect("its public part");
            assert_eq!(private.jwk(), key.jwk());
            let random = SystemRandom::new();
            let pair = EcdsaKeyPair::from_pkcs8(signing, &made.serialize_der(), &random).expect("a key");
            let signature = pair.sign(&random, b"text").expect("signed");
            assert!(key.verifies(algorithm, "text", signature.as_ref()), "{algorithm}");
            assert!(!key.verifies(algorithm, "other", signature.as_ref()), "{algorithm}");
            assert_eq!(key.jwk()["x"].as_str().map(str::len), Some(length), "{algorithm}");
            let id = digest::digest(&digest::SHA256, &made.subject_public_key_info());
            assert_eq!(key.jwk()["kid"], URL_SAFE_NO_PAD.encode(id), "upstream's");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_with_why() {
        assert_eq!(
            VerifyingKey::all_from_pem(&format!("{RSA}\n{RSA}\n")).map(|keys| keys.len()).ok(),
            Some(2)
        );
        let made = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let many = format!("{RSA}\n").repeat(MAX_KEYS + 1);
        for (pem, expected) in [
            ("", "holds no key"),
            ("-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\n", "holds no key"),
            ("-----BEGIN SECRET-----\nAAAA\n-----END SECRET-----\n", "holds a SECRET: keys"),
            (made.serialize_pem().as_str(), "holds a PRIVATE KEY that is none of RSA"),
            (SHORT_RSA, "holds an RSA key of 1024 bits"),
            (ON_P521, "holds a key on the curve P-521"),
            (many.as_str(), "holds more than 16 keys"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds what is no public key"),
        ] {
            let error = read(pem).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
