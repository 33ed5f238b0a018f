//! What the HTTPS port answers, byte for byte where clients rely on it.

mod common;

use std::time::Duration;

use common::{
    wire::{Connection, Wire, request},
    *,
};
use futures::StreamExt;
use hawser_apiserver::auth::SYSTEM_MASTERS;
use http::{StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const DEADLINE: Duration = Duration::from_secs(60);

async fn serve(directory: &Directory) -> (Running, Wire, Connection) {
    let running = start(directory).await;
    running.namespace("shop").await;
    let wire = Wire::start(&running).await;
    let admin = wire.connect("admin", &[SYSTEM_MASTERS]).await;
    (running, wire, admin)
}

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

#[tokio::test]
async fn options_that_do_not_go_together_are_told_by_field() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    for (query, code) in [
        ("limit=-1", 200),
        ("limit=ten", 400),
        ("timeoutSeconds=soon", 400),
        ("resourceVersion=x", 400),
        ("continue=x", 400),
        ("continue=x&resourceVersionMatch=Exact&resourceVersion=5", 422),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersionMatch=Never&resourceVersion=5", 422),
        ("sendInitialEvents=true", 422),
        ("watch=true&sendInitialEvents=true", 422),
        ("watch=true&resourceVersionMatch=NotOlderThan", 422),
        ("watch=true&timeoutSeconds=soon", 400),
    ] {
        let (status, answer) = admin.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(status, code, "{query}: {answer}");
        if code == 422 {
            assert_eq!(answer["details"]["kind"], "ListOptions", "{answer}");
            assert!(answer["details"]["causes"][0]["field"].is_string(), "{answer}");
        }
    }
    let (_, all) = admin.get(MAPS).await;
    let version = all["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    for (name, code) in [("a", StatusCode::CREATED), ("b", StatusCode::CREATED)] {
        assert_eq!(admin.send(request("POST", MAPS, &config_map(name, "1").to_string())).await.0, code);
    }
    let (_, page) = admin.get(&format!("{MAPS}?limit=500&resourceVersion={version}")).await;
    assert_eq!(
        page["metadata"]["resourceVersion"],
        version.as_str(),
        "a limit and a version is that version"
    );
    assert_eq!(page["items"].as_array().map(Vec::len), all["items"].as_array().map(Vec::len));
    for (method, path, body) in [
        ("POST", format!("{MAPS}?dryRun=Some"), config_map("c", "1").to_string()),
        ("DELETE", format!("{MAPS}/a?propagationPolicy=Sideways"), String::new()),
        (
            "DELETE",
            format!("{MAPS}/a"),
            json!({ "orphanDependents": true, "propagationPolicy": "Orphan" }).to_string(),
        ),
    ] {
        let (status, answer) = admin.send(request(method, &path, &body)).await;
        assert_eq!(status, 422, "{method} {path}: {answer}");
    }
    let (status, _) = admin.send(request("DELETE", &format!("{MAPS}/a?dryRun=All"), "{}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(admin.get(&format!("{MAPS}/a")).await.0, StatusCode::NOT_FOUND, "the body was its options");
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn options_are_named_for_what_they_are_of() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    let object = config_map("a", "1").to_string();
    assert_eq!(admin.send(request("POST", MAPS, &object)).await.0, StatusCode::CREATED);
    let (one, many) = (format!("{MAPS}/a"), MAPS.to_owned());
    for (method, path, media, kind) in [
        ("POST", &many, "application/json", "CreateOptions"),
        ("PUT", &one, "application/json", "UpdateOptions"),
        ("PATCH", &one, "application/merge-patch+json", "PatchOptions"),
        ("PATCH", &one, "application/apply-patch+yaml", "PatchOptions"),
    ] {
        let mut long = request(method, &format!("{path}?fieldManager={}", "m".repeat(129)), &object);
        long.headers_mut().insert(header::CONTENT_TYPE, media.parse().expect("a header"));
        let (status, answer) = admin.send(long).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{method}: {answer}");
        assert_eq!(answer["details"]["kind"], kind, "{method}: {answer}");
        assert_eq!(answer["details"]["causes"][0]["field"], "fieldManager", "{method}: {answer}");
    }
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn kinds_that_are_old_say_so_with_every_answer() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    let endpoints = "/api/v1/namespaces/shop/endpoints";
    let object = json!({ "metadata": { "name": "a" } }).to_string();
    let old = "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    let status = "299 - \"v1 ComponentStatus is deprecated in v1.19+\"";
    for (method, path, body, expected) in [
        ("POST", endpoints.to_owned(), object.as_str(), &[old][..]),
        ("GET", format!("{endpoints}/a"), "", &[old]),
        ("PUT", format!("{endpoints}/a"), &object, &[old]),
        ("GET", endpoints.to_owned(), "", &[old]),
        ("GET", format!("{endpoints}?watch=true&timeoutSeconds=1"), "", &[old]),
        ("DELETE", format!("{endpoints}/a"), "", &[old]),
        ("DELETE", endpoints.to_owned(), "", &[old]),
        ("GET", "/api/v1/componentstatuses".to_owned(), "", &[status]),
        ("GET", MAPS.to_owned(), "", &[]),
    ] {
        let answer = admin.open(request(method, &path, body)).await;
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
        let said: Vec<_> = answer.headers().get_all(header::WARNING).iter().cloned().collect();
        assert_eq!(said, expected, "{method} {path}");
        answer.into_body().collect().await.expect("a body");
    }
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_deletion_that_is_only_tried_shows_what_would_be() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    let pods = "/api/v1/namespaces/shop/pods";
    let mut bound = pod("a");
    bound["spec"]["nodeName"] = json!("n1");
    assert_eq!(admin.send(request("POST", pods, &bound.to_string())).await.0, StatusCode::CREATED);
    for grace in ["0", "20"] {
        let path = format!("{pods}/a?dryRun=All&gracePeriodSeconds={grace}");
        let (status, shown) = admin.send(request("DELETE", &path, "")).await;
        assert_eq!(status, StatusCode::OK, "{shown}");
        assert!(shown["metadata"]["deletionTimestamp"].is_string(), "{shown}");
        assert_eq!(shown["metadata"]["deletionGracePeriodSeconds"].to_string(), grace);
    }
    let (_, still) = admin.get(&format!("{pods}/a")).await;
    assert_eq!(still["metadata"]["deletionTimestamp"], Value::Null, "nothing was written");

    let jobs = "/apis/batch/v1/namespaces/shop/jobs";
    let spec = json!({ "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "main", "image": "demo" }],
    } } });
    let job = json!({ "metadata": { "name": "j" }, "spec": spec }).to_string();
    assert_eq!(admin.send(request("POST", jobs, &job)).await.0, StatusCode::CREATED);
    for (query, is_warned) in [("dryRun=All", true), ("dryRun=All&propagationPolicy=Background", false)] {
        for path in [format!("{jobs}/j?{query}"), format!("{jobs}?{query}")] {
            let answer = admin.open(request("DELETE", &path, "")).await;
            let warning = answer.headers().get(header::WARNING).cloned();
            assert!(answer.into_body().collect().await.is_ok());
            assert_eq!(warning.is_some(), is_warned, "{path}");
            let text = warning.as_ref().and_then(|warning| warning.to_str().ok()).unwrap_or_default();
            assert!(!is_warned || text.contains("child pods are preserved by default"), "{text}");
        }
    }
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_watch_comes_over_a_websocket_as_messages() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    for (accept, is_text) in [("application/json", true), ("application/vnd.kubernetes.protobuf", false)] {
        let stream = wire.dial("admin", &[SYSTEM_MASTERS]).await;
        let url = format!("wss://127.0.0.1{MAPS}?watch=1&timeoutSeconds=600");
        let mut asked = url.into_client_request().expect("a request");
        asked.headers_mut().insert(header::ACCEPT, accept.parse().expect("a header"));
        let (mut socket, answer) = tokio_tungstenite::client_async(asked, stream).await.expect("a socket");
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        // The namespace's own ConfigMap may be there by now: the one that is made here ends what is looked at.
        let name = format!("made-{is_text}");
        let made = request("POST", MAPS, &config_map(&name, "1").to_string());
        assert_eq!(admin.send(made).await.0, StatusCode::CREATED);
        loop {
            let message = timeout(DEADLINE, socket.next()).await.expect("in time").expect("a message");
            match message.expect("no error") {
                Message::Text(text) if is_text => {
                    let event: Value = serde_json::from_str(&text).expect("an event");
                    if event["object"]["metadata"]["name"] == name.as_str() {
                        assert_eq!(event["type"], "ADDED");
                        break;
                    }
                }
                // Field 1, then its length: the length of the message itself is not in it.
                Message::Binary(event) if !is_text => {
                    assert_eq!(event[..7], *b"\x0a\x05ADDED");
                    if event.windows(name.len()).any(|part| part == name.as_bytes()) {
                        break;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        socket.close(None).await.expect("closed");
    }
    // A watch whose time is over says so.
    let stream = wire.dial("admin", &[SYSTEM_MASTERS]).await;
    let url = format!("wss://127.0.0.1{MAPS}?watch=1&timeoutSeconds=1&resourceVersion=1");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a socket");
    let mut closed = false;
    while let Some(message) = timeout(DEADLINE, socket.next()).await.expect("in time") {
        closed |= message.is_ok_and(|message| message.is_close());
    }
    assert!(closed);
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn answers_name_their_requests() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    let mut name = async |asked| {
        let answer = admin.open(asked).await;
        let name = answer.headers()["audit-id"].clone();
        answer.into_body().collect().await.expect("a body");
        name
    };
    let first = name(request("GET", MAPS, "")).await;
    assert_ne!(first, name(request("GET", &format!("{MAPS}/none"), "")).await, "each has its own");
    let mut asked = request("GET", "/version", "");
    asked.headers_mut().insert("audit-id", "mine".parse().expect("a header"));
    assert_eq!(name(asked).await, "mine");
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_watch_has_no_yaml() {
    let directory = Directory::new();
    let (running, wire, mut admin) = serve(&directory).await;
    let mut asked = request("GET", &format!("{MAPS}?watch=1"), "");
    asked.headers_mut().insert(header::ACCEPT, "application/yaml".parse().expect("a header"));
    assert_eq!(admin.open(asked).await.status(), StatusCode::NOT_ACCEPTABLE);
    wire.stop().await;
    running.stop().await;
}
