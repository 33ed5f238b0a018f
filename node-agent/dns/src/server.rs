//! Packets in, packets out: UDP with truncation, TCP with length prefixes (RFC 1035, 6891, 7766).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::DNSClass,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    Shared,
    answer::{Answer, answer},
    forward::{self, Transport},
};

/// Questions that may wait for a resolver outside; past that they fail at once, so that a resolver that is gone
/// costs a bounded number of sockets.
const FORWARDS: usize = 512;
/// Open TCP connections; past that new ones wait in the listen queue.
const CONNECTIONS: usize = 256;
/// How long a client may leave a TCP connection idle.
const IDLE: Duration = Duration::from_secs(10);
/// Largest UDP answer without fragments on any path (RFC 9715 advises 1,400 at most; DNS Flag Day: 1,232).
const UDP_LIMIT: u16 = 1232;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cluster domain {domain:?} is not a name")]
    Domain {
        domain: String,
        #[source]
        source: ProtoError,
    },
    #[error("cannot listen on {address} for DNS")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

pub(crate) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> Result<(), Error> {
    let forwards = Arc::new(Semaphore::new(FORWARDS));
    let mut tasks = JoinSet::new();
    for address in shared.config.listen.clone() {
        let failed = |source| Error::Listen { address, source };
        let udp = Arc::new(UdpSocket::bind(address).await.map_err(failed)?);
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        info!(%address, "cluster DNS listens");
        tasks.spawn(serve_udp(shared.clone(), udp, forwards.clone()));
        tasks.spawn(serve_tcp(shared.clone(), tcp, forwards.clone()));
    }
    shutdown.cancelled().await;
    tasks.shutdown().await;
    Ok(())
}

/// Local answers are made at once in this task; only questions for outside get a task of their own.
async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, forwards: Arc<Semaphore>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut waiting = JoinSet::new();
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer that could not be delivered is reported here; the socket is well.
                debug!(%error, "receiving a question");
                continue;
            }
        };
        shared.counters.questions.fetch_add(1, Ordering::Relaxed);
        match decide(&shared, &buffer[..length], Transport::Udp) {
            Some(Step::Send(answer)) => send(&socket, &answer, client).await,
            Some(Step::Forward(refusal)) => {
                let question = buffer[..length].to_vec();
                let (shared, socket, forwards) = (shared.clone(), socket.clone(), forwards.clone());
                waiting.spawn(async move {
                    let answer = forward(&shared, &question, Transport::Udp, &forwards, refusal).await;
                    send(&socket, &answer, client).await;
                });
            }
            None => {
                shared.counters.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        debug!(%client, %error, "sending an answer");
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener, forwards: Arc<Semaphore>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let (shared, forwards) = (shared.clone(), forwards.clone());
                tasks.spawn(async move {
                    if let Err(error) = serve_connection(&shared, stream, &forwards).await {
                        debug!(%client, %error, "TCP client");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "accepting a TCP client");
                // Out of descriptors, most likely: let others end.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Until the client closes, is idle too long, or asks what is no question.
async fn serve_connection(shared: &Shared, mut stream: TcpStream, forwards: &Semaphore) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let length = match length {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            length => length?,
        };
        let mut question = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        shared.counters.questions.fetch_add(1, Ordering::Relaxed);
        let answer = match decide(shared, &question, Transport::Tcp) {
            Some(Step::Send(answer)) => answer,
            Some(Step::Forward(refusal)) => {
                forward(shared, &question, Transport::Tcp, forwards, refusal).await
            }
            None => return Ok(()),
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(IDLE, async {
            stream.write_all(&length.to_be_bytes()).await?;
            stream.write_all(&answer).await
        })
        .await??;
    }
}

enum Step {
    Send(Vec<u8>),
    /// Ask outside; where that fails, this is the answer.
    Forward(Vec<u8>),
}

/// `None` for bytes that are no question: answering them would make an amplifier of us.
fn decide(shared: &Shared, bytes: &[u8], transport: Transport) -> Option<Step> {
    let request = Message::from_vec(bytes).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let code = match (request.metadata.op_code, request.queries.as_slice()) {
        (OpCode::Query, [query]) if query.query_class() == DNSClass::IN => {
            let found = answer(&shared.records.read(), &shared.zone, shared.config.ttl_seconds, query);
            match found {
                Answer::Local { answers, .. }
                    if answers.is_empty() && !shared.is_complete.load(Ordering::Acquire) =>
                {
                    ResponseCode::ServFail
                }
                Answer::Local { code, answers, additionals, soa } => {
                    let mut reply = reply_to(shared, &request, code);
                    reply.metadata.authoritative = true;
                    reply
                        .add_answers(answers)
                        .add_additionals(additionals)
                        .add_authorities(soa.map(|soa| *soa));
                    return encode(&reply, &request, transport).map(Step::Send);
                }
                Answer::Forward if shared.config.upstreams.is_empty() => ResponseCode::Refused,
                Answer::Forward => {
                    let failed = reply_to(shared, &request, ResponseCode::ServFail);
                    return encode(&failed, &request, transport).map(Step::Forward);
                }
            }
        }
        (OpCode::Query, [_]) => ResponseCode::Refused,
        (OpCode::Query, _) => ResponseCode::FormErr,
        _ => ResponseCode::NotImp,
    };
    encode(&reply_to(shared, &request, code), &request, transport).map(Step::Send)
}

fn reply_to(shared: &Shared, request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = !shared.config.upstreams.is_empty();
    reply.metadata.response_code = code;
    reply.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT);
        reply.set_edns(edns);
    }
    reply
}

/// The bytes; cut down to the question where the client could not receive them all over UDP.
fn encode(reply: &Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    let limit = match transport {
        Transport::Udp => request.max_payload().clamp(512, UDP_LIMIT),
        Transport::Tcp => u16::MAX,
    };
    if bytes.len() <= usize::from(limit) { Some(bytes) } else { reply.truncate().to_vec().ok() }
}

async fn forward(
    shared: &Shared,
    question: &[u8],
    transport: Transport,
    forwards: &Semaphore,
    failure: Vec<u8>,
) -> Vec<u8> {
    shared.counters.forwarded.fetch_add(1, Ordering::Relaxed);
    let answer = match forwards.try_acquire() {
        Ok(_permit) => forward::ask(&shared.config, question, transport).await,
        Err(_) => None,
    };
    answer.unwrap_or_else(|| {
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        failure
    })
}
