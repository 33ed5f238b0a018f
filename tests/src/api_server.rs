//! A control plane of a test's own: the built binary on a free port of loopback, with a store in a temporary directory.
//!
//! No node joins it, so pods stay Pending. It ends when the value is dropped, and its directory with it. Tests of
//! clients start one each: it takes a fraction of a second. The many conformance tests share one.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::{eventually, kubectl::Kubectl};

pub(crate) const READY: Duration = Duration::from_secs(20);
/// Names the kubeconfig of a server that runs already, for tests that share one.
const SHARED_SERVER: &str = "HAWSER_TEST_SERVER";
/// After this a client's process is ended, so that a server that hangs fails a test and does not hang it.
const CLIENT_SECONDS: &str = "60";

/// The running server.
pub struct ApiServer {
    directory: TempDir,
    kubeconfig: PathBuf,
    /// `None` where somebody else started the server, and ends it.
    process: Option<Child>,
    /// Flags of the test's own.
    flags: Vec<String>,
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
        Self::start_with(&[])
    }

    /// As [`ApiServer::start`], with flags.
    #[track_caller]
    pub fn start_with(flags: &[&str]) -> Self {
        let directory = scratch();
        let flags: Vec<String> = flags.iter().copied().map(str::to_owned).collect();
        let process = spawn(directory.path(), 0, &flags).expect("the control plane starts");
        let kubeconfig = directory.path().join("data/admin.kubeconfig");
        Self { directory, kubeconfig, process: Some(process), flags, port: 0 }.found()
    }

    /// The server that tests use together: the one whose kubeconfig `HAWSER_TEST_SERVER` names, else one of this
    /// process, which ends with its last user.
    ///
    /// # Panics
    /// Where it cannot be reached, or does not come up.
    #[track_caller]
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<ApiServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(match env::var_os(SHARED_SERVER) {
                Some(kubeconfig) => Self::at(kubeconfig.into()),
                None => Self::start(),
            });
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A server that runs already, and is ready.
    ///
    /// # Panics
    /// Where the kubeconfig does not name its port.
    #[track_caller]
    pub fn at(kubeconfig: PathBuf) -> Self {
        // Read without kubectl: it takes longer to start than most tests of such a server.
        let text = fs::read_to_string(&kubeconfig).expect("the kubeconfig can be read");
        let server = text.lines().find_map(|line| line.trim().strip_prefix("server:"));
        let port = server.and_then(|address| address.trim().rsplit(':').next()?.parse().ok());
        let port = port.expect("the kubeconfig names the server's port");
        Self { directory: scratch(), kubeconfig, process: None, flags: Vec::new(), port }
    }

    /// Learns where the server listens: it chooses a free port, and says which in the kubeconfig.
    #[track_caller]
    fn found(mut self) -> Self {
        self.port = eventually(READY, "the control plane writes its kubeconfig", || {
            self.check_running()?;
            let address = self.template(r#"{{(index .clusters 0).cluster.server}}"#)?;
            Ok(address.rsplit(':').next().unwrap_or_default().parse()?)
        });
        self.wait_until_ready();
        self
    }

    /// `kill -9`, then the same data on the same port again.
    ///
    /// # Panics
    /// Where it does not come up again.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.kill();
        let process =
            spawn(self.directory.path(), self.port, &self.flags).expect("the control plane starts again");
        self.process = Some(process);
        self.wait_until_ready();
    }

    /// `kill -9`: no chance to write anything more.
    pub fn kill(&mut self) {
        let Some(process) = &mut self.process else { return };
        // Both fail only where the process is gone already.
        let _ = process.kill();
        let _ = process.wait();
    }

    /// `https://127.0.0.1:40123`
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
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

    /// A directory with what the node of that name needs to be a kubelet on loopback: `kubelet.crt`, `kubelet.key`, `ca.crt`.
    ///
    /// # Panics
    /// Where they cannot be issued.
    #[track_caller]
    pub fn node_credentials(&self, name: &str) -> PathBuf {
        let directory = self.directory.path().join(format!("node-{name}"));
        let mut command = Command::new(binary("control-plane").expect("the control plane is built"));
        command.args(["node-credentials", "--name", name, "--node-ip", "127.0.0.1", "--data-dir"]);
        command.arg(self.directory.path().join("data")).arg("--out").arg(&directory);
        assert!(command.status().expect("it runs").success(), "no credentials for {name}");
        directory
    }

    /// kubectl in a namespace, which is made here.
    #[track_caller]
    pub fn kubectl(&self, namespace: &str) -> Kubectl<'_> {
        let kubectl = self.kubectl_in(namespace);
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

    /// kubectl in a namespace that is there.
    pub fn kubectl_in(&self, namespace: &str) -> Kubectl<'_> {
        Kubectl { server: self, namespace: namespace.to_owned() }
    }

    /// A program that a client's test runs: with the kubeconfig in its environment, and an end.
    pub fn client(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", CLIENT_SECONDS]).arg(program.as_ref());
        command.env("KUBECONFIG", self.kubeconfig());
        command.env("KUBECACHEDIR", self.directory.path().join("kubectl-cache"));
        if let Some(process) = &self.process {
            command.env("HAWSER_SERVER_PID", process.id().to_string());
        }
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
        let status = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
        if let Some(status) = status {
            bail!("the control plane ended ({status}): {}", self.log());
        }
        Ok(())
    }

    /// What the server logged; nothing where somebody else started it.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
        if self.process.is_some() && std::thread::panicking() {
            eprintln!("--- log of the control plane\n{}", self.log());
        }
    }
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("hawser-clients-").tempdir().expect("a temporary directory can be made")
}

fn spawn(directory: &Path, port: u16, flags: &[String]) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(directory.join("log"))?;
    let program = binary("control-plane")?;
    Command::new(&program)
        // Advertised is an address that no machine has (RFC 5737): endpoints cannot name one of loopback.
        .args(["run", "--bind-address", "127.0.0.1", "--advertise-address", "192.0.2.254"])
        .args(["--secure-port", &port.to_string()])
        // Nodes of tests give no sign of life.
        .args(["--node-monitor-grace-period", "3600"])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// A program of this workspace, built into the directory that this test or program was built into.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = env::current_exe()?;
    // A test lies one folder deeper than a program.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not built: run `cargo build --package {name}` first"))
}
