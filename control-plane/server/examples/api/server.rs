//! The server under test: its processes, its processor, what it takes.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    client::Connector,
    measure::{self, Memory},
};

/// Processors: the clients have one, the server and its store another.
pub(crate) const CLIENTS: usize = 0;
const SERVER: usize = 1;

const READY: Duration = Duration::from_secs(60);

/// Where the server keeps its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Embedded,
    Etcd,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Etcd => "etcd",
        }
    }
}

impl FromStr for Engine {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "etcd" => Ok(Self::Etcd),
            other => bail!("there is no store {other}: embedded, etcd"),
        }
    }
}

/// Ties this process, or what it starts from now on, to a processor.
pub(crate) fn take_processor(which: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(which)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("cannot run on processor {which}: the benchmark needs two"))
}

/// A process that ends with the value.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Result<Self> {
        take_processor(SERVER)?;
        let child = command.spawn();
        take_processor(CLIENTS)?;
        Ok(Self(child.with_context(|| format!("cannot start {:?}", command.get_program()))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running API server, its store and its files.
pub(crate) struct Server {
    process: Option<Process>,
    port: u16,
    etcd: Option<(Process, String)>,
    directory: TempDir,
}

impl Server {
    /// Starts a server over an empty store.
    pub(crate) async fn start(engine: Engine) -> Result<Self> {
        let parent = std::env::current_exe()?.parent().context("this program is in no directory")?.to_owned();
        // Beside the program: what is acknowledged as durable is to be on a disk, not in a tmpfs.
        let directory = tempfile::Builder::new().prefix("bench-api-").tempdir_in(parent)?;
        let etcd = match engine {
            Engine::Embedded => None,
            Engine::Etcd => Some(start_etcd(directory.path())?),
        };
        let mut server = Self { process: None, port: free_port()?, etcd, directory };
        server.begin().await?;
        Ok(server)
    }

    /// Ends the server and starts it over the same store; returns how long it took to be ready.
    pub(crate) async fn restart(&mut self) -> Result<Duration> {
        self.process = None;
        self.begin().await
    }

    async fn begin(&mut self) -> Result<Duration> {
        let log = File::options().create(true).append(true).open(self.directory.path().join("log"))?;
        let mut command = Command::new(program("control-plane")?);
        command.args([
            "run",
            "--roles=apiserver",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
        ]);
        command.arg(format!("--secure-port={}", self.port)).arg("--data-dir").arg(self.data());
        if let Some((_, url)) = &self.etcd {
            command.args(["--store=etcd", "--etcd-servers", url]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        self.process = Some(Process::start(&mut command)?);
        loop {
            if self.is_ready().await {
                return Ok(started.elapsed());
            }
            let log = self.directory.path().join("log");
            ensure!(started.elapsed() < READY, "not ready in time; log: {}", std::fs::read_to_string(log)?);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let Ok(connector) = self.connector() else { return false };
        let Ok(mut client) = connector.connect().await else { return false };
        client.get("/readyz", "").await.is_ok()
    }

    /// For the administrator's connections.
    pub(crate) fn connector(&self) -> Result<Connector> {
        Connector::new(self.port, &self.data().join("admin.kubeconfig"))
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the server is not running")?.0.id())
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        measure::memory(self.id()?)
    }

    pub(crate) fn reset_peak(&self) -> Result<()> {
        measure::reset_peak(self.id()?)
    }

    /// Processor time that the server has taken, without its etcd.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        measure::cpu(self.id()?)
    }
}

/// A program of the same build.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.ancestors().nth(2).context("this program is in no target directory")?.join(name);
    ensure!(path.exists(), "{} is not built", path.display());
    Ok(path)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start_etcd(directory: &Path) -> Result<(Process, String)> {
    let (client, peer) = (free_port()?, free_port()?);
    let url = format!("http://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let log = File::create(directory.join("etcd.log"))?;
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(directory.join("etcd"));
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--quota-backend-bytes=8589934592"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let process = Process::start(&mut command)?;
    let started = Instant::now();
    while !is_healthy(client) {
        ensure!(started.elapsed() < READY, "etcd is not ready in time");
        thread::sleep(Duration::from_millis(20));
    }
    Ok((process, url))
}

/// What etcd says of itself.
fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
