//! CertificateSigningRequests.
//!
//! What is asked for stands for good, and is tied to who asked ([`crate::admission`] fills that in). Approval and
//! issuance are apart: conditions `Approved` and `Denied` come through the subresource `approval` only, the certificate
//! through `status`, once. Follows `pkg/apis/certificates/validation` and `pkg/registry/certificates` of v1.36.

use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::{FieldError, error::FieldErrorKind, kinds::Kind};
use serde_json::{Map, Value};
use x509_parser::{
    certification_request::X509CertificationRequest,
    pem::Pem,
    prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate},
};

use super::{
    AGE, Hooks, NAME, NameRule, PLAIN,
    apps::age,
    human, meta,
    names::{dns_label, dns_subdomain},
    pod::or_none,
    ratchet::newly_wrong,
    text,
    value::{Fields, Path},
};

const SPEC: Path<'static> = Path::Root("spec");
const CONDITIONS: Path<'static> = Path::Root("status.conditions");
const CERTIFICATE: &str = "status.certificate";

/// Conditions that are true or absent, and stay once they are there.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Conditions that only `approval` writes.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// What the server itself says of who asks.
const REQUESTER: [&str; 4] = ["username", "uid", "groups", "extra"];

/// `secp521r1` (RFC 5480): taken upstream, and not known to the library that checks signatures here.
pub(super) const P521: &str = "1.3.132.0.35";
pub(super) const NO_P521: &str =
    "keys on the curve P-521 are not supported: ring, which checks signatures, lacks it";

const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const SHORTEST_SECONDS: i64 = 600;
const LONGEST_DOMAIN: usize = 253;
/// `<fqdn>/<namespace>.<name>`.
const LONGEST_SIGNER: usize = LONGEST_DOMAIN + 1 + 253 + 1 + 63;

/// In the order of their names, as the error lists them.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

pub(crate) static SIGNING_REQUEST: Hooks = Hooks {
    prepare_create: |request| {
        if let Some(spec) = request.part_mut("spec") {
            for field in REQUESTER {
                spec.drop_field(field);
            }
        }
    },
    prepare_update: |new, old| new.copy_field("spec", old),
    validate_create: validate,
    validate_status: |new, old| {
        let mut errors = conditions(new);
        errors.extend(keep_lasting(new, old));
        errors.extend(keep_decisions(new, old));
        errors.extend(certificate(new, old));
        errors
    },
    columns: &[
        NAME,
        AGE,
        text("SignerName"),
        text("Requestor"),
        text("RequestedDuration"),
        text("Condition"),
    ],
    cells: |request, now| {
        let seconds = request.int("spec.expirationSeconds");
        vec![
            request.at("metadata.name").clone(),
            age(request, now),
            or_none(request.text("spec.signerName").to_owned()).into(),
            request.text("spec.username").into(),
            seconds.map_or_else(|| "<none>".to_owned(), human::duration).into(),
            state(request).into(),
        ]
    },
    selectable: &[("spec.signerName", |request| request.text("spec.signerName").to_owned())],
    name: NameRule::PathSegment,
    ..PLAIN
};

/// Rules about a change through `approval`.
pub fn validate_approval(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = newly_wrong(new, old, |object| meta::validate(kind, SIGNING_REQUEST.name, object));
    errors.extend(meta::validate_update(new, old));
    errors.extend(newly_wrong(new, old, conditions));
    errors.extend(keep_lasting(new, old));
    errors
}

/// The organizations that a request's subject names; an error says why it is no request.
pub fn organizations(request: &Value) -> Result<Vec<String>, String> {
    let pem = decode(request.text("spec.request"))?;
    let parsed = parse(&pem)?;
    let subject = &parsed.certification_request_info.subject;
    let names = subject.iter_organization().filter_map(|name| name.as_str().ok());
    Ok(names.map(str::to_owned).collect())
}

fn decode(base64: &str) -> Result<Pem, String> {
    pem(&STANDARD.decode(base64).map_err(|error| error.to_string())?)
}

/// The request's PEM block; an error says what else it is.
pub fn pem(request: &[u8]) -> Result<Pem, String> {
    let wrong = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let pem = Pem::iter_from_buffer(request).next().and_then(Result::ok).ok_or_else(wrong)?;
    if pem.label == "CERTIFICATE REQUEST" { Ok(pem) } else { Err(wrong()) }
}

/// What a block of [`pem`] asks for.
pub fn parse(pem: &Pem) -> Result<X509CertificationRequest<'_>, String> {
    parse_der(&pem.contents)
}

pub(super) fn parse_der(request: &[u8]) -> Result<X509CertificationRequest<'_>, String> {
    match X509CertificationRequest::from_der(request) {
        Ok(([], request)) => Ok(request),
        Ok(_) => Err("x509: trailing data".to_owned()),
        Err(error) => Err(format!("x509: malformed certificate request: {error}")),
    }
}

fn check_request(base64: &str) -> Result<(), String> {
    let pem = decode(base64)?;
    verify(&parse(&pem)?)
}

/// Whether the key that the request names has signed it; an error says that it has not, or why nobody knows.
pub(super) fn verify(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    if curve_of(&request.certification_request_info.subject_pki).as_deref() == Some(P521) {
        return Err(format!("x509: {NO_P521}"));
    }
    request.verify_signature().map_err(|error| format!("x509: the signature is not valid: {error}"))
}

/// The curve that the key is on, as dotted numbers; `None` for keys of other kinds.
pub(super) fn curve_of(key: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    Some(curve.to_id_string())
}

fn state(request: &Value) -> String {
    let has = |kind: &str| request.list("status.conditions").iter().any(|one| one.text("type") == kind);
    let mut state = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !request.text(CERTIFICATE).is_empty() {
        state.push_str(",Issued");
    }
    state
}

fn validate(request: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = request.at("spec");
    if let Err(why) = check_request(spec.text("request")) {
        errors.push(FieldError::invalid(SPEC.field("request"), spec.text("request"), why));
    }
    let path = SPEC.field("usages");
    let usages: Vec<&str> = spec.list("usages").iter().filter_map(Value::as_str).collect();
    if usages.is_empty() {
        errors.push(FieldError::required(path, "usages must be provided"));
    }
    for (index, usage) in usages.iter().enumerate() {
        if !USAGES.contains(usage) {
            errors.push(FieldError::not_supported(path.index(index), *usage, &USAGES));
        }
        if usages[..index].contains(usage) {
            errors.push(FieldError::duplicate(path.index(index), *usage));
        }
    }
    let signer = spec.text("signerName");
    if signer == LEGACY_SIGNER {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.push(FieldError::invalid(SPEC.field("signerName"), signer, detail));
    } else {
        signer_name(&mut errors, &SPEC.field("signerName"), signer);
    }
    if let Some(seconds) = spec.int("expirationSeconds").filter(|seconds| *seconds < SHORTEST_SECONDS) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid(SPEC.field("expirationSeconds"), seconds, detail));
    }
    errors.extend(conditions(request));
    errors
}

/// A domain and one step of a path: `example.com/signer`.
pub(crate) fn signer_name(errors: &mut Vec<FieldError>, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, "signerName must be provided"));
        return;
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid(path, name, detail));
        return;
    };
    let too_long = |limit: usize| {
        let detail = format!("may not be more than {limit} bytes");
        FieldError::new(FieldErrorKind::TooLong, path, None, detail)
    };
    if domain.len() > LONGEST_DOMAIN {
        errors.push(too_long(LONGEST_DOMAIN));
    }
    // One bad label is enough to say.
    let mut labels = |whole: &str, check: fn(&str) -> Vec<String>| {
        let bad = whole.split('.').map(|label| (label, check(label))).find(|(_, wrong)| !wrong.is_empty());
        for (label, detail) in bad.iter().flat_map(|(label, wrong)| wrong.iter().map(move |one| (label, one)))
        {
            errors.push(FieldError::invalid(path, whole, format!("validating label {label:?}: {detail}")));
        }
    };
    labels(domain, dns_label);
    labels(rest, dns_subdomain);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(FieldError::invalid(path, domain, detail));
    }
    if name.len() > LONGEST_SIGNER {
        errors.push(too_long(LONGEST_SIGNER));
    }
}

fn conditions(request: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = request.list("status.conditions");
    for (index, condition) in all.iter().enumerate() {
        let path = CONDITIONS.index(index);
        let (kind, status) = (condition.text("type"), condition.text("status"));
        if kind.is_empty() {
            errors.push(FieldError::required(path.field("type"), ""));
        }
        let allowed: &[&str] =
            if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(FieldError::required(path.field("status"), ""));
        } else if !allowed.contains(&status) {
            errors.push(FieldError::not_supported(path.field("status"), status, allowed));
        }
        let earlier = |other: &str| all[..index].iter().any(|one| one.text("type") == other);
        if (kind == "Approved" && earlier("Denied")) || (kind == "Denied" && earlier("Approved")) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.push(FieldError::invalid(path.field("type"), kind, detail));
        }
        if earlier(kind) {
            errors.push(FieldError::duplicate(path.field("type"), kind));
        }
    }
    errors
}

fn of_type<'a>(request: &'a Value, kind: &str) -> Vec<&'a Map<String, Value>> {
    let all = request.list("status.conditions").iter();
    all.filter(|condition| condition.text("type") == kind).filter_map(Value::as_object).collect()
}

fn keep_lasting(new: &Value, old: &Value) -> Vec<FieldError> {
    let gone = LASTING.iter().filter(|kind| of_type(new, kind).len() < of_type(old, kind).len());
    let detail = |kind: &&str| format!("updates may not remove a condition of type {kind:?}");
    gone.map(|kind| FieldError::forbidden(CONDITIONS, detail(kind))).collect()
}

/// Refuses decisions that are added or changed; [`keep_lasting`] sees those that are removed.
fn keep_decisions(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in DECISIONS {
        let (now, before) = (of_type(new, kind), of_type(old, kind));
        if now.len() > before.len() {
            let detail = format!("updates may not add a condition of type {kind:?}");
            errors.push(FieldError::forbidden(CONDITIONS, detail));
        } else if now.len() == before.len() && now != before {
            let detail = format!("updates may not modify a condition of type {kind:?}");
            errors.push(FieldError::forbidden(CONDITIONS, detail));
        }
    }
    errors
}

fn certificate(new: &Value, old: &Value) -> Vec<FieldError> {
    let (issued, before) = (new.text(CERTIFICATE), old.text(CERTIFICATE));
    if issued == before {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if let Err(why) = check_certificate(issued) {
        errors.push(FieldError::invalid(CERTIFICATE, "<certificate data>", why));
    }
    if !before.is_empty() {
        let detail = "updates may not modify existing certificate content";
        errors.push(FieldError::forbidden(CERTIFICATE, detail));
    }
    errors
}

fn check_certificate(base64: &str) -> Result<(), String> {
    if base64.is_empty() {
        return Ok(());
    }
    let bytes = STANDARD.decode(base64).map_err(|error| error.to_string())?;
    let mut blocks = 0;
    for pem in Pem::iter_from_buffer(&bytes) {
        let pem = pem.map_err(|error| error.to_string())?;
        if pem.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        X509Certificate::from_der(&pem.contents).map_err(|error| format!("x509: {error}"))?;
        blocks += 1;
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
