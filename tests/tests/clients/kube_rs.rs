//! kube-rs: typed objects, reflectors over lists and streaming lists, a controller with finalizers, discovery.

use std::{collections::BTreeMap, future::Future, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use hawser_tests::api_server::ApiServer;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Secret},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{
        DeleteParams, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams, WatchEvent,
        WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
    discovery::{Discovery, Scope},
    runtime::{
        Controller, WatchStreamExt,
        controller::Action,
        finalizer::{Event, finalizer},
        reflector, watcher,
    },
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// Runs a test's future on a runtime of its own, with an end.
fn block_on<F: Future<Output = ()>>(work: F) {
    tokio::runtime::Runtime::new()
        .expect("a runtime starts")
        .block_on(async { tokio::time::timeout(SOON * 2, work).await.expect("the test ends in time") });
}

pub(crate) async fn connect(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("the kubeconfig can be read");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .expect("the kubeconfig names a cluster");
    Client::try_from(config).expect("a client can be made")
}

async fn namespace(client: &Client, name: &str) {
    let object = Namespace { metadata: named(name), ..Namespace::default() };
    Api::all(client.clone()).create(&PostParams::default(), &object).await.expect("a namespace is made");
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

pub(crate) fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data: BTreeMap<_, _> =
        data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ConfigMap { metadata: named(name), data: Some(data), ..ConfigMap::default() }
}

#[track_caller]
fn code(error: &kube::Error) -> (u16, &str) {
    match error {
        kube::Error::Api(status) => (status.code, &status.reason),
        other => panic!("no answer of the API: {other}"),
    }
}

#[test]
fn typed_objects_are_written_read_patched_and_refused() {
    let server = ApiServer::start();
    block_on(async {
        let client = connect(&server).await;
        namespace(&client, "typed").await;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "typed");
        let post = PostParams::default();
        let mut made = maps.create(&post, &config_map("a", &[("k", "1")])).await.expect("created");
        assert_eq!(maps.get("a").await.expect("found"), made);
        let older = made.clone();
        made.data.get_or_insert_default().insert("l".into(), "2".into());
        let written = maps.replace("a", &post, &made).await.expect("replaced");
        assert_ne!(written.resource_version(), older.resource_version());
        let conflict = maps.replace("a", &post, &older).await.expect_err("an older version");
        assert_eq!(code(&conflict), (409, "Conflict"));
        let twice = maps.create(&post, &config_map("a", &[])).await.expect_err("it exists");
        assert_eq!(code(&twice), (409, "AlreadyExists"));
        assert_eq!(maps.get_opt("absent").await.expect("an answer"), None);
        let invalid = maps.create(&post, &config_map("A", &[])).await.expect_err("no name");
        assert_eq!(code(&invalid), (422, "Invalid"));

        let params = PatchParams::default();
        let merge = Patch::Merge(json!({ "data": { "k": null }, "metadata": { "labels": { "x": "y" } } }));
        let patched = maps.patch("a", &params, &merge).await.expect("patched");
        assert_eq!(patched.data.as_ref().map(BTreeMap::len), Some(1));
        let note = Patch::Merge(json!({ "metadata": { "annotations": { "n": "1" } } }));
        let metadata = maps.patch_metadata("a", &params, &note).await.expect("patched");
        assert_eq!(metadata.annotations()["n"], "1");
        let apply = Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "z": "1" } }));
        let applied = maps.patch("a", &PatchParams::apply("tests"), &apply).await.expect("applied");
        assert_eq!(applied.data.as_ref().map(|data| (data.len(), &*data["z"])), Some((2, "1")));
        assert!(applied.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some("tests")));
        let apply = Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "z": "2" } }));
        let refused =
            maps.patch("a", &PatchParams::apply("others"), &apply).await.expect_err("the tests' own");
        assert_eq!(code(&refused), (409, "Conflict"));
        let applied = maps.patch("a", &PatchParams::apply("others").force(), &apply).await.expect("forced");
        assert_eq!(applied.data.as_ref().map(|data| &*data["z"]), Some("2"));

        for number in 0..7 {
            maps.create(&post, &config_map(&format!("page-{number}"), &[])).await.expect("created");
        }
        let page = maps.list(&ListParams::default().limit(3)).await.expect("a page");
        assert_eq!(page.items.len(), 3);
        let rest = ListParams::default()
            .limit(500)
            .continue_token(page.metadata.continue_.as_deref().expect("more"));
        let rest = maps.list(&rest).await.expect("the rest");
        let names = page
            .iter()
            .chain(rest.iter())
            .map(ResourceExt::name_any)
            .filter(|name| name != "kube-root-ca.crt");
        assert_eq!(names.count(), 8);
        let metadata = maps.list_metadata(&ListParams::default().labels("x=y")).await.expect("metadata");
        assert_eq!(metadata.items.len(), 1);

        maps.delete("a", &DeleteParams::default().dry_run()).await.expect("nothing happens");
        assert!(
            maps.delete("a", &DeleteParams::default()).await.expect("deleted").is_right(),
            "a Status says so"
        );
        maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
        assert_eq!(maps.get_opt("page-1").await.expect("an answer"), None);

        let deployments: Api<Deployment> = Api::namespaced(client, "typed");
        let web: Deployment = serde_json::from_value(json!({
            "metadata": { "name": "web" },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "template": {
                "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "registry.test/c:1" }] } } }
        }))
        .expect("a deployment");
        deployments.create(&post, &web).await.expect("created");
        let replicas = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
        let scale = deployments.patch_scale("web", &params, &replicas).await.expect("scaled");
        assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(3));
        let status = deployments.get_status("web").await.expect("a status");
        assert_eq!(status.spec.and_then(|spec| spec.replicas), Some(3));
    });
}

/// A reflector holds what the server holds: after the first list, and after each change.
async fn reflector_follows(maps: Api<ConfigMap>, config: watcher::Config) {
    let (store, writer) = reflector::store::<ConfigMap>();
    let post = PostParams::default();
    for number in 0..5 {
        maps.create(&post, &config_map(&format!("r{number}"), &[("n", "0")])).await.expect("created");
    }
    let stream = reflector(writer, watcher(maps.clone(), config)).default_backoff();
    let mut stream = pin!(stream);
    while !matches!(stream.try_next().await.expect("no error"), Some(watcher::Event::InitDone)) {}
    store.wait_until_ready().await.expect("the writer lives");
    let mut names: Vec<_> =
        store.state().iter().map(|map| map.name_any()).filter(|name| name.starts_with('r')).collect();
    names.sort();
    assert_eq!(names, ["r0", "r1", "r2", "r3", "r4"]);

    maps.patch("r0", &PatchParams::default(), &Patch::Merge(json!({ "data": { "n": "1" } })))
        .await
        .expect("patched");
    maps.delete("r1", &DeleteParams::default()).await.expect("deleted");
    maps.create(&post, &config_map("r5", &[])).await.expect("created");
    loop {
        match stream.try_next().await.expect("no error") {
            Some(watcher::Event::Apply(map)) if map.name_any() == "r5" => break,
            Some(_) => {}
            None => panic!("the watch ended"),
        }
    }
    let find = |name: &str| store.find(|map| map.name_any() == name);
    assert_eq!(
        find("r0").and_then(|map| map.data.clone()).and_then(|data| data.get("n").cloned()).as_deref(),
        Some("1")
    );
    assert!(find("r1").is_none() && find("r5").is_some());
    maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
}

#[test]
fn reflectors_follow_lists_pages_and_streaming_lists() {
    let server = ApiServer::start();
    block_on(async {
        let client = connect(&server).await;
        for (name, config) in [
            ("listed", watcher::Config::default()),
            ("paged", watcher::Config::default().page_size(2)),
            ("cached", watcher::Config::default().any_semantic()),
            ("streamed", watcher::Config::default().streaming_lists()),
        ] {
            namespace(&client, name).await;
            reflector_follows(Api::namespaced(client.clone(), name), config).await;
        }
    });
}

#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Keeps a Secret beside each ConfigMap that is marked; takes it away when the ConfigMap goes.
async fn mirror(map: Arc<ConfigMap>, client: Arc<Client>) -> Result<Action, Failure> {
    let namespace = map.namespace().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced((*client).clone(), &namespace);
    let maps: Api<ConfigMap> = Api::namespaced((*client).clone(), &namespace);
    let done = finalizer(&maps, "example.com/mirror", map, |event| async {
        match event {
            Event::Apply(map) => {
                let name = map.name_any();
                let secret =
                    Secret { metadata: named(&name), string_data: map.data.clone(), ..Secret::default() };
                match secrets.create(&PostParams::default(), &secret).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        let patch = Patch::Merge(json!({ "stringData": map.data }));
                        secrets.patch(&name, &PatchParams::default(), &patch).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            Event::Cleanup(map) => {
                secrets.delete(&map.name_any(), &DeleteParams::default()).await?;
            }
        }
        Ok(Action::await_change())
    });
    done.await.map_err(|error| Failure(error.to_string()))
}

#[test]
fn a_controller_with_finalizers_keeps_up() {
    let server = ApiServer::start();
    block_on(async {
        let client = connect(&server).await;
        namespace(&client, "mirrored").await;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "mirrored");
        let secrets: Api<Secret> = Api::namespaced(client.clone(), "mirrored");
        let controller = Controller::new(maps.clone(), watcher::Config::default().labels("mirror=yes"))
            .run(mirror, |_, _, _| Action::requeue(Duration::from_millis(100)), Arc::new(client.clone()))
            .for_each(|_| async {});
        let controller = tokio::spawn(controller);

        let mut map = config_map("m", &[("k", "1")]);
        map.metadata.labels = Some([("mirror".to_owned(), "yes".to_owned())].into());
        maps.create(&PostParams::default(), &map).await.expect("created");
        let holds = |value: &'static str| {
            let secrets = secrets.clone();
            async move {
                until("the secret follows", || async {
                    let secret = secrets.get_opt("m").await.expect("an answer");
                    secret.and_then(|secret| secret.data).is_some_and(|data| data["k"].0 == value.as_bytes())
                })
                .await;
            }
        };
        holds("1").await;
        maps.patch("m", &PatchParams::default(), &Patch::Merge(json!({ "data": { "k": "2" } })))
            .await
            .expect("patched");
        holds("2").await;
        maps.delete("m", &DeleteParams::default()).await.expect("deleted");
        until("both are gone", || async {
            maps.get_opt("m").await.expect("an answer").is_none()
                && secrets.get_opt("m").await.expect("an answer").is_none()
        })
        .await;
        controller.abort();
    });
}

async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn discovery_finds_kinds_for_dynamic_objects() {
    let server = ApiServer::start();
    block_on(async {
        let client = connect(&server).await;
        let plain = Discovery::new(client.clone()).run().await.expect("discovery");
        let aggregated = Discovery::new(client.clone()).run_aggregated().await.expect("aggregated discovery");
        for discovery in [&plain, &aggregated] {
            let kind = GroupVersionKind::gvk("apps", "v1", "Deployment");
            let (resource, capabilities) = discovery.resolve_gvk(&kind).expect("deployments are served");
            assert_eq!((resource.plural.as_str(), &capabilities.scope), ("deployments", &Scope::Namespaced));
            assert!(capabilities.supports_operation("watch"));
            assert!(
                capabilities.subresources.iter().any(|(resource, _)| resource.plural == "scale"),
                "{capabilities:?}"
            );
        }
        let kinds = |discovery: &Discovery| {
            let mut kinds: Vec<_> = discovery
                .groups()
                .flat_map(|group| group.recommended_resources())
                .map(|(resource, _)| (resource.api_version, resource.kind, resource.plural))
                .collect();
            kinds.sort();
            kinds
        };
        assert_eq!(kinds(&plain), kinds(&aggregated));

        let kind = GroupVersionKind::gvk("", "v1", "ConfigMap");
        let (resource, _) = plain.resolve_gvk(&kind).expect("config maps are served");
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &resource);
        let object = DynamicObject::new("dynamic", &resource).data(json!({ "data": { "a": "1" } }));
        api.create(&PostParams::default(), &object).await.expect("created");
        assert_eq!(api.get("dynamic").await.expect("found").data["data"]["a"], "1");
        let version = client.apiserver_version().await.expect("a version");
        assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "36"));
    });
}

#[test]
fn a_deletion_has_a_version_of_its_own() {
    let server = ApiServer::start();
    block_on(async {
        let client = connect(&server).await;
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let version = maps
            .list(&ListParams::default())
            .await
            .expect("a list")
            .metadata
            .resource_version
            .expect("a version");
        maps.create(&PostParams::default(), &config_map("seen", &[])).await.expect("created");
        let params = WatchParams::default().fields("metadata.name=seen").timeout(5);
        let events = maps.watch(&params, &version).await.expect("a watch");
        let mut events = pin!(events);
        let Some(WatchEvent::Added(map)) = events.try_next().await.expect("no error") else {
            panic!("no event")
        };
        assert_eq!(map.name_any(), "seen");
        maps.delete("seen", &DeleteParams::default()).await.expect("deleted");
        let Some(WatchEvent::Deleted(last)) = events.try_next().await.expect("no error") else {
            panic!("no event")
        };
        assert_ne!(last.resource_version(), map.resource_version(), "a deletion has a version of its own");
    });
}
