//! gRPC, on the same port and by the same rules: objects, watches, bindings, errors, health and reflection.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use hawser_api::{
    Api, Client, Error,
    client::{Binding, DeleteOptions, ListOptions, Patch, WatchEvent, WatchOptions, WriteOptions},
    grpc::{Remote, RemoteOptions, resource_of},
    resource::{GroupVersionResource, Target},
    v1::{self, object_service_client::ObjectServiceClient},
};
use hawser_tests::api_server::{ApiServer, Credentials};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn block_on<F: Future<Output = ()>>(work: F) {
    tokio::runtime::Runtime::new().expect("a runtime starts").block_on(async {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("the test ends in time");
    });
}

fn remote(server: &ApiServer, identified: bool) -> Remote {
    let Credentials { authority, certificate, key } = server.credentials();
    let options = RemoteOptions {
        servers: vec![server.address()],
        ca_pem: authority.into_bytes(),
        identity: identified.then(|| (certificate.into_bytes(), key.into_bytes())),
    };
    Remote::new(&options).expect("the certificates can be read")
}

fn maps() -> Target {
    Target::collection(GroupVersionResource::of::<ConfigMap>(), Some("default"))
}

fn map(name: &str) -> Target {
    Target::object(GroupVersionResource::of::<ConfigMap>(), Some("default"), name)
}

fn body(object: &Value) -> Bytes {
    object.to_string().into()
}

fn parsed(bytes: &Bytes) -> Value {
    serde_json::from_slice(bytes).expect("the server answers JSON")
}

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "1" } })
}

/// What HTTP says to the same request.
fn over_http(server: &ApiServer, path: &str, arguments: &[&str]) -> Value {
    let [authority, certificate, key] = server.credential_files();
    let mut command = server.client("curl");
    command.args(["--silent", "--noproxy", "*", "--cacert"]).arg(authority);
    command.arg("--cert").arg(certificate).arg("--key").arg(key).args(arguments);
    let output = command.arg(format!("{}{path}", server.address())).output().expect("curl is installed");
    serde_json::from_slice(&output.stdout).expect("the server answers JSON")
}

#[test]
fn objects_are_the_same_over_grpc_and_http() {
    let server = ApiServer::start();
    block_on(async {
        let remote = remote(&server, true);
        let write = WriteOptions::default();
        let made = parsed(&remote.create(&maps(), body(&config_map("a")), &write).await.expect("created"));
        let path = "/api/v1/namespaces/default/configmaps/a";
        assert_eq!(over_http(&server, path, &[]), made);
        assert_eq!(parsed(&remote.get(&map("a")).await.expect("found")), made);

        let mut changed = made.clone();
        changed["data"]["b"] = json!("2");
        let changed = remote.update(&map("a"), body(&changed), &write).await.expect("updated");
        let stale = remote.update(&map("a"), body(&made), &write).await.expect_err("an older version");
        assert!(stale.is_conflict(), "{stale}");
        for (patch, data) in [
            (Patch::Merge(body(&json!({ "data": { "a": null } }))), json!({ "b": "2" })),
            (Patch::StrategicMerge(body(&json!({ "data": { "c": "3" } }))), json!({ "b": "2", "c": "3" })),
            (Patch::Json(body(&json!([{ "op": "remove", "path": "/data/b" }]))), json!({ "c": "3" })),
        ] {
            let patched = remote.patch(&map("a"), patch, &write).await.expect("patched");
            assert_eq!(parsed(&patched)["data"], data);
        }
        assert_ne!(parsed(&changed)["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
        remote.create(&maps(), body(&config_map("dry")), &dry).await.expect("tried");
        assert!(remote.get(&map("dry")).await.expect_err("only tried").is_not_found());

        let names = remote.list(&maps(), &ListOptions::default()).await.expect("a list");
        let over = over_http(&server, "/api/v1/namespaces/default/configmaps", &[]);
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            names.items.iter().map(|item| name(&parsed(item))).collect::<Vec<_>>(),
            over["items"].as_array().into_iter().flatten().map(name).collect::<Vec<_>>()
        );
        let options = ListOptions { field_selector: "metadata.name=a".into(), ..ListOptions::default() };
        assert_eq!(remote.list(&maps(), &options).await.expect("a list").items.len(), 1);
        remote.delete(&map("a"), &DeleteOptions::default()).await.expect("deleted");
        assert!(remote.get(&map("a")).await.expect_err("deleted").is_not_found());

        let typed: Api<ConfigMap> = Api::namespaced(Arc::new(remote), "default");
        assert!(typed.find("a").await.expect("an answer").is_none());
    });
}

#[test]
fn errors_are_the_same_status_over_grpc_and_http() {
    let server = ApiServer::start();
    block_on(async {
        let remote = remote(&server, true);
        let write = WriteOptions::default();
        let path = "/api/v1/namespaces/default/configmaps";
        #[track_caller]
        fn same(what: &str, error: Result<Bytes, Error>, status: &Value) {
            let mut found = error.expect_err(what).to_status();
            found["metadata"] = status["metadata"].clone();
            assert_eq!(&found, status, "{what}");
        }
        same("absent", remote.get(&map("absent")).await, &over_http(&server, &format!("{path}/absent"), &[]));
        let invalid = config_map("Not_Valid");
        let text = invalid.to_string();
        let post = ["--request", "POST", "--header", "Content-Type: application/json", "--data", &text];
        same(
            "invalid",
            remote.create(&maps(), body(&invalid), &write).await,
            &over_http(&server, path, &post),
        );
        let twice = config_map("twice");
        let text = twice.to_string();
        let post = ["--request", "POST", "--header", "Content-Type: application/json", "--data", &text];
        remote.create(&maps(), body(&twice), &write).await.expect("created");
        same("exists", remote.create(&maps(), body(&twice), &write).await, &over_http(&server, path, &post));
        let selector = ListOptions { label_selector: "a in (".into(), ..ListOptions::default() };
        let refused = remote.list(&maps(), &selector).await.map(|_| Bytes::new());
        same("selector", refused, &over_http(&server, &format!("{path}?labelSelector=a%20in%20("), &[]));
    });
    block_on(async {
        let nobody = remote(&server, false);
        let refused = nobody.get(&map("twice")).await.expect_err("nobody may").to_status();
        assert_eq!((&refused["code"], &refused["reason"]), (&json!(403), &json!("Forbidden")), "{refused}");
        let watch = nobody.watch(&maps(), &WatchOptions::default()).await;
        let refused = match watch {
            Err(error) => error,
            Ok(mut events) => events.next().await.expect("an answer").expect_err("nobody may"),
        };
        assert_eq!(refused.code(), 403);
    });
}

#[test]
fn a_watch_over_grpc_hears_what_kubectl_does() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("default");
    block_on(async {
        let remote = remote(&server, true);
        let options = ListOptions { label_selector: "seen=yes".into(), ..ListOptions::default() };
        let list = remote.list(&maps(), &options).await.expect("a list");
        let watch = WatchOptions {
            label_selector: "seen=yes".into(),
            resource_version: list.resource_version.clone(),
            ..WatchOptions::default()
        };
        let mut events = remote.watch(&maps(), &watch).await.expect("a watch");
        tokio::task::block_in_place(|| {
            kubectl.ok("create configmap w");
            kubectl.ok("label configmap w seen=yes");
            kubectl.ok("annotate configmap w note=1");
            kubectl.ok("delete configmap w");
        });
        let (mut heard, mut versions) = (Vec::new(), BTreeSet::new());
        while heard.len() < 3 {
            let (what, version) = match events.next().await.expect("the watch goes on").expect("no error") {
                WatchEvent::Added { resource_version, .. } => ("added", resource_version),
                WatchEvent::Modified { resource_version, .. } => ("modified", resource_version),
                WatchEvent::Deleted { resource_version, .. } => ("deleted", resource_version),
                WatchEvent::Bookmark { .. } => continue,
            };
            heard.push(what);
            versions.insert(version);
        }
        assert_eq!((heard, versions.len()), (vec!["added", "modified", "deleted"], 3));
    });
}

#[test]
fn bindings_answer_one_by_one() {
    let server = ApiServer::start();
    let kubectl = server.kubectl("binding");
    for name in ["a", "b"] {
        kubectl.ok_with(
            "create -f -",
            &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
                "spec": { "schedulerName": "nobody", "containers": [{ "name": "c", "image": "registry.test/c:1" }] } })
            .to_string(),
        );
    }
    block_on(async {
        let remote = remote(&server, true);
        let pods: Api<Pod> = Api::namespaced(Arc::new(remote.clone()), "binding");
        let uid = pods.get("a").await.expect("found").metadata.uid.unwrap_or_default();
        let binding = |pod: &str, uid: &str, node: &str| Binding {
            namespace: "binding".into(),
            pod: pod.into(),
            uid: uid.into(),
            node: node.into(),
        };
        let batch = [
            binding("a", &uid, "n1"),
            binding("b", "another", "n1"),
            binding("absent", "", "n1"),
            binding("a", &uid, "n2"),
        ];
        let results = remote.bind(&batch).await;
        let codes: Vec<_> =
            results.iter().map(|result| result.as_ref().map_or_else(Error::code, |()| 200)).collect();
        assert_eq!(codes, [200, 409, 404, 409], "{results:?}");
        let node = |pod: Pod| pod.spec.and_then(|spec| spec.node_name);
        assert_eq!(node(pods.get("a").await.expect("found")).as_deref(), Some("n1"));
        assert_eq!(node(pods.get("b").await.expect("found")), None);
    });
}

async fn channel(server: &ApiServer) -> Channel {
    let Credentials { authority, certificate, key } = server.credentials();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority))
        .identity(Identity::from_pem(certificate, key));
    let endpoint = Endpoint::from_shared(server.address()).expect("an address");
    endpoint.tls_config(tls).expect("certificates").connect().await.expect("the server answers")
}

#[test]
fn writes_are_answered_with_the_warnings_of_http() {
    let server = ApiServer::start();
    block_on(async {
        let mut objects = ObjectServiceClient::new(channel(&server).await);
        let mut strange = config_map("strange");
        strange["colour"] = json!("red");
        let options = |validation: &str| {
            Some(v1::WriteOptions { field_validation: validation.to_owned(), ..v1::WriteOptions::default() })
        };
        let resource = Some(resource_of(&maps()));
        let object = Some(v1::Object { encoding: v1::Encoding::Json.into(), body: body(&strange) });
        let create = v1::CreateRequest { resource, object, options: options("Warn") };
        let made = objects.create(create).await.expect("created").into_inner();
        assert_eq!(made.warnings, ["unknown field \"colour\""]);
        let patch = v1::PatchRequest {
            resource: Some(resource_of(&map("strange"))),
            r#type: v1::PatchType::Merge.into(),
            patch: body(&json!({ "colour": "blue" })),
            options: options("Warn"),
            encoding: v1::Encoding::Json.into(),
        };
        let patched = objects.patch(patch.clone()).await.expect("patched").into_inner();
        assert_eq!(patched.warnings, ["unknown field \"colour\""]);
        let quiet = v1::PatchRequest { options: options("Ignore"), ..patch };
        assert!(objects.patch(quiet).await.expect("patched").into_inner().warnings.is_empty());
    });
}

#[test]
fn health_and_reflection_answer() {
    let server = ApiServer::start();
    block_on(async {
        let channel = channel(&server).await;
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "hawser.v1.ObjectService", "hawser.v1.WatchService", "hawser.v1.NodeService"] {
            let answer =
                health.check(HealthCheckRequest { service: service.to_owned() }).await.expect("an answer");
            assert_eq!(answer.into_inner().status, 1, "{service:?} is SERVING");
        }
        let absent = health.check(HealthCheckRequest { service: "nonsense".to_owned() }).await;
        assert_eq!(absent.expect_err("no such service").code(), tonic::Code::NotFound);

        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = ServerReflectionClient::new(channel).server_reflection_info(stream::iter([ask])).await;
        let answer = answers.expect("reflection is served").into_inner().message().await.expect("an answer");
        let Some(MessageResponse::ListServicesResponse(list)) =
            answer.and_then(|answer| answer.message_response)
        else {
            panic!("no list of services");
        };
        let names: BTreeSet<_> = list.service.into_iter().map(|service| service.name).collect();
        for service in ["ObjectService", "WatchService", "NodeService", "BindingService"] {
            assert!(names.contains(&format!("hawser.v1.{service}")), "{names:?}");
        }
    });
}
