//! A control plane of one process, API server, scheduler and single controllers over an embedded store, with a directory of
//! its own.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hawser_api::{
    Client, GroupVersionResource,
    client::ListOptions,
    grpc::{Remote, RemoteOptions},
    resource::Target,
};
use tempfile::TempDir;

const READY: Duration = Duration::from_secs(60);

/// Ends with the value, and its files with it.
pub(crate) struct Server {
    process: Child,
    directory: TempDir,
}

impl Server {
    /// Starts one over an empty store, with these controllers, and waits until it answers.
    pub(crate) async fn start(controllers: &[&str]) -> Result<(Self, Remote)> {
        let own = std::env::current_exe()?;
        let program = own.ancestors().nth(2).context("this program is in no target directory")?;
        let program = program.join("control-plane");
        ensure!(program.exists(), "{} is not built", program.display());
        // Beside the program: what is acknowledged as durable is to be on a disk, not in a tmpfs.
        let parent = own.parent().context("this program is in no directory")?;
        let directory = tempfile::Builder::new().prefix("bench-scheduler-").tempdir_in(parent)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = File::create(directory.path().join("log"))?;
        let roles =
            if controllers.is_empty() { "apiserver,scheduler" } else { "apiserver,scheduler,controllers" };
        let process = Command::new(&program)
            .args(["run", "--log=warn", &format!("--roles={roles}")])
            .arg(format!("--controllers={}", controllers.join(",")))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { process, directory };
        let client = server.ready().await?;
        Ok((server, client))
    }

    async fn ready(&mut self) -> Result<Remote> {
        let kubeconfig = self.directory.path().join("data/admin.kubeconfig");
        let namespaces = Target::collection(GroupVersionResource::fixed("", "v1", "namespaces"), None);
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("the server ended with {status}; log: {}", self.log());
            }
            // Read each time: the file is there a moment before the server answers.
            if let Ok(options) = RemoteOptions::from_kubeconfig(&kubeconfig) {
                let client = Remote::new(&options)?;
                if client.list(&namespaces, &ListOptions::default()).await.is_ok() {
                    return Ok(client);
                }
            }
            ensure!(started.elapsed() < READY, "not ready in time; log: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        let path: PathBuf = self.directory.path().join("log");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
