//! `epoll`, as far as the HTTP load needs it. The unsafe code is here.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

pub(super) const READABLE: u32 = libc::EPOLLIN as u32;
pub(super) const WRITABLE: u32 = libc::EPOLLOUT as u32;

/// Events taken from the kernel at a time.
const EVENTS: usize = 128;

pub(super) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no addresses; the result is a descriptor of our own.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS] })
    }

    /// Waits for `interest` in `socket`; its events carry `token`.
    pub(super) fn add(&self, socket: &impl AsRawFd, interest: u32, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, interest, token)
    }

    pub(super) fn change(&self, socket: &impl AsRawFd, interest: u32, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, interest, token)
    }

    fn control(
        &self,
        operation: libc::c_int,
        socket: &impl AsRawFd,
        interest: u32,
        token: usize,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token as u64 };
        // SAFETY: both descriptors are open; the kernel copies the event.
        let result =
            unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, socket.as_raw_fd(), &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Calls `handle` with the token of each socket that has news; waits at most `patience` for the first.
    pub(super) fn wait(&mut self, patience: Duration, mut handle: impl FnMut(usize)) -> io::Result<()> {
        // SAFETY: the buffer has room for the number of events that is given.
        let count = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS as libc::c_int,
                patience.as_millis() as libc::c_int,
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &self.events[..count as usize] {
            handle(event.u64 as usize);
        }
        Ok(())
    }
}
