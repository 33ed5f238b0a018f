//! The LMDB environment: opening, locking, the format check, and what its errors mean.
//!
//! A directory holds `data.mdb` (the state), `lock.mdb` (LMDB's reader table) and `LOCK` (held while the store is
//! open). LMDB writes copy-on-write and syncs the data before the page that makes it current, so a crash at any
//! point, power loss included, leaves the last commit. Format and tables: see [`super::record`].

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, MdbError, WithoutTls, types::Bytes};
use tokio::sync::watch;

use super::{
    MAX_READERS,
    record::{FORMAT, State},
};
use crate::{Error, Source};

/// Bytes to bytes: [`super::record`] does the encoding.
pub(super) type Table = Database<'static, Bytes, Bytes>;

const FORMAT_KEY: &[u8] = b"format";
const STATE_KEY: &[u8] = b"state";

/// An open environment. The directory stays locked until the last clone of its `Arc` is gone.
pub(super) struct Disk {
    pub(super) env: Env<WithoutTls>,
    meta: Table,
    /// Key to [`super::record::Head`].
    pub(super) heads: Table,
    /// [`super::record::Position`] to [`super::record::Record`].
    pub(super) log: Table,
    path: PathBuf,
    max_size_bytes: u64,
    /// Declared after the environment: released when that is closed.
    _lock: File,
    /// Declared last: whoever waits for it knows that the directory can be opened again.
    _closed: watch::Sender<()>,
}

impl Disk {
    /// Opens the directory, and makes it when it is absent or empty. Blocking.
    ///
    /// The receiver's sender is dropped when the directory is free again.
    pub(super) fn open(path: &Path, max_size_bytes: u64) -> Result<(Self, watch::Receiver<()>), Error> {
        let io_error = |attempted| move |source| Error::io(attempted, path, source);
        // Secrets are in here: nobody else reads it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create"))?;
        let lock = lock_directory(path)?;
        let map_size = usize::try_from(max_size_bytes)
            .ok()
            .and_then(|size| size.checked_next_multiple_of(PAGE_MULTIPLE))
            .ok_or_else(|| Error::Configuration { reason: "the maximum size does not fit memory".into() })?;
        let env = open_environment(path, map_size)?;
        let (meta, heads, log) = open_tables(&env, path)?;
        // The files' names must survive power loss too, and so must the directory's own.
        sync_directory(path).map_err(io_error("sync"))?;
        if let Some(parent) = path.canonicalize().map_err(io_error("resolve"))?.parent() {
            sync_directory(parent).map_err(io_error("sync the parent of"))?;
        }
        let (closed_sender, closed) = watch::channel(());
        let disk = Self {
            env,
            meta,
            heads,
            log,
            path: path.to_owned(),
            max_size_bytes,
            _lock: lock,
            _closed: closed_sender,
        };
        Ok((disk, closed))
    }

    pub(super) fn state(&self, txn: &heed::RoTxn<'_>) -> Result<State, Error> {
        let bytes = self.meta.get(txn, STATE_KEY).map_err(read_error)?;
        State::decode(bytes.ok_or_else(|| Error::Corrupt { what: "it has no state".into() })?)
    }

    pub(super) fn put_state(&self, txn: &mut heed::RwTxn<'_>, state: &State) -> Result<(), heed::Error> {
        self.meta.put(txn, STATE_KEY, &state.encode())
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.env.real_disk_size().unwrap_or(0)
    }

    pub(super) fn max_size_bytes(&self) -> u64 {
        self.max_size_bytes
    }

    /// What a failed write means, when it is certain that nothing was committed.
    pub(super) fn write_error(&self, error: heed::Error) -> Error {
        let what = match &error {
            heed::Error::Mdb(MdbError::MapFull) => Some("the configured maximum size is used up"),
            heed::Error::Io(source) if is_no_space(source) => Some("no space left on its file system"),
            // LMDB reports a short write, which is what a full file system gives first, as EIO.
            heed::Error::Io(source) if source.raw_os_error() == Some(libc::EIO) && self.is_nearly_full() => {
                Some("no space left on its file system")
            }
            _ => None,
        };
        let source: Source = Arc::new(error);
        match what {
            Some(what) => Error::Full { what, source },
            None => Error::Unavailable { attempted: "writing to disk", source },
        }
    }

    /// Whether LMDB takes writes: after a failed write of its meta page it refuses them until it is reopened.
    pub(super) fn takes_writes(&self) -> bool {
        self.env.write_txn().map(heed::RwTxn::abort).is_ok()
    }

    fn is_nearly_full(&self) -> bool {
        let Ok(path) = std::ffi::CString::new(self.path.as_os_str().as_encoded_bytes()) else { return false };
        available_bytes(&path).is_some_and(|available| available < NEARLY_FULL_BYTES)
    }
}

/// Large enough for any page size of the architectures that Hawser runs on.
const PAGE_MULTIPLE: usize = 64 * 1024;

/// One group commit writes up to 8 MiB and the pages around it.
const NEARLY_FULL_BYTES: u64 = 16 * 1024 * 1024;

fn lock_directory(path: &Path) -> Result<File, Error> {
    let file_path = path.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&file_path)
        .map_err(|source| Error::io("open", &file_path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", &file_path, source)),
    }
}

#[expect(unsafe_code, reason = "LMDB maps a file into memory")]
fn open_environment(path: &Path, map_size: usize) -> Result<Env<WithoutTls>, Error> {
    // Readers are tied to transactions, not threads: they run on a thread pool of any size.
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_dbs(4).max_readers(MAX_READERS as u32 + 2);
    // SAFETY: the map is sound as long as nothing but LMDB writes the file. `LOCK`, which we hold, keeps every
    // other process of this program out, and the directory is ours alone (mode 0700). Flags that weaken LMDB's
    // own locking or writing are not set.
    let opened = unsafe { options.open(path) };
    opened.map_err(|error| match error {
        heed::Error::Mdb(MdbError::Invalid | MdbError::VersionMismatch | MdbError::Corrupted) => {
            Error::Corrupt { what: format!("{}: {error}", path.join("data.mdb").display()) }
        }
        heed::Error::Io(source) => Error::io("open the database in", path, source),
        other => Error::Unavailable { attempted: "opening the database", source: Arc::new(other) },
    })
}

/// Checks the format before anything is written; makes the tables of a new database.
fn open_tables(env: &Env<WithoutTls>, path: &Path) -> Result<(Table, Table, Table), Error> {
    let is_new = env.unnamed_database_stat().entries == 0;
    let txn = env.write_txn().map_err(open_error)?;
    let outcome = env
        .create_databases_and_commit(txn, |opener, txn| {
            if !is_new {
                let meta = opener.open_database::<Bytes, Bytes>(txn, Some("meta")).map_err(open_error)?;
                let format = match &meta {
                    Some(meta) => meta.get(txn, FORMAT_KEY).map_err(open_error)?,
                    None => None,
                };
                let format = format.and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
                match format {
                    Some(FORMAT) => {}
                    Some(found) => {
                        return Err(OpenError(Error::UnsupportedFormat {
                            path: path.to_owned(),
                            found,
                            supported: FORMAT,
                        }));
                    }
                    None => return Err(OpenError(Error::Corrupt { what: "it has no format number".into() })),
                }
            }
            let meta = opener.create_database::<Bytes, Bytes>(txn, Some("meta")).map_err(open_error)?;
            let heads = opener.create_database::<Bytes, Bytes>(txn, Some("heads")).map_err(open_error)?;
            let log = opener.create_database::<Bytes, Bytes>(txn, Some("log")).map_err(open_error)?;
            if is_new {
                meta.put(txn, FORMAT_KEY, &FORMAT.to_le_bytes()).map_err(open_error)?;
                meta.put(txn, STATE_KEY, &State::INITIAL.encode()).map_err(open_error)?;
            }
            Ok(CommitOrAbort::<_, ()>::Commit((meta, heads, log)))
        })
        .map_err(|OpenError(error)| error)?;
    Ok(outcome.unwrap_commit())
}

/// Lets heed's own errors through the closure above.
struct OpenError(Error);

impl From<heed::Error> for OpenError {
    fn from(error: heed::Error) -> Self {
        open_error(error)
    }
}

fn open_error(error: heed::Error) -> OpenError {
    OpenError(Error::Unavailable { attempted: "opening the database", source: Arc::new(error) })
}

impl From<OpenError> for Error {
    fn from(OpenError(error): OpenError) -> Self {
        error
    }
}

pub(super) fn read_error(error: heed::Error) -> Error {
    match error {
        heed::Error::Mdb(MdbError::Corrupted | MdbError::PageNotFound) => {
            Error::Corrupt { what: error.to_string() }
        }
        other => Error::Unavailable { attempted: "reading from disk", source: Arc::new(other) },
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[expect(unsafe_code, reason = "statvfs has no wrapper in std")]
fn available_bytes(path: &std::ffi::CStr) -> Option<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a NUL-terminated string and `stat` is writable memory of the right type; both outlive the call.
    let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: statvfs returned 0, so it filled the structure in.
    let stat = unsafe { stat.assume_init() };
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn other_format_is_refused_and_left_alone() {
        let path = std::env::temp_dir().join(format!("hawser-store-format-{}", std::process::id()));
        let scratch = Scratch(path);
        let (disk, _) = Disk::open(&scratch.0, 1 << 20).unwrap();
        let put_format = |disk: &Disk, format: u32| {
            let mut txn = disk.env.write_txn().unwrap();
            disk.meta.put(&mut txn, FORMAT_KEY, &format.to_le_bytes()).unwrap();
            txn.commit().unwrap();
        };
        put_format(&disk, FORMAT + 1);
        drop(disk);
        let before = fs::read(scratch.0.join("data.mdb")).unwrap();
        for _ in 0..2 {
            let error = Disk::open(&scratch.0, 1 << 20).err().unwrap();
            assert!(
                matches!(error, Error::UnsupportedFormat { found, supported: FORMAT, .. } if found == FORMAT + 1),
                "{error}"
            );
        }
        assert_eq!(fs::read(scratch.0.join("data.mdb")).unwrap(), before);
    }
}
