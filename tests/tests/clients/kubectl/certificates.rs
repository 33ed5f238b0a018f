//! `kubectl certificate`: a user of one's own.

use std::{fs, time::Duration};

use anyhow::ensure;
use base64::{Engine, engine::general_purpose::STANDARD};
use hawser_tests::{api_server::ApiServer, eventually};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

#[test]
fn approved_request_makes_a_user_and_a_denied_one_does_not() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("default");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "dev");
    params.distinguished_name.push(DnType::CommonName, "somebody");
    let request = params.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
    for name in ["wanted", "unwanted"] {
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": { "name": name },
            "spec": {
                "request": STANDARD.encode(&request), "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"], "expirationSeconds": 3600,
            },
        });
        let made = kubectl.run("create -f -", Some(&object.to_string()));
        assert!(made.succeeded, "{}", made.stderr);
        assert_eq!(made.stderr, "", "no warning");
    }
    kubectl.ok("certificate deny unwanted").says(&["unwanted denied"]);
    kubectl.ok("certificate approve wanted").says(&["wanted approved"]);
    let certificate = eventually(Duration::from_secs(20), "the certificate is issued", || {
        let found = kubectl.ok("get csr wanted -o jsonpath={.status.certificate}").stdout;
        ensure!(!found.is_empty(), "none yet");
        Ok(STANDARD.decode(found)?)
    });
    kubectl.ok("get csr").says(&["Approved,Issued", "Denied"]);

    let files =
        [("user.crt", certificate), ("user.key", key.serialize_pem().into_bytes())].map(|(name, bytes)| {
            let path = server.scratch().join(name);
            fs::write(&path, bytes).expect("a file");
            path.display().to_string()
        });
    kubectl.ok(&format!(
        "config set-credentials somebody --client-certificate={} --client-key={} --embed-certs",
        files[0], files[1]
    ));
    kubectl.ok("auth whoami --user=somebody").says(&["somebody", "[dev system:authenticated]"]);
    assert_eq!(kubectl.ok("get csr unwanted -o jsonpath={.status.certificate}").stdout, "");
}
