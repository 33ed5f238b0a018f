//! Reads a container's log back: CRI lines in, what the container wrote out, across rotated files.
//!
//! Knows files only. Which file belongs to which attempt of a container, and when a container has ended,
//! the caller says.

mod line;
mod tail;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::logger::{Stream, rotated_files};
use line::Line;

/// Bytes read from a file at once, and about the size of a chunk that is handed on.
const READ_BYTES: usize = 64 << 10;

/// Pause at the end of a file that is followed. Looking at one file's size 10 times a second costs
/// nothing measurable, and works on every file system and across rotation alike.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// The query of `GET .../log`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogOptions {
    pub follow: bool,
    /// Only the last so many lines of those that are there at the start.
    pub tail_lines: Option<u64>,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Each line starts with the time it was written at.
    pub timestamps: bool,
    /// Stop after so many bytes of output.
    pub limit_bytes: Option<u64>,
    /// Only one of the streams.
    pub stream: Option<Stream>,
}

/// A log being read; see [`LogReader::next_chunk`].
pub struct LogReader {
    path: PathBuf,
    options: LogOptions,
    /// Resolves when nothing more will come into the log; only asked when following.
    ended: BoxFuture<'static, ()>,
    has_ended: bool,
    current: Option<OpenFile>,
    unparsed: BytesMut,
    /// The last line handed on was a part (`P`): what follows continues it.
    inside_line: bool,
    remaining_bytes: u64,
    /// Where to begin, as `tail_lines` asks; taken when the first file is opened.
    start: Option<tail::Start>,
}

struct OpenFile {
    file: File,
    inode: u64,
}

impl LogReader {
    /// Prepares to read the log at `path`. A log that does not exist (yet) is an empty one. `ended` resolves
    /// when it is as long as it will get: a container's end is not the end of its log, whose writer may be a
    /// moment behind ([`crate::Runtime::log_complete`]).
    pub async fn open(path: PathBuf, options: LogOptions, ended: BoxFuture<'static, ()>) -> io::Result<Self> {
        let lines = options.tail_lines;
        let tail_of = path.clone();
        let start = tokio::task::spawn_blocking(move || tail::find_start(&log_files(&tail_of)?, lines))
            .await
            .map_err(io::Error::other)??;
        Ok(Self {
            path,
            remaining_bytes: options.limit_bytes.unwrap_or(u64::MAX),
            options,
            ended,
            has_ended: false,
            current: None,
            unparsed: BytesMut::new(),
            inside_line: false,
            start,
        })
    }

    /// The next output, some lines at a time; `None` at the end. When following, waits for more until
    /// the log has ended.
    ///
    /// Not cancel-safe: dropping the future may lose a chunk, so drop the reader with it.
    pub async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.remaining_bytes == 0 {
                return Ok(None);
            }
            // Before anything else is read: what comes next may be of another file.
            let chunk = self.take_lines();
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            if self.fill().await? || self.advance().await? {
                continue;
            }
            if !self.options.follow || !self.wait_for_more().await {
                return Ok(None);
            }
        }
    }

    /// Reads more of the current file; false at its end (or without one).
    async fn fill(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.current else { return Ok(false) };
        self.unparsed.reserve(READ_BYTES);
        Ok(open.file.read_buf(&mut self.unparsed).await? > 0)
    }

    /// Turns whole lines of `unparsed` into output.
    fn take_lines(&mut self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.unparsed.len());
        while let Some(end) = self.unparsed.iter().position(|b| *b == b'\n') {
            let raw = self.unparsed.split_to(end + 1);
            let Some(line) = Line::parse(&raw[..end]) else { continue };
            if self.options.stream.is_some_and(|wanted| wanted != line.stream)
                || self.options.since.is_some_and(|since| line.time().is_some_and(|time| time < since))
            {
                continue;
            }
            if self.options.timestamps && !self.inside_line {
                out.extend_from_slice(line.time_text);
                out.extend_from_slice(b" ");
            }
            out.extend_from_slice(line.text);
            if !line.partial {
                out.extend_from_slice(b"\n");
            }
            self.inside_line = line.partial;
        }
        if out.len() as u64 > self.remaining_bytes {
            out.truncate(self.remaining_bytes as usize);
        }
        self.remaining_bytes -= out.len() as u64;
        out.freeze()
    }

    /// Goes on to the next file, if there is one; true when there is something new to read.
    async fn advance(&mut self) -> io::Result<bool> {
        let files = log_files(&self.path)?;
        let next = match (&self.current, self.start.take()) {
            (None, Some(start)) => {
                let Some(file) = files.iter().find(|f| f.inode == start.inode).or(files.first()) else {
                    return Ok(false);
                };
                let mut open = OpenFile::open(&file.path).await?;
                if open.inode == start.inode {
                    open.file.seek(io::SeekFrom::Start(start.offset)).await?;
                }
                open
            }
            (None, None) => match files.first() {
                Some(file) => OpenFile::open(&file.path).await?,
                None => return Ok(false),
            },
            (Some(current), _) => {
                let position = files.iter().position(|f| f.inode == current.inode);
                let Some(file) = files.get(position.map_or(0, |p| p + 1)) else { return Ok(false) };
                // Lines may have been added between the end that we saw and the rotation.
                if self.fill().await? {
                    return Ok(true);
                }
                OpenFile::open(&file.path).await?
            }
        };
        self.current = Some(next);
        self.unparsed.clear();
        Ok(true)
    }

    /// False when no more will come.
    async fn wait_for_more(&mut self) -> bool {
        if self.has_ended {
            return false;
        }
        let pause = tokio::time::sleep(FOLLOW_INTERVAL);
        tokio::select! {
            // What came before the end is still to be read.
            () = &mut self.ended => self.has_ended = true,
            () = pause => {}
        }
        true
    }
}

impl OpenFile {
    async fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path).await?;
        let inode = file.metadata().await?.ino();
        Ok(Self { file, inode })
    }
}

/// One file of a log.
struct FileEntry {
    path: PathBuf,
    inode: u64,
}

/// The files of a log, oldest first. Files that vanish meanwhile are left out.
fn log_files(path: &Path) -> io::Result<Vec<FileEntry>> {
    let rotated = match rotated_files(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut files = Vec::new();
    for path in rotated.into_iter().chain([path.to_owned()]) {
        match std::fs::metadata(&path).map(|m: Metadata| m.ino()) {
            Ok(inode) => files.push(FileEntry { path, inode }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    // A rotation in between shows one file under both names.
    files.dedup_by_key(|file| file.inode);
    Ok(files)
}

/// For a log that is as long as it will get.
pub fn already_ended() -> BoxFuture<'static, ()> {
    std::future::ready(()).boxed()
}

#[cfg(test)]
mod tests;
