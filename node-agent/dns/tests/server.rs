//! Cluster DNS over real sockets on the loopback address, with a resolver of the test's own as the outside.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hawser_dns::{Config, Dns};
use hawser_services::{EndpointSlice, Key, Service};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use k8s_openapi::api;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long anything may take that should happen at once: `HAWSER_TEST_PATIENCE` times longer where the machine is
/// emulated.
fn patience() -> Duration {
    let factor = std::env::var("HAWSER_TEST_PATIENCE");
    Duration::from_secs(10)
        * factor.map_or(1, |factor| factor.parse().expect("HAWSER_TEST_PATIENCE is a number"))
}

struct Server {
    dns: Dns,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A port that is free over UDP and TCP: on a loopback address of this process's own, because what is free over UDP may
/// be taken over TCP by anybody else.
async fn free_port() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 53, high, low), 0)).await.unwrap();
    socket.local_addr().unwrap()
}

async fn start(upstreams: Vec<SocketAddr>) -> Server {
    let address = free_port().await;
    let dns = Dns::new(Config {
        cluster_domain: "cluster.local".into(),
        listen: vec![address],
        upstreams,
        ttl_seconds: 5,
        // Silence costs a test this much.
        upstream_timeout: patience() / 30,
    })
    .unwrap();
    let shutdown = CancellationToken::new();
    let (server, stop) = (dns.clone(), shutdown.clone());
    tokio::spawn(async move { server.run(stop).await });
    let server = Server { dns, address, shutdown };
    // Listens when TCP connects.
    timeout(patience(), async {
        while TcpStream::connect(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    server
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask_udp(server: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = timeout(patience(), socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask_tcp(server: SocketAddr, question: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = question.to_vec().unwrap();
    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(patience(), stream.read_u16()).await.expect("an answer in time").unwrap();
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn many_endpoints(count: u8) -> (Arc<Service>, Arc<EndpointSlice>) {
    let endpoints: Vec<_> =
        (0..count).map(|last| json!({ "addresses": [format!("10.1.0.{last}")] })).collect();
    let metadata = json!({ "labels": { "kubernetes.io/service-name": "db" } });
    let slice = json!({ "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints });
    let service = json!({ "metadata": {}, "spec": { "clusterIP": "None" } });
    let slice = with_kind(slice, "discovery.k8s.io/v1", "EndpointSlice");
    let service: api::core::v1::Service =
        serde_json::from_value(with_kind(service, "v1", "Service")).unwrap();
    let slice: api::discovery::v1::EndpointSlice = serde_json::from_value(slice).unwrap();
    (Arc::new(Service::from(&service)), Arc::new(EndpointSlice::of(&slice).unwrap()))
}

fn with_kind(mut object: serde_json::Value, version: &str, kind: &str) -> serde_json::Value {
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object
}

#[tokio::test]
async fn what_is_not_known_yet_is_not_denied() {
    let server = start(vec![]).await;
    let asked = question("db.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(ask_udp(server.address, &asked).await.metadata.response_code, ResponseCode::ServFail);
    let (service, slice) = many_endpoints(3);
    server.dns.update_service(&Key::new("shop", "db"), Some(service), &[slice]);
    assert_eq!(ask_udp(server.address, &asked).await.answers.len(), 3, "what is known is told at once");
    let other = question("other.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(ask_tcp(server.address, &other).await.metadata.response_code, ResponseCode::ServFail);
    server.dns.complete();
    assert_eq!(ask_tcp(server.address, &other).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn answers_follow_the_services() {
    let server = start(vec![]).await;
    server.dns.complete();
    let (service, slice) = many_endpoints(3);
    let key = Key::new("shop", "db");
    let asked = question("db.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(ask_udp(server.address, &asked).await.metadata.response_code, ResponseCode::NXDomain);
    server.dns.update_service(&key, Some(service), &[slice]);
    let answer = ask_udp(server.address, &asked).await;
    assert_eq!(answer.answers.len(), 3);
    assert!(answer.metadata.authoritative);
    server.dns.update_service(&key, None, &[]);
    assert_eq!(ask_udp(server.address, &asked).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn large_answers_are_cut_over_udp_and_whole_over_tcp() {
    let server = start(vec![]).await;
    let (service, slice) = many_endpoints(200);
    server.dns.update_service(&Key::new("shop", "db"), Some(service), &[slice]);
    let mut asked = question("db.shop.svc.cluster.local.", RecordType::A);
    let cut = ask_udp(server.address, &asked).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(ask_tcp(server.address, &asked).await.answers.len(), 200);
    let (service, slice) = many_endpoints(50);
    server.dns.update_service(&Key::new("shop", "db"), Some(service), &[slice]);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.set_edns(edns);
    assert_eq!(ask_udp(server.address, &asked).await.answers.len(), 50, "EDNS makes room");
}

#[tokio::test]
async fn other_names_go_outside_and_come_back() {
    let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = outside.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 512];
        while let Ok((length, client)) = outside.recv_from(&mut buffer).await {
            let mut answer = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let name = answer.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 80)))));
            outside.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    // The first resolver is dead: the second is asked.
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = start(vec![dead.local_addr().unwrap(), upstream]).await;
    let asked = question("example.com.", RecordType::A);
    let answer = ask_udp(server.address, &asked).await;
    assert_eq!(answer.answers[0].data.to_string(), "192.0.2.80");
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(server.dns.stats().forwarded, 1);
}

#[tokio::test]
async fn silent_resolver_is_a_server_failure_and_none_is_a_refusal() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = start(vec![silent.local_addr().unwrap()]).await;
    let asked = question("example.com.", RecordType::A);
    assert_eq!(ask_udp(server.address, &asked).await.metadata.response_code, ResponseCode::ServFail);
    let alone = start(vec![]).await;
    assert_eq!(ask_udp(alone.address, &asked).await.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test]
async fn garbage_is_ignored_and_the_server_goes_on() {
    let server = start(vec![]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = question("dns-version.cluster.local.", RecordType::TXT).to_vec().unwrap();
    let mut state = 1u32;
    for round in 0..500 {
        let mut bytes = good.clone();
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = state as usize % bytes.len();
        bytes[at] ^= (state >> 16) as u8;
        bytes.truncate(round % bytes.len() + 1);
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    let answer = ask_udp(server.address, &question("dns-version.cluster.local.", RecordType::TXT)).await;
    assert_eq!(answer.answers.len(), 1);
}
