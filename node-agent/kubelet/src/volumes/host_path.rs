//! hostPath volumes: the path itself, checked or made as its type says.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::VolumeError;

pub(super) fn prepare(source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let holds = |matches: bool| match matches {
        true => Ok(path.to_owned()),
        false => Err(VolumeError::HostPath { path: path.to_owned(), expected: kind.to_owned() }),
    };
    match kind {
        // Unset: whatever is there; a path that is missing becomes a directory, as container runtimes do.
        "" | "DirectoryOrCreate" if found.is_none() => {
            let made = DirBuilder::new().mode(0o755).recursive(true).create(path);
            made.map_err(|source| VolumeError::Io { path: path.to_owned(), source })?;
            Ok(path.to_owned())
        }
        "" => Ok(path.to_owned()),
        "FileOrCreate" if found.is_none() => {
            fs::File::create(path).map_err(|source| VolumeError::Io { path: path.to_owned(), source })?;
            Ok(path.to_owned())
        }
        "Directory" | "DirectoryOrCreate" => holds(found.is_some_and(|f| f.is_dir())),
        "File" | "FileOrCreate" => holds(found.is_some_and(|f| f.is_file())),
        "Socket" => holds(found.is_some_and(|f| f.is_socket())),
        "CharDevice" => holds(found.is_some_and(|f| f.is_char_device())),
        "BlockDevice" => holds(found.is_some_and(|f| f.is_block_device())),
        _ => holds(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_check_or_make_the_path() {
        let dir = tempfile::tempdir().expect("directory");
        let check = |name: &str, kind: &str, ok: bool| {
            let path = dir.path().join(name).to_string_lossy().into_owned();
            let source = HostPathVolumeSource { path, type_: Some(kind.into()) };
            assert_eq!(prepare(&source).is_ok(), ok, "{name} as {kind:?}");
        };
        check("missing", "Directory", false);
        check("missing", "File", false);
        check("made", "DirectoryOrCreate", true);
        check("made", "Directory", true);
        check("made", "File", false);
        check("file", "FileOrCreate", true);
        check("file", "File", true);
        check("file", "Socket", false);
        check("", "", true);
    }
}
