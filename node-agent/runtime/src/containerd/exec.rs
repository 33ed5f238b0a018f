//! Further processes in a running container.
//!
//! Streams go through FIFOs, which are unlinked as soon as both sides have opened them. A task of the
//! runtime makes each process, watches it to its end and deletes it, so that giving up on a session, at
//! whatever point, leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use containerd_client::types::v1::{Process, Status as TaskStatus};
use futures::FutureExt;
use nix::libc::SIGKILL;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::ask::Before;
use super::container::was_started;
use super::exit::UNOBSERVED_EXIT_CODE;
use super::fifo::{self, NotifyingWriter};
use super::status::task_status;
use super::{Inner, ask, rpc};
use crate::paths::{io_error, remove_file};
use crate::spec::exec_process;
use crate::{BoxRead, Error, ExecOutput, ExecRequest, Result, Session, TerminalSize};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// How long output is waited for after the process has ended: children that it left behind may hold its
/// pipes open for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Only the latest size counts; some may wait while one is set.
const RESIZE_QUEUE: usize = 8;

/// Tells apart processes of one agent that start at the same moment.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Inner {
    pub(super) async fn exec(self: &Arc<Self>, id: &str, request: &ExecRequest) -> Result<Session> {
        let spec = self.exec_spec(id).await?;
        let process = exec_process(&spec, &request.command, request.tty)?;
        let exec_id = format!(
            "exec-{}-{}",
            jiff::Timestamp::now().as_nanosecond(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let streams = ExecStreams::make(self.paths.container(id), &exec_id, request)?;
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.clone(),
            stdin: streams.path(&streams.stdin),
            stdout: streams.path(&streams.stdout),
            stderr: streams.path(&streams.stderr),
            terminal: request.tty,
            spec: Some(prost_types::Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: serde_json::to_vec(&process).expect("a process is plain data"),
            }),
        };
        let tty = request.terminal;
        let process = ExecProcess { owner: Arc::clone(self), id: id.to_owned(), exec_id: exec_id.clone() };
        let (started, is_started) = oneshot::channel();
        let (ended, exit) = oneshot::channel();
        self.background.spawn(process.run(request, streams, started, ended));
        let (stdin, streams) = is_started.await.unwrap_or_else(|_| Err(shut_down("exec")))?;
        Ok(self.session(id, &exec_id, tty, stdin, streams, exit))
    }

    /// The specification of a container's own process, which others in it are made after. Kept from the first of them on, as
    /// probes make many.
    async fn exec_spec(&self, id: &str) -> Result<Arc<Value>> {
        if let Some(known) = self.exec_specs.lock().get(id) {
            return Ok(Arc::clone(known));
        }
        let absent = || Error::NotFound { kind: "container", id: id.to_owned() };
        // Ours, or none of our business.
        self.stored(id).await?.ok_or_else(absent)?;
        let container = self.container(id).await?.ok_or_else(absent)?;
        let spec = container.spec.and_then(|spec| serde_json::from_slice::<Value>(&spec.value).ok());
        let mut spec = spec.ok_or_else(|| Error::Containerd {
            attempted: "exec",
            message: "container has no specification".into(),
        })?;
        let process = Arc::new(spec["process"].take());
        let mut specs = self.exec_specs.lock();
        // Not of one that has been removed meanwhile.
        if self.known.lock().contains_key(id) {
            specs.insert(id.to_owned(), Arc::clone(&process));
        }
        Ok(process)
    }

    fn session(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        tty: bool,
        stdin: Option<pipe::Sender>,
        mut streams: ExecStreams,
        exit: oneshot::Receiver<Result<i32>>,
    ) -> Session {
        let stdin = stdin.map(|pipe| {
            let (owner, id, exec_id) = (Arc::clone(self), id.to_owned(), exec_id.to_owned());
            let on_close = move || owner.close_stdin_later(id, exec_id);
            Box::new(NotifyingWriter::new(pipe, on_close)) as crate::BoxWrite
        });
        Session {
            stdin,
            stdout: self.wanted_or_drained(streams.stdout_reader.take(), streams.wanted.0),
            stderr: self.wanted_or_drained(streams.stderr_reader.take(), streams.wanted.1),
            resize: tty.then(|| self.resizer(id, exec_id)),
            exit: async move { exit.await.unwrap_or_else(|_| Err(shut_down("wait for exec"))) }.boxed(),
        }
    }

    /// Output that nobody wants is read too, so that the process does not wait for a reader.
    fn wanted_or_drained(&self, pipe: Option<pipe::Receiver>, wanted: bool) -> Option<BoxRead> {
        let mut pipe = pipe?;
        if wanted {
            return Some(Box::new(pipe));
        }
        self.background.spawn(async move { tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await });
        None
    }

    /// Closes the shim's side of a process's stdin; an empty `exec_id` means the container's own process.
    pub(super) fn close_stdin_later(self: &Arc<Self>, id: String, exec_id: String) {
        let owner = Arc::clone(self);
        self.background.spawn(async move {
            let request = CloseIoRequest { container_id: id.clone(), exec_id, stdin: true };
            if let Err(error) = rpc::remove("close stdin", owner.rpc.tasks().close_io(request)).await {
                tracing::debug!(%error, id, "stdin of a process could not be closed");
            }
        });
    }

    /// Sets terminal sizes until the sender is dropped.
    pub(super) fn resizer(self: &Arc<Self>, id: &str, exec_id: &str) -> mpsc::Sender<TerminalSize> {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(RESIZE_QUEUE);
        let (owner, id, exec_id) = (Arc::clone(self), id.to_owned(), exec_id.to_owned());
        self.background.spawn(async move {
            while let Some(size) = sizes.recv().await {
                let request = ResizePtyRequest {
                    container_id: id.clone(),
                    exec_id: exec_id.clone(),
                    width: size.width.into(),
                    height: size.height.into(),
                };
                if let Err(error) = rpc::call("resize terminal", owner.rpc.tasks().resize_pty(request)).await
                {
                    tracing::debug!(%error, id, "terminal could not be resized");
                }
            }
        });
        sender
    }

    pub(super) async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: &[String],
        timeout: Duration,
        limit_bytes: usize,
    ) -> Result<ExecOutput> {
        let request =
            ExecRequest { command: command.to_vec(), stdout: true, stderr: true, ..Default::default() };
        let run = async {
            let session = self.exec(id, &request).await?;
            let stdout = tokio::spawn(read_limited(session.stdout, limit_bytes));
            let stderr = tokio::spawn(read_limited(session.stderr, limit_bytes));
            let exit_code = session.exit.await?;
            let (stdout, stderr) = tokio::join!(drain(stdout), drain(stderr));
            Ok(ExecOutput { exit_code, stdout, stderr })
        };
        match tokio::time::timeout(timeout, run).await {
            Ok(result) => result,
            // Dropping the session kills the process.
            Err(_) => Err(Error::Timeout { what: format!("command {:?}", command.join(" ")), timeout }),
        }
    }
}

fn shut_down(attempted: &'static str) -> Error {
    Error::Unavailable { attempted, message: "runtime is shut down".into() }
}

/// The writing end of a started process's stdin, and its other streams.
type Started = (Option<pipe::Sender>, ExecStreams);

/// A process that exec makes, from its beginning to its end.
struct ExecProcess {
    owner: Arc<Inner>,
    id: String,
    exec_id: String,
}

impl ExecProcess {
    /// Starts the process, waits for it, and deletes it. It is killed when `ended` has no receiver any more; who drops
    /// that of `started` drops both.
    async fn run(
        self,
        request: ExecProcessRequest,
        streams: ExecStreams,
        started: oneshot::Sender<Result<Started>>,
        mut ended: oneshot::Sender<Result<i32>>,
    ) {
        match self.start(request, &streams).await {
            // Fails when the caller has given up: seen next.
            Ok(stdin) => drop(started.send(Ok((stdin, streams)))),
            Err(error) => {
                // It may run all the same: an answer is missing, or its input could not be opened.
                self.kill().await;
                self.delete().await;
                let _ = started.send(Err(exec_error(&self.id, error)));
                return;
            }
        }
        let request = WaitRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        let mut tasks = self.owner.rpc.tasks();
        let mut wait = std::pin::pin!(tasks.wait(request));
        let answer = tokio::select! {
            answer = &mut wait => answer,
            () = ended.closed() => {
                self.kill().await;
                wait.await
            }
        };
        self.delete().await;
        let exit = match answer {
            Ok(answer) => Ok(answer.into_inner().exit_status as i32),
            Err(status) => self.exit_with_container(rpc::error("wait for exec", status)).await,
        };
        // Fails when nobody wants to know any more.
        let _ = ended.send(exit);
    }

    /// Makes and starts the process; returns the writing end of its stdin.
    async fn start(
        &self,
        request: ExecProcessRequest,
        streams: &ExecStreams,
    ) -> Result<Option<pipe::Sender>> {
        let tasks = || self.owner.rpc.tasks();
        let made = ask::until_known(
            "exec",
            Before::Nothing,
            || async { rpc::call("exec", tasks().exec(request.clone())).await.map(drop) },
            |_| async { Ok(self.process().await?.map(drop)) },
        );
        made.await?;
        let request = StartRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        let started = ask::until_known(
            "start exec",
            Before::Nothing,
            || async { rpc::call("start exec", tasks().start(request.clone())).await.map(drop) },
            |unanswered| async move { Ok(self.process().await?.filter(|p| was_started(p, unanswered)).map(drop)) },
        );
        started.await?;
        // The shim has it open for reading once the process is started.
        streams.stdin.as_deref().map(fifo::open_writer).transpose()
    }

    /// The wait failed. Where the container has ended, its shim may be gone too, and the process was killed with it.
    async fn exit_with_container(&self, error: Error) -> Result<i32> {
        match self.owner.task(&self.id).await {
            Ok(task) if task.as_ref().is_none_or(|task| task_status(task) == TaskStatus::Stopped) => {
                Ok(UNOBSERVED_EXIT_CODE)
            }
            _ => Err(error),
        }
    }

    /// What containerd has of it.
    async fn process(&self) -> Result<Option<Process>> {
        self.owner.process(&self.id, &self.exec_id).await
    }

    async fn kill(&self) {
        let request = KillRequest {
            container_id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            signal: SIGKILL as u32,
            all: false,
        };
        let killed = ask::until_known(
            "kill exec",
            Before::Nothing,
            || async { rpc::remove("kill exec", self.owner.rpc.tasks().kill(request.clone())).await },
            ask::unseen,
        );
        if let Err(error) = killed.await {
            tracing::debug!(%error, id = self.id, exec_id = self.exec_id, "abandoned process could not be killed");
        }
    }

    async fn delete(&self) {
        let request = DeleteProcessRequest { container_id: self.id.clone(), exec_id: self.exec_id.clone() };
        let deleted = ask::until_known(
            "delete exec",
            Before::Nothing,
            || async {
                rpc::remove("delete exec", self.owner.rpc.tasks().delete_process(request.clone())).await
            },
            ask::unseen,
        );
        if let Err(error) = deleted.await {
            tracing::debug!(%error, id = self.id, exec_id = self.exec_id, "ended process could not be deleted");
        }
    }
}

/// The process has ended; what holds its output open is not waited for.
async fn drain(output: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let abort = output.abort_handle();
    match tokio::time::timeout(DRAIN_TIMEOUT, output).await {
        Ok(Ok(output)) => output,
        _ => {
            abort.abort();
            Vec::new()
        }
    }
}

async fn read_limited(stream: Option<impl AsyncRead + Unpin>, limit_bytes: usize) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut output = Vec::new();
    let mut chunk = vec![0; 8 << 10];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let room = limit_bytes.saturating_sub(output.len()).min(count);
        output.extend_from_slice(&chunk[..room]);
    }
    output
}

/// FIFOs of one process; unlinked when dropped.
struct ExecStreams {
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
    stdout_reader: Option<pipe::Receiver>,
    stderr_reader: Option<pipe::Receiver>,
    /// Whether the caller asked for stdout, and for stderr.
    wanted: (bool, bool),
}

impl ExecStreams {
    fn make(directory: PathBuf, exec_id: &str, request: &ExecRequest) -> Result<Self> {
        std::fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        let fifo = |wanted: bool, name: &str| {
            wanted.then(|| fifo::make(directory.join(format!("{exec_id}-{name}")))).transpose()
        };
        let mut streams = Self {
            stdin: fifo(request.stdin, "in")?,
            stdout: None,
            stderr: None,
            stdout_reader: None,
            stderr_reader: None,
            wanted: (request.stdout, request.stderr),
        };
        // Both, asked for or not: a shim that is given one of them opens the other one too.
        streams.stdout = fifo(true, "out")?;
        streams.stderr = fifo(!request.tty, "err")?;
        // Before the shim opens them: it waits for a reader.
        streams.stdout_reader = streams.stdout.as_deref().map(fifo::open_reader).transpose()?;
        streams.stderr_reader = streams.stderr.as_deref().map(fifo::open_reader).transpose()?;
        Ok(streams)
    }

    fn path(&self, fifo: &Option<PathBuf>) -> String {
        fifo.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl Drop for ExecStreams {
    fn drop(&mut self) {
        for path in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            if let Err(error) = remove_file(path) {
                tracing::debug!(%error, "FIFO of a process could not be removed");
            }
        }
    }
}

fn exec_error(id: &str, error: Error) -> Error {
    match error {
        Error::NotFound { .. } => {
            Error::WrongState { id: id.to_owned(), state: "not running".into(), attempted: "exec" }
        }
        Error::Containerd { message, .. } => {
            Error::Start { id: id.to_owned(), attempted: "exec in", message }
        }
        other => other,
    }
}
