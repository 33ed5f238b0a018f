//! The cluster's certificates: an authority made at first start, and what it issues.
//!
//! The authority and the key of service accounts are made once and kept. Certificates of the server itself are issued anew
//! at each start, so that they fit the addresses it has now. All keys are ECDSA P-256.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Zoned;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SigningKey, date_time_ymd,
};
use x509_parser::{extensions::ParsedExtension, pem::Pem};

use crate::{
    files::{self, Access},
    issue::{self, By, Issue},
};

/// Years that the authority is good for, and what it issues. There is no rotation yet that would allow less.
const YEARS: i16 = 10;

/// A certificate with its key, in PEM.
pub(crate) struct Identity {
    pub certificate: String,
    pub key: String,
}

/// What a certificate is for.
pub(crate) enum Purpose {
    Client,
    Server { names: Vec<String>, addresses: Vec<IpAddr> },
}

/// The authority of the cluster.
#[derive(Debug)]
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// The issuer's.
    key: KeyPair,
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("pki")
}

fn validity(params: &mut CertificateParams) {
    let now = Zoned::now();
    // A day back: clocks differ. The 28th is a day of every month.
    let (year, month) = (i32::from(now.year()), now.month() as u8);
    params.not_before = date_time_ymd(year, month, 1);
    params.not_after = date_time_ymd(year + i32::from(YEARS), month, 28);
}

impl Authority {
    /// Reads the authority of a cluster, or makes it.
    pub(crate) fn open_or_create(data_dir: &Path) -> anyhow::Result<Self> {
        let pki = directory(data_dir);
        files::private_directory(&pki)?;
        if !pki.join("ca.key").exists() {
            let key = KeyPair::generate().context("cannot make a key")?;
            let mut params = CertificateParams::default();
            validity(&mut params);
            params.distinguished_name = name("hawser-ca", &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::KeyCertSign,
                KeyUsagePurpose::CrlSign,
                KeyUsagePurpose::DigitalSignature,
            ];
            let certificate = params.self_signed(&key).context("cannot make the authority")?;
            files::write(&pki.join("ca.crt"), &certificate.pem(), Access::Everybody)?;
            // The key last: its presence says that both are there.
            files::write(&pki.join("ca.key"), &key.serialize_pem(), Access::Owner)?;
        }
        Self::open(data_dir)
    }

    /// Reads the authority of a cluster that has been started.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let pki = directory(data_dir);
        let certificate = files::read(&pki.join("ca.crt")).with_context(|| {
            format!("{} holds no cluster; start the control plane first", data_dir.display())
        })?;
        let key_pem = files::read(&pki.join("ca.key"))?;
        let key = || {
            KeyPair::from_pem(&key_pem)
                .with_context(|| format!("{} is not a key", pki.join("ca.key").display()))
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate, key()?)
            .with_context(|| format!("{} is not a certificate", pki.join("ca.crt").display()))?;
        Ok(Self { certificate, issuer, key: key()? })
    }

    /// The authority's certificate, in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Issues a certificate with a new key.
    pub(crate) fn issue(
        &self,
        common_name: &str,
        organizations: &[&str],
        purpose: Purpose,
    ) -> anyhow::Result<Identity> {
        let mut params = CertificateParams::default();
        validity(&mut params);
        params.distinguished_name = name(common_name, organizations);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Server { names, addresses } => {
                for name in names {
                    let name =
                        name.as_str().try_into().with_context(|| format!("{name:?} is not a DNS name"))?;
                    params.subject_alt_names.push(SanType::DnsName(name));
                }
                params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
                vec![ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot issue a certificate for {common_name}"))?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Issues a certificate of what somebody else wrote, in PEM.
    pub(crate) fn sign(&self, issue: &Issue<'_>) -> anyhow::Result<String> {
        let pem = Pem::iter_from_buffer(self.certificate.as_bytes()).next();
        let pem = pem.context("the authority's certificate is empty")??;
        let certificate = pem.parse_x509().context("the authority's certificate")?;
        let key_id =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
                _ => None,
            });
        let by = By { name: certificate.subject().as_raw(), key_id };
        let to_be_signed = issue::to_be_signed(issue, &by);
        let signature = self.key.sign(&to_be_signed).context("cannot sign")?;
        Ok(pem_of(&issue::certificate(&to_be_signed, &signature)))
    }
}

/// A certificate in PEM (RFC 7468).
fn pem_of(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn name(common_name: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// The key that signs service account tokens, in PEM; made at first start.
pub(crate) fn service_account_key(data_dir: &Path) -> anyhow::Result<String> {
    let path = directory(data_dir).join("sa.key");
    if !path.exists() {
        let key = KeyPair::generate().context("cannot make a key")?;
        files::write(&path, &key.serialize_pem(), Access::Owner)?;
    }
    files::read(&path)
}

impl Identity {
    /// Writes `<stem>.crt` and `<stem>.key`.
    pub(crate) fn write(&self, directory: &Path, stem: &str) -> anyhow::Result<()> {
        files::write(&directory.join(format!("{stem}.crt")), &self.certificate, Access::Everybody)?;
        files::write(&directory.join(format!("{stem}.key")), &self.key, Access::Owner)
    }
}
