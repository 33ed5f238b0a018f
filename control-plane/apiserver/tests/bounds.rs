//! What one request may hold, whatever it asks for.

mod common;

use common::{
    wire::{Wire, request},
    *,
};
use hawser_api::{Error, GroupVersionResource, resource::Target};
use hawser_apiserver::{
    auth::{SYSTEM_MASTERS, User},
    registry::{DeleteRequest, ListRequest, Listed, VersionMatch},
};
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn list(running: &Running, request: &ListRequest) -> Result<Listed, Error> {
    let admin = User::named("admin", &[SYSTEM_MASTERS]);
    let call = running.server.enter(&admin, "list", Target::collection(CONFIG_MAPS, Some("shop")), "")?;
    running.server.list(&call, request).await
}

#[tokio::test]
async fn a_list_of_an_old_version_is_refused_whole_and_given_in_pages() {
    let directory = Directory::new();
    let bound = |config: &mut hawser_apiserver::Config| config.limits.old_list_bytes = 64 << 10;
    let running = start_over(embedded(&directory).await, bound).await;
    running.namespace("shop").await;
    let admin = running.admin();
    for number in 0..30 {
        let data = "x".repeat(4 << 10);
        admin
            .create(&CONFIG_MAPS, Some("shop"), config_map(&format!("c{number:02}"), &data))
            .await
            .expect("made");
    }
    let (_, version) = admin.list(&CONFIG_MAPS, Some("shop"), "").await;
    admin.delete(&CONFIG_MAPS, Some("shop"), "c00", None).await.expect("deleted");
    let exact = ListRequest {
        resource_version: version,
        version_match: VersionMatch::Exact,
        ..ListRequest::default()
    };
    let refused = list(&running, &exact).await.err().expect("too much at once");
    assert_eq!(refused.code(), 429, "{refused}");
    assert!(refused.message().contains("in pages (limit)"), "{refused}");
    // More pages than fit together: each gives back what it held.
    let mut page = ListRequest { limit: 7, ..exact };
    let mut seen = 0;
    loop {
        let listed = list(&running, &page).await.expect("a page");
        let next = listed.continue_token.clone();
        seen += listed.objects().count();
        if next.is_empty() {
            break;
        }
        page = ListRequest { limit: 7, continue_token: next, ..ListRequest::default() };
    }
    assert_eq!(seen, 30, "as they were");
    running.stop().await;
}

#[tokio::test]
async fn of_a_large_collection_that_is_deleted_only_the_number_is_told() {
    let directory = Directory::new();
    let running = start(&directory).await;
    running.namespace("shop").await;
    let admin = running.admin();
    let delete = async || {
        let user = User::named("admin", &[SYSTEM_MASTERS]);
        let target = Target::collection(CONFIG_MAPS, Some("shop"));
        let call = running.server.enter(&user, "deletecollection", target, "").expect("admitted");
        let (list, request) = (ListRequest::default(), DeleteRequest::default());
        running.server.delete_collection(&call, &list, &request).await.expect("deleted").0
    };
    for (size, count, shown) in [(1_000, 3, Some(3)), (1_000_000, 17, None)] {
        for number in 0..count {
            let object = config_map(&format!("c{number}"), &"x".repeat(size));
            admin.create(&CONFIG_MAPS, Some("shop"), object).await.expect("made");
        }
        let deleted = delete().await;
        assert_eq!((deleted.count, deleted.objects.map(|objects| objects.len())), (count, shown));
        assert!(admin.list(&CONFIG_MAPS, Some("shop"), "").await.0.is_empty());
    }
    running.stop().await;
}

const MAPS: &str = "/api/v1/namespaces/shop/configmaps";

/// Reads from a connection until what came ends in `end`.
async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await.expect("more"));
    }
    String::from_utf8(text).expect("text")
}

/// Lets the group `shop` make config maps in the namespace.
async fn let_write(running: &Running) {
    let admin = running.admin();
    let group = "rbac.authorization.k8s.io";
    let [roles, bindings] = ["roles", "rolebindings"]
        .map(|plural| GroupVersionResource::fixed("rbac.authorization.k8s.io", "v1", plural));
    let may = json!([{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"] }]);
    let role = json!({ "metadata": { "name": "writer" }, "rules": may });
    admin.create(&roles, Some("shop"), role).await.expect("a role");
    let binding = json!({
        "metadata": { "name": "writers" },
        "roleRef": { "apiGroup": group, "kind": "Role", "name": "writer" },
        "subjects": [{ "apiGroup": group, "kind": "Group", "name": "shop" }],
    });
    admin.create(&bindings, Some("shop"), binding).await.expect("a binding");
    // Who decides has seen it.
    admin.list(&bindings, None, "").await;
}

/// Begins a request for a new config map, and sends a part of its body.
async fn begin(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), size: usize, part: &str) {
    let head = format!(
        "POST {MAPS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The server says so when it begins to read the body.
    assert!(read_until(stream, "\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    stream.write_all(part.as_bytes()).await.expect("sent");
}

#[tokio::test]
async fn a_body_that_comes_slowly_holds_up_nobody() {
    let directory = Directory::new();
    let running = start_over(embedded(&directory).await, |config| config.limits.writes = 1).await;
    running.namespace("shop").await;
    let_write(&running).await;
    let wire = Wire::start(&running).await;
    let mut slow = wire.dial("slow", &["shop"]).await;
    let body = config_map("slow", "1").to_string();
    begin(&mut slow, body.len(), "").await;
    let mut quick = wire.connect("quick", &["shop"]).await;
    let (status, made) = quick.send(request("POST", MAPS, &config_map("quick", "1").to_string())).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    slow.write_all(body.as_bytes()).await.expect("sent");
    assert!(read_until(&mut slow, "\r\n\r\n").await.starts_with("HTTP/1.1 201"), "in the end");
    wire.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn whoever_sends_slowly_on_many_connections_takes_room_from_nobody_else() {
    let directory = Directory::new();
    let bound = |config: &mut hawser_apiserver::Config| config.limits.body_bytes = 64 << 10;
    let running = start_over(embedded(&directory).await, bound).await;
    running.namespace("shop").await;
    let_write(&running).await;
    let wire = Wire::start(&running).await;
    let mut slow = Vec::new();
    for number in 0..3 {
        let body = config_map(&format!("slow-{number}"), &"x".repeat(5 << 10)).to_string();
        let (most, rest) = body.split_at(5 << 10);
        let mut stream = wire.dial("slow", &["shop"]).await;
        begin(&mut stream, body.len(), most).await;
        slow.push((stream, rest.to_owned()));
    }
    let small = |name: &str| request("POST", MAPS, &config_map(name, &"x".repeat(2 << 10)).to_string());
    let mut again = wire.connect("slow", &["shop"]).await;
    let mut number = 0;
    // As soon as all of it is read, its user's share is taken.
    let refused = loop {
        number += 1;
        let answer = again.open(small(&format!("more-{number}"))).await;
        if answer.status() != StatusCode::CREATED {
            break answer;
        }
        answer.into_body().collect().await.expect("a body");
    };
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, made) = wire.connect("quick", &["shop"]).await.send(small("quick")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    for (mut stream, rest) in slow {
        stream.write_all(rest.as_bytes()).await.expect("sent");
        assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 201"), "in the end");
    }
    let (status, made) = wire.connect("slow", &["shop"]).await.send(small("last")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    wire.stop().await;
    running.stop().await;
}
