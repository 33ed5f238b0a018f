//! A connection to the system bus: authentication, calls and their answers, signals, file descriptors that come with them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::message::{Kind, MAX_BYTES, Message, Value, decode, encode, length};

/// The bus itself: its name, and its interface.
pub(super) const BUS: &str = "org.freedesktop.DBus";
const TIMEOUT: Duration = Duration::from_secs(10);
const CHUNK: usize = 4096;
/// What the kernel passes on at a time: none is cut off.
const MAX_FDS_AT_A_TIME: usize = 253;
/// Descriptors whose message has not come to its end yet.
const MAX_FDS: usize = 512;
/// Signals that wait while an answer is waited for; more are dropped with an error.
const MAX_WAITING: usize = 64;
const MAX_AUTH_LINE: usize = 512;

/// A file descriptor that came over the bus; closed on drop.
#[derive(Debug)]
pub(super) struct Fd(RawFd);

impl Drop for Fd {
    fn drop(&mut self) {
        let _ = nix::unistd::close(self.0);
    }
}

/// A message, and the descriptors that came with it.
pub(super) struct Incoming {
    pub(super) message: Message,
    pub(super) fds: Vec<Fd>,
}

pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    received: Vec<u8>,
    /// Bytes of a message too large to be read that are still to come.
    passed_over: usize,
    /// Of messages that are received in part, in their order.
    fds: VecDeque<Fd>,
    signals: VecDeque<Message>,
}

impl Bus {
    /// Connects as this process's user, and says hello.
    pub(super) async fn connect(socket: &Path) -> Result<Self, String> {
        let text = |error: io::Error| format!("{}: {error}", socket.display());
        let mut stream = UnixStream::connect(socket).await.map_err(text)?;
        let authenticated = tokio::time::timeout(TIMEOUT, authenticate(&mut stream)).await;
        authenticated.map_err(|_| "the bus does not answer".to_owned())?.map_err(text)?;
        let (fds, signals) = (VecDeque::new(), VecDeque::new());
        let mut bus = Self { stream, serial: 0, received: Vec::new(), passed_over: 0, fds, signals };
        bus.ask("Hello", vec![]).await?;
        Ok(bus)
    }

    /// Calls a method of the bus itself.
    pub(super) async fn ask(&mut self, member: &str, body: Vec<Value>) -> Result<Incoming, String> {
        self.call(BUS, "/org/freedesktop/DBus", BUS, member, body).await
    }

    /// Calls a method, and waits for its answer. Signals that come meanwhile are kept.
    pub(super) async fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: Vec<Value>,
    ) -> Result<Incoming, String> {
        self.serial += 1;
        let serial = self.serial;
        let message = Message {
            serial,
            destination: destination.to_owned(),
            path: path.to_owned(),
            interface: interface.to_owned(),
            member: member.to_owned(),
            body,
            ..Message::default()
        };
        let answered = async {
            self.stream.write_all(&encode(&message)).await.map_err(|error| error.to_string())?;
            loop {
                let answer = self.next().await?;
                if answer.message.reply_serial == Some(serial) {
                    return Ok(answer);
                }
                self.keep(answer.message)?;
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, answered).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")));
        let answer = answer.map_err(|why| format!("{interface}.{member}: {why}"))?;
        match answer.message.kind {
            Kind::Return => Ok(answer),
            _ => {
                let why = match answer.message.body.first() {
                    Some(Value::Text(text)) => text.clone(),
                    _ => String::new(),
                };
                Err(format!("{interface}.{member}: {} {why}", answer.message.error))
            }
        }
    }

    fn keep(&mut self, message: Message) -> Result<(), String> {
        if message.kind == Kind::Signal {
            if self.signals.len() >= MAX_WAITING {
                return Err(format!("more than {MAX_WAITING} signals wait"));
            }
            self.signals.push_back(message);
        }
        Ok(())
    }

    /// Waits for the next signal. Cancel-safe.
    pub(super) async fn signal(&mut self) -> Result<Message, String> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let incoming = self.next().await?;
            self.keep(incoming.message)?;
        }
    }

    /// The next message; of one that is too large the header alone. Cancel-safe: what was received in part stays.
    async fn next(&mut self) -> Result<Incoming, String> {
        loop {
            if let Some(length) = length(&self.received)? {
                let wanted = if length.whole > MAX_BYTES { length.header } else { length.whole };
                if wanted <= self.received.len() {
                    let message = decode(&self.received[..wanted])?;
                    self.received.drain(..wanted);
                    self.passed_over = length.whole - wanted;
                    self.pass_over();
                    return self.with_fds(message);
                }
            }
            self.receive().await.map_err(|error| error.to_string())?;
        }
    }

    /// Descriptors come no later than the first byte of their message, and in the order of the messages.
    fn with_fds(&mut self, message: Message) -> Result<Incoming, String> {
        let count = message.fds as usize;
        if count > self.fds.len() {
            return Err("a D-Bus message without the descriptors that it names".to_owned());
        }
        let fds = self.fds.drain(..count).collect();
        Ok(Incoming { message, fds })
    }

    fn pass_over(&mut self) {
        let here = self.passed_over.min(self.received.len());
        self.received.drain(..here);
        self.passed_over -= here;
    }

    async fn receive(&mut self) -> io::Result<()> {
        let (count, (bytes, fds)) =
            self.stream.async_io(Interest::READABLE, || receive(&self.stream)).await?;
        self.fds.extend(fds);
        self.received.extend_from_slice(&bytes[..count]);
        self.pass_over();
        match count {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the bus has closed the connection")),
            _ if self.fds.len() > MAX_FDS => Err(io::Error::other("the bus sends too many descriptors")),
            _ => Ok(()),
        }
    }
}

type Received = (usize, (Vec<u8>, Vec<Fd>));

fn receive(stream: &UnixStream) -> io::Result<Received> {
    let mut bytes = vec![0; CHUNK];
    let mut ancillary = nix::cmsg_space!([RawFd; MAX_FDS_AT_A_TIME]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut ancillary[..]), flags)?;
    let count = message.bytes;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            fds.extend(raw.into_iter().map(Fd));
        }
    }
    Ok((count, (bytes, fds)))
}

/// SASL's EXTERNAL: the socket says who we are.
async fn authenticate(stream: &mut UnixStream) -> io::Result<()> {
    let uid: String =
        nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes()).await?;
    expect(stream, "OK").await?;
    stream.write_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
    expect(stream, "AGREE_UNIX_FD").await?;
    stream.write_all(b"BEGIN\r\n").await
}

async fn expect(stream: &mut UnixStream, word: &str) -> io::Result<()> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        if line.len() >= MAX_AUTH_LINE {
            return Err(io::Error::other("the bus answers with too long a line"));
        }
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&line);
    match line.split_whitespace().next() {
        Some(first) if first == word => Ok(()),
        _ => Err(io::Error::other(format!("the bus answers {:?}, not {word}", line.trim_end()))),
    }
}
