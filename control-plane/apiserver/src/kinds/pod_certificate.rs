//! PodCertificateRequests: a node asks a signer for a certificate of one of its pods (KEP-4317).
//!
//! What is asked for stands for good, and shows that its author has the key: the key has signed a certificate request
//! (`stubPKCS10Request`) or, as older kubelets have it, the pod's uid. The answer comes through `status`, once
//! ([`status`]). Whether a node may ask for that pod, and who may answer, is admission's matter. Follows
//! `pkg/apis/certificates/validation` and `pkg/registry/certificates` of v1.36.

mod status;

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::{FieldError, error::FieldErrorKind};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::Value;
use x509_parser::{
    prelude::{FromDer, SubjectPublicKeyInfo},
    public_key::PublicKey,
};

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    certificates::{NO_P521, P521, curve_of, parse_der, signer_name, verify},
    meta::{annotations, invalid_all},
    rules::{immutable, no_longer},
    text,
    value::{Fields, Path},
    wide,
};

pub(crate) use status::{ANSWERS, check_time};

const SPEC: Path<'static> = Path::Root("spec");
const KEY: &str = "spec.pkixPublicKey";
const PROOF: &str = "spec.proofOfPossession";
const REQUEST: &str = "spec.stubPKCS10Request";

/// Seconds that a certificate is good for: where nothing is said, at least, at most, and at most by `kubernetes.io`.
const USUAL_SECONDS: i64 = 86_400;
const LEAST_SECONDS: i64 = 3600;
const MOST_SECONDS: i64 = 91 * 86_400;
const MOST_SECONDS_OF_OWN: i64 = 86_400;

const LONGEST_UID: usize = 128;
/// Of a key, a proof, a request.
const MOST_BYTES: usize = 10 * 1024;
/// Bits of an RSA key.
const RSA_BITS: [usize; 2] = [3072, 4096];

pub(crate) static POD_CERTIFICATE_REQUEST: Hooks = Hooks {
    default: |request| {
        if let Some(spec) = request.part_mut("spec") {
            spec.set_default("maxExpirationSeconds", USUAL_SECONDS);
        }
    },
    validate_new: validate,
    validate_update: |new, old| {
        let mut errors = Vec::new();
        immutable(&mut errors, &SPEC, new.at("spec"), old.at("spec"));
        errors
    },
    validate_status: status::validate,
    columns: &[NAME, AGE, text("SignerName"), text("PodName"), text("Condition"), wide("NodeName")],
    cells: |request, now| {
        let answer = request.list("status.conditions").first().map_or("Pending", |one| one.text("type"));
        vec![
            request.at("metadata.name").clone(),
            age(request, now),
            request.text("spec.signerName").into(),
            request.text("spec.podName").into(),
            answer.into(),
            request.text("spec.nodeName").into(),
        ]
    },
    selectable: &[
        ("spec.signerName", |request| request.text("spec.signerName").to_owned()),
        ("spec.podName", |request| request.text("spec.podName").to_owned()),
        ("spec.nodeName", |request| request.text("spec.nodeName").to_owned()),
    ],
    ..PLAIN
};

/// The shortest and the longest life, in seconds, that a certificate of the signer may be asked for.
pub(super) fn bounds_of_life(signer: &str) -> (i64, i64) {
    let domain = signer.split('/').next().unwrap_or_default();
    let is_own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    (LEAST_SECONDS, if is_own { MOST_SECONDS_OF_OWN } else { MOST_SECONDS })
}

/// What a pod's author tells the signer: annotations, each of somebody's domain.
pub(super) fn user_annotations(errors: &mut Vec<FieldError>, path: &Path<'_>, all: &Value) {
    annotations(errors, path, all);
    for key in all.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| !key.contains('/')) {
        let detail = "must be a domain-prefixed key (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(path, key.as_str(), detail));
    }
}

fn validate(request: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = request.at("spec");
    let signer = spec.text("signerName");
    signer_name(&mut errors, &SPEC.field("signerName"), signer);
    let told = spec.at("unverifiedUserAnnotations");
    user_annotations(&mut errors, &SPEC.field("unverifiedUserAnnotations"), told);
    for (name, uid) in
        [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")]
    {
        let value = spec.text(name);
        invalid_all(&mut errors, &SPEC.field(name), value, NameRule::Subdomain.check(value));
        let (path, value) = (SPEC.field(uid), spec.text(uid));
        if value.is_empty() {
            errors.push(FieldError::invalid(path, value, "must not be empty"));
        }
        no_longer(&mut errors, &path, value, LONGEST_UID);
    }
    let (least, most) = bounds_of_life(signer);
    let path = SPEC.field("maxExpirationSeconds");
    match spec.int("maxExpirationSeconds") {
        None => errors.push(FieldError::required(path, "must be set")),
        Some(seconds) if !(least..=most).contains(&seconds) => {
            let detail = format!("must be in the range [{least}, {most}]");
            errors.push(FieldError::invalid(path, seconds, detail));
        }
        Some(_) => {}
    }
    errors.extend(proven(spec).err());
    errors
}

/// Whether it is shown, in one of the two ways, that the author has the key.
fn proven(spec: &Value) -> Result<(), FieldError> {
    let fields = [REQUEST, KEY, PROOF].map(|field| (field, bytes_of(spec, field)));
    if let Some((field, _)) = fields.iter().find(|(_, bytes)| bytes.len() > MOST_BYTES) {
        let detail = format!("may not be more than {MOST_BYTES} bytes");
        return Err(FieldError::new(FieldErrorKind::TooLong, *field, None, detail));
    }
    let [request, key, proof] = fields.map(|(_, bytes)| bytes);
    match (request.is_empty(), key.is_empty() && proof.is_empty()) {
        (false, true) => by_request(&request).map_err(|why| omitting(REQUEST, why)),
        (true, false) => by_signature(&key, &proof, spec.text("podUID").as_bytes()),
        _ => {
            let detail =
                "exactly one of stubPKCS10Request, and pkixPublicKey with proofOfPossession, must be set";
            Err(omitting("spec", detail))
        }
    }
}

fn by_request(request: &[u8]) -> Result<(), String> {
    let request = parse_der(request)?;
    algorithm_of(&request.certification_request_info.subject_pki)?;
    verify(&request)
}

fn by_signature(key: &[u8], proof: &[u8], signed: &[u8]) -> Result<(), FieldError> {
    let key = public_key(key).map_err(|why| omitting(KEY, why))?;
    let algorithm = algorithm_of(&key).map_err(|why| omitting(KEY, why))?;
    let verified = UnparsedPublicKey::new(algorithm, &key.subject_public_key.data).verify(signed, proof);
    verified.map_err(|_| omitting(PROOF, "could not verify proof-of-possession signature"))
}

fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo<'_>, String> {
    match SubjectPublicKeyInfo::from_der(der) {
        Ok(([], key)) => Ok(key),
        _ => Err("must be a valid PKIX-serialized public key".to_owned()),
    }
}

/// By what a proof of older kubelets is checked, where the key is of a kind that pods have; an error says that it is not.
///
/// `ring` knows the padding of RSA-PSS only with a salt as long as the hash. Go signs with the longest that fits, so that
/// proofs of RSA keys that Go has made are refused: such clients send a certificate request.
fn algorithm_of(key: &SubjectPublicKeyInfo<'_>) -> Result<&'static dyn VerificationAlgorithm, String> {
    let refused = |why: &str| Err(why.to_owned());
    match &*key.algorithm.algorithm.to_id_string() {
        "1.3.101.112" => Ok(&ED25519),
        "1.2.840.10045.2.1" => match curve_of(key).as_deref() {
            Some("1.2.840.10045.3.1.7") => Ok(&ECDSA_P256_SHA256_ASN1),
            Some("1.3.132.0.34") => Ok(&ECDSA_P384_SHA256_ASN1),
            Some(P521) => refused(NO_P521),
            _ => refused("elliptic public keys must use curve P256 or P384"),
        },
        "1.2.840.113549.1.1.1" => match key.parsed() {
            Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&key.key_size()) => Ok(&RSA_PSS_2048_8192_SHA256),
            _ => refused("RSA keys must have modulus size 3072 or 4096"),
        },
        _ => refused("unknown public key type; supported types are Ed25519, ECDSA, and RSA"),
    }
}

/// The key that the certificate is asked for, as it stands in a certificate; `None` where there is none.
fn key_of(request: &Value) -> Option<Vec<u8>> {
    let stub = bytes_of(request.at("spec"), REQUEST);
    match parse_der(&stub) {
        Ok(request) => Some(request.certification_request_info.subject_pki.raw.to_vec()),
        Err(_) => Some(bytes_of(request.at("spec"), KEY)).filter(|key| !key.is_empty()),
    }
}

/// A field of the spec, by its whole path, whose form the schema has checked.
fn bytes_of(spec: &Value, field: &str) -> Vec<u8> {
    let text = spec.text(field.trim_start_matches("spec."));
    STANDARD.decode(text).unwrap_or_default()
}

/// About a value that says nothing to who reads it.
fn omitting(field: &str, detail: impl Into<String>) -> FieldError {
    FieldError::new(FieldErrorKind::Invalid, field, None, detail)
}

#[cfg(test)]
mod tests;
