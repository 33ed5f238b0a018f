//! HTTP/1.1 over 64 connections: each with one request at a time, and either kept or made anew for each request.
//!
//! Client and server have a thread each, on `epoll`. They speak as much of the protocol as the load needs: a request
//! without body, a response with `Content-Length`.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use super::{
    Turn,
    epoll::{Epoll, READABLE, WRITABLE},
};
use crate::{
    lab::finish,
    measure::{Meter, Sample},
};

const CONNECTIONS: usize = 64;
/// Requests of one turn: more than a second has at any rate seen here.
const MOST_REQUESTS: u64 = 1_000_000;
const PATIENCE: Duration = Duration::from_millis(20);
const BODY: &[u8; 64] = &[b'.'; 64];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    OneRequest,
    ManyRequests,
}

impl Life {
    fn header(self) -> &'static str {
        match self {
            Self::OneRequest => "Connection: close\r\n",
            Self::ManyRequests => "",
        }
    }
}

pub(super) fn short(turn: &Turn<'_>) -> Result<Sample> {
    run(turn, Life::OneRequest)
}

pub(super) fn keep_alive(turn: &Turn<'_>) -> Result<Sample> {
    run(turn, Life::ManyRequests)
}

fn run(turn: &Turn<'_>, life: Life) -> Result<Sample> {
    let (client_cpu, server_cpu) = turn.own_cpus();
    let listener = turn.tcp_listener()?;
    listener.set_nonblocking(true)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = turn.server.spawn(scope, Some(server_cpu), || serve(&listener, life, &stop));
        let client = turn.client.spawn(scope, Some(client_cpu), || ask(turn.target, turn.length, life));
        let sample = finish(client);
        stop.store(true, Ordering::Relaxed);
        finish(server).and(sample)
    })
}

/// Answers until it is stopped. The listener's token is the number after all connections'.
fn serve(listener: &TcpListener, life: Life, stop: &AtomicBool) -> Result<()> {
    let mut epoll = Epoll::new()?;
    let mut connections: Vec<Option<(TcpStream, Vec<u8>)>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let response = [
        format!("HTTP/1.1 200 OK\r\n{}Content-Length: {}\r\n\r\n", life.header(), BODY.len()).as_bytes(),
        BODY,
    ]
    .concat();
    epoll.add(listener, READABLE, usize::MAX)?;
    let mut ready = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        ready.clear();
        epoll.wait(PATIENCE, |token| ready.push(token))?;
        for token in ready.iter().copied() {
            if token == usize::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let token = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    epoll.add(&stream, READABLE, token)?;
                    connections[token] = Some((stream, Vec::new()));
                }
                continue;
            }
            let Some((stream, request)) = &mut connections[token] else { continue };
            let is_open = match read_all(stream, request) {
                Read::Closed => false,
                Read::Open if !request.ends_with(b"\r\n\r\n") => true,
                Read::Open => {
                    request.clear();
                    // Smaller than any send buffer.
                    stream.write_all(&response).is_ok() && life == Life::ManyRequests
                }
            };
            if !is_open {
                connections[token] = None;
                free.push(token);
            }
        }
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    response: Vec<u8>,
    is_connected: bool,
}

/// Asks over all connections, for `length`.
fn ask(target: SocketAddr, length: Duration, life: Life) -> Result<Sample> {
    let request = format!("GET /index HTTP/1.1\r\nHost: {target}\r\n{}\r\n", life.header()).into_bytes();
    let mut epoll = Epoll::new()?;
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for token in 0..CONNECTIONS {
        connections.push(start(target, &epoll, token)?);
    }
    let mut count = 0;
    let mut ready = Vec::new();
    let meter = Meter::start();
    while meter.elapsed() < length && count < MOST_REQUESTS {
        ready.clear();
        epoll.wait(PATIENCE, |token| ready.push(token))?;
        for token in ready.iter().copied() {
            let connection = &mut connections[token];
            if !connection.is_connected {
                if let Some(error) = connection.stream.take_error()? {
                    return Err(error).context("connect");
                }
                connection.is_connected = true;
                epoll.change(&connection.stream, READABLE, token)?;
                connection.stream.write_all(&request)?;
                continue;
            }
            let read = read_all(&mut connection.stream, &mut connection.response);
            if !is_complete(&connection.response)? {
                ensure!(matches!(read, Read::Open), "closed before the response was complete");
                continue;
            }
            count += 1;
            match life {
                Life::OneRequest => connections[token] = start(target, &epoll, token)?,
                Life::ManyRequests => {
                    connection.response.clear();
                    connection.stream.write_all(&request)?;
                }
            }
        }
    }
    meter.stop(count, 1.0)
}

/// Starts to connect.
fn start(target: SocketAddr, epoll: &Epoll, token: usize) -> Result<Connection> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => {}
        Err(error) => return Err(error).context("connect"),
    }
    epoll.add(&socket, WRITABLE, token)?;
    Ok(Connection { stream: socket.into(), response: Vec::new(), is_connected: false })
}

enum Read {
    Open,
    Closed,
}

/// Appends what has arrived.
fn read_all(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Read {
    let mut chunk = [0; 2048];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Read::Closed,
            Ok(count) => {
                buffer.extend_from_slice(&chunk[..count]);
                // Less than asked for: there was no more.
                if count < chunk.len() {
                    return Read::Open;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Read::Open,
            Err(_) => return Read::Closed,
        }
    }
}

fn is_complete(response: &[u8]) -> Result<bool> {
    let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    if !response.starts_with(b"HTTP/1.1 200 ") {
        bail!("an unknown response");
    }
    Ok(response.len() >= end + 4 + BODY.len())
}
