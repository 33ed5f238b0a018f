//! Files that others read while they are written: whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::Context;

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Keys.
    Owner,
    Everybody,
}

/// Writes a file through a temporary one beside it.
pub(crate) fn write(path: &Path, contents: &str, access: Access) -> anyhow::Result<()> {
    let attempt = || -> std::io::Result<()> {
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let mode = if access == Access::Owner { 0o600 } else { 0o644 };
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Makes a directory that only its owner may look into.
pub(crate) fn private_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot restrict {}", path.display()))
}
