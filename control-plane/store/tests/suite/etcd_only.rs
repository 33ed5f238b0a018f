//! What only etcd can show: it dies and comes back under our feet.

use std::sync::Arc;

use hawser_store::{Error, EtcdOptions, EtcdStore, EtcdTls, Expect, RangeRequest, Revision, Store, Write};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::task::JoinSet;

use crate::engines::{DEADLINE, Engine, EtcdServer, TestDirectory, connect_etcd, events_until, eventually};

/// Writes unique values to a key by compare-and-put until told to stop; returns the values acknowledged.
///
/// A write whose outcome is unknown is looked up: it counts if it is there, or if history shows it.
async fn write_unique(store: Arc<dyn Store>, writer: usize, writes: usize) -> Vec<String> {
    let key = format!("/w/{}", writer % 4);
    let mut acknowledged = Vec::new();
    let mut attempt = 0;
    let mut ambiguous = Vec::new();
    while acknowledged.len() < writes {
        attempt += 1;
        let value = format!("{writer}-{attempt}");
        let outcome = match store.get(&key).await {
            Ok(current) => {
                let expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
                store.write(Write::put(key.as_str(), value.clone(), expect)).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => acknowledged.push(value),
            Err(Error::Conflict { .. } | Error::Unavailable { .. }) => {}
            Err(Error::Ambiguous { .. }) => ambiguous.push(value),
            Err(error) => panic!("{error}"),
        }
    }
    println!("writer {writer}: {attempt} attempts, {} ambiguous", ambiguous.len());
    acknowledged
}

/// Runs writers and a watch while `disturb` is called three times, and checks that nothing is lost or doubled.
async fn check_survives(store: Arc<dyn Store>, mut disturb: impl FnMut()) {
    let mut watch = store.watch("/", 2).await.unwrap();
    let (finish, finished) = tokio::sync::oneshot::channel::<Revision>();
    let watcher = tokio::spawn(async move {
        let mut events = Vec::new();
        let mut finished = std::pin::pin!(finished);
        loop {
            tokio::select! {
                batch = watch.next() => events.extend(batch.unwrap().unwrap().events),
                last = &mut finished => {
                    let last = last.unwrap();
                    let seen = events.last().map_or(0, |event: &hawser_store::Event| event.kv.mod_revision);
                    if seen < last {
                        events.extend(events_until(&mut watch, last).await);
                    }
                    return events;
                }
            }
        }
    });
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        writers.spawn(write_unique(store.clone(), writer, 300));
    }
    let mut reached = 1;
    for _ in 0..3 {
        let least = reached + 150;
        reached = eventually("writes go on", || async {
            store.current_revision().await.ok().filter(|current| *current > least)
        })
        .await;
        disturb();
    }
    let acknowledged: Vec<String> =
        tokio::time::timeout(DEADLINE, writers.join_all()).await.unwrap().into_iter().flatten().collect();
    let last = store.current_revision().await.unwrap();
    finish.send(last).unwrap();
    let events = tokio::time::timeout(DEADLINE, watcher).await.unwrap().unwrap();

    let revisions: Vec<Revision> = events.iter().map(|event| event.kv.mod_revision).collect();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>(), "every change once and in order");
    let mut written: Vec<String> =
        events.iter().map(|event| String::from_utf8(event.kv.value.to_vec()).unwrap()).collect();
    written.sort_unstable();
    assert!(written.windows(2).all(|pair| pair[0] != pair[1]), "no write happened twice");
    for value in &acknowledged {
        assert!(written.binary_search(value).is_ok(), "{value} was acknowledged and is lost");
    }
    assert_eq!(acknowledged.len(), 8 * 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_etcd_loses_no_write_and_watches_go_on_without_gap_or_repeat() {
    let Some(mut engine) = Engine::etcd().await else { return };
    let store = engine.store.clone();
    let server = engine.server.as_mut().unwrap();
    check_survives(store, || {
        server.kill();
        server.start_again();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_serves_on_while_its_members_die_one_by_one() {
    let directory = TestDirectory::new();
    let Some(mut members) = EtcdServer::start_cluster(directory.path(), 3, "http", &[]) else { return };
    let store = connect_etcd(EtcdOptions::new(members.iter().map(EtcdServer::endpoint))).await;
    let mut next = 0;
    check_survives(Arc::new(store), || {
        // Each is down until the next one is killed, the leader among them; the last one stays down.
        members[next].kill();
        if next > 0 {
            members[next - 1].start_again();
        }
        next += 1;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_checks_both_sides() {
    let directory = TestDirectory::new();
    let new_key = || KeyPair::generate().unwrap();
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = new_key();
    let ca_pem = ca_params.self_signed(&ca_key).unwrap().pem();
    let ca = Issuer::new(ca_params, ca_key);
    let issue = || {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = new_key();
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    let (server_pem, server_key) = issue();
    let mut arguments = vec!["--client-cert-auth".to_owned()];
    let files = [("trusted-ca-file", &ca_pem), ("cert-file", &server_pem), ("key-file", &server_key)];
    for (name, pem) in files {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        arguments.extend([format!("--{name}"), path.display().to_string()]);
    }
    let Some(members) = EtcdServer::start_cluster(directory.path(), 1, "https", &arguments) else { return };
    let (client_pem, client_key) = issue();
    let tls = EtcdTls {
        ca_pem: ca_pem.into(),
        identity_pem: Some((client_pem.into(), client_key.into())),
        server_name: None,
    };
    let options = EtcdOptions { tls: Some(tls.clone()), ..EtcdOptions::new([members[0].endpoint()]) };
    let store = connect_etcd(options.clone()).await;
    assert_eq!(store.write(Write::create("/a", "x")).await.unwrap().revision, 2);

    let stranger = CertificateParams::default().self_signed(&new_key()).unwrap().pem();
    let strangers = [
        ("no client certificate", EtcdTls { identity_pem: None, ..tls.clone() }),
        ("a server of another CA", EtcdTls { ca_pem: stranger.into(), ..tls.clone() }),
        ("a server of another name", EtcdTls { server_name: Some("etcd.example".into()), ..tls }),
    ];
    for (name, tls) in strangers {
        let deadline = std::time::Duration::from_secs(1);
        let outcome = EtcdStore::connect(EtcdOptions { tls: Some(tls), deadline, ..options.clone() }).await;
        assert!(matches!(&outcome, Err(Error::Unavailable { .. })), "{name}: {:?}", outcome.err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_ranges_are_read_in_pages_of_one_revision() {
    let Some(engine) = Engine::etcd().await else { return };
    let options =
        EtcdOptions { page_size: 7, ..EtcdOptions::new([engine.server.as_ref().unwrap().endpoint()]) };
    let store = EtcdStore::connect(options).await.unwrap();
    let writes: Vec<Write> = (0..100).map(|n| Write::create(format!("/k/{n:03}"), format!("{n}"))).collect();
    store.transaction(writes).await.unwrap();
    for (limit, expected) in [(0, 100), (1, 1), (7, 7), (8, 8), (21, 21), (99, 99), (100, 100), (500, 100)] {
        let response = store.range(RangeRequest::prefix("/k/").limit(limit)).await.unwrap();
        assert_eq!(response.kvs.len(), expected, "limit {limit}");
        assert_eq!((response.more, response.count), (expected < 100, 100), "limit {limit}");
        assert!(response.kvs.is_sorted_by(|a, b| a.key < b.key), "limit {limit}");
        assert_eq!(response.revision, 2);
    }
}

#[tokio::test]
async fn unreachable_etcd_is_unavailable_in_time() {
    // Nothing listens on port 1 of loopback.
    let options = EtcdOptions {
        attempt_timeout: std::time::Duration::from_millis(300),
        deadline: std::time::Duration::from_secs(1),
        ..EtcdOptions::new(["http://127.0.0.1:1"])
    };
    let error = tokio::time::timeout(DEADLINE, EtcdStore::connect(options)).await.unwrap().err().unwrap();
    assert!(matches!(&error, Error::Unavailable { .. }), "{error}");
    let error = EtcdStore::connect(EtcdOptions::new(Vec::<String>::new())).await.err().unwrap();
    assert!(matches!(&error, Error::Configuration { .. }), "{error}");
}
