//! Live output for attach: whoever connects to the socket gets what the container writes from then on.
//!
//! A frame is the stream (1 or 2), the length (u32, big endian) and that many bytes. A client that does
//! not keep up is cut off, for it must not hold the container back.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{ATTACH_SOCKET, Stream};

/// Bytes kept for a client that is behind: enough for a moment at 100 MB/s, and little for a node.
const MAX_PENDING_BYTES: usize = 1 << 20;

/// Clients at a time; more are turned away.
const MAX_CLIENTS: usize = 32;

pub(crate) const FRAME_HEADER: usize = 5;

/// The stream and length that a frame's header announces.
pub(crate) fn decode_header(header: [u8; FRAME_HEADER]) -> Option<(Stream, usize)> {
    let stream = match header[0] {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return None,
    };
    Some((stream, u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize))
}

#[derive(Default)]
pub(super) struct Clients {
    /// `None` when the socket could not be made: logging goes on without attach.
    listener: Option<UnixListener>,
    connected: Vec<Client>,
}

struct Client {
    connection: UnixStream,
    pending: Vec<u8>,
    closed: bool,
}

impl Clients {
    pub(super) fn listen(directory: &Path) -> Self {
        let bind = || -> std::io::Result<UnixListener> {
            // Relative, because a socket's path is limited to 107 bytes and a container's directory is
            // nearly that long. Nothing else in this process uses relative paths.
            std::env::set_current_dir(directory)?;
            match std::fs::remove_file(ATTACH_SOCKET) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = UnixListener::bind(ATTACH_SOCKET)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Self { listener: bind().ok(), connected: Vec::new() }
    }

    pub(super) fn add_poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        if let Some(listener) = &self.listener {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        for client in &self.connected {
            let want_write = if client.pending.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            fds.push(PollFd::new(client.connection.as_fd(), PollFlags::POLLIN | want_write));
        }
    }

    /// `ready` says what happened, in the order of `add_poll_fds`.
    pub(super) fn serve(&mut self, ready: &[bool]) {
        let (listener_ready, clients_ready) = match (&self.listener, ready) {
            (Some(_), [first, rest @ ..]) => (*first, rest),
            _ => (false, ready),
        };
        for (client, ready) in self.connected.iter_mut().zip(clients_ready) {
            if *ready {
                client.read();
                client.flush();
            }
        }
        if listener_ready {
            self.accept();
        }
        self.connected.retain(|client| !client.closed);
    }

    pub(super) fn send(&mut self, stream: Stream, bytes: &[u8]) {
        if self.connected.is_empty() {
            return;
        }
        let number = match stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        for client in &mut self.connected {
            client.pending.push(number);
            client.pending.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            client.pending.extend_from_slice(bytes);
            client.flush();
            client.closed |= client.pending.len() > MAX_PENDING_BYTES;
        }
        self.connected.retain(|client| !client.closed);
    }

    /// Hands on what clients are behind with, as far as they take it within `patience`, and ends their connections. Nobody
    /// is served any more.
    pub(super) fn finish(&mut self, patience: Duration) {
        self.listener = None;
        let deadline = Instant::now() + patience;
        loop {
            self.connected.retain(|client| !client.closed && !client.pending.is_empty());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.connected.is_empty() || left.is_zero() {
                return self.connected.clear();
            }
            let ready: Vec<bool> = {
                let mut fds = Vec::new();
                self.add_poll_fds(&mut fds);
                // An error is looked into by the write.
                let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
                fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
            };
            self.serve(&ready);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok((connection, _)) = listener.accept() {
            if self.connected.len() < MAX_CLIENTS && connection.set_nonblocking(true).is_ok() {
                self.connected.push(Client { connection, pending: Vec::new(), closed: false });
            }
        }
    }
}

impl Client {
    /// Clients send nothing: what can be read is their end.
    fn read(&mut self) {
        let mut ignored = [0; 64];
        match self.connection.read(&mut ignored) {
            Ok(0) => self.closed = true,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.closed = true,
        }
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() && !self.closed {
            match self.connection.write(&self.pending) {
                Ok(0) => self.closed = true,
                Ok(count) => drop(self.pending.drain(..count)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_that_is_behind_gets_the_end() {
        let (connection, mut reader) = UnixStream::pair().unwrap();
        connection.set_nonblocking(true).unwrap();
        let mut clients = Clients::default();
        clients.connected.push(Client { connection, pending: Vec::new(), closed: false });
        // More than a socket holds.
        let words = vec![7; MAX_PENDING_BYTES - FRAME_HEADER];
        clients.send(Stream::Stdout, &words);
        assert!(!clients.connected[0].pending.is_empty());
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        clients.finish(Duration::from_secs(60));
        assert_eq!(reading.join().unwrap().unwrap().len(), MAX_PENDING_BYTES);
    }

    #[test]
    fn client_that_takes_nothing_is_not_waited_for_for_ever() {
        let (connection, reader) = UnixStream::pair().unwrap();
        connection.set_nonblocking(true).unwrap();
        let mut clients = Clients::default();
        clients.connected.push(Client { connection, pending: vec![0; MAX_PENDING_BYTES], closed: false });
        clients.finish(Duration::from_millis(1));
        assert!(clients.connected.is_empty());
        drop(reader);
    }
}
