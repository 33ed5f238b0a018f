//! Files that change all at once: a directory behind a symlink that is swapped.
//!
//! In the volume, `..data` points at a directory named after the time of writing, and each visible entry is a
//! link into `..data`. A reader sees either the old files or the new ones, never a mixture; this is the layout
//! of upstream's `pkg/volume/util/atomic_writer.go`, which programs rely on to notice changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use hawser_runtime::fault;
use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadFile {
    pub content: Vec<u8>,
    pub mode: u32,
    /// Owner where it is not root (tokens of pods that run as one user).
    pub uid: Option<u32>,
}

impl PayloadFile {
    /// A group that owns the files can read them.
    fn mode_for(&self, group: Option<u32>) -> u32 {
        let readable = if group.is_some() { (self.mode & 0o400) >> 3 } else { 0 };
        (self.mode | readable) & 0o777
    }
}

/// Files by relative path; paths have no `..` and do not begin with it.
pub type Payload = BTreeMap<PathBuf, PayloadFile>;

/// Makes `dir` hold exactly `payload`. Returns false when it already did.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    fs::create_dir_all(dir)?;
    if is_current(dir, payload, group)? {
        return Ok(false);
    }
    let now = Timestamp::now();
    let name = format!("..{}.{}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let fresh = dir.join(&name);
    DirBuilder::new().mode(0o755).create(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&fresh, path, file, group)?;
    }
    fault::point("volumes: content written");
    let link = dir.join(DATA_NEW);
    remove_if_there(&link)?;
    symlink(&name, &link)?;
    fault::point("volumes: link to the content made");
    let before = fs::read_link(dir.join(DATA)).ok();
    fs::rename(&link, dir.join(DATA))?;
    fault::point("volumes: content shown");
    expose(dir, payload)?;
    remove_stale(dir, &name, before)?;
    Ok(true)
}

fn check_path(path: &Path) -> io::Result<()> {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    let hidden = path.to_str().is_none_or(|text| text.starts_with(".."));
    if !plain || hidden || path.as_os_str().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}")));
    }
    Ok(())
}

fn is_current(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let data = dir.join(DATA);
    if !data.exists() {
        return Ok(false);
    }
    let mut found = BTreeSet::new();
    list_files(&data, Path::new(""), &mut found)?;
    if found.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        let full = data.join(path);
        if !found.contains(path) || fs::read(&full)? != file.content {
            return Ok(false);
        }
        if fs::metadata(&full)?.permissions().mode() & 0o777 != file.mode_for(group) {
            return Ok(false);
        }
    }
    Ok(top_level(payload).iter().all(|name| fs::symlink_metadata(dir.join(name)).is_ok()))
}

fn list_files(root: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_files(root, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

fn write_file(root: &Path, path: &Path, file: &PayloadFile, group: Option<u32>) -> io::Result<()> {
    let full = root.join(path);
    if let Some(parent) = full.parent() {
        DirBuilder::new().mode(0o755).recursive(true).create(parent)?;
    }
    // Nobody else's before its owner and mode are set: it may be a key.
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&full)?;
    out.write_all(&file.content)?;
    if file.uid.is_some() || group.is_some() {
        chown(&full, file.uid, group)?;
    }
    fs::set_permissions(&full, fs::Permissions::from_mode(file.mode_for(group)))
}

fn top_level(payload: &Payload) -> BTreeSet<PathBuf> {
    payload.keys().filter_map(|path| path.components().next()).map(|c| PathBuf::from(c.as_os_str())).collect()
}

fn expose(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_level(payload) {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), &link)?;
        }
    }
    Ok(())
}

/// Links to what is gone, and directories of earlier versions.
fn remove_stale(dir: &Path, current: &str, before: Option<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text == DATA || text == current {
            continue;
        }
        let kind = entry.file_type()?;
        let is_old_version = text.starts_with("..") && kind.is_dir();
        let is_dead_link = kind.is_symlink() && !entry.path().exists();
        if is_old_version || before.as_deref() == Some(Path::new(&name)) {
            fs::remove_dir_all(entry.path())?;
        } else if is_dead_link {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |content: &str| PayloadFile { content: content.into(), mode: 0o644, uid: None };
        files.iter().map(|(path, content)| (PathBuf::from(path), file(content))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("readable")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_change_all_at_once() {
        let dir = tempfile::tempdir().expect("directory");
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).expect("written"));
        assert_eq!(fs::read_to_string(dir.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(dir.join("sub/b")).expect("b"), "2");
        let first = fs::read_link(dir.join(DATA)).expect("link");

        assert!(write(dir, &payload(&[("a", "3"), ("c", "4")]), None).expect("written"));
        assert_eq!(fs::read_to_string(dir.join("a")).expect("a"), "3");
        assert_eq!(names(dir), ["a", "c"], "what is gone from the payload is gone from the volume");
        assert!(!dir.join(first).exists(), "the old version is removed");
    }

    #[test]
    fn same_payload_changes_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let files = payload(&[("a", "1"), ("sub/b", "2")]);
        assert!(write(dir.path(), &files, None).expect("written"));
        let link = fs::read_link(dir.path().join(DATA)).expect("link");
        assert!(!write(dir.path(), &files, None).expect("checked"));
        assert_eq!(fs::read_link(dir.path().join(DATA)).expect("link"), link);

        let files = Payload::from([("t".into(), PayloadFile { content: vec![1], mode: 0o600, uid: None })]);
        let group = fs::metadata(dir.path()).expect("there").gid();
        assert!(write(dir.path(), &files, Some(group)).expect("written"));
        assert_eq!(fs::metadata(dir.path().join("t")).expect("there").mode() & 0o777, 0o640);
        assert!(!write(dir.path(), &files, Some(group)).expect("checked"), "nor for a pod's own group");
    }

    #[test]
    fn interrupted_write_is_cleaned_up_by_the_next() {
        let dir = tempfile::tempdir().expect("directory");
        write(dir.path(), &payload(&[("a", "1")]), None).expect("written");
        fs::create_dir(dir.path().join("..2020_01_01_00_00_00.1")).expect("left behind");
        symlink("..2020_01_01_00_00_00.1", dir.path().join(DATA_NEW)).expect("left behind");
        assert!(write(dir.path(), &payload(&[("a", "2")]), None).expect("written"));
        assert_eq!(fs::read_to_string(dir.path().join("a")).expect("a"), "2");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 3, "link, version, entry");
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        for path in ["../a", "/a", "..a", "a/../../b"] {
            assert!(write(dir.path(), &payload(&[(path, "1")]), None).is_err(), "{path}");
        }
    }
}
