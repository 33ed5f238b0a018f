//! A client's connection, from its handshake to the end of the stream that it may become.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

/// Keeps its place among the server's connections while it is open, upgraded or not, and fails when nothing has moved
/// in either direction for too long.
pub(super) struct Connection<S> {
    io: S,
    idle_timeout: Duration,
    moved_at: Instant,
    /// Looks again at `moved_at`: it is not set anew by every byte.
    look: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    pub(super) fn new(io: S, permit: OwnedSemaphorePermit, idle_timeout: Duration) -> Self {
        let look = Box::pin(tokio::time::sleep(idle_timeout));
        Self { io, idle_timeout, moved_at: Instant::now(), look, _permit: permit }
    }

    fn moves<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.moved_at = Instant::now();
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_ready() {
            return self.moves(read);
        }
        loop {
            ready!(self.look.as_mut().poll(context));
            let until = self.moved_at + self.idle_timeout;
            if until <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nothing moved for too long",
                )));
            }
            self.look.as_mut().reset(until);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.moves(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.moves(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;

    use super::*;

    const IDLE: Duration = Duration::from_secs(100);

    fn connection(places: &Arc<Semaphore>) -> (DuplexStream, Connection<DuplexStream>) {
        let (client, server) = tokio::io::duplex(16);
        let permit = Arc::clone(places).try_acquire_owned().expect("there is a place");
        (client, Connection::new(server, permit, IDLE))
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_and_frees_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let (_client, mut connection) = connection(&places);
        let began = Instant::now();
        let error = connection.read_u8().await.expect_err("nobody speaks");
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, IDLE));
        assert_eq!(places.available_permits(), 0, "it is open still");
        drop(connection);
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_in_either_direction_keeps_a_connection() {
        let places = Arc::new(Semaphore::new(1));
        let (mut client, connection) = connection(&places);
        let (mut reader, mut writer) = tokio::io::split(connection);
        let began = Instant::now();
        let reading = tokio::spawn(async move { reader.read_u8().await });
        for _ in 0..3 {
            tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
            writer.write_u8(1).await.expect("written");
            client.read_u8().await.expect("read");
        }
        let error = reading.await.expect("ended").expect_err("nobody speaks");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), 3 * (IDLE - Duration::from_secs(1)) + IDLE);
    }
}
