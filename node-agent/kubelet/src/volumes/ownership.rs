//! Giving a volume's files to the pod's group (`fsGroup`).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use crate::pod::DesiredPod;

/// Rights that the group gets: to read and write, and to pass itself on to what is made in a directory.
const FILE_MODE: u32 = 0o660;
const DIR_MODE: u32 = 0o2770;

/// Gives all at and below `dir` to `group`; with `fsGroupChangePolicy: OnRootMismatch` only where `dir` is not its own.
pub(crate) async fn set(pod: &DesiredPod, dir: &Path, group: u32) -> io::Result<()> {
    let context = pod.spec().security_context.as_ref();
    let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
    let (dir, by_root) = (dir.to_owned(), policy == Some("OnRootMismatch"));
    tokio::task::spawn_blocking(move || set_below(&dir, group, by_root)).await.map_err(io::Error::other)?
}

fn set_below(dir: &Path, group: u32, by_root: bool) -> io::Result<()> {
    let root = fs::symlink_metadata(dir)?;
    if by_root && root.gid() == group && root.mode() & DIR_MODE == DIR_MODE {
        return Ok(());
    }
    let mut waiting: Vec<PathBuf> = vec![dir.to_owned()];
    let mut order = Vec::new();
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
        order.push((path, meta));
    }
    // The root last: what is cut short is not taken for done.
    for (path, meta) in order.into_iter().rev() {
        lchown(&path, None, Some(group))?;
        if !meta.is_symlink() {
            let more = if meta.is_dir() { DIR_MODE } else { FILE_MODE };
            fs::set_permissions(&path, fs::Permissions::from_mode(meta.mode() & 0o7777 | more))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_the_group_and_its_rights() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a/f");
        fs::create_dir(dir.path().join("a")).expect("made");
        fs::write(&file, "").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).expect("linked");
        let passwd = fs::metadata("/etc/passwd").expect("there").gid();
        set_below(dir.path(), 4321, true).expect("given");
        let meta = |path: &Path| fs::metadata(path).map(|m| (m.gid(), m.mode() & 0o7777)).expect("there");
        assert_eq!(meta(&file), (4321, 0o660));
        assert_eq!(meta(&dir.path().join("a")).0, 4321);
        assert_eq!(meta(dir.path()).1 & DIR_MODE, DIR_MODE);
        assert_eq!(fs::metadata("/etc/passwd").expect("there").gid(), passwd, "links are not followed");
        fs::write(dir.path().join("new"), "").expect("written");
        lchown(dir.path().join("new"), None, Some(0)).expect("given");
        set_below(dir.path(), 4321, true).expect("given");
        assert_ne!(meta(&dir.path().join("new")).0, 4321, "the root has it already");
    }
}
