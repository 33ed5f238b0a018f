//! Pinned links: attached once, then updated in place for ever after.
//!
//! A link's pin holds the attachment while no agent runs. An agent that starts finds the pin and replaces the
//! program; a pin whose interface or cgroup has gone is removed and made anew.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
};

use super::sys;

/// Attach types of `enum bpf_attach_type`.
pub(crate) const CGROUP_INET4_CONNECT: u32 = 10;
pub(crate) const CGROUP_INET6_CONNECT: u32 = 11;
pub(crate) const CGROUP_UDP4_SENDMSG: u32 = 14;
pub(crate) const CGROUP_UDP6_SENDMSG: u32 = 15;
pub(crate) const CGROUP_UDP4_RECVMSG: u32 = 19;
pub(crate) const CGROUP_UDP6_RECVMSG: u32 = 20;
pub(crate) const CGROUP_INET4_GETPEERNAME: u32 = 29;
pub(crate) const CGROUP_INET6_GETPEERNAME: u32 = 30;
pub(crate) const CGROUP_INET_SOCK_RELEASE: u32 = 34;
pub(crate) const XDP: u32 = 37;
pub(crate) const TCX_INGRESS: u32 = 46;
pub(crate) const TCX_EGRESS: u32 = 47;

/// In the driver, or not at all: on a copy of the packet XDP gains nothing.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Attaches `program` to the cgroup at `cgroup`, through the link that is pinned at `pin`.
pub(crate) fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: &Path,
    attach_type: u32,
    pin: &Path,
) -> io::Result<()> {
    let directory = fs::File::open(cgroup)?;
    // A cgroup2's id is its inode number.
    let id = directory.metadata()?.ino();
    attach(program, directory.as_raw_fd() as u32, id, attach_type, pin)
}

/// Attaches `program` to the interface, through the link that is pinned at `pin`.
pub(crate) fn attach_interface(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
    pin: &Path,
) -> io::Result<()> {
    attach(program, ifindex, u64::from(ifindex), attach_type, pin)
}

fn attach(
    program: BorrowedFd<'_>,
    target: u32,
    target_id: u64,
    attach_type: u32,
    pin: &Path,
) -> io::Result<()> {
    if let Some(link) = sys::obj_get(pin)? {
        // The kernel fills 4 of the 8 bytes for an interface; the rest stays zero, or holds the attach type.
        let found = sys::link_info(link.as_fd())?.target;
        let found = if attach_type >= XDP { found & 0xffff_ffff } else { found };
        if found == target_id && sys::link_update(link.as_fd(), program).is_ok() {
            return Ok(());
        }
        remove(pin)?;
    }
    let flags = if attach_type == XDP { XDP_FLAGS_DRV_MODE } else { 0 };
    let link = sys::link_create(program, target, attach_type, flags)?;
    sys::obj_pin(link.as_fd(), pin)
}

/// Tells whether the link pinned at `pin` has lost its interface.
pub(crate) fn is_defunct(pin: &Path) -> io::Result<bool> {
    let Some(link) = sys::obj_get(pin)? else { return Ok(false) };
    Ok(sys::link_info(link.as_fd())?.target & 0xffff_ffff == 0)
}

/// Detaches the link pinned at `pin` and removes the pin. Nothing there is no error.
pub(crate) fn remove(pin: &Path) -> io::Result<()> {
    let Some(link) = sys::obj_get(pin)? else { return Ok(()) };
    // A link whose interface or cgroup is gone is detached already.
    let _ = sys::link_detach(link.as_fd());
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
