//! The engines under test, each with a directory of its own that goes when the test ends.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hawser_store::{
    EmbeddedOptions, EmbeddedStore, Error, EtcdOptions, EtcdStore, Event, Revision, Store, WatchStream,
};

/// Time in which anything here happens, on a slow machine too. Reaching it is a failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A store under test, and what keeps it alive.
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) server: Option<EtcdServer>,
    /// Dropped last.
    _directory: TestDirectory,
}

impl Engine {
    pub(crate) async fn embedded() -> Self {
        let directory = TestDirectory::new();
        let store = Arc::new(open_embedded(directory.path()).await);
        Self { store, server: None, _directory: directory }
    }

    pub(crate) async fn etcd() -> Option<Self> {
        let directory = TestDirectory::new();
        let server = EtcdServer::start(directory.path())?;
        let store = connect_etcd(EtcdOptions::new([server.endpoint()])).await;
        Some(Self { store: Arc::new(store), server: Some(server), _directory: directory })
    }
}

pub(crate) async fn open_embedded(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(EmbeddedOptions::new(path.join("store"))).await.expect("the directory can be opened")
}

/// Connects, waiting until the server serves.
pub(crate) async fn connect_etcd(options: EtcdOptions) -> EtcdStore {
    eventually("etcd serves", || async { EtcdStore::connect(options.clone()).await.ok() }).await
}

/// Asks again until there is an answer.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < DEADLINE, "it never came about that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a watch until it has announced `revision`; checks that batches are in order and revisions whole.
pub(crate) async fn events_until(watch: &mut WatchStream, revision: Revision) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut announced = 0;
    while announced < revision {
        let batch = tokio::time::timeout(DEADLINE, watch.next())
            .await
            .unwrap_or_else(|_| {
                panic!("watch stuck at {announced}, before {revision}, with {} events", events.len())
            })
            .expect("watch goes on")
            .expect("watch has no error");
        assert!(batch.revision >= announced, "progress went from {announced} back to {}", batch.revision);
        for event in batch.events {
            let last = events.last().map_or(0, |event| event.kv.mod_revision);
            assert!(event.kv.mod_revision >= last, "revision {} after {last}", event.kv.mod_revision);
            assert!(event.kv.mod_revision > announced, "an event that was announced as delivered");
            assert!(event.kv.mod_revision <= batch.revision, "an event beyond its batch");
            events.push(event);
        }
        announced = batch.revision;
    }
    events
}

/// The error that ends a watch.
pub(crate) async fn end_of(watch: &mut WatchStream) -> Error {
    loop {
        let item = tokio::time::timeout(DEADLINE, watch.next()).await.expect("watch ends");
        if let Err(error) = item.expect("watch ends with an error") {
            return error;
        }
    }
}

/// A directory under the system's temporary one, removed on drop.
pub(crate) struct TestDirectory(PathBuf);

impl TestDirectory {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hawser-store-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An etcd member of the test's own on loopback, killed by its process id on drop.
pub(crate) struct EtcdServer {
    child: Child,
    arguments: Vec<String>,
    endpoint: String,
}

impl EtcdServer {
    /// Starts etcd with its data under `directory`; `None`, with a message, where it is not installed.
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        Self::start_cluster(directory, 1, "http", &[]).map(|mut members| members.remove(0))
    }

    /// Starts `members` of one cluster, which serve clients by `scheme`, with more `arguments`.
    pub(crate) fn start_cluster(
        directory: &Path,
        members: usize,
        scheme: &str,
        arguments: &[String],
    ) -> Option<Vec<Self>> {
        if !Path::new(ETCD).exists() {
            println!("skipped: {ETCD} is not installed");
            return None;
        }
        let ports = free_ports(2 * members);
        let (client_ports, peer_ports) = ports.split_at(members);
        let peer = |n: usize| format!("http://127.0.0.1:{}", peer_ports[n]);
        let cluster: Vec<_> = (0..members).map(|n| format!("m{n}={}", peer(n))).collect();
        let start = |n: usize| {
            let endpoint = format!("{scheme}://127.0.0.1:{}", client_ports[n]);
            let mut own: Vec<String> = vec![];
            let mut add = |name: &str, value: String| own.extend([name.to_owned(), value]);
            add("--name", format!("m{n}"));
            add("--data-dir", directory.join(format!("etcd-{n}")).display().to_string());
            add("--listen-client-urls", endpoint.clone());
            add("--advertise-client-urls", endpoint.clone());
            add("--listen-peer-urls", peer(n));
            add("--initial-advertise-peer-urls", peer(n));
            add("--initial-cluster", cluster.join(","));
            add("--logger", "zap".into());
            add("--log-level", "error".into());
            own.extend_from_slice(arguments);
            Self { child: spawn_etcd(&own), arguments: own, endpoint }
        };
        Some((0..members).map(start).collect())
    }

    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same data and ports.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn_etcd(&self.arguments);
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

const ETCD: &str = "/usr/bin/etcd";

fn spawn_etcd(arguments: &[String]) -> Child {
    Command::new(ETCD)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd can be started")
}

/// Ports that were free a moment ago. Another process may take one; etcd then does not come up and the test fails.
fn free_ports(count: usize) -> Vec<u16> {
    let bind = |_| TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    // Held until all are known, so that they differ.
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("a bound socket has an address").port())
        .collect()
}
