//! Finds where the last n lines of a log begin, reading backwards from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::FileEntry;

const BLOCK_BYTES: u64 = 64 << 10;

/// A place in one of a log's files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) inode: u64,
    pub(super) offset: u64,
}

/// Where to begin so that `lines` lines are left; `None`: at the very beginning. Costs what those lines
/// are long, not what the log is.
pub(super) fn find_start(files: &[FileEntry], lines: Option<u64>) -> io::Result<Option<Start>> {
    let Some(mut wanted) = lines else { return Ok(None) };
    for entry in files.iter().rev() {
        let file = match File::open(&entry.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let metadata = file.metadata()?;
        let (offset, found) = last_lines(&file, metadata.len(), wanted)?;
        if found == wanted {
            return Ok(Some(Start { inode: metadata.ino(), offset }));
        }
        wanted -= found;
    }
    Ok(None)
}

/// Offset of the last `wanted` lines of a file (0 when it has fewer), and how many lines that are.
fn last_lines(file: &File, size: u64, wanted: u64) -> io::Result<(u64, u64)> {
    if wanted == 0 || size == 0 {
        return Ok((size, 0));
    }
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut newlines = 0;
    let mut end = size;
    while end > 0 {
        let begin = end.saturating_sub(BLOCK_BYTES);
        let part = &mut block[..(end - begin) as usize];
        file.read_exact_at(part, begin)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let offset = begin + index as u64;
            // The newline that ends the file ends its last line; it does not begin another one.
            if *byte != b'\n' || offset + 1 == size {
                continue;
            }
            newlines += 1;
            if newlines == wanted {
                return Ok((offset + 1, wanted));
            }
        }
        end = begin;
    }
    Ok((0, newlines + 1))
}
