//! The gRPC front, held to what the HTTP API says of the same requests.

mod common;

use std::time::Duration;

use common::{
    wire::{Wire, maps},
    *,
};
use hawser_api::{
    Client,
    client::{Binding, DeleteOptions},
    grpc::{Remote, RemoteOptions, status::from_grpc},
    resource::Target,
    v1::{self, object_service_client::ObjectServiceClient, watch_service_client::WatchServiceClient},
};
use hawser_apiserver::auth::SYSTEM_MASTERS;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Code, Request};

const DEADLINE: Duration = Duration::from_secs(60);

fn options(wire: &Wire) -> RemoteOptions {
    RemoteOptions {
        servers: vec![format!("https://{}", wire.address)],
        ca_pem: wire.authority_pem().into_bytes(),
        identity: Some(wire.identity_pem("admin", &[SYSTEM_MASTERS])),
    }
}

async fn make(admin: &Api, name: &str, color: &str) {
    let mut object = config_map(name, "1");
    object["metadata"]["labels"] = json!({ "color": color });
    admin.create(&CONFIG_MAPS, Some("shop"), object).await.expect("made");
}

#[tokio::test]
async fn a_collection_is_deleted_only_by_who_says_so() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let wire = Wire::start(&running).await;
    let mut objects = ObjectServiceClient::new(wire.channel("admin", &[SYSTEM_MASTERS]).await);
    for (name, color) in [("a", "red"), ("b", "red"), ("c", "blue")] {
        make(&admin, name, color).await;
    }
    let request = v1::DeleteRequest { resource: maps(""), ..v1::DeleteRequest::default() };
    let refused = objects.delete(request.clone()).await.expect_err("a name was forgotten");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let both = v1::DeleteRequest { resource: maps("a"), collection: true, ..request.clone() };
    assert_eq!(objects.delete(both).await.expect_err("a name of a collection").code(), Code::InvalidArgument);
    let wrong =
        v1::DeleteRequest { resource: maps("a"), propagation_policy: "Sideways".into(), ..request.clone() };
    let wrong = from_grpc(&objects.delete(wrong).await.expect_err("no such policy"));
    assert_eq!(wrong.code(), 422, "{wrong}");
    let red = v1::DeleteRequest { collection: true, label_selector: "color=red".into(), ..request.clone() };
    let tried = v1::DeleteRequest { dry_run: true, ..red.clone() };
    for request in [tried, red] {
        let answer = objects.delete(request).await.expect("deleted").into_inner();
        assert_eq!(answer.deleted_count, 2);
        let status: Value = serde_json::from_slice(&answer.object.expect("a Status").body).expect("JSON");
        assert_eq!(status["kind"], "Status");
    }
    let (left, _) = admin.list(&CONFIG_MAPS, Some("shop"), "color").await;
    assert_eq!(left.len(), 1, "the blue one");
    make(&admin, "d", "green").await;
    let sealed = v1::Encoding::Protobuf;
    let one = v1::DeleteRequest { resource: maps("d"), encoding: sealed.into(), ..request };
    let deleted = objects.delete(one).await.expect("deleted").into_inner().object.expect("a Status");
    assert_eq!(deleted.encoding(), sealed);
    assert!(deleted.body.starts_with(b"k8s\0"), "as it was asked for");
    let remote = Remote::new(&options(&wire)).expect("a client");
    let collection = Target::collection(CONFIG_MAPS, Some("shop"));
    let named = DeleteOptions { field_selector: "metadata.name=c".into(), ..DeleteOptions::default() };
    remote.delete(&collection, &named).await.expect("deleted");
    assert!(admin.list(&CONFIG_MAPS, Some("shop"), "color").await.0.is_empty());
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_watch_has_the_options_of_https() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    make(&admin, "a", "red").await;
    let wire = Wire::start(&running).await;
    let mut watches = WatchServiceClient::new(wire.channel("admin", &[SYSTEM_MASTERS]).await);
    let ask = v1::WatchRequest {
        resource: maps(""),
        label_selector: "color".into(),
        send_initial_events: Some(true),
        ..v1::WatchRequest::default()
    };
    let refused = watches.watch(ask.clone()).await.expect_err("without a match");
    assert_eq!((refused.code(), from_grpc(&refused).code()), (Code::InvalidArgument, 422), "{refused}");
    let ask = v1::WatchRequest { resource_version_match: "NotOlderThan".into(), timeout_seconds: 1, ..ask };
    let mut stream = watches.watch(ask.clone()).await.expect("a watch").into_inner();
    let mut seen = Vec::new();
    while let Some(event) = timeout(DEADLINE, stream.message()).await.expect("it ends").expect("no error") {
        seen.push((event.r#type(), event.initial_events_end));
    }
    assert_eq!(seen, [(v1::EventType::Added, false), (v1::EventType::Bookmark, true)]);
    let mut hurried = Request::new(v1::WatchRequest { timeout_seconds: 0, ..ask });
    hurried.set_timeout(Duration::from_millis(300));
    let outcome = async {
        let mut stream = watches.watch(hurried).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let ended = timeout(DEADLINE, outcome).await.expect("it ends").expect_err("at the client's deadline");
    assert!(matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled), "{ended}");
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn calls_are_counted_with_the_requests_of_http() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let wire = Wire::start(&running).await;
    let mut objects = ObjectServiceClient::new(wire.channel("admin", &[SYSTEM_MASTERS]).await);
    let missing = v1::GetRequest { resource: maps("none"), ..v1::GetRequest::default() };
    assert_eq!(objects.get(missing).await.expect_err("not there").code(), Code::NotFound);
    let object = v1::Object { body: config_map("a", "1").to_string().into(), ..v1::Object::default() };
    let create = v1::CreateRequest { resource: maps(""), object: Some(object), options: None };
    objects.create(create.clone()).await.expect("made");
    let strict = v1::WriteOptions { field_validation: "Hard".into(), ..v1::WriteOptions::default() };
    let refused = objects.create(v1::CreateRequest { options: Some(strict), ..create }).await;
    assert_eq!(from_grpc(&refused.expect_err("no such validation")).code(), 422);
    let remote = Remote::new(&options(&wire)).expect("a client");
    let binding =
        Binding { namespace: "shop".into(), pod: "none".into(), uid: String::new(), node: "n1".into() };
    assert!(remote.bind(&[binding]).await.remove(0).is_err(), "there is no such pod");
    let mut admin = wire.connect("admin", &[SYSTEM_MASTERS]).await;
    let text = admin.text("/metrics").await;
    let bound = "resource=\"pods\",subresource=\"binding\",scope=\"resource\",component=\"apiserver\",code=\"404\"} 1";
    assert!(text.lines().any(|line| line.ends_with(bound)), "{bound} is missing in\n{text}");
    for (verb, scope, code) in
        [("GET", "resource", 404), ("POST", "namespace", 201), ("POST", "namespace", 422)]
    {
        let line = format!(
            "apiserver_request_total{{verb=\"{verb}\",group=\"\",version=\"v1\",resource=\"configmaps\",\
             subresource=\"\",scope=\"{scope}\",component=\"apiserver\",code=\"{code}\"}} 1"
        );
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    wire.stop().await;
    running.stop().await;
}
