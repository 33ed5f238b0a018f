//! What must be known of a container after its process, its shim or this machine is gone: that it was
//! started, and how it ended. One small file a container, kept in memory too. It is on disk when a call returns: nothing
//! else tells what ran before a loss of power, and it would be started once more.

use std::collections::HashMap;
use std::fs;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::durable::{self, UNFINISHED};
use crate::keyed_lock::KeyedLock;
use crate::paths::{Paths, io_error, remove_file};
use crate::{ContainerExit, Result};

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
        Ok(Self { paths, known: Mutex::new(known), changing: KeyedLock::default() })
    }

    pub(super) fn get(&self, id: &str) -> ExitRecord {
        self.known.lock().get(id).cloned().unwrap_or_default()
    }

    pub(super) fn started(&self, id: &str, at: Timestamp) -> Result<()> {
        self.put(id, ExitRecord { started_at: Some(at), exit: None })
    }

    /// True when this is news.
    pub(super) fn exited(&self, id: &str, exit: &ContainerExit) -> Result<bool> {
        let record = self.get(id);
        if record.exit.is_some() {
            return Ok(false);
        }
        self.put(id, ExitRecord { exit: Some(exit.clone()), ..record })?;
        Ok(true)
    }

    pub(super) fn forget(&self, id: &str) -> Result<()> {
        remove_file(&self.paths.record(id))?;
        self.known.lock().remove(id);
        Ok(())
    }

    /// Ids that there are records of.
    pub(super) fn ids(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    fn put(&self, id: &str, record: ExitRecord) -> Result<()> {
        let text = serde_json::to_vec(&record).expect("a record is plain data");
        let path = self.paths.record(id);
        durable::write(&path, &text).map_err(io_error("write", &path))?;
        self.known.lock().insert(id.to_owned(), record);
        Ok(())
    }
}
