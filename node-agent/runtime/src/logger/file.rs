//! The log file of one container: appended to, rotated by size, the oldest files removed.
//!
//! A rotated file gets the time of its rotation as suffix and is never renamed again, so that a reader
//! which lists the directory finds the files in order and does not lose its place.
//! Invariant: the file holds whole lines only, also after a write that failed half-way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub(crate) struct LogFile {
    path: PathBuf,
    max_size_bytes: u64,
    max_files: u32,
    current: Option<(File, u64)>,
    lost: Lost,
}

#[derive(Default)]
struct Lost {
    lines: u64,
    reason: String,
}

impl LogFile {
    pub(crate) fn new(path: PathBuf, max_size_bytes: u64, max_files: u32) -> Self {
        Self { path, max_size_bytes, max_files: max_files.max(1), current: None, lost: Lost::default() }
    }

    /// Appends whole lines. Lines that cannot be written are dropped; how many is written when writing
    /// works again.
    pub(crate) fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let notice = self.lost_notice();
        let result = match &notice {
            Some(notice) => self.write(&[notice.as_bytes(), lines].concat()),
            None => self.write(lines),
        };
        match result {
            Ok(()) => self.lost = Lost::default(),
            Err(error) => {
                self.lost.lines += lines.iter().filter(|b| **b == b'\n').count() as u64;
                self.lost.reason = error.to_string();
            }
        }
    }

    fn lost_notice(&self) -> Option<String> {
        let Lost { lines, reason } = &self.lost;
        let now = Timestamp::now();
        (*lines > 0).then(|| format!("{now:.9} stderr F [hawser: {lines} log lines lost: {reason}]\n"))
    }

    fn write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            let size = self.current()?.1;
            let fitting = whole_lines_within(lines, self.max_size_bytes.saturating_sub(size));
            // A line that no file has room for gets one of its own.
            let count = if fitting == 0 && size == 0 { first_line(lines) } else { fitting };
            if count == 0 {
                self.current = None;
                rotate(&self.path, self.max_files)?;
                continue;
            }
            self.write_to_current(&lines[..count])?;
            lines = &lines[count..];
        }
        Ok(())
    }

    fn write_to_current(&mut self, lines: &[u8]) -> io::Result<()> {
        let (file, size) = self.current()?;
        if let Err(error) = file.write_all(lines) {
            // Takes back the part of a line that may have been written.
            let _ = file.set_len(*size);
            self.current = None;
            return Err(error);
        }
        *size += lines.len() as u64;
        Ok(())
    }

    fn current(&mut self) -> io::Result<&mut (File, u64)> {
        match &mut self.current {
            Some(current) => Ok(current),
            absent => Ok(absent.insert(open(&self.path)?)),
        }
    }
}

/// Bytes of the whole lines at the beginning of `lines` that `room` has room for.
fn whole_lines_within(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
    lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1)
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn rotate(path: &Path, max_files: u32) -> io::Result<()> {
    let now = Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f").to_string();
    let mut rotated = path.as_os_str().to_owned();
    rotated.push(".");
    rotated.push(now);
    fs::rename(path, rotated)?;
    let files = rotated_files(path)?;
    let excess = files.len().saturating_sub(max_files as usize - 1);
    for file in &files[..excess] {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// The rotated files of the log `path`, oldest first.
pub(crate) fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_the_newest_files_and_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::new(path.clone(), 100, 3);
        for i in 0..40 {
            log.append(format!("line number {i:02} of this log\n").as_bytes());
        }
        let rotated = rotated_files(&path).unwrap();
        assert_eq!(rotated.len(), 2);
        let all: String = rotated.iter().chain([&path]).map(|p| fs::read_to_string(p).unwrap()).collect();
        let numbers: Vec<u32> = all.lines().map(|l| l[12..14].parse().unwrap()).collect();
        let first = numbers[0];
        assert!(numbers.len() >= 7 && numbers.iter().copied().eq(first..40), "{numbers:?}");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/0.log");
        let mut log = LogFile::new(path.clone(), 1000, 3);
        log.append(b"one\ntwo\n");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        log.append(b"three\n");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("stderr F [hawser: 2 log lines lost: No such file"), "{text}");
        assert!(text.ends_with("three\n"), "{text}");
    }

    #[test]
    fn appends_to_what_an_earlier_writer_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        LogFile::new(path.clone(), 1000, 3).append(b"one\n");
        LogFile::new(path.clone(), 1000, 3).append(b"two\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
