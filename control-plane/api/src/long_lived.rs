//! Connections that are open for hours, and whose other side may vanish without a word.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long a connection is silent before the other side is asked whether it is there, and how often it is then asked.
const IDLE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// How long the other side may leave what was sent to it unacknowledged: as long as it may be silent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Prepares a connection for streams: small writes leave at once, and it breaks a minute after the other side is gone,
/// whether anything is being sent or not (tcp(7): `TCP_NODELAY`, `SO_KEEPALIVE`, `TCP_USER_TIMEOUT`).
pub fn long_lived(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}
