//! Credentials of imagePullSecrets: Docker's configuration files, old and new.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_runtime::RegistryAuth;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::access::SecretUsed;
use super::host_and_path;

#[derive(Deserialize, Default)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// Credentials of a `dockerconfigjson` (or older `dockercfg`) Secret that fit the image, best match first.
pub(super) fn credentials_in(secret: &Secret, image: &str) -> Vec<RegistryAuth> {
    let data = secret.data.as_ref();
    let file = |key: &str| data.and_then(|d| d.get(key)).map(|bytes| bytes.0.as_slice());
    let auths = if let Some(bytes) = file(".dockerconfigjson") {
        serde_json::from_slice::<DockerConfig>(bytes).unwrap_or_default().auths
    } else if let Some(bytes) = file(".dockercfg") {
        serde_json::from_slice(bytes).unwrap_or_default()
    } else {
        return Vec::new();
    };
    let mut found: Vec<(usize, RegistryAuth)> = auths
        .into_iter()
        .filter(|(server, _)| matches_image(server, image))
        .filter_map(|(server, auth)| Some((server.len(), to_registry_auth(auth)?)))
        .collect();
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn to_registry_auth(auth: DockerAuth) -> Option<RegistryAuth> {
    if let Some(token) = auth.identitytoken.filter(|t| !t.is_empty()) {
        return Some(RegistryAuth::Identity { token });
    }
    if let Some(token) = auth.registrytoken.filter(|t| !t.is_empty()) {
        return Some(RegistryAuth::Bearer { token });
    }
    if let (Some(username), Some(password)) = (auth.username, auth.password) {
        return Some(RegistryAuth::Basic { username, password });
    }
    let decoded = STANDARD.decode(auth.auth?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(RegistryAuth::Basic { username: username.into(), password: password.into() })
}

/// `server` as docker writes it (`https://index.docker.io/v1/`, `registry.test/team`, `*.registry.test`).
fn matches_image(server: &str, image: &str) -> bool {
    let server = server.trim_start_matches("https://").trim_start_matches("http://");
    let server = server.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (server_host, server_path) = server.split_once('/').unwrap_or((server, ""));
    let (host, path) = host_and_path(image);
    let same_host = match server_host.strip_prefix("*.") {
        Some(suffix) => host.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => server_host == host || (host == "docker.io" && server_host == "index.docker.io"),
    };
    same_host && path.starts_with(server_path)
}

/// How the records of pulls know the credentials in a secret.
pub(super) fn used(secret: &Secret, auth: &RegistryAuth) -> SecretUsed {
    let parts: [&str; 3] = match auth {
        RegistryAuth::Basic { username, password } => ["basic", username, password],
        RegistryAuth::Bearer { token } => ["bearer", token, ""],
        RegistryAuth::Identity { token } => ["identity", token, ""],
    };
    // A list, so that no two of them have the same text.
    let hash = Sha256::digest(serde_json::json!(parts).to_string());
    let meta = &secret.metadata;
    SecretUsed {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn credentials_go_to_their_registry_only() {
        let config = r#"{"auths":{
            "registry.test":{"auth":"dXNlcjpzZWNyZXQ="},
            "registry.test/team":{"username":"team","password":"p"},
            "https://index.docker.io/v1/":{"username":"hub","password":"p"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".into(), ByteString(config.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let users = |image: &str| -> Vec<String> {
            let found = credentials_in(&secret, image).into_iter();
            found
                .map(|auth| match auth {
                    RegistryAuth::Basic { username, .. } => username,
                    RegistryAuth::Bearer { .. } | RegistryAuth::Identity { .. } => "token".into(),
                })
                .collect()
        };
        assert_eq!(users("registry.test/web:1"), ["user"]);
        assert_eq!(users("registry.test/team/web:1"), ["team", "user"]);
        assert_eq!(users("busybox"), ["hub"]);
        assert_eq!(users("other.test/web"), Vec::<String>::new());
    }
}
