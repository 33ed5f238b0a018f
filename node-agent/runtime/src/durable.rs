//! Small files that a loss of power leaves whole: the old content or the new one, and the new one once written.
//!
//! For what a machine that starts again has to know: it costs two waits for the disk. What is made anew then is written
//! by `paths::write_atomically`, which waits for nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Extension of a file that was not written to its end; what is left of it belongs to nobody.
pub(crate) const UNFINISHED: &str = "new";

/// Replaces the file, and returns when file and directory are on disk. Only root may read it. Calls for the same file
/// must not overlap. Blocks.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let new = path.with_extension(UNFINISHED);
    // What a crash left may have other rights.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        // A full disk has a part of it; what cannot be removed now goes with the next write.
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn content_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/note.json");
        for content in ["first", "second and longer", "3"] {
            // As a crash in the middle leaves it.
            let _ = fs::create_dir_all(dir.path().join("deep"));
            fs::write(dir.path().join("deep/note.new"), "half").expect("written");
            write(&path, content.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), content);
        }
        assert_eq!(fs::read_dir(dir.path().join("deep")).expect("listed").count(), 1);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
