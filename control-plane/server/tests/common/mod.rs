//! The binary in a directory of its own, and a real kubectl for it.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a failure shows of a log.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// A control plane over a directory of its own; both go with the value.
pub(crate) struct ControlPlane {
    pub(crate) directory: PathBuf,
    process: Child,
}

/// `None`, with a word on why, where this machine has no kubectl.
pub(crate) fn start(roles: &str) -> Option<ControlPlane> {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        eprintln!("skipped: kubectl is not installed");
        return None;
    }
    let plane = begin(roles, &[]);
    plane.wait_ready();
    Some(plane)
}

/// A control plane with flags of its own, which is not waited for.
pub(crate) fn begin(roles: &str, flags: &[String]) -> ControlPlane {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("hawser-kubectl-{}-{number}", std::process::id()));
    let process = spawn(&directory, roles, 0, flags);
    ControlPlane { directory, process }
}

fn spawn(directory: &Path, roles: &str, port: u16, flags: &[String]) -> Child {
    fs::create_dir_all(directory).expect("a directory");
    let log = fs::File::options().create(true).append(true).open(directory.join("log")).expect("a log");
    Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["run", "--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"])
        .arg(format!("--secure-port={port}"))
        .arg(format!("--roles={roles}"))
        .arg(format!("--data-dir={}", directory.display()))
        .args(flags)
        .stderr(log)
        .spawn()
        .expect("the binary runs")
}

impl ControlPlane {
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    pub(crate) fn wait_ready(&self) {
        self.wait_for("the control plane is ready", || {
            self.kubeconfig().exists() && self.try_kubectl(&["get", "--raw", "/readyz"]).status.success()
        });
    }

    pub(crate) fn wait_for(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < DEADLINE, "{what}: not in time; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(file) = fs::File::open(self.directory.join("log")) {
            let _ = file.take(MAX_LOG_BYTES).read_to_string(&mut text);
        }
        text
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.directory);
        command
    }

    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("kubectl runs")
    }

    /// What kubectl prints; it must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> String {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The error that kubectl prints; it must fail.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Kills the control plane without a word and starts it again on the same port.
    pub(crate) fn crash_and_restart(&mut self, roles: &str) {
        let config = fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let server = config.lines().find_map(|line| line.trim().strip_prefix("server: ")).expect("a server");
        let port = server.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        self.process.kill().expect("killed");
        self.process.wait().expect("it ended");
        self.process = spawn(&self.directory, roles, port, &[]);
        self.wait_ready();
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
