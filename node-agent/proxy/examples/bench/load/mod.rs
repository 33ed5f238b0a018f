//! The loads: what clients and servers do in one turn. Each is bounded in time, and in connections or datagrams.
//!
//! A load that does one thing at a time keeps client and server on one CPU, so that its rate is the work of one
//! operation and not the wake-up of another CPU; rounds take turns with the CPUs. The others have one CPU for the
//! client and one for the server.

mod epoll;
mod http;
mod tcp;
mod udp;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{lab::Place, measure::Sample};

/// One peer's turn.
pub(crate) struct Turn<'a> {
    pub(crate) client: Place<'a>,
    pub(crate) server: Place<'a>,
    /// What the client asks for.
    pub(crate) target: SocketAddr,
    /// Where the backend listens, at all of its addresses.
    pub(crate) port: u16,
    pub(crate) length: Duration,
    pub(crate) round: usize,
}

/// Which of a peer's addresses a case asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// A pod of the node, TCP, to a backend on the node.
    Tcp,
    /// The same, UDP.
    Udp,
    /// A client outside, UDP, through the node to a backend on another one.
    Forward,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// What CPU time is given for.
    pub(crate) per: &'static str,
    pub(crate) path: Path,
    pub(crate) run: fn(&Turn<'_>) -> Result<Sample>,
}

/// All cases of `bench service`, in the order of its table.
pub(crate) const CASES: [Case; 9] = [
    Case { name: "tcp_crr", unit: "conn/s", per: "conn", path: Path::Tcp, run: tcp::connect_request_close },
    Case { name: "tcp_rr", unit: "req/s", per: "req", path: Path::Tcp, run: tcp::request_response },
    Case { name: "http_short", unit: "req/s", per: "req", path: Path::Tcp, run: http::short },
    Case { name: "http_keepalive", unit: "req/s", per: "req", path: Path::Tcp, run: http::keep_alive },
    Case { name: "tcp_stream_1", unit: "Gbit/s", per: "MiB", path: Path::Tcp, run: tcp::one_stream },
    Case { name: "tcp_stream_4", unit: "Gbit/s", per: "MiB", path: Path::Tcp, run: tcp::four_streams },
    Case { name: "udp_rr", unit: "req/s", per: "req", path: Path::Udp, run: udp::request_response },
    Case { name: "udp_stream", unit: "packet/s", per: "packet", path: Path::Udp, run: udp::stream },
    Case {
        name: "nodeport_forward",
        unit: "packet/s",
        per: "packet",
        path: Path::Forward,
        run: udp::forward,
    },
];

impl Turn<'_> {
    /// The CPU of client and server, when they share one.
    fn shared_cpu(&self) -> usize {
        self.round % cpus()
    }

    /// The CPUs of client and server, when each has its own.
    fn own_cpus(&self) -> (usize, usize) {
        (self.round % cpus(), (self.round + 1) % cpus())
    }

    fn tcp_listener(&self) -> Result<TcpListener> {
        self.server.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, self.port))).context("listen")
    }

    /// A socket at `address`: one that answers has to be bound to the very address that was asked.
    fn udp_server(&self, address: Ipv4Addr) -> Result<UdpSocket> {
        let socket = self.server.run(|| UdpSocket::bind((address, self.port))).context("bind")?;
        // Short: it is how a server notices that its turn is over.
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(socket)
    }
}

/// Wakes whoever waits in `accept` of this listener, for good.
pub(crate) fn stop_accepting(listener: &TcpListener) {
    // SAFETY: the descriptor is open as long as the listener lives.
    unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RD) };
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
