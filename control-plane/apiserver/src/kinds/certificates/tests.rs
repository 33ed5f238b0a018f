use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_api::kinds::Kind;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

use super::*;
use crate::kinds::{
    self,
    tests::{created, refused, with},
};

const NAME: &str = "certificates.k8s.io/certificatesigningrequests";

fn kind() -> &'static Kind {
    Kind::by_plural("certificates.k8s.io", "certificatesigningrequests").unwrap()
}

fn params(organization: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "ann");
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params
}

fn pem() -> String {
    let key = KeyPair::generate().unwrap();
    params("team").serialize_request(&key).unwrap().pem().unwrap()
}

fn issued() -> String {
    let key = KeyPair::generate().unwrap();
    STANDARD.encode(params("team").self_signed(&key).unwrap().pem())
}

fn request() -> Value {
    json!({
        "kind": "CertificateSigningRequest", "apiVersion": "certificates.k8s.io/v1", "metadata": { "name": "ann" },
        "spec": {
            "request": STANDARD.encode(pem()), "signerName": "example.com/web", "usages": ["client auth"],
            "username": "somebody else", "groups": ["system:masters"],
        },
    })
}

fn decided(kinds: &[&str]) -> Value {
    let all: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind, "status": "True" })).collect();
    with(request(), "/status/conditions", all.into())
}

/// What the errors say, without the field's value.
fn texts(errors: Vec<FieldError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn what_a_client_says_of_the_requester_is_dropped() {
    let made = created(NAME, request());
    assert_eq!(made["spec"].get("username"), None);
    assert_eq!(made["spec"].get("groups"), None);
    refused(NAME, request(), &[]);
    assert_eq!(organizations(&request()), Ok(vec!["team".to_owned()]));
}

#[test]
fn bad_requests_are_told_where() {
    let signer = |name: &str| with(request(), "/spec/signerName", json!(name));
    let rows: &[(Value, &[&str])] = &[
        (
            with(request(), "/spec/usages", json!([])),
            &["spec.usages: Required value: usages must be provided"],
        ),
        (
            with(request(), "/spec/usages", json!(["any", "any"])),
            &["spec.usages[1]: Duplicate value: \"any\""],
        ),
        (
            with(request(), "/spec/expirationSeconds", json!(599)),
            &[
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
            ],
        ),
        (signer(""), &["spec.signerName: Required value: signerName must be provided"]),
        (
            signer("web"),
            &[
                "spec.signerName: Invalid value: \"web\": must be a fully qualified domain and path of the form \
                 'example.com/signer-name'",
            ],
        ),
        (
            signer("example/web"),
            &[
                "spec.signerName: Invalid value: \"example\": should be a domain with at least two segments separated by dots",
            ],
        ),
        (
            signer("kubernetes.io/legacy-unknown"),
            &[
                "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via \
                 this API version",
            ],
        ),
        (
            with(request(), "/spec/request", json!("AQ==")),
            &["spec.request: Invalid value: \"AQ==\": PEM block type must be CERTIFICATE REQUEST"],
        ),
    ];
    for (object, expected) in rows {
        refused(NAME, object.clone(), expected);
    }
    let unknown = texts(validate(&with(request(), "/spec/usages", json!(["everything"]))));
    assert!(unknown[0].starts_with("spec.usages[0]: Unsupported value: \"everything\""), "{unknown:?}");
}

#[test]
fn a_request_with_a_changed_byte_is_refused() {
    let der = x509_parser::pem::parse_x509_pem(pem().as_bytes()).unwrap().1.contents;
    let mut changed = der.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (bytes, good) in [(der, true), (changed, false), (b"0".to_vec(), false)] {
        let body = STANDARD.encode(bytes);
        let text =
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
        assert_eq!(check_request(&STANDARD.encode(text)).is_ok(), good);
    }
}

/// `openssl ecparam -name secp521r1`, `openssl req -subj "/O=team/CN=ann" -sha512`.
pub(in crate::kinds) const P521_REQUEST: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIBYDCBwgIBADAdMQ0wCwYDVQQKDAR0ZWFtMQwwCgYDVQQDDANhbm4wgZswEAYH
KoZIzj0CAQYFK4EEACMDgYYABAC/YccriFQrxe8itUYBths5FB2rHlQ4DeM8D5Ed
ujWfXQeiKv9ls5Y0dhpOGl+KgACshlYkCgXAizN+Ujjjfye41gCRd8oYujN5OgbY
wnEV+d5EMLnXXNjH9UwcRxVpNr2EzN+tw7st604xlXunyNU+/d7STVag1KOYYX7c
SgBo9ihdEaAAMAoGCCqGSM49BAMEA4GMADCBiAJCAaERSAdcdE4cAshlVEl7Dyju
ELM68v7yyUEEc1teTIoIIrkGPiAaUT6vVQJTmC6HSf0ButeniO7+xwPmKFtLdv9z
AkIBG6gLYy1diy9uCh5GVveJQaxQ7PWtNaiKy5BUQkO90v0v7ZLKfiaxVSeF7rcb
M5VeyTA5b4HGUrcdjkwlwWeqxso=
-----END CERTIFICATE REQUEST-----
";

#[test]
fn a_key_that_the_library_does_not_know_is_told() {
    assert_eq!(
        check_request(&STANDARD.encode(P521_REQUEST)).unwrap_err(),
        "x509: keys on the curve P-521 are not supported: ring, which checks signatures, lacks it"
    );
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let pem = params("team").serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(check_request(&STANDARD.encode(pem)), Ok(()), "{algorithm:?}");
    }
}

#[test]
fn a_spec_stands_whatever_an_update_says() {
    let old = created(NAME, request());
    let mut new = with(old.clone(), "/spec/signerName", json!("example.com/other"));
    kinds::prepare_update(kind(), &mut new, &old);
    assert_eq!(new, old);
}

#[test]
fn approval_writes_conditions_and_the_authors_metadata() {
    let old = with(request(), "/metadata/uid", json!("1"));
    let mut new = decided(&["Approved"]);
    new["spec"]["signerName"] = json!("example.com/other");
    new["status"]["certificate"] = json!("AQ==");
    new["metadata"]["labels"] = json!({ "team": "web" });
    new["metadata"]["finalizers"] = json!(["example.com/keep"]);
    new["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "2" }]);
    let sent = new["metadata"].clone();
    kinds::prepare_approval(&mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(new["status"], decided(&["Approved"])["status"]);
    assert_eq!(new["metadata"], with(sent, "/uid", json!("1")));
    assert_eq!(texts(validate_approval(kind(), &new, &old)), [""; 0]);
}

#[test]
fn decisions_exclude_each_other_and_stay() {
    let approve = |new: &[&str], old: &[&str]| texts(validate_approval(kind(), &decided(new), &decided(old)));
    assert_eq!(
        approve(&["Approved", "Denied"], &["Approved"]),
        [
            "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
        ]
    );
    assert_eq!(
        approve(&[], &["Denied"]),
        ["status.conditions: Forbidden: updates may not remove a condition of type \"Denied\""]
    );
    let doubtful = with(decided(&["Approved"]), "/status/conditions/0/status", json!("False"));
    assert_eq!(
        texts(conditions(&doubtful)),
        ["status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\""]
    );
}

#[test]
fn status_takes_a_certificate_once_and_no_decision() {
    let status = |new: &Value, old: &Value| texts(kinds::validate_status(kind(), new, old));
    assert_eq!(
        status(&decided(&["Approved"]), &decided(&[])),
        ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
    );
    let changed = with(decided(&["Approved"]), "/status/conditions/0/message", json!("because"));
    assert_eq!(
        status(&changed, &decided(&["Approved"])),
        ["status.conditions: Forbidden: updates may not modify a condition of type \"Approved\""]
    );
    assert_eq!(status(&decided(&["Approved", "Failed"]), &decided(&["Approved"])), [""; 0]);
    let (one, two) = (issued(), issued());
    let certified =
        |certificate: &str| with(decided(&["Approved"]), "/status/certificate", json!(certificate));
    assert_eq!(status(&certified(&one), &decided(&["Approved"])), [""; 0]);
    assert_eq!(
        status(&certified(&two), &certified(&one)),
        ["status.certificate: Forbidden: updates may not modify existing certificate content"]
    );
    assert_eq!(
        status(&certified(&STANDARD.encode(pem())), &decided(&["Approved"])),
        [
            "status.certificate: Invalid value: \"<certificate data>\": only CERTIFICATE PEM blocks are allowed, found \
             \"CERTIFICATE REQUEST\""
        ]
    );
}

#[test]
fn columns_tell_the_state() {
    for (object, expected) in [
        (decided(&[]), "Pending"),
        (decided(&["Approved"]), "Approved"),
        (decided(&["Denied"]), "Denied"),
        (decided(&["Approved", "Failed"]), "Approved,Failed"),
        (with(decided(&["Approved"]), "/status/certificate", json!("AQ==")), "Approved,Issued"),
    ] {
        assert_eq!(state(&object), expected);
    }
}
