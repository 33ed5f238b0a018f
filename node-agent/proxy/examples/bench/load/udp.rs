//! UDP: requests over a connected socket, a stream from an unconnected one, and packets through the node.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Turn;
use crate::{
    lab::{BACKENDS, finish},
    measure::{Latencies, Meter, Sample},
};

const PAYLOAD: [u8; 64] = [0x5a; 64];
/// Datagrams that one system call moves, where many are moved at once.
const BATCH: usize = 32;
/// Flows through the node.
const FLOWS: usize = 16;

/// One datagram there and one back, over one connected socket.
pub(super) fn request_response(turn: &Turn<'_>) -> Result<Sample> {
    let cpu = turn.shared_cpu();
    let mut servers = Vec::new();
    for address in BACKENDS {
        servers.push(turn.udp_server(address)?);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let answering: Vec<_> = servers
            .iter()
            .map(|server| turn.server.spawn(scope, Some(cpu), || answer(server, &stop)))
            .collect();
        let client = turn.client.spawn(scope, Some(cpu), || -> Result<Sample> {
            let socket = client_socket()?;
            socket.connect(turn.target)?;
            let mut latencies = Latencies::new();
            let mut count = 0;
            let mut buffer = [0; 128];
            let meter = Meter::start();
            while meter.elapsed() < turn.length {
                for _ in 0..16 {
                    let started = Instant::now();
                    socket.send(&PAYLOAD)?;
                    socket.recv(&mut buffer).context("no answer")?;
                    latencies.add(started.elapsed());
                    count += 1;
                }
            }
            let sample = meter.stop(count, 1.0)?;
            Ok(Sample { latency_us: latencies.percentiles(), ..sample })
        });
        let sample = finish(client);
        stop.store(true, Ordering::Relaxed);
        answering.into_iter().for_each(finish);
        sample
    })
}

fn answer(server: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 128];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..len], from);
        }
    }
}

/// Datagrams as fast as one unconnected socket sends them; counted where they arrive.
pub(super) fn stream(turn: &Turn<'_>) -> Result<Sample> {
    flood(turn, |target, stop| {
        let socket = client_socket()?;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..BATCH {
                send_or_skip(|| socket.send_to(&PAYLOAD, target))?;
            }
        }
        Ok(())
    })
}

/// Datagrams of a few flows, many to a system call: what is measured is the way, not the sender.
pub(super) fn forward(turn: &Turn<'_>) -> Result<Sample> {
    flood(turn, |target, stop| {
        let mut sockets = Vec::new();
        for _ in 0..FLOWS {
            let socket = client_socket()?;
            socket.connect(target)?;
            sockets.push(socket);
        }
        while !stop.load(Ordering::Relaxed) {
            for socket in &sockets {
                send_or_skip(|| send_many(socket))?;
            }
        }
        Ok(())
    })
}

fn flood(turn: &Turn<'_>, send: impl FnOnce(SocketAddr, &AtomicBool) -> Result<()> + Send) -> Result<Sample> {
    let (client_cpu, server_cpu) = turn.own_cpus();
    let server = turn.udp_server(Ipv4Addr::UNSPECIFIED)?;
    // Room for what arrives while the receiver does not run.
    nix::sys::socket::setsockopt(&server, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    let received = AtomicU64::new(0);
    let (stop_sender, stop_receiver) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let receiver = turn.server.spawn(scope, Some(server_cpu), || {
            while !stop_receiver.load(Ordering::Relaxed) {
                if let Ok(count) = receive_many(&server) {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            }
        });
        let sender = turn.client.spawn(scope, Some(client_cpu), || send(turn.target, &stop_sender));
        thread::sleep(turn.length / 10);
        let before = received.load(Ordering::Relaxed);
        let meter = Meter::start();
        thread::sleep(turn.length);
        let sample = meter.stop(received.load(Ordering::Relaxed) - before, 1.0);
        stop_sender.store(true, Ordering::Relaxed);
        let sent = finish(sender);
        stop_receiver.store(true, Ordering::Relaxed);
        finish(receiver);
        sent.and(sample)
    })
}

fn client_socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// A full queue on the way is what a flood meets; anything else is an error.
fn send_or_skip<T>(send: impl FnOnce() -> io::Result<T>) -> Result<()> {
    match send() {
        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error).context("send"),
        _ => Ok(()),
    }
}

fn send_many(socket: &UdpSocket) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: PAYLOAD.as_ptr().cast_mut().cast(), iov_len: PAYLOAD.len() };
    let mut messages = messages(&raw mut part);
    // SAFETY: each message names one part, which outlives the call and is only read.
    let count =
        unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as libc::c_uint, 0) };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Takes what is there, and looks at none of it. Waits for the first.
fn receive_many(socket: &UdpSocket) -> io::Result<usize> {
    let mut nothing = [0u8; 1];
    let mut part = libc::iovec { iov_base: nothing.as_mut_ptr().cast(), iov_len: 1 };
    let mut messages = messages(&raw mut part);
    // SAFETY: each message names one part, which outlives the call; all write the same byte, which nobody reads.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            BATCH as libc::c_uint,
            libc::MSG_WAITFORONE,
            std::ptr::null_mut(),
        )
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Messages without address, each with the same one part.
fn messages(part: *mut libc::iovec) -> [libc::mmsghdr; BATCH] {
    // SAFETY: all zero is a message without address, parts and control data.
    let mut messages: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages
}
