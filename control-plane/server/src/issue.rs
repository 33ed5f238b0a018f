//! A certificate in DER (RFC 5280), where what stands in it was written by somebody else and is taken over byte by byte.

use jiff::{Timestamp, tz::TimeZone};
use uuid::Uuid;
use yasna::{DERWriter, Tag, models::ObjectIdentifier, tags};

/// What a certificate is to say.
pub(crate) struct Issue<'a> {
    /// A name, in DER.
    pub(crate) subject: &'a [u8],
    /// A SubjectPublicKeyInfo, in DER.
    pub(crate) public_key: &'a [u8],
    /// The content of the extension subjectAltName.
    pub(crate) alternative_names: Option<&'a [u8]>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// As `spec.usages` of a CertificateSigningRequest names them.
    pub(crate) usages: &'a [&'a str],
}

/// Who issues.
pub(crate) struct By<'a> {
    /// The authority's subject, in DER.
    pub(crate) name: &'a [u8],
    /// Its subject key identifier, if it has one.
    pub(crate) key_id: Option<&'a [u8]>,
}

const ECDSA_WITH_SHA256: &[u64] = &[1, 2, 840, 10045, 4, 3, 2];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const ALTERNATIVE_NAMES: &[u64] = &[2, 5, 29, 17];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const AUTHORITY_KEY_ID: &[u64] = &[2, 5, 29, 35];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

/// Bits of the extension keyUsage, the first bit highest.
const KEY_USAGES: [(&str, u8); 2] = [("digital signature", 0x80), ("key encipherment", 0x20)];
const PURPOSES: [(&str, &[u64]); 2] =
    [("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]), ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2])];

/// The part of a certificate that is signed, with ECDSA and SHA-256.
pub(crate) fn to_be_signed(issue: &Issue<'_>, by: &By<'_>) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|fields| {
            fields.next().write_tagged(Tag::context(0), |version| version.write_u8(2));
            fields.next().write_bigint_bytes(Uuid::new_v4().as_bytes(), true);
            algorithm(fields.next());
            fields.next().write_der(by.name);
            fields.next().write_sequence(|validity| {
                time(validity.next(), issue.not_before);
                time(validity.next(), issue.not_after);
            });
            fields.next().write_der(issue.subject);
            fields.next().write_der(issue.public_key);
            fields.next().write_tagged(Tag::context(3), |writer| extensions(writer, issue, by));
        });
    })
}

/// The certificate of what was signed.
pub(crate) fn certificate(to_be_signed: &[u8], signature: &[u8]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|fields| {
            fields.next().write_der(to_be_signed);
            algorithm(fields.next());
            fields.next().write_bitvec_bytes(signature, signature.len() * 8);
        });
    })
}

fn algorithm(writer: DERWriter<'_>) {
    writer.write_sequence(|fields| fields.next().write_oid(&oid(ECDSA_WITH_SHA256)));
}

fn oid(parts: &[u64]) -> ObjectIdentifier {
    ObjectIdentifier::from_slice(parts)
}

/// UTCTime before 2050, GeneralizedTime from then on.
fn time(writer: DERWriter<'_>, at: Timestamp) {
    let at = at.to_zoned(TimeZone::UTC);
    let (tag, format) = if at.year() < 2050 {
        (tags::TAG_UTCTIME, "%y%m%d%H%M%SZ")
    } else {
        (tags::TAG_GENERALIZEDTIME, "%Y%m%d%H%M%SZ")
    };
    writer.write_tagged_implicit(tag, |text| text.write_bytes(at.strftime(format).to_string().as_bytes()));
}

fn extensions(writer: DERWriter<'_>, issue: &Issue<'_>, by: &By<'_>) {
    let bits = KEY_USAGES.iter().filter(|(name, _)| issue.usages.contains(name)).map(|(_, bit)| bit);
    let bits = bits.fold(0, |all, bit| all | bit);
    let purposes = PURPOSES.iter().filter(|(name, _)| issue.usages.contains(name));
    // RFC 5280, 4.2.1.6: where the subject says nothing, the alternative names are critical.
    let is_unnamed = issue.subject == [0x30, 0];
    writer.write_sequence(|all| {
        let mut add = |id: &[u64], is_critical: bool, content: &[u8]| {
            all.next().write_sequence(|fields| {
                fields.next().write_oid(&oid(id));
                if is_critical {
                    fields.next().write_bool(true);
                }
                fields.next().write_bytes(content);
            });
        };
        if bits != 0 {
            let significant = 8 - bits.trailing_zeros() as usize;
            add(KEY_USAGE, true, &yasna::construct_der(|it| it.write_bitvec_bytes(&[bits], significant)));
        }
        let purposes = yasna::construct_der(|writer| {
            writer.write_sequence(|list| purposes.for_each(|(_, id)| list.next().write_oid(&oid(id))));
        });
        add(EXTENDED_KEY_USAGE, false, &purposes);
        add(BASIC_CONSTRAINTS, true, &yasna::construct_der(|it| it.write_sequence(|_| ())));
        if let Some(key_id) = by.key_id {
            let content = yasna::construct_der(|writer| {
                writer.write_sequence(|fields| {
                    fields.next().write_tagged_implicit(Tag::context(0), |id| id.write_bytes(key_id));
                });
            });
            add(AUTHORITY_KEY_ID, false, &content);
        }
        if let Some(names) = issue.alternative_names {
            add(ALTERNATIVE_NAMES, is_unnamed, names);
        }
    });
}
