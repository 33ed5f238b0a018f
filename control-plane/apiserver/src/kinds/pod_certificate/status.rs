//! The signer's answer to a PodCertificateRequest: one of three conditions, given once, and the certificate with it.

use std::time::Duration;

use hawser_api::FieldError;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use x509_parser::{
    extensions::GeneralName,
    pem::Pem,
    prelude::{FromDer, X509Certificate},
};

use super::{key_of, omitting};
use crate::kinds::{
    rules::{no_longer, one_of},
    value::{Fields, Path},
};

/// The answers there are, in the order of their names. Each is true, and final.
pub(crate) const ANSWERS: [&str; 3] = ["Denied", "Failed", "Issued"];

const STATUS: Path<'static> = Path::Root("status");
const CHAIN: &str = "status.certificateChain";
const NOT_BEFORE: &str = "status.notBefore";
const NOT_AFTER: &str = "status.notAfter";
const REFRESH: &str = "status.beginRefreshAt";
/// What comes with a certificate, and with no other answer.
const ISSUED: [&str; 4] = [CHAIN, NOT_BEFORE, REFRESH, NOT_AFTER];

const MOST_CHAIN_BYTES: usize = 100 * 1024;
const LONGEST_REASON: usize = 1024;
const LONGEST_MESSAGE: usize = 32 * 1024;
const SHORTEST_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// A new certificate is asked for so long after the old one began, and so long before it ends.
const REFRESH_MARGIN: SignedDuration = SignedDuration::from_mins(10);
/// How far the beginning of a certificate may be from when it is handed out.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Rules about an answer; what `old` says already stands.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let errors = conditions(new);
    if !errors.is_empty() {
        return errors;
    }
    let refused = |detail: &str| vec![omitting("status", detail)];
    let unchanged = same(new, old, &ISSUED) && new.list("status.conditions") == old.list("status.conditions");
    match (answer(old), answer(new)) {
        (Some(_), _) if !unchanged => {
            refused("immutable after PodCertificateRequest is issued, denied, or failed")
        }
        (Some(_), _) => Vec::new(),
        (None, Some("Issued")) => issued(new).err().unwrap_or_default(),
        (None, Some(_)) if ISSUED.iter().any(|field| new.has(field)) => refused(
            "non-condition status fields must be empty when denying or failing the PodCertificateRequest",
        ),
        (None, Some(_)) => Vec::new(),
        (None, None) if !unchanged => {
            refused("status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"")
        }
        (None, None) => Vec::new(),
    }
}

/// Refuses a certificate that does not begin about now. The one rule that needs the time.
pub(crate) fn check_time(new: &Value, old: &Value, now: Timestamp) -> Option<FieldError> {
    if same(new, old, &[NOT_BEFORE]) {
        return None;
    }
    let begins = time(new, NOT_BEFORE)?;
    if begins.duration_since(now).unsigned_abs() < CLOCK_SKEW {
        return None;
    }
    let detail = "must be set to within 5 minutes of kube-apiserver's current time";
    Some(FieldError::invalid(NOT_BEFORE, new.text(NOT_BEFORE), detail))
}

fn same(new: &Value, old: &Value, fields: &[&str]) -> bool {
    fields.iter().all(|field| new.at(field) == old.at(field))
}

fn answer(request: &Value) -> Option<&'static str> {
    let given = request.list("status.conditions").first()?.text("type");
    ANSWERS.into_iter().find(|answer| *answer == given)
}

fn conditions(request: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = STATUS.field("conditions");
    for (index, condition) in request.list("status.conditions").iter().enumerate() {
        let path = list.index(index);
        one_of(&mut errors, &path.field("type"), condition.text("type"), &ANSWERS);
        if index > 0 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(FieldError::invalid(path.field("type"), condition.text("type"), detail));
        }
        one_of(&mut errors, &path.field("status"), condition.text("status"), &["True"]);
        if let Some(generation) = condition.int("observedGeneration").filter(|number| *number < 0) {
            let detail = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(path.field("observedGeneration"), generation, detail));
        }
        if !condition.has("lastTransitionTime") {
            errors.push(FieldError::required(path.field("lastTransitionTime"), "must be set"));
        }
        let (of, reason) = (path.field("reason"), condition.text("reason"));
        if reason.is_empty() {
            errors.push(FieldError::required(of, "must be set"));
        } else if !is_reason(reason) {
            let detail = "a condition reason must start with alphabetic character, optionally followed by a string of \
                          alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
            errors.push(FieldError::invalid(of, reason, detail));
        }
        no_longer(&mut errors, &of, reason, LONGEST_REASON);
        no_longer(&mut errors, &path.field("message"), condition.text("message"), LONGEST_MESSAGE);
    }
    errors
}

fn is_reason(text: &str) -> bool {
    let is_in = |letter: char, others: &str| letter.is_ascii_alphanumeric() || others.contains(letter);
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|letter| is_in(letter, "_,:"))
        && text.ends_with(|last: char| is_in(last, "_"))
}

/// The certificate is for the key that was asked for, lives as long as may be, and is what the status says that it is.
fn issued(request: &Value) -> Result<(), Vec<FieldError>> {
    let chain = request.text(CHAIN);
    let mut errors = Vec::new();
    no_longer(&mut errors, &STATUS.field("certificateChain"), chain, MOST_CHAIN_BYTES);
    if !errors.is_empty() {
        return Err(errors);
    }
    let wrong = |detail: &str| vec![omitting(CHAIN, detail)];
    let mut blocks = Vec::new();
    for pem in Pem::iter_from_buffer(chain.as_bytes()) {
        match pem {
            Ok(pem) if pem.label == "CERTIFICATE" => blocks.push(pem.contents),
            _ => {
                return Err(wrong(
                    "issued certificate chain must consist entirely of CERTIFICATE PEM blocks",
                ));
            }
        }
    }
    let Some((leaf, others)) = blocks.split_first() else {
        return Err(wrong("issued certificate chain must contain at least one certificate"));
    };
    let leaf = parse(leaf).ok_or_else(|| wrong("leaf certificate does not parse as valid X.509"))?;
    names(&leaf)?;
    if key_of(request).as_deref() != Some(leaf.public_key().raw) {
        return Err(wrong("leaf certificate was not issued to the requested public key"));
    }
    times(request, &leaf)?;
    match others.iter().all(|other| parse(other).is_some()) {
        true => Ok(()),
        false => Err(wrong("intermediate certificate does not parse as valid X.509")),
    }
}

fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, parsed)| parsed)
}

/// Names that a verifier would stumble over.
fn names(leaf: &X509Certificate<'_>) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut wrong = |name: &str, detail| errors.push(FieldError::invalid(CHAIN, name, detail));
    let Ok(extension) = leaf.subject_alternative_name() else {
        return Err(vec![omitting(CHAIN, "leaf certificate does not parse as valid X.509")]);
    };
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName("") => wrong("", "leaf certificate should not contain empty DNSName"),
            GeneralName::DNSName(name) if name.contains("..") => {
                wrong(name, "leaf certificate's DNSName should not contain '..'");
            }
            GeneralName::DNSName(name) if name.starts_with('.') || name.ends_with('.') => {
                wrong(name, "leaf certificate's DNSName should not start or end with '.'");
            }
            GeneralName::RFC822Name(address) if !is_address(address) => {
                wrong(address, "leaf certificate should not contain invalid EmailAddress");
            }
            _ => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once('@');
    parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !text.contains(' '))
}

fn times(request: &Value, leaf: &X509Certificate<'_>) -> Result<(), Vec<FieldError>> {
    let (begins, ends, refresh) =
        (time(request, NOT_BEFORE), time(request, NOT_AFTER), time(request, REFRESH));
    let (Some(begins), Some(ends), Some(refresh)) = (begins, ends, refresh) else {
        let consistent = "must be present and consistent with the issued certificate";
        let within = "must be present and in the range [notbefore+10min, notafter-10min]";
        let all =
            [(NOT_BEFORE, begins, consistent), (NOT_AFTER, ends, consistent), (REFRESH, refresh, within)];
        let missing = all.iter().filter(|(_, time, _)| time.is_none());
        return Err(missing.map(|(field, _, detail)| FieldError::required(*field, *detail)).collect());
    };
    let wrong = |field: &str, detail: String| {
        Err(vec![FieldError::invalid(field, request.at(field).clone(), detail)])
    };
    let validity = leaf.validity();
    for (field, said, is, name) in [
        (NOT_BEFORE, begins, validity.not_before, "NotBefore"),
        (NOT_AFTER, ends, validity.not_after, "NotAfter"),
    ] {
        if said.as_second() != is.timestamp() {
            return wrong(field, format!("must be set to the {name} time encoded in the leaf certificate"));
        }
    }
    let (life, most) =
        (ends.duration_since(begins), request.int("spec.maxExpirationSeconds").unwrap_or_default());
    if life < SHORTEST_LIFE {
        return Err(vec![omitting(CHAIN, "leaf certificate lifetime must be >= 1 hour")]);
    }
    if life > SignedDuration::from_secs(most) {
        let detail = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return Err(vec![omitting(CHAIN, detail)]);
    }
    if refresh.duration_since(begins) < REFRESH_MARGIN {
        return wrong(REFRESH, "must be at least 10 minutes after status.notBefore".to_owned());
    }
    if ends.duration_since(refresh) < REFRESH_MARGIN {
        return wrong(REFRESH, "must be at least 10 minutes before status.notAfter".to_owned());
    }
    Ok(())
}

fn time(request: &Value, field: &str) -> Option<Timestamp> {
    request.text(field).parse().ok()
}
