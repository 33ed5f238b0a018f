//! `/etc/passwd` and `/etc/group` of an image, read from its layers where containerd unpacked them.
//!
//! The image's links are followed inside its own layer only: an image must not make the agent read a
//! file of the node. (A link into another layer is not followed either.)

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::spec::user::Accounts;

/// Real account files have a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;

pub(super) fn read(mounts: &[Mount]) -> Accounts {
    let layers = layers(mounts);
    Accounts { passwd: read_file(&layers, "etc/passwd"), group: read_file(&layers, "etc/group") }
}

/// Directories that lie on one another, uppermost first.
fn layers(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else { return Vec::new() };
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |name| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let upper = option("upperdir=").into_iter();
    let lower = option("lowerdir=").into_iter().flat_map(|lower| lower.split(':'));
    upper.chain(lower).map(PathBuf::from).collect()
}

fn read_file(layers: &[PathBuf], path: &str) -> String {
    for layer in layers {
        match open_inside(layer, path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                // A whiteout (a device) reads as empty: the file was deleted in this layer.
                let is_file = file.metadata().is_ok_and(|m| m.is_file());
                if is_file && file.take(MAX_BYTES).read_to_end(&mut bytes).is_err() {
                    return String::new();
                }
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            Err(Errno::ENOENT) => {}
            Err(_) => return String::new(),
        }
    }
    String::new()
}

fn open_inside(layer: &Path, path: &str) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let root = nix::fcntl::open(layer, flags | OFlag::O_DIRECTORY, nix::sys::stat::Mode::empty())?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(&root, path, how)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn uppermost_layer_wins_and_links_stay_inside() {
        let own = tempfile::tempdir().unwrap();
        let dir = own.path();
        for layer in ["upper", "lower"] {
            fs::create_dir_all(dir.join(layer).join("etc")).unwrap();
        }
        fs::write(dir.join("lower/etc/passwd"), "old").unwrap();
        fs::write(dir.join("upper/etc/passwd"), "new").unwrap();
        fs::write(dir.join("lower/etc/group"), "from below").unwrap();
        let option = format!("lowerdir={0}/upper:{0}/lower", dir.display());
        let mount = Mount { r#type: "overlay".into(), options: vec![option], ..Default::default() };
        let accounts = read(std::slice::from_ref(&mount));
        assert_eq!((accounts.passwd.as_str(), accounts.group.as_str()), ("new", "from below"));

        fs::remove_file(dir.join("upper/etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("upper/etc/passwd")).unwrap();
        assert_eq!(read(&[mount]).passwd, "old");
    }
}
