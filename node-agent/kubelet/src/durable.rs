//! Small files that a loss of power leaves whole: the old content or the new one, and the new one once written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::Serialize;

/// Replaces the file, and returns when file and directory are on disk. Only root may read it. Calls for the same file
/// must not overlap. Blocks.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    // What a crash left may have other rights.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// The file that shows what a ledger holds: the devices, CPUs, memory or claims that pods have.
pub(crate) struct Note {
    path: PathBuf,
    /// The ledger's version that is on disk; held while one is written, so that none follows a newer one.
    written: Mutex<u64>,
}

impl Note {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, written: Mutex::default() }
    }

    /// Writes what the ledger holds now. `newer` gives that with its version, unless it is the one that is on disk, and has
    /// the ledger locked no longer than it runs. Blocks.
    pub(crate) fn write<S: Serialize>(&self, newer: impl FnOnce(u64) -> Option<(u64, S)>) -> io::Result<()> {
        let mut written = self.written.lock();
        let Some((version, state)) = newer(*written) else { return Ok(()) };
        write(&self.path, &serde_json::to_vec(&state)?)?;
        *written = version;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn content_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/note.json");
        for content in ["first", "second and longer", "3"] {
            // As a crash in the middle leaves it.
            let _ = fs::create_dir_all(dir.path().join("deep"));
            fs::write(dir.path().join("deep/note.new"), "half").expect("written");
            write(&path, content.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), content);
        }
        assert_eq!(fs::read_dir(dir.path().join("deep")).expect("listed").count(), 1);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn ledger_is_written_where_it_is_newer_than_its_note() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("note");
        let note = Note::new(path.clone());
        let write = |version: u64| {
            let state = |known| (version != known).then_some((version, version * 10));
            note.write(state).expect("written");
            fs::read_to_string(&path).ok()
        };
        assert_eq!(write(0), None, "nothing has been given yet");
        assert_eq!(write(2).as_deref(), Some("20"));
        fs::remove_file(&path).expect("there");
        assert_eq!(write(2), None);
        assert_eq!(write(3).as_deref(), Some("30"));
    }
}
