//! subPath mounts: one file or directory of a volume, opened so that nothing in the volume can lead out of it.
//!
//! The path is resolved by the kernel beneath the volume's root (`openat2`, RESOLVE_BENEATH), and what it
//! found is bound, by its descriptor, to a place of the kubelet's own. A container that swaps a directory for a
//! link meanwhile changes nothing: the descriptor stays what it was.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};

use super::mounts;

/// Binds `sub_path` of the volume at `root` to `target`; missing directories are made, with the root's mode.
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
    mounts::bind(&path_of(&found), target)
}

/// What a file of the volume at `root` begins with, at most `most` bytes; `None` where there is no such file. It is opened
/// as [`bind`] opens it, and never waited for: what is no plain file is an error.
pub(crate) fn read(root: &Path, path: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
    let dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    let found = match openat2(&dir, path, how) {
        Err(nix::Error::ENOENT) => return Ok(None),
        found => found?,
    };
    // Looked at before it is opened: to open a device is to use it.
    let is_file = SFlag::from_bits_truncate(fstat(&found)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG;
    if !is_file {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let file = fs::File::open(path_of(&found))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Leads to what is open, whatever its name is by now.
fn path_of(open: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

fn open_beneath(root: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let mut dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how =
        |flags: OFlag| OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    match openat2(&dir, sub_path, how(OFlag::O_PATH)) {
        Err(nix::Error::ENOENT) => {}
        found => return Ok(found?),
    }
    // Whoever may write to the volume may write to its part.
    let mode = fstat(&dir)?.st_mode & 0o7777;
    for component in sub_path.components().filter(|c| matches!(c, Component::Normal(_))) {
        let is_new = match mkdirat(&dir, component.as_os_str(), Mode::from_bits_truncate(0o750)) {
            Ok(()) => true,
            Err(nix::Error::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let no_link = if is_new { OFlag::O_NOFOLLOW } else { OFlag::empty() };
        dir = openat2(&dir, component.as_os_str(), how(OFlag::O_PATH | OFlag::O_DIRECTORY | no_link))?;
        if is_new {
            // Not by `mkdirat`, which leaves out what the umask says.
            fs::set_permissions(path_of(&dir), fs::Permissions::from_mode(mode))?;
        }
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
        assert!(read(&root, "link", 10).is_err() && read(&root, "root", 10).is_err());
        assert_eq!(read(&root, "none", 10).expect("looked for"), None);
        fs::write(root.join("file"), "abc").expect("written");
        assert_eq!(read(&root, "file", 2).expect("read"), Some(b"ab".to_vec()));
        assert!(bind(&root, "../outside", &dir.path().join("t")).is_err());
        assert!(open_beneath(&root, Path::new("a/b")).is_ok(), "missing directories are made");
        assert!(root.join("a/b").is_dir());
    }

    #[test]
    fn missing_directories_have_the_mode_of_the_volume() {
        let dir = tempfile::tempdir().expect("directory");
        let root = dir.path().join("volume");
        fs::create_dir_all(root.join("known")).expect("made");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        set(&root.join("known"), 0o700).expect("set");
        set(&root, 0o2777).expect("set");
        open_beneath(&root, Path::new("known/a/b")).expect("made");
        let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o7777;
        assert_eq!([mode("known"), mode("known/a"), mode("known/a/b")], [0o700, 0o2777, 0o2777]);
    }
}
