//! A store that is away, hangs or loses its answers: requests end in time and say so, what was acknowledged is there, and
//! service goes on by itself.

mod common;

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use common::{
    wire::{Connection, Wire, maps, request},
    *,
};
use futures::stream;
use hawser_api::v1::{
    self, object_service_client::ObjectServiceClient, watch_service_client::WatchServiceClient,
};
use hawser_apiserver::auth::SYSTEM_MASTERS;
use hawser_store::{
    Error, KeyValue, RangeRequest, RangeResponse, Revision, Status, Store, WatchStream, Write, Written,
};
use tokio::{sync::watch, time::timeout};
use tonic::{Code, Request, transport::Channel};

const DEADLINE: Duration = Duration::from_secs(60);
const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Up,
    /// Every call fails at once, and watches break.
    Away,
    /// Calls wait until the mode is another one.
    Hangs,
    /// Writes are made, and nobody is told.
    LosesAnswers,
}

struct Faulty {
    store: Arc<dyn Store>,
    mode: watch::Sender<Mode>,
}

fn source() -> hawser_store::Source {
    Arc::new(io::Error::other("a fault of the test's"))
}

fn away() -> Error {
    Error::Unavailable { attempted: "a call", source: source() }
}

impl Faulty {
    fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, mode: watch::Sender::new(Mode::Up) })
    }

    fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    async fn pass(&self) -> Result<(), Error> {
        let mut mode = self.mode.subscribe();
        let mode = *mode.wait_for(|mode| *mode != Mode::Hangs).await.expect("the store lives");
        if mode == Mode::Away { Err(away()) } else { Ok(()) }
    }

    /// What a writer hears of what was written.
    fn told<T>(&self, key: &str, written: Result<T, Error>) -> Result<T, Error> {
        match *self.mode.borrow() {
            Mode::LosesAnswers => written.and(Err(Error::Ambiguous { key: key.into(), source: source() })),
            _ => written,
        }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.pass().await?;
        self.store.get(key).await
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.pass().await?;
        self.store.range(request).await
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        self.pass().await?;
        let key = write.key.clone();
        self.told(&key, self.store.write(write).await)
    }

    async fn transaction(&self, writes: Vec<Write>) -> Result<Revision, Error> {
        self.pass().await?;
        let key = writes[0].key.clone();
        self.told(&key, self.store.transaction(writes).await)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        self.pass().await?;
        let inner = self.store.watch(prefix, from).await?;
        let mode = self.mode.subscribe();
        let batches = stream::unfold(Some((inner, mode)), |open| async move {
            let (mut inner, mut mode) = open?;
            tokio::select! {
                biased;
                _ = async { mode.wait_for(|mode| *mode == Mode::Away).await.map(drop) } => {
                    Some((Err(away()), None))
                }
                batch = inner.next() => {
                    let batch = batch?;
                    let _ = mode.wait_for(|mode| *mode != Mode::Hangs).await;
                    Some((batch, Some((inner, mode))))
                }
            }
        });
        Ok(WatchStream::new(batches))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.pass().await?;
        self.store.current_revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.pass().await?;
        self.store.compact(revision).await
    }

    async fn status(&self) -> Result<Status, Error> {
        self.pass().await?;
        self.store.status().await
    }

    async fn close(&self) -> Result<(), Error> {
        self.store.close().await
    }
}

struct Served {
    running: Running,
    store: Arc<Faulty>,
    wire: Wire,
    http: Connection,
    channel: Channel,
}

async fn serve(directory: &Directory) -> Served {
    let store = Faulty::new(embedded(directory).await);
    let running = start_over(store.clone(), |_| ()).await;
    running.namespace("shop").await;
    let wire = Wire::start(&running).await;
    let http = wire.connect("admin", &[SYSTEM_MASTERS]).await;
    let channel = wire.channel("admin", &[SYSTEM_MASTERS]).await;
    Served { running, store, wire, http, channel }
}

fn create(name: &str) -> v1::CreateRequest {
    let object = v1::Object { body: config_map(name, "1").to_string().into(), ..v1::Object::default() };
    v1::CreateRequest { resource: maps(""), object: Some(object), options: None }
}

/// A call that the client waits a second for.
fn hurried<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(1));
    request
}

/// How a call failed. The client's clock and the server's run to the same deadline: whichever is first ends the call.
fn failure<T>(outcome: Result<T, tonic::Status>) -> Code {
    match outcome.map(drop).expect_err("no answer").code() {
        Code::Cancelled => Code::DeadlineExceeded,
        code => code,
    }
}

/// Writes until one is acknowledged again, and returns its name.
async fn write_until_acknowledged(http: &mut Connection, name: &str) -> String {
    let acknowledged = async {
        for attempt in 0.. {
            let name = format!("{name}-{attempt}");
            let body = config_map(&name, "1").to_string();
            if http.send(request("POST", &format!("{MAPS}?timeout=5s"), &body)).await.0 == 201 {
                return name;
            }
        }
        unreachable!("attempts do not end")
    };
    timeout(DEADLINE, acknowledged).await.expect("service goes on")
}

#[tokio::test]
async fn requests_end_in_time_with_what_is_wrong() {
    let directory = Directory::new();
    let Served { running, store, wire, mut http, channel } = serve(&directory).await;
    let mut objects = ObjectServiceClient::new(channel);
    write_until_acknowledged(&mut http, "known").await;
    for (mode, code, grpc) in
        [(Mode::Away, 503, Code::Unavailable), (Mode::Hangs, 504, Code::DeadlineExceeded)]
    {
        store.set(mode);
        let body = config_map("lost", "1").to_string();
        let asked = [
            request("GET", &format!("{MAPS}?timeout=1s"), ""),
            request("POST", &format!("{MAPS}?timeout=1s"), &body),
        ];
        for asked in asked {
            let (status, answer) = timeout(DEADLINE, http.send(asked)).await.expect("in time");
            assert_eq!(status, code, "{mode:?}: {answer}");
            assert_eq!(answer["kind"], "Status", "{answer}");
        }
        let get = v1::GetRequest { resource: maps("known-0"), ..v1::GetRequest::default() };
        let read = timeout(DEADLINE, objects.get(hurried(get))).await.expect("in time");
        assert_eq!(failure(read), grpc, "{mode:?}");
        let written = timeout(DEADLINE, objects.create(hurried(create("lost")))).await.expect("in time");
        assert_eq!(failure(written), grpc, "{mode:?}");
        // What the cache has is there for who takes it as it is.
        let (status, _) = http.get(&format!("{MAPS}?resourceVersion=0")).await;
        assert_eq!(status, 200, "{mode:?}");
        store.set(Mode::Up);
        write_until_acknowledged(&mut http, "again").await;
        let get = v1::GetRequest { resource: maps("known-0"), ..v1::GetRequest::default() };
        assert!(objects.get(get).await.is_ok(), "{mode:?}");
    }
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_said_to_be_one() {
    let directory = Directory::new();
    let Served { running, store, wire, mut http, channel } = serve(&directory).await;
    let mut objects = ObjectServiceClient::new(channel);
    store.set(Mode::LosesAnswers);
    let body = config_map("http", "1").to_string();
    let (status, answer) = http.send(request("POST", MAPS, &body)).await;
    assert_eq!((status.as_u16(), answer["reason"].as_str()), (504, Some("Timeout")), "{answer}");
    let lost = objects.create(create("grpc")).await.expect_err("nobody knows");
    assert_eq!(lost.code(), Code::DeadlineExceeded, "{lost}");
    store.set(Mode::Up);
    for name in ["http", "grpc"] {
        assert_eq!(http.get(&format!("{MAPS}/{name}")).await.0, 200, "{name} was written");
    }
    let again = objects.create(create("grpc")).await.expect_err("it is there");
    assert_eq!(again.code(), Code::AlreadyExists);
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_and_watches_go_on() {
    let directory = Directory::new();
    let Served { running, store, wire, mut http, channel } = serve(&directory).await;
    let (_, list) = http.get(MAPS).await;
    let ask = v1::WatchRequest {
        resource: maps(""),
        resource_version: list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned(),
        ..v1::WatchRequest::default()
    };
    let mut watch = WatchServiceClient::new(channel).watch(ask).await.expect("a watch").into_inner();
    let mut acknowledged = Vec::new();
    for (round, mode) in [Mode::Away, Mode::Hangs, Mode::LosesAnswers, Mode::Away].into_iter().enumerate() {
        acknowledged.push(write_until_acknowledged(&mut http, &format!("before-{round}")).await);
        store.set(mode);
        let body = config_map(&format!("during-{round}"), "1").to_string();
        let (status, _) = http.send(request("POST", &format!("{MAPS}?timeout=1s"), &body)).await;
        assert!(status.is_server_error(), "{mode:?}: {status}");
        store.set(Mode::Up);
        acknowledged.push(write_until_acknowledged(&mut http, &format!("after-{round}")).await);
    }
    let mut seen = Vec::new();
    while !acknowledged.iter().all(|name| seen.contains(name)) {
        let event =
            timeout(DEADLINE, watch.message()).await.expect("in time").expect("no error").expect("more");
        let Some(object) = event.object else { continue };
        let object: serde_json::Value = serde_json::from_slice(&object.body).expect("JSON");
        seen.push(object["metadata"]["name"].as_str().expect("a name").to_owned());
    }
    let mut once = seen.clone();
    once.dedup();
    assert_eq!(seen, once, "nothing twice");
    wire.stop().await;
    running.stop().await;
    // What was acknowledged is on the disk.
    let running = start(&directory).await;
    let (found, _) = running.admin().list(&CONFIG_MAPS, Some("shop"), "").await;
    for name in &acknowledged {
        assert!(found.iter().any(|object| object["metadata"]["name"] == name.as_str()), "{name}");
    }
    running.stop().await;
}
