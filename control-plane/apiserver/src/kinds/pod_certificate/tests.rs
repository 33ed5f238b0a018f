use std::time::Duration;

use hawser_api::kinds::Kind;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};
use serde_json::json;

use super::*;
use crate::kinds::{
    tests::{refused, update_refused, with},
    validate_status,
};

const NAME: &str = "certificates.k8s.io/podcertificaterequests";
/// Seconds of the epoch at which the tests' certificates begin.
const BEGINS: i64 = 1_780_272_000;

fn key_of_kind(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
}

fn stub(key: &KeyPair) -> Vec<u8> {
    params().serialize_request(key).unwrap().der().to_vec()
}

fn spki(key: &KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

fn request_with(proof: Value) -> Value {
    let mut spec = json!({
        "signerName": "example.com/web", "podName": "web", "podUID": "uid-1",
        "serviceAccountName": "robot", "serviceAccountUID": "2", "nodeName": "n1", "nodeUID": "3",
    });
    spec.as_object_mut().unwrap().extend(proof.as_object().unwrap().clone());
    json!({
        "kind": "PodCertificateRequest", "apiVersion": "certificates.k8s.io/v1beta1",
        "metadata": { "name": "req-1", "namespace": "a" }, "spec": spec,
    })
}

fn by_stub(der: &[u8]) -> Value {
    request_with(json!({ "stubPKCS10Request": STANDARD.encode(der) }))
}

fn by_pair(key: &[u8], proof: &[u8]) -> Value {
    request_with(
        json!({ "pkixPublicKey": STANDARD.encode(key), "proofOfPossession": STANDARD.encode(proof) }),
    )
}

fn der_of(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

#[test]
fn a_key_is_proven_by_a_request_that_it_has_signed() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = key_of_kind(algorithm);
        refused(NAME, by_stub(&stub(&key)), &[]);
        let mut changed = stub(&key);
        *changed.last_mut().unwrap() ^= 1;
        let request = by_stub(&changed);
        let errors: Vec<String> = validate(&request).iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|error| error.contains("x509: the signature is not valid")), "{errors:?}");
    }
    refused(NAME, by_stub(&der_of(RSA_3072)), &[]);
    for (pem, why) in [
        (RSA_2048, "RSA keys must have modulus size 3072 or 4096"),
        (crate::kinds::certificates::tests::P521_REQUEST, NO_P521),
    ] {
        refused(NAME, by_stub(&der_of(pem)), &[&format!("spec.stubPKCS10Request: Invalid value: {why}")]);
    }
}

#[test]
fn a_key_is_proven_by_its_signature_over_the_pods_uid() {
    let wrong = "spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature";
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let (key, other) = (key_of_kind(algorithm), key_of_kind(algorithm));
        let proof = |key: &KeyPair, text: &str| key.sign(text.as_bytes()).unwrap();
        refused(NAME, by_pair(&spki(&key), &proof(&key, "uid-1")), &[]);
        refused(NAME, by_pair(&spki(&key), &proof(&key, "uid-2")), &[wrong]);
        refused(NAME, by_pair(&spki(&key), &proof(&other, "uid-1")), &[wrong]);
    }
    let [key, proof] = [RSA_KEY, RSA_PROOF].map(|text| STANDARD.decode(text).unwrap());
    refused(NAME, by_pair(&key, &proof), &[]);
    let no_key = "spec.pkixPublicKey: Invalid value: must be a valid PKIX-serialized public key";
    refused(NAME, by_pair(b"1", &proof), &[no_key]);
    refused(NAME, by_pair(&key, b"1"), &[wrong]);
}

#[test]
fn there_is_one_proof_of_a_bounded_size() {
    let key = key_of_kind(&rcgen::PKCS_ED25519);
    let one = "spec: Invalid value: exactly one of stubPKCS10Request, and pkixPublicKey with proofOfPossession, must be set";
    refused(NAME, request_with(json!({})), &[one]);
    refused(NAME, with(by_pair(&spki(&key), b"1"), "/spec/stubPKCS10Request", json!("AQ==")), &[one]);
    for (object, field) in [
        (by_stub(&vec![0; MOST_BYTES + 1]), "stubPKCS10Request"),
        (by_pair(&vec![0; MOST_BYTES + 1], b"1"), "pkixPublicKey"),
        (by_pair(&spki(&key), &vec![0; MOST_BYTES + 1]), "proofOfPossession"),
    ] {
        refused(NAME, object, &[&format!("spec.{field}: Too long: may not be more than 10240 bytes")]);
    }
}

#[test]
fn the_clusters_own_signers_give_a_day() {
    let key = key_of_kind(&rcgen::PKCS_ED25519);
    let asked = |signer: &str, seconds: i64| {
        let request = with(by_stub(&stub(&key)), "/spec/signerName", json!(signer));
        with(request, "/spec/maxExpirationSeconds", json!(seconds))
    };
    refused(NAME, asked("example.com/web", 7_862_400), &[]);
    refused(NAME, asked("kubernetes.io/kube-apiserver-client-pod", 86_400), &[]);
    for signer in ["kubernetes.io/kube-apiserver-client-pod", "sub.kubernetes.io/web"] {
        let wrong = "spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]";
        refused(NAME, asked(signer, 86_401), &[wrong]);
    }
    refused(NAME, asked("notkubernetes.io/web", 86_401), &[]);
}

#[test]
fn what_is_asked_for_stands() {
    let key = key_of_kind(&rcgen::PKCS_ED25519);
    let request = by_stub(&stub(&key));
    let labelled = with(request.clone(), "/metadata/labels", json!({ "a": "b" }));
    update_refused(NAME, request.clone(), labelled, &[]);
    let other = with(request.clone(), "/spec/podName", json!("other"));
    update_refused(NAME, request, other, &["spec: Invalid value"]);
}

/// A request for a key, and answers to it.
struct Asked {
    key: KeyPair,
    request: Value,
    /// In PEM.
    intermediate: String,
}

impl Asked {
    fn new() -> Self {
        let key = key_of_kind(&rcgen::PKCS_ECDSA_P256_SHA256);
        let request = with(by_stub(&stub(&key)), "/spec/maxExpirationSeconds", json!(7200));
        let intermediate = params().self_signed(&key).unwrap().pem();
        Self { key, request, intermediate }
    }

    fn chain(&self, key: &KeyPair, seconds: u64, names: &[&str]) -> String {
        let mut params = params();
        params.not_before = rcgen::date_time_ymd(2026, 6, 1);
        params.not_after = params.not_before + Duration::from_secs(seconds);
        params.subject_alt_names =
            names.iter().map(|name| SanType::DnsName((*name).try_into().unwrap())).collect();
        let leaf = params.self_signed(key).unwrap().pem();
        leaf + &self.intermediate
    }

    fn answered(&self, kind: &str) -> Value {
        let condition = json!({ "type": kind, "status": "True", "reason": "Because",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        with(self.request.clone(), "/status", json!({ "conditions": [condition] }))
    }

    /// Issued for so many seconds, to be renewed so many after its beginning.
    fn issued(&self, chain: &str, seconds: i64, refresh: i64) -> Value {
        let mut issued = self.answered("Issued");
        let at = |second| json!(Timestamp::from_second(BEGINS + second).unwrap().to_string());
        issued["status"]["certificateChain"] = json!(chain);
        issued["status"]["notBefore"] = at(0);
        issued["status"]["notAfter"] = at(seconds);
        issued["status"]["beginRefreshAt"] = at(refresh);
        issued
    }

    #[track_caller]
    fn check(&self, new: &Value, old: &Value, expected: &[&str]) {
        let kind = Kind::by_plural("certificates.k8s.io", "podcertificaterequests").unwrap();
        let errors: Vec<String> = validate_status(kind, new, old).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for (error, start) in errors.iter().zip(expected) {
            assert!(error.contains(start), "{error:?} is not about {start:?}");
        }
    }
}

#[test]
fn a_certificate_is_for_the_key_and_lives_as_it_is_said() {
    let asked = Asked::new();
    let chain = asked.chain(&asked.key, 7200, &["web.example.com"]);
    let good = asked.issued(&chain, 7200, 3600);
    asked.check(&good, &asked.request, &[]);
    let other = key_of_kind(&rcgen::PKCS_ECDSA_P256_SHA256);
    let without = |field: &str| {
        let mut new = good.clone();
        new["status"].as_object_mut().unwrap().remove(field);
        new
    };
    let rows = [
        ("no chain", asked.issued("", 7200, 3600), "must contain at least one certificate"),
        ("no certificate", asked.issued("text", 7200, 3600), "must contain at least one certificate"),
        (
            "another block",
            asked.issued(&chain.replace("CERTIFICATE", "THING"), 7200, 3600),
            "must consist entirely of CERTIFICATE PEM blocks",
        ),
        (
            "another key",
            asked.issued(&asked.chain(&other, 7200, &[]), 7200, 3600),
            "leaf certificate was not issued to the requested public key",
        ),
        ("another end", asked.issued(&chain, 7201, 3600), "must be set to the NotAfter time"),
        ("too short", asked.issued(&asked.chain(&asked.key, 3599, &[]), 3599, 1000), "must be >= 1 hour"),
        ("too long", asked.issued(&asked.chain(&asked.key, 7201, &[]), 7201, 3600), "(7200)"),
        ("renewed too soon", asked.issued(&chain, 7200, 599), "at least 10 minutes after status.notBefore"),
        ("renewed too late", asked.issued(&chain, 7200, 6601), "at least 10 minutes before status.notAfter"),
        ("no time of renewal", without("beginRefreshAt"), "status.beginRefreshAt: Required value"),
        ("no beginning", without("notBefore"), "status.notBefore: Required value"),
        (
            "an odd name",
            asked.issued(&asked.chain(&asked.key, 7200, &["a..b"]), 7200, 3600),
            "DNSName should not contain '..'",
        ),
        (
            "a broken intermediate",
            asked.issued(&chain.replace(&asked.intermediate, BROKEN), 7200, 3600),
            "intermediate certificate does not parse",
        ),
        ("a long chain", asked.issued(&chain.repeat(200), 7200, 3600), "Too long"),
    ];
    for (name, new, expected) in rows {
        println!("{name}");
        asked.check(&new, &asked.request, &[expected]);
    }
}

#[test]
fn there_is_one_answer_and_it_is_final() {
    let asked = Asked::new();
    let chain = asked.chain(&asked.key, 7200, &[]);
    let issued = asked.issued(&chain, 7200, 3600);
    for answer in ["Denied", "Failed"] {
        asked.check(&asked.answered(answer), &asked.request, &[]);
        let with_chain = with(asked.answered(answer), "/status/certificateChain", json!(chain));
        asked.check(&with_chain, &asked.request, &["non-condition status fields must be empty"]);
        asked.check(&issued, &asked.answered(answer), &["immutable after"]);
        asked.check(&asked.answered(answer), &issued, &["immutable after"]);
        asked.check(&asked.answered(answer), &asked.answered(answer), &[]);
    }
    let renewed = with(issued.clone(), "/status/beginRefreshAt", json!("2030-01-01T00:00:00Z"));
    asked.check(&renewed, &issued, &["immutable after"]);
    let unsaid = with(asked.request.clone(), "/status", json!({ "certificateChain": chain }));
    asked.check(&unsaid, &asked.request, &["status is immutable unless transitioning"]);
    asked.check(&asked.answered("Odd"), &asked.request, &["conditions[0].type: Unsupported value"]);
    for (pointer, value, expected) in [
        ("status", json!("False"), "conditions[0].status: Unsupported value"),
        ("reason", json!(""), "conditions[0].reason: Required value"),
        ("reason", json!("no good"), "conditions[0].reason: Invalid value"),
        ("lastTransitionTime", Value::Null, "conditions[0].lastTransitionTime: Required value"),
        ("message", json!("a".repeat(32_769)), "conditions[0].message: Too long"),
    ] {
        let pointer = format!("/status/conditions/0/{pointer}");
        asked.check(&with(asked.answered("Denied"), &pointer, value), &asked.request, &[expected]);
    }
    let mut both = asked.answered("Denied");
    let second = asked.answered("Failed")["status"]["conditions"][0].clone();
    both["status"]["conditions"].as_array_mut().unwrap().push(second);
    asked.check(&both, &asked.request, &["There may be at most one condition"]);
}

#[test]
fn a_certificate_begins_about_now() {
    let asked = Asked::new();
    let issued = asked.issued("", 7200, 3600);
    let begins = Timestamp::from_second(BEGINS).unwrap();
    for (seconds, good) in [(0, true), (299, true), (-299, true), (300, false), (-301, false)] {
        let now = begins + SignedDuration::from_secs(seconds);
        assert_eq!(check_time(&issued, &asked.request, now).is_none(), good, "{seconds}");
    }
    let later = begins + SignedDuration::from_hours(1);
    assert_eq!(check_time(&issued, &issued, later), None, "it stands");
}

const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

/// `openssl genrsa 2048`, `openssl req -subj /`.
const RSA_2048: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIICRTCCAS0CAQAwADCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBAOUT
KTgfs6v0ee2wy8XDF9ljkHs46Dqj1cF5p70LFmHZ8+woevXb+m0D1Ts8VLjAqVKM
PhCwLnuR/2IuMosIcO7IvSY/eipE7ONz7Wc/+Ccwo0Hwqi0VwTLSvnprkZ8JYTmt
8h5lbI4CEEdLPPS2xHDszeQS7db0MgFOFMdnpTZSIB8XoAlj7t0Pw9gehVnTBcxH
7RAbtV+NrBYKJf1m6qvuheMAICYmDGsR1Xc2mRjvEFEIffcERgzcewml1a40k37w
1+0bgJvXb/VeSE27RmVfBAO5NdZlNzL2gJ1iuukrgbjtDu1IFghWp6404XAEBlwx
yZYKfEDlDXiExXcodOkCAwEAAaAAMA0GCSqGSIb3DQEBCwUAA4IBAQBFxK5SQkHD
jbNca/J5U9fHdNgnBLMCZ34yLXnJr+YE6BSCRQ3Zg9cO+kz5y/rcHCU3gdZGq4IO
s3mPfpH+UPoZB/B/QRQzWIZ8LCOltrPfj6isU25J7fUvoLqbGpbo22WTm11q7DEz
SyZ9ElRpkp4ZSZ9H9WLFJZTF/xgLjzl0h+rAuLSS+ZhFmHiRH/0+J3ZzEyzbuDpy
G243JEQWgC93LoP39G72LTvMo0j3SKNrsRmsQlOu9MSep7c/GgqV/lYVcQUlHaGW
UIekgCrZT0EqYeGC5TqxqCCtQV5xQGY0KHBvbCoYP4efaKuYF4fN8rU6myWo0pFq
JF7NQKkh2ffq
-----END CERTIFICATE REQUEST-----
";

/// `openssl genrsa 3072`, `openssl req -subj /`.
const RSA_3072: &str = "-----BEGIN CERTIFICATE REQUEST-----
MIIDRTCCAa0CAQAwADCCAaIwDQYJKoZIhvcNAQEBBQADggGPADCCAYoCggGBAMYO
QrouBUJjJsuOcDN4i381IEfOehQQJNv5G22HioAK/3tPYC25NYUepHD88uQVFvpz
WrVAdQl9CBvuZMYKshJvBXz1swS2oFwKa4WT0Ld+zfKVjrZD+z9i7M7w34xSZDE2
50aPEPJDtQYIbu6JyMIzpNQEq2kAjLGR2gin6FMH72Z4SgJr+OP7GD0Hvyzca7Xq
Ia4NoutTQ2IVbARK4hBGTN9KyW18rC/TnbSSUwrBv9/oic1boDwjeufXPQb22EJU
Z58gyp59dc5cscCsNF5tKiK/VDvIblQw6gUgEwEjqvC8SaLcrqeFwQMoM1+S8IHH
6HCJ01SkubA4LkSnEZkzPyStnH+I3kiRq7DI5LSq33XQ8PFducs8jMIBeFki5p2Y
fMdVEP5VXAyAtpAoBl8nqyEabGQM2GV0z0wv8lVkAMWD0VgFiafCe0OvYCy7HBzV
8CedoY4Zy+cgDdebAKLI0OcV3/iIT6mxJAjsxwtx0yqO7JY4VCiCDBrp6dsgvwID
AQABoAAwDQYJKoZIhvcNAQELBQADggGBADB4Dw7ak1EB1OHHmZHE9xMrYlVfvEgS
Uv4l+VYgRf01i605rbv/Z1fWgvmapoN0AlGXIWSb65olyeCZtvF66PsShBieEH98
fB32thWgb8OATu9v9T0Q1PB0p60xK2gXl98bbKcHcm70pwNqXqujuOd0fX8HJL/b
SwImhbfq23Cf2lWFXMhu98Mi03zByL650lncYl1fdc4F5qcCWjUpvwuNsFPcaIY8
7Djj7G7wm6dTvXox5we4SilZk3y8drlF8dilFGlodByIrm2KivAdq501lqWCQLef
TWbYOtwR0pewsSVrwBPA42LKE0iuIOAB7c8oJcIwn0UNBUsi5cEo5BLpJy3dA8NT
hoocDfrsFIAEdR9OCw23fOgdkOgVzDRbxokbAqL8KDfYH7i2hqoXSnLh3rCyV1+Q
gT/ZT/DpEcPZZG6Fw31735Z1A73h9nV4iW4bhYUWDOKpyKSKNhVi10Mlf6uWliIq
N7aUnuWN42zZNis1D6w3tkXb1XlAEdqclw==
-----END CERTIFICATE REQUEST-----
";

/// Its key, and that key's signature over `uid-1`: `openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32`.
const RSA_KEY: &str = "\
MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEAxg5Cui4FQmMmy45wM3iLfzUgR856FBAk2/kbbYeKgAr/e09gLbk1hR6k\
cPzy5BUW+nNatUB1CX0IG+5kxgqyEm8FfPWzBLagXAprhZPQt37N8pWOtkP7P2LszvDfjFJkMTbnRo8Q8kO1Bghu7onIwjOk1ASr\
aQCMsZHaCKfoUwfvZnhKAmv44/sYPQe/LNxrteohrg2i61NDYhVsBEriEEZM30rJbXysL9OdtJJTCsG/3+iJzVugPCN659c9BvbY\
QlRnnyDKnn11zlyxwKw0Xm0qIr9UO8huVDDqBSATASOq8LxJotyup4XBAygzX5LwgcfocInTVKS5sDguRKcRmTM/JK2cf4jeSJGr\
sMjktKrfddDw8V25yzyMwgF4WSLmnZh8x1UQ/lVcDIC2kCgGXyerIRpsZAzYZXTPTC/yVWQAxYPRWAWJp8J7Q69gLLscHNXwJ52h\
jhnL5yAN15sAosjQ5xXf+IhPqbEkCOzHC3HTKo7sljhUKIIMGunp2yC/AgMBAAE=";
const RSA_PROOF: &str = "\
jHzlqQVP1yCT0SK+Xn+EsCkio6WeJlaGQaScC5Gys+Kv7lz40V9J7QD8CCO4JSJy4L2AI+mNrKTFtNhmnQ2uJLZxmss3f4V0zuHe\
62yU9tdcOFx7a3zg6VqkxdAlD44eBikKqB1Ae5+m+AG4xGdKQHMTnzvd9Hkx2JQeG6iCEQiTEMwAu92fvhL+HLTHRzi8I6PJhkke\
hro+ni+MIvjqzdcWjtBuZIHl+2K8XoM5uRbsT2dwrD8UEGJAJByVdom/4CT6ZlMkfv1wCRWVTBtcyz/edms3vU/722BqyOkoMKhN\
tGp62HCWYemNaxHijfWZH3VXqhElHTx00KJrTzWqGwzjAuIC9j9A9qIbxUKYJ9n0XfblE5LP1MdPjSwgdQOHX6RCoyxVL9CtCvH8\
ZTIBzmpHNiTYBoZwbiMSUtcQlOMi0fULwSTZO31tpJhquLcPnboLAvtiLPJWaBMQ0OZO00pb1WLPJgTcTp//4NaQ+I1pLPLtgH9U\
/665GIiLerAr";
