//! A registry of the test's own on loopback, that answers as it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::image::reference::parse;

/// What was asked: method and path, the authorization, and the body.
#[derive(Clone, Debug, Default, PartialEq)]
struct Asked {
    line: String,
    authorization: String,
    header: String,
    body: String,
}

type Answer = dyn Fn(&Asked) -> (u16, String, String) + Send + Sync;

struct Registry {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Registry {
    /// `answer` gives a status, further header lines, and a body.
    async fn start(answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                let mut byte = [0; 1];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap();
                let field = |name: &str| {
                    let mut lines = head.lines();
                    let line = lines.find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
                    line.map(|line| line[name.len() + 1..].trim().to_owned()).unwrap_or_default()
                };
                let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
                stream.read_exact(&mut body).await.unwrap();
                let asked = Asked {
                    line: head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned(),
                    authorization: field("authorization"),
                    header: field("x-team"),
                    body: String::from_utf8(body).unwrap(),
                };
                let (status, headers, body) = answer(&asked);
                heard.lock().unwrap().push(asked);
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
                );
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        Self { host, asked }
    }

    fn lines(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.line.clone()).collect()
    }
}

/// Wants a token of its own realm, `good`, which `authorize` gives out.
fn with_tokens(authorize: impl Fn(&Asked) -> bool + Send + Sync + 'static) -> Arc<Answer> {
    Arc::new(move |asked: &Asked| {
        if asked.line.contains("/token") {
            return match authorize(asked) {
                true => (200, String::new(), r#"{"access_token":"good"}"#.into()),
                false => (401, String::new(), String::new()),
            };
        }
        if asked.authorization == "Bearer good" {
            return (200, String::new(), "manifest".into());
        }
        let host = asked.header.clone();
        let realm = format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
        (401, realm, String::new())
    })
}

fn plain(hosts: &[&str]) -> Registries {
    Registries { plain_http: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Registries::default() }
}

/// A directory whose `hosts.toml` for `registry` is `text`.
fn configured(registry: &str, text: &str) -> (tempfile::TempDir, Registries) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join(registry)).unwrap();
    std::fs::write(root.path().join(registry).join("hosts.toml"), text).unwrap();
    let registries = Registries { config_dir: Some(root.path().to_owned()), ..Registries::default() };
    (root, registries)
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_and_never_sent_as_it_is() {
    let registry = Registry::start(with_tokens(|asked| asked.body.contains("refresh_token=secret"))).await;
    // The realm has to lead to the test's own port, which comes with a header of the configuration.
    let text =
        format!("[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\nx-team = \"{0}\"", registry.host);
    let (_root, registries) = configured(&registry.host, &text);
    let image = parse(&format!("{}/team/app:1", registry.host)).unwrap();
    let auth = [RegistryAuth::Identity { token: "secret".into() }];
    let Found { source, manifest, .. } = Source::find(&image, &registries, &auth, 0).await.unwrap();
    assert_eq!((&manifest[..], source.credential), (&b"manifest"[..], Some(0)));
    let asked = registry.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(asked[1].line, "POST /token");
    let told: Vec<bool> = asked.iter().map(|asked| !asked.header.is_empty()).collect();
    assert_eq!(told, [true, false, true], "what is for the registry is not for its realm");
    let form: BTreeMap<&str, &str> =
        asked[1].body.split('&').filter_map(|pair| pair.split_once('=')).collect();
    assert_eq!((form["grant_type"], form["service"], form["client_id"]), ("refresh_token", "s", "hawser"));
    assert_eq!(form["scope"], "repository%3Ateam%2Fapp%3Apull");
    assert!(asked.iter().all(|asked| !asked.authorization.contains("secret")));
}

#[tokio::test]
async fn a_mirror_is_asked_first_without_the_pods_secrets_and_told_whose_image_it_is() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mirror = Registry::start(Arc::new(|_: &Asked| (404, String::new(), String::new()))).await;
    let found = |_: &Asked| (200, String::new(), "manifest".to_owned());
    let registry = Registry::start(Arc::new(found)).await;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}/hub\"]\noverride_path = true\n[host.\"http://{}/hub\".header]\nx-team = \"a\"",
        registry.host, mirror.host, mirror.host
    );
    let (_root, registries) = configured(&registry.host, &text);
    let image = parse(&format!("{}/app:1", registry.host)).unwrap();
    let auth = [RegistryAuth::Bearer { token: "t".into() }];
    let Found { source, tries, .. } = Source::find(&image, &registries, &auth, 0).await.unwrap();
    assert_eq!((source.credential, source.is_mirror(), tries), (Some(0), false, 2));
    assert_eq!(mirror.lines(), [format!("GET /hub/app/manifests/1?ns={}", registry.host)]);
    let asked = mirror.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.authorization.as_str(), asked.header.as_str()), ("", "a"));
    assert_eq!(registry.lines(), ["GET /v2/app/manifests/1"]);
    assert_eq!(registry.asked.lock().unwrap()[0].authorization, "Bearer t");
}

/// A mirror of `registry` that cannot say what tags mean.
fn mirrored(registry: &Registry, mirror: &Registry) -> (tempfile::TempDir, Registries, Reference) {
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
        registry.host, mirror.host
    );
    let (root, registries) = configured(&registry.host, &text);
    (root, registries, parse(&format!("{}/app:1", registry.host)).unwrap())
}

#[tokio::test]
async fn a_mirror_that_resolves_no_tags_is_asked_by_the_digest_that_the_registry_told() {
    let digest = digest_of(b"manifest");
    let has_it = |asked: &Asked| {
        (200, String::new(), if asked.line.starts_with("HEAD") { String::new() } else { "manifest".into() })
    };
    let told = format!("docker-content-digest: {digest}\r\n");
    let check = async |headers: String, secret: bool, expected: &[&str]| {
        let mirror = Registry::start(Arc::new(has_it)).await;
        let registry =
            Registry::start(Arc::new(move |asked: &Asked| match secret && asked.authorization.is_empty() {
                true => (401, String::new(), String::new()),
                false => (200, headers.clone(), has_it(asked).2),
            }))
            .await;
        let (_root, registries, image) = mirrored(&registry, &mirror);
        let auth = [RegistryAuth::Bearer { token: "t".into() }];
        let auth = if secret { &auth[..] } else { &[] };
        let Found { source, manifest, .. } = Source::find(&image, &registries, auth, 0).await.unwrap();
        assert_eq!((&manifest[..], source.is_mirror()), (&b"manifest"[..], true));
        assert_eq!(source.credential, secret.then_some(0), "who has it from where a secret was asked for");
        assert_eq!(registry.lines(), expected);
        assert_eq!(mirror.lines(), [format!("GET /v2/app/manifests/{digest}?ns={}", registry.host)]);
        assert!(mirror.asked.lock().unwrap()[0].authorization.is_empty());
    };
    check(told.clone(), false, &["HEAD /v2/app/manifests/1"]).await;
    check(told, true, &["HEAD /v2/app/manifests/1"]).await;
    check(String::new(), false, &["HEAD /v2/app/manifests/1", "GET /v2/app/manifests/1"]).await;
}

#[tokio::test]
async fn where_nobody_resolves_the_tag_the_registry_says_why() {
    let mirror = Registry::start(Arc::new(|_: &Asked| (200, String::new(), "manifest".to_owned()))).await;
    let registry = Registry::start(Arc::new(|_: &Asked| (404, String::new(), String::new()))).await;
    let (_root, registries, image) = mirrored(&registry, &mirror);
    let failure = Source::find(&image, &registries, &[], 0).await.err().unwrap();
    assert_eq!((failure.kind, mirror.lines().len()), (PullErrorKind::NotFound, 0), "{}", failure.message);
}

#[tokio::test]
async fn what_a_mirror_has_lost_is_asked_of_the_next() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mirror = Registry::start(Arc::new(|_: &Asked| (200, String::new(), "mirror's".to_owned()))).await;
    let registry = Registry::start(Arc::new(|_: &Asked| (200, String::new(), "own".to_owned()))).await;
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", registry.host, mirror.host);
    let (_root, registries) = configured(&registry.host, &text);
    let image = parse(&format!("{}/app:1", registry.host)).unwrap();
    let first = Source::find(&image, &registries, &[], 0).await.unwrap();
    assert_eq!((&first.manifest[..], first.source.is_mirror()), (&b"mirror's"[..], true));
    let second = Source::find(&image, &registries, &[], first.tries).await.unwrap();
    assert_eq!((&second.manifest[..], second.source.is_mirror()), (&b"own"[..], false));
}

#[tokio::test]
async fn credentials_are_tried_one_after_the_other_and_nobody_last() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::start(Arc::new(|asked: &Asked| match asked.authorization.as_str() {
        "Basic b25lOnA=" => (403, String::new(), r#"{"errors":[{"code":"DENIED","message":"no"}]}"#.into()),
        "Basic dHdvOnA=" => (200, String::new(), "manifest".into()),
        _ => (401, "www-authenticate: Basic realm=\"r\"\r\n".into(), String::new()),
    }))
    .await;
    let registries = plain(&[&registry.host]);
    let image = parse(&format!("{}/app:1", registry.host)).unwrap();
    let basic = |name: &str| RegistryAuth::Basic { username: name.into(), password: "p".into() };
    let found = Source::find(&image, &registries, &[basic("one"), basic("two")], 0).await.unwrap();
    assert_eq!(found.source.credential, Some(1));
    let failure = Source::find(&image, &registries, &[basic("one")], 0).await.err().unwrap();
    assert_eq!(failure.kind, PullErrorKind::Unauthorized, "{}", failure.message);
}

#[test]
fn mirrors_never_see_the_pods_secrets() {
    let own = RegistryAuth::Basic { username: "node".into(), password: "p".into() };
    let auth = [("docker.io".to_owned(), own.clone())].into();
    let registries = Registries { auth, ..Registries::default() };
    let pod = [RegistryAuth::Bearer { token: "t".into() }];
    let mirror = Endpoint { host: "mirror:5000".into(), is_mirror: true, ..Endpoint::default() };
    assert_eq!(credentials(&mirror, "docker.io", &registries, &pod), [(None, None)]);
    let itself = Endpoint { host: "registry-1.docker.io".into(), ..Endpoint::default() };
    let expected = [(Some(0), Some(pod[0].clone())), (None, Some(own)), (None, None)];
    assert_eq!(credentials(&itself, "docker.io", &registries, &pod), expected);
}
