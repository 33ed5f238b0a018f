//! Where an API server is, and who asks, out of a kubeconfig: its current context, with a client certificate.
//!
//! Other ways to say who one is (tokens, plugins) are not for components, and are refused.

use std::{fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::RemoteOptions;
use crate::Error;

/// The part of a kubeconfig that leads to a server; there are fields for much else.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
}

impl RemoteOptions {
    /// What the file's current context says.
    ///
    /// # Errors
    /// BadRequest, with the file and the field.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, Error> {
        let failed = |why: String| Error::bad_request(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        options(&text, path.parent().unwrap_or(Path::new("."))).map_err(failed)
    }
}

/// Names of files are relative to the kubeconfig's directory.
fn options(text: &str, directory: &Path) -> Result<RemoteOptions, String> {
    let config: Config =
        serde_yaml_ng::from_str(text).map_err(|error| format!("not a kubeconfig: {error}"))?;
    let current = &config.current_context;
    let context = config.contexts.iter().find(|context| context.name == *current);
    let context =
        &context.ok_or_else(|| format!("current-context: there is no context {current:?}"))?.context;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = &cluster.ok_or_else(|| format!("clusters: none is named {:?}", context.cluster))?.cluster;
    let user = config.users.iter().find(|user| user.name == context.user);
    let user = &user.ok_or_else(|| format!("users: none is named {:?}", context.user))?.user;
    let pem = |field: &str, data: &Option<String>, file: &Option<String>| match (data, file) {
        (Some(data), _) => STANDARD.decode(data).map_err(|_| format!("{field}-data: not base64")),
        (None, Some(file)) => {
            let file = directory.join(file);
            fs::read(&file).map_err(|error| format!("{field}: {}: {error}", file.display()))
        }
        (None, None) => Err(format!("{field}: is missing, and there is no other way here")),
    };
    let authority = (&cluster.certificate_authority_data, &cluster.certificate_authority);
    let identity = (
        pem("client-certificate", &user.client_certificate_data, &user.client_certificate)?,
        pem("client-key", &user.client_key_data, &user.client_key)?,
    );
    Ok(RemoteOptions {
        servers: vec![cluster.server.clone()],
        ca_pem: pem("certificate-authority", authority.0, authority.1)?,
        identity: Some(identity),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: v1
kind: Config
preferences: {}
clusters:
- {name: other, cluster: {server: 'https://10.0.0.2:6443'}}
- {name: mine, cluster: {server: 'https://10.0.0.1:6443', certificate-authority-data: Y2E=}}
users:
- {name: admin, user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}}
contexts:
- {name: admin@mine, context: {cluster: mine, user: admin}}
current-context: admin@mine
";

    #[test]
    fn the_current_context_leads_to_a_server() {
        let options = options(TEXT, Path::new(".")).unwrap();
        assert_eq!(options.servers, ["https://10.0.0.1:6443"]);
        assert_eq!(options.ca_pem, b"ca");
        assert_eq!(options.identity, Some((b"cert".to_vec(), b"key".to_vec())));
    }

    #[test]
    fn errors_name_the_field() {
        let check = |from: &str, to: &str, expected: &str| {
            let error = options(&TEXT.replace(from, to), Path::new("/nowhere")).err().unwrap();
            assert!(error.starts_with(expected), "{error}");
        };
        check(
            "current-context: admin",
            "current-context: a",
            "current-context: there is no context \"a@mine\"",
        );
        check("{cluster: mine", "{cluster: his", "clusters: none is named \"his\"");
        check("user: admin}", "user: root}", "users: none is named \"root\"");
        check("Y2E=", "'~'", "certificate-authority-data: not base64");
        check("client-key-data: a2V5", "client-key: a.pem", "client-key: /nowhere/a.pem: ");
        check("client-key-data: a2V5", "token: a2V5", "client-key: is missing");
        check("users:", "users: 1", "not a kubeconfig: ");
    }
}
