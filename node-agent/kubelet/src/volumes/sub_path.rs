//! subPath mounts: one file or directory of a volume, opened so that nothing in the volume can lead out of it.
//!
//! The path is resolved by the kernel beneath the volume's root (`openat2`, RESOLVE_BENEATH), and what it
//! found is bound, by its descriptor, to a place of the kubelet's own. A container that swaps a directory for a
//! link meanwhile changes nothing: the descriptor stays what it was.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::mounts;

/// Binds `sub_path` of the volume at `root` to `target`; missing directories are made.
pub(super) fn bind(root: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let sub_path = Path::new(sub_path);
    let plain = sub_path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "subPath must be relative and without '..'"));
    }
    if mounts::is_mount_point(target)? {
        return Ok(());
    }
    let found = open_beneath(root, sub_path)?;
    let is_dir = SFlag::from_bits_truncate(fstat(&found)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
    if is_dir {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(target)?;
    }
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    mounts::bind(Path::new(&source), target)
}

fn open_beneath(root: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let mut dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how =
        |flags: OFlag| OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    match openat2(&dir, sub_path, how(OFlag::O_PATH)) {
        Err(nix::Error::ENOENT) => {}
        found => return Ok(found?),
    }
    for component in sub_path.components().filter(|c| matches!(c, Component::Normal(_))) {
        match mkdirat(&dir, component.as_os_str(), Mode::from_bits_truncate(0o750)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        dir = openat2(&dir, component.as_os_str(), how(OFlag::O_PATH | OFlag::O_DIRECTORY))?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_that_lead_out_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("volume")).expect("made");
        fs::write(dir.path().join("outside"), "secret").expect("written");
        symlink("../outside", dir.path().join("volume/link")).expect("linked");
        symlink("/", dir.path().join("volume/root")).expect("linked");
        let root = dir.path().join("volume");
        assert!(open_beneath(&root, Path::new("link")).is_err());
        assert!(open_beneath(&root, Path::new("root/etc")).is_err());
        assert!(bind(&root, "../outside", &dir.path().join("t")).is_err());
        assert!(open_beneath(&root, Path::new("a/b")).is_ok(), "missing directories are made");
        assert!(root.join("a/b").is_dir());
    }
}
