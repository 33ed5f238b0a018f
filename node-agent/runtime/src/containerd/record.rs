//! What must be known of a container after its process, its shim or this machine is gone: that it was
//! started, and how it ended. One small file a container, kept in memory too. It is on disk when a call returns: nothing
//! else tells what ran before a loss of power, and it would be started once more.
//!
//! An exit that cannot be written (the disk is full) has happened all the same: it is known in memory, and written later,
//! before containerd is let forget it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::durable::{self, UNFINISHED};
use crate::keyed_lock::KeyedLock;
use crate::paths::{Paths, io_error, remove_file};
use crate::{ContainerExit, Result};

/// How many forgotten containers are remembered as such: late news of one comes within a list of containerd's.
const FORGOTTEN: usize = 1024;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ExitRecord {
    pub(super) started_at: Option<Timestamp>,
    pub(super) exit: Option<ContainerExit>,
}

/// Calls block. Changes of one container's record must not overlap.
pub(super) struct Records {
    paths: Paths,
    known: Mutex<HashMap<String, ExitRecord>>,
    /// By id, for who changes a record: held to the end of the change, whoever stops waiting for it.
    pub(super) changing: KeyedLock,
    /// Ids of those that are not on disk as they are known; a part of `known`.
    unwritten: Mutex<HashSet<String>>,
    /// The latest that were forgotten, and not started again. A list that was under way when one was removed, or an event,
    /// may still tell of its end, which is to leave nothing.
    forgotten: Mutex<VecDeque<String>>,
}

impl Records {
    /// Reads what an earlier agent wrote. A file that does not parse is as good as none.
    pub(super) fn load(paths: Paths) -> Result<Self> {
        let directory = paths.records();
        fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        let mut known = HashMap::new();
        for entry in fs::read_dir(&directory).map_err(io_error("list", &directory))? {
            let path = entry.map_err(io_error("list", &directory))?.path();
            let extension = path.extension().and_then(|e| e.to_str());
            if extension == Some(UNFINISHED) {
                // Of an agent that was killed while it wrote.
                remove_file(&path)?;
            }
            let (Some(id), Some("json")) = (path.file_stem().and_then(|s| s.to_str()), extension) else {
                continue;
            };
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            known.insert(id.to_owned(), record.unwrap_or_default());
        }
        let changing = KeyedLock::default();
        let (unwritten, forgotten) = (Mutex::default(), Mutex::default());
        Ok(Self { paths, known: Mutex::new(known), changing, unwritten, forgotten })
    }

    pub(super) fn get(&self, id: &str) -> ExitRecord {
        self.known.lock().get(id).cloned().unwrap_or_default()
    }

    pub(super) fn started(&self, id: &str, at: Timestamp) -> Result<()> {
        let record = ExitRecord { started_at: Some(at), exit: None };
        self.write(id, &record)?;
        self.known.lock().insert(id.to_owned(), record);
        self.forgotten.lock().retain(|forgotten| forgotten != id);
        Ok(())
    }

    /// True when this is news. Written here, or by [`Self::write_again`].
    pub(super) fn exited(&self, id: &str, exit: &ContainerExit) -> bool {
        if self.forgotten.lock().iter().any(|forgotten| forgotten == id) {
            return false;
        }
        let mut known = self.known.lock();
        let record = known.entry(id.to_owned()).or_default();
        if record.exit.is_some() {
            return false;
        }
        record.exit = Some(exit.clone());
        drop(known);
        self.unwritten.lock().insert(id.to_owned());
        if let Err(error) = self.write_again(id) {
            tracing::warn!(%error, id, "an exit was not written, trying again");
        }
        true
    }

    pub(super) fn is_written(&self, id: &str) -> bool {
        !self.unwritten.lock().contains(id)
    }

    /// Writes what could not be written before. Nothing to write is success.
    pub(super) fn write_again(&self, id: &str) -> Result<()> {
        if !self.is_written(id) {
            self.write(id, &self.get(id))?;
            self.unwritten.lock().remove(id);
        }
        Ok(())
    }

    pub(super) fn forget(&self, id: &str) -> Result<()> {
        remove_file(&self.paths.record(id))?;
        self.known.lock().remove(id);
        self.unwritten.lock().remove(id);
        let mut forgotten = self.forgotten.lock();
        forgotten.retain(|known| known != id);
        forgotten.truncate(FORGOTTEN - 1);
        forgotten.push_front(id.to_owned());
        Ok(())
    }

    /// Ids that there are records of.
    pub(super) fn ids(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    fn write(&self, id: &str, record: &ExitRecord) -> Result<()> {
        let text = serde_json::to_vec(record).expect("a record is plain data");
        let path = self.paths.record(id);
        durable::write(&path, &text).map_err(io_error("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::{Config, LogWriter, Registries};

    fn load(dir: &Path) -> Records {
        let log_writer =
            LogWriter { program: dir.into(), mode: String::new(), max_size_bytes: 1, max_files: 1 };
        let config = Config {
            socket: dir.into(),
            namespace: "test".into(),
            state_dir: dir.into(),
            run_dir: dir.into(),
            snapshotter: None,
            log_writer,
            registries: Registries::default(),
            cdi_dirs: Vec::new(),
            handlers: Default::default(),
            relist_interval: Duration::ZERO,
        };
        Records::load(Paths::new(&config)).unwrap()
    }

    fn exit() -> ContainerExit {
        ContainerExit {
            exit_code: 3,
            finished_at: Timestamp::UNIX_EPOCH,
            oom_killed: false,
            unobserved: false,
        }
    }

    #[test]
    fn late_news_of_a_container_that_was_forgotten_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let exit = exit();
        let records = load(dir.path());
        records.started("one", Timestamp::UNIX_EPOCH).unwrap();
        records.forget("one").unwrap();
        assert!(!records.exited("one", &exit));
        assert_eq!((records.ids(), load(dir.path()).ids()), (vec![], vec![]));
        records.started("one", Timestamp::UNIX_EPOCH).unwrap();
        assert!(records.exited("one", &exit), "it was made anew");
        for number in 0..2 * FORGOTTEN {
            records.forget(&number.to_string()).unwrap();
        }
        assert_eq!(records.forgotten.lock().len(), FORGOTTEN);
    }

    #[test]
    fn exit_that_cannot_be_written_is_known_and_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let exit = exit();
        let records = load(dir.path());
        records.started("one", Timestamp::UNIX_EPOCH).unwrap();
        // No file can be made where one is written first.
        let place = records.paths.record("one").with_extension(UNFINISHED);
        fs::create_dir(&place).unwrap();
        assert!(records.exited("one", &exit));
        assert!(!records.exited("one", &exit), "told once");
        assert_eq!(records.get("one").exit, Some(exit.clone()));
        assert!(records.write_again("one").is_err(), "containerd is not to forget it yet");
        fs::remove_dir(&place).unwrap();
        records.write_again("one").unwrap();
        records.write_again("another").unwrap();
        assert_eq!(load(dir.path()).get("one").exit, Some(exit));
    }
}
