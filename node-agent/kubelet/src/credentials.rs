//! Credential provider plugins (KEP-2133): programs on the node that know how to log in to registries.
//!
//! Which there are, and which images each is asked about, says a CredentialProviderConfig. A program gets a request on
//! its standard input and answers on its output; what it answers is kept for as long as it says. Programs that do not
//! end in time are killed, and those that fail are told in the log: the pull is then tried without.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::RegistryAuth;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::Instant;
use tracing::warn;

use crate::images::host_and_path;

/// Upstream's.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Answers kept of one plugin; beyond, all are forgotten and asked for again.
const MAX_KEPT: usize = 1024;

const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
const REQUEST_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderConfig {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<Logins>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Login {
    username: String,
    password: String,
}

/// By what they are for: `registry.io/path`.
type Logins = BTreeMap<String, Login>;

/// The node's plugins. Cheap to clone; none by default.
#[derive(Clone, Default)]
pub struct Credentials {
    plugins: Arc<Vec<Plugin>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|plugin| &plugin.provider.name)).finish()
    }
}

struct Plugin {
    program: PathBuf,
    provider: Provider,
    default_lifetime: Duration,
    /// Answers by what they are for, with their end. Held while the program runs: one call at a time.
    kept: tokio::sync::Mutex<HashMap<String, (Instant, Logins)>>,
}

impl Credentials {
    /// Reads the configuration, and finds the programs it names in `bin_dir`.
    ///
    /// # Errors
    /// Names the field that is wrong, or the program that is missing.
    pub fn load(config: &Path, bin_dir: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(config).map_err(|e| format!("{}: {e}", config.display()))?;
        let parsed = parse(&text).map_err(|error| format!("{}: {error}", config.display()))?;
        let mut plugins = Vec::new();
        for (provider, default_lifetime) in parsed {
            let program = bin_dir.join(&provider.name);
            if !program.is_file() {
                return Err(format!("plugin binary executable {} did not exist", program.display()));
            }
            plugins.push(Plugin { program, provider, default_lifetime, kept: Default::default() });
        }
        Ok(Self { plugins: Arc::new(plugins) })
    }

    /// Credentials for an image, of all plugins that are asked about it, best match first.
    pub async fn get(&self, image: &str) -> Vec<RegistryAuth> {
        let mut found = Vec::new();
        for plugin in self.plugins.iter().filter(|plugin| plugin.is_for(image)) {
            match plugin.get(image).await {
                Ok(logins) => found.extend(logins),
                Err(error) => {
                    warn!(plugin = plugin.provider.name, image, error, "no credentials from a plugin");
                }
            }
        }
        found.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        found.into_iter().map(|(_, auth)| auth).collect()
    }
}

fn parse(text: &str) -> Result<Vec<(Provider, Duration)>, String> {
    let config: ProviderConfig = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    if config.kind != "CredentialProviderConfig" || !CONFIG_VERSIONS.contains(&config.api_version.as_str()) {
        return Err(format!("{} {} is no CredentialProviderConfig", config.api_version, config.kind));
    }
    if config.providers.is_empty() {
        return Err("providers: Required value: at least 1 item in plugins is required".to_owned());
    }
    let mut names = std::collections::BTreeSet::new();
    let mut providers = Vec::new();
    for (index, provider) in config.providers.into_iter().enumerate() {
        let field = |name: &str| format!("providers[{index}].{name}");
        let name = &provider.name;
        if name.is_empty() || name.contains(['/', ' ']) || [".", ".."].contains(&name.as_str()) {
            return Err(format!("{}: Invalid value: {name:?}", field("name")));
        }
        if !names.insert(name.clone()) {
            return Err(format!("{}: Duplicate value: {name:?}", field("name")));
        }
        if !REQUEST_VERSIONS.contains(&provider.api_version.as_str()) {
            return Err(format!("{}: Unsupported value: {:?}", field("apiVersion"), provider.api_version));
        }
        if provider.match_images.is_empty() {
            return Err(format!(
                "{}: Required value: at least 1 item in matchImages is required",
                field("matchImages")
            ));
        }
        if provider.token_attributes.is_some() {
            return Err(format!(
                "{}: service account tokens are not given to plugins",
                field("tokenAttributes")
            ));
        }
        let lifetime = duration(&provider.default_cache_duration)
            .map_err(|error| format!("{}: Invalid value: {error}", field("defaultCacheDuration")))?;
        providers.push((provider, lifetime));
    }
    Ok(providers)
}

/// `12h`, `0s`
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    Duration::try_from(parsed).map_err(|_| format!("{text:?} must be greater than or equal to 0"))
}

impl Plugin {
    fn is_for(&self, image: &str) -> bool {
        self.provider.match_images.iter().any(|pattern| matches(pattern, image))
    }

    async fn get(&self, image: &str) -> Result<Vec<(String, RegistryAuth)>, String> {
        let registry = host_and_path(image).0;
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        kept.retain(|_, (ends, _)| *ends > now);
        let known = [image, registry, ""].into_iter().find_map(|key| kept.get(key));
        if let Some((_, logins)) = known {
            return Ok(fitting(logins, image));
        }
        let answer = tokio::time::timeout(TIMEOUT, self.ask(image)).await;
        let answer = answer.map_err(|_| format!("no answer within {TIMEOUT:?}"))??;
        let key = match answer.cache_key_type.as_str() {
            "Image" => image,
            "Registry" => registry,
            "Global" => "",
            other => return Err(format!("cacheKeyType {other:?} is not supported")),
        };
        let lifetime = match &answer.cache_duration {
            Some(text) => duration(text).map_err(|error| format!("cacheDuration: {error}"))?,
            None => self.default_lifetime,
        };
        let logins = answer.auth.unwrap_or_default();
        let found = fitting(&logins, image);
        if !lifetime.is_zero() {
            if kept.len() >= MAX_KEPT {
                kept.clear();
            }
            kept.insert(key.to_owned(), (now + lifetime, logins));
        }
        Ok(found)
    }

    async fn ask(&self, image: &str) -> Result<Response, String> {
        let version = self.provider.api_version.as_str();
        let request = Request { kind: "CredentialProviderRequest", api_version: version, image };
        let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let env = self.provider.env.iter().map(|variable| (&variable.name, &variable.value));
        let failed = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let mut child = Command::new(&self.program)
            .args(&self.provider.args)
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async {
            if let Some(mut pipe) = stdin {
                // A program that does not read is judged by what it answers.
                let _ = pipe.write_all(&request).await;
            }
        };
        let (mut answer, mut words) = (Vec::new(), Vec::new());
        let read = async {
            match stdout {
                Some(pipe) => pipe.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut answer).await.map(drop),
                None => Ok(()),
            }
        };
        let listen = async {
            if let Some(pipe) = stderr {
                let _ = pipe.take(4096).read_to_end(&mut words).await;
            }
        };
        let ((), read, ()) = tokio::join!(write, read, listen);
        read.map_err(failed)?;
        if answer.len() as u64 > MAX_ANSWER_BYTES {
            return Err(format!("its answer has more than {MAX_ANSWER_BYTES} bytes"));
        }
        let status = child.wait().await.map_err(failed)?;
        if !status.success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&words).trim()));
        }
        let response: Response =
            serde_json::from_slice(&answer).map_err(|error| format!("its answer cannot be read: {error}"))?;
        if response.kind != "CredentialProviderResponse" || response.api_version != version {
            return Err(format!("it answered with {} {}", response.api_version, response.kind));
        }
        Ok(response)
    }
}

fn fitting(logins: &Logins, image: &str) -> Vec<(String, RegistryAuth)> {
    let fits = logins.iter().filter(|(pattern, login)| {
        matches(pattern, image) && !(login.username.is_empty() && login.password.is_empty())
    });
    fits.map(|(pattern, login)| {
        let Login { username, password } = login.clone();
        (pattern.clone(), RegistryAuth::Basic { username, password })
    })
    .collect()
}

/// Whether an image is what `*.registry.io:8080/path` stands for: each part of the host may have a `*`, the port has to be
/// the same, and the path a prefix.
fn matches(pattern: &str, image: &str) -> bool {
    let pattern = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = host_and_path(image);
    let ((pattern_name, pattern_port), (name, port)) = (split_port(pattern_host), split_port(host));
    let (patterns, parts) = (pattern_name.split('.'), name.split('.'));
    pattern_port == port
        && patterns.clone().count() == parts.clone().count()
        && patterns.zip(parts).all(|(pattern, part)| matches_part(pattern, part))
        && path.starts_with(pattern_path)
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)))
}

/// `*` stands for any text.
fn matches_part(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match left.find(piece) {
            Some(at) => left = &left[at + piece.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn patterns_match_as_upstreams() {
        let check = |pattern: &str, image: &str, expected: bool| {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        };
        check("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-1.amazonaws.com/app:1", true);
        check("*.dkr.ecr.*.amazonaws.com", "dkr.ecr.eu-1.amazonaws.com/app:1", false);
        check("*.io", "a.b.io/app", false);
        check("reg*try.io", "registry.io/app", true);
        check("registry.io", "registry.io:8080/app", false);
        check("registry.io:8080/team", "registry.io:8080/team/app", true);
        check("registry.io/team", "registry.io/other/app", false);
        check("docker.io", "busybox", true);
    }

    const CONFIG: &str = "
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: login
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['*.test']
  defaultCacheDuration: 1h
  args: [get]
  env: [{ name: COLOR, value: blue }]
";

    #[test]
    fn what_is_wrong_in_the_configuration_is_named() {
        assert_eq!(parse(CONFIG).expect("a configuration")[0].1, Duration::from_secs(3600));
        let check = |from: &str, to: &str, expected: &str| {
            let error = parse(&CONFIG.replace(from, to)).expect_err(to);
            assert!(error.contains(expected), "{to}: {error}");
        };
        check("name: login", "name: ../login", "providers[0].name");
        check("['*.test']", "[]", "providers[0].matchImages");
        check("1h", "often", "providers[0].defaultCacheDuration");
        check("k8s.io/v1\n  match", "k8s.io/v9\n  match", "providers[0].apiVersion");
        check("args", "arguments", "arguments");
        check("kind: Cred", "kind: Bread", "no CredentialProviderConfig");
        check("  args: [get]", "  tokenAttributes: {}", "providers[0].tokenAttributes");
    }

    fn credentials(dir: &Path, script: &str) -> Credentials {
        let (config, program) = (dir.join("config.yaml"), dir.join("login"));
        std::fs::write(&config, CONFIG).expect("written");
        std::fs::write(&program, format!("#!/bin/sh\necho x >> {}/calls\n{script}", dir.display()))
            .expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
        Credentials::load(&config, dir).expect("valid")
    }

    fn users(found: Vec<RegistryAuth>) -> Vec<String> {
        let user = |auth| match auth {
            RegistryAuth::Basic { username, .. } => username,
            RegistryAuth::Bearer { .. } | RegistryAuth::Identity { .. } => "a token".to_owned(),
        };
        found.into_iter().map(user).collect()
    }

    #[tokio::test]
    async fn answers_are_used_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = r#"
test "$1" = get && test "$COLOR" = blue || exit 1
image=$(sed 's/.*"image":"\([^"]*\)".*/\1/')
cat <<END
{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry",
 "auth":{"reg.test":{"username":"all","password":"p"},"reg.test/team":{"username":"$image","password":"p"},
         "other.test":{"username":"other","password":"p"}}}
END
"#;
        let credentials = credentials(dir.path(), script);
        assert_eq!(users(credentials.get("reg.test/team/app:1").await), ["reg.test/team/app:1", "all"]);
        assert_eq!(users(credentials.get("reg.test/web").await), ["all"]);
        assert!(credentials.get("elsewhere.example/web").await.is_empty(), "not asked about");
        let calls = std::fs::read_to_string(dir.path().join("calls")).expect("called");
        assert_eq!(calls.lines().count(), 1, "one answer for the registry");
    }

    #[tokio::test]
    async fn plugin_that_fails_gives_nothing_and_is_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        for script in ["exit 3", "echo nonsense", "echo '{\"kind\":\"X\"}'"] {
            let credentials = credentials(dir.path(), script);
            assert!(credentials.get("reg.test/web").await.is_empty(), "{script}");
            assert!(credentials.get("reg.test/web").await.is_empty(), "{script}");
        }
        let calls = std::fs::read_to_string(dir.path().join("calls")).expect("called");
        assert_eq!(calls.lines().count(), 6);
    }
}
