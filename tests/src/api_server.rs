//! A control plane of a test's own: the built binary on a free port of loopback, with a store in a temporary directory.
//!
//! No node joins it, so pods stay Pending. It ends when the value is dropped, and its directory with it. Tests of
//! clients start one each: it takes a fraction of a second.

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;

const READY: Duration = Duration::from_secs(20);
/// After this a client's process is ended, so that a server that hangs fails a test and does not hang it.
const CLIENT_SECONDS: &str = "60";

/// The running server.
pub struct ApiServer {
    directory: TempDir,
    process: Child,
    port: u16,
}

/// What a client needs besides the address, in PEM.
pub struct Credentials {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl ApiServer {
    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    /// Where the binary is not built, or the server does not come up.
    #[track_caller]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("hawser-clients-")
            .tempdir()
            .expect("a temporary directory can be made");
        let process = spawn(directory.path(), 0).expect("the control plane starts");
        let mut server = Self { directory, process, port: 0 };
        // The server chooses a free port, and says which in the kubeconfig.
        server.port = eventually(READY, "the control plane writes its kubeconfig", || {
            server.check_running()?;
            let address = server.template(r#"{{(index .clusters 0).cluster.server}}"#)?;
            Ok(address.rsplit(':').next().unwrap_or_default().parse()?)
        });
        server.wait_until_ready();
        server
    }

    /// `kill -9`, then the same data on the same port again.
    ///
    /// # Panics
    /// Where it does not come up again.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.process = spawn(self.directory.path(), self.port).expect("the control plane starts again");
        self.wait_until_ready();
    }

    /// `kill -9`: no chance to write anything more.
    pub fn kill(&mut self) {
        // Both fail only where the process is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// `https://127.0.0.1:40123`
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("data/admin.kubeconfig")
    }

    /// A directory for a test's own files; goes with the server.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The administrator's credentials.
    pub fn credentials(&self) -> Credentials {
        let user = r#"(index .users 0).user"#;
        let read = |template: String| self.template(&template).expect("the kubeconfig holds credentials");
        Credentials {
            authority: read(
                r#"{{index (index .clusters 0).cluster "certificate-authority-data" | base64decode}}"#.into(),
            ),
            certificate: read(format!(r#"{{{{index {user} "client-certificate-data" | base64decode}}}}"#)),
            key: read(format!(r#"{{{{index {user} "client-key-data" | base64decode}}}}"#)),
        }
    }

    /// Writes the credentials where programs want files: `ca.pem`, `client.pem`, `client-key.pem` in the scratch directory.
    pub fn credential_files(&self) -> [PathBuf; 3] {
        let credentials = self.credentials();
        [
            ("ca.pem", credentials.authority),
            ("client.pem", credentials.certificate),
            ("client-key.pem", credentials.key),
        ]
        .map(|(name, text)| {
            let path = self.scratch().join(name);
            fs::write(&path, text).expect("a file can be written");
            path
        })
    }

    /// kubectl in a namespace, which is made here.
    #[track_caller]
    pub fn kubectl(&self, namespace: &str) -> Kubectl<'_> {
        let kubectl = Kubectl { server: self, namespace: namespace.to_owned() };
        if namespace != "default" {
            kubectl.ok(&format!("create namespace {namespace}"));
        }
        eventually(READY, "the namespace has its service account", || {
            let found = kubectl.run("get serviceaccount default -o name", None);
            ensure!(found.succeeded, "{}", found.stderr);
            Ok(())
        });
        kubectl
    }

    /// A program that a client's test runs: with the kubeconfig in its environment, and an end.
    pub fn client(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", CLIENT_SECONDS]).arg(program.as_ref());
        command.env("KUBECONFIG", self.kubeconfig());
        command.env("KUBECACHEDIR", self.directory.path().join("kubectl-cache"));
        command.env("HAWSER_SERVER_PID", self.process.id().to_string());
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        command
    }

    fn template(&self, template: &str) -> anyhow::Result<String> {
        let mut command = self.client("kubectl");
        command.args(["config", "view", "--raw", "-o", &format!("go-template={template}")]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        eventually(READY, "the control plane is ready", || {
            self.check_running()?;
            let output = self.client("kubectl").args(["get", "--raw", "/readyz"]).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        });
    }

    fn check_running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("the control plane ended ({status}): {}", self.log());
        }
        Ok(())
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of the control plane\n{}", self.log());
        }
    }
}

fn spawn(directory: &Path, port: u16) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let program = binary("control-plane")?;
    Command::new(&program)
        .args(["run", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1"])
        .args(["--secure-port", &port.to_string()])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// A program of this workspace, built into the directory that this test was built into.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = env::current_exe()?;
    let profile = test.ancestors().nth(2).context("the test is in no target directory")?;
    let path = profile.join(name);
    ensure!(path.exists(), "{} is not built: run `cargo build --package {name}` first", path.display());
    Ok(path)
}

/// kubectl as a user types it, in one namespace.
pub struct Kubectl<'a> {
    server: &'a ApiServer,
    namespace: String,
}

/// What a command said.
pub struct Said {
    command: String,
    pub succeeded: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl<'_> {
    /// Runs a command line; words are parted by spaces, single quotes hold words together.
    #[track_caller]
    pub fn run(&self, line: &str, input: Option<&str>) -> Said {
        self.run_with(line, input, &[])
    }

    #[track_caller]
    fn run_with(&self, line: &str, input: Option<&str>, environment: &[(&str, &str)]) -> Said {
        let mut command = self.server.client("kubectl");
        command.arg("--namespace").arg(&self.namespace).args(words(line));
        command.envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is installed");
        let mut stdin = child.stdin.take().expect("the standard input is a pipe");
        // A command that fails early does not read its input; what it says is looked at instead.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("kubectl ends");
        Said::new(line, output)
    }

    /// Runs a command that must succeed.
    #[track_caller]
    pub fn ok(&self, line: &str) -> Said {
        self.run(line, None).succeeded()
    }

    /// Runs a command that must succeed, with a standard input.
    #[track_caller]
    pub fn ok_with(&self, line: &str, input: &str) -> Said {
        self.run(line, Some(input)).succeeded()
    }

    /// Runs a command that must succeed, with an environment.
    #[track_caller]
    pub fn ok_in(&self, line: &str, environment: &[(&str, &str)]) -> Said {
        self.run_with(line, None, environment).succeeded()
    }

    /// Runs a command that must fail.
    #[track_caller]
    pub fn fails(&self, line: &str) -> Said {
        self.run(line, None).failed()
    }

    #[track_caller]
    pub fn fails_with(&self, line: &str, input: &str) -> Said {
        self.run(line, Some(input)).failed()
    }

    /// One object, parsed.
    #[track_caller]
    pub fn json(&self, what: &str) -> Value {
        let said = self.ok(&format!("get {what} -o json"));
        serde_json::from_str(&said.stdout).expect("kubectl prints JSON")
    }

    /// What a JSONPath finds.
    #[track_caller]
    pub fn path(&self, what: &str, path: &str) -> String {
        self.ok(&format!("get {what} -o 'jsonpath={path}'")).stdout
    }

    /// Waits until a JSONPath finds what is expected.
    #[track_caller]
    pub fn eventually(&self, what: &str, path: &str, expected: &str) {
        eventually(READY, &format!("{what} {path} is {expected:?}"), || {
            let said = self.run(&format!("get {what} -o 'jsonpath={path}'"), None);
            ensure!(said.succeeded && said.stdout == expected, "{:?} {}", said.stdout, said.stderr);
            Ok(())
        });
    }
}

impl Said {
    fn new(line: &str, output: Output) -> Self {
        Self {
            command: line.to_owned(),
            succeeded: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert!(self.succeeded, "kubectl {} failed: {}{}", self.command, self.stdout, self.stderr);
        self
    }

    #[track_caller]
    fn failed(self) -> Self {
        assert!(!self.succeeded, "kubectl {} succeeded: {}{}", self.command, self.stdout, self.stderr);
        self
    }

    /// Each part stands somewhere in what was said.
    #[track_caller]
    pub fn says(&self, parts: &[&str]) -> &Self {
        let text = format!("{}{}", self.stdout, self.stderr);
        for part in parts {
            assert!(text.contains(part), "kubectl {}\nlacks: {part}\nsays: {text}", self.command);
        }
        self
    }

    #[track_caller]
    pub fn lacks(&self, part: &str) -> &Self {
        let text = format!("{}{}", self.stdout, self.stderr);
        assert!(!text.contains(part), "kubectl {}\nsays: {part}\nin: {text}", self.command);
        self
    }

    /// The standard output, with runs of spaces made one, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

/// Splits a command line.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut started) = (Vec::new(), String::new(), false, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                started = true;
            }
            ' ' | '\n' if !quoted => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            _ => {
                word.push(letter);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(words("get pods  -l 'a in (b, c)' -o ''"), ["get", "pods", "-l", "a in (b, c)", "-o", ""]);
        assert_eq!(words("patch -p='{\"a\": 1}'"), ["patch", "-p={\"a\": 1}"]);
    }
}
