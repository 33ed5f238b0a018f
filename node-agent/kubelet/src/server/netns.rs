//! Connections to ports inside a pod's network namespace.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `port` on the loopback address of the namespace (of this process's own for `None`), of
/// whichever family listens.
pub(super) async fn connect(namespace: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = oneshot::channel();
    // A thread of its own that ends: it leaves this process's network namespace for good.
    std::thread::Builder::new().name("port-forward-connect".into()).stack_size(128 << 10).spawn(
        move || {
            // Nobody waits any more: the connection is closed.
            let _ = sender.send(connect_blocking(namespace, port));
        },
    )?;
    let stream = receiver.await.map_err(|_| io::Error::other("connecting thread ended"))??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn connect_blocking(namespace: Option<PathBuf>, port: u16) -> io::Result<std::net::TcpStream> {
    if let Some(path) = namespace {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&v4, CONNECT_TIMEOUT)
        .or_else(|error| std::net::TcpStream::connect_timeout(&v6, CONNECT_TIMEOUT).map_err(|_| error))
}
