//! Port-forward as WebSocket channels, for clients that do not tunnel SPDY: each port has a channel for data
//! and one for errors, and the first message on each names the port (two bytes, little endian).

use std::sync::Arc;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::channels::QUEUE;
use super::port_forward::Forwarder;
use super::ws_channels::Encoding;
use crate::server::Refusal;
use crate::server::routes::Query;
use crate::server::websocket::{WebSocket, normal_close};

/// Channels are one byte, two a port; as text they are one digit.
const MAX_PORTS: usize = 100;

const CHUNK_BYTES: usize = 32 << 10;

pub(super) fn ports(query: &Query) -> Result<Vec<u16>, Refusal> {
    let values = query.iter().filter(|(name, _)| name == "port").flat_map(|(_, value)| value.split(','));
    let ports: Result<Vec<u16>, _> = values.map(str::parse).collect();
    let ports = ports.map_err(|_| Refusal::bad_request("unable to parse port"))?;
    if ports.is_empty() || ports.len() > MAX_PORTS || ports.contains(&0) {
        return Err(Refusal::bad_request("query parameter \"port\" is required, with valid ports"));
    }
    Ok(ports)
}

/// Ends with the client, or when every port's connection has ended.
pub(super) async fn serve(socket: WebSocket, protocol: &str, ports: &[u16], forwarder: &Forwarder) {
    let encoding = Encoding::of(protocol);
    let (mut sink, mut stream) = socket.split();
    let (to_client, mut output) = mpsc::channel::<(u8, bytes::Bytes)>(QUEUE);
    let mut inputs: Vec<Option<OwnedWriteHalf>> = Vec::new();
    let mut downloads = JoinSet::new();
    let forwarder = Arc::new(forwarder.clone());
    let writing = async move {
        while let Some((channel, bytes)) = output.recv().await {
            if sink.send(encoding.encode(channel, &bytes)).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_close()).await;
    };
    let forwarding = async move {
        for (index, port) in ports.iter().enumerate() {
            let (data, errors) = (2 * index as u8, 2 * index as u8 + 1);
            let name = bytes::Bytes::copy_from_slice(&port.to_le_bytes());
            for channel in [data, errors] {
                let _ = to_client.send((channel, name.clone())).await;
            }
            match forwarder.connect(*port).await {
                Ok(connection) => {
                    let (mut from_pod, to_pod) = connection.into_split();
                    inputs.push(Some(to_pod));
                    let to_client = to_client.clone();
                    downloads.spawn(async move {
                        let mut chunk = BytesMut::new();
                        loop {
                            chunk.reserve(CHUNK_BYTES);
                            match from_pod.read_buf(&mut chunk).await {
                                Ok(0) | Err(_) => return,
                                Ok(_) => {}
                            }
                            if to_client.send((data, chunk.split().freeze())).await.is_err() {
                                return;
                            }
                        }
                    });
                }
                Err(message) => {
                    inputs.push(None);
                    let _ = to_client.send((errors, message.into())).await;
                }
            }
        }
        drop(to_client);
        let upload = async {
            while let Some(Ok(message)) = stream.next().await {
                if matches!(message, Message::Close(_)) {
                    return;
                }
                let Some((channel, bytes)) = encoding.decode(message) else { continue };
                let Some(input) = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel % 2 == 0)
                else {
                    continue;
                };
                if let Some(open) = input
                    && open.write_all(&bytes).await.is_err()
                {
                    *input = None;
                }
            }
        };
        let all_ended = async { while downloads.join_next().await.is_some() {} };
        tokio::select! {
            () = upload => {}
            () = all_ended => {}
        }
    };
    tokio::join!(writing, forwarding);
}
