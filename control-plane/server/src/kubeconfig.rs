//! A kubeconfig: where the API server is, and a client certificate.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::pki::Identity;

/// The text of a kubeconfig with everything in it.
pub(crate) fn render(server: &str, authority: &str, user: &str, identity: &Identity) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: hawser
  cluster:
    server: {server}
    certificate-authority-data: {}
users:
- name: {user}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: {user}@hawser
  context:
    cluster: hawser
    user: {user}
current-context: {user}@hawser
",
        encode(authority),
        encode(&identity.certificate),
        encode(&identity.key),
    )
}
