//! What a container that has ended left as its message: its termination file, or the end of its log.
//!
//! Both are the container's to write and can be of any size; of each the end is read, and no more than is shown.

use std::io::{self, SeekFrom};
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::pod::Instance;

/// Upstream's bounds of a termination message.
const MAX_MESSAGE_BYTES: u64 = 4096;
/// Of all of a pod's containers together, in equal parts.
const MAX_POD_MESSAGE_BYTES: usize = 12 << 10;
const MAX_LOG_MESSAGE_BYTES: usize = 2048;
const MAX_LOG_MESSAGE_LINES: usize = 80;
/// Holds the longest line that a log has (16 KiB and its columns), and more than is shown of shorter ones.
const LOG_END_BYTES: u64 = 20 << 10;

/// `log_complete`: where the file is empty and the container failed, its log stands in, once this says that it is whole.
/// `containers`: those of the pod that share the bound.
pub(super) async fn message(
    instance: &Instance,
    file: &Path,
    log_complete: Option<impl Future<Output = ()>>,
    containers: usize,
) -> Option<String> {
    let (bytes, _) = end(file, MAX_MESSAGE_BYTES).await.unwrap_or_default();
    let message = if bytes.is_empty() {
        let failed = instance.status.exit.as_ref().is_some_and(|e| e.exit_code != 0);
        log_complete.filter(|_| failed)?.await;
        log_tail(&whole_lines(&instance.status.log_path).await.ok()?)
    } else {
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Some(share(message, containers))
}

/// As much of the message as one of `containers` may show: its beginning.
fn share(mut message: String, containers: usize) -> String {
    message.truncate(message.floor_char_boundary(MAX_POD_MESSAGE_BYTES / containers.max(1)));
    message
}

/// The last bytes of a file, at most so many; true where that is all of it.
async fn end(path: &Path, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path).await?;
    let start = file.metadata().await?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start)).await?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).await?;
    Ok((bytes, start == 0))
}

/// The end of a log, whole lines only.
async fn whole_lines(path: &Path) -> io::Result<Vec<u8>> {
    let (mut bytes, is_all) = end(path, LOG_END_BYTES).await?;
    if !is_all {
        let first_whole = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |newline| newline + 1);
        bytes.drain(..first_whole);
    }
    Ok(bytes)
}

/// The last lines of a log in CRI format, without its columns.
fn log_tail(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.lines().rev().take(MAX_LOG_MESSAGE_LINES).collect();
    let mut joined = String::new();
    for line in lines.into_iter().rev() {
        let mut columns = line.splitn(4, ' ').skip(2);
        if let (Some(tag), Some(text)) = (columns.next(), columns.next()) {
            joined.push_str(text);
            // Parts of a line have the tag `P`; the last one of a log may have no end.
            joined.push_str(if tag.starts_with('P') { "" } else { "\n" });
        }
    }
    let from = joined.len().saturating_sub(MAX_LOG_MESSAGE_BYTES);
    let from = (from..=joined.len()).find(|at| joined.is_char_boundary(*at)).unwrap_or(0);
    joined[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// More than any memory holds, and no room on the disk: all holes but `text` at `offset`.
    fn huge(dir: &Path, text: &str, offset: u64) -> std::path::PathBuf {
        let path = dir.join("huge");
        let file = std::fs::File::create(&path).expect("made");
        file.set_len(HUGE_BYTES).expect("a sparse file");
        file.write_all_at(text.as_bytes(), offset).expect("written");
        path
    }

    const HUGE_BYTES: u64 = 1 << 40;

    #[test]
    fn log_tail_drops_the_columns() {
        let log = b"2026-01-01T00:00:00Z stdout F first line\n2026-01-01T00:00:01Z stderr F second\n";
        assert_eq!(log_tail(log), "first line\nsecond\n");
        let log = b"2026-01-01T00:00:00Z stdout F first line\n2026-01-01T00:00:01Z stdout P without an end\n";
        assert_eq!(log_tail(log), "first line\nwithout an end");
        assert_eq!(log_tail(b""), "");
    }

    #[tokio::test]
    async fn huge_termination_file_is_read_from_its_end() {
        let dir = tempfile::tempdir().expect("directory");
        let path = huge(dir.path(), "no database", HUGE_BYTES - 11);
        let (bytes, is_all) = end(&path, MAX_MESSAGE_BYTES).await.expect("read");
        assert!(bytes.ends_with(b"no database"));
        assert_eq!((bytes.len() as u64, is_all), (MAX_MESSAGE_BYTES, false));
    }

    #[test]
    fn containers_of_a_pod_share_what_is_shown() {
        assert_eq!(share("a".repeat(4096), 3).len(), 4096);
        assert_eq!(share("a".repeat(4096), 4).len(), 3072);
        assert_eq!(share("\u{e4}".repeat(200), 48), "\u{e4}".repeat(128));
        assert_eq!(share("\u{e4}".repeat(200), 49), "\u{e4}".repeat(125));
    }

    #[tokio::test]
    async fn huge_log_is_read_from_its_end() {
        let dir = tempfile::tempdir().expect("directory");
        let lines = "end of another line\n2026-01-01T00:00:01Z stderr F no database\n";
        let path = huge(dir.path(), lines, HUGE_BYTES - lines.len() as u64);
        assert_eq!(log_tail(&whole_lines(&path).await.expect("read")), "no database\n");
    }
}
