//! The cluster's own signers: what a CertificateSigningRequest may ask of each, and the certificate that it gets.
//!
//! Rules, names and times follow `pkg/apis/certificates` and `pkg/controller/certificates/signer` of v1.36. Of what a
//! request asks for, subject, key and alternative names are taken over as they are; what the certificate may be used for
//! comes from `spec.usages`, and it is no authority.

use std::{sync::Arc, time::Duration};

use hawser_apiserver::kinds::certificates::{parse, pem};
use hawser_controllers::Signer;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension, X509Extension},
};

use crate::{issue::Issue, pki::Authority};

/// Certificates are good for so long where nobody asks for less (`--cluster-signing-duration`).
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// And from so long ago: clocks differ.
const BACKDATED: Duration = Duration::from_secs(300);

const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// What a signer of `kubernetes.io` signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For users and programs: any subject.
    Client,
    /// For kubelets as clients.
    KubeletClient,
    /// For kubelets as servers.
    KubeletServing,
}

impl Kind {
    fn named(signer_name: &str) -> Option<Self> {
        match signer_name.strip_prefix("kubernetes.io/")? {
            "kube-apiserver-client" => Some(Self::Client),
            "kube-apiserver-client-kubelet" => Some(Self::KubeletClient),
            "kubelet-serving" => Some(Self::KubeletServing),
            _ => None,
        }
    }

    fn purpose(self) -> &'static str {
        if self == Self::KubeletServing { "server auth" } else { "client auth" }
    }
}

/// Signs with the cluster's authority.
#[derive(Debug)]
pub(crate) struct ClusterSigner(pub(crate) Arc<Authority>);

impl Signer for ClusterSigner {
    fn serves(&self, signer_name: &str) -> bool {
        Kind::named(signer_name).is_some()
    }

    fn node_client(&self, request: &CertificateSigningRequestSpec) -> Option<String> {
        let kind = Kind::named(&request.signer_name).filter(|kind| *kind == Kind::KubeletClient)?;
        let pem = pem(&request.request.0).ok()?;
        let asked = parse(&pem).ok()?;
        check(kind, &asked, &usages(request)).ok()?;
        let name = asked.certification_request_info.subject.iter_common_name().next()?;
        name.as_str().ok().map(str::to_owned)
    }

    fn sign(&self, request: &CertificateSigningRequestSpec) -> Result<String, String> {
        let kind = Kind::named(&request.signer_name).ok_or("the signer is not one of this cluster")?;
        let pem = pem(&request.request.0)?;
        let asked = parse(&pem)?;
        let usages = usages(request);
        check(kind, &asked, &usages)?;
        let wanted = request.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let now = Timestamp::now();
        let info = &asked.certification_request_info;
        let issue = Issue {
            subject: info.subject.as_raw(),
            public_key: info.subject_pki.raw,
            alternative_names: names_extension(&asked).map(|extension| extension.value),
            not_before: now - BACKDATED,
            not_after: now + wanted.map_or(LONGEST, Duration::from_secs).min(LONGEST),
            usages: &usages,
        };
        self.0.sign(&issue).map_err(|error| format!("{error:#}"))
    }
}

fn usages(request: &CertificateSigningRequestSpec) -> Vec<&str> {
    request.usages.iter().flatten().map(String::as_str).collect()
}

fn extensions<'a>(asked: &'a X509CertificationRequest<'_>) -> impl Iterator<Item = &'a X509Extension<'a>> {
    let attributes = asked.certification_request_info.iter_attributes();
    attributes.flat_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(request) => request.extensions.as_slice(),
        _ => &[],
    })
}

fn names_extension<'a>(asked: &'a X509CertificationRequest<'_>) -> Option<&'a X509Extension<'a>> {
    extensions(asked).find(|it| matches!(it.parsed_extension(), ParsedExtension::SubjectAlternativeName(_)))
}

fn alternative_names<'a>(asked: &'a X509CertificationRequest<'_>) -> &'a [GeneralName<'a>] {
    match names_extension(asked).map(X509Extension::parsed_extension) {
        Some(ParsedExtension::SubjectAlternativeName(names)) => &names.general_names,
        _ => &[],
    }
}

fn check(kind: Kind, asked: &X509CertificationRequest<'_>, usages: &[&str]) -> Result<(), String> {
    if kind != Kind::Client {
        check_node(asked)?;
        let names = alternative_names(asked);
        let is_allowed = |name: &&GeneralName<'_>| {
            kind == Kind::KubeletServing
                && matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
        };
        if let Some(name) = names.iter().find(|name| !is_allowed(name)) {
            return Err(format!("{} subjectAltNames are not allowed", name_kind(name)));
        }
        if kind == Kind::KubeletServing && names.is_empty() {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
    }
    let allowed = ["digital signature", "key encipherment", kind.purpose()];
    let signs = kind == Kind::Client || usages.contains(&"digital signature");
    if usages.contains(&kind.purpose()) && signs && usages.iter().all(|usage| allowed.contains(usage)) {
        Ok(())
    } else {
        Err(format!("usages did not match expected [{}]", allowed.join(", ")))
    }
}

/// A kubelet's subject: one organization, and a name of nodes.
fn check_node(asked: &X509CertificationRequest<'_>) -> Result<(), String> {
    let subject = &asked.certification_request_info.subject;
    let organizations: Vec<_> = subject.iter_organization().map(|name| name.as_str().ok()).collect();
    if organizations != [Some(NODES)] {
        return Err(format!("subject organization is not {NODES}"));
    }
    let names: Vec<_> = subject.iter_common_name().filter_map(|name| name.as_str().ok()).collect();
    match names.as_slice() {
        [name] if name.len() > NODE_PREFIX.len() && name.starts_with(NODE_PREFIX) => Ok(()),
        _ => Err(format!("subject common name does not begin with {NODE_PREFIX}")),
    }
}

fn name_kind(name: &GeneralName<'_>) -> &'static str {
    match name {
        GeneralName::DNSName(_) => "DNS",
        GeneralName::IPAddress(_) => "IP",
        GeneralName::RFC822Name(_) => "Email",
        GeneralName::URI(_) => "URI",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SanType};
    use tempfile::TempDir;
    use x509_parser::{
        pem::Pem,
        prelude::{FromDer, X509Certificate},
    };

    use super::*;

    #[derive(Clone)]
    struct Asked {
        signer: &'static str,
        subject: Vec<(DnType, &'static str)>,
        names: &'static [&'static str],
        usages: &'static [&'static str],
    }

    const CLIENT: &[&str] = &["digital signature", "client auth"];
    const SERVER: &[&str] = &["digital signature", "key encipherment", "server auth"];

    fn node() -> Vec<(DnType, &'static str)> {
        vec![(DnType::OrganizationName, NODES), (DnType::CommonName, "system:node:one")]
    }

    fn spec(asked: &Asked, seconds: Option<i32>) -> CertificateSigningRequestSpec {
        let (mail, others): (Vec<&str>, Vec<&str>) = asked.names.iter().partition(|name| name.contains('@'));
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(others).expect("names");
        let mail = mail.into_iter().map(|name| SanType::Rfc822Name(name.try_into().expect("ASCII")));
        params.subject_alt_names.extend(mail);
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in &asked.subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().expect("a key");
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: format!("kubernetes.io/{}", asked.signer),
            usages: Some(asked.usages.iter().map(ToString::to_string).collect()),
            expiration_seconds: seconds,
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn signer() -> (TempDir, ClusterSigner) {
        let directory = TempDir::new().expect("a directory");
        let authority = Authority::open_or_create(directory.path()).expect("an authority");
        (directory, ClusterSigner(Arc::new(authority)))
    }

    #[track_caller]
    fn refused(asked: &Asked, why: &str) {
        assert_eq!(signer().1.sign(&spec(asked, None)).err().as_deref(), Some(why));
    }

    fn kubelet() -> Asked {
        Asked { signer: "kube-apiserver-client-kubelet", subject: node(), names: &[], usages: CLIENT }
    }

    fn serving() -> Asked {
        Asked { signer: "kubelet-serving", subject: node(), names: &["one", "192.0.2.1"], usages: SERVER }
    }

    /// A user of two groups: an attribute that is there twice.
    fn user() -> Asked {
        let again = DnType::CustomDnType(vec![2, 5, 4, 10]);
        let subject =
            vec![(DnType::OrganizationName, "dev"), (again, "ops"), (DnType::CommonName, "somebody")];
        Asked { signer: "kube-apiserver-client", subject, names: &[], usages: &["client auth"] }
    }

    #[test]
    fn requests_of_kubelets_are_known_by_their_signer_and_its_rules() {
        let (_directory, signer) = signer();
        let node_client = |asked: &Asked| signer.node_client(&spec(asked, None));
        assert_eq!(node_client(&kubelet()).as_deref(), Some("system:node:one"));
        assert_eq!(node_client(&Asked { names: &["one"], ..kubelet() }), None);
        assert_eq!(node_client(&Asked { usages: SERVER, ..kubelet() }), None);
        assert_eq!(node_client(&Asked { signer: "kubelet-serving", ..kubelet() }), None);
        assert_eq!(node_client(&user()), None);
    }

    #[test]
    fn each_signer_keeps_its_rules() {
        let subject = user().subject;
        let name = "subject common name does not begin with system:node:";
        let client_usages =
            "usages did not match expected [digital signature, key encipherment, client auth]";
        refused(&Asked { usages: SERVER, ..user() }, client_usages);
        refused(&Asked { usages: &["client auth"], ..kubelet() }, client_usages);
        refused(&Asked { names: &["one"], ..kubelet() }, "DNS subjectAltNames are not allowed");
        refused(&Asked { names: &[], ..serving() }, "DNS or IP subjectAltName is required");
        refused(&Asked { names: &["a@example.com"], ..serving() }, "Email subjectAltNames are not allowed");
        refused(&Asked { subject, ..serving() }, "subject organization is not system:nodes");
        let subject = vec![(DnType::OrganizationName, NODES), (DnType::CommonName, "one")];
        refused(&Asked { subject, ..kubelet() }, name);
        assert!(!signer().1.serves("example.com/signer"));
    }

    #[test]
    fn certificates_are_as_asked_and_of_the_authority() {
        let (_directory, signer) = signer();
        let authority = Pem::iter_from_buffer(signer.0.certificate().as_bytes()).next().unwrap().unwrap();
        let authority = authority.parse_x509().unwrap();
        for (asked, groups) in [(user(), &["dev", "ops"][..]), (kubelet(), &[NODES]), (serving(), &[NODES])] {
            let pem = signer.sign(&spec(&asked, Some(3600))).expect("it is signed");
            let pem = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
            let (rest, certificate) = X509Certificate::from_der(&pem.contents).unwrap();
            assert!(rest.is_empty());
            certificate.verify_signature(Some(authority.public_key())).expect("the authority's signature");
            assert_eq!(certificate.issuer(), authority.subject());
            let organizations: Vec<_> =
                certificate.subject().iter_organization().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(organizations, groups);
            let validity = certificate.validity();
            assert!(validity.is_valid());
            assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 3600 + 300);
            assert!(!certificate.is_ca());
            let purposes = certificate.extended_key_usage().unwrap().expect("purposes").value;
            assert_eq!(purposes.client_auth, asked.usages.contains(&"client auth"));
            assert_eq!(purposes.server_auth, asked.usages.contains(&"server auth"));
            let names = certificate.subject_alternative_name().unwrap();
            assert_eq!(names.map_or(0, |names| names.value.general_names.len()), asked.names.len());
            let usages = certificate.key_usage().unwrap().map(|usage| usage.value.digital_signature());
            assert_eq!(usages.unwrap_or(false), asked.usages.contains(&"digital signature"));
        }
    }

    #[test]
    fn strange_requests_are_refused() {
        let (_directory, signer) = signer();
        for bytes in
            [&b""[..], b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
        {
            let mut spec = spec(&user(), None);
            spec.request = ByteString(bytes.to_vec());
            assert!(signer.sign(&spec).is_err());
        }
        // Extensions that nobody knows are not taken over.
        let mut params = CertificateParams::default();
        params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let spec =
            CertificateSigningRequestSpec { request: ByteString(pem.into_bytes()), ..spec(&user(), None) };
        let pem = signer.sign(&spec).expect("it is signed");
        let pem = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
        assert!(!pem.parse_x509().unwrap().extensions().iter().any(|it| it.oid.to_id_string() == "1.2.3.4"));
    }
}
