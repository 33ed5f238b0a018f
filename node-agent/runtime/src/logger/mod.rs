//! The process that writes one container's log, started by its shim as `binary://<program>?<mode>=<file>`.
//!
//! It outlives the agent: lines go from the container's pipes to the CRI log file, rotated by size,
//! whether or not an agent runs. What arrives is also handed live to clients of a unix socket, for
//! attach. It never holds the container back: what cannot be written (a full disk) or handed on (a slow
//! client) is dropped, and the log says how much. Single-threaded, no async runtime: there is one such
//! process for every container.

mod clients;
mod file;
mod lines;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};

use clients::Clients;
use file::LogFile;
use lines::LineEncoder;

pub(crate) use clients::{FRAME_HEADER, decode_header};
pub(crate) use file::rotated_files;

/// Name of the attach socket beside the configuration file.
pub(crate) const ATTACH_SOCKET: &str = "attach.sock";

/// Bytes taken from a pipe at once: a whole pipe buffer.
const READ_BYTES: usize = 64 << 10;

/// How often a writer that reads FIFOs looks whether its container still exists.
const ORPHAN_CHECK_MS: u16 = 10_000;

/// How long clients that are behind are waited for at the end. The log is whole by then; deleting the task waits for it.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);

/// What a writer is told, as JSON in the file that its command line names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriterConfig {
    pub(crate) log_path: PathBuf,
    pub(crate) max_size_bytes: u64,
    pub(crate) max_files: u32,
    pub(crate) source: Source,
}

/// Where the output comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// The shim's pipes: stdout is fd 3, stderr fd 4; closing fd 5 says that the writer is ready.
    Pipes,
    /// The same, but a terminal has only one stream, and the shim never closes the other one.
    Terminal,
    /// The same pipes, from the agent, which held them when an earlier writer was killed: stdout is fd 0, stderr fd 1.
    Held,
    /// FIFOs, for containers with stdin: the shim gives a logging program no stdin (containerd 1.6).
    Fifos { stdout: PathBuf, stderr: PathBuf },
}

impl Source {
    /// The writer's descriptors that its output comes from; none where it comes by name.
    pub(crate) fn descriptors(&self) -> &'static [u8] {
        match self {
            Self::Pipes => &[3, 4],
            Self::Terminal => &[3],
            Self::Held => &[0, 1],
            Self::Fifos { .. } => &[],
        }
    }
}

/// One of a container's output streams, as CRI log lines name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Runs a log writer until its container's output ends. Call it first thing in `main`, when the program
/// was started in the mode that [`crate::LogWriter::mode`] names.
pub fn run(config_path: &Path) -> ExitCode {
    match write_log(config_path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The shim passes its own stderr on; there is nobody else to tell.
            eprintln!("log writer for {}: {error}", config_path.display());
            ExitCode::FAILURE
        }
    }
}

struct Input {
    stream: Stream,
    pipe: File,
    encoder: LineEncoder,
    ended: bool,
}

fn write_log(config_path: &Path) -> std::io::Result<()> {
    let config: WriterConfig = serde_json::from_slice(&fs::read(config_path)?)?;
    let mut writer = Writer {
        is_fifo: matches!(config.source, Source::Fifos { .. }),
        inputs: open_inputs(&config.source)?,
        log: LogFile::new(config.log_path, config.max_size_bytes, config.max_files),
        clients: Clients::listen(config_path.parent().unwrap_or(Path::new("/"))),
        termination: termination()?,
        asked_to_end: false,
        chunk: vec![0; READ_BYTES],
        encoded: Vec::with_capacity(2 * READ_BYTES),
    };
    if matches!(config.source, Source::Pipes | Source::Terminal) {
        // Fails when there is no such descriptor, which then means that nobody waits for it.
        let _ = nix::unistd::close(5);
    }
    while writer.turn(config_path)? {}
    writer.finish();
    Ok(())
}

struct Writer {
    is_fifo: bool,
    inputs: Vec<Input>,
    log: LogFile,
    clients: Clients,
    termination: SignalFd,
    asked_to_end: bool,
    chunk: Vec<u8>,
    encoded: Vec<u8>,
}

impl Writer {
    /// Waits for output and passes it on; false when no more will come.
    fn turn(&mut self, config_path: &Path) -> std::io::Result<bool> {
        if self.inputs.iter().all(|input| input.ended) {
            return Ok(false);
        }
        let timeout = match (self.asked_to_end, self.is_fifo) {
            (true, _) => PollTimeout::ZERO,
            (false, true) => PollTimeout::from(ORPHAN_CHECK_MS),
            (false, false) => PollTimeout::NONE,
        };
        let readable = wait(&self.inputs, &mut self.clients, &self.termination, timeout)?;
        // Only a look at the pipes that began after the request to end tells that they are empty: between this look
        // and the request the container may have written, and ended.
        if readable.is_empty() && (self.asked_to_end || self.is_fifo && !config_path.exists()) {
            return Ok(false);
        }
        self.asked_to_end |= matches!(self.termination.read_signal(), Ok(Some(_)));
        for index in readable {
            let input = &mut self.inputs[index];
            let count = match input.pipe.read(&mut self.chunk) {
                Ok(count) => count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                Err(e) => return Err(e),
            };
            self.encoded.clear();
            if count == 0 {
                input.ended = true;
            } else {
                input.encoder.feed(&self.chunk[..count], Timestamp::now(), &mut self.encoded);
                self.clients.send(input.stream, &self.chunk[..count]);
            }
            self.log.append(&self.encoded);
        }
        Ok(true)
    }

    /// Writes what was said last without an end of line, and then waits a little for clients that are behind.
    fn finish(&mut self) {
        for input in &mut self.inputs {
            self.encoded.clear();
            input.encoder.finish(Timestamp::now(), &mut self.encoded);
            self.log.append(&self.encoded);
        }
        self.clients.finish(CLIENT_PATIENCE);
    }
}

/// Readable when this process is asked to end. A shim does so as soon as it has closed its ends of the pipes, when what
/// the container said last is still in them.
fn termination() -> std::io::Result<SignalFd> {
    let signals = SigSet::from(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn open_inputs(source: &Source) -> std::io::Result<Vec<Input>> {
    let input = |stream, path: &Path| -> std::io::Result<Input> {
        let pipe = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
        Ok(Input { stream, pipe, encoder: LineEncoder::new(stream), ended: false })
    };
    if let Source::Fifos { stdout, stderr } = source {
        return Ok(vec![input(Stream::Stdout, stdout)?, input(Stream::Stderr, stderr)?]);
    }
    // Opening through /proc gives descriptors of our own, non-blocking and owned.
    let given = [Stream::Stdout, Stream::Stderr].into_iter().zip(source.descriptors());
    given.map(|(stream, fd)| input(stream, Path::new(&format!("/proc/self/fd/{fd}")))).collect()
}

/// Waits until something happens; serves the clients; returns the inputs that can be read.
fn wait(
    inputs: &[Input],
    clients: &mut Clients,
    termination: &SignalFd,
    timeout: PollTimeout,
) -> std::io::Result<Vec<usize>> {
    let open: Vec<usize> = (0..inputs.len()).filter(|i| !inputs[*i].ended).collect();
    let (readable, ready) = {
        let mut fds: Vec<PollFd> =
            open.iter().map(|i| PollFd::new(inputs[*i].pipe.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(termination.as_fd(), PollFlags::POLLIN));
        clients.add_poll_fds(&mut fds);
        while let Err(error) = poll(&mut fds, timeout) {
            if error != nix::errno::Errno::EINTR {
                return Err(error.into());
            }
        }
        let any = |fd: &PollFd| fd.any().unwrap_or(true);
        let readable = open.iter().zip(&fds).filter(|(_, fd)| any(fd)).map(|(i, _)| *i).collect();
        let ready: Vec<bool> = fds[open.len() + 1..].iter().map(any).collect();
        (readable, ready)
    };
    clients.serve(&ready);
    Ok(readable)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::signal::raise;

    use super::*;

    /// The container writes its last words and ends just after the writer has looked at the pipe.
    #[test]
    fn what_comes_between_the_last_look_and_the_request_to_end_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let log_path = directory.path().join("0.log");
        let (output, mut container) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(output));
        let termination = termination().unwrap();
        let encoder = LineEncoder::new(Stream::Stdout);
        let mut writer = Writer {
            is_fifo: false,
            inputs: vec![Input { stream: Stream::Stdout, pipe, encoder, ended: false }],
            log: LogFile::new(log_path.clone(), 1 << 20, 1),
            clients: Clients::default(),
            termination,
            asked_to_end: false,
            chunk: vec![0; READ_BYTES],
            encoded: Vec::new(),
        };
        raise(Signal::SIGTERM).unwrap();
        assert!(writer.turn(directory.path()).unwrap(), "looks again");
        container.write_all(b"last words").unwrap();
        // Another process holds the pipe open, so that it never ends.
        while writer.turn(directory.path()).unwrap() {}
        writer.finish();
        let log = fs::read_to_string(log_path).unwrap();
        assert!(log.ends_with(" stdout P last words\n"), "{log:?}");
    }
}
