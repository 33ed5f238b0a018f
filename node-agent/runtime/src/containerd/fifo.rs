//! FIFOs between this process and a shim.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::sys::stat::Mode;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use crate::Result;
use crate::paths::io_error;

/// Makes a FIFO, unless it is there.
pub(super) fn make(path: PathBuf) -> Result<PathBuf> {
    match nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(path),
        Err(e) => Err(io_error("make FIFO", &path)(e.into())),
    }
}

/// Opens for reading; succeeds before there is a writer.
pub(super) fn open_reader(path: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(path).map_err(io_error("open", path))
}

/// Opens for writing; fails when nobody has it open for reading.
pub(super) fn open_writer(path: &Path) -> Result<pipe::Sender> {
    pipe::OpenOptions::new().open_sender(path).map_err(io_error("open", path))
}

/// A writer that says so when it is shut down or dropped: the shim holds the FIFO open for writing too,
/// so that closing this end alone would not be noticed.
pub(super) struct NotifyingWriter {
    pipe: Option<pipe::Sender>,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

impl NotifyingWriter {
    pub(super) fn new(pipe: pipe::Sender, on_close: impl FnOnce() + Send + 'static) -> Self {
        Self { pipe: Some(pipe), on_close: Some(Box::new(on_close)) }
    }

    fn close(&mut self) {
        // The FIFO first, so that all that was written is in it when the shim closes its side.
        drop(self.pipe.take());
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }

    fn pipe(&mut self) -> std::io::Result<Pin<&mut pipe::Sender>> {
        match &mut self.pipe {
            Some(pipe) => Ok(Pin::new(pipe)),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for NotifyingWriter {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for NotifyingWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.pipe()?.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
