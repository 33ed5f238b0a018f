//! Where an image may be asked for: containerd's `certs.d` directory, with a `hosts.toml` for each registry.
//!
//! `<dir>/<host[:port]>/hosts.toml`, else `<dir>/_default/hosts.toml`, names mirrors in their order, and how each is
//! reached; certificates without such a file (`*.crt`, `*.cert` and `*.key`) are taken as Docker takes them. It is read
//! at every pull, so that a change needs no restart. Fields of newer versions are passed over, as containerd does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Failure, Registries};
use crate::PullErrorKind;

const MAX_FILE_BYTES: u64 = 1 << 20;
/// Where Docker Hub's images are, which calls itself docker.io.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// One place to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `https://mirror.test:5000/v2`: what comes before the repository.
    pub(super) base: String,
    /// `mirror.test:5000`
    pub(super) host: String,
    /// Another one than the registry itself.
    pub(super) is_mirror: bool,
    /// Tags may be resolved here; else only what is asked for by digest comes from it.
    pub(super) can_resolve: bool,
    pub(super) skip_verify: bool,
    /// Trusted besides what the machine trusts.
    pub(super) ca_files: Vec<PathBuf>,
    /// Certificate, and key where that is in another file.
    pub(super) client_files: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) headers: Vec<(String, String)>,
}

impl Endpoint {
    pub(super) fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }
}

/// How one host is reached, in the file's words.
#[derive(Default, Deserialize)]
#[serde(default)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<Value>,
    client: Option<Value>,
    skip_verify: bool,
    header: Table,
    override_path: bool,
}

/// The endpoints for images of `registry`, in the order in which they are asked; the registry itself is the last.
pub(super) fn endpoints(registry: &str, registries: &Registries) -> Result<Vec<Endpoint>, Failure> {
    let own = || own_endpoint(registry, registries);
    let Some(dir) = registries.config_dir.as_deref().and_then(|root| dir_of(root, registry)) else {
        return Ok(vec![own()]);
    };
    let file = dir.join("hosts.toml");
    let unusable = |why: String| Failure {
        kind: PullErrorKind::RegistryUnavailable,
        message: format!("{}: {why}", file.display()),
    };
    match read(&file) {
        Ok(text) => parse(&text, registry, &dir, own()).map_err(unusable),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (ca_files, client_files) = certificates_in(&dir);
            Ok(vec![Endpoint { ca_files, client_files, ..own() }])
        }
        Err(error) => Err(unusable(error.to_string())),
    }
}

fn own_endpoint(registry: &str, registries: &Registries) -> Endpoint {
    let host = if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry };
    let scheme = if registries.plain_http.contains(registry) { "http" } else { "https" };
    Endpoint {
        base: format!("{scheme}://{host}/v2"),
        host: host.to_owned(),
        can_resolve: true,
        ..Endpoint::default()
    }
}

/// The directory that speaks of the registry. A colon cannot be in a name everywhere: `host_5000_` means `host:5000`.
fn dir_of(root: &Path, registry: &str) -> Option<PathBuf> {
    let underscored = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [underscored.as_deref(), Some(registry), Some("_default")];
    names.into_iter().flatten().map(|name| root.join(name)).find(|dir| dir.is_dir())
}

fn read(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("has more than {MAX_FILE_BYTES} bytes")));
    }
    fs::read_to_string(file)
}

fn parse(text: &str, registry: &str, dir: &Path, own: Endpoint) -> Result<Vec<Endpoint>, String> {
    let mut root: Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    let hosts = match root.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("host: a table is expected".into()),
    };
    let server = match root.remove("server") {
        None => None,
        Some(Value::String(server)) => Some(server).filter(|server| !server.is_empty()),
        Some(_) => return Err("server: a text is expected".into()),
    };
    let mut found = Vec::new();
    for (url, settings) in hosts {
        let place = format!("host.{url:?}");
        let Value::Table(settings) = settings else { return Err(format!("{place}: a table is expected")) };
        found.extend(endpoint(&url, settings, dir, registry).map_err(|why| format!("{place}: {why}"))?);
    }
    // What stands outside of all hosts is about the server.
    match server {
        Some(url) => found.extend(endpoint(&url, root, dir, registry)?),
        None => found.push(with_settings(own, settings_of(root)?, dir)?),
    }
    Ok(found)
}

/// `None` for a host that is only pushed to.
fn endpoint(url: &str, table: Table, dir: &Path, registry: &str) -> Result<Option<Endpoint>, String> {
    let settings = settings_of(table)?;
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    if scheme != "http" && scheme != "https" {
        return Err(format!("{url:?} is neither http nor https"));
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err(format!("{url:?} has no host"));
    }
    let path = path.trim_end_matches('/');
    let path = if path.is_empty() { String::new() } else { format!("/{path}") };
    let base = match settings.override_path {
        true => format!("{scheme}://{host}{path}"),
        false if path.ends_with("/v2") => format!("{scheme}://{host}{path}"),
        false => format!("{scheme}://{host}{path}/v2"),
    };
    let is_itself = host == registry || (registry, host) == DOCKER_HUB;
    let bare = Endpoint { base, host: host.to_owned(), is_mirror: !is_itself, ..Endpoint::default() };
    let (pulls, resolves) = capabilities(settings.capabilities.as_deref())?;
    let found = with_settings(bare, settings, dir)?;
    Ok((pulls || resolves).then_some(Endpoint { can_resolve: resolves, ..found }))
}

fn settings_of(table: Table) -> Result<HostSettings, String> {
    table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

fn with_settings(endpoint: Endpoint, settings: HostSettings, dir: &Path) -> Result<Endpoint, String> {
    let mut headers = Vec::new();
    for (name, value) in settings.header {
        let values = texts(&value).ok_or_else(|| format!("header.{name}: texts are expected"))?;
        headers.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    let ca_files = match &settings.ca {
        None => Vec::new(),
        Some(value) => texts(value).ok_or("ca: names of files are expected")?,
    };
    Ok(Endpoint {
        skip_verify: settings.skip_verify,
        ca_files: ca_files.into_iter().map(|file| dir.join(file)).collect(),
        client_files: settings.client.map_or(Ok(Vec::new()), |value| client_files(&value, dir))?,
        headers,
        ..endpoint
    })
}

/// Whether it gives content, and whether it says what a tag means. All where nothing is said.
fn capabilities(named: Option<&[String]>) -> Result<(bool, bool), String> {
    let Some(named) = named.filter(|named| !named.is_empty()) else { return Ok((true, true)) };
    if let Some(unknown) = named.iter().find(|name| !["pull", "resolve", "push"].contains(&name.as_str())) {
        return Err(format!("capabilities: {unknown:?} is not known"));
    }
    let has = |name: &str| named.iter().any(|named| named == name);
    Ok((has("pull"), has("resolve")))
}

/// One text, or a list of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `"both.pem"`, `["both.pem"]` or `[["client.cert", "client.key"]]`
fn client_files(value: &Value, dir: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let wrong = || "client: files, or pairs of a certificate and its key, are expected".to_owned();
    let one = |value: &Value| match value {
        Value::String(file) => Ok((dir.join(file), None)),
        Value::Array(_) => match texts(value).as_deref() {
            Some([certificate]) => Ok((dir.join(certificate), None)),
            Some([certificate, key]) if key.is_empty() => Ok((dir.join(certificate), None)),
            Some([certificate, key]) => Ok((dir.join(certificate), Some(dir.join(key)))),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

type Files = (Vec<PathBuf>, Vec<(PathBuf, Option<PathBuf>)>);

/// As Docker names them: authorities `*.crt`, clients' certificates `*.cert` with `*.key` of the same name.
fn certificates_in(dir: &Path) -> Files {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let of = |ending: &str| {
        let ending = std::ffi::OsString::from(ending);
        files.iter().filter(move |file| file.extension() == Some(&ending)).cloned().collect::<Vec<_>>()
    };
    let clients = of("cert").into_iter().map(|certificate| {
        let key = certificate.with_extension("key");
        (certificate, Some(key))
    });
    (of("crt"), clients.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Endpoint>, String> {
        let own = own_endpoint("docker.io", &Registries::default());
        parse(text, "docker.io", Path::new("/certs/docker.io"), own)
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_registry_last() {
        let found = parsed(
            r#"
            server = "https://registry-1.docker.io"
            [host."http://z.test:5000"]
              capabilities = ["pull", "resolve"]
            [host."https://a.test/docker/hub/"]
              capabilities = ["pull"]
              override_path = true
              skip_verify = true
              ca = "a.crt"
              client = [["a.cert", "a.key"], ["both.pem", ""]]
              [host."https://a.test/docker/hub/".header]
                x-team = ["one", "two"]
            [host."b.test/mirror"]
            [host."https://push.test"]
              capabilities = ["push"]
            "#,
        );
        let found = found.unwrap();
        let bases: Vec<&str> = found.iter().map(|e| e.base.as_str()).collect();
        let expected = [
            "http://z.test:5000/v2",
            "https://a.test/docker/hub",
            "https://b.test/mirror/v2",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(bases, expected);
        let a = &found[1];
        assert!(a.skip_verify && a.is_mirror && !a.can_resolve);
        assert_eq!(a.ca_files, [Path::new("/certs/docker.io/a.crt")]);
        let file = |name: &str| Path::new("/certs/docker.io").join(name);
        assert_eq!(a.client_files, [(file("a.cert"), Some(file("a.key"))), (file("both.pem"), None)]);
        let header = |value: &str| ("x-team".to_owned(), value.to_owned());
        assert_eq!(a.headers, [header("one"), header("two")]);
        assert!(found[0].is_plain() && !found[3].is_mirror);
    }

    #[test]
    fn a_file_without_a_server_is_about_the_registry_itself() {
        let found = parsed("ca = [\"one.crt\", \"/two.crt\"]").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].host.as_str(), found[0].is_mirror), ("registry-1.docker.io", false));
        assert_eq!(found[0].ca_files, [Path::new("/certs/docker.io/one.crt"), Path::new("/two.crt")]);
    }

    #[test]
    fn an_error_names_the_field() {
        for (text, expected) in [
            ("server = 5", "server: a text"),
            ("[host.\"ftp://a\"]", "neither http nor https"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "host.\"https://a\": capabilities: \"fly\""),
            ("[host.\"https://a\"]\nca = 5", "ca: names of files"),
            ("[host.\"https://a\"]\nskip_verify = \"yes\"", "boolean"),
            ("[host", "host"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(expected) || text == "[host", "{text}: {error}");
        }
    }

    #[test]
    fn a_directory_is_found_by_host_and_port_or_is_the_default() {
        let root = tempfile::tempdir().unwrap();
        let made = |name: &str| fs::create_dir(root.path().join(name)).unwrap();
        assert_eq!(dir_of(root.path(), "a.test:5000"), None);
        made("_default");
        assert_eq!(dir_of(root.path(), "a.test:5000"), Some(root.path().join("_default")));
        made("a.test:5000");
        assert_eq!(dir_of(root.path(), "a.test:5000"), Some(root.path().join("a.test:5000")));
        made("a.test_5000_");
        assert_eq!(dir_of(root.path(), "a.test:5000"), Some(root.path().join("a.test_5000_")));
        fs::write(root.path().join("_default/ca.crt"), "").unwrap();
        fs::write(root.path().join("_default/me.cert"), "").unwrap();
        let registries = Registries { config_dir: Some(root.path().to_owned()), ..Registries::default() };
        let found = endpoints("b.test", &registries).unwrap();
        assert_eq!(found[0].base, "https://b.test/v2");
        assert_eq!(found[0].ca_files, [root.path().join("_default/ca.crt")]);
        let me = |ending| root.path().join(format!("_default/me.{ending}"));
        assert_eq!(found[0].client_files, [(me("cert"), Some(me("key")))]);
    }
}
