//! The note of what a ledger holds, on disk.

use std::io;
use std::path::PathBuf;

pub(crate) use hawser_runtime::durable::write;
use parking_lot::Mutex;
use serde::Serialize;

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
    use std::fs;

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
