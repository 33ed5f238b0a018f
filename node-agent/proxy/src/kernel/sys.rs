//! The bpf system call: one function per command, and the only unsafe code of the crate beside the typed maps.
//!
//! Structures mirror `union bpf_attr` of `include/uapi/linux/bpf.h`, each as far as its command reads. The kernel
//! takes a shorter attribute than it knows, and a longer one whose rest is zero.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

#[repr(u32)]
#[derive(Clone, Copy)]
enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ObjGetInfo = 15,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// # Safety
/// All addresses in `attr` point to memory of the sizes that the command reads or writes.
unsafe fn bpf<T>(command: Command, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the addresses; the structure itself lives for the length of the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

#[repr(C)]
#[derive(Default)]
struct MapElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads the value of `key`; `None` when there is none.
///
/// # Safety
/// `key` and `value` have the map's sizes (for per-CPU maps, a value for each possible CPU).
pub(crate) unsafe fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<Option<()>> {
    let mut attr = MapElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(Command::MapLookup, &mut attr) } {
        Ok(_) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one entry.
///
/// # Safety
/// `key` and `value` have the map's sizes.
pub(crate) unsafe fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = MapElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes.
    unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
}

/// Writes one entry. One that is there already stays as it is, which is no error.
///
/// # Safety
/// `key` and `value` have the map's sizes.
pub(crate) unsafe fn map_add(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    const BPF_NOEXIST: u64 = 1;
    let mut attr = MapElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: BPF_NOEXIST,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(Command::MapUpdate, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Removes one entry. One that is not there is no error.
///
/// # Safety
/// `key` has the map's size.
pub(crate) unsafe fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr =
        MapElemAttr { map_fd: map.as_raw_fd() as u32, key: key.as_ptr() as u64, ..Default::default() };
    // SAFETY: the caller vouches for the size.
    match unsafe { bpf(Command::MapDelete, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Writes the key after `key`, or the first one for `None`, to `next`; returns false at the end.
///
/// # Safety
/// `key` and `next` have the map's size.
pub(crate) unsafe fn map_next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = MapElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(Command::MapNextKey, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct MapBatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes `count` entries. Not atomic as a whole: on an error some may have been written.
///
/// # Safety
/// `keys` and `values` hold `count` entries of the map's sizes.
pub(crate) unsafe fn map_update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> io::Result<()> {
    let mut attr = MapBatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes.
    unsafe { bpf(Command::MapUpdateBatch, &mut attr) }.map(drop)
}

/// Reads up to `count` entries of a hash map or array from `cursor` on, which the call moves. Returns the number read, and
/// whether there may be more.
///
/// # Safety
/// `keys` and `values` have room for `count` entries of the map's sizes.
pub(crate) unsafe fn map_lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Option<u32>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let from = cursor.unwrap_or_default();
    let mut next = 0u32;
    let mut attr = MapBatchAttr {
        in_batch: if cursor.is_some() { &raw const from as u64 } else { 0 },
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the caller vouches for the sizes; a hash map's cursor is 4 bytes, and so is an array's.
    let more = match unsafe { bpf(Command::MapLookupBatch, &mut attr) } {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    *cursor = Some(next);
    Ok((attr.count, more))
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

pub(crate) fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

/// Opens a pinned map, program or link; `None` when nothing is pinned there.
pub(crate) fn obj_get(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, ..Default::default() };
    // SAFETY: the path is a C string that outlives the call; the result is a descriptor of our own.
    match unsafe { bpf(Command::ObjGet, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) } {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The part of `struct bpf_map_info` that tells a map's layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    obj_info(map, &mut info)?;
    Ok(info)
}

/// The part of `struct bpf_link_info` that tells where a link is attached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    pad: u32,
    /// The cgroup's id for a cgroup link; for a tcx link the interface's index, 0 when that is gone.
    pub(crate) target: u64,
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    obj_info(link, &mut info)?;
    Ok(info)
}

fn obj_info<T: Copy>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: object.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes; both callers' types are integers throughout.
    unsafe { bpf(Command::ObjGetInfo, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    /// A cgroup's descriptor or an interface's index.
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Room for the options of tcx (relative program, expected revision): all zero appends.
    options: [u64; 4],
}

/// `flags` are the attach type's own.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: program.as_raw_fd() as u32,
        target,
        attach_type,
        flags,
        ..Default::default()
    };
    // SAFETY: the attribute holds no address; the result is a descriptor of our own.
    unsafe { bpf(Command::LinkCreate, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link in place: every packet and call meets the old one or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

/// Detaches a link now. (The last reference alone would do so too, but some time later.)
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link_fd = link.as_raw_fd() as u32;
    // SAFETY: the attribute, one descriptor, holds no address.
    unsafe { bpf(Command::LinkDetach, &mut link_fd) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestRun {
    pub verdict: i32,
    pub packet: Vec<u8>,
    /// Nanoseconds per run, averaged over the repeats.
    pub duration_ns: u32,
}

/// Runs a packet program over `packet`, as if it had arrived at interface 1 of this network namespace, or, a program at
/// XDP, at the interface `ingress`.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    repeat: u32,
    ingress: Option<u32>,
) -> io::Result<TestRun> {
    // `struct xdp_md`: where the packet begins and ends, its metadata, interface and queue.
    let context = [0, packet.len() as u32, 0, ingress.unwrap_or_default(), 0, 0];
    let mut out = vec![0; packet.len() + 64];
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: packet.len() as u32,
        data_size_out: out.len() as u32,
        data_in: packet.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: if ingress.is_some() { size_of_val(&context) as u32 } else { 0 },
        ctx_in: if ingress.is_some() { &raw const context as u64 } else { 0 },
        ..Default::default()
    };
    // SAFETY: all buffers have the sizes that are given.
    unsafe { bpf(Command::ProgTestRun, &mut attr) }?;
    out.truncate(attr.data_size_out as usize);
    Ok(TestRun { verdict: attr.retval as i32, packet: out, duration_ns: attr.duration })
}

/// Returns the time on the clock of the programs: monotonic, coarse.
pub(crate) fn now_ns() -> u64 {
    // SAFETY: all zero is a valid value, which the call fills; this clock exists on every kernel.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the cookie of the network namespace that is pinned at `path`.
pub(crate) fn netns_cookie_of(path: &Path) -> io::Result<u64> {
    let namespace = std::fs::File::open(path)?;
    // A thread of its own: it does not come back.
    let enter = move || {
        // SAFETY: an open file, and no memory.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        netns_cookie()
    };
    let thread = std::thread::Builder::new().name("netns".into()).spawn(enter)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread ended early")))
}

/// Returns the cookie of this thread's network namespace.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = datagram_socket()?;
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer has the size that is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Returns the clock that the programs write into flows (`bpf_ktime_get_coarse_ns`).
pub(crate) fn coarse_now_ns() -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives for the length of the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Returns the index of an interface of this thread's network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Returns the name of an interface of this thread's network namespace.
pub(crate) fn interface_name(index: u32) -> io::Result<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8(name[..len].to_vec()).map_err(io::Error::other)
}

/// Tells whether an interface of this thread's network namespace is a veth. One that is gone is not.
pub(crate) fn is_veth(index: u32) -> io::Result<bool> {
    Ok(driver(index)?.as_deref() == Some("veth"))
}

/// Returns the driver of an interface of this thread's network namespace. `None` for one that is gone, or says nothing.
pub(crate) fn driver(index: u32) -> io::Result<Option<String>> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    const _: () = assert!(size_of::<DriverInfo>() == 196);

    let Ok(name) = interface_name(index) else { return Ok(None) };
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request names a structure of the size that the command writes.
    if unsafe { ask_interface(&name, libc::SIOCETHTOOL, &mut request) }.is_err() {
        // Gone meanwhile, or a device that knows nothing of itself.
        return Ok(None);
    }
    let len = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
    Ok(Some(String::from_utf8_lossy(&info.driver[..len]).into_owned()))
}

/// Returns the link-layer address of an interface of this thread's network namespace; an error for one that has none
/// of six bytes.
pub(crate) fn link_layer_address(index: u32) -> io::Result<[u8; 6]> {
    // SAFETY: all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the command writes to the request alone, and has then filled this member.
    let address = unsafe {
        ask_interface(&interface_name(index)?, libc::SIOCGIFHWADDR, &mut request)?;
        request.ifr_ifru.ifru_hwaddr
    };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::other("it is no Ethernet"));
    }
    Ok(std::array::from_fn(|at| address.sa_data[at] as u8))
}

/// Asks the kernel about the interface `name`.
///
/// # Safety
/// What `request` points to has the size that the command writes.
unsafe fn ask_interface(name: &str, command: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let socket = datagram_socket()?;
    // SAFETY: the caller vouches for the request.
    if unsafe { libc::ioctl(socket.as_raw_fd(), command as _, std::ptr::from_mut(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A socket of this thread's network namespace, to ask things with.
fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: no addresses; the result is a descriptor of our own.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Returns the clock that the programs read.
pub(crate) fn boot_time_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives for the length of the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the machine's memory; 0 where the kernel does not say.
pub(crate) fn memory_bytes() -> u64 {
    // SAFETY: all zero is a valid value, which the call fills.
    unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        if libc::sysinfo(&raw mut info) < 0 { 0 } else { info.totalram * u64::from(info.mem_unit) }
    }
}

/// Returns memory that is free to the kernel, where the allocator would keep it.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
