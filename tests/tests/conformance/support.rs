//! What the tests share: a namespace on the shared server, clients of it, watches, and waiting.

use std::{
    collections::hash_map::RandomState,
    fmt::Debug,
    hash::{BuildHasher, Hasher},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::BoxStream};
use hawser_tests::{api_server::ApiServer, kubectl::Kubectl};
use http::{HeaderMap, Request};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// For each thing that is waited for. Far more than it takes: it bounds a test that fails.
const SOON: Duration = Duration::from_secs(90);

/// A test's own place on the shared server. Its namespaces are deleted with it, and not waited for.
pub(crate) struct Bed {
    pub(crate) client: Client,
    /// The test's namespace: active, and with its service account.
    pub(crate) namespace: String,
    server: Arc<ApiServer>,
    runtime: Runtime,
    namespaces: Mutex<Vec<String>>,
}

/// Runs a test in a namespace of its own.
///
/// ```ignore
/// #[test]
/// fn should_do_something() {
///     test(async |bed| {
///         let map = create(&bed.api::<ConfigMap>(), json!({ "metadata": { "name": "a" } })).await;
///     });
/// }
/// ```
pub(crate) fn test(work: impl AsyncFnOnce(&Bed)) {
    test_on(ApiServer::shared(), work);
}

/// As [`test`], on a server that is not as the others need it.
pub(crate) fn test_on(server: Arc<ApiServer>, work: impl AsyncFnOnce(&Bed)) {
    test_within(SOON * 3, server, work);
}

/// As [`test_on`], with a time of its own after which it has failed.
pub(crate) fn test_within(limit: Duration, server: Arc<ApiServer>, work: impl AsyncFnOnce(&Bed)) {
    let bed = Bed::new(server);
    bed.runtime.block_on(async {
        tokio::time::timeout(limit, work(&bed)).await.expect("the test ends in time");
    });
}

impl Bed {
    fn new(server: Arc<ApiServer>) -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        let client = runtime.block_on(connect(&server));
        let mut bed =
            Self { client, namespace: String::new(), server, runtime, namespaces: Mutex::default() };
        bed.namespace = bed.runtime.block_on(bed.another_namespace());
        bed
    }

    /// One more namespace, which goes with the test.
    pub(crate) async fn another_namespace(&self) -> String {
        let name = unique("conformance");
        let namespace = object(json!({ "metadata": { "name": name } }));
        self.all::<Namespace>()
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a namespace is made");
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
        // Pods are refused before.
        eventually("the namespace has its service account", async || Ok(accounts.get("default").await?))
            .await;
        name
    }

    /// Objects in the test's namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of the cluster.
    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// kubectl in the test's namespace.
    pub(crate) fn kubectl(&self) -> Kubectl<'_> {
        self.server.kubectl_in(&self.namespace)
    }

    /// Another program, with the kubeconfig in its environment, and an end.
    pub(crate) fn program(&self, name: &str) -> Command {
        self.server.client(name)
    }

    /// A directory for files.
    pub(crate) fn scratch(&self) -> &Path {
        self.server.scratch()
    }

    /// A request as the administrator makes it by hand; the answer is an answer whatever its code.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.into())).expect("a request can be made");
        let response = self.client.send(request).await.expect("the server answers");
        let (parts, body) = response.into_parts();
        let body = body.collect_bytes().await.expect("the answer has an end").to_vec();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// `GET path` as JSON.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", path, &[], "").await;
        assert_eq!(answer.code, 200, "{path}: {}", answer.text());
        answer.json()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let namespaces = self.all::<Namespace>();
        let made = std::mem::take(&mut *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner));
        self.runtime.block_on(async {
            for name in made {
                // Gone already, where the test was about that; and what stays disturbs nobody.
                let _ = namespaces.delete(&name, &DeleteParams::default()).await;
            }
        });
    }
}

async fn connect(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("the kubeconfig can be read");
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .expect("the kubeconfig names a cluster");
    // Tests see each answer: the client would ask again where it is 429, as for an eviction that is not allowed.
    config.default_retry = false;
    Client::try_from(config).expect("a client can be made")
}

/// What the server answered.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the answer is JSON")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A watch, whose events are read one after the other.
pub(crate) struct Watch<K>(BoxStream<'static, kube::Result<WatchEvent<K>>>);

/// Opens a watch behind a resource version; `0` shows what is there first.
pub(crate) async fn watch<K>(api: &Api<K>, params: &WatchParams, version: &str) -> Watch<K>
where
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    Watch(api.watch(params, version).await.expect("a watch opens").boxed())
}

impl<K: Debug> Watch<K> {
    /// The next event that is no bookmark: its type and object.
    pub(crate) async fn next(&mut self) -> (&'static str, K) {
        loop {
            let event = tokio::time::timeout(SOON, self.0.next()).await.expect("an event comes in time");
            match event.expect("the watch goes on").expect("the event can be read") {
                WatchEvent::Added(object) => return ("ADDED", object),
                WatchEvent::Modified(object) => return ("MODIFIED", object),
                WatchEvent::Deleted(object) => return ("DELETED", object),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => panic!("the watch failed: {status:?}"),
            }
        }
    }

    /// The next event of this type whose object is as wanted; others are passed over.
    pub(crate) async fn until(&mut self, kind: &str, wanted: impl Fn(&K) -> bool) -> K {
        loop {
            let (found, object) = self.next().await;
            if found == kind && wanted(&object) {
                return object;
            }
        }
    }
}

/// Asks every 100 ms until `check` answers; fails with its last error at the deadline.
pub(crate) async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    within(SOON, what, check).await
}

/// As [`eventually`], with another deadline.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> anyhow::Result<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(error) if Instant::now() > deadline => panic!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A name that nobody else has: the prefix and ten letters.
pub(crate) fn unique(prefix: &str) -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("{prefix}-{:010x}", random & 0xff_ffff_ffff)
}

/// A typed object from JSON.
#[track_caller]
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the object has its type's form")
}

/// Makes an object from JSON, which must be accepted.
pub(crate) async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: Clone + Serialize + DeserializeOwned + Debug,
{
    let made = api.create(&PostParams::default(), &object(value.clone())).await;
    made.unwrap_or_else(|error| panic!("{value} is not created: {error}"))
}

/// A merge patch, which must be accepted.
pub(crate) async fn patch<K>(api: &Api<K>, name: &str, patch: Value) -> K
where
    K: Clone + DeserializeOwned + Debug,
{
    let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    patched.unwrap_or_else(|error| panic!("{name} is not patched with {patch}: {error}"))
}

/// Deletes an object now, as far as nothing holds it; it must be there.
pub(crate) async fn delete<K>(api: &Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + Debug,
{
    let outcome = api.delete(name, &DeleteParams::default().grace_period(0)).await;
    outcome.unwrap_or_else(|error| panic!("{name} is not deleted: {error}"));
}

/// Waits until an object is not there any more.
pub(crate) async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + Debug,
{
    eventually(&format!("{name} is gone"), async || match api.get_opt(name).await? {
        None => Ok(()),
        Some(left) => anyhow::bail!("{left:?} is there"),
    })
    .await;
}

/// A pod of one container, with these labels; no node runs it.
pub(crate) fn pod(name: &str, labels: Value) -> Value {
    json!({
        "metadata": { "name": name, "labels": labels },
        "spec": { "containers": [{ "name": "c", "image": "registry.test/pause:1" }] },
    })
}

/// What a refused request was answered, which has this code and reason.
#[track_caller]
pub(crate) fn refused<T: Debug>(outcome: kube::Result<T>, code: u16, reason: &str) -> Status {
    match outcome {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, &*status.reason), (code, reason), "{status:?}");
            *status
        }
        other => panic!("expected {code} {reason}: {other:?}"),
    }
}
