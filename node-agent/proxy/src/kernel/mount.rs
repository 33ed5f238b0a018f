//! The bpffs that holds a node's pins.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path};

use crate::error::Error;

const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;

/// Makes `dir` a directory on a bpffs: its own mount, unless it is inside of one already.
pub(crate) fn ensure_bpffs(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    if is_bpffs(dir).map_err(failed)? {
        return Ok(());
    }
    let target = CString::new(dir.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    // SAFETY: all strings are C strings that outlive the call.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

/// Unmounts the bpffs that `ensure_bpffs` mounted at `dir`, if it did.
pub(crate) fn remove_bpffs(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: dir.to_owned(), source };
    let Ok(resolved) = dir.canonicalize() else { return Ok(()) };
    if !is_mount_point(&resolved).map_err(failed)? || !is_bpffs(&resolved).map_err(failed)? {
        return Ok(());
    }
    let target = CString::new(resolved.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    // SAFETY: the path is a C string that outlives the call.
    let result = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    if result < 0 { Err(failed(io::Error::last_os_error())) } else { Ok(()) }
}

fn is_bpffs(dir: &Path) -> io::Result<bool> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: all zero is a valid value, which the call fills; the path is a C string that outlives it.
    let (result, stat) = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &raw mut stat), stat)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stat.f_type == BPF_FS_MAGIC) }
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(1)).any(|target| Path::new(target) == dir))
}
