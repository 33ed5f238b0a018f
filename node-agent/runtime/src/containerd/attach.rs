//! Attaching to a container's own process: live output from its log writer, input through its FIFO.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::WaitRequest;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::fifo::{self, NotifyingWriter};
use super::task_io::STDIN_FIFO;
use super::{Inner, rpc};
use crate::logger::{ATTACH_SOCKET, FRAME_HEADER, Stream, decode_header};
use crate::paths::io_error;
use crate::{AttachRequest, BoxRead, BoxWrite, ContainerState, Error, Result, Session};

/// Output kept for a client that is behind; beyond it the log writer buffers, and then cuts it off.
const BUFFER_BYTES: usize = 64 << 10;

/// How long an ended container's log writer is waited for. It is done in milliseconds unless the disk is slow, or
/// something outside of the container holds its output open.
const LOG_WRITER_TIMEOUT: Duration = Duration::from_secs(10);
const RECONNECT: Duration = Duration::from_millis(20);

impl Inner {
    pub(super) async fn attach(self: &Arc<Self>, id: &str, request: &AttachRequest) -> Result<Session> {
        let absent = || Error::NotFound { kind: "container", id: id.to_owned() };
        let status = self.status(id).await?.ok_or_else(absent)?;
        if status.state != ContainerState::Running {
            let state = format!("{:?}", status.state).to_lowercase();
            return Err(Error::WrongState { id: id.to_owned(), state, attempted: "attach" });
        }
        let stored = self.stored(id).await?.ok_or_else(absent)?;
        let directory = self.paths.container(id);

        let (mut stdout, mut stderr) = (None, None);
        let (tell_cut_off, cut_off) = oneshot::channel();
        if request.stdout || request.stderr {
            let output = connect(&directory).await?;
            let (out_writer, out) = tokio::io::duplex(BUFFER_BYTES);
            let (err_writer, err) = tokio::io::duplex(BUFFER_BYTES);
            stdout = request.stdout.then(|| Box::new(out) as BoxRead);
            stderr = (request.stderr && !stored.tty).then(|| Box::new(err) as BoxRead);
            let writers = (stdout.is_some().then_some(out_writer), stderr.is_some().then_some(err_writer));
            let directory = directory.clone();
            self.background.spawn(async move {
                // It ends a connection by ending itself, or because this end of it was behind; another try tells.
                if distribute(output, writers.0, writers.1).await && connect(&directory).await.is_ok() {
                    // Fails when the session has ended.
                    let _ = tell_cut_off.send(());
                }
            });
        }
        let stdin = match request.stdin && stored.stdin {
            true => Some(self.attach_stdin(id, &directory, stored.stdin_once)?),
            false => None,
        };
        Ok(Session {
            stdin,
            stdout,
            stderr,
            resize: stored.tty.then(|| self.resizer(id, "")),
            exit: Arc::clone(self).exit_unless(cut_off, id.to_owned()).boxed(),
        })
    }

    fn attach_stdin(self: &Arc<Self>, id: &str, directory: &Path, once: bool) -> Result<BoxWrite> {
        let pipe = fifo::open_writer(&directory.join(STDIN_FIFO))?;
        if !once {
            return Ok(Box::new(pipe));
        }
        let (owner, id) = (Arc::clone(self), id.to_owned());
        let on_close = move || owner.close_stdin_later(id, String::new());
        Ok(Box::new(NotifyingWriter::new(pipe, on_close)))
    }

    /// Waits for the container's own end, or for that of a session whose output was cut off.
    async fn exit_unless(self: Arc<Self>, cut_off: oneshot::Receiver<()>, id: String) -> Result<i32> {
        tokio::select! {
            exit = Arc::clone(&self).exit_code(id.clone()) => exit,
            Ok(()) = cut_off => Err(Error::CutOff { id }),
        }
    }

    /// Waits for the container's own end, however long.
    async fn exit_code(self: Arc<Self>, id: String) -> Result<i32> {
        let request = WaitRequest { container_id: id.clone(), exec_id: String::new() };
        match self.rpc.tasks().wait(request).await {
            Ok(answer) => Ok(answer.into_inner().exit_status as i32),
            // Ended, and its task or its whole shim is gone: its record knows, once what is left was looked at.
            Err(status) => {
                if let Ok(Some(found)) = self.find(&id).await {
                    self.settle(&found).await?;
                }
                match self.records.get(&id).exit {
                    Some(exit) => Ok(exit.exit_code),
                    None => Err(rpc::error("wait for the end of a task", status)),
                }
            }
        }
    }

    /// Waits for the container's log writer, a process of its own, to end, but not for ever.
    pub(super) async fn log_complete(&self, id: &str) {
        let directory = self.paths.container(id);
        let writer_ends = async {
            // It ends a connection by ending itself, or by cutting off a client; another try tells.
            while let Ok(mut frames) = connect(&directory).await {
                let _ = tokio::io::copy(&mut frames, &mut tokio::io::sink()).await;
                tokio::time::sleep(RECONNECT).await;
            }
        };
        if tokio::time::timeout(LOG_WRITER_TIMEOUT, writer_ends).await.is_err() {
            tracing::debug!(id, "the log writer goes on: something holds the container's output open");
        }
    }
}

pub(super) async fn connect(directory: &Path) -> Result<UnixStream> {
    // Through the directory's descriptor, because the whole path may be too long for a socket address.
    let opened = std::fs::File::open(directory).map_err(io_error("open", directory))?;
    let path = format!("/proc/self/fd/{}/{ATTACH_SOCKET}", opened.as_raw_fd());
    UnixStream::connect(path).await.map_err(io_error("connect to the log writer in", directory))
}

/// Splits the log writer's frames by stream. A reader that went away is no reason to stop for the other. True when the
/// frames ended before the readers went.
async fn distribute(
    mut frames: UnixStream,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> bool {
    let mut header = [0; FRAME_HEADER];
    let mut bytes = Vec::new();
    while stdout.is_some() || stderr.is_some() {
        if frames.read_exact(&mut header).await.is_err() {
            return true;
        }
        let Some((stream, length)) = decode_header(header) else { return true };
        bytes.resize(length, 0);
        if frames.read_exact(&mut bytes).await.is_err() {
            return true;
        }
        let writer = match stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        if let Some(open) = writer
            && open.write_all(&bytes).await.is_err()
        {
            *writer = None;
        }
    }
    false
}
