//! A kubeconfig: where the API server is, and a client certificate. [`hawser_api`] reads it.

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

#[cfg(test)]
mod tests {
    use hawser_api::grpc::RemoteOptions;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let identity = Identity { certificate: "certificate".to_owned(), key: "key".to_owned() };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.kubeconfig");
        std::fs::write(&path, render("https://10.0.0.1:6443", "authority", "admin", &identity)).unwrap();
        let options = RemoteOptions::from_kubeconfig(&path).unwrap();
        assert_eq!(options.servers, ["https://10.0.0.1:6443"]);
        assert_eq!(options.ca_pem, b"authority");
        assert_eq!(options.identity, Some((b"certificate".to_vec(), b"key".to_vec())));
    }
}
