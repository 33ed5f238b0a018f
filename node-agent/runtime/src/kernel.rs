//! What is asked of the kernel and has no safe wrapper: mounts by file descriptor, and `fork`. All `unsafe` of the crate.
//!
//! A mount that is seen through a user namespace (an idmapped one, mount_setattr(2)) shows as owned by number N in that
//! namespace what is owned by N on disk. One is made of a copy that is not mounted anywhere yet, and then mounted.

#![expect(unsafe_code, reason = "system calls that neither nix nor the standard library wraps")]

use std::ffi::{CString, c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use nix::unistd::{ForkResult, fork};

/// How much of what is mounted at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The mount alone.
    Top,
    /// What is mounted below it too.
    Tree,
}

impl Reach {
    fn flag(self) -> c_uint {
        match self {
            Self::Top => 0,
            Self::Tree => libc::AT_RECURSIVE as c_uint,
        }
    }
}

/// A copy of the mount at `path`, or of the part of it that begins there, which is mounted nowhere. Goes with its
/// descriptor.
pub(crate) fn copy_of_mount(path: &Path, reach: Reach) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | reach.flag();
    // SAFETY: the path is a C string that outlives the call, which writes to no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = answer(fd)?;
    // SAFETY: the kernel made this descriptor for this call, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets `MOUNT_ATTR_*` of a mount, and has it seen through `users`, the descriptor of a user namespace.
pub(crate) fn set_attributes(
    mount: &OwnedFd,
    attributes: u64,
    users: Option<&File>,
    reach: Reach,
) -> io::Result<()> {
    let of_users = if users.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let set = libc::mount_attr {
        attr_set: attributes | of_users,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |users| users.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH as c_uint | reach.flag();
    // SAFETY: path and attributes are whole, outlive the call, and are only read; the size is the structure's.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    answer(done).map(drop)
}

/// Mounts at `target` what is mounted nowhere yet.
pub(crate) fn mount_at(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are C strings that outlive the call, which writes to no memory of this process.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    answer(done).map(drop)
}

/// Number of the child, in the parent; `None` in the child. For a process that has one thread.
///
/// # Errors
/// Where it has more: what others hold at that moment would be held in the child for good.
pub(crate) fn fork_alone() -> io::Result<Option<i32>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads is not forked"));
    }
    // SAFETY: there is no other thread that could hold a lock, so the child finds its memory as after any call.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        ForkResult::Child => Ok(None),
    }
}

fn answer(result: libc::c_long) -> io::Result<c_int> {
    match c_int::try_from(result) {
        Ok(fine) if fine >= 0 => Ok(fine),
        _ => Err(io::Error::last_os_error()),
    }
}
