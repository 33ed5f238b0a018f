//! Questions about other names: asked of the node's resolvers, as they came, answered as they answer.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::Config;

/// How often a question is asked before it fails, over all resolvers.
const ATTEMPTS: usize = 2;

/// Over which transport the client asked; the resolver is asked the same way, so that sizes fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The answer's bytes; `None` where no resolver answered in time.
pub(crate) async fn ask(config: &Config, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    for upstream in config.upstreams.iter().cycle().take(ATTEMPTS.max(config.upstreams.len())) {
        let asked = async {
            match transport {
                Transport::Udp => ask_udp(*upstream, question).await,
                Transport::Tcp => ask_tcp(*upstream, question).await,
            }
        };
        match timeout(config.upstream_timeout, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%upstream, %error, "resolver failed"),
            Err(_) => tracing::debug!(%upstream, "resolver did not answer in time"),
        }
    }
    None
}

/// A socket of its own for each question: its port is as hard to guess as the question's number.
async fn ask_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Another question's answer, or a forged one: the right one may still come.
        if buffer.get(..2) == question.get(..2) && length >= 12 {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
