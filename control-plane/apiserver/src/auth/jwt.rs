//! Signed tokens: JWS compact serialization (RFC 7515) with ES256, and the key that signs them.
//!
//! Knows bytes and claims as JSON, not what they mean ([`super::tokens`] does). The algorithm is fixed by the key, never
//! taken from a token's header.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde_json::{Value, json};

/// Bound of what is looked at: a token longer than a header line of 16 kB is not one of ours.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// What the key that signs signs with.
pub(super) const ALGORITHM: &str = "ES256";

/// The name of the curve P-521 (`secp521r1`, RFC 5480) in DER.
const P521: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];

/// An ECDSA P-256 key pair.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    id: String,
    random: SystemRandom,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("service account key is not an ECDSA P-256 key in PKCS #8: {0}")]
    Rejected(ring::error::KeyRejected),
    #[error(
        "service account key is on the curve P-521 (ES512), which ring, which signs, lacks: P-256 is needed"
    )]
    P521,
    #[error("service account key is not PEM")]
    Pem,
}

impl SigningKey {
    /// Reads a PEM file with one `PRIVATE KEY`.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let body: String = pem
            .lines()
            .skip_while(|line| !line.starts_with("-----BEGIN PRIVATE KEY"))
            .skip(1)
            .take_while(|line| !line.starts_with("-----"))
            .map(str::trim)
            .collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| KeyError::Pem)?;
        Self::from_pkcs8(&der)
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map_err(|error| {
                let names_p521 = der.windows(P521.len()).any(|part| part == P521);
                if names_p521 { KeyError::P521 } else { KeyError::Rejected(error) }
            })?;
        let id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, pair.public_key().as_ref()));
        Ok(Self { pair, id, random })
    }

    /// A key that lives as long as the process: for tests.
    pub fn ephemeral() -> Self {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .expect("the system has randomness");
        Self::from_pkcs8(document.as_ref()).expect("a key that was just made")
    }

    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": ALGORITHM, "kid": self.id, "typ": "JWT" });
        let mut text = URL_SAFE_NO_PAD.encode(header.to_string());
        text.push('.');
        text += &URL_SAFE_NO_PAD.encode(claims.to_string());
        let signature = self.pair.sign(&self.random, text.as_bytes()).expect("the system has randomness");
        text.push('.');
        text += &URL_SAFE_NO_PAD.encode(signature.as_ref());
        text
    }

    /// The claims of a token that this key signed; `None` for every other text.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let token = Signed::parse(token)?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        let is_ours =
            token.algorithm == ALGORITHM && key.verify(token.signed.as_bytes(), &token.signature).is_ok();
        if is_ours { token.claims() } else { None }
    }

    /// The public key as a JSON Web Key (RFC 7517).
    pub fn jwk(&self) -> Value {
        // An uncompressed point: 0x04, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

/// A token taken apart. Nothing of it is to be believed before a key has verified it.
pub(super) struct Signed<'t> {
    /// As the header names it: a key has one of its own, and this is to be the same.
    pub algorithm: String,
    pub signed: &'t str,
    pub signature: Vec<u8>,
    claims: &'t str,
}

impl<'t> Signed<'t> {
    pub(super) fn parse(token: &'t str) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { algorithm: header["alg"].as_str()?.to_owned(), signed, signature, claims })
    }

    pub(super) fn claims(&self) -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(self.claims).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_key_signed_is_accepted() {
        let (ours, theirs) = (SigningKey::ephemeral(), SigningKey::ephemeral());
        let claims = json!({ "sub": "system:serviceaccount:default:default" });
        let token = ours.sign(&claims);
        assert_eq!(ours.verify(&token), Some(claims.clone()));
        assert_eq!(theirs.verify(&token), None);
        assert_eq!(ours.verify(""), None);
        assert_eq!(ours.verify("a.b.c"), None);
        let (signed, signature) = token.rsplit_once('.').expect("three parts");
        let other = URL_SAFE_NO_PAD.encode(json!({ "sub": "system:admin" }).to_string());
        let header = signed.split_once('.').expect("two parts").0;
        assert_eq!(ours.verify(&format!("{header}.{other}.{signature}")), None);
        let none = URL_SAFE_NO_PAD.encode(json!({ "alg": "none" }).to_string());
        assert_eq!(ours.verify(&format!("{none}.{other}.")), None);
    }

    #[test]
    fn a_key_on_another_curve_is_refused_by_its_name() {
        // PKCS #8 up to the key itself: version 0, `id-ecPublicKey` on the curve.
        let mut der = vec![0x30, 0x17, 2, 1, 0, 0x30, 0x10, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        der.extend(P521);
        der.extend([4, 0]);
        let refused = SigningKey::from_pkcs8(&der).err().expect("refused");
        assert!(matches!(refused, KeyError::P521), "{refused}");
        assert!(matches!(SigningKey::from_pkcs8(b"0"), Err(KeyError::Rejected(_))));
    }

    #[test]
    fn the_key_set_names_the_key_of_the_tokens() {
        let key = SigningKey::ephemeral();
        let shown = key.jwk();
        assert_eq!(shown["kid"], key.id);
        assert_eq!(shown["x"].as_str().map(str::len), Some(43));
    }
}
