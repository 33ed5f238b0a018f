//! TCP: connections one after the other, requests over one connection, and streams.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Turn, stop_accepting};
use crate::{
    lab::finish,
    measure::{Latencies, Meter, Sample},
};

const MIB: u64 = 1 << 20;
/// Connections of one turn: more than a second has at any rate seen here.
const MOST_CONNECTIONS: u64 = 200_000;

/// Connect, request, response, close by the server; one connection at a time.
pub(super) fn connect_request_close(turn: &Turn<'_>) -> Result<Sample> {
    let cpu = turn.shared_cpu();
    let listener = turn.tcp_listener()?;
    thread::scope(|scope| {
        let server = turn.server.spawn(scope, Some(cpu), || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0];
                if stream.read_exact(&mut request).is_ok() {
                    let _ = stream.write_all(b"!");
                }
            }
        });
        let client = turn.client.spawn(scope, Some(cpu), || connections(turn.target, turn.length));
        let sample = finish(client);
        stop_accepting(&listener);
        finish(server);
        sample
    })
}

fn connections(target: SocketAddr, length: Duration) -> Result<Sample> {
    let meter = Meter::start();
    let mut count = 0;
    let mut latencies = Latencies::new();
    while meter.elapsed() < length && count < MOST_CONNECTIONS {
        for _ in 0..16 {
            let started = Instant::now();
            let mut stream = TcpStream::connect(target).context("connect")?;
            stream.write_all(b"?")?;
            let mut response = [0; 2];
            ensure!(stream.read(&mut response)? == 1 && response[0] == b'!', "an unknown response");
            ensure!(stream.read(&mut response)? == 0, "the server did not close");
            drop(stream);
            latencies.add(started.elapsed());
            count += 1;
        }
    }
    let sample = meter.stop(count, 1.0)?;
    Ok(Sample { latency_us: latencies.percentiles(), ..sample })
}

/// One byte there and one back, over one connection.
pub(super) fn request_response(turn: &Turn<'_>) -> Result<Sample> {
    let cpu = turn.shared_cpu();
    let listener = turn.tcp_listener()?;
    thread::scope(|scope| {
        let server = turn.server.spawn(scope, Some(cpu), || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        let client = turn.client.spawn(scope, Some(cpu), || -> Result<Sample> {
            let mut stream = TcpStream::connect(turn.target).context("connect")?;
            stream.set_nodelay(true)?;
            let mut latencies = Latencies::new();
            let mut count = 0;
            let mut byte = [0];
            let meter = Meter::start();
            while meter.elapsed() < turn.length {
                for _ in 0..16 {
                    let started = Instant::now();
                    stream.write_all(b"?")?;
                    stream.read_exact(&mut byte)?;
                    latencies.add(started.elapsed());
                    count += 1;
                }
            }
            let sample = meter.stop(count, 1.0)?;
            Ok(Sample { latency_us: latencies.percentiles(), ..sample })
        });
        let sample = finish(client);
        stop_accepting(&listener);
        finish(server).and(sample)
    })
}

pub(super) fn one_stream(turn: &Turn<'_>) -> Result<Sample> {
    streams(turn, 1)
}

pub(super) fn four_streams(turn: &Turn<'_>) -> Result<Sample> {
    streams(turn, 4)
}

/// As many bytes as get through; counted where they arrive.
fn streams(turn: &Turn<'_>, count: usize) -> Result<Sample> {
    let (client_cpu, server_cpu) = turn.own_cpus();
    let listener = turn.tcp_listener()?;
    let received = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let servers: Vec<_> = (0..count)
            .map(|_| turn.server.spawn(scope, Some(server_cpu), || receive(&listener, &received)))
            .collect();
        let clients: Vec<_> = (0..count)
            .map(|_| turn.client.spawn(scope, Some(client_cpu), || send(turn.target, &stop)))
            .collect();
        // The first tenth is not counted: connections are made, and windows grow.
        thread::sleep(turn.length / 10);
        let before = received.load(Ordering::Relaxed);
        let meter = Meter::start();
        thread::sleep(turn.length);
        let bytes = received.load(Ordering::Relaxed) - before;
        let sample = meter.stop(bytes / MIB, 8.0 * MIB as f64 / 1e9);
        stop.store(true, Ordering::Relaxed);
        let sent = clients.into_iter().try_for_each(finish);
        stop_accepting(&listener);
        servers.into_iter().for_each(finish);
        sent.and(sample)
    })
}

fn send(target: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(target).context("connect")?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let data = vec![0x5a; 128 << 10];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&data) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("send"),
        }
    }
    Ok(())
}

fn receive(listener: &TcpListener, received: &AtomicU64) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let mut buffer = vec![0; 128 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}
